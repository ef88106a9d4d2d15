//! Grids of images with labels.

use std::fmt::Write;

use super::picture::Picture;
use super::table::open_table;
use super::text::escape;

/// Images in rows and columns, with a label under each.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ImageGrid {
    /// What it shows.
    pub caption: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows: a name and its cells.
    pub rows: Vec<(String, Vec<Cell>)>,
}

/// A place of an [`ImageGrid`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cell {
    /// The image; without one the label stands alone.
    pub picture: Option<Picture>,
    /// Text under it, such as the class predicted.
    pub label: String,
    /// Whether the label is right; `None` where that is not a question.
    pub ok: Option<bool>,
}

impl Cell {
    /// An image without a label.
    pub fn picture(picture: Picture) -> Self {
        Cell {
            picture: Some(picture),
            ..Cell::default()
        }
    }

    /// With text under the image.
    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.label = text.into();
        self
    }

    /// With a mark that the label is right or wrong.
    pub fn ok(mut self, ok: bool) -> Self {
        self.ok = Some(ok);
        self
    }

    fn to_html(&self) -> String {
        // Right and wrong differ by sign as well as by colour.
        let (class, sign) = match self.ok {
            None => ("", ""),
            Some(true) => (" class=\"right\"", "✓ "),
            Some(false) => (" class=\"wrong\"", "✗ "),
        };
        let label = escape(&self.label);
        let mut out = format!("<td{class}>");
        if let Some(p) = &self.picture {
            let (w, h) = (p.width(), p.height());
            // Small images are enlarged, pixel by pixel; large ones are better smoothed.
            let class = if w <= 96 { " class=\"pixels\"" } else { "" };
            let _ = write!(
                out,
                "<img{class} src=\"{}\" width=\"{w}\" height=\"{h}\" alt=\"{label}\" />",
                p.data_uri()
            );
        }
        if !label.is_empty() || self.ok.is_some() {
            let _ = write!(out, "<span>{sign}{label}</span>");
        }
        out.push_str("</td>");
        out
    }
}

impl ImageGrid {
    /// A grid without rows.
    pub fn new<S: Into<String>>(
        caption: impl Into<String>,
        columns: impl IntoIterator<Item = S>,
    ) -> Self {
        ImageGrid {
            caption: caption.into(),
            columns: columns.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
        }
    }

    /// Appends a row; its name may be empty.
    pub fn row(&mut self, name: impl Into<String>, cells: impl Into<Vec<Cell>>) -> &mut Self {
        self.rows.push((name.into(), cells.into()));
        self
    }

    pub(super) fn to_html(&self) -> String {
        let named = self.rows.iter().any(|(name, _)| !name.is_empty());
        let widest = self.rows.iter().map(|(_, cells)| cells.len());
        let columns = widest.chain([self.columns.len()]).max().unwrap_or(0);
        let mut out = open_table(&self.caption, "grid");
        if !self.columns.is_empty() {
            out.push_str("<thead><tr>");
            if named {
                out.push_str("<td></td>");
            }
            for c in 0..columns {
                let name = self.columns.get(c).map_or("", String::as_str);
                let _ = write!(out, "<th scope=\"col\">{}</th>", escape(name));
            }
            out.push_str("</tr></thead>\n");
        }
        out.push_str("<tbody>\n");
        for (name, cells) in &self.rows {
            out.push_str("<tr>");
            if named {
                let _ = write!(out, "<th scope=\"row\">{}</th>", escape(name));
            }
            for c in 0..columns {
                match cells.get(c) {
                    Some(cell) => out.push_str(&cell.to_html()),
                    None => out.push_str("<td></td>"),
                }
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n</table>\n</div>\n</figure>");
        out
    }
}
