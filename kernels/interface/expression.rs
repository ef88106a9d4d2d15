//! Integer expressions: thread counts and array sizes.

use std::collections::BTreeMap;

use super::lex::{Fault, Parsed, Token};

/// The value of an integer expression of literals, constants, `+ - * / %` and parentheses.
pub fn evaluate(tokens: &[Token], constants: &BTreeMap<String, i64>, line: usize) -> Parsed<i64> {
    let mut rest = tokens;
    let value = sum(&mut rest, constants).filter(|_| rest.is_empty());
    let text = || {
        tokens
            .iter()
            .map(|token| token.text)
            .collect::<Vec<_>>()
            .join(" ")
    };
    value.ok_or_else(|| {
        Fault(
            line,
            format!("'{}' is no integer known before compiling", text()),
        )
    })
}

fn sum(rest: &mut &[Token], constants: &BTreeMap<String, i64>) -> Option<i64> {
    let mut value = product(rest, constants)?;
    while let Some((sign, behind)) = rest.split_first() {
        let plus = match sign.text {
            "+" => true,
            "-" => false,
            _ => break,
        };
        *rest = behind;
        let term = product(rest, constants)?;
        value = if plus {
            value.checked_add(term)?
        } else {
            value.checked_sub(term)?
        };
    }
    Some(value)
}

fn product(rest: &mut &[Token], constants: &BTreeMap<String, i64>) -> Option<i64> {
    let mut value = factor(rest, constants)?;
    while let Some((sign, behind)) = rest.split_first() {
        let operation = match sign.text {
            "*" => i64::checked_mul,
            "/" => i64::checked_div,
            "%" => i64::checked_rem,
            _ => break,
        };
        *rest = behind;
        value = operation(value, factor(rest, constants)?)?;
    }
    Some(value)
}

fn factor(rest: &mut &[Token], constants: &BTreeMap<String, i64>) -> Option<i64> {
    let (first, behind) = rest.split_first()?;
    *rest = behind;
    if first.text == "(" {
        let value = sum(rest, constants)?;
        let (close, behind) = rest.split_first()?;
        *rest = behind;
        return (close.text == ")").then_some(value);
    }
    if let Some(&value) = constants.get(first.text) {
        return Some(value);
    }
    let digits = first.text.replace('\'', "");
    let digits = digits.trim_end_matches(['u', 'U', 'l', 'L']);
    match digits.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok(),
        None => digits.parse().ok(),
    }
}
