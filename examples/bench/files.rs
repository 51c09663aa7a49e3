//! Reading and writing of reports.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::gpu::Result;
use crate::report::Report;

pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

pub fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Fails before the measurement rather than after it.
pub fn check_writable(path: &Path) -> Result<()> {
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(|e| format!("{}: {e}", path.display()))
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
