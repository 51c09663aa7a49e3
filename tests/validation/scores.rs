//! Every score records what wgpu accepts at WebGPU's default limits, and what is wrong about the caller's scores.

use keynorm::{Dtype, ExternalScore, KvShape, Policy, Score, Strides, TensorSpec, TensorView};

use crate::support::{Draft, assert_error, assert_records, assert_usable, noop, policy, shape};

fn external() -> Policy {
    Policy { score: Score::External(ExternalScore::F32), ..policy() }
}

#[test]
fn every_score_records() {
    let noop = noop();
    for score in [Score::KeyNorm, Score::KeyDiff, Score::Centroid, Score::ValueKeyRatio] {
        let plan = noop.compressor().plan(&shape(), &Policy { score, ..policy() }).expect("a sound plan");
        assert_usable(&noop, &plan);
    }
    let kept = Policy { score: Score::KeyDiff, cached_norms: true, ..policy() };
    assert_usable(&noop, &noop.compressor().plan(&shape(), &kept).expect("a sound plan"));
}

/// A state keeps norms, or the scores and sums of KeyDiff; either serves a plan that reads neither.
#[test]
fn states_of_other_scores() {
    let noop = noop();
    let plan = |score, cached_norms| {
        noop.compressor().plan(&shape(), &Policy { score, cached_norms, ..policy() }).expect("a sound plan")
    };
    let [norms, scores, plain] = [(Score::KeyNorm, true), (Score::KeyDiff, true), (Score::KeyDiff, false)]
        .map(|(score, cached)| plan(score, cached));
    for (state_of, bound, serves) in [
        (&norms, &scores, false),
        (&scores, &norms, false),
        (&plain, &scores, false),
        (&norms, &plain, true),
        (&scores, &plain, true),
    ] {
        let draft = Draft { state: state_of.create_state().expect("a state"), ..Draft::new(&noop, bound) };
        match draft.bind(bound) {
            Ok(_) => assert!(serves, "a state that keeps something else is accepted"),
            refused => {
                assert!(!serves, "a state that serves is refused");
                assert_error("state", refused, r#"Argument(WrongPlan { argument: "state" })"#);
            }
        }
    }
}

#[test]
fn scores_of_the_callers() {
    let noop = noop();
    let plan = noop.compressor().plan(&shape(), &external()).expect("a sound plan");
    let draft = Draft::new(&noop, &plan);
    // 6 rows of 10 words.
    let strides = Strides::hnd(3, 10, 1);
    let buffer = noop.storage(240);
    let bind = |views: &[TensorView<'_>]| draft.bind_with_scores(&plan, views);
    let view = TensorView { buffer: &buffer, offset_bytes: 0, strides };
    let bound = bind(&[view]).expect("sound scores");
    assert_records(&noop, &plan, &bound);

    assert_error("none", bind(&[]), r#"Argument(WrongCount { argument: "scores", got: 0, expected: 1 })"#);
    assert_error("plain", draft.bind(&plan), r#"Argument(WrongCount { argument: "scores", got: 0, expected: 1 })"#);
    assert_error("two", bind(&[view, view]), r#"Argument(WrongCount { argument: "scores", got: 2, expected: 1 })"#);
    assert_error(
        "short",
        bind(&[TensorView { offset_bytes: 4, ..view }]),
        r#"Argument(OutsideBuffer { argument: "scores", end: 244, buffer_bytes: 240 })"#,
    );
    assert_error(
        "misaligned",
        bind(&[TensorView { offset_bytes: 2, ..view }]),
        r#"Argument(Misaligned { argument: "scores.offset_bytes", got: 2 })"#,
    );
    assert_error(
        "overlapping rows",
        bind(&[TensorView { strides: Strides { head: 9, ..strides }, ..view }]),
        r#"Argument(OverlappingRows { argument: "scores", dimension: "head", got: 9, expected: 10 })"#,
    );
    let copied = noop.buffer(240, wgpu::BufferUsages::COPY_DST);
    assert_error(
        "usage",
        bind(&[TensorView { buffer: &copied, ..view }]),
        r#"Argument(MissingUsage { argument: "scores", missing: "STORAGE" })"#,
    );
    assert_error(
        "over the keys",
        bind(&[TensorView { buffer: &draft.layers[0].0.buffer, ..view }]),
        r#"Argument(Overlap { first: "keys", second: "scores" })"#,
    );

    // Heads may have them in common, one word a token of each sequence; sequences may not.
    let shared = Strides { batch: 10, head: 0, token: 1 };
    assert_records(&noop, &plan, &bind(&[TensorView { strides: shared, ..view }]).expect("shared by heads"));
    assert_error(
        "sequences",
        bind(&[TensorView { strides: Strides { batch: 0, ..shared }, ..view }]),
        r#"Argument(OverlappingRows { argument: "scores", dimension: "batch", got: 0, expected: 1 })"#,
    );

    // Scores are only read, so layers may have them in common.
    let two = noop.compressor().plan(&KvShape { num_layers: 2, ..shape() }, &external()).expect("a sound plan");
    Draft::new(&noop, &two).bind_with_scores(&two, &[view, view]).expect("scores of two layers");

    let norms = noop.compressor().plan(&shape(), &policy()).expect("a sound plan");
    assert_error(
        "of another policy",
        Draft::new(&noop, &norms).bind_with_scores(&norms, &[view]),
        r#"Argument(WrongCount { argument: "scores", got: 1, expected: 0 })"#,
    );
}

/// One row of scores that is larger than a binding.
#[test]
fn scores_larger_than_a_binding() {
    let noop = noop();
    let compressor = noop.compressor_of_small_bindings();
    let plan = compressor.plan(&shape(), &external()).expect("a sound plan");
    let draft = Draft::new(&noop, &plan);
    let buffer = noop.storage(1 << 20);
    let strides = Strides { batch: 3, head: 1, token: 10_000 };
    assert_error(
        "wide",
        draft.bind_with_scores(&plan, &[TensorView { buffer: &buffer, offset_bytes: 0, strides }]),
        r#"Argument(RowExceedsBinding { argument: "scores", row_bytes: 360024, limit: 65536 })"#,
    );
}

/// Keys and values back to back, of which one binding would have to hold both where they meet between aligned addresses.
#[test]
fn rows_that_meet_and_are_not_scored_by_bands() {
    let noop = noop();
    let compressor = noop.compressor_of_small_bindings();
    let spec = TensorSpec::new(Dtype::F16, 64);
    let shape = KvShape { num_layers: 1, batch_size: 1, num_kv_heads: 1, capacity: 499, keys: spec, values: spec };
    let plan = compressor.plan(&shape, &Policy { score: Score::KeyDiff, ..policy() }).expect("a sound plan");
    let mut draft = Draft::new(&noop, &plan);
    let buffer = noop.storage(1 << 18);
    let row_bytes = 499_u64 * 128;
    for (offset_bytes, meet) in [(row_bytes, true), (row_bytes.next_multiple_of(256), false)] {
        let (keys, values) = &mut draft.layers[0];
        (keys.buffer, values.buffer) = (buffer.clone(), buffer.clone());
        values.offset_bytes = offset_bytes;
        if meet {
            let error =
                r#"Argument(RowExceedsBinding { argument: "keys and values", row_bytes: 127872, limit: 65536 })"#;
            assert_error("back to back", draft.bind(&plan), error);
        } else {
            draft.bind(&plan).expect("each fits a binding");
        }
    }
}
