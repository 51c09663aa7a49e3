//! Faults by hand, and faults that are excused.

/// (file below `shaders`, what occurs once in it, replacement).
pub const BY_HAND: &[(&str, &str, &str)] = &[
    ("append.wgsl", "state_meta[s.lengths_base + id.x] +=", "state_meta[s.lengths_base + id.x] ="),
    ("append.wgsl", "let sequence = row / s.num_kv_heads", "let sequence = id.x / s.num_kv_heads"),
    ("bitonic.wgsl", "var key = PAD_KEY;\n        if i < len", "var key = 0u;\n        if i < len"),
    ("bitonic.wgsl", "wg_protected = i + 1u;", "wg_protected = i;"),
    ("bitonic.wgsl", "wg_below = i + 1u;", "wg_below = i;"),
    (
        "compact.wgsl",
        "storageBarrier();\n        workgroupBarrier();\n        if valid && r0 < budget {\n            store_key_chunk(",
        "if valid && r0 < budget {\n            store_key_chunk(",
    ),
    (
        "compact.wgsl",
        "storageBarrier();\n        workgroupBarrier();\n        if valid && r0 < budget {\n            store_value_chunk(",
        "if valid && r0 < budget {\n            store_value_chunk(",
    ),
    ("shared/score_tile.wgsl", "nan_bits(c1) != 0u", "nan_bits(c0) != 0u"),
    ("key_norm.wgsl", "var key = bits + 1u;", "var key = bits;"),
    ("key_norm.wgsl", "key = INFINITY_BITS - bits + 1u;", "key = INFINITY_BITS - bits;"),
    ("key_norm.wgsl", "mix(h ^ params.seed_high)", "mix(h ^ params.seed_low)"),
    ("key_norm.wgsl", "(params.layer * 0x85ebca6bu)", "(params.layer * 0x85ebca6du)"),
    ("shared/score_tile.wgsl", "min(slot + 3u, last)", "min(slot + 2u, last)"),
    ("shared/element_bf16.wgsl", "0x20000000u", "0x20800000u"),
    ("shared/element_bf16.wgsl", "0x007f007fu", "0x007e007fu"),
    ("shared/element_f16.wgsl", "0x03ff03ffu", "0x03fe03ffu"),
    ("shared/keys_pair_word.wgsl", "front[w + 3u] = chunk.w", "front[w + 3u] = chunk.z"),
    ("shared/keys_pair_vec4.wgsl", "return keys[base + chunk_ix];", "return keys[base + chunk_ix + 1u];"),
    (
        "compact_segments.wgsl",
        "storageBarrier();\n        workgroupBarrier();\n        if valid && r0 < moves.end {",
        "if valid && r0 < moves.end {",
    ),
    ("shared/keys_word.wgsl", "keys[w + 3u] = chunk.w", "keys[w + 3u] = chunk.z"),
    ("shared/values_word.wgsl", "values[w + 3u] = chunk.w", "values[w + 3u] = chunk.z"),
    ("shared/keys_vec4.wgsl", "return keys[base + chunk_ix];", "return keys[base + chunk_ix + 1u];"),
    ("shared/values_vec4.wgsl", "return values[base + chunk_ix];", "return values[base + chunk_ix + 1u];"),
    ("shared/state_rows.wgsl", "return r.num_seen - (r.len - slot);", "return slot;"),
    ("shared/top_k_rows.wgsl", "(middle >> 16u) + (middle2 >> 16u)", "(middle >> 16u)"),
    ("shared/top_k_rows.wgsl", "max(num_protected, 1u)));", "num_protected));"),
    ("state.wgsl", "info.num_seen - (info.len - mover)", "info.num_seen - (info.len - hole)"),
];

/// (file below `shaders`, the line with the fault, which of the file's lines of that kind from 0, why it is not caught).
pub const EXCUSED: &[(&str, &str, usize, &str)] = &[
    (
        "bitonic.wgsl",
        "for (var base = 0u; base <= len; base += 8u * WG_SIZE) {",
        0,
        "equivalent: a sorted row has one step, and a step more emits nothing",
    ),
    ("bitonic.wgsl", ";", 4, "equivalent here: the 1024 invocations take a sorted row in one step"),
    ("bitonic.wgsl", ";", 7, "equivalent: the first exchange is between values that one invocation has loaded itself"),
    ("compact.wgsl", "if wg.z != 0u {", 0, "equivalent: the two planes of the grid change places"),
    ("compact.wgsl", "if wg.z != 0u {", 1, "as the one before"),
    ("compact.wgsl", ";", 0, "naga makes a control barrier of the storageBarrier before it; BY_HAND drops both"),
    ("compact.wgsl", ";", 1, "as the one before"),
    ("compact_segments.wgsl", ";", 0, "as in compact.wgsl"),
    (
        "radix.wgsl",
        "if wg.x != 0u && index == 0u {",
        0,
        "equivalent: long rows have several tiles, and each would write the same",
    ),
    ("radix.wgsl", "if wg.x != 0u && index == 0u {", 1, "as the one before"),
    ("radix.wgsl", "if wg.x != 0u && params.from_sorted == 0u {", 0, "equivalent: each tile would clear the same"),
    (
        "shared/reduce_workgroup.wgsl",
        ";",
        0,
        "lavapipe runs the invocations that fold before the others of their token",
    ),
    ("shared/scan.wgsl", ";", 0, "lavapipe runs lower invocations first, and only their values are read"),
    (
        "shared/scan.wgsl",
        "for (var i = 0u; i <= SCAN_GROUP; i++) {",
        0,
        "equivalent: an invocation's own value and those after it count zero",
    ),
];
