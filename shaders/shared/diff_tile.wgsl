// Tiles of tokens, LANES invocations to a token and four tokens in flight an invocation; `reduce` adds the lanes. The
// first chunk of each token stays in registers between the norm and the sum; the others of a long head are read again.

fn load_first(base: u32, lane: u32) -> vec4<u32> {
    if lane < CHUNKS {
        return load_key_chunk(base, lane);
    }
    return vec4<u32>(0u);
}

// Adds a token to the sums.
fn add_token(base: u32, lane: u32, first: vec4<u32>, weight: f32, sum: Quads) -> Quads {
    if weight == 0.0 {
        return sum;
    }
    var q = add_chunk(first, 0u, weight, sum);
    if lane + LANES < CHUNKS {
        q = add_chunk(load_key_chunk(base, lane + LANES), 1u, weight, q);
    }
    if lane + 2u * LANES < CHUNKS {
        q = add_chunk(load_key_chunk(base, lane + 2u * LANES), 2u, weight, q);
    }
    if lane + 3u * LANES < CHUNKS {
        q = add_chunk(load_key_chunk(base, lane + 3u * LANES), 3u, weight, q);
    }
    return q;
}

// Squared norms of four tokens, of which the first chunks are loaded: this lane's part.
fn add_rest(b0: u32, b1: u32, b2: u32, b3: u32, lane: u32, first: vec4<f32>) -> vec4<f32> {
    var squares = first;
    for (var c = lane + LANES; c < CHUNKS; c += LANES) {
        let c0 = load_key_chunk(b0, c);
        let c1 = load_key_chunk(b1, c);
        let c2 = load_key_chunk(b2, c);
        let c3 = load_key_chunk(b3, c);
        squares = vec4<f32>(
            checked_squares(c0, squares.x),
            checked_squares(c1, squares.y),
            checked_squares(c2, squares.z),
            checked_squares(c3, squares.w),
        );
    }
    return squares;
}

fn sum_tile(wg: vec3<u32>, num_tiles: u32, index: u32) {
    let r = scored_row(wg.y);
    let place = place_of_row(r);
    let lane = index % LANES;
    let last = max(r.len, 1u) - 1u;
    let tile_base = first_slot(r) + wg.x * SUM_TILE;
    var sum = no_quads();
    for (var offset = 0u; offset < SUM_TILE; offset += WG_SIZE / LANES * 4u) {
        let slot = tile_base + offset + index / LANES * 4u;
        let bases = token_bases(params.keys, place, slot, last);
        var c0 = vec4<u32>(0u);
        var c1 = vec4<u32>(0u);
        var c2 = vec4<u32>(0u);
        var c3 = vec4<u32>(0u);
        var squares = vec4<f32>(0.0);
        if slot < r.len {
            c0 = load_first(bases.x, lane);
            c1 = load_first(bases.y, lane);
            c2 = load_first(bases.z, lane);
            c3 = load_first(bases.w, lane);
            squares = vec4<f32>(
                checked_squares(c0, 0.0),
                checked_squares(c1, 0.0),
                checked_squares(c2, 0.0),
                checked_squares(c3, 0.0),
            );
            squares = add_rest(bases.x, bases.y, bases.z, bases.w, lane, squares);
        }
        squares = reduce_all(squares, index);
        let inverses = inverse_norms(squares);
        let weights = weights_of(inverses, squares);
        if slot < r.len {
            sum = add_token(bases.x, lane, c0, weights.x, sum);
            sum = add_token(bases.y, lane, c1, select(weights.y, 0.0, slot + 1u >= r.len), sum);
            sum = add_token(bases.z, lane, c2, select(weights.z, 0.0, slot + 2u >= r.len), sum);
            sum = add_token(bases.w, lane, c3, select(weights.w, 0.0, slot + 3u >= r.len), sum);
            for (var j = lane; j < 4u; j += LANES) {
                if slot + j < r.len {
                    order_keys[score_ix(wg.y, r, slot + j)] =
                        inverse_bits(component(inverses, j), component(squares, j));
                }
            }
        }
    }
    store_tile(wg, num_tiles, index, sum);
}

// The invocation's part of the row's sum.
fn load_mean(local_row: u32, lane: u32, len: u32) -> Quads {
    var m = no_quads();
    let step = LANES * CHUNK_QUADS;
    let first = lane * CHUNK_QUADS;
    if lane < CHUNKS {
        m.q0 = mean_quad(local_row, first, len);
        if CHUNK_QUADS >= 2u {
            m.q1 = mean_quad(local_row, first + 1u, len);
        }
        if CHUNK_QUADS == 4u {
            m.q2 = mean_quad(local_row, first + 2u, len);
            m.q3 = mean_quad(local_row, first + 3u, len);
        }
    }
    if lane + LANES < CHUNKS {
        if CHUNK_QUADS == 2u {
            m.q2 = mean_quad(local_row, first + step, len);
            m.q3 = mean_quad(local_row, first + step + 1u, len);
        } else {
            m.q1 = mean_quad(local_row, first + step, len);
        }
    }
    if CHUNK_QUADS == 1u && lane + 2u * LANES < CHUNKS {
        m.q2 = mean_quad(local_row, first + 2u * step, len);
    }
    if CHUNK_QUADS == 1u && lane + 3u * LANES < CHUNKS {
        m.q3 = mean_quad(local_row, first + 3u * step, len);
    }
    return m;
}

fn inverse_of_mean(m: Quads, index: u32) -> f32 {
    var square = add_squared_quad(m.q1, add_squared_quad(m.q0, 0.0));
    square = add_squared_quad(m.q3, add_squared_quad(m.q2, square));
    return inverse_norms(reduce_all(vec4<f32>(square), index)).x;
}

// Adds a chunk of each of four tokens.
fn score_chunks(b0: u32, b1: u32, b2: u32, b3: u32, c: u32, chunk_ix: u32, m: Quads, sums4: vec4<f32>) -> vec4<f32> {
    let c0 = load_key_chunk(b0, c);
    let c1 = load_key_chunk(b1, c);
    let c2 = load_key_chunk(b2, c);
    let c3 = load_key_chunk(b3, c);
    return vec4<f32>(
        score_chunk(c0, chunk_ix, m, sums4.x),
        score_chunk(c1, chunk_ix, m, sums4.y),
        score_chunk(c2, chunk_ix, m, sums4.z),
        score_chunk(c3, chunk_ix, m, sums4.w),
    );
}

// `wg` is (tile, row). Entry points pass the number of parts, which other scores need.
fn score_tile(wg: vec3<u32>, num_parts: u32, index: u32) {
    // From the end, whose keys sum_keys has read last.
    let local_row = params.num_rows - 1u - wg.y;
    let r = scored_row(local_row);
    if !CACHED && wg.x + index == 0u {
        write_note(local_row, r);
    }
    let first = first_slot(r);
    let needed = (r.len - first + TILE - 1u) / TILE;
    // Tiles of both passes are alike where scores are kept, and none is scored that has not been summed.
    let num_tiles = select(needed, min(needed, num_summed(local_row)), CACHED);
    let tile_base = select(r.len, first + (num_tiles - 1u - wg.x) * TILE, wg.x < num_tiles);
    let place = place_of_row(r);
    let lane = index % LANES;
    let last = max(r.len, 1u) - 1u;
    let m = load_mean(local_row, lane, r.len);
    let inverse_mean = inverse_of_mean(m, index);
    start_histogram(index);
    for (var offset = 0u; offset < TILE; offset += WG_SIZE / LANES * 4u) {
        let slot = tile_base + offset + index / LANES * 4u;
        var sums4 = vec4<f32>(0.0);
        if slot < r.len {
            let bases = token_bases(params.keys, place, slot, last);
            if lane < CHUNKS {
                sums4 = score_chunks(bases.x, bases.y, bases.z, bases.w, lane, 0u, m, sums4);
            }
            if CHUNKS > LANES {
                var chunk_ix = 1u;
                for (var c = lane + LANES; c < CHUNKS; c += LANES) {
                    sums4 = score_chunks(bases.x, bases.y, bases.z, bases.w, c, chunk_ix, m, sums4);
                    chunk_ix++;
                }
            }
        }
        let reduced = reduce(sums4, 0u, index);
        for (var j = lane; j < 4u; j += LANES) {
            if slot + j < r.len {
                write_score(local_row, r, slot + j, component(reduced.sums, j), inverse_mean);
            }
        }
    }
    flush_histogram(vec3<u32>(wg.x, local_row, 0u), index);
}
