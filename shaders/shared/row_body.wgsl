// A whole compression of a row by one workgroup. The kernel's file says where state and positions go.

override WG_SIZE: u32 = 256u;
override SCAN_GROUP: u32 = 16u;
override LANES: u32 = 16u;
override CHUNKS: u32 = 16u;
override KEY_CHUNKS: u32 = 16u;
override KEY_LANES: u32 = 16u;
override VALUE_CHUNKS: u32 = 16u;
override VALUE_LANES: u32 = 16u;
override SLICE_CHUNKS: u32 = 16u;

const NAN_NORM: u32 = 0x7fc00000u;

// What of a row is moved.
struct Moves {
    first_moved: u32, // positional: first rank whose slot is not its rank
    num_moved: u32,   // fill: rows to move
    budget: u32,
}

var<workgroup> wg_moves: Moves;
var<workgroup> wg_status: atomic<u32>;

fn select_row_of(local_row: u32) -> SelectRow {
    let row = params.first_row + local_row;
    var s: SelectRow;
    s.rule = rules[params.first_rule + row % params.state.num_kv_heads];
    s.row = load_row(params.state, params.layer, row);
    return s;
}

fn place_of_row(t: TensorLayout, local_row: u32) -> Place {
    return place_of(t, params.first_row + local_row, params.state.num_kv_heads);
}

fn write_score(wg: vec3<u32>, r: Row, row: u32, slot: u32, sum: f32, nan: bool) {
    let norm = select(min(bitcast<u32>(sum) & 0x7fffffffu, INFINITY_BITS), NAN_NORM, nan);
    if norm >= INFINITY_BITS {
        atomicOr(&wg_status, STATUS_NON_FINITE_KEY);
    }
    order_keys[wg.y * params.order_stride + slot] = order_key(r, params.layer, row, slot, norm);
}

fn load_raw(local_row: u32, eight: u32) -> Keys {
    let first = min(eight * 8u, params.order_stride - 8u);
    let ix = local_row * params.order_stride + first;
    return Keys(
        vec4<u32>(order_keys[ix], order_keys[ix + 1u], order_keys[ix + 2u], order_keys[ix + 3u]),
        vec4<u32>(order_keys[ix + 4u], order_keys[ix + 5u], order_keys[ix + 6u], order_keys[ix + 7u]),
    );
}

fn note_first_moved(local_row: u32, rank: u32) {
    wg_moves.first_moved = rank;
}

fn note_num_moved(local_row: u32, count: u32) {
    wg_moves.num_moved = count;
}

// Every load or store of the workgroup so far comes before what follows.
fn all_done() {
    storageBarrier();
    workgroupBarrier();
}

fn fill_row(local_row: u32, index: u32, len: u32, num_moved: u32) {
    for (var first = 0u; first < num_moved; first += WG_SIZE / KEY_LANES * 4u) {
        fill_keys(local_row, first, index, len, num_moved);
    }
    for (var first = 0u; first < num_moved; first += WG_SIZE / VALUE_LANES * 4u) {
        fill_values(local_row, first, index, len, num_moved);
    }
}

fn walk_row(local_row: u32, index: u32, moves: Moves) {
    for (var slice = 0u; slice * SLICE_CHUNKS < KEY_CHUNKS; slice++) {
        walk_keys(local_row, slice, index, moves.budget, moves.first_moved);
    }
    for (var slice = 0u; slice * SLICE_CHUNKS < VALUE_CHUNKS; slice++) {
        walk_values(local_row, slice, index, moves.budget, moves.first_moved);
    }
}

fn compress(wg: vec3<u32>, index: u32) {
    if index == 0u {
        wg_row = select_row_of(wg.y);
        atomicStore(&wg_status, 0u);
    }
    start_selection(index);
    var s = workgroupUniformLoad(&wg_row);
    let row = params.first_row + wg.y;
    let place = place_of_row(params.keys, wg.y);
    // An inactive sequence is not read.
    let len = select(0u, s.row.len, s.row.active_row);
    score_tokens(wg, index, s.row, row, place, 0u, len, len);
    all_done();
    let k = mask_keys(load_raw(wg.y, index), s.row.len, index);
    s = select_in_row(index, k, s);
    if index == 0u {
        wg_moves = Moves(s.budget, 0u, s.budget);
    }
    let scanned = emit_tile(index, wg.y, s, k, 0u, 0u, 0u);
    emit_positions(index, s);
    all_done();
    let moves = workgroupUniformLoad(&wg_moves);
    if params.order == POSITIONAL {
        walk_row(wg.y, index, moves);
    } else {
        fill_row(wg.y, index, s.row.len, moves.num_moved);
    }
    finish_positions(wg.y, index, s.row, moves);
    if index == 0u {
        finish_row(wg.y, s, moves, status_bits(s) | atomicLoad(&wg_status));
    }
}
