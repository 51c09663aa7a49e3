//! Reports as Markdown.

use crate::case::DECODE;
use crate::report::{Report, Row};

/// A table whose columns are as wide as their cells; the first `num_left` are set to the left.
pub fn table(head: &[&str], num_left: usize, rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count());
        cells.chain([head[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .enumerate()
            .map(|(i, (cell, &w))| if i < num_left { format!("{cell:<w$}") } else { format!("{cell:>w$}") })
            .collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let rule: Vec<String> = (0..head.len())
        .map(|i| if i < num_left { "-".repeat(widths[i]) } else { "-".repeat(widths[i] - 1) + ":" })
        .collect();
    let mut text = line(&mut head.iter().copied());
    text += &line(&mut rule.iter().map(String::as_str));
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// Three significant digits or whole microseconds.
pub fn micros(value: Option<f64>) -> String {
    match value {
        None => "–".into(),
        Some(us) if us < 10.0 => format!("{us:.2}"),
        Some(us) if us < 100.0 => format!("{us:.1}"),
        Some(us) => format!("{us:.0}"),
    }
}

fn bytes(value: u64) -> String {
    match value {
        0..1024 => format!("{value} B"),
        1024..1_048_576 => format!("{:.0} KiB", value as f64 / 1024.0),
        _ => format!("{:.1} MiB", value as f64 / 1_048_576.0),
    }
}

/// What was measured on, with what, and how.
pub fn header(report: &Report) -> String {
    let (a, r) = (&report.adapter, &report.rates);
    let cpu = if a.device_type == "Cpu" { " (a CPU adapter: times are not those of a GPU)" } else { "" };
    let torch = r.torch_copy_gb_s.map_or(String::new(), |c| format!(", PyTorch's copy {c:.0}"));
    let least = r.least_us.map_or(String::new(), |us| format!(" A pass of one workgroup: {us:.1} µs."));
    let void = report.void.as_ref().map_or(String::new(), |v| format!("\n**Void:** {v}.\n"));
    format!(
        "{} · {} {} · {}{cpu} · wgpu {} · keynorm {} · commit {} · {}\n\n\
         `{}`\n\n\
         Rates, GB/s read + written: copy kernel {:.0}, copy_buffer_to_buffer {:.0}{torch}; read {:.0}. \
         Flush: {}. Repetitions: {}. Clock: {}.{least}\n{void}\n",
        a.name,
        a.driver,
        a.driver_info,
        a.backend,
        report.wgpu,
        report.version,
        report.commit,
        report.date,
        report.command,
        r.copy_kernel_gb_s,
        r.copy_buffer_gb_s,
        r.read_gb_s,
        report.flush,
        report.repetitions,
        report.clock,
    )
}

pub fn report(report: &Report) -> String {
    let head = [
        "rows × n × d",
        "dtype",
        "keep",
        "order",
        "selector",
        "score by",
        "µs",
        "p10–p90",
        "wall",
        "score",
        "select",
        "compact",
        "GB/s",
        "floor µs",
        "% floor",
        "moved / expected",
        "record µs",
        "+ finish",
        "scratch",
        "hash",
        "checked",
    ];
    let rows: Vec<_> = report.rows.iter().map(cells).collect();
    header(report) + &table(&head, 6, &rows)
}

/// Layers, rows, tokens and head dimension in few characters.
pub fn shape(row: &Row) -> String {
    let layers = if row.layers > 1 { format!("{} × ", row.layers) } else { String::new() };
    let pages = if row.mode.starts_with("pages") { format!(", {}", row.mode) } else { String::new() };
    let norms = if row.norms == "wide" { String::new() } else { format!(", {}", row.norms) };
    let room = row.capacity.map_or(String::new(), |capacity| format!(" of {capacity}"));
    format!("{layers}{} × {}{room} × {}{pages}{norms}", row.batch_rows, row.seq_len, row.head_dim)
}

/// By what tokens are compared, and whether it was there before.
pub fn score(row: &Row) -> String {
    let cached = if row.mode == DECODE { ", cached" } else { "" };
    format!("{}{cached}", row.score())
}

fn cells(row: &Row) -> Vec<String> {
    let mut cells = vec![shape(row), row.dtype.clone(), row.keep_ratio.to_string(), row.order.clone()];
    cells.extend([row.selector.clone(), score(row)]);
    if let Some(error) = &row.error {
        cells.push(error.clone());
        cells.resize(21, String::new());
        return cells;
    }
    let number = |value: Option<f64>, digits: usize| value.map_or("–".into(), |v| format!("{v:.digits$}"));
    cells.extend([
        micros(row.us_median),
        format!("{}–{}", micros(row.us_p10), micros(row.us_p90)),
        micros(row.wall_us_median),
        micros(row.score_us),
        micros(row.select_us),
        micros(row.compact_us),
        number(row.gb_s, 0),
        micros(row.floor_us),
        number(row.floor_percent, 1),
        format!("{} / {:.0}", row.num_moved, row.num_moved_expected),
        micros(row.record_us),
        micros(row.record_finish_us),
        bytes(row.scratch_bytes),
        row.hash.clone(),
        format!("{}/{}", row.rows_checked, row.layers * row.batch_rows),
    ]);
    cells
}
