//! Text for HTML and SVG: escaping, width, short numbers.

use std::fmt::Write;

/// `text` with everything that HTML or XML could take as markup replaced. Characters that XML
/// forbids altogether become U+FFFD.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' => out.push(c),
            '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

/// A path as a relative URL: everything but letters, digits, `/` and `-._~` as `%XX`. What could be taken for a
/// scheme (`a:b`) is not, since `:` is among the others.
pub fn href(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char);
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// Width of a line of text in units of its font size: an estimate for a common sans-serif, on the
/// wide side, because the font is the reader's.
pub fn width(text: &str) -> f64 {
    let em = |c: char| match c {
        'i' | 'j' | 'l' | 't' | 'f' | 'r' | 'I' | ' ' | '.' | ',' | ':' | ';' | '\'' | '|'
        | '!' | '(' | ')' | '[' | ']' | '/' => 0.36,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 0.92,
        'A'..='Z' | '&' | '+' | '=' | '<' | '>' => 0.70,
        '⁰'..='⁹' | '¹' | '²' | '³' | '⁻' => 0.40,
        c if c >= '\u{1100}' => 1.0,
        _ => 0.59,
    };
    text.chars().map(em).sum()
}

/// Words of `text` in lines of at most `limit` (in units of the font size). A longer word stands
/// alone.
pub fn wrap(text: &str, limit: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(line) + width(" ") + width(word) <= limit => {
                let _ = write!(line, " {word}");
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

/// A number to four significant digits, without trailing zeros.
pub fn short(v: f64) -> String {
    let size = v.abs();
    if v == 0.0 || !v.is_finite() {
        return format!("{v}").replace("-0", "0");
    }
    if !(1e-4..1e6).contains(&size) {
        return format!("{v:.3e}");
    }
    let decimals = (3 - size.log10().floor() as i32).max(0) as usize;
    let text = format!("{v:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

/// `exponent` in superscript digits.
pub fn superscript(exponent: i32) -> String {
    let digit = |c| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => char::from_u32('⁰' as u32 + (c as u32 - '0' as u32)).unwrap_or(c),
    };
    exponent.to_string().chars().map(digit).collect()
}
