//! `alr`: how much attention is lost with the keys of highest norm, by layer and head (eq. 5 to 7 of the paper), and how
//! norms correlate with the attention that keys receive.

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::json;

use crate::cache::read;
use crate::cli::{Alr, Common, check_shares, or};
use crate::lab::{CHUNK, Lab};
use crate::model::{Observer, Seen};
use crate::output::{Output, about, progress};
use crate::plot::{HeatMap, Line, Titles, heat_map, lines};
use crate::text;

/// One KV head, mean over windows.
#[derive(Debug, Clone, Default, Serialize)]
struct Head {
    layer: usize,
    head: usize,
    /// Spearman's rank correlation of key norm and mean attention received.
    correlation: f64,
    alr_lowest: f64,
    /// The exact expectation of dropping at random.
    alr_random: f64,
    alr_highest: f64,
    /// Attention lost where half is dropped.
    lost_half_lowest: f64,
    lost_half_ideal: f64,
}

/// Collects one window.
struct Watch<'a> {
    heads: &'a mut Vec<Head>,
    /// Queries that are looked at start here.
    from: usize,
    windows: f64,
}

impl Observer for Watch<'_> {
    fn layer(&mut self, layer: usize, seen: &Seen<'_>) -> Result<()> {
        let Seen { weights, cache, .. } = *seen;
        let [num_heads, rows, len] = weights.dims();
        // The watched pass holds the tokens from `from` on.
        let (first, count) = (self.from, len - self.from);
        let weights = read(weights.clone())?;
        let keys = read(cache.view(layer).0)?;
        let dim = keys.len() / num_heads / len;
        let group = rows / count;
        for head in 0..num_heads {
            let norms: Vec<f64> = keys[head * len * dim..][..len * dim].chunks_exact(dim).map(norm).collect();
            let row = |g: usize, t: usize| &weights[((head * group + g) * count + t) * len..][..len];
            let mut received = vec![0.0; self.from];
            for g in 0..group {
                for t in 0..count {
                    received.iter_mut().zip(row(g, t)).for_each(|(sum, w)| *sum += f64::from(*w));
                }
            }
            let mut sums = Losses::default();
            // 16 queries, the last ones but one.
            let queries: Vec<usize> = (0..16).map(|i| count - 64 + 4 * i).collect();
            for g in 0..group {
                for &t in &queries {
                    sums.add(&row(g, t)[..first + t], &norms);
                }
            }
            let n = (group * queries.len()) as f64;
            let entry = &mut self.heads[layer * num_heads + head];
            (entry.layer, entry.head) = (layer, head);
            let add = |to: &mut f64, value: f64| *to += value / self.windows;
            add(&mut entry.correlation, spearman(&norms[..self.from], &received));
            add(&mut entry.alr_lowest, (sums.lowest - sums.ideal) / n);
            add(&mut entry.alr_random, (sums.random - sums.ideal) / n);
            add(&mut entry.alr_highest, (sums.highest - sums.ideal) / n);
            add(&mut entry.lost_half_lowest, sums.half_lowest / n);
            add(&mut entry.lost_half_ideal, sums.half_ideal / n);
        }
        Ok(())
    }
}

fn norm(key: &[f32]) -> f64 {
    key.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// Sums over queries of the attention lost, itself summed over the number of dropped keys.
#[derive(Debug, Default)]
struct Losses {
    lowest: f64,
    random: f64,
    highest: f64,
    ideal: f64,
    half_lowest: f64,
    half_ideal: f64,
}

impl Losses {
    /// One query: `weights` of all earlier keys.
    fn add(&mut self, weights: &[f32], norms: &[f64]) {
        let n = weights.len();
        let weight = |ix: usize| f64::from(weights[ix]);
        let mut by_norm: Vec<usize> = (0..n).collect();
        by_norm.sort_by(|&a, &b| norms[a].total_cmp(&norms[b]));
        let mut by_weight: Vec<usize> = (0..n).collect();
        by_weight.sort_by(|&a, &b| weights[a].total_cmp(&weights[b]));
        // Dropping in this order: the sum over m of what the first m weigh.
        let total = |order: &mut dyn Iterator<Item = usize>| -> (f64, f64) {
            let (mut lost, mut sum, mut half) = (0.0, 0.0, 0.0);
            for (m, ix) in order.enumerate() {
                lost += weight(ix);
                sum += lost;
                if m + 1 == n / 2 {
                    half = lost;
                }
            }
            (sum, half)
        };
        // Keep-lowest drops the highest first.
        let (lowest, half_lowest) = total(&mut by_norm.iter().rev().copied());
        let (highest, _) = total(&mut by_norm.iter().copied());
        let (ideal, half_ideal) = total(&mut by_weight.iter().copied());
        let mass: f64 = (0..n).map(weight).sum();
        self.lowest += lowest;
        self.highest += highest;
        self.ideal += ideal;
        self.random += mass * (n + 1) as f64 / 2.0;
        self.half_lowest += half_lowest;
        self.half_ideal += half_ideal;
    }
}

/// Spearman's rank correlation; equals share their mean rank.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() + 1) as f64 / 2.0;
    let product = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| (x - mean) * (y - mean)).sum() };
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    for run in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let first = order.partition_point(|&ix| values[ix] < values[run[0]]);
        run.iter().for_each(|&ix| ranks[ix] = first as f64 + (run.len() + 1) as f64 / 2.0);
    }
    ranks
}

/// Runs the command.
///
/// # Errors
/// No model, no adapter, a text that is too short.
pub fn run(common: &Common, args: &Alr) -> Result<()> {
    let offsets = or(&args.offsets, if common.quick { &[0.1] } else { &[0.1, 0.55] });
    check_shares("--offsets", &offsets, 0.0..=1.0)?;
    let tokens = args.tokens.unwrap_or(if common.quick { 256 } else { 2 * CHUNK });
    let half = tokens / 2;
    ensure!((64..=CHUNK).contains(&half), "--tokens is from 128 to {}", 2 * CHUNK);
    let text = text::load(args.text.as_deref())?;
    let output = Output::new(&common.output)?;
    let mut lab = Lab::new(&common.model(), common.adapter.as_deref(), tokens)?;
    lab.note_length(tokens);
    println!("{}", lab.gpu.describe());
    let (num_layers, num_heads) = (lab.model.config.num_layers, lab.model.config.num_kv_heads);
    let mut heads = vec![Head::default(); num_layers * num_heads];
    let bar = progress(2 * offsets.len(), "attention");
    for &offset in &offsets {
        let window = text::window(&text, &lab.tokenizer, offset, 2 * half)?;
        lab.prefill(&window[..half])?;
        bar.inc(1);
        let mut watch = Watch { heads: &mut heads, from: half, windows: offsets.len() as f64 };
        lab.model.forward_observed(&window[half..], 1, &mut lab.cache, Some(&mut watch))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let layers: Vec<Head> = heads.chunks_exact(num_heads).map(mean).collect();
    let suggested = print_layers(&layers);
    let mut result = about(&lab, "alr", json!({ "offsets": offsets, "tokens": 2 * half }));
    result["heads"] = json!(heads);
    result["layers"] = json!(layers);
    result["suggested_skip_layers"] = json!(suggested);
    let (map, curve) = plots(&heads, &layers, num_heads).context("plots")?;
    output.write_json("alr.json", &result)?;
    output.write("alr.svg", &map)?;
    output.write("correlation.svg", &curve).map(drop)
}

fn mean(heads: &[Head]) -> Head {
    let mean = |f: fn(&Head) -> f64| heads.iter().map(f).sum::<f64>() / heads.len() as f64;
    Head {
        layer: heads[0].layer,
        head: 0,
        correlation: mean(|h| h.correlation),
        alr_lowest: mean(|h| h.alr_lowest),
        alr_random: mean(|h| h.alr_random),
        alr_highest: mean(|h| h.alr_highest),
        lost_half_lowest: mean(|h| h.lost_half_lowest),
        lost_half_ideal: mean(|h| h.lost_half_ideal),
    }
}

/// Prints a row a layer and returns the layers where the lowest norm is hardly better than chance.
fn print_layers(layers: &[Head]) -> Vec<usize> {
    println!("\n| layer | correlation | ALR lowest | random | highest | lost at 50 % | ideal |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let row = |name: String, h: &Head| {
        println!(
            "| {name} | {:+.2} | {:.0} | {:.0} | {:.0} | {:.3} | {:.3} |",
            h.correlation, h.alr_lowest, h.alr_random, h.alr_highest, h.lost_half_lowest, h.lost_half_ideal
        );
    };
    layers.iter().for_each(|h| row(h.layer.to_string(), h));
    row("mean".to_owned(), &mean(layers));
    let suggested: Vec<usize> = layers.iter().filter(|h| h.alr_lowest > 0.8 * h.alr_random).map(|h| h.layer).collect();
    println!("\nLayers to leave whole, where the lowest norm loses over 80 % of what chance loses: {suggested:?}");
    suggested
}

fn plots(heads: &[Head], layers: &[Head], num_heads: usize) -> Result<(String, String)> {
    let cells = heads.chunks_exact(num_heads).map(|l| l.iter().map(|h| Some(h.alr_lowest)).collect()).collect();
    let highest = heads.iter().map(|h| h.alr_lowest).fold(0.0, f64::max);
    let map = HeatMap {
        columns: (0..num_heads).map(|h| format!("head {h}")).collect(),
        rows: layers.iter().map(|l| format!("layer {}", l.layer)).collect(),
        cells,
        scale: (0.0, highest),
        digits: 0,
    };
    let title = "Attention loss (ALR) of keeping the lowest norms";
    let map = heat_map(Titles { title, x: "low is good", y: "layer" }, &map)?;
    let line = |name: &str, f: fn(&Head) -> f64| Line {
        name: name.to_owned(),
        points: layers.iter().map(|h| (h.layer as f64, f(h))).collect(),
        thin: false,
    };
    let titles = Titles { title: "Key norm and attention received", x: "layer", y: "Spearman's correlation" };
    Ok((map, lines(titles, &[line("mean over KV heads", |h| h.correlation)])?))
}
