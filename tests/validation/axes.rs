//! Layouts described axis by axis: those that are served, and those that are refused by name.

use keynorm::AxisKind::{Batch, Dim, Head, Token};
use keynorm::{Axis, AxisKind, Dtype, KvView, Strides, TensorSpec, TensorView};

use crate::support::{Draft, assert_error, assert_records, noop, policy, shape};

type Axes = &'static [(AxisKind, u64, u64)];

/// Of 64 elements a token, 3 heads.
const REFUSED: &[(&str, &str, Axes, &str)] = &[
    (
        "vLLM's keys: [page, head, dim / 8, slot, 8]",
        "keys",
        &[(Batch, 100, 3072), (Head, 3, 1024), (Dim, 8, 128), (Token, 16, 8), (Dim, 8, 1)],
        r#"InterleavedTokens { argument: "keys", group: 8, group_stride: 128 }"#,
    ),
    (
        "vLLM's values: [page, head, dim, slot]",
        "values",
        &[(Batch, 100, 3072), (Head, 3, 1024), (Dim, 64, 16), (Token, 16, 1)],
        r#"Transposed { argument: "values", dim_stride: 16 }"#,
    ),
    (
        "llama.cpp's values without flash attention: [head, dim, token]",
        "values",
        &[(Head, 3, 64 * 500), (Dim, 64, 500), (Token, 500, 1)],
        r#"Transposed { argument: "values", dim_stride: 500 }"#,
    ),
    (
        "every other element",
        "keys",
        &[(Head, 3, 128), (Token, 10, 384), (Dim, 64, 2)],
        r#"HeadDimStride { argument: "keys", dim_stride: 2 }"#,
    ),
    (
        "one element broadcast",
        "keys",
        &[(Token, 10, 1), (Dim, 64, 0)],
        r#"Transposed { argument: "keys", dim_stride: 0 }"#,
    ),
    (
        "halves that interleave",
        "keys",
        &[(Dim, 2, 32 * 10), (Token, 10, 32), (Dim, 32, 1)],
        r#"InterleavedTokens { argument: "keys", group: 32, group_stride: 320 }"#,
    ),
    (
        "two axes of heads",
        "keys",
        &[(Head, 3, 640), (Head, 2, 1920), (Token, 10, 64), (Dim, 64, 1)],
        r#"Axes { argument: "keys", axis: "Head", got: 2, expected: "at most one" }"#,
    ),
    (
        "no elements",
        "keys",
        &[(Token, 10, 64)],
        r#"Axes { argument: "keys", axis: "Dim", got: 0, expected: "at least one" }"#,
    ),
    (
        "too few elements",
        "values",
        &[(Token, 10, 64), (Dim, 4, 8), (Dim, 8, 1)],
        r#"AxisLength { argument: "values", axis: "Dim", got: 32, expected: 64 }"#,
    ),
    (
        "more elements than a u64 counts",
        "values",
        &[(Dim, u64::MAX, 8), (Dim, 8, 1)],
        r#"AxisLength { argument: "values", axis: "Dim", got: 18446744073709551615, expected: 64 }"#,
    ),
];

fn axes(axes: Axes) -> Vec<Axis> {
    axes.iter().map(|&(kind, len, stride)| Axis::new(kind, len, stride)).collect()
}

#[test]
fn layouts_that_are_refused() {
    let noop = noop();
    let buffer = noop.storage(64);
    let spec = TensorSpec::new(Dtype::F16, 64);
    for (name, argument, described, expected) in REFUSED {
        let view = TensorView::from_axes(argument, &buffer, 0, &spec, &axes(described));
        assert_error(name, view.map(|v| v.strides), expected);
    }
}

#[test]
fn axes_of_quantised_rows() {
    let noop = noop();
    let buffer = noop.storage(64);
    let view = TensorView::from_axes("keys", &buffer, 0, &TensorSpec::new(Dtype::Q8_0, 64), &axes(&[(Dim, 64, 1)]));
    let refused = r#"Unsupported { what: "quantised rows in TensorView::from_axes" }"#;
    assert_error("q8_0", view.map(|v| v.strides), refused);
}

#[test]
fn layouts_that_are_served() {
    let noop = noop();
    let spec = TensorSpec::new(Dtype::F16, 64);
    let shape = shape();
    let plan = noop.compressor().plan(&shape, &policy()).expect("a sound plan");
    let hnd = Strides::hnd(3, 10, 64);
    let nhd = Strides::nhd(3, 10, 64);
    let served: [(&str, Axes, Strides); 4] = [
        ("[batch, head, token, dim]", &[(Batch, 2, 1920), (Head, 3, 640), (Token, 10, 64), (Dim, 64, 1)], hnd),
        ("any order", &[(Dim, 64, 1), (Token, 10, 192), (Batch, 2, 1920), (Head, 3, 64)], nhd),
        ("dim in parts", &[(Batch, 2, 1920), (Head, 3, 640), (Token, 10, 64), (Dim, 16, 4), (Dim, 4, 1)], hnd),
        ("dim of length 1", &[(Batch, 2, 1920), (Head, 3, 640), (Token, 10, 64), (Dim, 1, 99), (Dim, 64, 1)], hnd),
    ];
    for (name, described, strides) in served {
        let draft = Draft::new(&noop, &plan);
        let (keys, values) = &draft.layers[0];
        let view = |argument, buffer| TensorView::from_axes(argument, buffer, 0, &spec, &axes(described)).expect(name);
        let view = KvView { keys: view("keys", &keys.buffer), values: view("values", &values.buffer) };
        assert_eq!(view.keys.strides, strides, "{name}");
        let bound = plan.bind(&noop.device, &[view], &draft.state, &draft.workspace).expect("a sound binding");
        assert_records(&noop, &plan, &bound);
    }
}
