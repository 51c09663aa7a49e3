// Positional: a workgroup walks up the kept slots of a row in one column slice. The module gives the
// slots, kept_at, and PACED.

fn walk_keys(row: u32, slice: u32, index: u32, budget: u32, first: u32) {
    let c = slice * KEY_SLICE + index % KEY_SLICE;
    let pieces = WG_SIZE / KEY_SLICE;
    let place = place_of_row(params.keys, row);
    let valid = c < KEY_CHUNKS && index < pieces * KEY_SLICE;
    let last = max(budget, 1u) - 1u;
    for (var base = first; base < budget; base += 8u * pieces) {
        let r0 = base + index / KEY_SLICE;
        let r1 = r0 + 1u * pieces;
        let r2 = r0 + 2u * pieces;
        let r3 = r0 + 3u * pieces;
        let r4 = r0 + 4u * pieces;
        let r5 = r0 + 5u * pieces;
        let r6 = r0 + 6u * pieces;
        let r7 = r0 + 7u * pieces;
        var c0 = vec4<u32>(0u);
        var c1 = vec4<u32>(0u);
        var c2 = vec4<u32>(0u);
        var c3 = vec4<u32>(0u);
        var c4 = vec4<u32>(0u);
        var c5 = vec4<u32>(0u);
        var c6 = vec4<u32>(0u);
        var c7 = vec4<u32>(0u);
        if valid {
            c0 = load_key_chunk(token_base(params.keys, place, kept_at(row, min(r0, last))), c);
            c1 = load_key_chunk(token_base(params.keys, place, kept_at(row, min(r1, last))), c);
            c2 = load_key_chunk(token_base(params.keys, place, kept_at(row, min(r2, last))), c);
            c3 = load_key_chunk(token_base(params.keys, place, kept_at(row, min(r3, last))), c);
            c4 = load_key_chunk(token_base(params.keys, place, kept_at(row, min(r4, last))), c);
            c5 = load_key_chunk(token_base(params.keys, place, kept_at(row, min(r5, last))), c);
            c6 = load_key_chunk(token_base(params.keys, place, kept_at(row, min(r6, last))), c);
            c7 = load_key_chunk(token_base(params.keys, place, kept_at(row, min(r7, last))), c);
        }
        // Every load of this tile comes before any of its stores, which may land on its own sources.
        storageBarrier();
        if PACED {
            workgroupBarrier();
        }
        if valid && r0 < budget {
            store_key_chunk(token_base(params.keys, place, r0), c, c0);
        }
        if valid && r1 < budget {
            store_key_chunk(token_base(params.keys, place, r1), c, c1);
        }
        if valid && r2 < budget {
            store_key_chunk(token_base(params.keys, place, r2), c, c2);
        }
        if valid && r3 < budget {
            store_key_chunk(token_base(params.keys, place, r3), c, c3);
        }
        if valid && r4 < budget {
            store_key_chunk(token_base(params.keys, place, r4), c, c4);
        }
        if valid && r5 < budget {
            store_key_chunk(token_base(params.keys, place, r5), c, c5);
        }
        if valid && r6 < budget {
            store_key_chunk(token_base(params.keys, place, r6), c, c6);
        }
        if valid && r7 < budget {
            store_key_chunk(token_base(params.keys, place, r7), c, c7);
        }
    }
}

fn walk_values(row: u32, slice: u32, index: u32, budget: u32, first: u32) {
    let c = slice * VALUE_SLICE + index % VALUE_SLICE;
    let pieces = WG_SIZE / VALUE_SLICE;
    let place = place_of_row(params.values, row);
    let valid = c < VALUE_CHUNKS && index < pieces * VALUE_SLICE;
    let last = max(budget, 1u) - 1u;
    for (var base = first; base < budget; base += 8u * pieces) {
        let r0 = base + index / VALUE_SLICE;
        let r1 = r0 + 1u * pieces;
        let r2 = r0 + 2u * pieces;
        let r3 = r0 + 3u * pieces;
        let r4 = r0 + 4u * pieces;
        let r5 = r0 + 5u * pieces;
        let r6 = r0 + 6u * pieces;
        let r7 = r0 + 7u * pieces;
        var c0 = vec4<u32>(0u);
        var c1 = vec4<u32>(0u);
        var c2 = vec4<u32>(0u);
        var c3 = vec4<u32>(0u);
        var c4 = vec4<u32>(0u);
        var c5 = vec4<u32>(0u);
        var c6 = vec4<u32>(0u);
        var c7 = vec4<u32>(0u);
        if valid {
            c0 = load_value_chunk(token_base(params.values, place, kept_at(row, min(r0, last))), c);
            c1 = load_value_chunk(token_base(params.values, place, kept_at(row, min(r1, last))), c);
            c2 = load_value_chunk(token_base(params.values, place, kept_at(row, min(r2, last))), c);
            c3 = load_value_chunk(token_base(params.values, place, kept_at(row, min(r3, last))), c);
            c4 = load_value_chunk(token_base(params.values, place, kept_at(row, min(r4, last))), c);
            c5 = load_value_chunk(token_base(params.values, place, kept_at(row, min(r5, last))), c);
            c6 = load_value_chunk(token_base(params.values, place, kept_at(row, min(r6, last))), c);
            c7 = load_value_chunk(token_base(params.values, place, kept_at(row, min(r7, last))), c);
        }
        // Every load of this tile comes before any of its stores, which may land on its own sources.
        storageBarrier();
        if PACED {
            workgroupBarrier();
        }
        if valid && r0 < budget {
            store_value_chunk(token_base(params.values, place, r0), c, c0);
        }
        if valid && r1 < budget {
            store_value_chunk(token_base(params.values, place, r1), c, c1);
        }
        if valid && r2 < budget {
            store_value_chunk(token_base(params.values, place, r2), c, c2);
        }
        if valid && r3 < budget {
            store_value_chunk(token_base(params.values, place, r3), c, c3);
        }
        if valid && r4 < budget {
            store_value_chunk(token_base(params.values, place, r4), c, c4);
        }
        if valid && r5 < budget {
            store_value_chunk(token_base(params.values, place, r5), c, c5);
        }
        if valid && r6 < budget {
            store_value_chunk(token_base(params.values, place, r6), c, c6);
        }
        if valid && r7 < budget {
            store_value_chunk(token_base(params.values, place, r7), c, c7);
        }
    }
}
