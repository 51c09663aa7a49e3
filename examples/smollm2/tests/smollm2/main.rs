//! The model on Burn, its cache under keynorm. Needs an adapter and the model: without one a test fails, it does not skip.

mod cache;
mod files;
mod reference;
mod tool;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use keynorm::{Budget, Calibration, LayerChoice, Order, Policy};
use keynorm_smollm2::cache::{KvCache, read};
use keynorm_smollm2::calibrate::{self, KEEP_RATIOS, WHOLE};
use keynorm_smollm2::cli::Loss;
use keynorm_smollm2::gguf::default_path;
use keynorm_smollm2::kernels::Kernels;
use keynorm_smollm2::lab::{Lab, argmax};
use keynorm_smollm2::model::{Observer, Seen};
use keynorm_smollm2::retrieval::{Draw, Task};
use keynorm_smollm2::strategy::{Calibrated, Method, STRATEGIES};

use burn::tensor::{Distribution, Int, Tensor};
use reference::Reference;

const PROMPTS: [&str; 3] = [
    "The capital of France is Paris. The capital of Germany is Berlin. The capital of Italy is",
    "<|im_start|>user\nWhich numbers below 20 are prime?<|im_end|>\n<|im_start|>assistant\n",
    "Sir Walter Elliot, of Kellynch Hall, in Somersetshire, was a man who, for his own amusement, never took up any book",
];

/// One model for all tests, which take turns.
fn lab() -> MutexGuard<'static, Lab> {
    static LAB: OnceLock<Mutex<Lab>> = OnceLock::new();
    let lab = LAB.get_or_init(|| match Lab::new(&default_path(), None, 256) {
        Ok(lab) => Mutex::new(lab),
        Err(error) => panic!("{error:#}"),
    });
    lab.lock().unwrap_or_else(PoisonError::into_inner)
}

fn logits(lab: &mut Lab, tokens: &[u32]) -> Vec<Vec<f32>> {
    let logits = lab.model.forward(tokens, tokens.len(), &mut lab.cache).unwrap();
    let vocab = logits.dims()[1];
    read(logits).unwrap().chunks_exact(vocab).map(<[f32]>::to_vec).collect()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "rows of logits differ in length");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// 120 tokens of prose.
fn prose(lab: &Lab) -> Vec<u32> {
    let text = keynorm_smollm2::text::load(None).unwrap();
    keynorm_smollm2::text::window(&text, &lab.tokenizer, 0.3, 120).unwrap()
}

fn compress(lab: &mut Lab, policy: &Policy) {
    let press = lab.cache.press(std::slice::from_ref(policy)).unwrap();
    lab.cache.compress(&press).unwrap();
}

#[test]
fn the_model_is_where_fetch_model_puts_it() {
    if let Err(error) = keynorm_smollm2::gguf::Gguf::open(&default_path()) {
        panic!("{error:#}");
    }
}

#[test]
fn the_tokenizer_goes_there_and_back() {
    let lab = lab();
    for text in PROMPTS.into_iter().chain(["In 1814, 23 %  of   them\n\n\tnaïve “quotes” 東京 🙂"]) {
        assert_eq!(lab.decode(&lab.encode(text).unwrap()).unwrap(), text);
    }
    assert_eq!(lab.encode("2024").unwrap().len(), 4, "every digit is a token");
    assert_eq!(lab.encode("<|im_start|>").unwrap(), [1], "a special token is one");
}

#[test]
fn kernels_equal_burns_own_operations() {
    let lab = lab();
    let random = |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Normal(0.0, 1.0), &lab.gpu.burn);
    for is_cpu in [true, false] {
        let kernels = Kernels::new(is_cpu);
        for (m, k, n) in [(1, 64, 132), (2, 64, 128), (3, 576, 192), (5, 64, 128), (21, 100, 260)] {
            let (x, w) = (random([m, k]), random([k, n]));
            let rows = Tensor::<1, Int>::from_data([m as i32], &lab.gpu.burn);
            let got = read(kernels.linear(x.clone(), w.clone(), &rows).unwrap()).unwrap();
            let expected = read(x.matmul(w)).unwrap();
            // k products of about 1, each sum rounded k times.
            let bound = (k as f32).sqrt() * k as f32 * f32::EPSILON;
            assert!(difference(&got, &expected) < bound, "{m}x{k}x{n}, CPU {is_cpu}");
        }
        let x = random([7, 576]);
        let got = read(kernels.rms_norm(x.clone(), 1e-5).unwrap()).unwrap();
        let expected = read(x.clone() / (x.square().mean_dim(1) + 1e-5).sqrt()).unwrap();
        assert!(difference(&got, &expected) < 1e-5, "norm, CPU {is_cpu}");
    }
}

#[test]
fn logits_equal_candles_and_greedy_text_too() {
    let mut lab = lab();
    let mut sequences = Vec::new();
    let mut ours = Vec::new();
    for prompt in PROMPTS {
        let mut tokens = lab.encode(prompt).unwrap();
        lab.cache.clear().unwrap();
        let mut rows = logits(&mut lab, &tokens);
        for _ in 0..32 {
            let next = argmax(&rows[rows.len() - 1]);
            tokens.push(next);
            rows.extend(logits(&mut lab, &[next]));
        }
        sequences.push(tokens);
        ours.push(rows);
    }
    let reference = Reference::open().unwrap().logits(&sequences).unwrap();
    for (prompt, ((ours, reference), tokens)) in PROMPTS.iter().zip(ours.iter().zip(&reference).zip(&sequences)) {
        let largest = ours.iter().zip(reference).map(|(a, b)| difference(a, b)).fold(0.0, f32::max);
        println!("largest difference of a logit {largest:e}: {prompt:?}");
        assert!(largest < 1e-3, "{largest}");
        // The reference would have chosen the same 32 tokens, given those before.
        let first = tokens.len() - 32;
        for at in first..tokens.len() {
            assert_eq!(argmax(&reference[at - 1]), tokens[at], "token {at} of {prompt:?}");
        }
    }
}

#[test]
fn keep_ratio_one_changes_no_bit() {
    let mut lab = lab();
    let tokens = prose(&lab);
    for order in [Order::Fill, Order::Positional] {
        let mut runs = Vec::new();
        for compressed in [false, true] {
            lab.prefill(&tokens[..60]).unwrap();
            if compressed {
                compress(&mut lab, &Policy { order, ..Policy::kvpress(1.0) });
            }
            runs.push([logits(&mut lab, &tokens[60..61]), logits(&mut lab, &tokens[61..66])].concat());
        }
        assert!(runs[0].iter().zip(&runs[1]).all(|(a, b)| bits(a) == bits(b)), "{order:?}");
    }
}

#[test]
fn fill_and_positional_give_the_same_logits() {
    let mut lab = lab();
    let tokens = prose(&lab);
    let mut runs = Vec::new();
    let mut kept = Vec::new();
    for order in [Order::Fill, Order::Positional] {
        lab.prefill(&tokens[..100]).unwrap();
        compress(&mut lab, &Policy { order, ..Policy::paper(0.4) });
        runs.push(logits(&mut lab, &tokens[100..106]));
        let Lab { gpu, cache, .. } = &*lab;
        kept.push(pollster::block_on(cache.state().read(&gpu.device, &gpu.queue)).unwrap());
    }
    let largest = runs[0].iter().zip(&runs[1]).map(|(a, b)| difference(a, b)).fold(0.0, f32::max);
    println!("largest difference of a logit {largest:e}");
    assert!(largest < 1e-3, "{largest}");
    for (fill, positional) in kept[0].layers.iter().zip(&kept[1].layers) {
        for (fill, positional) in fill.positions.iter().zip(&positional.positions) {
            let mut sorted = fill.clone();
            sorted.sort_unstable();
            assert_eq!(&sorted, positional, "both orders keep the same tokens, positional ones in order");
        }
    }
    assert!(kept[0] != kept[1], "fill leaves another order");
}

#[test]
fn the_cache_stays_in_the_buffers_that_burn_allocated() {
    let mut lab = lab();
    let tokens = prose(&lab);
    let capacity = 4096;
    let mut cache = KvCache::new(&lab.gpu, &lab.model.config, capacity).unwrap();
    std::mem::swap(&mut cache, &mut lab.cache);
    lab.prefill(&tokens[..100]).unwrap();
    lab.gpu.sync().unwrap();
    let (places, before) = (lab.cache.current_places().unwrap(), lab.gpu.allocated_bytes());
    assert_eq!(places, lab.cache.bound_places());
    assert!(before > 0, "the device does not say what is allocated");
    for keep in [0.5, 0.3] {
        let press = lab.cache.press(&[Policy::paper(keep)]).unwrap();
        lab.cache.compress(&press).unwrap();
        lab.gpu.sync().unwrap();
        let grown = lab.gpu.allocated_bytes() - before;
        let whole = lab.cache.allocated_bytes();
        println!("cache {whole} bytes; keynorm's scratch {}, allocated since {grown}", press.workspace_bytes());
        // Scratch is below the buffers of one of the 30 layers, full as they may get; all that was allocated since, below
        // those of one and a half.
        assert!(press.workspace_bytes() < whole / 30 && grown < whole / 20, "{grown} of {whole}");
        lab.feed(&tokens[100..105]).unwrap();
        assert_eq!(lab.cache.current_places().unwrap(), places, "Burn or keynorm moved the cache");
    }
    std::mem::swap(&mut cache, &mut lab.cache);
}

#[test]
fn layers_of_different_length_and_positions_that_go_on() {
    let mut lab = lab();
    let tokens = prose(&lab);
    lab.prefill(&tokens[..64]).unwrap();
    let skip_layers = vec![0, 1, 12];
    let policy =
        Policy { sinks: 4, recent: 8, skip_layers: skip_layers.clone(), ..Policy::new(Budget::KeepTokens(24)) };
    for (fed, seen) in [(0..0, 64), (64..71, 71), (71..72, 72)] {
        if !fed.is_empty() {
            lab.feed(&tokens[fed]).unwrap();
        }
        compress(&mut lab, &policy);
        assert_eq!(lab.cache.num_seen(), seen);
        let Lab { gpu, cache, .. } = &*lab;
        let kept = pollster::block_on(cache.state().read(&gpu.device, &gpu.queue)).unwrap();
        for (layer, kept) in kept.layers.iter().enumerate() {
            let whole = skip_layers.contains(&(layer as u32));
            assert_eq!(cache.len(layer), if whole { seen } else { 24 }, "layer {layer}");
            assert_eq!(kept.num_seen, [seen]);
            for positions in &kept.positions {
                assert_eq!(positions.len() as u32, cache.len(layer), "layer {layer}: host and GPU disagree");
                let protected = (0..4).chain(seen - 8..seen).all(|p| positions.contains(&p));
                assert!(protected, "layer {layer} lost a protected token");
            }
        }
    }
}

#[test]
fn a_continuation_of_many_tokens_is_causal() {
    let mut lab = lab();
    let tokens = prose(&lab);
    let mut run = |chunks: &[&[u32]]| -> Vec<Vec<f32>> {
        lab.prefill(&tokens[..80]).unwrap();
        compress(&mut lab, &Policy::paper(0.3));
        chunks.iter().flat_map(|chunk| logits(&mut lab, chunk)).collect()
    };
    let next = &tokens[80..86];
    let at_once = run(&[next]);
    let one_by_one: Vec<&[u32]> = next.chunks(1).collect();
    let one_by_one = run(&one_by_one);
    for (ix, (a, b)) in at_once.iter().zip(&one_by_one).enumerate() {
        assert!(difference(a, b) < 1e-3, "token {ix}: {}", difference(a, b));
    }
    let mut other = next.to_vec();
    other[5] = 504;
    let other = run(&[&other]);
    assert!((0..5).all(|ix| bits(&other[ix]) == bits(&at_once[ix])), "a token sees those after it");
    assert!(other[5] != at_once[5], "the changed token has the same logits");
}

#[test]
fn every_strategy_keeps_its_budget() {
    let mut lab = lab();
    let tokens = prose(&lab);
    lab.prefill(&tokens).unwrap();
    let snapshot = lab.cache.snapshot().unwrap();
    for strategy in STRATEGIES {
        for keep in [0.9, 0.1] {
            let policy = strategy.policy(Budget::keep_ratio(keep), 120, 7, &[]);
            lab.compress_copy(&snapshot, std::slice::from_ref(&policy)).unwrap();
            let Lab { gpu, cache, .. } = &*lab;
            let kept = pollster::block_on(cache.state().read(&gpu.device, &gpu.queue)).unwrap();
            let expected = (keep * 120.0f64).round() as usize;
            let all = kept.layers.iter().flat_map(|l| &l.positions).all(|p| p.len() == expected);
            assert!(all && cache.max_len() as usize == expected, "{} at {keep}", strategy.name);
            if strategy.name == "sinks+recent" {
                let streaming: Vec<u32> = (0..4).chain(124 - expected as u32..120).collect();
                let mut first = kept.layers[5].positions[1].clone();
                first.sort_unstable();
                assert_eq!(first, streaming);
            }
        }
    }
}

/// What a layer's attention adds to the residual, and the residual.
#[derive(Default)]
struct Attended {
    layer: usize,
    added: Vec<f32>,
    residual: Vec<f32>,
}

impl Observer for Attended {
    fn layer(&mut self, layer: usize, seen: &Seen<'_>) -> anyhow::Result<()> {
        if layer == self.layer {
            let mixed = seen.weights.clone().matmul(seen.cache.view(layer).1);
            let [heads, rows, dim] = mixed.dims();
            let [count, hidden] = seen.residual.dims();
            assert_eq!(heads * rows * dim, count * hidden);
            let mixed = mixed.reshape([hidden / dim, count, dim]).swap_dims(0, 1).reshape([count, hidden]);
            self.added = read(mixed.matmul(seen.out.clone()))?;
            self.residual = read(seen.residual.clone())?;
        }
        Ok(())
    }
}

/// The loss that `calibrate` computes from whole attention is the error of a cache that was compressed.
#[test]
fn the_loss_is_the_error_of_a_compressed_layer() {
    let mut lab = lab();
    let tokens = prose(&lab);
    let (context, rest) = (&tokens[..100], &tokens[100..107]);
    let choice = LayerChoice { sinks: 4, recent: 64, recent_share: Some(0.05), ..LayerChoice::of(&Policy::paper(0.5)) };
    let lost = calibrate::losses(&mut lab, &[choice], Loss::Output, (context, rest)).unwrap();
    assert_eq!(lost.len(), lab.cache.size().0 as usize - WHOLE);
    let last = lost[0][0].lost.clone();
    assert!(last[..5].iter().all(|l| l.is_infinite()), "4 sinks and 5 recent of {last:?}");
    assert!(last[KEEP_RATIOS.len() - 1] < 1e-12, "all is kept: {last:?}");
    for (layer, ratio_ix) in [(2, 5), (14, 9), (29, 12)] {
        let mut runs = Vec::new();
        for keep_ratio in [1.0, KEEP_RATIOS[ratio_ix]] {
            lab.prefill(context).unwrap();
            let skip_layers = (0..30).filter(|&l| l != layer as u32).collect();
            compress(&mut lab, &Policy { skip_layers, ..LayerChoice { keep_ratio, ..choice }.policy() });
            let mut seen = Attended { layer, ..Attended::default() };
            let Lab { model, cache, .. } = &mut *lab;
            model.forward_observed(rest, 1, cache, Some(&mut seen)).unwrap();
            runs.push(seen);
        }
        let hidden = runs[0].added.len() / rest.len();
        let error = |query: usize| {
            let row = |x: &[f32]| x[query * hidden..][..hidden].to_vec();
            let (whole, kept, residual) = (row(&runs[0].added), row(&runs[1].added), row(&runs[0].residual));
            let squares: f64 = whole.iter().zip(&kept).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            squares / residual.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()
        };
        let expected = (0..rest.len()).map(error).sum::<f64>() / rest.len() as f64;
        let got = lost[layer - WHOLE][0].lost[ratio_ix];
        assert!(expected > 0.0 && (got / expected - 1.0).abs() < 1e-3, "layer {layer}: {got} for {expected}");
    }
    let attention = calibrate::losses(&mut lab, &[choice], Loss::Attention, (context, rest)).unwrap();
    let attention = &attention[12][0].lost;
    assert!(attention[5] > attention[9] && attention[9] > 0.0 && attention[15] == 0.0, "{attention:?}");
}

#[test]
fn a_calibration_keeps_its_share_of_every_layer() {
    let mut lab = lab();
    let tokens = prose(&lab);
    lab.prefill(&tokens).unwrap();
    let snapshot = lab.cache.snapshot().unwrap();
    let diff = LayerChoice::of(&Policy::keydiff(Budget::keep_ratio(0.1)));
    let norm = LayerChoice { sinks: 0, recent: 64, recent_share: Some(0.1), ..LayerChoice::of(&Policy::paper(0.5)) };
    let choice = |layer: usize| match layer {
        0 | 1 => norm,
        _ if layer.is_multiple_of(2) => LayerChoice { keep_ratio: 0.75, ..norm },
        _ => LayerChoice { keep_ratio: 0.25, ..diff },
    };
    let layers: Vec<_> = (0..30).map(choice).collect();
    let method = |layers: &[LayerChoice]| {
        let calibration = Calibration { layers: layers.to_vec() };
        Method::Calibrated([Calibrated { keep_ratio: 0.5, calibration }].into())
    };
    let policies = |layers: &[LayerChoice], keep_ratio| method(layers).policies(keep_ratio, 120, 0, &[0, 1], (30, 3));
    let fits = policies(&layers, 0.5).unwrap();
    assert_eq!(fits.len(), 2);
    lab.compress_copy(&snapshot, &fits).unwrap();
    let Lab { gpu, cache, .. } = &*lab;
    let kept = pollster::block_on(cache.state().read(&gpu.device, &gpu.queue)).unwrap();
    for (layer, kept) in kept.layers.iter().enumerate() {
        let expected = (120.0 * layers[layer].keep_ratio) as usize;
        assert!(kept.positions.iter().all(|p| p.len() == expected), "layer {layer}");
        assert_eq!(cache.len(layer) as usize, expected, "layer {layer}: host and GPU disagree");
    }

    let refused = |layers: &[LayerChoice], keep_ratio| policies(layers, keep_ratio).unwrap_err().to_string();
    assert!(refused(&layers, 0.4).contains("no calibration for keep ratio 0.4, but [0.5]"));
    assert!(refused(&layers[..29], 0.5).contains("29 layers"));
    let mut more = layers.clone();
    more[2].keep_ratio = 0.8;
    assert!(refused(&more, 0.5).contains("keeps 0.5"));
    more[1].keep_ratio = 0.5;
    assert!(refused(&more, 0.5).contains("compresses one of the layers [0, 1]"));
    assert!(Method::find(&["calibrated"], None).unwrap_err().to_string().contains("--calibration"));
}

#[test]
fn a_passkey_may_stand_on_a_line_of_its_own() {
    let lab = lab();
    let trial = |own_line| {
        let draw = Draw { ix: 3, count: 12, seed: 0, own_line };
        let trial = Task::Passkey.trial(&lab, "", 502, draw).unwrap();
        (lab.decode(&trial.context).unwrap(), trial)
    };
    let ((inline, a), (lines, b)) = (trial(false), trial(true));
    assert_eq!((inline.lines().count(), lines.lines().count()), (1, 4));
    assert_eq!(lines.lines().nth(2), Some(format!("The pass key is {}. Remember it.", a.expected).as_str()));
    assert_eq!((lines.replace('\n', " "), &b.expected), (inline, &a.expected));
    assert_eq!((a.context.len(), b.context.len()), (499, 502));
}
