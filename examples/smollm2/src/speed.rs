//! `speed`: decode rate and cache size by context length and keep ratio, and what compressing costs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use keynorm::Budget;
use serde::Serialize;
use serde_json::json;

use crate::cache::Snapshot;
use crate::cli::{Common, Speed, check_shares, or};
use crate::generate::strategy;
use crate::lab::{Lab, argmax};
use crate::output::{Output, about, progress};
use crate::strategy::Strategy;
use crate::text;

/// Tokens between two cuts back to the budget.
const STEP: usize = 16;

#[derive(Debug, Serialize)]
struct Row {
    context: usize,
    keep_ratio: f64,
    /// Tokens of a compressed layer, after the first compression.
    cache_tokens: u32,
    cache_bytes: u64,
    uncompressed_bytes: u64,
    prefill_s: f64,
    decoded: usize,
    tokens_per_s: f64,
    /// The first compression, the host's time from idle to idle; median of three.
    compress_ms: f64,
    /// Later ones, which cut back to the budget every 16 tokens.
    cuts: usize,
    cuts_ms: f64,
    /// The first compression's and the cuts' time over that of the decode, all included.
    share: f64,
    /// Scratch of keynorm.
    workspace_bytes: u64,
    /// All that wgpu holds on the device: weights, cache, copies for this measurement, Burn's pool.
    device_bytes: u64,
}

/// Runs the command.
///
/// # Errors
/// No model, no adapter, a context beyond the text.
pub fn run(common: &Common, args: &Speed) -> Result<()> {
    let contexts = or(&args.contexts, if common.quick { &[256] } else { &[2048, 8192] });
    let keeps = or(&args.keep, if common.quick { &[1.0, 0.5] } else { &[1.0, 0.5, 0.1] });
    let tokens = args.tokens.unwrap_or(if common.quick { 20 } else { 128 });
    ensure!(tokens > 1, "--tokens is at least 2");
    check_shares("--keep", &keeps, 0.0..=1.0)?;
    let strategy = strategy(&args.strategy)?;
    let longest = contexts.iter().copied().max().unwrap_or(0);
    let text = text::load(None)?;
    let output = Output::new(&common.output)?;
    let mut lab = Lab::new(&common.model(), common.adapter.as_deref(), longest + tokens + 1)?;
    println!("{}", lab.gpu.describe());
    let bar = progress(contexts.len() * (1 + keeps.len()), "decode rate");
    let mut rows = Vec::new();
    for &context in &contexts {
        let prompt = text::window(&text, &lab.tokenizer, 0.1, context)?;
        // Kernels are compiled in the first passes.
        lab.prefill(&prompt[..context.min(32)])?;
        lab.answer(&[1], 2, |_| true)?;
        let start = Instant::now();
        let next = argmax(&lab.prefill(&prompt)?);
        let prefill_s = start.elapsed().as_secs_f64();
        let snapshot = lab.cache.snapshot()?;
        bar.inc(1);
        for &keep in &keeps {
            let row = measure(&mut lab, &snapshot, strategy, (keep, tokens, next), common.seed)?;
            rows.push(Row { context, prefill_s, ..row });
            bar.inc(1);
        }
        lab.cache.check_places()?;
    }
    bar.finish_and_clear();
    print_rows(&rows);
    let mut result = about(&lab, "speed", json!({ "strategy": strategy.name, "tokens": tokens }));
    result["rows"] = json!(rows);
    output.write_json("speed.json", &result)
}

fn measure(
    lab: &mut Lab,
    snapshot: &Snapshot,
    strategy: &Strategy,
    (keep, tokens, mut next): (f64, usize, u32),
    seed: u64,
) -> Result<Row> {
    lab.cache.restore(snapshot)?;
    let (len, uncompressed_bytes) = (lab.cache.max_len(), lab.cache.bytes());
    let skip_layers = [0, 1];
    let policy = strategy.policy(Budget::keep_ratio(keep), len, seed, &skip_layers);
    let press = lab.cache.press(&[policy])?;
    let mut first = Vec::new();
    if keep < 1.0 {
        for _ in 0..3 {
            lab.cache.restore(snapshot)?;
            first.push(lab.cache.compress_timed(&press)?);
        }
        first.sort();
    }
    let first = first.get(1).copied().unwrap_or_default();
    let (cache_tokens, cache_bytes) = (lab.cache.min_len(), lab.cache.bytes());
    let cut = strategy.policy(Budget::KeepTokens(cache_tokens), cache_tokens, seed, &skip_layers);
    let cut = lab.cache.press(&[cut])?;
    // The kernels of this length.
    lab.feed(&[next])?;
    lab.gpu.sync()?;
    let (mut cuts, mut cutting) = (0, Duration::ZERO);
    let start = Instant::now();
    for step in 1..tokens {
        next = argmax(&lab.feed(&[next])?);
        if keep < 1.0 && step % STEP == 0 {
            cutting += lab.cache.compress_timed(&cut)?;
            cuts += 1;
        }
    }
    let elapsed = start.elapsed();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    Ok(Row {
        context: 0,
        keep_ratio: keep,
        cache_tokens,
        cache_bytes,
        uncompressed_bytes,
        prefill_s: 0.0,
        decoded: tokens - 1,
        tokens_per_s: (tokens - 1) as f64 / elapsed.as_secs_f64(),
        compress_ms: ms(first),
        cuts,
        cuts_ms: ms(cutting),
        share: (first + cutting).as_secs_f64() / (first + elapsed).as_secs_f64(),
        workspace_bytes: press.workspace_bytes() + cut.workspace_bytes(),
        device_bytes: lab.gpu.allocated_bytes(),
    })
}

fn print_rows(rows: &[Row]) {
    println!(
        "\n| context | keep | cache MiB | tokens/s | first compression ms | cuts, ms | share of decode % | prefill s | scratch KiB | device MiB |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for r in rows {
        println!(
            "| {} | {} | {:.1} of {:.1} | {:.1} | {:.3} | {}, {:.3} | {:.2} | {:.2} | {} | {:.0} |",
            r.context,
            r.keep_ratio,
            mib(r.cache_bytes),
            mib(r.uncompressed_bytes),
            r.tokens_per_s,
            r.compress_ms,
            r.cuts,
            r.cuts_ms,
            r.share * 100.0,
            r.prefill_s,
            r.workspace_bytes / 1024,
            mib(r.device_bytes),
        );
    }
}
