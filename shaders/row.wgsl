//! row: rows that workgroup memory can select from: a compression in one dispatch, a workgroup to a row, or what follows the
//!   score in one, several workgroups to a row.
//! Source: key_norm.wgsl, radix.wgsl, compact.wgsl and state.wgsl, whose parts these are. Reference:
//!   src/reference/key_norm.rs, src/reference/top_k.rs and src/reference/compact.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 keys read_write vec4<u32> chunks of f32|f16|bf16, addressed by shared/address_strided.wgsl; of layers in arrays
//!     group 1, binding 0
//!   2 values read_write vec4<u32> chunks, likewise, in arrays binding 1
//!   3 state_meta read_write u32, by StateLayout
//!   4 positions read_write u32 [row, capacity] original position
//!   5 order_keys read_write vec4<u32> [row, order_stride / 4], which move_row reads
//!   7 status read_write atomic u32 [layer] sticky bits
//!   8 rules read RowRule [compressed layer, head]
//! Entry points: compress_row · dispatch (1, SCOUTS + num_rows, 1) · none | subgroups: rows up to SLOT_WORDS tokens, or if that is 0
//!   up to 8 * WG_SIZE and 4096; longer ones stay as they are
//!   move_row · dispatch (parts or parts + 1, SCOUTS + num_rows, 1) · none | subgroups: rows up to 2 * PAIR_WORDS tokens, or if
//!   that is 0 up to 8 * WG_SIZE, after their score in key_norm.wgsl; parts: of Fill any even number, half for keys, half for
//!   values; of Positional the column slices of both
//! Overrides: WG_SIZE = 256, or 512 or 1024; LANES = 16, a power of two in 2..=32; KEY_LANES, VALUE_LANES = 16, in 1..=48;
//!   CHUNKS, KEY_CHUNKS, VALUE_CHUNKS = 16, in 1..=128; KEY_SLICE, VALUE_SLICE = 16, chunks of a column slice, at most
//!   WG_SIZE; PACED = false; IN_ORDER = false; SLOT_WORDS = 0, or in compress_row a power of two, at least 2048 and the most
//!   tokens of a row; PAIR_WORDS = 0, or in move_row half the most tokens of a row, at most 8 * WG_SIZE; SCOUTS = 0, rows of the
//!   grid that shared/scout.wgsl speaks of; SCOUTS_SCORE = true; NUM_LAYERS = 1, in the arrays
//! Workgroup bytes: 32 * WG_SIZE, beyond 512 half of it, + 4 * WG_SIZE + 256, + 20 * WG_SIZE in the workgroup variant; with
//!   SLOT_WORDS their bytes and 4096 in place of the first; the first is at least 4 * PAIR_WORDS
//! Algorithm: nothing waits for another row, so where there are rows enough to fill the card, one dispatch does what four
//!   did. Order keys and the slots that stay never leave workgroup memory; where that takes no workgroup its place, keys have
//!   words of their own, so that they are counted while others are awaited. Where rows are few a dispatch scores them all
//!   over the card, and then every workgroup of a row selects for itself and moves its part: that takes less time than to
//!   wait for one that selects for all.
//! Invariants: of compress_row nobody else touches the row, so barriers of the workgroup order all that it reads and
//!   writes: keys and values, read before any is moved; positions, of which those of holes are written last; its length,
//!   which one invocation loads before all others begin and writes at the end. Of what a layer's rows share, tokens seen
//!   and activity are only read. Workgroups of move_row share nothing that one of them writes: each chunk of keys and
//!   values is one workgroup's; state and positions are the last workgroup's, and of the state the others know what the
//!   score has noted (shared/row_note.wgsl).

struct Params {
    state: StateLayout,
    keys: TensorLayout,
    values: TensorLayout,
    num_rows: u32,        // rows of this window
    first_row: u32,       // row of layer `layer` that is row 0 here
    layer: u32,
    first_sequence: u32,
    first_rule: u32,      // index of the layer's first rule
    order_stride: u32,    // words between rows of order_keys
    keys_held: u32,       // 8: keys of a tile that an invocation holds
    digit_shift: u32,     // of first digits
    digit_window: u32,    // first | len << 16
    direction: u32,       // 0 lowest, 1 highest, 2 random
    seed_low: u32,
    seed_high: u32,
    sinks: u32,           // tokens
    recent: u32,          // tokens
    share_low: u32,       // share of the length that `recent` is at most, times 2^40
    share_high: u32,      // NO_SHARE: no such bound
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> state_meta: array<u32>;
@group(0) @binding(4) var<storage, read_write> positions: array<u32>;
@group(0) @binding(5) var<storage, read_write> order_keys: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read_write> status: array<atomic<u32>>;
@group(0) @binding(8) var<storage, read> rules: array<RowRule>;

override WG_SIZE: u32 = 256u;
override LANES: u32 = 16u;
override CHUNKS: u32 = 16u;
override KEY_CHUNKS: u32 = 16u;
override KEY_LANES: u32 = 16u;
override VALUE_CHUNKS: u32 = 16u;
override VALUE_LANES: u32 = 16u;
override KEY_SLICE: u32 = 16u;
override VALUE_SLICE: u32 = 16u;
override PACED: bool = false; // the stores of a tile of a walk begin together
override NUM_LAYERS: u32 = 1u; // in arrays of buffers
override IN_ORDER: bool = false; // kept tokens keep their order, else movers fill holes
override SCOUTS: u32 = 0u; // rows of the grid
override SCOUTS_SCORE: bool = true; // of compress_row: they run the score too. Of bf16 that makes slower code
override PAIR_WORDS: u32 = 0u; // of move_row: words to stage two slots each of rows of two tiles, 0 of rows of one
override SLOT_WORDS: u32 = 0u; // of workgroup memory for keys and slots alone; 0: they share that of the bins

const BY_TILE: bool = false;
const NAN_NORM: u32 = 0x7fc00000u;

// What of a row is moved.
struct Moves {
    first_moved: u32, // positional: first rank whose slot is not its rank
    num_moved: u32,   // fill: rows to move
    budget: u32,
}

var<workgroup> wg_row: SelectRow;
var<workgroup> wg_moves: Moves;
var<workgroup> wg_status: atomic<u32>;

// Most tokens of a row that compress_row holds, a word each.
fn most_scored() -> u32 {
    return select(select(8u * WG_SIZE, 4u * WG_SIZE, WG_SIZE > MOST_WHOLE), SLOT_WORDS, SLOT_WORDS > 0u);
}

fn rule_of(layer_ix: u32, row: u32) -> RowRule {
    let heads = params.state.num_kv_heads;
    return rules[params.first_rule + layer_ix * heads + divided(row, heads).rest];
}

fn select_row_of(local_row: u32) -> SelectRow {
    let layer_row = divided(params.first_row + local_row, params.state.rows_per_layer);
    var s: SelectRow;
    s.rule = rule_of(layer_row.quotient, layer_row.rest);
    s.row = load_row(params.state, params.layer + layer_row.quotient, layer_row.rest);
    return s;
}

fn place_of_row(t: TensorLayout, local_row: u32) -> Place {
    let layer_row = divided(params.first_row + local_row, params.state.rows_per_layer);
    return place_of(t, layer_row.quotient, layer_row.rest, params.state.num_kv_heads);
}

fn write_score(wg: vec3<u32>, r: Row, slot: u32, sum: f32, nan: bool) {
    let norm = select(min(bitcast<u32>(sum) & 0x7fffffffu, INFINITY_BITS), NAN_NORM, nan);
    if norm >= INFINITY_BITS {
        atomicOr(&wg_status, STATUS_NON_FINITE_KEY);
    }
    let key = order_key(r, slot, norm);
    let place = slot ^ spread(slot);
    if SLOT_WORDS == 0u {
        atomicStore(&bins[place], key);
        return;
    }
    slots[place] = key;
    add_first_digit(key);
    if key == 0u {
        atomicAdd(&wg_count, 1u);
    }
}

// Where eight keys begin, so that invocations side by side find theirs in banks of their own.
fn spread(slot: u32) -> u32 {
    return slot / 32u % 8u;
}

fn scored_key(place: u32) -> u32 {
    if SLOT_WORDS == 0u {
        return atomicLoad(&bins[place]);
    }
    return slots[place];
}

// What write_score has left of eight slots; beyond the row it may be anything.
fn load_scored(eight: u32) -> Keys {
    let first = min(eight * 8u, most_scored() - 8u);
    let s = spread(first);
    return Keys(
        vec4<u32>(
            scored_key(first + s),
            scored_key(first + (s ^ 1u)),
            scored_key(first + (s ^ 2u)),
            scored_key(first + (s ^ 3u)),
        ),
        vec4<u32>(
            scored_key(first + (s ^ 4u)),
            scored_key(first + (s ^ 5u)),
            scored_key(first + (s ^ 6u)),
            scored_key(first + (s ^ 7u)),
        ),
    );
}

fn load_raw(local_row: u32, eight: u32) -> Keys {
    let ix = (local_row * params.order_stride + min(eight * 8u, params.order_stride - 8u)) / 4u;
    return Keys(order_keys[ix], order_keys[ix + 1u]);
}

fn note_first_moved(local_row: u32, rank: u32) {
    wg_moves.first_moved = rank;
}

fn note_num_moved(local_row: u32, count: u32) {
    wg_moves.num_moved = count;
}

// Nobody asks later which slots were kept.
fn note_kept(local_row: u32, s: SelectRow, first_slot: u32, kept: u32) {
}

fn hole_at(local_row: u32, j: u32) -> u32 {
    return staged(j);
}

// Movers were staged behind the kept slots of the front, which are the rest of the budget.
fn mover_at(local_row: u32, len: u32, num_moved: u32, j: u32) -> u32 {
    return staged(num_staged() - 1u - (wg_moves.budget - num_moved + j));
}

fn kept_at(local_row: u32, rank: u32) -> u32 {
    return staged(rank);
}

// Chooses what stays of a row whose keys the invocations hold, and stages its slots; `left_out` parts are a scout's.
fn select_slots(index: u32, local_row: u32, k: HeldKeys, row: SelectRow, left_out: u32) -> SelectRow {
    let s = select_in_row(index, k, row, left_out);
    if index == 0u {
        wg_moves = Moves(s.budget, 0u, s.budget);
    }
    var keys = k.first;
    var before = vec2<u32>(0u);
    for (var t = 0u; t < tiles_held(); t++) {
        let counts = stage_tile(index, local_row, s, keys, t * 8u * WG_SIZE, before.x, before.y).scanned.total;
        before += vec2<u32>(counts & 0xffffu, counts >> 16u);
        keys = k.second;
    }
    return s;
}

fn key_slices() -> u32 {
    return (KEY_CHUNKS + KEY_SLICE - 1u) / KEY_SLICE;
}

fn value_slices() -> u32 {
    return (VALUE_CHUNKS + VALUE_SLICE - 1u) / VALUE_SLICE;
}

// Positional: kept positions go to their ranks, a tile of loads, a barrier, the stores.
fn walk_positions(index: u32, r: Row, budget: u32) {
    for (var first = 0u; first < budget; first += WG_SIZE) {
        let j = min(first + index, budget - 1u);
        let position = position_of(r, staged(j));
        storageBarrier();
        if first + index < budget {
            positions[r.positions_base + j] = position;
        }
    }
}

// Fill: positions of the slots that keep theirs, those of holes too, and then again of the holes those of their movers.
fn fill_positions(local_row: u32, index: u32, r: Row, moves: Moves) {
    for (var slot = r.compacted + index; slot < moves.budget; slot += WG_SIZE) {
        positions[r.positions_base + slot] = position_of(r, slot);
    }
    storageBarrier();
    for (var j = index; j < moves.num_moved; j += WG_SIZE) {
        let mover = mover_at(local_row, r.len, moves.num_moved, j);
        positions[r.positions_base + hole_at(local_row, j)] = position_of(r, mover);
    }
}

// The row's state; `bits` for its layer's status. The row has tokens and is active.
fn finish_row(s: SelectRow, bits: u32) {
    let state_row = s.row.layer * params.state.rows_per_layer + s.row.row;
    state_meta[params.state.lengths_base + state_row] = s.budget;
    state_meta[params.state.compacted_base + state_row] = s.budget;
    state_meta[params.state.scored_base + state_row] = 0u;
    if bits != 0u {
        atomicOr(&status[s.row.layer], bits);
    }
}

// `r` is the row of `s`, known to be the same for the workgroup; `bits` are its score's.
fn finish(local_row: u32, index: u32, r: Row, s: SelectRow, moves: Moves, bits: u32) {
    if !r.active_row || r.len == 0u {
        if s.row.over_capacity {
            atomicOr(&status[s.row.layer], STATUS_LENGTH_OVER_CAPACITY);
        }
        return;
    }
    if IN_ORDER {
        walk_positions(index, r, moves.budget);
    } else {
        fill_positions(local_row, index, r, moves);
    }
    if index == 0u {
        finish_row(s, status_bits(s) | bits);
    }
}

fn compress(grid: vec3<u32>, index: u32) {
    let wg = behind_scouts(grid);
    if index == 0u {
        wg_row = SelectRow();
        if !is_scout(grid) {
            wg_row = select_row_of(wg.y);
            wg_row.row = leave_longer(wg_row.row, most_scored());
        }
        atomicStore(&wg_status, 0u);
    }
    if SLOT_WORDS > 0u {
        start_selection(index);
    }
    let row = workgroupUniformLoad(&wg_row);
    let r = row.row;
    // An inactive sequence is not read.
    let len = select(0u, r.len, r.active_row);
    if SCOUTS_SCORE || !is_scout(grid) {
        let span = select(len, 1u, SCOUTS_SCORE && is_scout(grid));
        score_tokens(wg, index, r, place_of_row(params.keys, wg.y), 0u, span, len);
        // Keys are loaded before any moves, and scores are there.
        storageBarrier();
        workgroupBarrier();
    }
    let raw = load_scored(index);
    if SLOT_WORDS == 0u {
        workgroupBarrier();
        start_selection(index);
        workgroupBarrier();
    }
    let k = mask_keys(raw, len, index);
    let s = select_slots(index, wg.y, HeldKeys(k, k), row, parts_left_out(grid, 1u, NUM_PARTS));
    let moves = workgroupUniformLoad(&wg_moves);
    if is_scout(grid) {
        return;
    }
    if IN_ORDER {
        for (var slice = 0u; slice < key_slices(); slice++) {
            walk_keys(wg.y, slice, index, moves.budget, moves.first_moved);
        }
        for (var slice = 0u; slice < value_slices(); slice++) {
            walk_values(wg.y, slice, index, moves.budget, moves.first_moved);
        }
    } else {
        fill_keys_part(wg.y, 0u, 1u, index, r.len, moves.num_moved);
        fill_values_part(wg.y, 0u, 1u, index, r.len, moves.num_moved);
    }
    finish(wg.y, index, r, s, moves, atomicLoad(&wg_status));
}

// The row as the score has noted it; an inactive one has no tokens.
fn noted_row(local_row: u32) -> SelectRow {
    let layer_row = divided(params.first_row + local_row, params.state.rows_per_layer);
    let note = order_keys[((local_row + 1u) * params.order_stride - NOTE_WORDS) / 4u];
    var s: SelectRow;
    s.rule = rule_of(layer_row.quotient, layer_row.rest);
    s.row.len = min(note.x, params.state.capacity);
    s.row.compacted = note.y;
    s.row.num_seen = note.z;
    s.row.over_capacity = note.w != 0u;
    s.row.active_row = s.row.len > 0u;
    s.row.layer = params.layer + layer_row.quotient;
    s.row.row = layer_row.rest;
    let state_row = s.row.layer * params.state.rows_per_layer + s.row.row;
    s.row.positions_base = params.state.positions_base + state_row * params.state.capacity;
    return s;
}

// Workgroups of a row: those of keys, those of values, and the last, which updates the state; without room for it the last of
// values does.
fn move_part(grid: vec3<u32>, num_workgroups: u32, index: u32) {
    if is_idle_scout(grid, num_workgroups) {
        return;
    }
    let left_out = parts_left_out(grid, num_workgroups, NUM_PARTS);
    let wg = behind_scouts(grid);
    var raw: HeldKeys;
    if !is_scout(grid) {
        raw.first = load_raw(wg.y, index);
        if PAIR_WORDS > 0u {
            raw.second = load_raw(wg.y, WG_SIZE + index);
        }
    }
    if index == 0u {
        wg_row = SelectRow();
        if !is_scout(grid) {
            wg_row = noted_row(wg.y);
            wg_row.row = leave_longer(wg_row.row, num_staged());
        }
    }
    start_selection(index);
    let row = workgroupUniformLoad(&wg_row);
    let len = select(0u, row.row.len, row.row.active_row);
    var k = HeldKeys(mask_keys(raw.first, len, index), Keys());
    if PAIR_WORDS > 0u {
        k.second = mask_keys(raw.second, len, WG_SIZE + index);
    }
    let s = select_slots(index, wg.y, k, row, left_out);
    let moves = workgroupUniformLoad(&wg_moves);
    if is_scout(grid) {
        return;
    }
    let parts = num_workgroups / 2u;
    if wg.x == num_workgroups - 1u {
        finish(wg.y, index, row.row, s, moves, 0u);
        if wg.x == select(2u * parts, key_slices() + value_slices(), IN_ORDER) {
            return;
        }
    }
    if IN_ORDER && wg.x < key_slices() {
        walk_keys(wg.y, wg.x, index, moves.budget, moves.first_moved);
    } else if IN_ORDER {
        walk_values(wg.y, wg.x - key_slices(), index, moves.budget, moves.first_moved);
    } else if wg.x < parts {
        fill_keys_part(wg.y, wg.x, parts, index, row.row.len, moves.num_moved);
    } else {
        fill_values_part(wg.y, wg.x - parts, parts, index, row.row.len, moves.num_moved);
    }
}
