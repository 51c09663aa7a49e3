//! row_apart: as row.wgsl, but writes nothing that another layer's rows write, so that the dispatches of many layers overlap.
//! Source: row.wgsl. Reference: src/reference/key_norm.rs, src/reference/top_k.rs and src/reference/compact.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 keys read_write vec4<u32> chunks of f32|f16|bf16, addressed by shared/address_strided.wgsl
//!   2 values read_write vec4<u32> chunks, likewise
//!   3 state_meta read u32, by StateLayout
//!   4 positions read u32 [row, capacity] original position
//!   5 order_keys read_write u32 [row, order_stride], of this layer alone
//!   6 lists read_write u32 [row, lists_stride]: slots, then staged positions (Positional) or bits of kept slots (Fill);
//!     after all rows their row infos and status bits; of this layer alone
//!   8 rules read RowRule [compressed layer, head]
//! Entry points: compress_row · dispatch (1, num_rows, 1) · none | subgroups: rows up to 8 * WG_SIZE tokens
//! Overrides: WG_SIZE = 256; LANES, KEY_LANES, VALUE_LANES = 16, a power of two in 1..=32, of the norm in 2..=32; CHUNKS,
//!   KEY_CHUNKS, VALUE_CHUNKS = 16, in 1..=128; SLICE_CHUNKS = 16, a power of two; SCAN_GROUP = 16
//! Workgroup bytes: 8192 + 4 * WG_SIZE + 4 * WG_SIZE / SCAN_GROUP + 192, + 20 * WG_SIZE in the workgroup variant
//! Algorithm: wgpu puts a barrier between two dispatches that may write one buffer. Here each layer has scratch of its own,
//!   and what goes into the state waits there for finish_layers.wgsl, as the selectors would leave it.
//! Invariants: as those of row.wgsl.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> state_meta: array<u32>;
@group(0) @binding(4) var<storage, read> positions: array<u32>;
@group(0) @binding(5) var<storage, read_write> order_keys: array<u32>;
@group(0) @binding(6) var<storage, read_write> lists: array<u32>;
@group(0) @binding(8) var<storage, read> rules: array<RowRule>;

fn emit_positions(index: u32, s: SelectRow) {
}

fn finish_positions(local_row: u32, index: u32, r: Row, moves: Moves) {
}

// What finish_layers.wgsl reads.
fn finish_row(local_row: u32, s: SelectRow, moves: Moves, bits: u32) {
    let info = params.infos_base + local_row * INFO_WORDS;
    lists[info + LEN_IX] = s.row.len;
    lists[info + BUDGET_IX] = s.budget;
    lists[info + NUM_MOVED_IX] = moves.num_moved;
    lists[info + COMPACTED_IX] = s.row.compacted;
    lists[info + NUM_SEEN_IX] = s.row.num_seen;
    lists[info + ACTIVE_ROW_IX] = select(0u, 1u, s.row.active_row);
    lists[info + STATUS_IX] = bits;
    if local_row == 0u {
        lists[params.told_status_ix] = 0u; // each row tells its own
    }
}
