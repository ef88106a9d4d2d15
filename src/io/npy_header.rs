//! The header of a `.npy` file.
//!
//! Only what such a header can be is read: one dictionary of the three known keys. General parsers
//! of Python literals recurse as deep as the file tells them to.

use std::fmt;

/// What the elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Float,
    Signed,
    Unsigned,
}

/// The type of one element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descr {
    pub kind: Kind,
    /// In bytes.
    pub size: usize,
    pub big_endian: bool,
}

impl fmt::Display for Descr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Float => 'f',
            Kind::Signed => 'i',
            Kind::Unsigned => 'u',
        };
        write!(f, "{kind}{}", self.size)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub descr: Descr,
    pub fortran_order: bool,
    pub shape: Vec<usize>,
}

/// What is wrong with a header; `at` counts bytes from its start.
#[derive(Debug)]
pub(super) struct Wrong {
    pub at: usize,
    pub expected: String,
    pub found: String,
}

/// The numpy limit on the number of axes.
const AXES_MOST: usize = 64;
const TYPES: &str = "the type f4 (f32), u1 (u8) or another integer type";

/// Everything of a version 1.0 file up to the first element: f32, C order. `shape` has at most
/// [`AXES_MOST`] axes, so the length fits its two bytes.
pub(super) fn encode(shape: &[usize]) -> Vec<u8> {
    assert!(shape.len() <= AXES_MOST, "more axes than an array can have");
    let shape = super::npy::show(shape);
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    // Spaces and a newline up to a multiple of 64, so that the elements are aligned.
    while (10 + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

pub(super) fn parse(text: &[u8]) -> Result<Header, Wrong> {
    let mut scan = Scan { text, at: 0 };
    let mut descr = None;
    let mut fortran_order = None;
    let mut shape = None;
    scan.expect(b'{')?;
    while !scan.accept(b'}') {
        let at = scan.skip();
        let key = scan.string()?;
        scan.expect(b':')?;
        match key {
            b"descr" => descr = Some(scan.descr()?),
            b"fortran_order" => fortran_order = Some(scan.boolean()?),
            b"shape" => shape = Some(scan.shape()?),
            other => {
                return Err(Wrong {
                    at,
                    expected: "'descr', 'fortran_order' or 'shape'".into(),
                    found: format!("'{}'", other.escape_ascii()),
                });
            }
        }
        if !scan.accept(b',') {
            scan.expect(b'}')?;
            break;
        }
    }
    let end = scan.skip();
    if end < text.len() {
        return Err(scan.wrong("the end of the header"));
    }
    let missing = |key: &str| Wrong {
        at: end,
        expected: format!("a header with '{key}'"),
        found: "none".into(),
    };
    Ok(Header {
        descr: descr.ok_or_else(|| missing("descr"))?,
        fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
        shape: shape.ok_or_else(|| missing("shape"))?,
    })
}

/// A place in the header's text.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    /// Passes white space; the position after it.
    fn skip(&mut self) -> usize {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        self.at
    }

    /// Passes `byte` if it is next.
    fn accept(&mut self, byte: u8) -> bool {
        self.skip();
        let next = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(next);
        next
    }

    fn expect(&mut self, byte: u8) -> Result<(), Wrong> {
        match self.accept(byte) {
            true => Ok(()),
            false => Err(self.wrong(&format!("`{}`", char::from(byte)))),
        }
    }

    /// A string in single or double quotes; none of ours holds an escape.
    fn string(&mut self) -> Result<&'a [u8], Wrong> {
        let start = self.skip() + 1;
        let quote = match self.text.get(self.at) {
            Some(&quote @ (b'\'' | b'"')) => quote,
            _ => return Err(self.wrong("a string in quotes")),
        };
        match self.text[start..].iter().position(|&b| b == quote) {
            Some(len) => {
                self.at = start + len + 1;
                Ok(&self.text[start..start + len])
            }
            None => Err(self.wrong("a string with an end")),
        }
    }

    fn boolean(&mut self) -> Result<bool, Wrong> {
        self.skip();
        for (word, value) in [("True", true), ("False", false)] {
            if self.text[self.at..].starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.wrong("True or False"))
    }

    fn descr(&mut self) -> Result<Descr, Wrong> {
        let at = self.skip();
        if self.text.get(at) == Some(&b'[') {
            return Err(Wrong {
                at,
                expected: TYPES.into(),
                found: "a record type".into(),
            });
        }
        let name = self.string()?;
        let (order, rest) = match name {
            [order @ (b'<' | b'>' | b'|' | b'='), rest @ ..] => (*order, rest),
            rest => (b'=', rest),
        };
        let (kind, size) = match rest {
            b"f4" => (Kind::Float, 4),
            [b'i', size @ (b'1' | b'2' | b'4' | b'8')] => (Kind::Signed, size - b'0'),
            [b'u', size @ (b'1' | b'2' | b'4' | b'8')] => (Kind::Unsigned, size - b'0'),
            _ => {
                return Err(Wrong {
                    at,
                    expected: TYPES.into(),
                    found: format!("'{}'", name.escape_ascii()),
                });
            }
        };
        Ok(Descr {
            kind,
            size: usize::from(size),
            big_endian: order == b'>' || (order == b'=' && cfg!(target_endian = "big")),
        })
    }

    /// `()`, `(5,)`, `(2, 3)`, `(2, 3,)`, or the same as a list.
    fn shape(&mut self) -> Result<Vec<usize>, Wrong> {
        let close = match self.accept(b'(') {
            true => b')',
            false => {
                self.expect(b'[').map_err(|wrong| Wrong {
                    expected: "`(`".into(),
                    ..wrong
                })?;
                b']'
            }
        };
        let mut shape = Vec::new();
        while !self.accept(close) {
            if shape.len() == AXES_MOST {
                return Err(self.wrong("at most 64 axes"));
            }
            shape.push(self.number()?);
            if !self.accept(b',') {
                self.expect(close)?;
                break;
            }
        }
        Ok(shape)
    }

    fn number(&mut self) -> Result<usize, Wrong> {
        let start = self.skip();
        let digits = self.text[start..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count();
        let text = std::str::from_utf8(&self.text[start..start + digits]).unwrap_or_default();
        match text.parse() {
            Ok(number) => {
                self.at += digits;
                // Python 2 wrote long integers with an L.
                self.at += usize::from(self.text.get(self.at) == Some(&b'L'));
                Ok(number)
            }
            Err(_) => Err(self.wrong("the length of an axis")),
        }
    }

    /// `expected` against the next few bytes.
    fn wrong(&self, expected: &str) -> Wrong {
        let rest = &self.text[self.at.min(self.text.len())..];
        let found = match rest.len() {
            0 => "the end of the header".to_owned(),
            len => {
                let text = rest[..len.min(16)].escape_ascii().to_string();
                format!("`{}`", text.replace("\\'", "'"))
            }
        };
        Wrong {
            at: self.at,
            expected: expected.into(),
            found,
        }
    }
}
