//! Line charts: what they hold, their colours, and the forms they are written in.
//!
//! Colours come from a style sheet by class, so that the page can show a figure in the reader's
//! light or dark scheme; a file of its own carries the light one. Series differ by colour and by
//! marker: the figures survive grey printing and colour blindness (palette after Okabe and Ito).

use std::fmt::Write as _;
use std::path::Path;

use super::text::escape;
use crate::error::Result;
use crate::io::atomic::write_atomic;

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend; empty for none.
    pub name: String,
    /// `(x, y)`, joined in this order. A point that is not finite interrupts the line.
    pub points: Vec<(f64, f64)>,
    /// Lower and upper end of each point's error bar, in the unit of y; may be shorter than
    /// `points`.
    pub errors: Vec<(f64, f64)>,
}

impl Series {
    /// A curve without error bars.
    pub fn new(name: impl Into<String>, points: impl Into<Vec<(f64, f64)>>) -> Self {
        Series {
            name: name.into(),
            points: points.into(),
            errors: Vec::new(),
        }
    }

    /// With an error bar from the first to the second value (not relative to y) on each point.
    pub fn errors(mut self, ends: impl Into<Vec<(f64, f64)>>) -> Self {
        self.errors = ends.into();
        self
    }
}

/// How an axis is drawn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Axis {
    /// The quantity and its unit.
    pub label: String,
    /// Logarithmic. Values of 0 and below have no place on it; a note counts them.
    pub log: bool,
    /// Shows fractions as percentages.
    pub percent: bool,
    /// The ends; chosen from the data when `None` or when they are no range.
    pub range: Option<(f64, f64)>,
}

/// A line chart.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figure {
    /// What is shown.
    pub title: String,
    /// Text under the figure, on the page.
    pub caption: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The curves, in the legend's order.
    pub series: Vec<Series>,
}

/// Number of different colours of series; then they begin again, with another marker.
pub const COLORS: usize = 7;

/// Colours of a figure.
pub struct Palette {
    ink: &'static str,
    muted: &'static str,
    grid: &'static str,
    surface: &'static str,
    series: [&'static str; COLORS],
}

/// On white.
pub const LIGHT: Palette = Palette {
    ink: "#1c1e22",
    muted: "#5b616b",
    grid: "#e3e5e8",
    surface: "#ffffff",
    series: [
        "#0072b2", "#d55e00", "#009e73", "#b8558f", "#c98700", "#3a9bd9", "#555b66",
    ],
};

/// On near-black.
pub const DARK: Palette = Palette {
    ink: "#e9eaec",
    muted: "#a0a7b2",
    grid: "#31353c",
    surface: "#1c1f24",
    series: [
        "#56aeea", "#ff8d45", "#2fc79b", "#e596c6", "#f0b73d", "#9ad6f7", "#b4bac4",
    ],
};

/// The rules that give a figure's classes their colours.
pub fn style(palette: &Palette) -> String {
    let Palette {
        ink,
        muted,
        grid,
        surface,
        series,
    } = palette;
    let mut css = format!(
        ".plot text{{font-family:system-ui,-apple-system,\"Segoe UI\",Helvetica,Arial,sans-serif;\
         font-size:13px;fill:{ink}}}\n\
         .plot .title{{font-size:15px;font-weight:600}}\n\
         .plot .tick,.plot .note{{font-size:12px;fill:{muted};font-variant-numeric:tabular-nums}}\n\
         .plot .grid{{stroke:{grid};stroke-width:1}}\n\
         .plot .axis{{stroke:{muted};stroke-width:1;fill:none}}\n\
         .plot .surface{{fill:{surface}}}\n\
         .plot .line{{stroke:currentColor;stroke-width:2;fill:none;stroke-linejoin:round;stroke-linecap:round}}\n\
         .plot .error{{stroke:currentColor;stroke-width:1.25;fill:none;opacity:.75}}\n\
         .plot .mark{{fill:currentColor;stroke:{surface};stroke-width:1.25}}\n"
    );
    for (i, color) in series.iter().enumerate() {
        let _ = writeln!(css, ".plot .s{i}{{color:{color}}}");
    }
    css
}

impl Figure {
    /// A figure without curves, on linear axes.
    pub fn new(title: impl Into<String>, x: impl Into<String>, y: impl Into<String>) -> Self {
        let axis = |label| Axis {
            label,
            ..Axis::default()
        };
        Figure {
            title: title.into(),
            x: axis(x.into()),
            y: axis(y.into()),
            ..Figure::default()
        }
    }

    /// With one more curve.
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// With a logarithmic horizontal axis.
    pub fn log_x(mut self) -> Self {
        self.x.log = true;
        self
    }

    /// With a logarithmic vertical axis.
    pub fn log_y(mut self) -> Self {
        self.y.log = true;
        self
    }

    /// With these ends of the vertical axis.
    pub fn range_y(mut self, lo: f64, hi: f64) -> Self {
        self.y.range = Some((lo, hi));
        self
    }

    /// For a fraction in [0, 1]: the vertical axis runs from 0 to 100%.
    pub fn percent_y(mut self) -> Self {
        self.y.percent = true;
        self.y.range = Some((0.0, 1.0));
        self
    }

    /// With text under it on the page.
    pub fn caption(mut self, text: impl Into<String>) -> Self {
        self.caption = text.into();
        self
    }

    /// The figure as an SVG document of its own, on white.
    pub fn to_svg(&self) -> String {
        let style = format!("<style>\n{}</style>\n", style(&LIGHT));
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n",
            self.draw(&style, true)
        )
    }

    /// Writes [`Figure::to_svg`]; an old file of that name stays whole until the new one is.
    pub fn write_svg(&self, path: impl AsRef<Path>) -> Result<()> {
        let svg = self.to_svg();
        write_atomic(path.as_ref(), |w| {
            std::io::Write::write_all(w, svg.as_bytes())
        })
    }

    pub(super) fn to_html(&self) -> String {
        let caption = match self.caption.as_str() {
            "" => String::new(),
            text => format!("<figcaption>{}</figcaption>\n", escape(text)),
        };
        format!(
            "<figure class=\"chart\">\n{}\n{caption}</figure>",
            self.draw("", false)
        )
    }
}
