// Division as in shared/divided.wgsl, without its branch. A quotient that indexes an array of buffers must be there in
// every invocation of a subgroup: SwiftShader takes the index from the first, even where that one is not active.

struct Divided {
    quotient: u32,
    rest: u32,
}

fn divided(a: u32, b: u32) -> Divided {
    return Divided(a / b, a % b);
}
