// A token an invocation, for devices whose lanes run on a CPU, where neither barriers nor coalescing pay. The lanes of the
// definition are added in the same tree, so the bits are the same. The tree is spelled out, since such devices take longer
// for an array that is indexed by a variable than for the sums.

struct Sum {
    squares: f32,
    nan: u32,
}

fn add_chunk(s: Sum, base: u32, c: u32) -> Sum {
    if c >= CHUNKS {
        return s;
    }
    let chunk = load_key_chunk(base, c);
    return Sum(add_squares(chunk, s.squares), s.nan | nan_bits(chunk));
}

fn sum_1(base: u32, lane: u32) -> Sum {
    var s = add_chunk(add_chunk(Sum(0.0, 0u), base, lane), base, lane + LANES);
    // A loop costs such devices its masks even where it finds nothing.
    if CHUNKS > 2u * LANES {
        for (var c = lane + 2u * LANES; c < CHUNKS; c += LANES) {
            s = add_chunk(s, base, c);
        }
    }
    return s;
}

fn added(a: Sum, b: Sum) -> Sum {
    return Sum(a.squares + b.squares, a.nan | b.nan);
}

fn sum_2(base: u32, lane: u32) -> Sum {
    return added(sum_1(base, lane), sum_1(base, lane + LANES / 2u));
}

fn sum_4(base: u32, lane: u32) -> Sum {
    return added(sum_2(base, lane), sum_2(base, lane + LANES / 4u));
}

fn sum_8(base: u32, lane: u32) -> Sum {
    return added(sum_4(base, lane), sum_4(base, lane + LANES / 8u));
}

fn sum_16(base: u32, lane: u32) -> Sum {
    return added(sum_8(base, lane), sum_8(base, lane + LANES / 16u));
}

fn sum_token(base: u32) -> Sum {
    if LANES == 32u {
        return added(sum_16(base, 0u), sum_16(base, 1u));
    }
    if LANES == 16u {
        return sum_16(base, 0u);
    }
    if LANES == 8u {
        return sum_8(base, 0u);
    }
    if LANES == 4u {
        return sum_4(base, 0u);
    }
    return sum_2(base, 0u);
}

// Lanes that run in step.
const STEP: u32 = 8u;

// A word of each cache line of the tokens that a step sums. The sums go through them in strides, which no cache foresees;
// this goes straight through memory, so that the lines arrive together.
fn touch_tokens(place: Place, slot: u32, index: u32, last: u32) -> u32 {
    let lines = max(CHUNKS / LINE_CHUNKS, 1u);
    let first = slot - index % STEP;
    var touched = 0u;
    for (var i = 0u; i < CHUNKS / LINE_CHUNKS; i++) {
        let line = i * STEP + index % STEP;
        let base = token_base(params.keys, place, min(first + line / lines, last));
        touched |= load_key_chunk(base, line % lines * LINE_CHUNKS).x;
    }
    return touched;
}

fn score_tokens(wg: vec3<u32>, index: u32, r: Row, place: Place, first: u32, span: u32, end: u32) {
    for (var slot = first + index; slot < min(end, first + span); slot += WG_SIZE) {
        let touched = touch_tokens(place, slot, index, end - 1u);
        let s = sum_token(token_base(params.keys, place, slot));
        // wg.z is 0, which compilers do not know.
        write_score(wg, r, slot, s.squares, (s.nan | (touched & wg.z)) != 0u);
    }
}
