//! `bench table`, `bench compare` and `bench ratio`: finished reports side by side.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::case::{COMPRESS, DECODE};
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

/// Whether a peer's row does the work of ours: lowest key norms or KeyDiff, cached or not, all in one call.
pub fn is_same_work(score: &str, mode: &str, peer: &PeerRow) -> bool {
    let has = |other: &str| peer.peer.contains(other);
    has("decode") == (mode == DECODE) && if score == "norm" { !has("keydiff") } else { has(score) }
}

/// None where norms are equal: then nothing of ours moves, whereas PyTorch copies all that is kept.
fn fastest<'a>(row: &Row, peers: &'a [PeerRow], time: fn(&PeerRow) -> Option<f64>) -> Option<(&'a PeerRow, f64)> {
    peers
        .iter()
        .filter(|_| row.norms != "equal")
        .filter(|p| p.peer.starts_with("torch") && is_same_work(row.score(), &row.mode, p) && same_case(row, p))
        .filter_map(|p| time(p).map(|us| (p, us)))
        .min_by(|a, b| a.1.total_cmp(&b.1))
}

/// Puts the rows and the copy rate of a peer's report into ours, as `run --peers` does.
pub fn add_peer(report: &mut Report, peer: PeerReport) -> Result<()> {
    peer.check_device(&report.adapter)?;
    let copy = report.rates.torch_copy_gb_s.into_iter().chain(peer.torch_copy_gb_s()).reduce(f64::max);
    report.rates.torch_copy_gb_s = copy;
    report.peers.extend(peer.rows);
    Ok(())
}

/// Whether goals are for such a row: contiguous, as long as it has room, its norms as the design has them.
fn is_plain(row: &Row) -> bool {
    row.norms == "wide" && row.capacity.is_none() && [COMPRESS, DECODE].contains(&row.mode.as_str())
}

/// Whether the goals of shares of the floor are for it: by the norm, of a layer of floats.
fn is_plain_norm(row: &Row) -> bool {
    is_plain(row)
        && (row.score(), row.layers, row.mode.as_str()) == ("norm", 1, COMPRESS)
        && ["f16", "bf16", "f32"].contains(&row.dtype.as_str())
}

fn goal_of(row: &Row) -> Option<&'static Goal> {
    let design = row.score() == "norm" && row.head_dim == 128 && row.dtype == "f16" && is_plain(row);
    let goals: &[Goal] = match (row.layers, row.mode == DECODE) {
        (1, false) => &GOALS,
        (DECODE_LAYERS, true) => std::slice::from_ref(&design::DECODE),
        _ => &[],
    };
    goals.iter().find(|g| {
        design && (g.rows, g.seq_len) == (row.batch_rows, row.seq_len) && (g.keep_ratio - row.keep_ratio).abs() < 1e-9
    })
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
    let rows: Vec<_> = report.rows.iter().map(|row| table_cells(row, report)).collect();
    markdown::header(report) + &markdown::table(&head, 4, &rows) + "\n" + &verdicts(report)
}

/// How many rows reach their goals, and how even times a token are from 64k to 1M tokens a row.
fn verdicts(report: &Report) -> String {
    let mut text = String::new();
    let with_goal = report.rows.iter().filter(|r| has_goal(r, report));
    let missed = with_goal.clone().filter(|r| is_met(r, report) != Some(true)).count();
    if with_goal.clone().count() > 0 {
        text += &format!("{missed} of {} rows with a goal in time missed it or failed.\n", with_goal.clone().count());
        if !is_h100(report) && with_goal.clone().any(|r| r.score() == "norm") {
            text += "The goals are those of an H100, whatever the card.\n";
        }
    }
    for order in ["fill", "positional"] {
        let large = report.rows.iter().filter(|r| r.order == order && has_floor_goal(r));
        let met = large.clone().filter(|r| r.floor_percent.unwrap_or(0.0) >= floor_goal(r)).count();
        if let Some(wanted) = large.clone().next().map(floor_goal) {
            let (at, count) = (LARGE_BYTES >> 20, large.count());
            text +=
                &format!("{met} of {count} rows by {order} from {at} MiB of keys on take {wanted} % of their floor.\n");
        }
    }
    for (name, times) in by_length(report) {
        let (least, most) = times.iter().fold((f64::INFINITY, 0.0_f64), |(a, b), t| (a.min(t.1), b.max(t.1)));
        let spread = 100.0 * (most / least - 1.0);
        let (from, to) = (LONG_ROWS.start(), LONG_ROWS.end());
        text += &format!(
            "{name}: {least:.4} to {most:.4} ns/token from {from} to {to} tokens a row, {spread:.0} % apart.\n"
        );
    }
    text
}

/// Lengths with their ns/token, of cases that differ in nothing else, or that are as many tokens in all.
fn by_length(report: &Report) -> BTreeMap<String, Vec<(u32, f64)>> {
    let mut groups: BTreeMap<String, Vec<(u32, f64)>> = BTreeMap::new();
    for row in report.rows.iter().filter(|r| LONG_ROWS.contains(&r.seq_len) && r.capacity.is_none()) {
        let Some(us) = row.us_median else { continue };
        let alike =
            format!("{} {} {} {} {} {}", row.dtype, row.keep_ratio, row.order, row.selector, row.score(), row.mode);
        let alike = format!("{} layers × {alike} × {} × {}", row.layers, row.head_dim, row.norms);
        for name in [format!("{} rows, {alike}", row.batch_rows), format!("{} tokens in all, {alike}", row.tokens())] {
            groups.entry(name).or_default().push((row.seq_len, us * 1e3 / row.tokens() as f64));
        }
    }
    groups.values_mut().for_each(|times| times.sort_by_key(|t| t.0));
    let ends = (*LONG_ROWS.start(), *LONG_ROWS.end());
    groups.retain(|_, times| (times[0].0, times[times.len() - 1].0) == ends);
    groups
}

/// Tokens a row between which the time of one is to be even.
const LONG_ROWS: RangeInclusive<u32> = 1 << 16..=1 << 20;

fn is_h100(report: &Report) -> bool {
    report.adapter.name.contains("H100")
}

fn has_floor_goal(row: &Row) -> bool {
    row.key_bytes() >= LARGE_BYTES && is_plain_norm(row)
}

fn floor_goal(row: &Row) -> f64 {
    if row.order == "fill" { FLOOR_PERCENT.0 } else { FLOOR_PERCENT.1 }
}

/// Of an H100, shown on every GPU.
fn goal_us(row: &Row, report: &Report) -> Option<f64> {
    if !is_plain(row) {
        return None;
    }
    if row.score == "keydiff" {
        return row.floor_us.filter(|_| row.mode == COMPRESS).map(|us| us * KEYDIFF_OVER_FLOOR);
    }
    if report.adapter.device_type == "Cpu" {
        return None;
    }
    // Of this card's floor.
    if is_plain_norm(row) && (row.batch_rows, row.seq_len) == MANY_ROWS {
        return row.floor_us.map(|us| us / MANY_ROWS_FLOOR_SHARE + MANY_ROWS_EXTRA_US);
    }
    let goal = goal_of(row)?;
    if row.order == "fill" { Some(goal.fill_us) } else { goal.ordered_us }
}

/// Whether there is one, also where a row that failed has no floor to make it of.
fn has_goal(row: &Row, report: &Report) -> bool {
    let of_floor = Row { floor_us: Some(1.0), ..row.clone() };
    goal_us(&of_floor, report).is_some()
}

fn is_met(row: &Row, report: &Report) -> Option<bool> {
    Some(row.us_median? <= goal_us(row, report)?)
}

/// The order, and what else of a row is not as usual.
fn order(row: &Row) -> String {
    let mut text = row.order.clone();
    for (extra, default) in [(&row.selector, "auto"), (&row.score, "norm")] {
        if !extra.is_empty() && extra != default {
            text += &format!(" {extra}");
        }
    }
    if row.mode == DECODE { text + ", norms cached" } else { text }
}

fn table_cells(row: &Row, report: &Report) -> Vec<String> {
    let mut cells = vec![markdown::shape(row), row.dtype.clone(), row.keep_ratio.to_string(), order(row)];
    cells.push(micros(goal_us(row, report)));
    let Some(us) = row.us_median else {
        cells.push(row.error.clone().unwrap_or_default());
        cells.resize(14, String::new());
        return cells;
    };
    let yes_no = |met: bool| if met { "yes" } else { "**no**" }.to_owned();
    let best = fastest(row, &report.peers, |p| p.us_median);
    let listed = goal_of(row).filter(|_| is_h100(report)).map(|g| g.torch_us);
    let (torch_us, by) = match best {
        Some((peer, us)) => (Some(us), format!("{} {}", peer.peer.trim_start_matches("torch-"), peer.mode)),
        None => (listed, if listed.is_some() { "design" } else { NONE }.into()),
    };
    let share = row.floor_percent.unwrap_or(0.0);
    let wanted = floor_goal(row);
    cells.extend([
        micros(Some(us)),
        is_met(row, report).map_or(NONE.into(), yes_no),
        micros(torch_us),
        by,
        torch_us.map_or(NONE.into(), |t| format!("{:.1}×", t / us)),
        micros(row.floor_us),
        format!("{share:.1}"),
        if has_floor_goal(row) { format!("{wanted} {}", yes_no(share >= wanted)) } else { NONE.into() },
        format!("{:.4}", us * 1e3 / row.tokens() as f64),
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
            order(row),
            micros(Some(us)),
            micros(Some(torch_us)),
            format!("{} {}", peer.peer, peer.mode),
            format!("{:.2}", torch_us / us),
        ]);
    }
    if rows.is_empty() {
        return Err("no row of ours has its like among PyTorch's".into());
    }
    Ok(markdown::header(report) + &markdown::table(&head, 4, &rows))
}

/// Two runs, row by row: times, and whether they left the same bits.
#[derive(Debug)]
pub struct Comparison {
    pub text: String,
    /// Rows of other bits.
    pub num_different: usize,
    /// Rows that failed in one of the two.
    pub num_failed: usize,
}

pub fn compare(a: &Report, b: &Report) -> Result<Comparison> {
    let head = ["rows × n × d", "dtype", "keep", "order", "selector", "score by", "a µs", "b µs", "b / a", "hash"];
    let mut rows = Vec::new();
    let (mut num_different, mut num_failed) = (0, 0);
    let key = |r: &Row| {
        let case = (r.dtype.clone(), r.order.clone(), r.selector.clone(), r.score().to_owned(), r.norms.clone());
        (r.mode.clone(), markdown::shape(r), case, r.keep_ratio.to_bits())
    };
    for row in &a.rows {
        let Some(other) = b.rows.iter().find(|r| key(r) == key(row)) else { continue };
        let ratio = row.us_median.zip(other.us_median).map_or(NONE.into(), |(a, b)| format!("{:.3}", b / a));
        let hash = match (row.hash.as_str(), other.hash.as_str()) {
            _ if row.error.is_some() || other.error.is_some() => "**failed**",
            ("", _) | (_, "") => NONE,
            (a, b) if a == b => "equal",
            _ => "**differs**",
        };
        num_different += usize::from(hash == "**differs**");
        num_failed += usize::from(hash == "**failed**");
        let mut cells = vec![markdown::shape(row), row.dtype.clone(), row.keep_ratio.to_string(), row.order.clone()];
        cells.extend([
            row.selector.clone(),
            markdown::score(row),
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
    let lacking =
        |r: &Report, of: &Report| of.rows.iter().filter(|row| r.rows.iter().all(|o| key(o) != key(row))).count();
    let counts = format!("In one report alone: {} rows of a, {} of b.", lacking(b, a), lacking(a, b));
    let text = format!("a: {}\n\nb: {}\n\n{}\n{counts}\n", name(a), name(b), markdown::table(&head, 5, &rows));
    Ok(Comparison { text, num_different, num_failed })
}
