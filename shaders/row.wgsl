//! row: rows that workgroup memory can select from: a compression in one dispatch, a workgroup to a row, or what follows the
//!   score in one, several workgroups to a row.
//! Source: key_norm.wgsl, radix.wgsl, compact.wgsl and state.wgsl, whose parts these are. Reference:
//!   src/reference/key_norm.rs, src/reference/top_k.rs and src/reference/compact.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 keys read_write vec4<u32> chunks of f32|f16|bf16|f8, addressed by shared/address_strided.wgsl; of layers in arrays
//!     group 1, binding 0
//!   2 values read_write vec4<u32> chunks, likewise, in arrays binding 1
//!   3 state_meta read_write u32, by StateLayout
//!   4 positions read_write u32 [row, capacity] original position
//!   5 order_keys read_write vec4<u32> [row, order_stride / 4], which move_row reads
//!   7 status read_write atomic u32 [layer] sticky bits
//!   8 rules read RowRule [compressed layer, head]
//! Entry points: compress_row · dispatch (1, SCOUTS + num_rows, 1) · none | subgroups: rows up to SLOT_WORDS tokens, or if
//!   that is 0 up to 8 * WG_SIZE and 4096; longer ones stay as they are
//!   move_row · dispatch (parts or parts + 1, SCOUTS + num_rows, 1) · none | subgroups: rows up to 2 * PAIR_WORDS tokens, or if
//!   that is 0 up to 8 * WG_SIZE, after their score; parts: of Fill any even number, half for keys, half for
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

const NAN_NORM: u32 = 0x7fc00000u;
const MOVES_NORMS: bool = false;

fn norm_at(r: Row, slot: u32) -> u32 {
    return 0u;
}

fn store_norm(r: Row, slot: u32, norm: u32) {
}

// Most tokens of a row that compress_row holds, a word each.
fn most_scored() -> u32 {
    return select(select(8u * WG_SIZE, 4u * WG_SIZE, WG_SIZE > MOST_WHOLE), SLOT_WORDS, SLOT_WORDS > 0u);
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
    move_whole(wg.y, index, r.len, moves);
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
