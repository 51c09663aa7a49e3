// How many tokens a row's rule asks for.

// The budget of the rows of one head of one layer.
struct RowRule {
    budget_mode: u32,       // 0 ratio rounded up, 1 ratio rounded down, 2 tokens, 3 keys up to a limit
    ratio_low: u32,         // keep ratio * 2^40, low word
    ratio_high: u32,        // keep ratio * 2^40, high word
    tokens: u32,            // tokens kept a row
    key_limit: u32,         // highest order key kept in mode 3
    min_len: u32,           // rows of fewer tokens are left whole
    pooled: u32,            // 1: the pool has decided
    pad0: u32,
}

// Of RowInfo.pooled_budget.
const POOL_RAISED: u32 = 0x80000000u;

// The same integers as BudgetRule::asked on the host: ratio as 40-bit fixed point times len, rounded up or down.
fn asked_budget(rule: RowRule, len: u32, num_within: u32) -> u32 {
    if len < rule.min_len {
        return len;
    }
    if rule.budget_mode >= 2u {
        return select(rule.tokens, num_within, rule.budget_mode == 3u);
    }
    let low = multiply_wide(len, rule.ratio_low);
    let high = low.x + len * rule.ratio_high; // below 2^29: len <= 2^20 and ratio <= 2^40
    let floor_value = high >> 8u;
    let has_fraction = (high & 0xffu) != 0u || low.y != 0u;
    return floor_value + select(0u, 1u, rule.budget_mode == 0u && has_fraction);
}
