// The first digit of an order key: a window of NUM_BINS bins of 2^shift keys each, so placed that the norms of language
// models spread over hundreds of bins. Keys before and after the window fall into its first and last bin.

const NUM_BINS: u32 = 2048u;
const PROTECTED_COUNT_IX: u32 = 2048u; // words from a row's first bin
const WITHIN_COUNT_IX: u32 = 2050u;

fn first_digit(key: u32, shift: u32, base: u32) -> u32 {
    return min(max(key >> shift, base) - base, NUM_BINS - 1u);
}
