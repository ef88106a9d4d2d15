//! Structs and their layout, by C's rules.

use super::expression::evaluate;
use super::lex::{Fault, Parsed, Source, Token, fault, is_word};
use super::parse::{RUST_KEYWORDS, Scope, path};
use super::{Field, FieldType, Scalar, Struct};

impl<'a> Source<'a> {
    /// From the opening brace to the closing one. The inner error says why no kernel can take it.
    pub fn structure(
        &mut self,
        name: &'a str,
        line: usize,
        is_template: bool,
        scope: &Scope,
    ) -> Parsed<Result<Struct, String>> {
        let doc = self.doc_above(line);
        let first = self.at + 1;
        self.bracketed()?;
        let end = self.at - 1;
        if is_template {
            return Ok(Err("it is a template".to_string()));
        }
        self.at = first;
        let mut found = Struct {
            name: name.to_string(),
            doc,
            fields: vec![],
            size: 0,
            align: 1,
            plain_bytes: true,
        };
        let mut result = Ok(());
        while self.at < end && result.is_ok() {
            result = self.member(&mut found, end, scope);
        }
        self.at = end + 1;
        // Padding behind the last field.
        let size = found.size.next_multiple_of(found.align);
        found.plain_bytes &= size == found.size;
        found.size = size;
        Ok(match result {
            Ok(()) if found.fields.is_empty() => Err("it has no fields".to_string()),
            Ok(()) => Ok(found),
            Err(Fault(line, message)) => Err(format!("line {line}: {message}")),
        })
    }

    /// One declaration of a struct's body.
    fn member(&mut self, found: &mut Struct, end: usize, scope: &Scope) -> Parsed<()> {
        let (start, line) = (self.at, self.line());
        while self.at < end && !matches!(self.peek(0), ";" | "(" | "{" | "=") {
            self.at += 1;
        }
        let tokens = &self.tokens[start..self.at];
        match self.peek(0) {
            // A function takes no room.
            "(" if !tokens.iter().any(|token| token.text == "virtual") => {
                while self.at < end && !matches!(self.peek(0), ";" | "{") {
                    self.at += 1;
                }
                if self.peek(0) == "{" {
                    self.bracketed()?;
                }
                if self.peek(0) == ";" {
                    self.at += 1;
                }
                return Ok(());
            }
            ";" => self.at += 1,
            _ => {
                return fault(
                    line,
                    "a field is written 'type name;' or 'type name[count];'",
                );
            }
        }
        let tokens = tokens.to_vec();
        if tokens.is_empty() {
            return Ok(());
        }
        let doc = self.doc_above(line);
        let (base, mut rest) = field_type(&tokens, scope)?;
        loop {
            let stars = rest.iter().take_while(|token| token.text == "*").count();
            rest = &rest[stars..];
            let ty = match &base {
                // What it points to does not change the layout.
                _ if stars > 0 => FieldType::Pointer,
                Ok(ty) => ty.clone(),
                Err(message) => return fault(line, message.clone()),
            };
            let Some((name, behind)) = rest.split_first().filter(|(name, _)| is_word(name.text))
            else {
                return fault(line, "a field has no name");
            };
            rest = behind;
            let mut dims = Vec::new();
            while rest.first().is_some_and(|token| token.text == "[") {
                let close = rest
                    .iter()
                    .position(|token| token.text == "]")
                    .unwrap_or(rest.len());
                let count = evaluate(&rest[1..close], &scope.constants, line)?;
                let count = usize::try_from(count).ok().filter(|&count| count > 0);
                dims.push(count.ok_or(Fault(line, "an array needs at least one element".into()))?);
                rest = &rest[(close + 1).min(rest.len())..];
            }
            add_field(found, name, doc.clone(), ty, dims, scope)?;
            match rest.first().map(|token| token.text) {
                None => return Ok(()),
                Some(",") => rest = &rest[1..],
                Some(other) => return fault(line, format!("'{other}' is not expected here")),
            }
        }
    }
}

/// The type at the front of a field's declaration, and what follows it.
fn field_type<'t, 'a>(
    tokens: &'t [Token<'a>],
    scope: &Scope,
) -> Parsed<(Result<FieldType, String>, &'t [Token<'a>])> {
    let skip = tokens
        .iter()
        .take_while(|token| token.text == "const")
        .count();
    if skip == tokens.len() {
        return fault(tokens[0].line, "a field has no type");
    }
    let (word, _, rest) = path(&tokens[skip..]);
    let ty = match (Scalar::of_cpp(word), scope.structs.get(word)) {
        (Some(scalar), _) => Ok(FieldType::Scalar(scalar)),
        (_, Some(Ok(_))) => Ok(FieldType::Struct(word.to_string())),
        (_, Some(Err(reason))) => Err(format!("a field of type {word}: {reason}")),
        _ => Err(format!("'{word}' is no type of a field")),
    };
    Ok((ty, rest))
}

fn add_field(
    found: &mut Struct,
    name: &Token,
    doc: Vec<String>,
    ty: FieldType,
    dims: Vec<usize>,
    scope: &Scope,
) -> Parsed<()> {
    if RUST_KEYWORDS.contains(&name.text) {
        let message = format!(
            "field '{}' needs another name: a keyword of Rust",
            name.text
        );
        return fault(name.line, message);
    }
    let (size, align, plain) = match &ty {
        FieldType::Scalar(scalar) => (scalar.size(), scalar.size(), *scalar != Scalar::Bool),
        FieldType::Pointer => (8, 8, true),
        FieldType::Struct(name) => match scope.structs.get(name) {
            Some(Ok(inner)) => (inner.size, inner.align, inner.plain_bytes),
            _ => unreachable!("field_type looked it up"),
        },
    };
    let offset = found.size.next_multiple_of(align);
    found.plain_bytes &= plain && offset == found.size;
    found.size = offset + size * dims.iter().product::<usize>();
    found.align = found.align.max(align);
    found.fields.push(Field {
        name: name.text.to_string(),
        doc,
        ty,
        dims,
        offset,
    });
    Ok(())
}
