//! Result files: written whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::lab::Lab;

/// The folder that results go to.
#[derive(Debug, Clone)]
pub struct Output {
    dir: PathBuf,
}

impl Output {
    /// Makes the folder.
    ///
    /// # Errors
    /// A path that is not a folder or cannot be one.
    pub fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Writes a file under another name and renames it, so that no reader sees a part of it.
    ///
    /// # Errors
    /// A full disk, a folder that may not be written.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let (path, part) = (self.dir.join(name), self.dir.join(format!("{name}.{}.part", std::process::id())));
        let written = fs::write(&part, content).and_then(|()| fs::rename(&part, &path));
        written.inspect_err(|_| drop(fs::remove_file(&part))).with_context(|| format!("{}", path.display()))?;
        println!("wrote {}", path.display());
        Ok(path)
    }

    /// Writes JSON.
    ///
    /// # Errors
    /// As [`Output::write`].
    pub fn write_json(&self, name: &str, value: &Value) -> Result<()> {
        self.write(name, &format!("{value:#}\n")).map(drop)
    }
}

/// What each result file says about its run.
#[must_use]
pub fn about(lab: &Lab, command: &str, settings: Value) -> Value {
    json!({
        "tool": "keynorm-smollm2", "version": env!("CARGO_PKG_VERSION"), "command": command, "settings": settings,
        "adapter": lab.gpu.describe(), "model": lab.model.config,
    })
}

/// A progress bar on stderr; none where that is not a terminal.
#[must_use]
pub fn progress(steps: usize, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    let template = "{msg} [{bar:40}] {pos}/{len}, {elapsed} (about {eta} to go)";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}
