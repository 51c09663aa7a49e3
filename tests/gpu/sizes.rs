//! Lengths and row counts at their edges.

use keynorm::{Budget, Dtype, Order, Policy, Selector};

use crate::support::{Built, Case, Fixture, gpu, gpu_with, run, shape, submit};

fn policy(selector: Selector, order: Order) -> Policy {
    Policy { selector, order, ..Policy::new(Budget::keep_ratio(0.5)) }
}

fn variants() -> impl Iterator<Item = Policy> {
    [Selector::Auto, Selector::Radix, Selector::Bitonic]
        .into_iter()
        .flat_map(|selector| [Order::Fill, Order::Positional].map(|order| policy(selector, order)))
}

#[test]
fn no_tokens() {
    for policy in variants() {
        let gpu = gpu();
        let mut case = Case::new(shape(2, 2, 300, 64, Dtype::F16), policy);
        case.lengths = vec![0, 0];
        run(&case); // max_len is 0
        // Grids for 300 tokens over rows that hold none.
        let mut fixture = Fixture::new(gpu, &case);
        submit(gpu, |pass| fixture.bound.record(pass, 300).expect("a record"));
        fixture.compress_host(&case);
        fixture.compare(gpu, &case, "empty rows");
        // max_len 0 leaves rows that hold some as they are.
        case.lengths = vec![300, 17];
        fixture.restart(gpu, &case);
        submit(gpu, |pass| fixture.bound.record(pass, 0).expect("a record"));
        fixture.compare(gpu, &case, "max_len 0");
        fixture.compress_and_compare(gpu, &case, "afterwards");
    }
}

#[test]
fn capacity_of_one() {
    for policy in variants() {
        let mut case = Case::new(shape(3, 2, 1, 16, Dtype::F32), policy);
        case.lengths = vec![1, 0, 1];
        run(&case);
        case.lengths = vec![0, 0, 1];
        case.appended = vec![1, 0, 0];
        run(&case);
    }
}

/// From the sizes of workgroups, sorts and tiles, and of what one dispatch of the chain covers.
#[test]
fn lengths_at_the_edges_of_tiles() {
    for policy in variants() {
        for len in [2047, 2048, 2049, 4095, 4096, 4097, 8193, 16_384, 16_385] {
            let mut case = Case::new(shape(2, 1, 16_385, 16, Dtype::F16), policy.clone());
            case.lengths = vec![len, len / 2 + 1];
            run(&case);
        }
    }
}

#[test]
fn thousands_of_rows() {
    for policy in variants() {
        let mut case = Case::new(shape(1000, 3, 20, 16, Dtype::F16), policy);
        case.lengths = (0..1000).map(|b| b % 21).collect();
        run(&case);
    }
}

/// More rows than a grid has workgroups in a dimension, of which the device allows few.
#[test]
fn more_rows_than_a_grid_holds() {
    let gpu = gpu_with(|limits| limits.max_compute_workgroups_per_dimension = 100);
    let built = Built::default();
    for policy in variants() {
        let mut case = Case::new(shape(25, 9, 5, 16, Dtype::F16), policy);
        case.shape.num_layers = 2;
        case.lengths = (0..25).map(|b| b % 5).collect();
        case.appended = vec![1; 25];
        let mut fixture = Fixture::built(&gpu, &case, &built);
        fixture.compress_and_compare(&gpu, &case, "first");
        fixture.append(&gpu, &case);
        fixture.compress_and_compare(&gpu, &case, "second");
    }
}

/// A first compression of rows long enough for the chain of dispatches leaves scratch behind that the next, of other
/// lengths, must not trip over.
#[test]
fn dirty_workspace() {
    for policy in variants() {
        let gpu = gpu();
        let mut case = Case::new(shape(2, 1, 20_000, 16, Dtype::F16), policy);
        let mut fixture = Fixture::new(gpu, &case);
        for (round, lengths) in [[20_000, 17], [5, 0], [300, 19_999], [3000, 2500], [16_385, 20_000]].iter().enumerate()
        {
            case.lengths = lengths.to_vec();
            case.seed = round as u64;
            fixture.restart(gpu, &case);
            fixture.compress_and_compare(gpu, &case, &format!("round {round}"));
        }
    }
}

/// Every run equals the reference, so all have the same bits.
#[test]
fn twenty_runs_are_the_same() {
    for policy in variants() {
        let gpu = gpu();
        let mut case = Case::new(shape(2, 2, 17_000, 16, Dtype::Bf16), policy);
        case.data = crate::support::Data::Ties;
        case.lengths = vec![17_000, 3001];
        let mut fixture = Fixture::new(gpu, &case);
        for round in 0..20 {
            fixture.restart(gpu, &case);
            fixture.compress_and_compare(gpu, &case, &format!("run {round}"));
        }
    }
}
