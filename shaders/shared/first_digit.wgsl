// The first digit of an order key. Within a window keys have bins of 2^shift keys each, so placed that the norms of language
// models spread over hundreds of them; before and after it bins are 2^WIDE_BITS times as wide, so that norms which are far
// from it are told apart as well. What is beyond all of them falls into the last bin.

const NUM_BINS: u32 = 2048u;
const WIDE_BITS: u32 = 7u;
const PROTECTED_COUNT_IX: u32 = 2048u; // words from a row's first bin
const TAKEN_COUNT_IX: u32 = 2049u; // tiles that workgroups of the score have taken
const WITHIN_COUNT_IX: u32 = 2050u;

// What a window of `len` wide bins adds to the number of bins.
fn bins_of_window(len: u32) -> u32 {
    return (len << WIDE_BITS) - len;
}

// `window`: its first wide bin | its wide bins << 16.
fn first_digit(key: u32, shift: u32, window: u32) -> u32 {
    let wide = i32(key >> (shift + WIDE_BITS));
    let narrow = i32(key >> shift) - i32(bins_of_window(window & 0xffffu));
    // Before the window the first rises slower than the second, which passes it there, and after it again.
    let bin = min(max(wide, narrow), wide + i32(bins_of_window(window >> 16u)));
    return min(u32(bin), NUM_BINS - 1u);
}
