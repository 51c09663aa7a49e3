//! What is printed.

use std::io::Write;

use comfy_table::{CellAlignment, Table, presets};
use keynorm::Status;

use crate::gpu::Outcome;

/// One line of the table.
#[derive(Debug)]
pub struct Line {
    pub layer: u32,
    /// Tokens of a row, before and after.
    pub tokens: (u32, u32),
    /// Bytes of keys and values, before and after.
    pub bytes: (u64, u64),
    /// `None`: the layer was left whole.
    pub outcome: Option<Outcome>,
}

/// Prints; a reader that has gone away is no failure.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// The table, its total, and what the status bits say.
pub fn print(lines: &[Line]) {
    let outcomes: Vec<&Outcome> = lines.iter().filter_map(|l| l.outcome.as_ref()).collect();
    let time = if outcomes.iter().any(|o| o.is_gpu_time) { "GPU time" } else { "wall time" };
    let mixed = outcomes.iter().any(|o| o.is_gpu_time) && !outcomes.iter().all(|o| o.is_gpu_time);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["layer", "tokens", "bytes", "moved rows", time, "GB/s"]);
    for line in lines {
        let measures = line.outcome.as_ref().map_or_else(whole, |o| {
            let wall = if mixed && !o.is_gpu_time { " (wall)" } else { "" };
            measures(o.num_moved, o.seconds, o.traffic_bytes, wall)
        });
        table.add_row(row(&line.layer.to_string(), line.tokens, line.bytes, measures));
    }
    let sum = |part: fn(&Outcome) -> u64| outcomes.iter().map(|o| part(o)).sum::<u64>();
    let seconds: f64 = outcomes.iter().map(|o| o.seconds).sum();
    let total = measures(sum(|o| o.num_moved), seconds, sum(|o| o.traffic_bytes), "");
    let tokens = lines.iter().fold((0, 0), |t, l| (t.0 + u64::from(l.tokens.0), t.1 + u64::from(l.tokens.1)));
    let bytes = lines.iter().fold((0, 0), |b, l| (b.0 + l.bytes.0, b.1 + l.bytes.1));
    table.add_row(row("total", tokens, bytes, total));
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    say(&table.trim_fmt());
    for (bit, meaning) in [
        (
            Status::NON_FINITE_KEY,
            "a key holds NaN, or its norm is infinite: dropped first, or kept where the budget asks",
        ),
        (Status::BUDGET_RAISED, "the budget was raised to the protected tokens, or to one token"),
    ] {
        let set = |l: &&Line| l.outcome.as_ref().is_some_and(|o| o.status.contains(bit));
        let layers: Vec<String> = lines.iter().filter(set).map(|l| l.layer.to_string()).collect();
        if !layers.is_empty() {
            say(&format!("note: layers {}: {meaning}", layers.join(", ")));
        }
    }
}

fn row<T: ToString>(name: &str, tokens: (T, T), bytes: (u64, u64), measures: [String; 3]) -> Vec<String> {
    let arrow = |from: String, to: String| format!("{from} -> {to}");
    let mut cells = vec![
        name.to_owned(),
        arrow(tokens.0.to_string(), tokens.1.to_string()),
        arrow(bytes.0.to_string(), bytes.1.to_string()),
    ];
    cells.extend(measures);
    cells
}

fn whole() -> [String; 3] {
    ["left whole", "-", "-"].map(str::to_owned)
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn measures(num_moved: u64, seconds: f64, traffic_bytes: u64, note: &str) -> [String; 3] {
    let rate = if seconds > 0.0 { format!("{:.2}", traffic_bytes as f64 / seconds / 1e9) } else { "-".to_owned() };
    [num_moved.to_string(), format!("{:.3} ms{note}", seconds * 1e3), rate]
}
