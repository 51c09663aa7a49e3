//! `passkey` and `needle`: something hidden in a long context, asked for after the context was compressed.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::json;

use crate::cli::{Common, Retrieval, Skip, check_shares, or};
use crate::lab::Lab;
use crate::output::{Output, about, progress};
use crate::plot::{HeatMap, Titles, heat_map};
use crate::strategy::Method;
use crate::text;

/// What is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Five digits in repeated filler; right if the answer begins with them.
    Passkey,
    /// A sentence in a novel; the score is the share of its content words that the answer has.
    Needle,
}

/// One context with its question.
#[derive(Debug)]
pub struct Trial {
    /// What is compressed.
    pub context: Vec<u32>,
    /// What is fed then.
    pub question: Vec<u32>,
    /// The answer.
    pub expected: String,
    /// Where the hidden sentence stands, 0 to 1.
    pub depth: f64,
}

/// Which of the trials, and how it is written.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// Its number.
    pub ix: usize,
    /// Of as many: the depths of all cover the context evenly.
    pub count: usize,
    /// Decides the passkey and the place.
    pub seed: u64,
    /// Whether the passkey stands on a line of its own, as in Mohtashami and Jaggi's prompt, or within the text.
    pub own_line: bool,
}

/// One answer.
#[derive(Debug, Clone, Serialize)]
struct Answer {
    strategy: &'static str,
    keep_ratio: f64,
    skip_layers: Vec<u32>,
    length: usize,
    trial: usize,
    depth: f64,
    context_tokens: usize,
    expected: String,
    answer: String,
    score: f64,
}

const TASK: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will \
    quiz you about the important information there.";
const FILLER: &str = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
const NEEDLE: &str = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.";
const NEEDLE_QUESTION: &str = "\nQuestion: What is the best thing to do in San Francisco?\nAnswer: The best thing to do in \
    San Francisco is";
const NEEDLE_ANSWER: &str = "eat a sandwich and sit in Dolores Park on a sunny day";
/// Words that any sentence has.
const STOP_WORDS: [&str; 12] = ["a", "an", "and", "at", "in", "is", "it", "of", "on", "or", "the", "to"];

/// Strategies that are tried where none are named.
const DEFAULT: [&str; 5] = ["lowest", "lowest+sinks+recent", "sinks+recent", "keydiff+sinks+recent", "random"];

/// A splitmix64 step.
const fn random(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Task {
    const fn name(self) -> &'static str {
        match self {
            Self::Passkey => "passkey",
            Self::Needle => "needle",
        }
    }

    const fn answer_tokens(self) -> usize {
        match self {
            // A space and five digits.
            Self::Passkey => 6,
            Self::Needle => 20,
        }
    }

    /// Whether an answer that is not finished may still be right.
    fn may_be(self, answer: &str, expected: &str) -> bool {
        match self {
            Self::Passkey => expected.starts_with(answer.trim_start()),
            // The first line counts.
            Self::Needle => !answer.trim_start().contains('\n'),
        }
    }

    fn score(self, answer: &str, expected: &str) -> f64 {
        match self {
            Self::Passkey => f64::from(u8::from(answer.trim_start().starts_with(expected))),
            Self::Needle => {
                let words = |text: &str| -> BTreeSet<String> {
                    let text = text.trim_start().lines().next().unwrap_or_default().to_lowercase();
                    let words = text.split(|c: char| !c.is_alphanumeric());
                    words.filter(|w| !w.is_empty() && !STOP_WORDS.contains(w)).map(str::to_owned).collect()
                };
                let expected = words(expected);
                words(answer).intersection(&expected).count() as f64 / expected.len() as f64
            }
        }
    }

    /// One of the trials.
    ///
    /// # Errors
    /// What the tokenizer says; a text that is too short.
    pub fn trial(self, lab: &Lab, text: &str, length: usize, draw: Draw) -> Result<Trial> {
        let Draw { ix, count, seed, own_line } = draw;
        let dice = random(seed ^ random(length as u64) ^ random(ix as u64 + 1));
        let depth = (ix as f64 + (dice % 1024) as f64 / 1024.0) / count as f64;
        let at = |pieces: usize| ((pieces + 1) as f64 * depth) as usize;
        match self {
            Self::Passkey => {
                let key = 10_000 + random(dice) % 90_000;
                let sentence = format!("The pass key is {key}. Remember it.");
                let fixed = lab.encode(&format!("{TASK} {sentence}"))?.len();
                let fillers = length.saturating_sub(fixed) / lab.encode(&format!(" {FILLER}"))?.len();
                let (before, after) =
                    (vec![FILLER; at(fillers)].join(" "), vec![FILLER; fillers - at(fillers)].join(" "));
                let parts = [TASK, &before, &sentence, &after];
                let parts: Vec<_> = parts.into_iter().filter(|p| !p.is_empty()).collect();
                Ok(Trial {
                    context: lab.encode(&parts.join(if own_line { "\n" } else { " " }))?,
                    question: lab.encode("\nWhat is the pass key? The pass key is")?,
                    expected: key.to_string(),
                    depth,
                })
            }
            Self::Needle => {
                let sentence = lab.encode(&format!(" {NEEDLE}"))?;
                let offset = (random(dice) % 800) as f64 / 1000.0;
                let room = length.saturating_sub(sentence.len()).max(1);
                let hay = text::window(text, &lab.tokenizer, offset, room)?;
                // Behind the end of a sentence.
                let stop = lab.encode(".")?[0];
                let wanted = at(room).min(room);
                let place = (0..wanted).rev().find(|&i| hay[i] == stop).map_or(0, |i| i + 1);
                let context = [&hay[..place], &sentence, &hay[place..]].concat();
                let question = lab.encode(NEEDLE_QUESTION)?;
                Ok(Trial { context, question, expected: NEEDLE_ANSWER.to_owned(), depth })
            }
        }
    }
}

struct Case {
    strategy: Method,
    keep: f64,
    skip: Vec<u32>,
}

fn cases(common: &Common, args: &Retrieval) -> Result<Vec<Case>> {
    let quick = common.quick;
    let keeps = or(&args.keep, if quick { &[0.5] } else { &[0.5, 0.25, 0.1] });
    check_shares("--keep", &keeps, 0.0..=1.0)?;
    let default = if quick { &["lowest", "random"][..] } else { &DEFAULT };
    let names = or(&args.strategies, &default.iter().map(ToString::to_string).collect::<Vec<_>>());
    let strategies = Method::find(&names, args.calibration.as_deref())?;
    let skips = args.skip.unwrap_or(Skip::Two).sets();
    let mut cases = Vec::new();
    for skip in &skips {
        for strategy in &strategies {
            cases.extend(keeps.iter().map(|&keep| Case { strategy: strategy.clone(), keep, skip: skip.clone() }));
        }
    }
    Ok(cases)
}

/// Runs one of the commands.
///
/// # Errors
/// No model, no adapter.
pub fn run(common: &Common, args: &Retrieval, task: Task) -> Result<()> {
    let cases = cases(common, args)?;
    let lengths = or(&args.lengths, if common.quick { &[256] } else { &[502, 1006, 2038] });
    let trials = args.trials.unwrap_or(match task {
        _ if common.quick => 3,
        Task::Passkey => 20,
        Task::Needle => 10,
    });
    ensure!(trials > 0, "--trials 0 tries nothing");
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let text = text::load(None)?;
    let output = Output::new(&common.output)?;
    let mut lab = Lab::new(&common.model(), common.adapter.as_deref(), longest + 128)?;
    lab.note_length(longest);
    println!("{}", lab.gpu.describe());
    let draw = |ix| Draw { ix, count: trials, seed: common.seed, own_line: args.own_line };
    let bar = progress(lengths.len() * trials * (1 + cases.len()), task.name());
    let mut answers = Vec::new();
    for &length in &lengths {
        for ix in 0..trials {
            let trial = task.trial(&lab, &text, length, draw(ix))?;
            lab.prefill(&trial.context)?;
            let snapshot = lab.cache.snapshot()?;
            let mut ask = |lab: &mut Lab, strategy, keep_ratio, skip_layers: &[u32]| -> Result<()> {
                let may_be = |answer: &str| task.may_be(answer, &trial.expected);
                let answer = lab.answer(&trial.question, task.answer_tokens(), may_be)?;
                let score = task.score(&answer, &trial.expected);
                answers.push(Answer {
                    strategy,
                    keep_ratio,
                    skip_layers: skip_layers.to_vec(),
                    length,
                    trial: ix,
                    depth: trial.depth,
                    context_tokens: trial.context.len(),
                    expected: trial.expected.clone(),
                    answer,
                    score,
                });
                bar.inc(1);
                Ok(())
            };
            ask(&mut lab, "uncompressed", 1.0, &[])?;
            for case in &cases {
                let len = u32::try_from(trial.context.len())?;
                let seed = common.seed + ix as u64;
                let policies = case.strategy.policies(case.keep, len, seed, &case.skip, lab.cache.size())?;
                lab.compress_copy(&snapshot, &policies)?;
                ask(&mut lab, case.strategy.name(), case.keep, &case.skip)?;
            }
            lab.cache.check_places()?;
        }
    }
    bar.finish_and_clear();
    print_table(&answers, &lengths);
    let settings = json!({ "lengths": lengths, "trials": trials, "seed": common.seed, "own_line": args.own_line });
    let mut result = about(&lab, task.name(), settings);
    result["answers"] = json!(answers);
    output.write_json(&format!("{}.json", task.name()), &result)?;
    for (name, svg) in plots(&answers, &lengths, task)? {
        output.write(&name, &svg)?;
    }
    Ok(())
}

/// What tells rows of the table apart, in the order of their first answer.
fn groups(answers: &[Answer]) -> Vec<(&'static str, f64, Vec<u32>)> {
    let mut groups = Vec::new();
    for a in answers {
        let group = (a.strategy, a.keep_ratio, a.skip_layers.clone());
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

fn mean(answers: &[Answer], fits: impl Fn(&Answer) -> bool) -> Option<(f64, usize)> {
    let scores: Vec<f64> = answers.iter().filter(|a| fits(a)).map(|a| a.score).collect();
    (!scores.is_empty()).then(|| (scores.iter().sum::<f64>() / scores.len() as f64, scores.len()))
}

fn print_table(answers: &[Answer], lengths: &[usize]) {
    let heads: String = lengths.iter().map(|l| format!(" {l} tokens |")).collect();
    println!("\n| strategy | whole layers | keep |{heads}\n| --- | --- | --- |{}", " --- |".repeat(lengths.len()));
    for (strategy, keep, skip) in groups(answers) {
        let cell = |&length: &usize| {
            let fits =
                |a: &Answer| (a.strategy, a.keep_ratio, a.length) == (strategy, keep, length) && a.skip_layers == skip;
            mean(answers, fits).map_or(" |".to_owned(), |(mean, n)| format!(" {:.1} of {n} |", mean * n as f64))
        };
        let cells: String = lengths.iter().map(cell).collect();
        println!("| {strategy} | {skip:?} | {keep} |{cells}");
    }
}

/// Length by depth, a map for each strategy and keep ratio with layers 0 and 1 whole, drawn one under another.
fn plots(answers: &[Answer], lengths: &[usize], task: Task) -> Result<Vec<(String, String)>> {
    const DEPTHS: usize = 5;
    let columns: Vec<String> = lengths.iter().map(ToString::to_string).collect();
    let mut plots = Vec::new();
    let mut drawn: Vec<(f64, Vec<&'static str>)> = Vec::new();
    for (strategy, keep, skip) in groups(answers) {
        if strategy != "uncompressed" && skip.is_empty() {
            continue;
        }
        match drawn.iter_mut().find(|(k, _)| *k == keep) {
            Some((_, names)) => names.push(strategy),
            None => drawn.push((keep, vec![strategy])),
        }
    }
    for (keep, names) in drawn.iter().filter(|(keep, _)| *keep < 1.0) {
        let (mut rows, mut cells) = (Vec::new(), Vec::new());
        for name in std::iter::once(&"uncompressed").chain(names) {
            for depth in 0..DEPTHS {
                let in_depth = |a: &Answer| (a.depth * DEPTHS as f64) as usize == depth;
                let in_row = |a: &Answer| {
                    a.strategy == *name
                        && (*name == "uncompressed" || a.keep_ratio == *keep && !a.skip_layers.is_empty())
                };
                let cell = |&length: &usize| mean(answers, |a| a.length == length && in_row(a) && in_depth(a));
                rows.push(format!("{name} {}-{} %", depth * 20, depth * 20 + 20));
                cells.push(lengths.iter().map(|l| cell(l).map(|c| c.0)).collect());
            }
        }
        // With as many digits as it has, so that no two are alike.
        let dropped = ((1.0 - keep) * 1e6).round() / 1e4;
        let title = format!("{}: {dropped} % dropped, layers 0 and 1 whole", task.name());
        let titles = Titles { title: &title, x: "tokens of context", y: "strategy, depth" };
        let map = HeatMap { columns: columns.clone(), rows, cells, scale: (0.0, 1.0), digits: 2 };
        let name = format!("{}-{dropped}.svg", task.name());
        plots.push((name, heat_map(titles, &map).context("heat map")?));
    }
    Ok(plots)
}

#[cfg(test)]
mod tests {
    use super::{NEEDLE_ANSWER, Task};

    #[test]
    fn a_needle_is_scored_by_its_content_words() {
        let score = |answer: &str| Task::Needle.score(answer, NEEDLE_ANSWER);
        assert_eq!(score("eat a sandwich and sit in Dolores Park on a sunny day."), 1.0);
        assert_eq!(score("Sunny day, Dolores Park: sit, eat sandwich"), 1.0);
        assert_eq!(score("\n\n to sit in the park\nand eat a sandwich"), 2.0 / 7.0, "the first line counts");
        assert_eq!(score("It is on a hill, at the end of the town, or in an old one and to the left"), 0.0);
        assert_eq!(score(""), 0.0);
    }

    #[test]
    fn a_passkey_is_right_or_not() {
        let score = |answer: &str| Task::Passkey.score(answer, "12345");
        assert_eq!((score("\n 12345."), score(" 12344"), score("the 12345")), (1.0, 0.0, 0.0));
    }
}
