// What a reduction over the lanes of four tokens gives.

struct Reduced {
    sums: vec4<f32>, // sum of each of the invocation's four tokens
    nan: u32,        // bit i: token i has a NaN
}

const NO_TOKEN: u32 = 4u;

// What the lanes of four tokens give, a lane its part.
struct Folded {
    sums: vec2<f32>, // of the token `first` and, of two lanes, of the second after it
    nan: u32,        // as of Reduced
    first: u32,      // of four tokens; from NO_TOKEN on the lane has none
}

// Of a vector kept in registers: indexing by a variable would put it into local memory.
fn component(v: vec4<f32>, i: u32) -> f32 {
    return select(select(v.x, v.y, i == 1u), select(v.z, v.w, i == 3u), i >= 2u);
}
