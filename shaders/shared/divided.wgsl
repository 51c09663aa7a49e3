// Division by the number of rows of a layer or of a sequence.

struct Divided {
    quotient: u32,
    rest: u32,
}

// Most calls have one layer or one sequence. A division is dozens of instructions, which a dispatch fetches as they come.
fn divided(a: u32, b: u32) -> Divided {
    if a < b {
        return Divided(0u, a);
    }
    return Divided(a / b, a % b);
}
