//! `calibrate`: fits a score, window and budget to each layer, from what queries after the compression lose.
//!
//! Prose and passkey contexts are run through the model; of the tokens that follow a context, each layer's attention to it is
//! taken. What a candidate would drop of it at each keep ratio is its loss; `keynorm::Calibration::fit` does the rest.

use anyhow::{Result, ensure};
use burn::tensor::{Tensor, TensorData};
use keynorm::diagnose::AttentionLoss;
use keynorm::reference::{CacheRow, RowTokens, score_row};
use keynorm::{Budget, Calibration, Candidate, Direction, LayerChoice, Policy, Score, TensorSpec};
use serde_json::json;

use crate::cache::{KvCache, read};
use crate::cli::{Calibrate, Common, Loss, check_shares, or};
use crate::lab::Lab;
use crate::model::{Observer, Seen};
use crate::output::{Output, about, progress};
use crate::retrieval::{Draw, Task};
use crate::strategy::Calibrated;
use crate::text;

/// Keep ratios that a layer may get.
pub const KEEP_RATIOS: [f64; 16] =
    [0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0];
/// Recent windows, as shares of a row. What a layer looks back by does not shrink with its budget.
const SHARES: [f64; 7] = [0.0, 1.0 / 64.0, 1.0 / 32.0, 1.0 / 16.0, 1.0 / 8.0, 1.0 / 4.0, 3.0 / 8.0];
/// The first layers, which are left whole, as in what is compared.
pub const WHOLE: usize = 2;
/// Queries looked at in a window.
const QUERIES: usize = 32;
/// Makes the passkeys others than those of `passkey`.
const SEED: u64 = 0x0ca1_1b8a_7e00;

fn choices() -> Vec<LayerChoice> {
    let scores = [
        (Score::KeyNorm, Direction::Lowest),
        (Score::KeyDiff, Direction::Lowest),
        (Score::ValueKeyRatio, Direction::Highest),
    ];
    let mut choices = Vec::new();
    for (score, direction) in scores {
        for sinks in [0, 4] {
            choices.extend(SHARES.iter().map(|&share| {
                let plain = LayerChoice::of(&Policy::new(Budget::keep_ratio(1.0)));
                // A row has at most 2^20 tokens: the share alone decides.
                let (recent, recent_share) = if share > 0.0 { (1 << 20, Some(share)) } else { (0, None) };
                LayerChoice { score, direction, sinks, recent, recent_share, ..plain }
            }));
        }
    }
    choices
}

/// Collects the losses of one text: [layer][choice].
struct Watch<'a> {
    choices: &'a [LayerChoice],
    loss: Loss,
    /// Tokens of the context.
    len: usize,
    lost: Vec<Vec<Candidate>>,
}

/// One KV head of a layer, as the queries saw it.
struct Head<'a> {
    dim: usize,
    /// Context and what follows.
    values: &'a [f32],
    /// Attention of each query, group by group: a row of `values.len() / dim`.
    rows: Vec<&'a [f32]>,
    order_keys: Vec<u32>,
}

impl Observer for Watch<'_> {
    fn layer(&mut self, layer: usize, seen: &Seen<'_>) -> Result<()> {
        if layer < WHOLE {
            return Ok(());
        }
        let [num_heads, rows, len] = seen.weights.dims();
        let spec = seen.cache.shape().keys;
        let dim = spec.head_dim as usize;
        let context = self.len;
        let count = len - context;
        let weights = read(seen.weights.clone())?;
        let (keys, values) = seen.cache.view(layer);
        let (keys, values) = (read(keys)?, read(values)?);
        let hidden = seen.residual.dims()[1];
        let queries: Vec<usize> = (0..QUERIES.min(count)).map(|i| i * count / QUERIES.min(count)).collect();
        let square = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let residual = read(seen.residual.clone())?;
        let residuals: Vec<f64> = queries.iter().map(|&t| square(&residual[t * hidden..][..hidden])).collect();
        let candidate = |choice: &LayerChoice| -> Result<Candidate> {
            let head = |ix: usize| -> Result<Head<'_>> {
                let tokens = |all: &'_ [f32]| -> Vec<u8> {
                    all[ix * len * dim..][..context * dim].iter().flat_map(|x| x.to_le_bytes()).collect()
                };
                let row = |g: usize, t: usize| &weights[((ix * rows / count + g) * count + t) * len..][..len];
                Ok(Head {
                    dim,
                    values: &values[ix * len * dim..][..len * dim],
                    rows: (0..rows / count).flat_map(|g| queries.iter().map(move |&t| row(g, t))).collect(),
                    order_keys: order_keys(choice, &spec, &tokens(&keys), &tokens(&values))?,
                })
            };
            let heads = (0..num_heads).map(head).collect::<Result<Vec<_>>>()?;
            let all = heads.iter().flat_map(|head| head.rows.iter().map(move |row| (head, &row[..context])));
            if self.loss == Loss::Attention {
                return attention_lost(*choice, all);
            }
            // One query tells which ratios cannot be had.
            let by_attention = attention_lost(*choice, all.take(1))?;
            let errors = output_errors(&heads, context, queries.len());
            let device = seen.residual.device();
            let errors =
                Tensor::<2>::from_data(TensorData::new(errors, [KEEP_RATIOS.len() * queries.len(), hidden]), &device);
            let errors = read(errors.matmul(seen.out.clone()))?;
            let relative = |(e, residual): (&[f32], &f64)| square(e) / residual;
            let mean = |rows: &[f32]| {
                rows.chunks_exact(hidden).zip(&residuals).map(relative).sum::<f64>() / queries.len() as f64
            };
            let mut lost: Vec<f64> = errors.chunks_exact(queries.len() * hidden).map(mean).collect();
            // What cannot be had stays infinite.
            lost.iter_mut().zip(&by_attention.lost).filter(|(_, a)| a.is_infinite()).for_each(|(l, a)| *l = *a);
            Ok(Candidate { lost, ..by_attention })
        };
        let candidates = self.choices.iter().map(candidate).collect::<Result<_>>()?;
        self.lost.push(candidates);
        Ok(())
    }
}

fn order_keys(choice: &LayerChoice, spec: &TensorSpec, keys: &[u8], values: &[u8]) -> Result<Vec<u32>> {
    let row = CacheRow::new(u32::try_from(keys.len() / spec.row_bytes() as usize)?);
    let tokens = RowTokens { keys_spec: spec, keys, values_spec: spec, values, scores: &[] };
    Ok(score_row(&choice.policy(), 0, 0, &row, &tokens)?.order_keys)
}

fn attention_lost<'a>(choice: LayerChoice, rows: impl Iterator<Item = (&'a Head<'a>, &'a [f32])>) -> Result<Candidate> {
    let losses = rows.map(|(head, row)| AttentionLoss::new(row, &head.order_keys)).collect::<Result<Vec<_>, _>>()?;
    Ok(Candidate::new(choice, &KEEP_RATIOS, &losses))
}

/// By how much the heads' outputs change where only the tokens of lowest order key are kept of the first `len`, and the
/// attention to the rest grows in proportion: [keep ratio, query, head · dim].
fn output_errors(heads: &[Head<'_>], len: usize, num_queries: usize) -> Vec<f32> {
    let group = heads[0].rows.len() / num_queries;
    let dim = heads[0].dim;
    let width = heads.len() * group * dim;
    let mut errors = vec![0.0; KEEP_RATIOS.len() * num_queries * width];
    let add =
        |sum: &mut [f32], weight: f32, value: &[f32]| sum.iter_mut().zip(value).for_each(|(s, v)| *s += weight * v);
    for (ix, head) in heads.iter().enumerate() {
        let mut slots: Vec<usize> = (0..len).collect();
        slots.sort_by_key(|&slot| (head.order_keys[slot], slot));
        let value = |slot: usize| &head.values[slot * dim..][..dim];
        for (row_ix, row) in head.rows.iter().enumerate() {
            let (g, query) = (row_ix / num_queries, row_ix % num_queries);
            // What follows the context is seen in any case.
            let (mut sum, mut weight) = (vec![0.0; dim], 0.0);
            for slot in len..row.len() {
                add(&mut sum, row[slot], value(slot));
                weight += row[slot];
            }
            let mut kept: Vec<(Vec<f32>, f32)> = Vec::new();
            let mut next = 0;
            for ratio in KEEP_RATIOS {
                let budget = (len as f64 * ratio).ceil() as usize;
                for &slot in &slots[next..budget.min(len)] {
                    add(&mut sum, row[slot], value(slot));
                    weight += row[slot];
                }
                next = budget.min(len);
                kept.push((sum.clone(), weight));
            }
            // The last ratio keeps all.
            for (ratio_ix, (partial, weight)) in kept.iter().enumerate() {
                let at = (ratio_ix * num_queries + query) * width + (ix * group + g) * dim;
                let error = errors[at..][..dim].iter_mut().zip(partial).zip(&sum);
                error.for_each(|((e, partial), whole)| *e = partial / weight.max(f32::MIN_POSITIVE) - whole);
            }
        }
    }
    errors
}

/// Adds the losses of a text, [layer][choice], times a weight.
fn add(sums: &mut Vec<Vec<Candidate>>, lost: Vec<Vec<Candidate>>, weight: f64) {
    let scaled = |c: Candidate| Candidate { lost: c.lost.iter().map(|l| l * weight).collect(), ..c };
    let lost: Vec<Vec<_>> = lost.into_iter().map(|layer| layer.into_iter().map(scaled).collect()).collect();
    if sums.is_empty() {
        *sums = lost;
        return;
    }
    for (sum, lost) in sums.iter_mut().flatten().zip(lost.iter().flatten()) {
        sum.lost.iter_mut().zip(&lost.lost).for_each(|(s, l)| *s += l);
    }
}

/// Runs a context and what follows through the model: the losses of each choice at [`KEEP_RATIOS`], by layer from
/// [`WHOLE`] on.
///
/// # Errors
/// A cache that is too small.
pub fn losses(
    lab: &mut Lab,
    choices: &[LayerChoice],
    loss: Loss,
    (context, rest): (&[u32], &[u32]),
) -> Result<Vec<Vec<Candidate>>> {
    lab.prefill(context)?;
    let mut watch = Watch { choices, loss, len: context.len(), lost: Vec::new() };
    lab.model.forward_observed(rest, 1, &mut lab.cache, Some(&mut watch))?;
    Ok(watch.lost)
}

/// A text to learn from: what is compressed, what follows, and its weight.
type Lesson = (Vec<u32>, Vec<u32>, f64);

fn offsets(common: &Common, args: &Calibrate) -> Vec<f64> {
    or(&args.offsets, if common.quick { &[0.1] } else { &[0.1, 0.55] })
}

fn lessons(common: &Common, args: &Calibrate, lab: &Lab) -> Result<Vec<Lesson>> {
    let quick = common.quick;
    let offsets = offsets(common, args);
    let (prefill, score) =
        (args.prefill.unwrap_or(if quick { 192 } else { 1024 }), args.score.unwrap_or(if quick { 64 } else { 256 }));
    let lengths = or(&args.lengths, if quick { &[192] } else { &[502, 1006] });
    let trials = args.trials.unwrap_or(if quick { 1 } else { 3 });
    ensure!(prefill > 0 && score > 0, "--prefill and --score are at least 1");
    ensure!(args.passkey_weight >= 0.0, "--passkey-weight is at least 0");
    let text = text::load(args.text.as_deref())?;
    let mut lessons = Vec::new();
    for &offset in &offsets {
        let window = text::window(&text, &lab.tokenizer, offset, prefill + score)?;
        lessons.push((window[..prefill].to_vec(), window[prefill..].to_vec(), 1.0 / offsets.len() as f64));
    }
    // A weight of 0 times what cannot be had is no number.
    let lengths = if args.passkey_weight > 0.0 { lengths } else { Vec::new() };
    for &length in &lengths {
        for ix in 0..trials {
            let draw = Draw { ix, count: trials, seed: common.seed ^ SEED, own_line: false };
            let trial = Task::Passkey.trial(lab, &text, length, draw)?;
            let answer = lab.encode(&format!(" {}", trial.expected))?;
            let weight = args.passkey_weight / (lengths.len() * trials) as f64;
            lessons.push((trial.context, [trial.question, answer].concat(), weight));
        }
    }
    Ok(lessons)
}

/// Runs the command.
///
/// # Errors
/// No model, no adapter, a text that is too short.
pub fn run(common: &Common, args: &Calibrate) -> Result<()> {
    let keeps = or(&args.keep, &[0.5, 0.25, 0.1]);
    check_shares("--keep", &keeps, KEEP_RATIOS[0]..=1.0)?;
    check_shares("--offsets", &args.offsets, 0.0..=1.0)?;
    let output = Output::new(&common.output)?;
    let mut lab = Lab::new(&common.model(), common.adapter.as_deref(), 1)?;
    println!("{}", lab.gpu.describe());
    let lessons = lessons(common, args, &lab)?;
    let longest = lessons.iter().map(|(context, rest, _)| context.len() + rest.len()).max().unwrap_or(0);
    lab.cache = KvCache::new(&lab.gpu, &lab.model.config, longest)?;
    lab.note_length(longest);
    let choices = choices();
    let bar = progress(lessons.len(), "calibrate");
    let mut lost = Vec::new();
    for (context, rest, weight) in &lessons {
        add(&mut lost, losses(&mut lab, &choices, args.loss, (context, rest))?, *weight);
        lab.cache.check_places()?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut calibrations = Vec::new();
    for keep_ratio in keeps {
        let mut calibration = Calibration::fit(&lost, &KEEP_RATIOS, keep_ratio)?;
        let whole = LayerChoice { keep_ratio: 1.0, ..choices[0] };
        calibration.layers.splice(0..0, [whole; WHOLE]);
        calibrations.push(Calibrated { keep_ratio, calibration });
    }
    print_layers(&calibrations);
    let settings = json!({
        "offsets": offsets(common, args), "seed": common.seed, "passkey_weight": args.passkey_weight,
        "loss": format!("{:?}", args.loss).to_lowercase(), "lessons": lessons.iter().map(|l| l.0.len()).collect::<Vec<_>>(),
    });
    let mut result = about(&lab, "calibrate", settings);
    result["calibrations"] = json!(calibrations);
    output.write_json("calibration.json", &result)
}

fn print_layers(calibrations: &[Calibrated]) {
    let heads: String = calibrations.iter().map(|c| format!(" keep {} |", c.keep_ratio)).collect();
    println!("\n| layer |{heads}\n| --- |{}", " --- |".repeat(calibrations.len()));
    let layers = calibrations.first().map_or(0, |c| c.calibration.layers.len());
    for layer in 0..layers {
        let cell = |c: &Calibrated| {
            let LayerChoice { score, sinks, recent_share, keep_ratio, .. } = c.calibration.layers[layer];
            if keep_ratio < 1.0 {
                format!(" {keep_ratio}: {score:?}, {sinks} sinks, recent {:.3} |", recent_share.unwrap_or(0.0))
            } else {
                " whole |".to_owned()
            }
        };
        println!("| {layer} |{}", calibrations.iter().map(cell).collect::<String>());
    }
}
