//! The self-contained HTML report, its tables, figures and images.
//!
//! A page needs nothing but itself: styles, figures (SVG) and images (PNG) stand in the one file,
//! and there is no script. It is well-formed XML as well as HTML.

use std::fmt::Write;
use std::path::Path;

use crate::error::Result;
use crate::io::atomic::write_atomic;

mod axis;
mod chart;
mod figure;
mod grid;
mod picture;
mod table;
mod text;

pub use figure::{Axis, Figure, Series};
pub use grid::{Cell, ImageGrid};
pub use picture::{Picture, amplification};
pub use table::Table;

use text::escape;

/// A page under construction: content appears in the order it is added.
///
/// All text is plain text; nothing in it is taken as HTML.
///
/// ```
/// use noiseforge::report::{Figure, Report, Series, Table};
///
/// let mut table = Table::new("Accuracy", ["defence", "clean", "C&W"]);
/// table.row(["none", "93.1%", "0.0%"]).row(["RSE", "90.4%", "71.5%"]);
/// let figure = Figure::new("Accuracy under attack", "c", "accuracy")
///     .log_x()
///     .percent_y()
///     .series(Series::new("RSE", [(0.01, 0.9), (0.1, 0.7)]));
/// let mut report = Report::new("Demo");
/// report.heading("Results").table(&table.highest(2)).figure(&figure);
/// assert!(report.to_html().contains("C&amp;W"));
/// ```
#[derive(Debug, Clone)]
pub struct Report {
    title: String,
    subtitle: String,
    body: String,
    /// Whether the last thing added was a figure: neighbours stand side by side.
    in_figures: bool,
}

impl Report {
    /// An empty page.
    pub fn new(title: impl Into<String>) -> Self {
        Report {
            title: title.into(),
            subtitle: String::new(),
            body: String::new(),
            in_figures: false,
        }
    }

    /// A line under the title.
    pub fn subtitle(&mut self, text: impl Into<String>) -> &mut Self {
        self.subtitle = text.into();
        self
    }

    /// A section's heading.
    pub fn heading(&mut self, text: impl AsRef<str>) -> &mut Self {
        self.add(format_args!("<h2>{}</h2>", escape(text.as_ref())))
    }

    /// A paragraph of prose.
    pub fn paragraph(&mut self, text: impl AsRef<str>) -> &mut Self {
        self.add(format_args!("<p>{}</p>", escape(text.as_ref())))
    }

    /// A command line, or several, to be copied.
    pub fn command(&mut self, text: impl AsRef<str>) -> &mut Self {
        let text = escape(text.as_ref());
        self.add(format_args!(
            "<pre class=\"command\"><code>{text}</code></pre>"
        ))
    }

    /// Named values, as tiles: the headline numbers, or the settings of a run.
    pub fn facts<N: AsRef<str>, V: AsRef<str>>(&mut self, facts: &[(N, V)]) -> &mut Self {
        let mut tiles = String::new();
        for (name, value) in facts {
            let (name, value) = (escape(name.as_ref()), escape(value.as_ref()));
            let _ = write!(tiles, "<div><dt>{name}</dt><dd>{value}</dd></div>");
        }
        if tiles.is_empty() {
            return self;
        }
        self.add(format_args!("<dl class=\"facts\">{tiles}</dl>"))
    }

    /// A table.
    pub fn table(&mut self, table: &Table) -> &mut Self {
        self.add(format_args!("{}", table.to_html()))
    }

    /// A figure. Figures added one after the other stand side by side where there is room.
    pub fn figure(&mut self, figure: &Figure) -> &mut Self {
        if !self.in_figures {
            self.body.push_str("<div class=\"figures\">\n");
            self.in_figures = true;
        }
        self.body.push_str(&figure.to_html());
        self.body.push('\n');
        self
    }

    /// A grid of images with labels.
    pub fn image_grid(&mut self, grid: &ImageGrid) -> &mut Self {
        self.add(format_args!("{}", grid.to_html()))
    }

    fn add(&mut self, html: std::fmt::Arguments<'_>) -> &mut Self {
        if self.in_figures {
            self.body.push_str("</div>\n");
            self.in_figures = false;
        }
        let _ = writeln!(self.body, "{html}");
        self
    }

    /// The whole page.
    pub fn to_html(&self) -> String {
        let title = escape(&self.title);
        let subtitle = match self.subtitle.as_str() {
            "" => String::new(),
            text => format!("<p class=\"subtitle\">{}</p>\n", escape(text)),
        };
        let close = if self.in_figures { "</div>\n" } else { "" };
        format!(
            "<!DOCTYPE html>\n\
             <html lang=\"en\">\n<head>\n<meta charset=\"utf-8\" />\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\" />\n\
             <meta name=\"color-scheme\" content=\"light dark\" />\n\
             <title>{title}</title>\n<style>\n{css}{light}\n\
             @media (prefers-color-scheme: dark) {{\n{dark}\n}}\n</style>\n</head>\n<body>\n\
             <header>\n<h1>{title}</h1>\n{subtitle}</header>\n<main>\n{body}{close}</main>\n\
             <footer>Noiseforge {version}</footer>\n</body>\n</html>\n",
            css = include_str!("page.css"),
            light = figure::style(&figure::LIGHT),
            dark = figure::style(&figure::DARK),
            body = self.body,
            version = env!("CARGO_PKG_VERSION"),
        )
    }

    /// Writes the page; an old file of that name stays whole until the new one is.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let html = self.to_html();
        write_atomic(path.as_ref(), |w| {
            std::io::Write::write_all(w, html.as_bytes())
        })
    }
}
