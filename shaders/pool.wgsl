//! pool: the budgets of the heads of a layer, where they share one.
//! Source: budgets that differ by head as in KV-Compress, https://arxiv.org/abs/2410.00161, and AdaKV,
//!   https://arxiv.org/abs/2407.11550; making key norms comparable by the bits of their head's median is our own.
//!   Reference: src/reference/budget.rs, exact.
//! Bindings:
//!   0 params uniform Params (shared/top_k_params.wgsl)
//!   1 order_keys read u32 [row, order_stride]
//!   2 state_meta read u32, by StateLayout
//!   3 row_infos read_write RowInfo [row]
//!   4 pool_counts read_write atomic u32 [row, 320] counts of digits, then of protected tokens
//!   5 rules read RowRule [compressed layer, head]
//!   6 pool_rows read_write PoolRow [row, 8], of which the first counts: windows begin at multiples of 256 bytes
//! Entry points: count · dispatch (ceil(max_len / (8 * WG_SIZE)), num_rows, 1) · none
//!   pick · dispatch (num_rows / num_kv_heads, 1, 1) · none
//! Overrides: WG_SIZE = 256, a multiple of 64
//! Workgroup bytes: 128 + 4 * WG_SIZE
//! Algorithm: eight pairs of dispatches. Passes 0 to 3 find the median of each row's unprotected keys, eight bits at a
//!   time. Passes 4 to 7 find the lowest distance from the median up to which the heads together, each with its own
//!   least number at least, keep as many as the pool has; `pick` then hands the last ones to the lower heads first.
//! Invariants: counts are integers and commute. `pick` leaves pool_counts zero. A pool lies within one window.

struct PoolRow {
    prefix: u32,        // bits found so far: of the median, then of the pool's distance
    rank: u32,          // of the median, among the keys of the prefix
    num_protected: u32,
    median: u32,
    num_below: u32,     // tokens below the prefix, protected ones included
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> order_keys: array<u32>;
@group(0) @binding(2) var<storage, read> state_meta: array<u32>;
@group(0) @binding(3) var<storage, read_write> row_infos: array<RowInfo>;
@group(0) @binding(4) var<storage, read_write> pool_counts: array<atomic<u32>>;
@group(0) @binding(5) var<storage, read> rules: array<RowRule>;
@group(0) @binding(6) var<storage, read_write> pool_rows: array<PoolRow>;

override WG_SIZE: u32 = 256u;
const NUM_DIGITS: u32 = 256u;
const COUNTS_STRIDE: u32 = 320u;
const PROTECTED_IX: u32 = 256u;
const ROW_SPACING: u32 = 8u;
const MEDIAN_PASSES: u32 = 4u;
const MAX_SCORE: u32 = 0x7f800001u;
const NAN_ORDER_KEY: u32 = 0xfffffffeu;

var<workgroup> digits: array<atomic<u32>, NUM_DIGITS>;
var<workgroup> wg_protected: atomic<u32>;
var<workgroup> wg_row: PoolRow;
var<workgroup> wg_len: u32;

// Tokens of the row; none of an inactive sequence.
fn row_len(local_row: u32) -> u32 {
    let s = params.state;
    let global_row = params.first_row + local_row;
    let row = global_row % s.rows_per_layer;
    let layer = params.first_layer + global_row / s.rows_per_layer;
    let state_row = layer * s.rows_per_layer + row;
    let is_active = state_meta[s.inactive_base + layer * s.inactive_stride + row / s.num_kv_heads] == 0u;
    return select(0u, min(state_meta[s.lengths_base + state_row], s.capacity), is_active);
}

// Distance of an order key from its row's median, in bits of f32, at most 2^32 - 2 and 0 for protected tokens alone.
fn distance_of(key: u32, median: u32) -> u32 {
    if key == 0u || key >= NAN_ORDER_KEY {
        return min(key, NAN_ORDER_KEY);
    }
    return min(key, MAX_SCORE) + (0x80000000u - min(median, MAX_SCORE));
}

fn shift_of(pass_ix: u32) -> u32 {
    return (3u - pass_ix % 4u) * 8u;
}

// Mask of the bits that earlier passes have found.
fn known_bits(pass_ix: u32) -> u32 {
    let shift = shift_of(pass_ix);
    return select(0u, 0xffffffffu << (shift + 8u), shift < 24u);
}

@compute @workgroup_size(WG_SIZE)
fn count(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    if index == 0u {
        wg_row = pool_rows[wg.y * ROW_SPACING];
        wg_len = row_len(wg.y);
        atomicStore(&wg_protected, 0u);
    }
    atomicStore(&digits[index], 0u);
    workgroupBarrier();
    let pass_ix = params.pool_pass;
    let prefix = select(wg_row.prefix, 0u, pass_ix % 4u == 0u);
    for (var i = 0u; i < 8u; i++) {
        let slot = (wg.x * 8u + i) * WG_SIZE + index;
        if slot < wg_len {
            let key = order_keys[wg.y * params.order_stride + slot];
            let median_pass = pass_ix < MEDIAN_PASSES;
            let value = select(distance_of(key, wg_row.median), key, median_pass);
            if median_pass && key == 0u {
                atomicAdd(&wg_protected, 1u);
            } else if ((value ^ prefix) & known_bits(pass_ix)) == 0u {
                atomicAdd(&digits[(value >> shift_of(pass_ix)) & (NUM_DIGITS - 1u)], 1u);
            }
        }
    }
    workgroupBarrier();
    let counted = atomicLoad(&digits[index]);
    if counted > 0u {
        atomicAdd(&pool_counts[wg.y * COUNTS_STRIDE + index], counted);
    }
    if index == 0u && pass_ix == 0u && atomicLoad(&wg_protected) > 0u {
        atomicAdd(&pool_counts[wg.y * COUNTS_STRIDE + PROTECTED_IX], atomicLoad(&wg_protected));
    }
}

@compute @workgroup_size(WG_SIZE)
fn pick(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let first = wg.x * params.state.num_kv_heads;
    if params.pool_pass < MEDIAN_PASSES {
        pick_medians(first, index);
    } else {
        pick_distance(first, index);
    }
}

// Takes the counts of a row and leaves them zero.
fn take_count(local_row: u32, index: u32) -> u32 {
    let ix = local_row * COUNTS_STRIDE + index;
    let counted = atomicLoad(&pool_counts[ix]);
    atomicStore(&pool_counts[ix], 0u);
    return counted;
}

fn pick_medians(first: u32, index: u32) {
    for (var head = 0u; head < params.state.num_kv_heads; head++) {
        let local_row = first + head;
        if index == 0u {
            wg_row = pool_rows[local_row * ROW_SPACING];
            if params.pool_pass == 0u {
                let num_protected = take_count(local_row, PROTECTED_IX);
                wg_row = PoolRow(0u, (row_len(local_row) - num_protected) / 2u, num_protected, 0u, 0u, 0u, 0u, 0u);
                // A row without unprotected tokens has no median, and needs none; of others the invocation that finds it writes.
                if row_len(local_row) == num_protected {
                    pool_rows[local_row * ROW_SPACING] = wg_row;
                }
            }
        }
        var pool_row = workgroupUniformLoad(&wg_row);
        let counted = take_count(local_row, index);
        let before = exclusive_scan(index, counted).before;
        if pool_row.rank >= before && pool_row.rank - before < counted {
            pool_row.prefix |= index << shift_of(params.pool_pass);
            pool_row.rank -= before;
            pool_row.median = pool_row.prefix;
            pool_rows[local_row * ROW_SPACING] = pool_row;
        }
    }
}

fn rule_of(first: u32, head: u32) -> RowRule {
    let compressed = (params.first_row + first) / params.state.rows_per_layer;
    return rules[compressed * params.state.num_kv_heads + head];
}

// Tokens that a row keeps whatever the others do.
fn least(first: u32, head: u32, num_protected: u32) -> u32 {
    let len = row_len(first + head);
    let own = max(num_protected, max(params.pool_min_tokens, 1u));
    return select(min(len, own), len, len < rule_of(first, head).min_len);
}

struct Wanted {
    asked: u32, // tokens that the heads' budgets ask for
    least: u32, // tokens that the heads keep in any case
    len: u32,   // tokens of the heads
}

fn wanted(first: u32) -> Wanted {
    var w = Wanted(0u, 0u, 0u);
    for (var head = 0u; head < params.state.num_kv_heads; head++) {
        let len = row_len(first + head);
        w.asked += min(len, asked_budget(rule_of(first, head), len, 0u));
        w.least += least(first, head, pool_rows[(first + head) * ROW_SPACING].num_protected);
        w.len += len;
    }
    return w;
}

// An invocation a digit: the lowest up to which the heads keep the pool's total takes the pool on.
fn pick_distance(first: u32, index: u32) {
    let w = wanted(first);
    let total = min(w.len, max(w.asked, w.least));
    let is_first = params.pool_pass == MEDIAN_PASSES;
    var kept = 0u;
    var kept_before = 0u;
    for (var head = 0u; head < params.state.num_kv_heads; head++) {
        let pool_row = pool_rows[(first + head) * ROW_SPACING];
        let counted = atomicLoad(&pool_counts[(first + head) * COUNTS_STRIDE + index]);
        let below = select(pool_row.num_below, 0u, is_first) + exclusive_scan(index, counted).before;
        let own = least(first, head, pool_row.num_protected);
        kept += max(below + counted, own);
        kept_before += max(below, own);
    }
    let is_it = kept >= total && (kept_before < total || index == 0u);
    for (var head = 0u; head < params.state.num_kv_heads; head++) {
        let counted = take_count(first + head, index);
        let before = exclusive_scan(index, counted).before;
        if is_it {
            let ix = (first + head) * ROW_SPACING;
            pool_rows[ix].prefix = select(pool_rows[ix].prefix, 0u, is_first) | (index << shift_of(params.pool_pass));
            pool_rows[ix].num_below = select(pool_rows[ix].num_below, 0u, is_first) + before;
            pool_rows[ix].rank = counted; // tokens at the distance, in the last pass
        }
    }
    if is_it && params.pool_pass == 2u * MEDIAN_PASSES - 1u {
        hand_out(first, total, w.asked < w.least);
    }
}

// By the one invocation that wrote the rows last.
fn hand_out(first: u32, total: u32, raised: bool) {
    var left = total;
    for (var head = 0u; head < params.state.num_kv_heads; head++) {
        let pool_row = pool_rows[(first + head) * ROW_SPACING];
        left -= max(pool_row.num_below, least(first, head, pool_row.num_protected));
    }
    for (var head = 0u; head < params.state.num_kv_heads; head++) {
        let pool_row = pool_rows[(first + head) * ROW_SPACING];
        let own = least(first, head, pool_row.num_protected);
        let low = max(pool_row.num_below, own);
        let taken = min(left, max(pool_row.num_below + pool_row.rank, own) - low);
        left -= taken;
        row_infos[params.first_info + first + head].pooled_budget = (low + taken) | select(0u, POOL_RAISED, raised);
    }
}
