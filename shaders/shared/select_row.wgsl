// A row as the selectors see it, and what it keeps.

const PAD_KEY: u32 = 0xffffffffu;

struct SelectRow {
    row: Row,
    rule: RowRule,
    budget: u32,
    num_protected: u32,
    num_within: u32,
    pooled_budget: u32,
    threshold: u32, // order key of the last kept
    num_ties: u32,  // keys equal to it that are kept
}

// A row of more tokens than `most`, which is longer than was said when this was recorded, counts as inactive: it stays as it
// is. That it is over the capacity is reported all the same.
fn leave_longer(r: Row, most: u32) -> Row {
    var row = r;
    row.active_row = r.active_row && r.len <= most;
    return row;
}

// What a row keeps of its keys: the pool's word, or that of its rule. An inactive row keeps everything.
fn row_budget(s: SelectRow) -> u32 {
    let pooled = s.pooled_budget & ~POOL_RAISED;
    let asked = select(asked_budget(s.rule, s.row.len, s.num_within), pooled, s.rule.pooled == 1u);
    let budget = min(s.row.len, max(asked, max(s.num_protected, 1u)));
    return select(s.row.len, budget, s.row.active_row);
}

// What a compression of the row adds to its layer's status.
fn status_bits(s: SelectRow) -> u32 {
    var bits = 0u;
    if s.row.over_capacity {
        bits |= STATUS_LENGTH_OVER_CAPACITY;
    }
    let raised = asked_budget(s.rule, s.row.len, s.num_within) < min(s.row.len, max(s.num_protected, 1u));
    if select(raised, (s.pooled_budget & POOL_RAISED) != 0u, s.rule.pooled == 1u) && s.row.active_row {
        bits |= STATUS_BUDGET_RAISED;
    }
    return bits;
}
