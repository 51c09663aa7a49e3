//! Texts to measure on.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use tokenizers::Tokenizer;

/// Jane Austen, *Persuasion*; see `data/README.md`.
const PERSUASION: &[u8] = include_bytes!("../data/persuasion.txt.gz");

/// Reads a text, gzipped or not; without a path the one that the tool carries.
///
/// # Errors
/// A file that cannot be read or is not UTF-8.
pub fn load(path: Option<&Path>) -> Result<String> {
    let mut text = String::new();
    match path {
        None => GzDecoder::new(PERSUASION).read_to_string(&mut text)?,
        Some(path) => {
            let name = path.display();
            let file = File::open(path).with_context(|| format!("{name}"))?;
            if path.extension().is_some_and(|e| e == "gz") {
                GzDecoder::new(file).read_to_string(&mut text).with_context(|| format!("{name}"))?
            } else {
                { file }.read_to_string(&mut text).with_context(|| format!("{name}"))?
            }
        }
    };
    Ok(text)
}

/// `count` tokens from character `offset · length` on.
///
/// # Errors
/// A text that ends before.
pub fn window(text: &str, tokenizer: &Tokenizer, offset: f64, count: usize) -> Result<Vec<u32>> {
    let length = text.chars().count();
    let start = (offset * length as f64) as usize;
    // No token of English text is as long as this on average.
    let part: String = text.chars().skip(start).take(count * 16).collect();
    let tokens = tokenizer.encode(part, false).map_err(|e| anyhow::anyhow!("{e}"))?.get_ids().to_vec();
    ensure!(tokens.len() >= count, "the text has {} tokens from offset {offset} on, {count} are needed", tokens.len());
    Ok(tokens[..count].to_vec())
}
