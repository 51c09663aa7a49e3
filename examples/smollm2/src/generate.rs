//! `generate`: continues a prompt over a compressed cache.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use keynorm::Budget;

use crate::cache::{KvCache, Press};
use crate::cli::{Common, Generate, check_shares};
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

/// A cut back to a number of tokens.
struct Cap {
    tokens: u32,
    press: Press,
}

/// What the compressions took.
#[derive(Debug, Default)]
struct Spent {
    compressing: Duration,
    cuts: usize,
    scratch: u64,
}

/// Runs the command.
///
/// # Errors
/// No model, no adapter, a prompt that is empty or too long.
pub fn run(common: &Common, args: &Generate) -> Result<()> {
    ensure!(args.tokens > 0, "--tokens 0 writes nothing");
    check_shares("--keep-ratio", &[args.keep_ratio], 0.0..=1.0)?;
    let strategy = strategy(&args.strategy)?;
    let mut lab = Lab::new(&common.model(), common.adapter.as_deref(), 1)?;
    let prompt = if args.chat {
        format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", args.prompt)
    } else {
        args.prompt.clone()
    };
    let tokens = lab.encode(&prompt)?;
    let context = lab.model.config.context;
    ensure!(
        tokens.len() + args.tokens <= context,
        "{} tokens of prompt and {} more: the model has {context}",
        tokens.len(),
        args.tokens
    );
    if let Some(cap) = args.cap {
        ensure!((1..=context).contains(&(cap as usize)), "--cap is from 1 to the model's {context} tokens, not {cap}");
    }
    lab.cache = KvCache::new(&lab.gpu, &lab.model.config, tokens.len() + args.tokens)?;
    eprintln!("{}, {} tokens of prompt", lab.gpu.describe(), tokens.len());

    let first = argmax(&lab.prefill(&tokens)?);
    let (before, bytes) = (lab.cache.min_len(), lab.cache.bytes());
    let mut spent = Spent::default();
    let policy = |budget, len| strategy.policy(budget, len, common.seed, &args.skip_layers.0);
    if args.keep_ratio < 1.0 {
        let press = lab.cache.press(&[policy(Budget::keep_ratio(args.keep_ratio), before)])?;
        spent.compressing += lab.cache.compress_timed(&press)?;
        spent.scratch += press.workspace_bytes();
    }
    let (after, bytes_after) = (lab.cache.min_len(), lab.cache.bytes());
    let cap = args.cap.map(|tokens| {
        let press = lab.cache.press(&[policy(Budget::KeepTokens(tokens), tokens + SLACK)])?;
        spent.scratch += press.workspace_bytes();
        Ok::<_, anyhow::Error>(Cap { tokens, press })
    });
    let start = Instant::now();
    let written = write(&mut lab, args.tokens, first, cap.transpose()?.as_ref(), &mut spent)?;
    let elapsed = start.elapsed().as_secs_f64();

    lab.cache.check_places()?;
    eprintln!(
        "cache {before} -> {after} tokens a compressed layer, {} -> {} KiB; at the end {} tokens, {} KiB, {} cuts to the cap",
        bytes / 1024,
        bytes_after / 1024,
        lab.cache.min_len(),
        lab.cache.bytes() / 1024,
        spent.cuts,
    );
    eprintln!(
        "{} tokens in {elapsed:.2} s, {:.1} tokens/s; {:.2} ms compressing",
        written - 1,
        (written - 1) as f64 / elapsed,
        spent.compressing.as_secs_f64() * 1e3
    );
    eprintln!(
        "GPU memory {} MiB, of which the cache's buffers {} MiB, where Burn allocated them, and keynorm's scratch {} KiB",
        lab.gpu.allocated_bytes() >> 20,
        lab.cache.allocated_bytes() >> 20,
        spent.scratch / 1024,
    );
    Ok(())
}

/// Streams at most `count` tokens of text, of which `next` is the first; their number.
fn write(lab: &mut Lab, count: usize, mut next: u32, cap: Option<&Cap>, spent: &mut Spent) -> Result<usize> {
    let mut written = vec![next];
    let mut shown = String::new();
    loop {
        // A character may take several tokens: show what is whole.
        let text = lab.decode(&written)?;
        if let Some(new) = text.strip_prefix(shown.as_str()).filter(|new| !new.ends_with('\u{fffd}')) {
            print!("{new}");
            std::io::stdout().flush()?;
            shown = text;
        }
        if written.len() == count || next == lab.model.config.eos {
            println!();
            return Ok(written.len());
        }
        next = argmax(&lab.feed(&[next])?);
        written.push(next);
        if let Some(cap) = cap.filter(|cap| lab.cache.min_len() >= cap.tokens + SLACK) {
            spent.compressing += lab.cache.compress_timed(&cap.press)?;
            spent.cuts += 1;
        }
    }
}
