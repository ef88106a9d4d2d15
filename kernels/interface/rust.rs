//! Writes the Rust side: a module for each op with one launcher for each kernel, and the twins of
//! the structs that kernels take.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use super::{
    Field, FieldType, File, Instance, Interface, Kernel, Param, Struct, Template, TemplateKind,
    Type, Value,
};

const HEAD: &str = "\
// Generated from the kernel files by kernels/interface.rs.

#[allow(unused_imports)]
use crate::gpu::{Elem, Element, Gpu, Kernel, Ptr, TensorMap, launch};
#[allow(unused_imports)]
use crate::{DType, Result};

/// The address behind a pointer, after a look at what it points to.
#[allow(dead_code)]
fn address(kernel: &Kernel, param: &str, ptr: Ptr, elem: Elem) -> u64 {
    assert!(
        ptr.address == 0 || ptr.elem == elem,
        \"{}: {param} points to {:?}, the kernel takes {elem:?}\",
        kernel.name,
        ptr.elem,
    );
    ptr.address
}
";

pub fn generate(interface: &Interface) -> String {
    let mut out = HEAD.to_string();
    write(&mut out, interface).expect("a String takes all text");
    out
}

fn write(out: &mut String, interface: &Interface) -> fmt::Result {
    let used = used_structs(interface);
    let (headers, ops): (Vec<&File>, Vec<&File>) = interface
        .files
        .iter()
        .partition(|file| file.name.ends_with(".cuh"));
    for file in headers {
        structs(out, file, &used)?;
    }
    for file in &ops {
        let stem = file.name.trim_end_matches(".cu");
        writeln!(out, "\n/// `kernels/{}`.", file.name)?;
        writeln!(out, "#[allow(dead_code, missing_docs)]\npub mod {stem} {{")?;
        writeln!(out, "#[allow(unused_imports)]\nuse super::*;")?;
        structs(out, file, &used)?;
        for kernel in &file.kernels {
            launcher(out, stem, kernel)?;
        }
        writeln!(out, "}}")?;
    }
    writeln!(
        out,
        "\n/// Every instance of every kernel.\n#[allow(dead_code)]"
    )?;
    writeln!(out, "pub static ALL: &[Kernel] = &[")?;
    for stem in interface.stems() {
        for symbol in interface.symbols(stem) {
            writeln!(out, "    {},", identity(stem, symbol))?;
        }
    }
    writeln!(out, "];")
}

fn identity(stem: &str, symbol: &str) -> String {
    format!("Kernel {{ module: {stem:?}, name: {symbol:?} }}")
}

fn find<'a>(interface: &'a Interface, file: &'a File, name: &str) -> &'a Struct {
    let headers = interface
        .files
        .iter()
        .filter(|file| file.name.ends_with(".cuh"));
    let mut places = std::iter::once(file).chain(headers);
    let found = places.find_map(|file| file.structs.get(name)?.as_ref().ok());
    found.unwrap_or_else(|| panic!("struct {name} was parsed"))
}

/// The structs that kernels take, and those inside of them. The true ones are taken by pointer.
fn used_structs(interface: &Interface) -> BTreeSet<(String, bool)> {
    let mut used = BTreeSet::new();
    for file in &interface.files {
        let params = file.kernels.iter().flat_map(|kernel| &kernel.params);
        for param in params {
            let Type::Struct(name) = &param.ty else {
                continue;
            };
            used.insert((name.clone(), param.pointer));
            let mut open = vec![name.clone()];
            while let Some(name) = open.pop() {
                for field in &find(interface, file, &name).fields {
                    if let FieldType::Struct(inner) = &field.ty {
                        used.insert((inner.clone(), false));
                        open.push(inner.clone());
                    }
                }
            }
        }
    }
    used
}

/// The twins of a file's structs. Their layout is computed by C's rules and asserted to be Rust's.
fn structs(out: &mut String, file: &File, used: &BTreeSet<(String, bool)>) -> fmt::Result {
    for found in file
        .structs
        .values()
        .filter_map(|found| found.as_ref().ok())
    {
        let by_pointer = used.contains(&(found.name.clone(), true));
        if !by_pointer && !used.contains(&(found.name.clone(), false)) {
            continue;
        }
        let name = &found.name;
        writeln!(out)?;
        doc(out, &found.doc)?;
        // Without padding it can be uploaded as bytes.
        let bytes = if found.plain_bytes {
            ", bytemuck::Pod, bytemuck::Zeroable"
        } else {
            ""
        };
        writeln!(out, "#[derive(Clone, Copy, Debug{bytes})]\n#[repr(C)]")?;
        writeln!(
            out,
            "#[allow(dead_code, missing_docs, non_snake_case)]\npub struct {name} {{"
        )?;
        for field in &found.fields {
            doc(out, &field.doc)?;
            writeln!(out, "    pub {}: {},", field.name, field_type(field))?;
        }
        writeln!(out, "}}\n\nconst _: () = {{")?;
        writeln!(out, "    assert!(size_of::<{name}>() == {});", found.size)?;
        for Field {
            name: field,
            offset,
            ..
        } in &found.fields
        {
            writeln!(
                out,
                "    assert!(std::mem::offset_of!({name}, {field}) == {offset});"
            )?;
        }
        writeln!(out, "}};")?;
        if by_pointer {
            writeln!(out, "\nimpl Element for {name} {{")?;
            writeln!(out, "    const ELEM: Elem = Elem::Struct({name:?});\n}}")?;
        }
    }
    Ok(())
}

fn doc(out: &mut String, lines: &[String]) -> fmt::Result {
    lines.iter().try_for_each(|line| writeln!(out, "///{line}"))
}

fn field_type(field: &Field) -> String {
    let base = match &field.ty {
        FieldType::Scalar(scalar) => scalar.rust().to_string(),
        FieldType::Struct(name) => name.clone(),
        FieldType::Pointer => "u64".to_string(),
    };
    field
        .dims
        .iter()
        .rev()
        .fold(base, |inner, count| format!("[{inner}; {count}]"))
}

fn launcher(out: &mut String, stem: &str, kernel: &Kernel) -> fmt::Result {
    let name = &kernel.name;
    writeln!(out)?;
    doc(out, &kernel.doc)?;
    writeln!(
        out,
        "#[allow(clippy::too_many_arguments, non_snake_case)]\npub fn {name}(\n    gpu: &Gpu,"
    )?;
    for template in &kernel.templates {
        let ty = match template.kind {
            TemplateKind::Type => "DType",
            TemplateKind::Bool => "bool",
            TemplateKind::Int => "u32",
        };
        writeln!(out, "    {}: {ty},", argument(template))?;
    }
    writeln!(out, "    grid: [u32; 3],\n    shared: u32,")?;
    for param in &kernel.params {
        let (mutable, ty) = match (&param.ty, param.pointer) {
            (_, true) => ("", "Ptr"),
            (Type::Scalar(scalar), _) => ("mut ", scalar.rust()),
            (Type::Struct(name), _) => ("mut ", name.as_str()),
            (Type::TensorMap, _) => ("mut ", "TensorMap"),
            (Type::Template(_), _) => unreachable!("only behind a pointer"),
        };
        writeln!(out, "    {mutable}{}: {ty},", param.name)?;
    }
    writeln!(out, ") -> Result<()> {{")?;

    choice(out, stem, kernel)?;
    for param in kernel.params.iter().filter(|param| param.pointer) {
        let Param { name, ty, .. } = param;
        let elem = match ty {
            Type::Scalar(scalar) => format!("Elem::{}", scalar.elem()),
            Type::Struct(name) => format!("Elem::Struct({name:?})"),
            Type::Template(index) => {
                format!("{}.elem()", argument(&kernel.templates[*index]))
            }
            Type::TensorMap => unreachable!("no pointer"),
        };
        writeln!(
            out,
            "    let mut {name} = address(kernel, {name:?}, {name}, {elem});"
        )?;
    }
    let count = kernel.params.len();
    writeln!(
        out,
        "    let mut args: [*mut std::ffi::c_void; {count}] = ["
    )?;
    for param in &kernel.params {
        writeln!(out, "        (&raw mut {}).cast(),", param.name)?;
    }
    writeln!(
        out,
        "    ];\n    launch(gpu, kernel, grid, [threads, 1, 1], shared, &mut args)\n}}"
    )
}

/// The launcher's argument for a template parameter.
fn argument(template: &Template) -> String {
    template.name.to_lowercase()
}

/// Binds `kernel` and `threads` to the instance that the template arguments name.
fn choice(out: &mut String, stem: &str, kernel: &Kernel) -> fmt::Result {
    let Kernel {
        name,
        templates,
        instances,
        ..
    } = kernel;
    writeln!(
        out,
        "    static INSTANCES: [Kernel; {}] = [",
        instances.len()
    )?;
    for instance in instances {
        writeln!(out, "        {},", identity(stem, &instance.symbol))?;
    }
    writeln!(out, "    ];")?;
    if let ([], [Instance { threads, .. }]) = (&templates[..], &instances[..]) {
        return writeln!(
            out,
            "    let (kernel, threads) = (&INSTANCES[0], {threads});"
        );
    }
    let arguments: Vec<String> = templates.iter().map(argument).collect();
    writeln!(
        out,
        "    let (kernel, threads): (&Kernel, u32) = match ({},) {{",
        arguments.join(", ")
    )?;
    for (index, instance) in instances.iter().enumerate() {
        let pattern = |value: &Value| match value {
            Value::Type(scalar) => format!("DType::{}", scalar.dtype()),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
        };
        let patterns: Vec<String> = instance.values.iter().map(pattern).collect();
        writeln!(
            out,
            "        ({},) => (&INSTANCES[{index}], {}),",
            patterns.join(", "),
            instance.threads
        )?;
    }
    // A program that asks for an instance nobody listed is wrong. Where all combinations are
    // there, the compiler must not complain about this line.
    let shown: Vec<String> = arguments
        .iter()
        .map(|argument| format!("{argument} = {{{argument}:?}}"))
        .collect();
    writeln!(out, "        #[allow(unreachable_patterns)]")?;
    writeln!(
        out,
        "        _ => panic!(\"{stem}.cu has no instance of {name} for {}\"),",
        shown.join(", ")
    )?;
    writeln!(out, "    }};")
}
