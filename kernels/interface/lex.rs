//! Tokens, comments and directives of a kernel file.

use std::collections::BTreeMap;

#[derive(Clone, Copy)]
pub struct Token<'a> {
    pub text: &'a str,
    pub line: usize,
}

/// A comment that has its line to itself, without the leading blanks.
pub struct Comment<'a> {
    pub text: &'a str,
    /// Whether a kernel or a struct stands below it.
    pub used: bool,
}

/// A line and what is wrong there.
pub struct Fault(pub usize, pub String);

pub type Parsed<T> = Result<T, Fault>;

pub fn fault<T>(line: usize, message: impl Into<String>) -> Parsed<T> {
    Err(Fault(line, message.into()))
}

/// The files that a text includes by `#include "..."`.
pub fn includes(text: &str) -> Vec<String> {
    Source::lex(text).includes
}

/// A file as tokens, and the place that is read next.
pub struct Source<'a> {
    pub tokens: Vec<Token<'a>>,
    /// By line.
    pub comments: BTreeMap<usize, Comment<'a>>,
    /// Files named by `#include "..."`.
    pub includes: Vec<String>,
    pub at: usize,
}

pub fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// The length of the token at the start of `rest`, which is no blank.
fn token_len(rest: &str) -> usize {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let first = rest.chars().next().expect("the rest is not empty");
    let count = |end: Option<usize>| end.unwrap_or(rest.len());
    if first.is_ascii_digit() {
        return count(rest.find(|c: char| !(word(c) || c == '.' || c == '\'')));
    }
    if word(first) {
        return count(rest.find(|c: char| !word(c)));
    }
    if first == '"' || first == '\'' {
        let mut escaped = false;
        for (i, c) in rest.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                // A quote never runs past its line.
                '\n' => return i,
                _ if c == first => return i + 1,
                _ => {}
            }
        }
        return rest.len();
    }
    if rest.starts_with("::") {
        2
    } else {
        first.len_utf8()
    }
}

impl<'a> Source<'a> {
    pub fn lex(text: &'a str) -> Source<'a> {
        let mut source = Source {
            tokens: Vec::new(),
            comments: BTreeMap::new(),
            includes: Vec::new(),
            at: 0,
        };
        let mut line = 1;
        let mut line_is_empty = true;
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let len = if c == '\n' {
                line_is_empty = true;
                1
            } else if c.is_whitespace() {
                c.len_utf8()
            } else if rest.starts_with("//") {
                let len = rest.find('\n').unwrap_or(rest.len());
                if line_is_empty {
                    let comment = Comment {
                        text: rest[..len].trim_end(),
                        used: false,
                    };
                    source.comments.insert(line, comment);
                }
                len
            } else if rest.starts_with("/*") {
                rest.find("*/").map_or(rest.len(), |end| end + 2)
            } else if c == '#' && line_is_empty {
                // A directive ends with its line, unless a backslash continues it.
                let mut len = 0;
                loop {
                    let end = rest[len..].find('\n').map_or(rest.len(), |end| len + end);
                    if end == rest.len() || !rest[..end].trim_end().ends_with('\\') {
                        len = end;
                        break;
                    }
                    len = end + 1;
                }
                let include = rest[1..len].trim_start().strip_prefix("include");
                if let Some(name) = include.and_then(|i| i.trim_start().strip_prefix('"')) {
                    source
                        .includes
                        .extend(name.split('"').next().map(String::from));
                }
                len
            } else {
                let len = token_len(rest);
                source.tokens.push(Token {
                    text: &rest[..len],
                    line,
                });
                line_is_empty = false;
                len
            };
            line += rest[..len].matches('\n').count();
            rest = &rest[len..];
        }
        source
    }

    /// The text of a token from here on; empty behind the last.
    pub fn peek(&self, ahead: usize) -> &'a str {
        self.tokens
            .get(self.at + ahead)
            .map_or("", |token| token.text)
    }

    pub fn line(&self) -> usize {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens
            .get(self.at.min(last))
            .map_or(1, |token| token.line)
    }

    /// The tokens between the bracket here and its partner; goes on behind it.
    pub fn bracketed(&mut self) -> Parsed<Vec<Token<'a>>> {
        let (open, line) = (self.peek(0), self.line());
        let close = match open {
            "(" => ")",
            "{" => "}",
            "[" => "]",
            "<" => ">",
            other => return fault(line, format!("a bracket is expected here, not '{other}'")),
        };
        let mut depth = 0;
        let start = self.at + 1;
        while self.at < self.tokens.len() {
            let text = self.peek(0);
            self.at += 1;
            depth += i32::from(text == open) - i32::from(text == close);
            if depth == 0 {
                return Ok(self.tokens[start..self.at - 1].to_vec());
            }
        }
        fault(line, format!("this '{open}' is never closed"))
    }

    /// The comment lines directly above a line, from top to bottom.
    pub fn comments_above(&mut self, line: usize) -> Vec<(usize, &'a str)> {
        let mut lines = Vec::new();
        let mut above = line;
        while let Some(comment) = self.comments.get_mut(&(above - 1)) {
            above -= 1;
            comment.used = true;
            lines.push((above, comment.text));
        }
        lines.reverse();
        lines
    }

    /// The text of the `///` lines directly above a line.
    pub fn doc_above(&mut self, line: usize) -> Vec<String> {
        let lines = self.comments_above(line).into_iter();
        lines
            .filter_map(|(_, text)| text.strip_prefix("///").map(String::from))
            .collect()
    }
}
