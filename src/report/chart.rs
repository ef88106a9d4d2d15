//! Drawing of line charts as SVG.

use std::fmt::Write as _;

use super::axis::{Scale, Tick};
use super::figure::{Axis, COLORS, Figure, Series};
use super::text::{escape, short, width, wrap};

/// Sizes in CSS pixels: of the drawing, of the plotting area's height, and of the space beside it.
/// A drawing half as wide as the page or as wide as a telephone keeps its text legible.
const WIDTH: f64 = 480.0;
const PLOT_HEIGHT: f64 = 230.0;
const RIGHT: f64 = 16.0;
/// Where title, legend and notes begin.
const EDGE: f64 = 2.0;
/// Half a marker.
const MARKER: f64 = 4.0;

impl Figure {
    /// The figure as one `svg` element, with this style sheet in it.
    pub(super) fn draw(&self, style: &str, background: bool) -> String {
        let data = Drawable::new(self);
        let y_ticks = data.y.ticks(5.0);
        let widest = |t: &Tick| width(&t.label) * 12.0;
        let tick_room = y_ticks.iter().map(widest).fold(0.0, f64::max);
        let left =
            (tick_room + if self.y.label.is_empty() { 14.0 } else { 34.0 }).clamp(30.0, 180.0);

        let title = wrap(&self.title, (WIDTH - EDGE - RIGHT) / 17.0);
        let (legend, legend_height) = self.legend(8.0 + 20.0 * title.len() as f64);
        let top = 16.0 + 20.0 * title.len() as f64 + legend_height;
        let notes = data.notes();
        let label_room = if self.x.label.is_empty() { 0.0 } else { 22.0 };
        let height = top + PLOT_HEIGHT + 26.0 + label_room + 16.0 * notes.len() as f64 + 4.0;
        let frame = Frame {
            left,
            top,
            width: WIDTH - left - RIGHT,
        };

        let mut out = format!(
            "<svg class=\"plot\" xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" \
             viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\">\n\
             <title>{}</title>\n{style}",
            escape(&self.title)
        );
        if background {
            let _ = writeln!(
                out,
                "<rect class=\"surface\" width=\"100%\" height=\"100%\" />"
            );
        }
        for (i, line) in title.iter().enumerate() {
            text_at(
                &mut out,
                "title",
                EDGE,
                18.0 + 20.0 * i as f64,
                "start",
                line,
            );
        }
        out.push_str(&legend);
        self.draw_axes(&mut out, &frame, &data, &y_ticks);
        self.draw_series(&mut out, &frame, &data);
        let below = top + PLOT_HEIGHT + 22.0 + label_room;
        for (i, note) in notes.iter().enumerate() {
            let y = below + 16.0 * (i as f64 + 1.0) - 6.0;
            text_at(&mut out, "note", EDGE, y, "start", note);
        }
        out.push_str("</svg>");
        out
    }

    /// The legend in rows above the plot, and its height: it never lies on a curve.
    fn legend(&self, top: f64) -> (String, f64) {
        let mut out = String::new();
        let (mut x, mut y) = (EDGE, top + 14.0);
        let mut rows = 0.0;
        for (i, series) in self.series.iter().enumerate() {
            if series.name.is_empty() {
                continue;
            }
            let room = 32.0 + width(&series.name) * 13.0 + 14.0;
            if rows == 0.0 {
                rows = 1.0;
            } else if x + room > WIDTH {
                (x, y) = (EDGE, y + 20.0);
                rows += 1.0;
            }
            let color = i % COLORS;
            let _ = writeln!(
                out,
                "<g class=\"s{color}\"><path class=\"line\" d=\"M{:.1} {:.1}h24\" />\
                 <path class=\"mark\" d=\"{}\" /></g>",
                x,
                y - 4.5,
                marker(i, x + 12.0, y - 4.5)
            );
            text_at(&mut out, "", x + 31.0, y, "start", &series.name);
            x += room;
        }
        (out, if rows > 0.0 { 20.0 * rows + 4.0 } else { 0.0 })
    }

    fn draw_axes(&self, out: &mut String, frame: &Frame, data: &Drawable, y_ticks: &[Tick]) {
        let Frame {
            left,
            top,
            width: w,
        } = *frame;
        let bottom = top + PLOT_HEIGHT;
        for tick in y_ticks {
            let y = frame.y(&data.y, tick.value);
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{left:.1} {y:.1}h{w:.1}\" />"
            );
            text_at(out, "tick", left - 8.0, y + 4.0, "end", &tick.label);
        }
        let _ = writeln!(
            out,
            "<path class=\"axis\" d=\"M{left:.1} {bottom:.1}h{w:.1}\" />"
        );
        let mut free_from = f64::NEG_INFINITY;
        for tick in data.x.ticks(6.0) {
            let x = frame.x(&data.x, tick.value);
            let half = width(&tick.label) * 6.0;
            let _ = writeln!(out, "<path class=\"axis\" d=\"M{x:.1} {bottom:.1}v5\" />");
            // A label that would touch its neighbour is left out; its tick stays.
            if x - half >= free_from {
                free_from = x + half + 6.0;
                text_at(out, "tick", x, bottom + 19.0, "middle", &tick.label);
            }
        }
        text_at(
            out,
            "",
            left + w / 2.0,
            bottom + 40.0,
            "middle",
            &self.x.label,
        );
        if !self.y.label.is_empty() {
            let middle = top + PLOT_HEIGHT / 2.0;
            let _ = writeln!(
                out,
                "<text transform=\"translate(15 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
                escape(&self.y.label)
            );
        }
        if data.is_empty() {
            let (x, y) = (left + w / 2.0, top + PLOT_HEIGHT / 2.0);
            text_at(out, "note", x, y, "middle", "no data");
        }
    }

    fn draw_series(&self, out: &mut String, frame: &Frame, data: &Drawable) {
        // An inner viewport clips what lies outside of the ranges, with room for markers.
        let room = MARKER + 2.0;
        let (x, y) = (frame.left - room, frame.top - room);
        let (w, h) = (frame.width + 2.0 * room, PLOT_HEIGHT + 2.0 * room);
        let _ = writeln!(
            out,
            "<svg x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" viewBox=\"{x:.1} {y:.1} {w:.1} {h:.1}\">"
        );
        for (i, (series, kept)) in self.series.iter().zip(&data.kept).enumerate() {
            let _ = writeln!(out, "<g class=\"s{}\">", i % COLORS);
            let mut path = String::new();
            let mut pen_down = false;
            for (&(px, py), &keep) in series.points.iter().zip(kept) {
                if keep {
                    let command = if pen_down { 'L' } else { 'M' };
                    let _ = write!(
                        path,
                        "{command}{:.1} {:.1}",
                        frame.x(&data.x, px),
                        frame.y(&data.y, py)
                    );
                }
                pen_down = keep;
            }
            if !path.is_empty() {
                let _ = writeln!(out, "<path class=\"line\" d=\"{path}\" />");
            }
            self.draw_errors(out, frame, data, series, kept);
            self.draw_markers(out, frame, data, i, kept);
            out.push_str("</g>\n");
        }
        out.push_str("</svg>\n");
    }

    fn draw_errors(
        &self,
        out: &mut String,
        frame: &Frame,
        data: &Drawable,
        series: &Series,
        kept: &[bool],
    ) {
        for ((&(px, _), &(lo, hi)), &keep) in series.points.iter().zip(&series.errors).zip(kept) {
            if keep && Scale::admits(lo, self.y.log) && Scale::admits(hi, self.y.log) {
                let x = frame.x(&data.x, px);
                let (a, b) = (frame.y(&data.y, lo), frame.y(&data.y, hi));
                let left = x - 3.5;
                let _ = writeln!(
                    out,
                    "<path class=\"error\" d=\"M{x:.1} {a:.1}V{b:.1}M{left:.1} {a:.1}h7M{left:.1} {b:.1}h7\" />"
                );
            }
        }
    }

    /// A marker with its values as a tooltip on every point; on long curves only on some, to tell
    /// the curves apart, and on points without a neighbour, which no line shows.
    fn draw_markers(
        &self,
        out: &mut String,
        frame: &Frame,
        data: &Drawable,
        index: usize,
        kept: &[bool],
    ) {
        let series = &self.series[index];
        let every = if kept.len() <= 40 { 1 } else { kept.len() / 8 };
        for (j, &(px, py)) in series.points.iter().enumerate() {
            let before = j > 0 && kept[j - 1];
            let after = kept.get(j + 1).is_some_and(|&k| k);
            let lone = !before && !after;
            let chosen = j % every == every / 2 || lone;
            if !(kept[j] && chosen) {
                continue;
            }
            let y = match self.y.percent {
                true => format!("{}%", short(py * 100.0)),
                false => short(py),
            };
            let tip = format!("{}: {}, {y}", series.name, short(px));
            let _ = writeln!(
                out,
                "<path class=\"mark\" d=\"{}\"><title>{}</title></path>",
                marker(index, frame.x(&data.x, px), frame.y(&data.y, py)),
                escape(&tip)
            );
        }
    }
}

/// Which points have a place on the axes, the axes' ranges, and what was left out.
struct Drawable {
    kept: Vec<Vec<bool>>,
    x: Scale,
    y: Scale,
    not_finite: usize,
    not_positive: usize,
    outside: usize,
}

impl Drawable {
    fn new(figure: &Figure) -> Self {
        let (mut not_finite, mut not_positive, mut outside) = (0, 0, 0);
        let (mut xs, mut ys) = (Vec::new(), Vec::new());
        let mut kept = Vec::new();
        for series in &figure.series {
            let keep = |&(x, y): &(f64, f64)| {
                if !(Scale::admits(x, false) && Scale::admits(y, false)) {
                    not_finite += 1;
                    false
                } else if !(Scale::admits(x, figure.x.log) && Scale::admits(y, figure.y.log)) {
                    not_positive += 1;
                    false
                } else {
                    xs.push(x);
                    ys.push(y);
                    true
                }
            };
            let keeps: Vec<bool> = series.points.iter().map(keep).collect();
            for (&(lo, hi), &keep) in series.errors.iter().zip(&keeps) {
                let ends = [lo, hi].into_iter();
                ys.extend(ends.filter(|&v| keep && Scale::admits(v, figure.y.log)));
            }
            kept.push(keeps);
        }
        let scale = |values: &[f64], axis: &Axis, snap| {
            Scale::new(values, axis.range, axis.log, axis.percent, snap)
        };
        let (x, y) = (scale(&xs, &figure.x, false), scale(&ys, &figure.y, true));
        for (series, kept) in figure.series.iter().zip(&kept) {
            for (&(px, py), _) in series.points.iter().zip(kept).filter(|(_, k)| **k) {
                let within = |p: f64| (-1e-9..=1.0 + 1e-9).contains(&p);
                outside += usize::from(!(within(x.place(px)) && within(y.place(py))));
            }
        }
        Drawable {
            kept,
            x,
            y,
            not_finite,
            not_positive,
            outside,
        }
    }

    fn is_empty(&self) -> bool {
        !self.kept.iter().flatten().any(|&k| k)
    }

    /// What the reader must know to be missing.
    fn notes(&self) -> Vec<String> {
        let note = |count: usize, what: &str| match count {
            0 => None,
            1 => Some(format!("1 point not shown: {what}")),
            n => Some(format!("{n} points not shown: {what}")),
        };
        [
            note(self.not_finite, "not a finite number"),
            note(self.not_positive, "not positive, on a logarithmic axis"),
            note(self.outside, "outside of the range of the axes"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The plotting area.
struct Frame {
    left: f64,
    top: f64,
    width: f64,
}

impl Frame {
    /// Far-away points stay within what every renderer can draw.
    fn x(&self, scale: &Scale, value: f64) -> f64 {
        (self.left + scale.place(value) * self.width).clamp(-1e5, 1e5)
    }

    fn y(&self, scale: &Scale, value: f64) -> f64 {
        (self.top + (1.0 - scale.place(value)) * PLOT_HEIGHT).clamp(-1e5, 1e5)
    }
}

fn text_at(out: &mut String, class: &str, x: f64, y: f64, anchor: &str, text: &str) {
    if !text.is_empty() {
        let _ = writeln!(
            out,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
            escape(text)
        );
    }
}

/// The outline of the `index`-th series' marker around a point.
fn marker(index: usize, x: f64, y: f64) -> String {
    let r = MARKER;
    let polygon = |corners: &[(f64, f64)]| {
        let at = |&(dx, dy): &(f64, f64)| format!("{:.1} {:.1}", x + dx * r, y + dy * r);
        let corners: Vec<String> = corners.iter().map(at).collect();
        format!("M{}Z", corners.join("L"))
    };
    match index % 6 {
        0 => format!(
            "M{:.1} {y:.1}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0Z",
            x - r,
            d = 2.0 * r
        ),
        1 => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
        2 => polygon(&[(0.0, -1.2), (1.15, 0.85), (-1.15, 0.85)]),
        3 => polygon(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
        4 => polygon(&[(0.0, 1.2), (1.15, -0.85), (-1.15, -0.85)]),
        _ => polygon(&[
            (-0.4, -1.2),
            (0.4, -1.2),
            (0.4, -0.4),
            (1.2, -0.4),
            (1.2, 0.4),
            (0.4, 0.4),
            (0.4, 1.2),
            (-0.4, 1.2),
            (-0.4, 0.4),
            (-1.2, 0.4),
            (-1.2, -0.4),
            (-0.4, -0.4),
        ]),
    }
}
