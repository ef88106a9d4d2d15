//! Compiles `kernels/*.cu` with nvcc and writes what the library includes: the launchers
//! (`kernels.rs`, always), the machine code (`fatbins.rs`, empty without nvcc), and ptxas's report
//! on registers and spills (`ptxas.txt`).
//!
//! | variable | meaning |
//! |---|---|
//! | `KERNELS` | `auto`: without nvcc a warning and no kernels (the default); `require`: without nvcc no build; `skip`: no kernels |
//! | `NVCC` | the compiler; else it is looked for, in `.cuda` (where `scripts/get-nvcc` puts it) first |
//! | `KERNEL_ARCHES` | `all`, or a list such as `80 90a`, of architectures to make machine code for; PTX of 8.0 is always there |

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io, thread};

#[path = "kernels/interface.rs"]
mod interface;
use interface::Interface;

/// The release of nvcc. A newer one would ask for a newer driver without saying so.
const RELEASE: &str = "13.0";
/// Every architecture that the kernels are written for.
const ALL: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];
const VARIABLES: [&str; 7] = [
    "KERNELS",
    "KERNEL_ARCHES",
    "NVCC",
    "CUDA_HOME",
    "CUDA_PATH",
    "VIRTUAL_ENV",
    "PATH",
];

fn main() {
    if let Err(message) = run() {
        eprintln!("{message}");
        exit(1);
    }
}

fn run() -> Result<(), String> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for variable in VARIABLES {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // A missing nvcc cannot be watched: cargo would build anew every time. scripts/get-nvcc touches
    // this file instead.
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");

    let interface = Interface::read(Path::new("kernels"))?;
    write(&out.join("kernels.rs"), &interface.rust())?;
    let wrappers = out.join("wrappers");
    fs::create_dir_all(&wrappers).map_err(|e| format!("{}: {e}", wrappers.display()))?;
    for stem in interface.stems() {
        write(
            &wrappers.join(format!("{stem}_instances.cu")),
            &interface.wrapper(stem),
        )?;
    }

    let found = match env::var("KERNELS").as_deref().unwrap_or("auto") {
        "skip" => Err("it was built with KERNELS=skip".to_string()),
        "require" => Ok(find_nvcc(&root)
            .map_err(|why| format!("KERNELS=require: {why}; scripts/get-nvcc installs it"))?),
        "auto" => find_nvcc(&root).inspect_err(|why| {
            println!(
                "cargo:warning=no GPU kernels in this build: {why}. The CPU part works; for the \
                 GPU run scripts/get-nvcc and build again."
            );
        }),
        other => {
            return Err(format!(
                "KERNELS={other}: auto, require or skip is expected"
            ));
        }
    };
    let missing = match &found {
        Ok(nvcc) => {
            Compiler {
                nvcc,
                root: &root,
                out: &out,
                interface: &interface,
            }
            .compile_all()?;
            ""
        }
        Err(why) => why,
    };

    let mut table = String::from("pub static FATBINS: &[(&str, &[u8])] = &[\n");
    if found.is_ok() {
        for stem in interface.stems() {
            let file = out.join(format!("{stem}.fatbin"));
            table += &format!("    ({stem:?}, include_bytes!({file:?})),\n");
        }
    }
    table += &format!("];\npub static NO_FATBINS_BECAUSE: &str = {missing:?};\n");
    write(&out.join("fatbins.rs"), &table)
}

/// Writes a file unless it is that already.
fn write(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// The first nvcc of the right release.
fn find_nvcc(root: &Path) -> Result<PathBuf, String> {
    if let Some(nvcc) = env::var_os("NVCC").filter(|value| !value.is_empty()) {
        let nvcc = PathBuf::from(nvcc);
        if !nvcc.is_file() {
            return Err(format!("NVCC={} is not a file", nvcc.display()));
        }
        return check_release(&nvcc).map(|()| nvcc);
    }

    // Folders, and what they are called in the message.
    let mut places: Vec<(String, Vec<PathBuf>)> =
        vec![(".cuda".into(), vec![root.join(".cuda/nvidia/cu13/bin")])];
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        let bin = env::var_os(variable).map(|home| Path::new(&home).join("bin"));
        places.push((format!("${variable}/bin"), bin.into_iter().collect()));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    places.push(("$PATH".into(), env::split_paths(&path).collect()));
    let venv = env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    places.push((
        "$VIRTUAL_ENV".into(),
        venv.iter().flat_map(|venv| wheel_bins(venv)).collect(),
    ));
    places.push((".venv".into(), wheel_bins(&root.join(".venv"))));
    places.push((
        "/usr/local/cuda/bin".into(),
        vec!["/usr/local/cuda/bin".into()],
    ));

    let mut refused = Vec::new();
    for folder in places.iter().flat_map(|(_, folders)| folders) {
        let nvcc = folder.join("nvcc");
        if nvcc.is_file() {
            match check_release(&nvcc) {
                Ok(()) => return Ok(nvcc),
                Err(why) => refused.push(why),
            }
        }
    }
    if !refused.is_empty() {
        return Err(refused.join("; "));
    }
    let names: Vec<_> = places.into_iter().map(|(name, _)| name).collect();
    Err(format!("no nvcc in {}", names.join(", ")))
}

/// `<venv>/lib/python3.N/site-packages/nvidia/cu13/bin`, for every N there is.
fn wheel_bins(venv: &Path) -> Vec<PathBuf> {
    let pythons = fs::read_dir(venv.join("lib"))
        .into_iter()
        .flatten()
        .flatten();
    pythons
        .map(|python| python.path().join("site-packages/nvidia/cu13/bin"))
        .collect()
}

fn check_release(nvcc: &Path) -> Result<(), String> {
    let shown = nvcc.display();
    let output = Command::new(nvcc).arg("--version").output();
    let output = output.map_err(|e| format!("{shown} cannot be started: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let release = text
        .split("release ")
        .nth(1)
        .and_then(|rest| rest.split([',', '\n']).next());
    match release {
        Some(RELEASE) => Ok(()),
        Some(other) => Err(format!("{shown} is release {other}, {RELEASE} is needed")),
        None => Err(format!(
            "{shown} --version names no release, {RELEASE} is needed"
        )),
    }
}

/// `-gencode` arguments: machine code for each architecture and PTX for what comes later.
fn targets(list: Option<&str>) -> Result<Vec<String>, String> {
    let arches: Vec<&str> = match list {
        Some("all") => ALL.to_vec(),
        Some(list) => list
            .split([' ', ','])
            .filter(|arch| !arch.is_empty())
            .collect(),
        // 9.0 has code of its own: launches that overlap, and wgmma.
        None => vec!["80", "90a"],
    };
    if let Some(unknown) = arches.iter().find(|arch| !ALL.contains(arch)) {
        let known = ALL.join(" ");
        return Err(format!(
            "KERNEL_ARCHES: '{unknown}' is unknown; write 'all' or some of {known}"
        ));
    }
    let pairs = arches
        .iter()
        .map(|arch| format!("arch=compute_{arch},code=sm_{arch}"));
    let ptx = "arch=compute_80,code=compute_80".to_string();
    Ok(pairs
        .chain([ptx])
        .flat_map(|pair| ["-gencode".to_string(), pair])
        .collect())
}

/// 64-bit FNV-1a.
fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

struct Compiler<'a> {
    nvcc: &'a Path,
    root: &'a Path,
    out: &'a Path,
    interface: &'a Interface,
}

impl Compiler<'_> {
    /// Brings every fatbin up to date, as many at a time as cargo allows.
    fn compile_all(&self) -> Result<(), String> {
        let stems = self.interface.stems();
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(Vec::new());
        let jobs = env::var("NUM_JOBS")
            .ok()
            .and_then(|jobs| jobs.parse().ok())
            .unwrap_or(1);
        thread::scope(|scope| {
            for _ in 0..stems.len().min(jobs) {
                scope.spawn(|| {
                    while let Some(stem) = stems.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(message) = self.compile(stem) {
                            failed.lock().expect("no holder panics").push(message);
                        }
                    }
                });
            }
        });
        let mut failed = failed.into_inner().expect("no holder panics");
        if !failed.is_empty() {
            failed.sort();
            return Err(failed.join("\n"));
        }
        let mut report = String::new();
        for stem in stems {
            let file = self.out.join(format!("{stem}.ptxas.txt"));
            report += &fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        }
        write(&self.out.join("ptxas.txt"), &report)
    }

    /// Compiles one kernel file, unless its fatbin was made from the same texts and options.
    fn compile(&self, stem: &str) -> Result<(), String> {
        let list = env::var("KERNEL_ARCHES")
            .ok()
            .filter(|list| !list.trim().is_empty());
        let targets = targets(list.as_deref())?;
        let wrapper = self
            .out
            .join("wrappers")
            .join(format!("{stem}_instances.cu"));
        let fatbin = self.out.join(format!("{stem}.fatbin"));
        let report = self.out.join(format!("{stem}.ptxas.txt"));
        let stamp = self.out.join(format!("{stem}.hash"));

        // Compression pays: line tables are most of the code. Any driver of this release reads it.
        let options = [
            "-std=c++17",
            "-O3",
            "-lineinfo",
            "-Xptxas",
            "-v",
            "-fatbin",
            "--compress-mode=size",
        ];
        let text = self.interface.wrapper(stem);
        let nvcc = self.nvcc.to_string_lossy();
        let mut parts: Vec<&str> = vec![RELEASE, &nvcc, &text];
        parts.extend(options);
        parts.extend(targets.iter().map(String::as_str));
        for (name, text) in self.interface.inputs(stem) {
            parts.extend([name, text]);
        }
        let current = format!("{:016x}", hash(&parts));
        let made_from = fs::read_to_string(&stamp).unwrap_or_default();
        if made_from == current && fatbin.is_file() && report.is_file() {
            return Ok(());
        }

        // A build that is broken off must not leave an old stamp beside a new fatbin.
        match fs::remove_file(&stamp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(format!("{}: {e}", stamp.display()));
            }
            _ => {}
        }
        let mut command = Command::new(self.nvcc);
        command
            .args(options)
            .args(&targets)
            .arg("-I")
            .arg(self.root.join("kernels"));
        let output = command.arg("-o").arg(&fatbin).arg(&wrapper).output();
        let output = output.map_err(|e| format!("{nvcc} cannot be started: {e}"))?;
        let said =
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(format!("nvcc failed on kernels/{stem}.cu:\n{said}"));
        }
        write(&report, &said)?;
        write(&stamp, &current)
    }
}
