//! Reads one kernel file: tokens, then the three things that matter in it (constants, structs,
//! kernels). Everything else, function bodies included, is passed over; the compiler reads those.

use std::collections::BTreeMap;

use super::expression::evaluate;
use super::lex::{Comment, Fault, Parsed, Source, Token, fault, is_word};
use super::{
    ACTIVATIONS, File, Instance, Kernel, Param, SCALARS, Scalar, Struct, Template, TemplateKind,
    Type, Value,
};

/// What a file's declarations may refer to.
#[derive(Clone, Default)]
pub struct Scope {
    pub constants: BTreeMap<String, i64>,
    pub structs: BTreeMap<String, Result<Struct, String>>,
}

/// Parses a file; adds its constants and structs to the scope.
pub fn file(name: String, text: String, scope: &mut Scope) -> Result<File, String> {
    let mut file = File {
        name,
        text: String::new(),
        includes: Vec::new(),
        structs: BTreeMap::new(),
        kernels: Vec::new(),
    };
    let mut source = Source::lex(&text);
    file.includes = std::mem::take(&mut source.includes);
    source
        .declarations(scope, &mut file)
        .map_err(|Fault(line, message)| format!("{}:{line}: {message}", file.name))?;
    file.text = text;
    Ok(file)
}

impl<'a> Source<'a> {
    fn declarations(&mut self, scope: &mut Scope, file: &mut File) -> Parsed<()> {
        let mut template: Option<(usize, Vec<Token<'a>>)> = None;
        while self.at < self.tokens.len() {
            let line = self.line();
            match (self.peek(0), self.peek(1)) {
                ("template", "<") => {
                    self.at += 1;
                    template = Some((line, self.bracketed()?));
                    continue;
                }
                ("KERNEL", "(") => {
                    let kernel = self.kernel(template.take(), scope)?;
                    file.kernels.push(kernel);
                }
                ("struct", name) if is_word(name) => {
                    self.at += 2;
                    if self.peek(0) == "{" {
                        let found = self.structure(name, line, template.is_some(), scope)?;
                        scope.structs.insert(name.to_string(), found.clone());
                        file.structs.insert(name.to_string(), found);
                    }
                }
                ("constexpr", _) => self.constant(scope),
                _ => self.at += 1,
            }
            template = None;
        }
        if file.name.ends_with(".cuh")
            && let Some(kernel) = file.kernels.first()
        {
            return fault(
                kernel.line,
                "kernels stand in .cu files; a header is not compiled",
            );
        }
        let stray = |c: &&(&usize, &Comment)| !c.1.used && instances_list(c.1.text).is_some();
        match self.comments.iter().find(|c| stray(&c)) {
            Some((&line, _)) => fault(line, "this 'instances:' line stands above no kernel"),
            None => Ok(()),
        }
    }

    /// `constexpr uint32_t NAME = 2 * OTHER;`: what is no integer expression is no constant for us.
    fn constant(&mut self, scope: &mut Scope) {
        self.at += 1;
        let start = self.at;
        while !matches!(self.peek(0), "" | ";" | "{" | "(") {
            self.at += 1;
        }
        let tokens = &self.tokens[start..self.at];
        if let Some(equals) = tokens.iter().position(|token| token.text == "=")
            && equals > 0
        {
            // A parenthesis may belong to the expression.
            let mut end = start + equals + 1;
            while !matches!(self.tokens.get(end).map_or("", |t| t.text), "" | ";" | "{") {
                end += 1;
            }
            let value = &self.tokens[start + equals + 1..end];
            if let Ok(value) = evaluate(value, &scope.constants, self.line()) {
                scope
                    .constants
                    .insert(tokens[equals - 1].text.to_string(), value);
            }
        }
    }

    /// From `KERNEL` to the parameter list's end.
    fn kernel(
        &mut self,
        template: Option<(usize, Vec<Token<'a>>)>,
        scope: &Scope,
    ) -> Parsed<Kernel> {
        let line = self.line();
        self.at += 1;
        let bounds = self.bracketed()?;
        let name = self.peek(0);
        if !is_word(name) || self.peek(1) != "(" {
            return fault(
                line,
                "KERNEL(threads) is followed by the kernel's name and parameters",
            );
        }
        self.at += 1;
        let list = self.bracketed()?;
        if self.peek(0) != "{" {
            return fault(
                line,
                format!("{name}: the body is expected behind the parameters"),
            );
        }

        let top = template.as_ref().map_or(line, |(line, _)| *line);
        let comments = self.comments_above(top);
        let templates = match &template {
            Some((line, tokens)) => template_params(tokens, *line, name)?,
            None => Vec::new(),
        };
        let mut params = Vec::new();
        for tokens in split(&list) {
            let param = param(tokens, &templates, scope, line)
                .map_err(|Fault(line, message)| Fault(line, format!("{name}: {message}")))?;
            check_name(&param, &params, &templates, line, name)?;
            params.push(param);
        }
        let mut kernel = Kernel {
            name: name.to_string(),
            line,
            doc: Vec::new(),
            templates,
            params,
            instances: Vec::new(),
        };
        let mut listed = false;
        for (line, text) in comments {
            if let Some(doc) = text.strip_prefix("///") {
                kernel.doc.push(doc.to_string());
            } else if let Some(list) = instances_list(text) {
                listed = true;
                let choices = choices(list, &kernel, line)?;
                kernel.instantiate(&choices, &bounds, scope, line)?;
            }
        }
        if !listed {
            let choices = choices("", &kernel, line)?;
            kernel.instantiate(&choices, &bounds, scope, line)?;
        }
        Ok(kernel)
    }
}

impl Kernel {
    /// Adds an instance for every combination of the values.
    fn instantiate(
        &mut self,
        choices: &[Vec<Value>],
        bounds: &[Token],
        scope: &Scope,
        line: usize,
    ) -> Parsed<()> {
        let mut combinations: Vec<Vec<Value>> = vec![Vec::new()];
        for values in choices {
            let longer = |head: &Vec<Value>| {
                let head = head.clone();
                values
                    .iter()
                    .map(move |&value| [&head[..], &[value]].concat())
            };
            combinations = combinations.iter().flat_map(longer).collect();
        }
        for values in combinations {
            if self
                .instances
                .iter()
                .any(|instance| instance.values == values)
            {
                continue;
            }
            let mut symbol = self.name.clone();
            let mut constants = scope.constants.clone();
            for (template, &value) in self.templates.iter().zip(&values) {
                match value {
                    Value::Type(scalar) => symbol += &format!("_{}", scalar.short()),
                    Value::Bool(true) => symbol += &format!("_{}", template.name.to_lowercase()),
                    Value::Bool(false) => {}
                    Value::Int(value) => symbol += &format!("_{value}"),
                }
                if let Value::Int(value) = value {
                    constants.insert(template.name.clone(), value);
                }
            }
            let bounds: Vec<&[Token]> = split(bounds).collect();
            if !matches!(bounds.len(), 1 | 2) {
                return fault(
                    self.line,
                    "write KERNEL(threads) or KERNEL(threads, min_blocks)",
                );
            }
            let threads = evaluate(bounds[0], &constants, self.line)?;
            let min_blocks = match bounds.get(1) {
                Some(tokens) => Some(evaluate(tokens, &constants, self.line)?),
                None => None,
            };
            if !(1..=1024).contains(&threads) || min_blocks.is_some_and(|n| !(1..=32).contains(&n))
            {
                return fault(
                    line,
                    format!("{symbol}: a block has 1 to 1024 threads, and min_blocks is 1 to 32"),
                );
            }
            self.instances.push(Instance {
                symbol,
                values,
                threads,
                min_blocks,
            });
        }
        Ok(())
    }
}

/// Splits at commas outside of brackets; nothing between them is nothing.
fn split<'t, 'a>(tokens: &'t [Token<'a>]) -> impl Iterator<Item = &'t [Token<'a>]> {
    let mut depth = 0;
    tokens
        .split(move |token| {
            match token.text {
                "(" | "[" | "{" | "<" => depth += 1,
                ")" | "]" | "}" | ">" => depth -= 1,
                _ => {}
            }
            depth == 0 && token.text == ","
        })
        .filter(|part| !part.is_empty())
}

fn template_params(tokens: &[Token], line: usize, kernel: &str) -> Parsed<Vec<Template>> {
    let mut templates: Vec<Template> = Vec::new();
    for part in split(tokens) {
        let kind = match part[0].text {
            "class" | "typename" => TemplateKind::Type,
            "bool" => TemplateKind::Bool,
            "int" | "uint32_t" => TemplateKind::Int,
            other => {
                let message = format!(
                    "{kernel}: a template parameter is 'class', 'bool' or 'int', not '{other}'"
                );
                return fault(line, message);
            }
        };
        match part {
            [_, name] if is_word(name.text) => {
                if templates
                    .iter()
                    .any(|t| t.name.eq_ignore_ascii_case(name.text))
                {
                    let message = format!("{kernel}: two template parameters are '{}'", name.text);
                    return fault(line, message);
                }
                templates.push(Template {
                    name: name.text.to_string(),
                    kind,
                });
            }
            _ => {
                let message = format!("{kernel}: a template parameter is a kind and a name");
                return fault(line, message);
            }
        }
    }
    Ok(templates)
}

/// What follows `// instances:`.
fn instances_list(comment: &str) -> Option<&str> {
    comment
        .trim_start_matches('/')
        .trim_start()
        .strip_prefix("instances:")
}

/// The values of every template parameter, from an `instances:` list and the defaults.
fn choices(list: &str, kernel: &Kernel, line: usize) -> Parsed<Vec<Vec<Value>>> {
    let mut named: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for part in list
        .split(';')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let Some((name, values)) = part.split_once('=') else {
            return fault(line, format!("write 'NAME = value value', not '{part}'"));
        };
        let name = name.trim();
        let Some(template) = kernel
            .templates
            .iter()
            .find(|template| template.name == name)
        else {
            let message = format!("{} has no template parameter '{name}'", kernel.name);
            return fault(line, message);
        };
        let words = values
            .split([' ', ',', '\t'])
            .filter(|word| !word.is_empty());
        let parsed: Vec<Value> = words
            .map(|word| {
                let expected = match template.kind {
                    TemplateKind::Type => "f32, bf16 or f16",
                    TemplateKind::Bool => "true or false",
                    TemplateKind::Int => "a number from 0 on",
                };
                let value = match template.kind {
                    TemplateKind::Type => {
                        let scalar = ACTIVATIONS.iter().find(|scalar| scalar.short() == word);
                        scalar.map(|&scalar| Value::Type(scalar))
                    }
                    TemplateKind::Bool => word.parse().ok().map(Value::Bool),
                    TemplateKind::Int => word.parse::<u32>().ok().map(|n| Value::Int(n.into())),
                };
                value.ok_or_else(|| {
                    Fault(
                        line,
                        format!("'{word}' is no value of {name}: {expected} is expected"),
                    )
                })
            })
            .collect::<Parsed<_>>()?;
        if parsed.is_empty() {
            return fault(line, format!("no value for {name}"));
        }
        named.insert(name, parsed);
    }
    let of = |template: &Template| match (named.remove(template.name.as_str()), template.kind) {
        (Some(values), _) => Ok(values),
        (None, TemplateKind::Type) => Ok(ACTIVATIONS.map(Value::Type).to_vec()),
        (None, TemplateKind::Bool) => Ok(vec![Value::Bool(false), Value::Bool(true)]),
        (None, TemplateKind::Int) => fault(
            line,
            format!(
                "{}: list the values of 'int {1}' directly above 'template', \
                 '// instances: {1} = 1 3'",
                kernel.name, template.name
            ),
        ),
    };
    kernel.templates.iter().map(of).collect()
}

/// Takes `a::b::Name` from the front: its last part, its spelling and the rest.
pub fn path<'t, 'a>(tokens: &'t [Token<'a>]) -> (&'a str, String, &'t [Token<'a>]) {
    let mut len = 1;
    while tokens.len() > len + 1 && tokens[len].text == "::" {
        len += 2;
    }
    let spelling = tokens[..len].iter().map(|token| token.text).collect();
    (tokens[len - 1].text, spelling, &tokens[len..])
}

fn param(tokens: &[Token], templates: &[Template], scope: &Scope, line: usize) -> Parsed<Param> {
    let line = tokens.first().map_or(line, |token| token.line);
    let text = || {
        tokens
            .iter()
            .map(|token| token.text)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let malformed = || {
        Fault(
            line,
            format!("'{}' is not 'type name' or 'type *name'", text()),
        )
    };

    let mut rest = tokens;
    let mut constant = false;
    let take_const = |rest: &mut &[Token], constant: &mut bool| {
        while let Some((_, behind)) = rest
            .split_first()
            .filter(|(token, _)| token.text == "const")
        {
            (*rest, *constant) = (behind, true);
        }
    };
    take_const(&mut rest, &mut constant);
    if rest.is_empty() {
        return Err(malformed());
    }
    let (word, spelling, behind) = path(rest);
    rest = behind;
    take_const(&mut rest, &mut constant);
    if word == "CUtensorMap" {
        let [and, name] = rest else {
            return Err(malformed());
        };
        if !constant || and.text != "&" || !is_word(name.text) {
            return fault(line, "write 'const CUtensorMap &name'");
        }
        return Ok(Param {
            name: name.text.to_string(),
            constant,
            restrict: false,
            pointer: false,
            ty: Type::TensorMap,
            spelling,
        });
    }
    let pointer = rest.first().is_some_and(|token| token.text == "*");
    rest = &rest[usize::from(pointer)..];
    let restrict = rest
        .first()
        .is_some_and(|token| token.text == "__restrict__");
    rest = &rest[usize::from(restrict)..];
    let [name] = rest else {
        return Err(malformed());
    };
    if !is_word(name.text) {
        return Err(malformed());
    }

    let template = templates
        .iter()
        .position(|t| t.name == word && t.kind == TemplateKind::Type);
    let ty = match (template, Scalar::of_cpp(word), scope.structs.get(word)) {
        (Some(index), ..) if pointer => Type::Template(index),
        (Some(_), ..) => {
            return fault(line, format!("'{}' by value: pass a float", text()));
        }
        (_, Some(Scalar::BF16 | Scalar::F16 | Scalar::U8), _) if !pointer => {
            return fault(line, format!("{word} by value: pass a float or uint32_t"));
        }
        (_, Some(Scalar::Bool), _) if pointer => {
            return fault(line, "a pointer to bool: take uint8_t".to_string());
        }
        (_, Some(scalar), _) => Type::Scalar(scalar),
        (.., Some(Ok(found))) if pointer && !found.plain_bytes => {
            let message =
                format!("struct {word} behind a pointer is uploaded as bytes: no padding, no bool");
            return fault(line, message);
        }
        (.., Some(Ok(_))) => Type::Struct(word.to_string()),
        (.., Some(Err(reason))) => {
            return fault(
                line,
                format!("struct {word} cannot be a parameter: {reason}"),
            );
        }
        _ => {
            let known: Vec<_> = SCALARS.iter().map(|row| row.1).collect();
            let message = format!(
                "'{word}' is no type of a parameter; known are {} and plain structs of ours",
                known.join(", ")
            );
            return fault(line, message);
        }
    };
    Ok(Param {
        name: name.text.to_string(),
        constant,
        restrict,
        pointer,
        ty,
        spelling,
    })
}

/// Refuses names that cannot be arguments of the launcher.
fn check_name(
    param: &Param,
    earlier: &[Param],
    templates: &[Template],
    line: usize,
    kernel: &str,
) -> Parsed<()> {
    let name = param.name.as_str();
    let taken = if LAUNCHER_NAMES.contains(&name) {
        "the launcher uses that name"
    } else if templates
        .iter()
        .any(|template| template.name.to_lowercase() == name)
    {
        "a template parameter has that name in the launcher"
    } else if earlier.iter().any(|param| param.name == name) {
        "it is there twice"
    } else if RUST_KEYWORDS.contains(&name) {
        "it is a keyword of Rust"
    } else {
        return Ok(());
    };
    fault(
        line,
        format!("{kernel}: parameter '{name}' needs another name: {taken}"),
    )
}

const LAUNCHER_NAMES: [&str; 8] = [
    "gpu", "grid", "shared", "kernel", "threads", "args", "address", "launch",
];

pub const RUST_KEYWORDS: [&str; 20] = [
    "abstract", "as", "async", "await", "box", "crate", "fn", "gen", "impl", "in", "let", "loop",
    "match", "mod", "move", "mut", "ref", "self", "type", "where",
];
