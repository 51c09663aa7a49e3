// The recent window of a row: `recent` tokens, but no more than a share of the row's length.

const NO_SHARE: u32 = 0xffffffffu;

// The same integers as Policy::recent_of on the host: the share as 40-bit fixed point times the length, rounded down.
fn recent_of(recent: u32, share_low: u32, share_high: u32, len: u32) -> u32 {
    if share_high == NO_SHARE {
        return recent;
    }
    return min(recent, (multiply_wide(len, share_low).x + len * share_high) >> 8u);
}
