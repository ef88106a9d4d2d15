//! Writes the C++ files that build.rs compiles: `wrappers KERNELS OUT`. For scripts/kernel-table,
//! which compiles it with rustc alone. Prints, for each kernel file, its name and those of the files
//! it is made of.

use std::path::Path;
use std::{env, fs, process};

#[path = "../kernels/interface.rs"]
mod interface;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let Err(message) = write(Path::new(&arguments[1]), Path::new(&arguments[2])) {
        eprintln!("{message}");
        process::exit(1);
    }
}

fn write(kernels: &Path, out: &Path) -> Result<(), String> {
    let interface = interface::Interface::read(kernels)?;
    for stem in interface.stems() {
        let file = out.join(format!("{stem}_instances.cu"));
        fs::write(&file, interface.wrapper(stem))
            .map_err(|e| format!("{}: {e}", file.display()))?;
        let inputs: Vec<&str> = interface.inputs(stem).iter().map(|input| input.0).collect();
        println!("{stem} {}", inputs.join(" "));
    }
    Ok(())
}
