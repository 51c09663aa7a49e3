//! Reading and writing of reports.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::gpu::Result;
use crate::report::{PeerReport, Report, TOOL};

/// A report of `bench run`.
pub fn read_report(path: &Path) -> Result<Report> {
    read_json(path, |tool| match tool {
        TOOL => Ok(()),
        other => Err(format!("a report of {other}, not of {TOOL}; a peer's is given by --torch or --peers")),
    })
}

/// A peer's report.
pub fn read_peer(path: &Path) -> Result<PeerReport> {
    read_json(path, |tool| match tool {
        TOOL => Err(format!("a report of {TOOL}, not of a peer")),
        _ => Ok(()),
    })
}

/// `check` knows by the tool whether it is what was to be read.
fn read_json<T: DeserializeOwned>(path: &Path, check: fn(&str) -> Result<()>) -> Result<T> {
    let of_path = |error: String| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| of_path(e.to_string()))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| of_path(e.to_string()))?;
    let tool = json["tool"].as_str().filter(|_| json["rows"].is_array());
    check(tool.ok_or_else(|| of_path("no report: it names no tool, or has no rows".into()))?).map_err(of_path)?;
    serde_json::from_value(json).map_err(|e| of_path(e.to_string()))
}

/// The file that a path leads to, and the one beside it that is written first, so that it holds a whole report at any time. None of
/// the latter where it is no file, as a terminal, or where links lead nowhere yet.
fn place(path: &Path) -> (PathBuf, Option<PathBuf>) {
    let is_link = path.symlink_metadata().is_ok_and(|m| m.is_symlink());
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let is_special = ["/dev", "/proc"].iter().any(|dir| path.starts_with(dir)) || path.exists() && !path.is_file();
    let name = target.file_name().filter(|_| !is_special && (path.exists() || !is_link));
    let part = name.map(|name| {
        let mut name = name.to_owned();
        name.push(".part");
        target.with_file_name(name)
    });
    (target, part)
}

/// Whether both lead to one file.
pub fn are_one(a: &Path, b: &Path) -> bool {
    let whole = |path: &Path| {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (target, part) = place(path);
        part?;
        let named = || Some(std::fs::canonicalize(folder).ok()?.join(path.file_name()?));
        if target.exists() { Some(target) } else { named() }
    };
    whole(a).zip(whole(b)).is_some_and(|(a, b)| a == b)
}

pub fn write(path: &Path, text: &str) -> Result<()> {
    let (target, part) = place(path);
    // In place, where the folder takes no other file.
    let part = part.filter(|part| std::fs::write(part, text).is_ok());
    let written = match &part {
        Some(part) => std::fs::rename(part, &target).inspect_err(|_| drop(std::fs::remove_file(part))),
        None => std::fs::write(path, text),
    };
    written.map_err(|e| format!("{}: {e}", path.display()))
}

/// Fails before the measurement rather than after it.
pub fn check_writable(path: &Path) -> Result<()> {
    let is_new = path.symlink_metadata().is_err();
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    let checked = opened.map(drop).and_then(|()| if is_new { std::fs::remove_file(path) } else { Ok(()) });
    checked.map_err(|e| format!("{}: {e}", path.display()))
}

/// Every field of every row, and what identifies the run.
pub fn csv(report: &Report) -> String {
    let (rate, empty) = (format!("{:.1}", report.rates.floor_gb_s()), String::new());
    let mut lines = Vec::new();
    for row in &report.rows {
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(row) else { continue };
        let run = [
            ("adapter", &report.adapter.name),
            ("backend", &report.adapter.backend),
            ("driver", &report.adapter.driver),
            ("driver_info", &report.adapter.driver_info),
            ("wgpu", &report.wgpu),
            ("commit", &report.commit),
            ("date", &report.date),
            ("command", &report.command),
            ("floor_rate_gb_s", &rate),
            ("void", report.void.as_ref().unwrap_or(&empty)),
        ];
        if lines.is_empty() {
            let names = fields.keys().map(String::as_str).chain(run.iter().map(|r| r.0));
            lines.push(names.collect::<Vec<_>>().join(","));
        }
        let cells = fields.values().map(|value| match value {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(text) => quoted(text),
            other => other.to_string(),
        });
        lines.push(cells.chain(run.iter().map(|r| quoted(r.1))).collect::<Vec<_>>().join(","));
    }
    lines.join("\n") + "\n"
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}
