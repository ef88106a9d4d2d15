//! Compiles the emulator, our kernels and the kernels of its own tests into one shared object.
//!
//! Objects are compiled again only when something they are made from has changed, two at a time.

#[path = "../../kernels/interface.rs"]
mod interface;

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One object file.
struct Object {
    source: PathBuf,
    /// Text of everything but the emulator's headers.
    inputs: String,
    /// Kernels are instrumented; the emulator itself is not.
    kernel: bool,
    /// Of the object, without folder and ending.
    name: String,
}

fn main() {
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        panic!("the CUDA emulator runs on Linux only: it stands in for libcuda.so.1");
    }
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let kernels = here.join("../../kernels");
    for path in [
        &here.join("emu"),
        &here.join("planted"),
        &here.join("instructions"),
        &kernels,
    ] {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    println!("cargo:rerun-if-changed=build.rs");

    let objects = objects(&here, &kernels, &out);
    let headers = text_of(&files(&here.join("emu"), "h"));
    let compiler = Compiler::new(&here, &kernels, headers);
    compile(&compiler, &objects, &out);

    let library = out.join("libnoiseforge_emulator.so");
    let mut link = compiler.command();
    link.args([
        "-shared",
        "-Wl,-soname,libcuda.so.1",
        "-Wl,-z,defs",
        "-pthread",
    ]);
    link.args(objects.iter().map(|object| object.path(&out)));
    link.arg("-ldl").arg("-o").arg(&library);
    succeed(&mut link, "linking the emulator");

    // cudarc looks for libcuda.so before libcuda.so.1. A library of that name that only needs the
    // other keeps a real driver out on machines that have one.
    let alias = out.join("libnoiseforge_emulator_alias.so");
    let mut link = compiler.command();
    link.args(["-shared", "-Wl,-soname,libcuda.so", "-Wl,--no-as-needed"]);
    link.arg(&library).arg("-o").arg(&alias);
    succeed(&mut link, "linking the emulator's second name");

    println!("cargo:rustc-env=NOISEFORGE_EMULATOR={}", library.display());
    println!(
        "cargo:rustc-env=NOISEFORGE_EMULATOR_ALIAS={}",
        alias.display()
    );
}

/// Everything that goes into the library. Kernels first: they take longest.
fn objects(here: &Path, kernels: &Path, out: &Path) -> Vec<Object> {
    let interface = match interface::Interface::read(kernels) {
        Ok(interface) => interface,
        Err(error) => panic!("{error}"),
    };
    let mut objects = Vec::new();
    for stem in interface.stems() {
        let wrapper = interface.wrapper(stem);
        let source = out.join(format!("{stem}.wrapper.cu"));
        write_if_changed(&source, &wrapper);
        let inputs = interface.inputs(stem);
        objects.push(Object {
            source,
            inputs: inputs.iter().map(|(_, text)| *text).collect::<String>() + &wrapper,
            kernel: true,
            name: format!("kernel_{stem}"),
        });
    }
    let headers = text_of(&files(kernels, "cuh"));
    for folder in ["planted", "instructions"] {
        let own = text_of(&files(&here.join(folder), "cuh"));
        for source in files(&here.join(folder), "cu") {
            objects.push(Object {
                inputs: read(&source) + &own + &headers,
                kernel: true,
                name: format!("{folder}_{}", stem(&source)),
                source,
            });
        }
    }
    for source in files(&here.join("emu"), "cpp") {
        objects.push(Object {
            inputs: read(&source),
            kernel: false,
            name: format!("emu_{}", stem(&source)),
            source,
        });
    }
    objects
}

impl Object {
    fn path(&self, out: &Path) -> PathBuf {
        out.join(format!("{}.o", self.name))
    }
}

struct Compiler {
    tool: cc::Tool,
    includes: [PathBuf; 2],
    headers: String,
}

impl Compiler {
    fn new(here: &Path, kernels: &Path, headers: String) -> Compiler {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .cargo_metadata(false)
            .opt_level(2)
            .debug(false)
            .pic(true);
        let tool = match build.try_get_compiler() {
            Ok(tool) => tool,
            Err(error) => {
                panic!("the CUDA emulator needs a C++ compiler (g++ or clang++): {error}")
            }
        };
        let kernels = kernels.canonicalize().expect("the folder was read");
        Compiler {
            tool,
            includes: [here.to_path_buf(), kernels],
            headers,
        }
    }

    fn command(&self) -> Command {
        self.tool.to_command()
    }

    fn compile(&self, object: &Object, out: &Path) -> Command {
        let mut command = self.command();
        // Line tables are what reports are made from. Nothing may be contracted to fma, or the
        // results would depend on the processor; kernels pun types as CUDA code does.
        command.args(["-std=c++17", "-O2", "-g1", "-fPIC", "-pthread"]);
        command.args(["-fvisibility=hidden", "-ftls-model=initial-exec"]);
        command.args(["-ffp-contract=off", "-fno-strict-aliasing"]);
        // The host's extensions, where it is the host that will run it.
        #[cfg(target_arch = "x86_64")]
        if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("f16c")
        {
            command.arg("-march=x86-64-v3");
        }
        if object.kernel {
            command.args(["-fsanitize=thread", "-w"]);
            command.arg("-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero");
            command.arg("-fno-sanitize-recover=all");
            if self.tool.is_like_gnu() && !self.tool.is_like_clang() {
                // Functions that are the same would be merged, and reports name only one's lines.
                command.args(["--param=tsan-instrument-func-entry-exit=0", "-fno-ipa-icf"]);
            }
        }
        for include in &self.includes {
            command.arg("-I").arg(include);
        }
        command.args(["-x", "c++", "-c"]).arg(&object.source);
        command.arg("-o").arg(object.path(out));
        command
    }
}

/// Compiles what has changed.
fn compile(compiler: &Compiler, objects: &[Object], out: &Path) {
    let jobs = env::var("NUM_JOBS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2)
        .clamp(1, 2);
    let next = AtomicUsize::new(0);
    let errors = Mutex::new(String::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(object) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut command = compiler.compile(object, out);
                    let mut hasher = DefaultHasher::new();
                    (format!("{command:?}"), &object.inputs, &compiler.headers).hash(&mut hasher);
                    let key = format!("{:016x}", hasher.finish());
                    let key_file = out.join(format!("{}.key", object.name));
                    if fs::read_to_string(&key_file).is_ok_and(|old| old == key)
                        && object.path(out).is_file()
                    {
                        continue;
                    }
                    match run(&mut command) {
                        Ok(_) => fs::write(&key_file, key).expect("OUT_DIR can be written"),
                        Err(error) => {
                            let _ = fs::remove_file(&key_file);
                            let source = object.source.display();
                            *errors.lock().unwrap() += &format!("compiling {source}: {error}\n");
                        }
                    }
                }
            });
        }
    });
    let errors = errors.into_inner().unwrap();
    if !errors.is_empty() {
        panic!("{errors}");
    }
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!(
        "{}\n{command:?}",
        String::from_utf8_lossy(&output.stderr)
    ))
}

fn succeed(command: &mut Command, what: &str) {
    if let Err(error) = run(command) {
        panic!("{what}: {error}");
    }
}

/// The files of a folder with an ending, in alphabetical order.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(listing) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = listing
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == ending))
        .collect();
    files.sort();
    files
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn text_of(files: &[PathBuf]) -> String {
    files.iter().map(|file| read(file)).collect()
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn write_if_changed(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
