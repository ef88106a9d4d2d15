//! Tables: on the page and on a terminal.

use std::fmt::{self, Write};

use super::text::{escape, href};

/// A table of text cells. Columns of numbers are aligned to the right; the best number of a column
/// can be marked. `Display` gives it as plain text for a terminal.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// Names of the columns.
    pub header: Vec<String>,
    /// The rows. A short row ends with empty cells.
    pub rows: Vec<Vec<String>>,
    best: Vec<(usize, Best)>,
    /// By row: where its first cell leads.
    links: Vec<(usize, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Best {
    Highest,
    Lowest,
}

impl Table {
    /// A table without rows.
    pub fn new<S: Into<String>>(
        caption: impl Into<String>,
        header: impl IntoIterator<Item = S>,
    ) -> Self {
        Table {
            caption: caption.into(),
            header: header.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
            best: Vec::new(),
            links: Vec::new(),
        }
    }

    /// Appends a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }

    /// Appends a row whose first cell leads to a file, by its path from the page's folder.
    pub fn linked_row<S: Into<String>>(
        &mut self,
        path: impl Into<String>,
        cells: impl IntoIterator<Item = S>,
    ) -> &mut Self {
        self.links.push((self.rows.len(), path.into()));
        self.row(cells)
    }

    /// With the highest number of this column (counted from 0) marked as the best.
    pub fn highest(mut self, column: usize) -> Self {
        self.best.push((column, Best::Highest));
        self
    }

    /// With the lowest number of this column (counted from 0) marked as the best.
    pub fn lowest(mut self, column: usize) -> Self {
        self.best.push((column, Best::Lowest));
        self
    }

    fn columns(&self) -> usize {
        let rows = self.rows.iter().map(Vec::len);
        rows.chain([self.header.len()]).max().unwrap_or(0)
    }

    fn cell(&self, row: usize, column: usize) -> &str {
        self.rows[row].get(column).map_or("", String::as_str)
    }

    /// Whether every cell of a column is a number or stands for a missing one, and one is a number.
    fn is_numeric(&self, column: usize) -> bool {
        let cells = || (0..self.rows.len()).map(|r| self.cell(r, column).trim());
        let missing = |c: &str| matches!(c, "" | "-" | "–" | "—" | "n/a" | "NaN" | "inf");
        cells().all(|c| missing(c) || number(c).is_some()) && cells().any(|c| number(c).is_some())
    }

    /// Whether a cell shows the best number of its column; equal numbers are all best.
    fn is_best(&self, row: usize, column: usize) -> bool {
        let Some(&(_, best)) = self.best.iter().find(|(c, _)| *c == column) else {
            return false;
        };
        let Some(value) = number(self.cell(row, column)) else {
            return false;
        };
        let others = (0..self.rows.len()).filter_map(|r| number(self.cell(r, column)));
        let mut others = others.peekable();
        others.peek().is_some()
            && others.all(|o| match best {
                Best::Highest => value >= o,
                Best::Lowest => value <= o,
            })
    }

    pub(super) fn to_html(&self) -> String {
        let columns = self.columns();
        let numeric: Vec<bool> = (0..columns).map(|c| self.is_numeric(c)).collect();
        let class = |c: usize| if numeric[c] { " class=\"number\"" } else { "" };
        let mut out = open_table(&self.caption, "");
        if !self.header.is_empty() {
            out.push_str("<thead><tr>");
            for c in 0..columns {
                let name = self.header.get(c).map_or("", String::as_str);
                let _ = write!(out, "<th scope=\"col\"{}>{}</th>", class(c), escape(name));
            }
            out.push_str("</tr></thead>\n");
        }
        out.push_str("<tbody>\n");
        for r in 0..self.rows.len() {
            out.push_str("<tr>");
            for c in 0..columns {
                let text = escape(self.cell(r, c));
                let link = self.links.iter().find(|(row, _)| c == 0 && *row == r);
                let text = match link {
                    Some((_, path)) => format!("<a href=\"{}\">{text}</a>", href(path)),
                    None => text,
                };
                let _ = match self.is_best(r, c) {
                    true => write!(out, "<td{}><strong>{text}</strong></td>", class(c)),
                    false => write!(out, "<td{}>{text}</td>", class(c)),
                };
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n</table>\n</div>\n</figure>");
        out
    }
}

/// The beginning of a table as far as its rows; wide ones scroll under their caption.
pub(super) fn open_table(caption: &str, class: &str) -> String {
    let caption = match caption {
        "" => String::new(),
        text => format!("<figcaption>{}</figcaption>\n", escape(text)),
    };
    let class = match class {
        "" => String::new(),
        class => format!(" class=\"{class}\""),
    };
    format!("<figure class=\"table\">\n{caption}<div class=\"scroll\">\n<table{class}>\n")
}

/// The number a cell begins with: `71.5%`, `0.94 ± 0.02` and `12.3 s` are 71.5, 0.94 and 12.3.
fn number(cell: &str) -> Option<f64> {
    let cell = cell.trim().replace('−', "-");
    let first = cell.split([' ', '±', '%', '×']).next()?;
    let value: f64 = first.parse().ok()?;
    let digits = first.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    (digits && value.is_finite()).then_some(value)
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.columns();
        let head = |c: usize| self.header.get(c).map_or("", String::as_str);
        let len = |s: &str| s.chars().count();
        let widths: Vec<usize> = (0..columns)
            .map(|c| {
                let cells = (0..self.rows.len()).map(|r| len(self.cell(r, c)));
                cells.chain([len(head(c))]).max().unwrap_or(0)
            })
            .collect();
        let line = |cells: &dyn Fn(usize) -> String| {
            let mut out = String::new();
            for (c, &w) in widths.iter().enumerate() {
                let gap = if c == 0 { "" } else { "  " };
                let _ = match self.is_numeric(c) {
                    true => write!(out, "{gap}{:>w$}", cells(c)),
                    false => write!(out, "{gap}{:<w$}", cells(c)),
                };
            }
            out.trim_end().to_string()
        };
        if !self.caption.is_empty() {
            writeln!(f, "{}", self.caption)?;
        }
        if !self.header.is_empty() {
            writeln!(f, "{}", line(&|c| head(c).into()))?;
            let rule = widths.iter().map(|w| "─".repeat(*w));
            writeln!(f, "{}", rule.collect::<Vec<_>>().join("  "))?;
        }
        for r in 0..self.rows.len() {
            writeln!(f, "{}", line(&|c| self.cell(r, c).into()))?;
        }
        Ok(())
    }
}
