//! What can be wrong about a rotation.

use keynorm::{Dtype, Frequencies, KvShape, Order, Pairing, Policy, Rope, Score, TensorSpec, TensorView};

use crate::support::{Draft, assert_clean, assert_error, noop, policy, shape};

type EditRope = fn(&mut Rope);

const ROPES: &[(&str, EditRope, &str)] = &[
    ("nothing", |r| r.rotary_dim = 0, "RotaryDim { got: 0, multiple: 4, limit: 64 }"),
    ("beyond the key", |r| r.rotary_dim = 68, "RotaryDim { got: 68, multiple: 4, limit: 64 }"),
    ("half a word", |r| r.rotary_dim = 62, "RotaryDim { got: 62, multiple: 4, limit: 64 }"),
    (
        "odd pairs",
        |r| (r.rotary_dim, r.pairing) = (31, Pairing::Interleaved),
        "RotaryDim { got: 31, multiple: 2, limit: 64 }",
    ),
    (
        "base",
        |r| r.frequencies = Frequencies::Base { base: 0.0, linear_factor: 1.0 },
        r#"Frequency { argument: "base", got: 0.0 }"#,
    ),
    (
        "factor",
        |r| r.frequencies = Frequencies::Base { base: 1e4, linear_factor: f64::NAN },
        r#"Frequency { argument: "linear_factor", got: NaN }"#,
    ),
    (
        "short table",
        |r| r.frequencies = Frequencies::Table(vec![1.0; 31]),
        r#"WrongCount { argument: "frequencies", got: 31, expected: 32 }"#,
    ),
    (
        "infinite frequency",
        |r| r.frequencies = Frequencies::Table(vec![f64::INFINITY; 32]),
        r#"Frequency { argument: "frequencies", got: inf }"#,
    ),
];

#[test]
fn rotations() {
    let noop = noop();
    let plan = |order| noop.compressor().plan(&shape(), &Policy { order, ..policy() }).expect("a sound plan");
    let positional = plan(Order::Positional);
    let draft = Draft::new(&noop, &positional);
    let keys = draft.layers[0].0.view();
    let bind = |keys: &[TensorView<'_>], rope: &Rope| positional.bind_rotation(&noop.device, keys, &draft.state, rope);
    for (name, edit, expected) in ROPES {
        let mut rope = Rope::new(64, 10_000.0);
        edit(&mut rope);
        assert_error(name, rope.check(&shape().keys), expected);
        assert_error(name, bind(&[keys], &rope), &format!("Argument({expected})"));
    }
    let rope = Rope::new(64, 10_000.0);
    for dtype in [keynorm::Dtype::Q8_0, keynorm::Dtype::F8E4M3] {
        let checked = rope.check(&keynorm::TensorSpec::new(dtype, 64));
        assert_error("quantised", checked, r#"Unsupported { what: "a rotation of quantised or f8 keys" }"#);
    }
    let bound = bind(&[keys], &rope).expect("a sound rotation");
    let later = |keys: &[TensorView<'_>]| {
        pollster::block_on(positional.bind_rotation_async(&noop.device, keys, &draft.state, &rope))
    };
    let awaited = later(&[keys]).expect("a sound rotation");
    assert_clean(&noop, |pass| awaited.record(pass, 10).expect("a sound record"));
    let none = later(&[]);
    assert_error("none", none, r#"Argument(WrongCount { argument: "keys", got: 0, expected: 1 })"#);
    assert_clean(&noop, |pass| bound.record(pass, 10).expect("a sound record"));
    assert_clean(&noop, |pass| {
        assert_error("long", bound.record(pass, 11), r#"TooLarge { argument: "max_len", got: 11, limit: 10 }"#);
    });

    assert_error("no keys", bind(&[], &rope), r#"Argument(WrongCount { argument: "keys", got: 0, expected: 1 })"#);
    assert_error(
        "short keys",
        bind(&[TensorView { offset_bytes: 16, ..keys }], &rope),
        r#"Argument(OutsideBuffer { argument: "keys", end: 7696, buffer_bytes: 7680 })"#,
    );
    let layers = keynorm::KvShape { num_layers: 2, ..shape() };
    let two = noop.compressor().plan(&layers, &Policy { order: Order::Positional, ..policy() }).expect("a sound plan");
    let state = two.create_state().expect("a state");
    assert_error(
        "the same keys twice",
        two.bind_rotation(&noop.device, &[keys, keys], &state, &rope),
        r#"Argument(Overlap { first: "keys", second: "keys" })"#,
    );
    let filled = plan(Order::Fill);
    assert_error(
        "slots out of order",
        filled.bind_rotation(&noop.device, &[keys], &draft.state, &rope),
        r#"Argument(Unsupported { what: "a rotation to slots that are out of order (Order::Fill)" })"#,
    );
    let segments = Policy { order: Order::Positional, segments: true, ..policy() };
    let cached = Policy {
        order: Order::Positional,
        cached_norms: true,
        skip_layers: vec![],
        ..Policy::keydiff(keynorm::Budget::keep_ratio(0.5))
    };
    for (name, policy, what) in [
        ("segments", segments, "a rotation with Policy::segments, which are ranges of original positions"),
        ("cached scores", cached, "a rotation with cached scores by KeyDiff, which it would change"),
    ] {
        let plan = noop.compressor().plan(&shape(), &policy).expect("a sound plan");
        let state = plan.create_state().expect("a state");
        let refused = plan.bind_rotation(&noop.device, &[keys], &state, &rope);
        assert_error(name, refused, &format!("Argument(Unsupported {{ what: {what:?} }})"));
    }
    // The state of another plan, whose cached scores it would change.
    let cached = Policy {
        order: Order::Positional,
        cached_norms: true,
        skip_layers: vec![],
        ..Policy::keydiff(policy().budget)
    };
    let state = noop.compressor().plan(&shape(), &cached).expect("a sound plan").create_state().expect("a state");
    assert_error(
        "another plan's scores",
        positional.bind_rotation(&noop.device, &[keys], &state, &rope),
        r#"Argument(Unsupported { what: "a rotation with cached scores by KeyDiff, which it would change" })"#,
    );
}

/// A row that fits a binding only from an aligned address on: the error has what would be bound.
#[test]
fn rows_that_begin_between_aligned_addresses() {
    let noop = noop();
    let compressor = noop.compressor_of_small_bindings();
    let spec = TensorSpec::new(Dtype::F16, 64);
    let shape = KvShape { num_layers: 1, batch_size: 1, num_kv_heads: 1, capacity: 512, keys: spec, values: spec };
    let scored = Policy { order: Order::Positional, score: Score::KeyDiff, ..policy() };
    let plan = compressor.plan(&shape, &scored).expect("a sound plan");
    let mut draft = Draft::new(&noop, &plan);
    draft.layers[0].0.buffer = noop.storage(1 << 17);
    let rope = Rope::new(64, 10_000.0);
    for (offset_bytes, expected) in [(0, None), (256, None), (4, Some(65_540)), (128, Some(65_664))] {
        draft.layers[0].0.offset_bytes = offset_bytes;
        let keys = draft.layers[0].0.view();
        let rotation = plan.bind_rotation(&noop.device, &[keys], &draft.state, &rope);
        let Some(row_bytes) = expected else {
            rotation.expect("a row of a binding");
            draft.bind(&plan).expect("likewise");
            continue;
        };
        let error =
            format!(r#"Argument(RowExceedsBinding {{ argument: "keys", row_bytes: {row_bytes}, limit: 65536 }})"#);
        assert_error("rotation", rotation, &error);
        assert_error("scores", draft.bind(&plan), &error);
    }
}
