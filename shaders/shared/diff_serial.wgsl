// A token an invocation, as in reduce_serial.wgsl: first the norms of a tile, then its sums by groups of lanes, in the order
// of the definition.

var<private> lane_sums: array<f32, 32>;
var<workgroup> wg_weights: array<f32, SUM_TILE>;
var<workgroup> wg_mean: array<vec4<f32>, 128>;
var<workgroup> wg_inverse_mean: f32;

fn add_lanes() -> f32 {
    for (var d = LANES / 2u; d > 0u; d >>= 1u) {
        for (var i = 0u; i < d; i++) {
            lane_sums[i] += lane_sums[i + d];
        }
    }
    return lane_sums[0];
}

@compute @workgroup_size(WG_SIZE)
fn sum_keys(
    @builtin(workgroup_id) grid: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let wg = grid.yxz;
    let r = scored_row(wg.y);
    let place = place_of_row(r);
    let tile_base = first_slot(r) + wg.x * SUM_TILE;
    for (var t = index; t < SUM_TILE; t += WG_SIZE) {
        wg_weights[t] = 0.0;
        let slot = tile_base + t;
        if slot < r.len {
            wg_weights[t] = weigh_token(score_ix(wg.y, r, slot), token_base(params.keys, place, slot));
        }
    }
    workgroupBarrier();
    let lane = index % LANES;
    var sum = no_quads();
    for (var offset = index / LANES * 4u; offset < SUM_TILE; offset += WG_SIZE / LANES * 4u) {
        for (var j = 0u; j < 4u; j++) {
            let weight = wg_weights[offset + j];
            if weight != 0.0 {
                let base = token_base(params.keys, place, tile_base + offset + j);
                var chunk_ix = 0u;
                for (var c = lane; c < CHUNKS; c += LANES) {
                    sum = add_chunk(load_key_chunk(base, c), chunk_ix, weight, sum);
                    chunk_ix++;
                }
            }
        }
    }
    store_tile(wg, num.y, index, sum);
}

// Leaves a token's inverse norm and returns its weight in the sum.
fn weigh_token(ix: u32, base: u32) -> f32 {
    for (var lane = 0u; lane < LANES; lane++) {
        var sum = 0.0;
        for (var c = lane; c < CHUNKS; c += LANES) {
            sum = checked_squares(load_key_chunk(base, c), sum);
        }
        lane_sums[lane] = sum;
    }
    let square = vec4<f32>(add_lanes());
    let inverses = inverse_norms(square);
    order_keys[ix] = inverse_bits(inverses.x, square.x);
    return weights_of(inverses, square).x;
}

fn find_mean(local_row: u32, index: u32, len: u32) {
    for (var quad = index; quad < head_quads(); quad += WG_SIZE) {
        wg_mean[quad] = mean_quad(local_row, quad, len);
    }
    workgroupBarrier();
    if index == 0u {
        for (var lane = 0u; lane < LANES; lane++) {
            var sum = 0.0;
            for (var c = lane; c < CHUNKS; c += LANES) {
                for (var i = 0u; i < CHUNK_QUADS; i++) {
                    sum = add_squared_quad(wg_mean[c * CHUNK_QUADS + i], sum);
                }
            }
            lane_sums[lane] = sum;
        }
        wg_inverse_mean = inverse_norms(vec4<f32>(add_lanes())).x;
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG_SIZE)
fn score(
    @builtin(workgroup_id) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let wg = grid.yxz;
    let r = scored_row(wg.y);
    let place = place_of_row(r);
    find_mean(wg.y, index, r.len);
    start_histogram(index);
    let first = first_slot(r) + wg.x * TILE;
    for (var slot = first + index; slot < min(r.len, first + TILE); slot += WG_SIZE) {
        let base = token_base(params.keys, place, slot);
        for (var lane = 0u; lane < LANES; lane++) {
            var sum = 0.0;
            for (var c = lane; c < CHUNKS; c += LANES) {
                let chunk = load_key_chunk(base, c);
                for (var i = 0u; i < CHUNK_QUADS; i++) {
                    sum = add_quad(chunk_quad(chunk, i), wg_mean[c * CHUNK_QUADS + i], sum);
                }
            }
            lane_sums[lane] = sum;
        }
        write_score(wg.y, r, slot, add_lanes(), wg_inverse_mean);
    }
    flush_histogram(wg, index);
}
