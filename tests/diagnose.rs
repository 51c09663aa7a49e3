//! Diagnostics and fitted policies, against naive definitions and a real cache.

use half::f16;
use keynorm::diagnose::{self, AttentionLoss, flags_qk_norm};
use keynorm::{Budget, Calibration, Candidate, Dtype, ExternalScore, LayerChoice, Policy, Score, TensorSpec};
use proptest::prelude::*;

const CACHE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/smollm2_kv_512_f16.safetensors");

fn choice(score: Score) -> LayerChoice {
    LayerChoice { score, ..LayerChoice::of(&Policy::safe(0.5)) }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Equations 5 to 7 by loops over every m.
    #[test]
    fn attention_loss_is_as_the_paper_defines_it(row in prop::collection::vec((0.0_f32..1.0, 0_u32..9), 0..40)) {
        let attention: Vec<f32> = row.iter().map(|r| r.0).collect();
        let keys: Vec<u32> = row.iter().map(|r| r.1).collect();
        let loss = AttentionLoss::new(&attention, &keys).expect("slices of one length");
        let mut alr = 0.0;
        for m in 0..=row.len() {
            // A slot is dropped if fewer than m others go before it.
            let lost: f64 = (0..row.len())
                .filter(|&i| (0..row.len()).filter(|&j| (keys[j], j) > (keys[i], i)).count() < m)
                .map(|i| f64::from(attention[i]))
                .sum();
            let least: f64 = (0..row.len())
                .filter(|&i| {
                    let before = |j: &usize| (attention[*j], *j) < (attention[i], i);
                    (0..row.len()).filter(before).count() < m
                })
                .map(|i| f64::from(attention[i]))
                .sum();
            prop_assert!((loss.lost[m] - lost).abs() < 1e-9, "lost {} for {lost}", loss.lost[m]);
            prop_assert!((loss.lost_at(row.len() - m) - lost).abs() < 1e-9, "lost_at {m}");
            prop_assert!(lost >= least - 1e-9, "no order loses less than the least");
            alr += lost - least;
        }
        prop_assert!((loss.alr() - alr).abs() < 1e-7, "{} for {alr}", loss.alr());
    }

    #[test]
    fn variation_is_deviation_over_mean(numbers in prop::collection::vec(1.0_f64..1e6, 1..50)) {
        let n = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / n;
        let deviation = (numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        prop_assert!((diagnose::variation(numbers) - deviation / mean).abs() < 1e-9);
    }
}

/// Rows and specs of which nothing can be told.
#[test]
fn nothing_to_measure_is_no_fault() {
    for spec in [TensorSpec::new(Dtype::Q8_0, 16), TensorSpec::new(Dtype::F16, 0), TensorSpec::new(Dtype::F32, 64)] {
        assert!(diagnose::norm_variation(&spec, &[]).is_nan(), "{spec:?}");
    }
    assert!(diagnose::norm_variation(&TensorSpec::new(Dtype::Q4_0, 16), &[1, 2, 3]).is_nan(), "a head_dim of no block");
    assert!(!flags_qk_norm(&[f64::NAN, f64::NAN, 0.1]), "rows without norms have no say");
    assert!(!flags_qk_norm(&[f64::NAN]) && !flags_qk_norm(&[]), "nor is there anything to flag");
    let none = AttentionLoss { lost: vec![], least: vec![] };
    assert_eq!((none.lost_at(0), none.lost_at(9)), (0.0, 0.0), "no row");
    let unmeasured = Candidate::new(choice(Score::KeyNorm), &[0.5], &[]);
    assert_eq!(unmeasured.lost, [f64::INFINITY], "nothing says that it loses little");
    let candidate = Candidate::new(choice(Score::KeyNorm), &[0.5, 1.5], &[none]);
    assert_eq!(candidate.lost, [0.0, f64::INFINITY], "no row, and no ratio");
}

/// As many tokens stay as the GPU keeps: 7 of 25 at 0.28, whose product is 7.000000000000001 in f64.
#[test]
fn candidates_keep_what_the_gpu_keeps() {
    let loss = AttentionLoss::new(&[0.04; 25], &(0..25).collect::<Vec<u32>>()).expect("one length");
    let all = LayerChoice { score: Score::KeyNorm, ..LayerChoice::of(&Policy::new(Budget::keep_ratio(0.5))) };
    let candidate = Candidate::new(all, &[0.28], std::slice::from_ref(&loss));
    assert_eq!(candidate.lost, [loss.lost_at(7)], "18 are lost");
    assert!(loss.lost_at(7) > loss.lost_at(8), "and not 17");
}

/// Heads of a real model without QK-norm have signal; keys that are normalised and multiplied by gains do not.
#[test]
fn variation_tells_qk_norm() {
    let bytes = std::fs::read(CACHE).expect("the bundled cache");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let spec = TensorSpec::new(Dtype::F16, 64);
    let (mut real, mut normed) = (Vec::new(), Vec::new());
    for layer in [0, 2, 10, 20, 29] {
        let tensor = file.tensor(&format!("layers.{layer}.keys")).expect("a tensor of the layer");
        for keys in tensor.data().chunks_exact(512 * 128) {
            let variation = diagnose::norm_variation(&spec, keys);
            real.push(variation);
            let normalised: Vec<u8> = keys
                .chunks_exact(128)
                .flat_map(|key| {
                    let elements: Vec<f64> =
                        key.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect();
                    let norm = elements.iter().map(|e| e * e).sum::<f64>().sqrt();
                    let gain = |i: usize| 1.0 + 0.2 * (i as f64 * 2.4).sin();
                    let turned = elements.iter().enumerate().map(move |(i, e)| f16::from_f64(8.0 * gain(i) * e / norm));
                    turned.flat_map(f16::to_le_bytes).collect::<Vec<u8>>()
                })
                .collect();
            let variation = diagnose::norm_variation(&spec, &normalised);
            normed.push(variation);
        }
    }
    assert!(!flags_qk_norm(&real), "a model without QK-norm: {real:?}");
    assert!(flags_qk_norm(&normed), "normalised keys: {normed:?}");
    assert!(!flags_qk_norm(&[]), "no head, no flag");
    // What the documentation of the limit says.
    let range = |mut v: Vec<f64>| {
        v.sort_by(f64::total_cmp);
        [v[0], v[v.len() / 2], v[v.len() - 1]].map(|x| (x * 1000.0).round() / 1000.0)
    };
    assert_eq!((range(real), range(normed)), ([0.047, 0.102, 0.266], [0.01, 0.019, 0.042]));
}

#[test]
fn a_calibration_is_saved_and_loaded() {
    let calibration = Calibration {
        layers: vec![
            LayerChoice { keep_ratio: 1.0, ..choice(Score::KeyNorm) },
            LayerChoice { keep_ratio: 0.1, recent_share: Some(0.025), ..choice(Score::KeyDiff) },
            choice(Score::External(ExternalScore::F32)),
        ],
    };
    let json = serde_json::to_string(&calibration).expect("JSON");
    assert!(
        json.contains(
            r#""score":"KeyDiff","direction":"Lowest","sinks":4,"recent":64,"recent_share":0.025,"keep_ratio":0.1"#
        ),
        "{json}"
    );
    let loaded: Calibration = serde_json::from_str(&json).expect("the same");
    assert_eq!(loaded, calibration, "{json}");
    let loaded: Calibration = serde_json::from_str(&json.replace(r#""direction":"Lowest","#, "")).expect("a default");
    assert_eq!(loaded, calibration, "without a direction: the lowest");
}

/// Every layer gets the score that loses least, and the budget goes where attention is spread.
#[test]
fn fits_follow_the_losses() {
    let ratios = [0.1, 0.3, 0.5, 1.0];
    let candidate = |score, lost: [f64; 4]| Candidate { choice: choice(score), lost: lost.to_vec() };
    let layers = [
        vec![candidate(Score::KeyNorm, [0.02, 0.01, 0.01, 0.0]), candidate(Score::KeyDiff, [0.3, 0.2, 0.1, 0.0])],
        vec![candidate(Score::KeyNorm, [0.9, 0.5, 0.4, 0.0]), candidate(Score::KeyDiff, [0.8, 0.6, 0.1, 0.0])],
    ];
    let fit = |mean| Calibration::fit(&layers, &ratios, mean).expect("a fit").layers;
    let of = |score, keep_ratio| LayerChoice { keep_ratio, ..choice(score) };
    assert_eq!(fit(0.3), [of(Score::KeyNorm, 0.1), of(Score::KeyDiff, 0.5)]);
    assert_eq!(fit(0.2), [of(Score::KeyNorm, 0.1), of(Score::KeyNorm, 0.3)]);
    assert_eq!(fit(0.1), [of(Score::KeyNorm, 0.1), of(Score::KeyDiff, 0.1)]);
    assert!(fit(1.0).iter().all(|l| l.keep_ratio == 1.0), "all is kept where all may be");

    // A first ratio that cannot be had is left before all else.
    let infinite = [f64::INFINITY, f64::INFINITY, 0.2, 0.0];
    let layers_of = [layers[0].clone(), vec![candidate(Score::KeyDiff, infinite)]];
    let fitted = Calibration::fit(&layers_of, &ratios, 0.3).expect("a fit").layers;
    assert_eq!(fitted, [of(Score::KeyNorm, 0.1), of(Score::KeyDiff, 0.5)]);

    let refused = |layers: &[Vec<Candidate>], ratios: &[f64], mean: f64| {
        Calibration::fit(layers, ratios, mean).expect_err("refused").to_string()
    };
    assert!(refused(&[], &ratios, 0.3).contains("layers"));
    assert!(refused(&[vec![]], &ratios, 0.3).contains("candidates"));
    assert!(refused(&layers, &ratios[..3], 0.3).contains("lost"));
    for nan in [f64::NAN, -f64::NAN] {
        let layers = [vec![candidate(Score::KeyNorm, [0.1, nan, 0.0, 0.0])]];
        assert!(refused(&layers, &ratios, 0.3).contains("a loss that is not a number"));
    }
    assert_eq!(refused(&layers, &ratios, 0.05), "mean_keep_ratio is 0.05, expected at least 0.1");
    assert_eq!(refused(&layers, &[0.1, 0.5, 0.3, 1.0], 0.3), "keep_ratios is 0.3, expected at least 0.5");
    assert!(refused(&layers, &ratios, 1.5).contains("keep_ratio is 1.5, expected a number from 0 to 1"));
    assert!(Calibration { layers: vec![of(Score::KeyNorm, f64::NAN)] }.policies(1).is_err(), "a ratio that is NaN");
}

/// From attention to policies: where one token has it all, the score that keeps it wins.
#[test]
fn candidates_come_from_losses() {
    let attention = [0.0, 0.0, 1.0, 0.0];
    let loss = |keys: [u32; 4]| AttentionLoss::new(&attention, &keys).expect("one length");
    let ratios = [0.25, 0.5];
    let bare = |score| LayerChoice { score, ..LayerChoice::of(&Policy::paper(0.5)) };
    let good = Candidate::new(bare(Score::KeyDiff), &ratios, &[loss([2, 3, 1, 4]), loss([3, 2, 1, 4])]);
    let poor = Candidate::new(bare(Score::KeyNorm), &ratios, &[loss([2, 3, 1, 4]), loss([1, 3, 2, 4])]);
    assert_eq!((good.lost.as_slice(), poor.lost.as_slice()), (&[0.0, 0.0][..], &[0.5, 0.0][..]));
    // One protected token fits into a quarter of four, two do not.
    let with_sinks = |sinks| {
        let choice = LayerChoice { sinks, recent: 8, recent_share: Some(0.25), ..bare(Score::KeyDiff) };
        Candidate::new(choice, &[0.25, 0.5, 1.0], &[loss([2, 3, 1, 4])]).lost
    };
    assert_eq!(with_sinks(0), [0.0, 0.0, 0.0]);
    assert_eq!(with_sinks(1), [f64::INFINITY, 0.0, 0.0]);
    assert_eq!(with_sinks(9), [f64::INFINITY, f64::INFINITY, 0.0]);
    let fitted = Calibration::fit(&[vec![poor, good]], &ratios, 0.25).expect("a fit");
    let policies = fitted.policies(3).expect("sound ratios");
    assert_eq!(policies.len(), 1);
    assert_eq!((policies[0].score, policies[0].budget_of(0, 2)), (Score::KeyDiff, Budget::keep_ratio(0.25)));
    for (layer, head) in [(0, 3), (1, 0)] {
        assert_eq!(policies[0].budget_of(layer, head), Budget::keep_ratio(1.0), "beyond what was fitted");
    }
}
