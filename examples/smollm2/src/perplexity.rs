//! `perplexity`: how much worse text is predicted over a compressed cache.

use anyhow::{Context as _, Result, ensure};
use indicatif::ProgressBar;
use keynorm::Budget;
use serde::Serialize;
use serde_json::json;

use crate::cli::{Common, Perplexity, Protocol, Skip, check_shares, or};
use crate::generate::strategy;
use crate::lab::{CHUNK, Lab, Score};
use crate::output::{Output, about, progress};
use crate::plot::{Line, Titles, lines};
use crate::strategy::{Method, STRATEGIES, Strategy};
use crate::text;

/// Tokens between two cuts of a stream.
const STEP: usize = 16;

/// Everything that was asked for, with the defaults filled in.
#[derive(Debug, Serialize)]
struct Settings {
    offsets: Vec<f64>,
    stream_offset: f64,
    keep: Vec<f64>,
    budgets: Vec<u32>,
    #[serde(skip)]
    strategies: Vec<Method>,
    skip: Vec<Vec<u32>>,
    prefill: usize,
    score: usize,
    length: usize,
    seeds: u64,
    first_seed: u64,
}

/// One way to compress, over all windows.
#[derive(Debug, Clone, Serialize)]
struct Row {
    strategy: &'static str,
    keep_ratio: f64,
    skip_layers: Vec<u32>,
    seed: Option<u64>,
    perplexity: f64,
    /// Of the first 64 tokens after the compression.
    perplexity_first: f64,
    top1: f64,
    tokens: usize,
    /// Of each window.
    windows: Vec<f64>,
}

/// One stream.
#[derive(Debug, Clone, Serialize)]
struct Stream {
    strategy: &'static str,
    budget: u32,
    skip_layers: Vec<u32>,
    seed: Option<u64>,
    /// Over all tokens, as the paper counts.
    perplexity: f64,
    /// Over the tokens after the first `budget`.
    perplexity_after: f64,
    /// (tokens so far, mean NLL so far), every [`STEP`] · 4 tokens.
    curve: Vec<(usize, f64)>,
    #[serde(skip)]
    nll: Vec<f64>,
}

fn settings(common: &Common, args: &Perplexity) -> Result<Settings> {
    let quick = common.quick;
    let default: Vec<&str> = if quick {
        vec!["lowest", "sinks+recent", "random", "highest"]
    } else {
        STRATEGIES.iter().map(|s| s.name).collect()
    };
    let names = or(&args.strategies, &default.into_iter().map(str::to_owned).collect::<Vec<_>>());
    let strategies = Method::find(&names, args.calibration.as_deref())?;
    let is_fixed = strategies.iter().all(|s| matches!(s, Method::Uniform(_)));
    ensure!(is_fixed || args.protocol == Protocol::Prefill, "a calibration is for --protocol prefill");
    let skip = args.skip.unwrap_or(if quick { Skip::Two } else { Skip::Both });
    let settings = Settings {
        offsets: or(&args.offsets, if quick { &[0.3] } else { &[0.3, 0.7] }),
        stream_offset: args.offsets.first().copied().unwrap_or(0.4),
        keep: or(&args.keep, if quick { &[0.5] } else { &[0.9, 0.75, 0.5, 0.25, 0.1] }),
        budgets: or(&args.budgets, if quick { &[96] } else { &[512, 1024] }),
        strategies,
        skip: skip.sets(),
        prefill: args.prefill.unwrap_or(if quick { 192 } else { 1024 }),
        score: args.score.unwrap_or(if quick { 64 } else { 256 }),
        length: args.length.unwrap_or(if quick { 160 } else { 2048 }),
        seeds: args.seeds.unwrap_or(if quick { 1 } else { 3 }),
        first_seed: common.seed,
    };
    ensure!(settings.prefill > 0 && settings.score > 0, "--prefill and --score are at least 1");
    ensure!(settings.seeds > 0, "--seeds is at least 1");
    check_shares("--keep", &settings.keep, 0.0..=1.0)?;
    check_shares("--offsets", &settings.offsets, 0.0..=1.0)?;
    if args.protocol != Protocol::Prefill {
        let length = settings.length;
        for &budget in &settings.budgets {
            let fits = budget > 0 && (budget as usize) < length;
            ensure!(fits, "--budgets is above 0 and below --length, which is {length}, not {budget}");
        }
    }
    Ok(settings)
}

impl Settings {
    /// The seeds that a strategy is tried with.
    fn seeds(&self, strategy: &Method) -> Vec<Option<u64>> {
        if strategy.is_random() { (0..self.seeds).map(|s| Some(self.first_seed + s)).collect() } else { vec![None] }
    }

    fn cases(&self) -> Vec<(&Method, Vec<u32>, Option<u64>)> {
        let mut cases = Vec::new();
        for skip in &self.skip {
            for strategy in &self.strategies {
                cases.extend(self.seeds(strategy).into_iter().map(|seed| (strategy, skip.clone(), seed)));
            }
        }
        cases
    }
}

/// Runs the command.
///
/// # Errors
/// No model, no adapter, a text that is too short.
pub fn run(common: &Common, args: &Perplexity) -> Result<()> {
    let settings = settings(common, args)?;
    let text = text::load(args.text.as_deref())?;
    let output = Output::new(&common.output)?;
    let capacity = (settings.prefill + settings.score).max(settings.length);
    let mut lab = Lab::new(&common.model(), common.adapter.as_deref(), capacity)?;
    lab.note_length(capacity);
    println!("{}", lab.gpu.describe());
    let names: Vec<_> = settings.strategies.iter().map(Method::name).collect();
    let mut result = about(&lab, "perplexity", json!({ "strategies": names, "options": settings }));
    let mut plots = Vec::new();
    if args.protocol != Protocol::Stream {
        let rows = after_prefill(&mut lab, &settings, &text)?;
        plots.extend(plot_rows(&rows, &settings)?);
        result["after_prefill"] = json!(rows);
    }
    if args.protocol != Protocol::Prefill {
        let streams = streams(&mut lab, &settings, &text)?;
        plots.extend(plot_streams(&streams, &settings)?);
        result["stream"] = json!(streams);
    }
    output.write_json("perplexity.json", &result)?;
    plots.into_iter().try_for_each(|(name, svg)| output.write(&name, &svg).map(drop))
}

/// (a): prefill, compress once, score what follows.
fn after_prefill(lab: &mut Lab, settings: &Settings, text: &str) -> Result<Vec<Row>> {
    let cases = settings.cases();
    let bar = progress(settings.offsets.len() * (2 + cases.len() * settings.keep.len()), "perplexity after a prefill");
    let mut scores: Vec<Vec<Score>> = vec![Vec::new(); 1 + cases.len() * settings.keep.len()];
    for &offset in &settings.offsets {
        let tokens = text::window(text, &lab.tokenizer, offset, settings.prefill + settings.score + 1)?;
        let (context, rest) = tokens.split_at(settings.prefill);
        let (inputs, targets) = (&rest[..settings.score], &rest[1..]);
        lab.prefill(context)?;
        bar.inc(1);
        let snapshot = lab.cache.snapshot()?;
        scores[0].push(lab.score(inputs, targets)?);
        bar.inc(1);
        let mut at = 1;
        for (strategy, skip, seed) in &cases {
            for &keep in &settings.keep {
                let len = u32::try_from(context.len())?;
                let policies = strategy.policies(keep, len, seed.unwrap_or(0), skip, lab.cache.size())?;
                lab.compress_copy(&snapshot, &policies)?;
                scores[at].push(lab.score(inputs, targets)?);
                at += 1;
                bar.inc(1);
            }
        }
        lab.cache.check_places()?;
    }
    bar.finish_and_clear();
    let row = |strategy, keep_ratio, skip_layers: &[u32], seed, scores: &[Score]| {
        let (mut all, mut first) = (Score::default(), Score::default());
        for score in scores {
            all.extend(score);
            first.nll.extend(score.nll.iter().take(64));
        }
        Row {
            strategy,
            keep_ratio,
            skip_layers: skip_layers.to_vec(),
            seed,
            perplexity: all.perplexity(),
            perplexity_first: first.perplexity(),
            top1: all.hits as f64 / all.nll.len() as f64,
            tokens: all.nll.len(),
            windows: scores.iter().map(Score::perplexity).collect(),
        }
    };
    let mut rows = vec![row("uncompressed", 1.0, &[], None, &scores[0])];
    let mut scores = scores[1..].iter();
    for (strategy, skip, seed) in &cases {
        for &keep in &settings.keep {
            rows.push(row(strategy.name(), keep, skip, *seed, scores.next().context("a score for each case")?));
        }
    }
    print_rows(&rows);
    Ok(rows)
}

fn print_rows(rows: &[Row]) {
    println!("\n| strategy | whole layers | keep | perplexity | first 64 | top-1 % | windows |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for row in rows {
        let seed = row.seed.map_or(String::new(), |s| format!(", seed {s}"));
        let windows: Vec<_> = row.windows.iter().map(|w| format!("{w:.2}")).collect();
        let Row { strategy, skip_layers, keep_ratio, perplexity, perplexity_first, top1, .. } = row;
        let top1 = top1 * 100.0;
        let windows = windows.join(", ");
        println!(
            "| {strategy}{seed} | {skip_layers:?} | {keep_ratio} | {perplexity:.2} | {perplexity_first:.2} | {top1:.1} | {windows} |"
        );
    }
}

/// (b): the cache cut back to a budget while decoding.
fn streams(lab: &mut Lab, settings: &Settings, text: &str) -> Result<Vec<Stream>> {
    let cases = settings.cases();
    let tokens = text::window(text, &lab.tokenizer, settings.stream_offset, settings.length + 1)?;
    let bar = progress(1 + cases.len() * settings.budgets.len(), "perplexity under a cap");
    let whole = u32::try_from(settings.length)?;
    let full = stream(lab, &tokens, strategy("lowest")?, whole, (None, &[]), &bar)?;
    let mut streams = Vec::new();
    for &budget in &settings.budgets {
        let perplexity_after = perplexity(&full.nll[budget as usize..]);
        streams.push(Stream { strategy: "uncompressed", budget, perplexity_after, ..full.clone() });
        for (strategy, skip, seed) in &cases {
            let Method::Uniform(strategy) = strategy else { continue };
            streams.push(stream(lab, &tokens, strategy, budget, (*seed, skip), &bar)?);
        }
    }
    bar.finish_and_clear();
    println!(
        "\n| strategy | whole layers | budget | perplexity of all | after the budget |\n| --- | --- | --- | --- | --- |"
    );
    for s in &streams {
        let seed = s.seed.map_or(String::new(), |s| format!(", seed {s}"));
        let Stream { strategy, skip_layers, budget, perplexity, perplexity_after, .. } = s;
        println!("| {strategy}{seed} | {skip_layers:?} | {budget} | {perplexity:.2} | {perplexity_after:.2} |");
    }
    Ok(streams)
}

fn stream(
    lab: &mut Lab,
    tokens: &[u32],
    strategy: &'static Strategy,
    budget: u32,
    (seed, skip): (Option<u64>, &[u32]),
    bar: &ProgressBar,
) -> Result<Stream> {
    let (inputs, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    let head = (budget as usize).min(inputs.len());
    lab.cache.clear()?;
    let mut score = Score::default();
    for (inputs, targets) in inputs[..head].chunks(CHUNK).zip(targets[..head].chunks(CHUNK)) {
        score.extend(&lab.score(inputs, targets)?);
    }
    let policy = strategy.policy(Budget::KeepTokens(budget), budget + STEP as u32, seed.unwrap_or(0), skip);
    let press = lab.cache.press(&[policy])?;
    for (inputs, targets) in inputs[head..].chunks(STEP).zip(targets[head..].chunks(STEP)) {
        score.extend(&lab.score(inputs, targets)?);
        lab.cache.compress(&press)?;
    }
    lab.cache.check_places()?;
    bar.inc(1);
    let mut sum = 0.0;
    let sums = score.nll.iter().enumerate().map(|(ix, nll)| {
        sum += nll;
        (ix + 1, sum / (ix + 1) as f64)
    });
    let curve = sums.filter(|(count, _)| count % (STEP * 4) == 0).collect();
    Ok(Stream {
        strategy: strategy.name,
        budget,
        skip_layers: skip.to_vec(),
        seed,
        perplexity: score.perplexity(),
        perplexity_after: perplexity(&score.nll[head..]),
        curve,
        nll: score.nll,
    })
}

fn perplexity(nll: &[f64]) -> f64 {
    (nll.iter().sum::<f64>() / nll.len() as f64).exp()
}

fn suffix(skip: &[u32]) -> &'static str {
    if skip.is_empty() { "all layers compressed" } else { "layers 0 and 1 whole" }
}

fn plot_rows(rows: &[Row], settings: &Settings) -> Result<Vec<(String, String)>> {
    let full = rows[0].perplexity.ln();
    let mut plots = Vec::new();
    for skip in &settings.skip {
        let mut drawn = Vec::new();
        for strategy in &settings.strategies {
            let mut points = vec![(0.0, full)];
            for &keep in &settings.keep {
                let fits = |r: &&Row| r.strategy == strategy.name() && r.skip_layers == *skip && r.keep_ratio == keep;
                let values: Vec<f64> = rows.iter().filter(fits).map(|r| r.perplexity.ln()).collect();
                points.push(((1.0 - keep) * 100.0, values.iter().sum::<f64>() / values.len() as f64));
            }
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            drawn.push(Line { name: strategy.name().to_owned(), points, thin: strategy.is_control() });
        }
        let title = format!("Log perplexity after one compression, {}", suffix(skip));
        let titles = Titles { title: &title, x: "% of the cache dropped", y: "log perplexity" };
        let name = if skip.is_empty() { "perplexity-all-layers.svg" } else { "perplexity.svg" };
        plots.push((name.to_owned(), lines(titles, &drawn)?));
    }
    Ok(plots)
}

fn plot_streams(streams: &[Stream], settings: &Settings) -> Result<Vec<(String, String)>> {
    let mut plots = Vec::new();
    for budget in &settings.budgets {
        for skip in &settings.skip {
            let fits = |s: &&Stream| {
                let whole = s.strategy == "uncompressed";
                let fits = whole || s.skip_layers == *skip && s.seed.is_none_or(|s| s == settings.first_seed);
                s.budget == *budget && fits
            };
            let curve = |s: &Stream| s.curve.iter().map(|&(n, nll)| (n as f64, nll)).collect();
            let thin = |s: &Stream| Strategy::find(s.strategy).is_none_or(Strategy::is_control);
            let line = |s: &Stream| Line { name: s.strategy.to_owned(), points: curve(s), thin: thin(s) };
            let drawn: Vec<_> = streams.iter().filter(fits).map(line).collect();
            let title = format!("Cumulative log perplexity, at most {budget} tokens a layer, {}", suffix(skip));
            let titles = Titles { title: &title, x: "tokens", y: "log perplexity" };
            let name = format!("stream-{budget}{}.svg", if skip.is_empty() { "-all-layers" } else { "" });
            plots.push((name, lines(titles, &drawn)?));
        }
    }
    Ok(plots)
}
