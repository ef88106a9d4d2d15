//! The interface of the kernels, read from the kernels themselves.
//!
//! A kernel's signature is written once, in `kernels/<op>.cu`. This module reads it there and
//! writes what would otherwise be typed again: the C++ file that instantiates the templates under
//! plain names ([`Interface::wrapper`]) and the Rust functions that launch them
//! ([`Interface::rust`]). The root's `build.rs` and the emulator's include it by `#[path]`; it has
//! no dependencies and calls no compiler.
//!
//! What a kernel file looks like:
//!
//! ```text
//! struct Clamp { float low, high; };
//!
//! /// y = min(max(x, low), high)
//! // instances: T = f32 bf16; K = 1 3
//! template <class T, bool NOISE, int K>
//! KERNEL(256) relu_forward(T *y, const T *x, uint64_t n, Clamp clamp) { ... }
//! ```
//!
//! `KERNEL(threads)` or `KERNEL(threads, min_blocks)` marks a kernel; both are integer expressions
//! of literals, `constexpr` constants and the kernel's own integer template parameters.
//! `instances:` lists values of template parameters; without it a `class` stands for f32, bf16 and
//! f16 and a `bool` for both values, while an `int` must be listed. Several such lines add up. An
//! instance's name is the kernel's followed by its template arguments:
//! `relu_forward_bf16_noise_3` (a type's short name, a bool's own name if true, an int's value).
//!
//! Parameters are scalars, pointers, plain structs by value, and `const CUtensorMap &`, a tensor map, which the
//! instance takes as a `__grid_constant__`.

// Each includer uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::{fmt, fs};

#[path = "interface/expression.rs"]
mod expression;
#[path = "interface/lex.rs"]
mod lex;
#[path = "interface/parse.rs"]
mod parse;
#[path = "interface/rust.rs"]
mod rust;
#[path = "interface/structs.rs"]
mod structs;
#[cfg(test)]
#[path = "interface/tests.rs"]
mod tests;

/// All kernels and the structs that they take.
pub struct Interface {
    files: Vec<File>,
}

/// One `.cu` or `.cuh`.
struct File {
    name: String,
    text: String,
    /// Files named by `#include "..."`.
    includes: Vec<String>,
    /// By name; `Err` says why it cannot be a kernel's parameter.
    structs: BTreeMap<String, Result<Struct, String>>,
    kernels: Vec<Kernel>,
}

struct Kernel {
    name: String,
    line: usize,
    doc: Vec<String>,
    templates: Vec<Template>,
    params: Vec<Param>,
    instances: Vec<Instance>,
}

struct Template {
    name: String,
    kind: TemplateKind,
}

#[derive(Clone, Copy, PartialEq)]
enum TemplateKind {
    Type,
    Bool,
    Int,
}

/// One choice of template arguments, in the order of the parameters.
struct Instance {
    symbol: String,
    values: Vec<Value>,
    threads: i64,
    min_blocks: Option<i64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Value {
    Type(Scalar),
    Bool(bool),
    Int(i64),
}

struct Param {
    name: String,
    constant: bool,
    restrict: bool,
    pointer: bool,
    ty: Type,
    /// As the kernel spells it, `noise::Row` for instance.
    spelling: String,
}

/// What a parameter is, or what it points to.
#[derive(Clone, PartialEq)]
enum Type {
    Scalar(Scalar),
    Struct(String),
    /// The template parameter of this index.
    Template(usize),
    /// `CUtensorMap`, by reference: it stays where the launch puts parameters.
    TensorMap,
}

#[derive(Clone, Copy, PartialEq)]
enum Scalar {
    F32,
    F64,
    BF16,
    F16,
    U8,
    I32,
    U32,
    U64,
    Bool,
}

/// Types by their names in C++, in Rust, among our instances, and their size.
const SCALARS: [(Scalar, &str, &str, &str, usize); 9] = [
    (Scalar::F32, "float", "f32", "f32", 4),
    (Scalar::F64, "double", "f64", "f64", 8),
    (Scalar::BF16, "__nv_bfloat16", "half::bf16", "bf16", 2),
    (Scalar::F16, "__half", "half::f16", "f16", 2),
    (Scalar::U8, "uint8_t", "u8", "u8", 1),
    (Scalar::I32, "int32_t", "i32", "i32", 4),
    (Scalar::U32, "uint32_t", "u32", "u32", 4),
    (Scalar::U64, "uint64_t", "u64", "u64", 8),
    (Scalar::Bool, "bool", "bool", "bool", 1),
];

/// What a `class` parameter stands for.
const ACTIVATIONS: [Scalar; 3] = [Scalar::F32, Scalar::BF16, Scalar::F16];

impl Scalar {
    fn row(self) -> &'static (Scalar, &'static str, &'static str, &'static str, usize) {
        SCALARS
            .iter()
            .find(|row| row.0 == self)
            .expect("every scalar has a row")
    }
    fn of_cpp(name: &str) -> Option<Scalar> {
        SCALARS.iter().find(|row| row.1 == name).map(|row| row.0)
    }
    fn cpp(self) -> &'static str {
        self.row().1
    }
    fn rust(self) -> &'static str {
        self.row().2
    }
    fn short(self) -> &'static str {
        self.row().3
    }
    fn size(self) -> usize {
        self.row().4
    }
    /// The variant of `DType`.
    fn dtype(self) -> String {
        self.short().to_uppercase()
    }
    /// The variant of `Elem`.
    fn elem(self) -> &'static str {
        match self {
            Scalar::F32 => "F32",
            Scalar::F64 => "F64",
            Scalar::BF16 => "Bf16",
            Scalar::F16 => "F16",
            Scalar::U8 => "U8",
            Scalar::I32 => "I32",
            Scalar::U32 => "U32",
            Scalar::U64 => "U64",
            Scalar::Bool => unreachable!("nothing points to bool"),
        }
    }
}

/// A plain struct of ours: fields in order, by C's layout rules.
#[derive(Clone)]
struct Struct {
    name: String,
    doc: Vec<String>,
    fields: Vec<Field>,
    size: usize,
    align: usize,
    /// Every byte belongs to a field, and any bytes are a value.
    plain_bytes: bool,
}

#[derive(Clone)]
struct Field {
    name: String,
    doc: Vec<String>,
    ty: FieldType,
    /// Array sizes, outermost first.
    dims: Vec<usize>,
    offset: usize,
}

#[derive(Clone)]
enum FieldType {
    Scalar(Scalar),
    Struct(String),
    /// A device address.
    Pointer,
}

impl Interface {
    /// Reads every `.cu` and `.cuh` of a folder. An error names file and line.
    pub fn read(dir: &Path) -> Result<Interface, String> {
        let mut files = Vec::new();
        let listing = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        for entry in listing {
            let path = entry.map_err(|e| format!("{}: {e}", dir.display()))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if !name.starts_with('.') && (name.ends_with(".cu") || name.ends_with(".cuh")) {
                let text =
                    fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                files.push((name.to_string(), text));
            }
        }
        Interface::parse(files).map_err(|e| format!("{}/{e}", dir.display()))
    }

    /// The same from names and texts.
    fn parse(mut sources: Vec<(String, String)>) -> Result<Interface, String> {
        sources.sort();
        let mut scope = parse::Scope::default();
        let mut files = Vec::new();
        // What a header declares is visible in every file behind it.
        for index in include_order(&sources) {
            let (name, text) = sources[index].clone();
            let header = name.ends_with(".cuh");
            let mut own = scope.clone();
            files.push(parse::file(name, text, &mut own)?);
            if header {
                scope = own;
            }
        }

        // The driver and the emulator find kernels by name alone.
        let mut seen: BTreeMap<&str, (&File, &Kernel)> = BTreeMap::new();
        for file in &files {
            for kernel in &file.kernels {
                for instance in &kernel.instances {
                    if let Some((other, at)) = seen.insert(&instance.symbol, (file, kernel)) {
                        return Err(format!(
                            "{}:{}: {} has an instance named {}, and so has {} in {}:{}",
                            file.name,
                            kernel.line,
                            kernel.name,
                            instance.symbol,
                            at.name,
                            other.name,
                            at.line
                        ));
                    }
                }
            }
        }
        Ok(Interface { files })
    }

    /// The ops: names of the `.cu` files without the ending, in alphabetical order.
    pub fn stems(&self) -> Vec<&str> {
        self.files
            .iter()
            .filter_map(|file| file.name.strip_suffix(".cu"))
            .collect()
    }

    /// The names of an op's instances, in the order of the file.
    pub fn symbols(&self, stem: &str) -> Vec<&str> {
        let kernels = self.file(stem).kernels.iter();
        kernels
            .flat_map(|kernel| &kernel.instances)
            .map(|i| i.symbol.as_str())
            .collect()
    }

    /// What an op's machine code depends on: the kernel file and everything it includes, as
    /// names and texts.
    pub fn inputs(&self, stem: &str) -> Vec<(&str, &str)> {
        let mut names = vec![format!("{stem}.cu")];
        let mut inputs = Vec::new();
        let mut next = 0;
        while next < names.len() {
            // A name that is none of our files is a header of the compiler.
            if let Some(file) = self.files.iter().find(|file| file.name == names[next]) {
                inputs.push((file.name.as_str(), file.text.as_str()));
                for include in &file.includes {
                    if !names.contains(include) {
                        names.push(include.clone());
                    }
                }
            }
            next += 1;
        }
        inputs
    }

    /// The C++ file that instantiates an op's kernels under plain names.
    pub fn wrapper(&self, stem: &str) -> String {
        let file = self.file(stem);
        let mut out = format!("// Generated from {} by kernels/interface.rs.\n", file.name);
        for include in &file.includes {
            out += &format!("#include \"{include}\"\n");
        }
        // A kernel without template parameters has the very name that its instance needs. The
        // namespace keeps the two apart; headers, included already, stay out of it.
        out += &format!("namespace body {{\n#include \"{}\"\n}}\n", file.name);
        for kernel in &file.kernels {
            for instance in &kernel.instances {
                instance_cpp(&mut out, file, kernel, instance).expect("a String takes all text");
            }
        }
        out
    }

    /// The launchers and the twins of the structs, one module for each op.
    pub fn rust(&self) -> String {
        rust::generate(self)
    }

    fn file(&self, stem: &str) -> &File {
        let is_it = |file: &&File| file.name.strip_suffix(".cu") == Some(stem);
        self.files
            .iter()
            .find(is_it)
            .unwrap_or_else(|| panic!("no kernel file {stem}.cu"))
    }
}

/// Headers before files, and every header behind those that it includes.
fn include_order(sources: &[(String, String)]) -> Vec<usize> {
    fn visit(
        index: usize,
        sources: &[(String, String)],
        order: &mut Vec<usize>,
        open: &mut Vec<usize>,
    ) {
        if order.contains(&index) || open.contains(&index) {
            return;
        }
        open.push(index);
        for include in lex::includes(&sources[index].1) {
            if let Some(next) = sources.iter().position(|(name, _)| *name == include) {
                visit(next, sources, order, open);
            }
        }
        order.push(index);
    }
    let mut order = Vec::new();
    for headers in [true, false] {
        for (index, (name, _)) in sources.iter().enumerate() {
            if name.ends_with(".cuh") == headers {
                visit(index, sources, &mut order, &mut Vec::new());
            }
        }
    }
    order
}

fn instance_cpp(
    out: &mut String,
    file: &File,
    kernel: &Kernel,
    instance: &Instance,
) -> fmt::Result {
    let spelled = |param: &Param| {
        let own: String;
        let ty = match &param.ty {
            Type::Scalar(scalar) => scalar.cpp(),
            Type::Struct(name) if file.structs.contains_key(name) => {
                own = format!("body::{}", param.spelling);
                &own
            }
            Type::Struct(_) => &param.spelling,
            Type::Template(index) => match instance.values[*index] {
                Value::Type(scalar) => scalar.cpp(),
                _ => unreachable!("parsed as a type"),
            },
            Type::TensorMap => {
                return format!("const __grid_constant__ CUtensorMap {}", param.name);
            }
        };
        let constant = if param.constant { "const " } else { "" };
        let star = if param.pointer { "*" } else { "" };
        let restrict = if param.restrict { "__restrict__ " } else { "" };
        format!("{constant}{ty} {star}{restrict}{}", param.name)
    };
    let params: Vec<String> = kernel.params.iter().map(spelled).collect();
    let names: Vec<&str> = kernel
        .params
        .iter()
        .map(|param| param.name.as_str())
        .collect();
    let values: Vec<String> = instance
        .values
        .iter()
        .map(|value| match value {
            Value::Type(scalar) => scalar.cpp().to_string(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
        })
        .collect();
    let symbol = &instance.symbol;

    write!(
        out,
        "\nextern \"C\" __global__ void __launch_bounds__({}",
        instance.threads
    )?;
    if let Some(min_blocks) = instance.min_blocks {
        write!(out, ", {min_blocks}")?;
    }
    write!(
        out,
        ") {symbol}({}) {{ gpu::begin(); body::{}",
        params.join(", "),
        kernel.name
    )?;
    if !values.is_empty() {
        write!(out, "<{}>", values.join(", "))?;
    }
    writeln!(out, "({}); }}", names.join(", "))?;
    writeln!(out, "GPU_EXPORT({symbol})")
}
