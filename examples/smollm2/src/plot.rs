//! Plots as SVG: lines and heat maps.

use anyhow::{Result, anyhow};
use plotters::element::DashedPathElement;
use plotters::prelude::*;

/// A named row of points.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// Points from left to right.
    pub points: Vec<(f64, f64)>,
    /// A control, drawn thinner.
    pub thin: bool,
}

/// Titles of a plot.
#[derive(Debug, Clone, Copy)]
pub struct Titles<'a> {
    /// Above it.
    pub title: &'a str,
    /// Below the x axis.
    pub x: &'a str,
    /// Beside the y axis.
    pub y: &'a str,
}

// Okabe and Ito's palette, distinct for every eye, and a violet.
const COLORS: [RGBColor; 9] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(90, 90, 90),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(120, 40, 200),
];
/// Pixels of dash and gap, for each time that the colours are used up; no gap is a solid line.
const DASHES: [(i32, i32); 3] = [(1, 0), (8, 4), (2, 3)];

fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.filter(|v| v.is_finite()).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let margin = ((high - low) * 0.05).max(1e-6);
    low - margin..high + margin
}

/// Lines on linear axes.
///
/// # Errors
/// What plotters says.
pub fn lines(titles: Titles<'_>, lines: &[Line]) -> Result<String> {
    let mut svg = String::new();
    draw_lines(&mut svg, titles, lines).map_err(|e| anyhow!("{}: {e}", titles.title))?;
    Ok(svg)
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw_lines(svg: &mut String, titles: Titles<'_>, lines: &[Line]) -> Drawn {
    let area = SVGBackend::with_string(svg, (900, 520)).into_drawing_area();
    area.fill(&WHITE)?;
    let points = || lines.iter().flat_map(|l| l.points.iter());
    let (xs, ys) = (range(points().map(|p| p.0)), range(points().map(|p| p.1)));
    let (plot, legend) = area.split_horizontally(690);
    let mut chart = ChartBuilder::on(&plot)
        .caption(titles.title, ("sans-serif", 18))
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(xs, ys)?;
    chart.configure_mesh().x_desc(titles.x).y_desc(titles.y).light_line_style(WHITE).draw()?;
    for (ix, line) in lines.iter().enumerate() {
        let color = COLORS[ix % COLORS.len()];
        let style = color.stroke_width(if line.thin { 1 } else { 2 });
        let (dash, gap) = DASHES[ix / COLORS.len() % DASHES.len()];
        let y = 40 + 22 * i32::try_from(ix)?;
        let sample = vec![(0, y + 6), (20, y + 6)];
        if gap == 0 {
            chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
            legend.draw(&PathElement::new(sample, style))?;
        } else {
            chart.draw_series(DashedLineSeries::new(line.points.clone(), dash, gap, style))?;
            legend.draw(&DashedPathElement::new(sample, dash, gap, style))?;
        }
        if line.points.len() <= 40 {
            chart.draw_series(line.points.iter().map(|&p| Circle::new(p, 3, color.filled())))?;
        }
        legend.draw(&Text::new(line.name.clone(), (26, y), ("sans-serif", 13)))?;
    }
    area.present()?;
    Ok(())
}

/// A heat map: `cells[row][column]`, from `low` (dark) to `high` (light), with the values written in.
#[derive(Debug, Clone)]
pub struct HeatMap {
    /// Names of the columns, from the left.
    pub columns: Vec<String>,
    /// Names of the rows, from the top.
    pub rows: Vec<String>,
    /// Values; none is left white.
    pub cells: Vec<Vec<Option<f64>>>,
    /// The value of the darkest and of the lightest colour.
    pub scale: (f64, f64),
    /// Digits after the point.
    pub digits: usize,
}

/// Draws a heat map.
///
/// # Errors
/// What plotters says.
pub fn heat_map(titles: Titles<'_>, map: &HeatMap) -> Result<String> {
    let mut svg = String::new();
    draw_heat_map(&mut svg, titles, map).map_err(|e| anyhow!("{}: {e}", titles.title))?;
    Ok(svg)
}

fn draw_heat_map(svg: &mut String, titles: Titles<'_>, map: &HeatMap) -> Drawn {
    let (width, height) = (58, 24);
    let longest = map.rows.iter().map(String::len).max().unwrap_or(0);
    let (left, top) = (24 + 7 * i32::try_from(longest)?, 64);
    let size = |n: usize, step: i32| i32::try_from(n).map(|n| n * step);
    let (w, h) = (size(map.columns.len(), width)?, size(map.rows.len(), height)?);
    let dims = (u32::try_from((left + w + 20).max(520))?, u32::try_from(top + h + 44)?);
    let area = SVGBackend::with_string(svg, dims).into_drawing_area();
    area.fill(&WHITE)?;
    let font = ("sans-serif", 13);
    area.draw(&Text::new(titles.title, (10, 10), ("sans-serif", 17)))?;
    area.draw(&Text::new(titles.y, (10, top - 18), font))?;
    area.draw(&Text::new(titles.x, (left, top + h + 10), font))?;
    for (c, name) in map.columns.iter().enumerate() {
        area.draw(&Text::new(name.clone(), (left + size(c, width)? + 6, top - 18), font))?;
    }
    for (r, name) in map.rows.iter().enumerate() {
        let y = top + size(r, height)?;
        area.draw(&Text::new(name.clone(), (10, y + 5), font))?;
        for (c, value) in map.cells[r].iter().enumerate() {
            let Some(value) = value else { continue };
            let x = left + size(c, width)?;
            let share = ((value - map.scale.0) / (map.scale.1 - map.scale.0)).clamp(0.0, 1.0);
            area.draw(&Rectangle::new([(x, y), (x + width - 2, y + height - 2)], shade(share).filled()))?;
            let ink = if share < 0.5 { WHITE } else { BLACK };
            let style = TextStyle::from(font.into_font()).color(&ink);
            area.draw(&Text::new(format!("{value:.*}", map.digits), (x + 8, y + 5), style))?;
        }
    }
    area.present()?;
    Ok(())
}

/// From dark blue over green to yellow, roughly viridis.
fn shade(share: f64) -> RGBColor {
    const STOPS: [(f64, f64, f64); 4] =
        [(68.0, 1.0, 84.0), (49.0, 104.0, 142.0), (53.0, 183.0, 121.0), (253.0, 231.0, 37.0)];
    let at = share * 3.0;
    let ix = (at as usize).min(2);
    let mix = |a: f64, b: f64| (a + (b - a) * (at - ix as f64)) as u8;
    let ((r0, g0, b0), (r1, g1, b1)) = (STOPS[ix], STOPS[ix + 1]);
    RGBColor(mix(r0, r1), mix(g0, g1), mix(b0, b1))
}

#[cfg(test)]
mod tests {
    use super::{COLORS, DASHES, Line, Titles, lines};
    use crate::strategy::STRATEGIES;

    #[test]
    fn lines_beyond_the_colours_are_dashed() {
        let line = |ix: usize| Line { name: ix.to_string(), points: vec![(0.0, 0.0), (1.0, 1.0)], thin: false };
        let paths = |count: usize| {
            let drawn: Vec<_> = (0..count).map(line).collect();
            lines(Titles { title: "", x: "", y: "" }, &drawn).unwrap().matches("<polyline").count()
        };
        let solid = paths(COLORS.len()) - paths(COLORS.len() - 1);
        let dashed = paths(COLORS.len() + 1) - paths(COLORS.len());
        assert!(solid == 2 && dashed > 10, "a line and its sample are {solid} paths, dashed {dashed}");
        assert!(STRATEGIES.len() < COLORS.len() * DASHES.len(), "one line more is the whole cache's");
    }
}
