//! `generate`: continues a prompt over a compressed cache.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use keynorm::Budget;

use crate::cli::{Common, Generate};
use crate::lab::{Lab, argmax};
use crate::strategy::{STRATEGIES, Strategy};

/// Tokens above the cap at which the cache is cut back to it.
const SLACK: u32 = 16;

/// A strategy by its name.
///
/// # Errors
/// Another name; the error lists those that exist.
pub fn strategy(name: &str) -> Result<&'static Strategy> {
    let names = || STRATEGIES.iter().map(|s| s.name).collect::<Vec<_>>().join(", ");
    Strategy::find(name).with_context(|| format!("no strategy {name}; there are {}", names()))
}

/// Runs the command.
///
/// # Errors
/// No model, no adapter, a prompt that is empty or too long.
pub fn run(common: &Common, args: &Generate) -> Result<()> {
    ensure!(args.tokens > 0, "--tokens 0 writes nothing");
    let strategy = strategy(&args.strategy)?;
    let mut lab = Lab::new(&common.model(), common.adapter.as_deref(), 1)?;
    let prompt = if args.chat {
        format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", args.prompt)
    } else {
        args.prompt.clone()
    };
    let tokens = lab.encode(&prompt)?;
    lab.cache = crate::cache::KvCache::new(&lab.gpu, &lab.model.config, tokens.len() + args.tokens)?;
    eprintln!("{}, {} tokens of prompt", lab.gpu.describe(), tokens.len());

    let mut next = argmax(&lab.prefill(&tokens)?);
    let (before, bytes) = (lab.cache.min_len(), lab.cache.bytes());
    let mut compressing = Duration::ZERO;
    if args.keep_ratio < 1.0 {
        let budget = Budget::keep_ratio(args.keep_ratio);
        let policy = strategy.policy(budget, before, common.seed, &args.skip_layers);
        let press = lab.cache.press(&policy)?;
        compressing += lab.cache.compress_timed(&press)?;
    }
    let (after, bytes_after) = (lab.cache.min_len(), lab.cache.bytes());
    let cap = args.cap.map(|cap| {
        let policy = strategy.policy(Budget::KeepTokens(cap), cap + SLACK, common.seed, &args.skip_layers);
        lab.cache.press(&policy).map(|press| (cap, press))
    });
    let cap = cap.transpose()?;

    let start = Instant::now();
    let mut written = vec![next];
    let mut shown = String::new();
    let mut cuts = 0;
    loop {
        // A character may take several tokens: show what is whole.
        let text = lab.decode(&written)?;
        if let Some(new) = text.strip_prefix(shown.as_str()).filter(|new| !new.ends_with('\u{fffd}')) {
            print!("{new}");
            std::io::stdout().flush()?;
            shown = text;
        }
        if written.len() == args.tokens || next == lab.model.config.eos {
            break;
        }
        next = argmax(&lab.feed(&[next])?);
        written.push(next);
        if let Some((cap, press)) = &cap
            && lab.cache.min_len() >= cap + SLACK
        {
            compressing += lab.cache.compress_timed(press)?;
            cuts += 1;
        }
    }
    println!();
    let elapsed = start.elapsed().as_secs_f64();
    let moved = lab.cache.current_places()? != lab.cache.bound_places();
    ensure!(!moved, "Burn has moved the cache: keynorm would have compressed stale buffers");
    eprintln!(
        "cache {before} -> {after} tokens a compressed layer, {} -> {} KiB; at the end {} tokens, {} KiB, {cuts} cuts to the cap",
        bytes / 1024,
        bytes_after / 1024,
        lab.cache.min_len(),
        lab.cache.bytes() / 1024,
    );
    eprintln!(
        "{} tokens in {elapsed:.2} s, {:.1} tokens/s; {:.2} ms compressing",
        written.len() - 1,
        (written.len() - 1) as f64 / elapsed,
        compressing.as_secs_f64() * 1e3
    );
    Ok(())
}
