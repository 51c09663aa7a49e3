//! `bench plot`: time over tokens a row, ours, the floor and the peers, on logarithmic axes.

use std::collections::BTreeMap;
use std::path::Path;

use plotters::coord::combinators::{BindKeyPoints as _, LogCoord};
use plotters::prelude::*;

use crate::gpu::Result;
use crate::report::{PeerRow, Report, Row};
use crate::tables::is_same_work;

/// What all points of one plot share.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
struct Panel {
    layers: u32,
    batch_rows: u32,
    head_dim: u32,
    dtype: String,
    keep_ratio: f64,
    norms: String,
    capacity: Option<u32>,
    score: String,
    mode: String,
    selector: String,
}

/// Which of a report's panels is drawn; what is left out is chosen by the number of points.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Filter {
    /// Rows of the plot.
    #[arg(long)]
    pub rows: Option<u32>,
    /// Keep ratio of the plot.
    #[arg(long)]
    pub keep: Option<f64>,
    /// Dtype of the plot.
    #[arg(long)]
    pub dtype: Option<String>,
    /// Head dimension of the plot.
    #[arg(long)]
    pub head_dim: Option<u32>,
    /// Score of the plot, as reports name it.
    #[arg(long)]
    pub score: Option<String>,
    /// Mode of the plot, as reports name it: compress, decode, pages of 16.
    #[arg(long)]
    pub mode: Option<String>,
}

struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    color: RGBColor,
    dashed: bool,
}

// Okabe and Ito's palette, distinct for every eye.
const BLUE: RGBColor = RGBColor(0, 114, 178);
const SKY: RGBColor = RGBColor(86, 180, 233);
const PEERS: [RGBColor; 8] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(90, 90, 90),
    RGBColor(150, 110, 60),
    RGBColor(0, 0, 0),
    RGBColor(106, 61, 154),
];
const LEGEND_X: i32 = 752;
type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type DrawResult = std::result::Result<(), Box<dyn std::error::Error>>;
const FONT: &str = "sans-serif";

fn panel_of(row: &Row) -> Panel {
    Panel {
        layers: row.layers,
        batch_rows: row.batch_rows,
        head_dim: row.head_dim,
        dtype: row.dtype.clone(),
        keep_ratio: row.keep_ratio,
        norms: row.norms.clone(),
        capacity: row.capacity,
        score: row.score().to_owned(),
        mode: row.mode.clone(),
        selector: row.selector.clone(),
    }
}

fn has_peer(panel: &Panel, peer: &PeerRow) -> bool {
    peer.error.is_none()
        && is_same_work(&panel.score, &panel.mode, peer)
        && (peer.layers.unwrap_or(1), peer.batch_rows, peer.head_dim)
            == (panel.layers, panel.batch_rows, panel.head_dim)
        && peer.dtype == panel.dtype
        && (peer.keep_ratio - panel.keep_ratio).abs() < 1e-9
}

impl Filter {
    fn accepts(&self, panel: &Panel) -> bool {
        self.rows.is_none_or(|r| r == panel.batch_rows)
            && self.keep.is_none_or(|k| (k - panel.keep_ratio).abs() < 1e-9)
            && self.dtype.as_ref().is_none_or(|d| *d == panel.dtype)
            && self.head_dim.is_none_or(|d| d == panel.head_dim)
            && self.score.as_ref().is_none_or(|s| *s == panel.score)
            && self.mode.as_ref().is_none_or(|m| *m == panel.mode)
    }

    /// The accepted panel with the most points, the first of several.
    fn choose(&self, report: &Report) -> Result<Panel> {
        let mut panels: Vec<(Panel, usize)> = Vec::new();
        for row in report.rows.iter().filter(|r| r.us_median.is_some()) {
            let panel = panel_of(row);
            match panels.iter_mut().find(|p| p.0 == panel) {
                Some(known) => known.1 += 1,
                None if self.accepts(&panel) => panels.push((panel, 1)),
                None => {}
            }
        }
        let most = panels.iter().map(|p| p.1).max().ok_or("no timed row to plot")?;
        panels.into_iter().find(|p| p.1 == most).map(|p| p.0).ok_or_else(|| "no timed row to plot".into())
    }
}

fn series_of(report: &Report, panel: &Panel) -> Vec<Series> {
    let mut all = Vec::new();
    for (order, label, color) in [("fill", "keynorm fill", BLUE), ("positional", "keynorm positional", SKY)] {
        let points = |value: fn(&Row) -> Option<f64>| {
            let rows = report.rows.iter().filter(|r| r.order == order && panel_of(r) == *panel);
            // A floor of nothing to move has no place on a logarithmic axis.
            let timed = rows.filter_map(|r| value(r).filter(|&us| us > 0.0).map(|us| (f64::from(r.seq_len), us)));
            sorted(timed)
        };
        let floor_name = label.replace("keynorm", "floor,");
        all.push(Series { name: label.into(), points: points(|r| r.us_median), color, dashed: false });
        all.push(Series { name: floor_name, points: points(|r| r.floor_us), color, dashed: true });
    }
    let mut peers: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for peer in report.peers.iter().filter(|p| has_peer(panel, p)) {
        let mut name = peer.peer.replace("torch-", "PyTorch ").replace("burn-", "Burn ").replace("cpu-", "CPU ");
        if !peer.peer.starts_with("torch") && report.clock == "gpu" {
            name += ", host clock";
        }
        if let Some(us) = peer.us_median {
            peers.entry(name).or_default().push((f64::from(peer.seq_len), us));
        }
    }
    for ((name, points), &color) in peers.into_iter().zip(PEERS.iter().cycle()) {
        all.push(Series { name, points: sorted(points.into_iter()), color, dashed: false });
    }
    all.retain(|s| !s.points.is_empty());
    all
}

/// Ascending; of several times for one length (modes of a peer) the best.
fn sorted(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut points: Vec<_> = points.collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    points.dedup_by_key(|p| p.0);
    points
}

pub fn plot(report: &Report, filter: &Filter, path: &Path) -> Result<()> {
    let panel = filter.choose(report)?;
    let series = series_of(report, &panel);
    draw(report, &panel, &series, path).map_err(|e| format!("{}: {e}", path.display()))
}

fn draw(report: &Report, panel: &Panel, series: &[Series], path: &Path) -> DrawResult {
    let points = || series.iter().flat_map(|s| s.points.iter().copied());
    let (x_min, x_max) = bounds(points().map(|p| p.0));
    let (y_min, y_max) = bounds(points().map(|p| p.1));
    let ticks: Vec<f64> = sorted(points()).into_iter().map(|p| p.0).collect();
    let decades: Vec<f64> = (-2..9).map(|e| 10f64.powi(e)).flat_map(|d| [d, 2.0 * d, 5.0 * d]).collect();
    let root = SVGBackend::new(path, (960, 600)).into_drawing_area();
    root.fill(&WHITE)?;
    let grey = RGBColor(85, 85, 85);
    let rows = match (panel.layers, panel.batch_rows) {
        (1, 1) => "1 row".to_owned(),
        (1, rows) => format!("{rows} rows"),
        (layers, rows) => format!("{layers} layers × {rows} rows"),
    };
    let named = [(&panel.score, "norm"), (&panel.mode, "compress"), (&panel.selector, "auto")];
    let mut what: String = named.iter().filter(|(is, usual)| is != usual).map(|(is, _)| format!(", {is}")).collect();
    if panel.norms != "wide" {
        what += &format!(", norms {}", panel.norms);
    }
    if let Some(capacity) = panel.capacity {
        what += &format!(", room for {capacity}");
    }
    let title = format!(
        "KV-cache compression: {rows}, head dimension {}, {}, keep {}{what}",
        panel.head_dim, panel.dtype, panel.keep_ratio
    );
    let a = &report.adapter;
    let subtitle = format!("{} · {} {} · wgpu {} · {}", a.name, a.backend, a.driver_info, report.wgpu, report.date);
    root.draw(&Text::new(title, (24, 20), (FONT, 20).into_font()))?;
    root.draw(&Text::new(subtitle, (24, 48), (FONT, 14).into_font().color(&grey)))?;
    let x = LogCoord::from((x_min / 1.15..x_max * 1.15).log_scale());
    let y = LogCoord::from((y_min / 1.4..y_max * 1.6).log_scale());
    let x = x.with_key_points(ticks);
    let y = y.with_key_points(decades.into_iter().filter(|d| (y_min / 1.4..=y_max * 1.6).contains(d)).collect());
    let mut chart = ChartBuilder::on(&root)
        .margin_top(74)
        .margin_right(960 - LEGEND_X + 16)
        .margin_bottom(12)
        .margin_left(12)
        .x_label_area_size(52)
        .y_label_area_size(76)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .axis_style(grey)
        .x_desc("tokens a row (n)")
        .y_desc(if a.device_type == "Cpu" || report.clock != "gpu" {
            "time, µs (median)"
        } else {
            "GPU time, µs (median)"
        })
        .x_label_formatter(&|n| tokens(*n))
        .y_label_formatter(&|us| us.to_string())
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .draw()?;
    for s in series {
        let style = s.color.stroke_width(if s.dashed { 2 } else { 3 });
        if s.dashed {
            chart.draw_series(DashedLineSeries::new(s.points.iter().copied(), 7, 5, style))?;
        } else {
            chart.draw_series(s.points.iter().map(|&p| Circle::new(p, 4, s.color.filled())))?;
            chart.draw_series(LineSeries::new(s.points.iter().copied(), style))?;
        }
    }
    draw_legend(&root, series)?;
    root.present()?;
    Ok(())
}

/// Names beside the chart, highest line first, so that no line is covered.
fn draw_legend(root: &Area<'_>, series: &[Series]) -> DrawResult {
    let last = |s: &Series| s.points.last().map_or(0.0, |p| p.1);
    let mut ordered: Vec<&Series> = series.iter().collect();
    ordered.sort_by(|a, b| last(b).total_cmp(&last(a)));
    for (y, s) in (90..).step_by(24).zip(ordered) {
        let style = s.color.stroke_width(if s.dashed { 2 } else { 3 });
        let parts = if s.dashed { vec![(0, 7), (11, 18), (22, 29)] } else { vec![(0, 29)] };
        for (from, to) in parts {
            root.draw(&PathElement::new(vec![(LEGEND_X + from, y), (LEGEND_X + to, y)], style))?;
        }
        root.draw(&Text::new(s.name.clone(), (LEGEND_X + 38, y - 7), (FONT, 14).into_font()))?;
    }
    Ok(())
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(low, high), v| (low.min(v), high.max(v)))
}

fn tokens(n: f64) -> String {
    if n >= 1_048_576.0 && n % 1_048_576.0 == 0.0 {
        format!("{}M", n / 1_048_576.0)
    } else if n >= 1024.0 && n % 1024.0 == 0.0 {
        format!("{}k", n / 1024.0)
    } else {
        n.to_string()
    }
}
