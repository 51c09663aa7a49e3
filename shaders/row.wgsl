//! row: a whole compression in one dispatch, a workgroup to a row: norms, threshold, moves and state.
//! Source: key_norm.wgsl, radix.wgsl, compact.wgsl and state.wgsl, whose parts these are. Reference:
//!   src/reference/key_norm.rs, src/reference/top_k.rs and src/reference/compact.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 keys read_write vec4<u32> chunks of f32|f16|bf16, addressed by shared/address_strided.wgsl
//!   2 values read_write vec4<u32> chunks, likewise
//!   3 state_meta read_write u32, by StateLayout
//!   4 positions read_write u32 [row, capacity] original position
//!   5 order_keys read_write u32 [row, order_stride]
//!   6 lists read_write u32 [row, lists_stride]: slots, then staged positions (Positional)
//!   7 status read_write atomic u32 [layer] sticky bits
//!   8 rules read RowRule [compressed layer, head]
//! Entry points: compress_row · dispatch (1, num_rows, 1) · none | subgroups: rows up to 8 * WG_SIZE tokens
//! Overrides: WG_SIZE = 256; LANES, KEY_LANES, VALUE_LANES = 16, a power of two in 1..=32, of the norm in 2..=32; CHUNKS,
//!   KEY_CHUNKS, VALUE_CHUNKS = 16, in 1..=128; SLICE_CHUNKS = 16, a power of two; SCAN_GROUP = 16
//! Workgroup bytes: 8192 + 4 * WG_SIZE + 4 * WG_SIZE / SCAN_GROUP + 192, + 20 * WG_SIZE in the workgroup variant
//! Algorithm: nothing waits for another row, so where there are rows enough to fill the card, or so few tokens that
//!   launching is what takes time, one dispatch does what four did. Keys go through memory between its steps, in what
//!   the caches hold.
//! Invariants: nobody else touches the row, so barriers of the workgroup order all that it reads and writes: its order
//!   keys and lists; keys and values, read before any is moved; positions, of which those that a list names are written
//!   last; its length, which one invocation loads before all others begin and writes at the end. Of what a layer's rows
//!   share, tokens seen and activity are only read.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> state_meta: array<u32>;
@group(0) @binding(4) var<storage, read_write> positions: array<u32>;
@group(0) @binding(5) var<storage, read_write> order_keys: array<u32>;
@group(0) @binding(6) var<storage, read_write> lists: array<u32>;
@group(0) @binding(7) var<storage, read_write> status: array<atomic<u32>>;
@group(0) @binding(8) var<storage, read> rules: array<RowRule>;

// Positions go to their slots at once, so that nobody asks which slots were kept.
fn note_kept(local_row: u32, s: SelectRow, first_slot: u32, kept: u32) {
}

// Fill: positions of the slots that keep theirs. Those of holes are written too, and again when they are filled.
fn emit_positions(index: u32, s: SelectRow) {
    if s.row.active_row && params.order != POSITIONAL {
        for (var slot = s.row.compacted + index; slot < s.budget; slot += WG_SIZE) {
            positions[s.row.positions_base + slot] = position_of(s.row, slot);
        }
    }
}

fn finish_positions(local_row: u32, index: u32, r: Row, moves: Moves) {
    let list_base = local_row * params.lists_stride;
    if params.order == POSITIONAL && r.active_row {
        for (var j = index; j < moves.budget; j += WG_SIZE) {
            positions[r.positions_base + j] = lists[list_base + params.staged_offset + j];
        }
    }
    for (var j = index; j < moves.num_moved; j += WG_SIZE) {
        let hole = lists[list_base + j];
        let mover = lists[list_base + r.len - moves.num_moved + j];
        positions[r.positions_base + hole] = position_of(r, mover);
    }
}

fn finish_row(local_row: u32, s: SelectRow, moves: Moves, bits: u32) {
    if s.row.active_row && s.row.len > 0u {
        let state_row = params.layer * params.state.rows_per_layer + params.first_row + local_row;
        state_meta[params.state.lengths_base + state_row] = s.budget;
        state_meta[params.state.compacted_base + state_row] = s.budget;
        state_meta[params.state.scored_base + state_row] = 0u;
        if bits != 0u {
            atomicOr(&status[params.layer], bits);
        }
    }
}
