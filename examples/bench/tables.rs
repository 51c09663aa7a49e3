//! `bench table`, `bench compare` and `bench ratio`: finished reports side by side.

use keynorm::TensorSpec;

use crate::case::DECODE;
use crate::cli::parse_dtype;
use crate::design::{
    self, DECODE_LAYERS, FLOOR_PERCENT, GOALS, Goal, KEYDIFF_OVER_FLOOR, LARGE_BYTES, MANY_ROWS, MANY_ROWS_EXTRA_US,
    MANY_ROWS_FLOOR_SHARE,
};
use crate::gpu::Result;
use crate::markdown::{self, micros};
use crate::report::{PeerReport, PeerRow, Report, Row};

const NONE: &str = "–";

fn same_case(row: &Row, peer: &PeerRow) -> bool {
    peer.error.is_none()
        && (peer.layers.unwrap_or(1), peer.batch_rows, peer.seq_len, peer.head_dim)
            == (row.layers, row.batch_rows, row.seq_len, row.head_dim)
        && peer.dtype == row.dtype
        && (peer.keep_ratio - row.keep_ratio).abs() < 1e-9
}

/// By what a row's tokens are compared; early reports do not say that it is the norm.
fn score_of(row: &Row) -> &str {
    if row.score.is_empty() { "norm" } else { &row.score }
}

/// Whether a peer's row does the work of ours: lowest key norms or KeyDiff, cached or not, all in one call.
fn is_same_work(row: &Row, peer: &PeerRow) -> bool {
    let is_norm = score_of(row) == "norm";
    let has = |other: &str| peer.peer.contains(other);
    has("decode") == (row.mode == DECODE) && if is_norm { !has("keydiff") } else { has(&row.score) }
}

fn fastest<'a>(row: &Row, peers: &'a [PeerRow], time: fn(&PeerRow) -> Option<f64>) -> Option<(&'a PeerRow, f64)> {
    peers
        .iter()
        .filter(|p| p.peer.starts_with("torch") && is_same_work(row, p) && same_case(row, p))
        .filter_map(|p| time(p).map(|us| (p, us)))
        .min_by(|a, b| a.1.total_cmp(&b.1))
}

/// Puts the rows and the copy rate of a peer's report into ours, as `run --peers` does.
pub fn add_peer(report: &mut Report, peer: PeerReport) {
    let copy = report.rates.torch_copy_gb_s.into_iter().chain(peer.copy_gb_s).reduce(f64::max);
    report.rates.torch_copy_gb_s = copy;
    report.peers.extend(peer.rows);
    let rate = report.rates.floor_gb_s();
    for row in &mut report.rows {
        if let Some(us) = row.us_median {
            let floor_us = row.bytes_floor as f64 / rate / 1e3;
            (row.floor_us, row.floor_percent) = (Some(floor_us), Some(100.0 * floor_us / us));
        }
    }
}

fn goal_of(row: &Row, on_h100: bool) -> Option<&'static Goal> {
    let is_norm = score_of(row) == "norm";
    let design = is_norm && on_h100 && row.head_dim == 128 && row.dtype == "f16" && row.capacity.is_none();
    let goals: &[Goal] = match (row.layers, row.mode == DECODE) {
        (1, false) => &GOALS,
        (DECODE_LAYERS, true) => std::slice::from_ref(&design::DECODE),
        _ => &[],
    };
    goals.iter().find(|g| {
        design && (g.rows, g.seq_len) == (row.batch_rows, row.seq_len) && (g.keep_ratio - row.keep_ratio).abs() < 1e-9
    })
}

fn key_bytes(row: &Row) -> u64 {
    let token = parse_dtype(&row.dtype).map_or(0, |dtype| TensorSpec::new(dtype, row.head_dim).row_bytes());
    [row.batch_rows, row.seq_len, token].iter().fold(row.layers.into(), |bytes, &n| bytes * u64::from(n))
}

/// Goal (of an H100), measured, PyTorch's best and the floor beside each other.
pub fn table(report: &Report) -> String {
    let head = [
        "rows × n × d",
        "dtype",
        "keep",
        "order",
        "goal µs",
        "µs",
        "goal met",
        "PyTorch best µs",
        "by",
        "speed-up",
        "floor µs",
        "% floor",
        "floor goal",
        "ns/token",
    ];
    let on_h100 = report.adapter.name.contains("H100");
    let rows: Vec<_> = report.rows.iter().map(|row| table_cells(row, &report.peers, on_h100)).collect();
    let with_goal = report.rows.iter().filter(|r| goal_us(r, on_h100).is_some());
    let missed = with_goal.clone().filter(|r| is_met(r, on_h100) != Some(true)).count();
    let verdict = format!("\n{missed} of {} rows with a goal in time missed it or failed.\n", with_goal.count());
    markdown::header(report) + &markdown::table(&head, 4, &rows) + &verdict
}

fn goal_us(row: &Row, on_h100: bool) -> Option<f64> {
    if row.score == "keydiff" {
        return row.floor_us.map(|us| us * KEYDIFF_OVER_FLOOR);
    }
    if on_h100 && row.capacity.is_none() && (row.batch_rows, row.seq_len) == MANY_ROWS {
        return row.floor_us.map(|us| us / MANY_ROWS_FLOOR_SHARE + MANY_ROWS_EXTRA_US);
    }
    let goal = goal_of(row, on_h100)?;
    if row.order == "fill" { Some(goal.fill_us) } else { goal.ordered_us }
}

fn is_met(row: &Row, on_h100: bool) -> Option<bool> {
    Some(row.us_median? <= goal_us(row, on_h100)?)
}

fn table_cells(row: &Row, peers: &[PeerRow], on_h100: bool) -> Vec<String> {
    let mut cells = vec![markdown::shape(row), row.dtype.clone(), row.keep_ratio.to_string(), row.order.clone()];
    for (extra, default) in [(&row.selector, "auto"), (&row.score, "norm")] {
        if !extra.is_empty() && extra != default {
            cells[3] += &format!(" {extra}");
        }
    }
    if row.mode == DECODE {
        cells[3] += ", norms cached";
    }
    cells.push(micros(goal_us(row, on_h100)));
    let Some(us) = row.us_median else {
        cells.push(row.error.clone().unwrap_or_default());
        cells.resize(14, String::new());
        return cells;
    };
    let yes_no = |met: bool| if met { "yes" } else { "**no**" }.to_owned();
    let tokens = f64::from(row.layers) * f64::from(row.batch_rows) * f64::from(row.seq_len);
    let best = fastest(row, peers, |p| p.us_median);
    let listed = goal_of(row, on_h100).map(|g| g.torch_us);
    let (torch_us, by) = match best {
        Some((peer, us)) => (Some(us), format!("{} {}", peer.peer.trim_start_matches("torch-"), peer.mode)),
        None => (listed, if listed.is_some() { "design" } else { NONE }.into()),
    };
    let share = row.floor_percent.unwrap_or(0.0);
    let wanted = if row.order == "fill" { FLOOR_PERCENT.0 } else { FLOOR_PERCENT.1 };
    cells.extend([
        micros(Some(us)),
        is_met(row, on_h100).map_or(NONE.into(), yes_no),
        micros(torch_us),
        by,
        torch_us.map_or(NONE.into(), |t| format!("{:.1}×", t / us)),
        micros(row.floor_us),
        format!("{share:.1}"),
        if key_bytes(row) < LARGE_BYTES || row.mode == DECODE {
            NONE.into()
        } else {
            format!("{wanted} {}", yes_no(share >= wanted))
        },
        format!("{:.4}", us * 1e3 / tokens),
    ]);
    cells
}

/// Ours against PyTorch on the same device; on a CPU both by the host's clock.
pub fn ratio(report: &Report) -> Result<String> {
    let by_wall = report.adapter.device_type == "Cpu";
    let head = ["rows × n × d", "dtype", "keep", "order", "ours µs", "PyTorch µs", "by", "PyTorch / ours"];
    let mut rows = Vec::new();
    for row in &report.rows {
        let ours = if by_wall { row.wall_us_median } else { row.us_median };
        let time: fn(&PeerRow) -> _ = if by_wall { |p| p.wall_us_median } else { |p| p.us_median };
        let (Some(us), Some((peer, torch_us))) = (ours, fastest(row, &report.peers, time)) else { continue };
        rows.push(vec![
            markdown::shape(row),
            row.dtype.clone(),
            row.keep_ratio.to_string(),
            row.order.clone(),
            micros(Some(us)),
            micros(Some(torch_us)),
            format!("{} {}", peer.peer, peer.mode),
            format!("{:.2}", torch_us / us),
        ]);
    }
    if rows.is_empty() {
        return Err("no row of ours has its like among PyTorch's".into());
    }
    Ok(markdown::table(&head, 4, &rows))
}

/// Two runs, row by row: times, and whether they left the same bits.
pub fn compare(a: &Report, b: &Report) -> Result<String> {
    let head = ["rows × n × d", "dtype", "keep", "order", "selector", "score by", "a µs", "b µs", "b / a", "hash"];
    let mut rows = Vec::new();
    for row in &a.rows {
        let key = |r: &Row| {
            let case = (r.dtype.clone(), r.order.clone(), r.selector.clone(), score_of(r).to_owned(), r.norms.clone());
            (r.mode.clone(), markdown::shape(r), case)
        };
        let Some(other) = b.rows.iter().find(|r| key(r) == key(row) && r.kept == row.kept) else { continue };
        let ratio = row.us_median.zip(other.us_median).map_or(NONE.into(), |(a, b)| format!("{:.3}", b / a));
        let hash = match (row.hash.as_str(), other.hash.as_str()) {
            ("", _) | (_, "") => NONE,
            (a, b) if a == b => "equal",
            _ => "**differs**",
        };
        let mut cells = vec![markdown::shape(row), row.dtype.clone(), row.keep_ratio.to_string(), row.order.clone()];
        cells.extend([
            row.selector.clone(),
            score_of(row).into(),
            micros(row.us_median),
            micros(other.us_median),
            ratio,
            hash.into(),
        ]);
        rows.push(cells);
    }
    if rows.is_empty() {
        return Err("the two reports have no case in common".into());
    }
    let name = |r: &Report| {
        format!("{} · {} · wgpu {} · commit {} · {}", r.adapter.name, r.adapter.driver_info, r.wgpu, r.commit, r.date)
    };
    Ok(format!("a: {}\n\nb: {}\n\n{}", name(a), name(b), markdown::table(&head, 5, &rows)))
}
