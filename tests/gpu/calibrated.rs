//! A calibrated policy, carried out by several plans on one state, and the variation of norms that the state holds.

use keynorm::diagnose;
use keynorm::{Budget, Calibration, Direction, Dtype, KvView, LayerChoice, Policy, Score};

use crate::support::{BUILT, Case, Fixture, gpu, shape, submit};

#[test]
fn every_layer_by_its_own_score_window_and_budget() {
    let gpu = gpu();
    let norm = LayerChoice::of(&Policy::safe(0.5));
    let diff = LayerChoice::of(&Policy::keydiff(Budget::keep_ratio(0.5)));
    let layers = vec![
        LayerChoice { keep_ratio: 1.0, ..norm },
        LayerChoice { keep_ratio: 0.5, ..norm },
        LayerChoice { keep_ratio: 0.4, ..diff },
        LayerChoice { keep_ratio: 0.7, ..norm },
        LayerChoice { keep_ratio: 0.3, score: Score::Centroid, direction: Direction::Highest, ..diff },
    ];
    let mut case = Case::new(shape(2, 3, 400, 64, Dtype::F16), Policy::new(Budget::keep_ratio(1.0)));
    case.shape.num_layers = 5;
    (case.lengths, case.appended) = (vec![390, 120], vec![10, 200]);
    let mut fixture = Fixture::new(gpu, &case);
    let policies = Calibration { layers }.policies(3).expect("sound ratios");
    assert_eq!(policies.len(), 3, "a policy for each score and window");
    let compressor = BUILT.compressor(gpu, &case.options);
    let bounds: Vec<_> = policies
        .iter()
        .map(|policy| {
            let plan = compressor.plan(&case.shape, policy).expect("a plan");
            let views: Vec<_> = fixture.buffers.iter().map(|b| KvView::hnd(&case.shape, &b[0], &b[1])).collect();
            let workspace = plan.create_workspace().expect("a workspace");
            plan.bind(&gpu.device, &views, &fixture.state, &workspace).expect("a binding")
        })
        .collect();
    for round in ["first", "second"] {
        let max_len = fixture.max_len();
        submit(gpu, |pass| bounds.iter().for_each(|bound| bound.record(pass, max_len).expect("a record")));
        for policy in &policies {
            fixture.compress_host(&Case { policy: policy.clone(), ..case.clone() });
        }
        fixture.compare(gpu, &case, round);
        if round == "first" {
            fixture.append(gpu, &case);
        }
    }
}

#[test]
fn variation_of_cached_norms() {
    let gpu = gpu();
    let policy = Policy { cached_norms: true, ..Policy::new(Budget::keep_ratio(0.6)) };
    let mut case = Case::new(shape(2, 2, 300, 64, Dtype::Bf16), policy);
    case.shape.num_layers = 2;
    case.lengths = vec![290, 0];
    let mut fixture = Fixture::new(gpu, &case);
    fixture.compress_and_compare(gpu, &case, "norms");
    let read = pollster::block_on(fixture.state.norm_variation(&gpu.device, &gpu.queue)).expect("a read-back");
    let read = read.expect("a state with norms");
    for (layer, host) in fixture.host.iter().enumerate() {
        for row in 0..case.shape.rows_per_layer() {
            let keys = host.gather(&host.keys, &case.shape.keys, &case.shape, row);
            let expected = diagnose::norm_variation(&case.shape.keys, &keys);
            assert_eq!(read[layer][row as usize].to_bits(), expected.to_bits(), "layer {layer} row {row}");
            assert_eq!(expected.is_nan(), row >= 2, "rows of the second sequence are empty");
        }
    }
    let plain = Fixture::new(gpu, &Case { policy: Policy::new(Budget::keep_ratio(0.5)), ..case });
    let none = pollster::block_on(plain.state.norm_variation(&gpu.device, &gpu.queue)).expect("nothing to read");
    assert_eq!(none, None, "a state without norms");
}
