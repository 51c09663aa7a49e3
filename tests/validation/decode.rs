//! What decode-time calls refuse: budgets, pools, segments, norms and schedules.

use keynorm::{
    Budget, BudgetOverride, Direction, ExternalScore, Plan, Policy, Pool, Schedule, Score, Segment, Trigger,
};

use crate::support::{Draft, assert_error, assert_usable, noop, policy, shape};

fn plan(edit: impl FnOnce(&mut Policy)) -> Result<Plan, keynorm::BuildError> {
    let mut policy = policy();
    edit(&mut policy);
    noop().compressor().plan(&shape(), &policy)
}

fn overridden(layers: std::ops::Range<u32>, heads: std::ops::Range<u32>, budget: Budget) -> Vec<BudgetOverride> {
    vec![BudgetOverride { layers, heads, budget }]
}

#[test]
fn budgets() {
    type Edit = fn(&mut Policy);
    let cases: [(&str, Edit, &str); 9] = [
        ("norm NaN", |p| p.budget = Budget::MaxNorm(f32::NAN), "MaxNorm { got: NaN }"),
        ("norm below 0", |p| p.budget = Budget::MaxNorm(-0.5), "MaxNorm { got: -0.5 }"),
        (
            "norm limit of the highest",
            |p| (p.budget, p.direction) = (Budget::MaxNorm(1.0), Direction::Highest),
            r#"Unsupported { what: "a budget of MaxNorm with a direction other than Lowest" }"#,
        ),
        (
            "norm limit and pool",
            |p| (p.budget, p.pool) = (Budget::MaxNorm(1.0), Some(Pool { min_tokens: 1 })),
            r#"Unsupported { what: "a budget of MaxNorm with a pool" }"#,
        ),
        (
            "override's layer",
            |p| p.budgets = overridden(0..2, 0..1, Budget::KeepTokens(3)),
            r#"TooLarge { argument: "budgets.layers", got: 2, limit: 1 }"#,
        ),
        (
            "override's head",
            |p| p.budgets = overridden(0..1, 1..4, Budget::KeepTokens(3)),
            r#"TooLarge { argument: "budgets.heads", got: 4, limit: 3 }"#,
        ),
        ("override's ratio", |p| p.budgets = overridden(0..1, 0..1, Budget::keep_ratio(1.5)), "KeepRatio { got: 1.5 }"),
        (
            "override below what is protected",
            |p| (p.sinks, p.budgets) = (5, overridden(0..1, 0..1, Budget::KeepTokens(4))),
            "KeepTokensBelowProtected { keep_tokens: 4, protected: 5 }",
        ),
        (
            "override of a norm limit and pool",
            |p| {
                p.pool = Some(Pool { min_tokens: 1 });
                p.budgets = overridden(0..1, 0..1, Budget::MaxNorm(1.0));
            },
            r#"Unsupported { what: "a budget of MaxNorm with a pool" }"#,
        ),
    ];
    for (name, edit, expected) in cases {
        assert_error(name, plan(edit), &format!("Argument({expected})"));
    }
    plan(|p| p.budget = Budget::MaxNorm(0.0)).expect("a limit of 0 is sound");
    plan(|p| p.budgets = overridden(1..1, 3..3, Budget::KeepTokens(1))).expect("an override of nothing is sound");
}

#[test]
fn segments() {
    let noop = noop();
    let plan = noop.compressor().plan(&shape(), &policy()).expect("a plan");
    let state = plan.create_state().expect("a state");
    let set = |sequence, segments: &[Segment]| state.set_segments(&noop.queue, sequence, segments);
    let range = |start, end| Segment { positions: start..end, min_tokens: 1 };
    assert_error("sequence", set(2, &[]), r#"IndexOutOfRange { argument: "sequence", got: 2, limit: 2 }"#);
    let nine: Vec<_> = (0..9).map(|i| range(i, i + 1)).collect();
    assert_error("nine", set(0, &nine), r#"TooLarge { argument: "segments.len()", got: 9, limit: 8 }"#);
    assert_error(
        "backwards",
        set(0, &[range(0, 3), range(9, 8)]),
        r#"Segment { argument: "segments", index: 1, start: 9, end: 8 }"#,
    );
    assert_error(
        "overlapping",
        set(1, &[range(4, 9), range(0, 2), range(0, 5)]),
        r#"Segment { argument: "segments", index: 2, start: 0, end: 5 }"#,
    );
    let sound = [range(4, 9), range(0, 4), range(9, u32::MAX), range(7, 7)];
    set(1, &sound).expect("segments that touch");
}

#[test]
fn norms() {
    let noop = noop();
    let compressor = noop.compressor();
    let uncached = compressor.plan(&shape(), &policy()).expect("a plan");
    let cached = compressor.plan(&shape(), &Policy { cached_norms: true, ..policy() }).expect("a plan");
    assert!(uncached.create_state().expect("a state").key_norms().is_none(), "norms that nothing fills");
    let mut draft = Draft::new(&noop, &uncached);
    draft.workspace = cached.create_workspace().expect("a workspace");
    assert_error("state", draft.bind(&cached), r#"Argument(WrongPlan { argument: "state" })"#);
    draft.state = cached.create_state().expect("a state");
    let bound = draft.bind(&cached).expect("a binding");
    let mut encoder = noop.device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    assert_error(
        "max_new",
        bound.record_norms(&mut pass, 11),
        r#"TooLarge { argument: "max_new", got: 11, limit: 10 }"#,
    );
    bound.record_norms(&mut pass, 0).expect("nothing new");
    let bound = Draft::new(&noop, &uncached).bind(&uncached).expect("a binding");
    assert_error(
        "uncached",
        bound.record_norms(&mut pass, 1),
        r#"Unsupported { what: "record_norms without Policy::cached_norms" }"#,
    );
    assert_usable(&noop, &cached);
}

#[test]
fn schedules() {
    let plan_of = |edit: fn(&mut Policy)| plan(edit).expect("a plan");
    let halves = plan_of(|_| ());
    let new = |plan: &Plan, trigger, lengths: &[u32]| Schedule::new(plan, trigger, lengths);
    let cap = |cap| Trigger::AtCap(cap);
    assert_error("cap 0", new(&halves, cap(0), &[1, 1]), r#"ZeroDimension { argument: "trigger" }"#);
    assert_error("never", new(&halves, Trigger::Every(0), &[1, 1]), r#"ZeroDimension { argument: "trigger" }"#);
    assert_error("cap", new(&halves, cap(11), &[1, 1]), r#"TooLarge { argument: "cap", got: 11, limit: 10 }"#);
    assert_error("one", new(&halves, cap(8), &[1]), r#"WrongCount { argument: "lengths", got: 1, expected: 2 }"#);
    assert_error(
        "long",
        new(&halves, cap(8), &[1, 11]),
        r#"LengthOverCapacity { argument: "lengths", index: 1, got: 11, capacity: 10 }"#,
    );
    let unknown: [fn(&mut Policy); 4] = [
        |p| p.segments = true,
        |p| p.pool = Some(Pool { min_tokens: 1 }),
        |p| p.budget = Budget::MaxNorm(1.0),
        |p| p.score = Score::External(ExternalScore::OrderKeys),
    ];
    for edit in unknown {
        let error = new(&plan_of(edit), cap(8), &[1, 1]).expect_err("lengths that only the GPU knows");
        assert!(error.to_string().contains("take Trigger::Every"), "{error}");
        let mut every =
            Schedule::new(&plan_of(edit), Trigger::Every(4), &[1, 1]).expect("every so many tokens is sound");
        let dues = [3, 4, 4, 4].map(|n| every.append(&[n, 0]).expect("the GPU knows").map(|due| due.max_len));
        assert_eq!(dues, [4, 8, 10, 10].map(Some), "the capacity at most");
    }
    let mut schedule = Schedule::new(&halves, cap(8), &[7, 2]).expect("a schedule");
    assert_error(
        "room",
        schedule.append(&[4, 0]),
        r#"LengthOverCapacity { argument: "counts", index: 0, got: 11, capacity: 10 }"#,
    );
    assert_error("counts", schedule.append(&[1]), r#"WrongCount { argument: "counts", got: 1, expected: 2 }"#);
    // Nothing was counted, so one token more reaches the cap: both sequences are halved.
    let due = schedule.append(&[1, 1]).expect("room").expect("a compression");
    assert_eq!((due.max_len, due.max_new), (8, 8), "the longest row, all of it new");
    assert_eq!([schedule.max_len(0), schedule.max_len(1)], [Ok(4), Ok(2)], "halves");
    assert_eq!(schedule.append(&[3, 1]).expect("room"), None, "7 tokens of 8");
    let due = schedule.append(&[2, 0]).expect("room").expect("a compression");
    assert_eq!((due.max_len, due.max_new), (9, 5), "new since the last");
}

/// Rows below the cap wait for their own turn, and layers left whole need room for every token.
#[test]
fn schedules_of_single_rows_and_whole_layers() {
    let plan_of = |edit: fn(&mut Policy)| plan(edit).expect("a plan");
    let streaming = plan_of(|p| *p = Policy { skip_layers: Vec::new(), recent: 2, sinks: 1, ..Policy::streaming(8) });
    let mut schedule = Schedule::new(&streaming, Trigger::AtCap(8), &[8, 3]).expect("a schedule");
    let due = schedule.append(&[0, 1]).expect("room").expect("a compression");
    assert_eq!(due.max_len, 8, "the longest row");
    assert_eq!([schedule.max_len(0), schedule.max_len(1)], [Ok(8), Ok(4)], "98 % of 8, rounded up; 4 left whole");

    let mut every = Schedule::new(&plan_of(|_| ()), Trigger::Every(3), &[0, 0]).expect("a schedule");
    let dues = [1, 1, 1, 2, 1].map(|n| every.append(&[n, 0]).expect("room").map(|d| (d.max_len, d.max_new)));
    assert_eq!(dues, [None, None, Some((3, 3)), None, Some((5, 3))], "every third token");

    // Heads of two budgets: one that is below the least length grows on while the others are compressed.
    let two = plan_of(|p| {
        (p.budget, p.min_len) = (Budget::KeepTokens(1), 8);
        p.budgets = overridden(0..1, 0..1, Budget::KeepTokens(3));
    });
    let mut schedule = Schedule::new(&two, Trigger::AtCap(8), &[7, 0]).expect("a schedule");
    let mut step = |n| (schedule.append(&[n, 0]).expect("room").map(|due| due.max_len), schedule.max_len(0));
    assert_eq!(step(1), (Some(8), Ok(3)), "3 and 1");
    assert_eq!(step(5), (Some(8), Ok(6)), "3 of 8, and 6 that are left whole");
    assert_eq!(step(1), (None, Ok(7)), "4 and 7");
    assert_eq!(step(1), (Some(8), Ok(5)), "5 that are left whole, and 1 of 8");

    // A window that grows with the row: what is kept may be less than the bound, and so be left whole the next time.
    let growing = plan_of(|p| {
        (p.budget, p.recent, p.recent_share, p.min_len) = (Budget::keep_ratio(0.1), 6, Some(0.1), 8);
    });
    let mut schedule = Schedule::new(&growing, Trigger::AtCap(8), &[7, 0]).expect("a schedule");
    let mut step = |n| (schedule.append(&[n, 0]).expect("room").map(|due| due.max_len), schedule.max_len(0));
    assert_eq!([step(1), step(1)], [(Some(8), Ok(6)), (None, Ok(7))], "6 of 8 at most, and one more");
    assert_eq!([step(1), step(1)], [(Some(8), Ok(7)), (Some(8), Ok(7))], "6 at most, or up to 7 that are left whole");

    let mut schedule = Schedule::new(&plan_of(|p| p.recent = 1), Trigger::AtCap(8), &[7, 7]).expect("a schedule");
    schedule.set_prefixes(&[6]).expect_err("a sequence left out");
    schedule.set_prefixes(&[6, 0]).expect("a prefix");
    schedule.append(&[1, 1]).expect("room").expect("a compression");
    assert_eq!([schedule.max_len(0), schedule.max_len(1)], [Ok(7), Ok(4)], "the prefix and the last; a half");

    let whole = plan_of(|p| p.skip_layers = vec![0]);
    let mut schedule = Schedule::new(&whole, Trigger::AtCap(4), &[4, 4]).expect("a schedule");
    schedule.append(&[6, 0]).expect("up to the capacity");
    schedule.append(&[1, 0]).expect_err("the layer left whole is full");
    let error = r#"IndexOutOfRange { argument: "sequence", got: 2, limit: 2 }"#;
    assert_error("sequence", schedule.reset_sequence(2), error);
    assert_error("sequence", schedule.left_whole(2, 1), error);
    assert_error("len", schedule.left_whole(0, 11), r#"TooLarge { argument: "len", got: 11, limit: 10 }"#);
    schedule.reset_sequence(0).expect("a sequence");
    assert_eq!([schedule.max_len(0), schedule.max_len(1)], [Ok(0), Ok(4)], "the other is as it was");
    schedule.append(&[3, 0]).expect("an empty sequence has room");
}

/// A compression that left a sequence as it was, which the schedule is told, is due again with the next token.
#[test]
fn schedules_of_sequences_left_whole() {
    let mut unknown =
        Schedule::new(&plan(|p| p.segments = true).expect("a plan"), Trigger::Every(3), &[5, 1]).expect("one");
    unknown.left_whole(0, 10).expect("up to the capacity");
    let due = unknown.append(&[1, 0]).expect("the GPU knows").expect("a compression");
    assert_eq!((due.max_len, due.max_new), (10, 10), "no more than there is room for");
    for trigger in [Trigger::AtCap(6), Trigger::Every(6)] {
        let mut schedule = Schedule::new(&plan(|_| ()).expect("a plan"), trigger, &[5, 1]).expect("a schedule");
        let due = schedule.append(&[1, 1]).expect("room").expect("a compression");
        schedule.left_whole(0, due.max_len).expect("a sequence");
        assert_eq!([schedule.max_len(0), schedule.max_len(1)], [Ok(6), Ok(1)], "left, and halved");
        let due = schedule.append(&[1, 0]).expect("room").expect("a compression");
        assert_eq!((due.max_len, due.max_new), (7, 7), "none of its norms counts as known");
        assert_eq!([schedule.max_len(0), schedule.max_len(1)], [Ok(4), Ok(1)], "both are halved, rounded up");
        // A bound below what is known changes nothing.
        schedule.left_whole(0, 2).expect("a sequence");
        assert_eq!(schedule.max_len(0), Ok(4));
    }
}
