//! Other subgroup sizes. lavapipe takes its own from the environment, so the cases run in processes of their own; its
//! shader cache must be off, since it would hand out shaders of another width.

use std::process::Command;

use keynorm::{Budget, Dtype, Options, Order, Policy, Score, Switch};

use crate::support::{Case, gpu, run, shape};

/// Rows in one dispatch, in two, of two eights an invocation and tile by tile, scored or by cached norms; other scores.
#[test]
fn every_kernel_with_shuffles() {
    for order in [Order::Fill, Order::Positional] {
        let case = |(sequences, capacity), score, cached_norms| {
            let policy = Policy { order, score, cached_norms, ..Policy::new(Budget::keep_ratio(0.45)) };
            let mut case = Case::new(shape(sequences, 1, capacity, 32, Dtype::F16), policy);
            case.options = Options::with_subgroups(Switch::On);
            case.lengths = (0..sequences).map(|b| capacity - 7 * b % 200).collect();
            run(&case);
        };
        for rows in [(96, 300), (2, 300), (2, 9000), (2, 20_000)] {
            case(rows, Score::KeyNorm, order == Order::Fill);
        }
        case((2, 9000), Score::KeyNorm, false);
        let other = if order == Order::Fill { Score::KeyDiff } else { Score::ValueKeyRatio };
        case((2, 700), other, false);
    }
}

/// Runs some of this program's tests with lavapipe's vectors `bits` wide.
fn run_with_vectors_of(bits: u32) {
    let info = &gpu().info;
    if !info.name.contains("llvmpipe") {
        println!("{} has one subgroup size, and every case runs with it", info.name);
        return;
    }
    let size = bits / 32;
    let filters = ["cases::subgroups_", "widths::every_kernel"];
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(filters)
        .arg("--nocapture")
        .env("LP_NATIVE_VECTOR_WIDTH", bits.to_string())
        .env("MESA_SHADER_CACHE_DISABLE", "true")
        .env("KEYNORM_EXPECT_SUBGROUP_SIZE", size.to_string())
        .output()
        .expect("a child");
    let said = String::from_utf8_lossy(&child.stdout);
    let told = format!("subgroups {size}..{size}");
    assert!(child.status.success(), "{said}\n{}", String::from_utf8_lossy(&child.stderr));
    assert!(said.contains(&told) && said.contains("2 passed"), "expected {told} and 2 tests:\n{said}");
}

#[test]
fn subgroups_of_4() {
    run_with_vectors_of(128);
}

#[test]
fn subgroups_of_16() {
    run_with_vectors_of(512);
}
