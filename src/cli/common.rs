//! What several commands share: weights, data, device, progress, output.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use noiseforge::data::{Dataset, Spec, Split};
use noiseforge::gpu::Gpu;
use noiseforge::gpu::tuning::{self, Tuning};
use noiseforge::models::{Arch, Config, Model, NoisePlacement};
use noiseforge::nn::{NoisePlan, Site};
use noiseforge::tensor::{DType, Device, Shape};

/// A standard deviation on the command line.
pub fn sigma(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(v) if v.is_finite() && v >= 0.0 => Ok(v),
        _ => Err("expected a standard deviation: a finite number, at least 0".to_string()),
    }
}

/// A count that must not be 0.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(v) if v > 0 => Ok(v),
        _ => Err("expected a whole number, at least 1".to_string()),
    }
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if there is one that works, else the CPU.
    Auto,
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

pub fn device(text: &str) -> Result<DeviceChoice, String> {
    let cuda = |rest: &str| match rest.strip_prefix(':') {
        None if rest.is_empty() => Some(0),
        None => None,
        Some(number) => number.parse().ok(),
    };
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        _ => match text.strip_prefix("cuda").and_then(cuda) {
            Some(ordinal) => Ok(DeviceChoice::Cuda(ordinal)),
            None => Err("expected auto, cpu or cuda:N".to_string()),
        },
    }
}

impl DeviceChoice {
    pub fn open(self) -> Result<Device> {
        Ok(match self {
            DeviceChoice::Cpu => Device::Cpu,
            DeviceChoice::Cuda(ordinal) => Device::Gpu(Gpu::open(ordinal)?),
            DeviceChoice::Auto => Gpu::open(0).map_or(Device::Cpu, Device::Gpu),
        })
    }
}

#[derive(Debug, Args)]
pub struct DeviceArg {
    /// Where to compute: auto (the first GPU that works, else the CPU), cpu or cuda:N
    #[arg(long, default_value = "auto", value_parser = device)]
    pub device: DeviceChoice,
    /// Measured choices of tiles, as `noiseforge bench --tune` writes them [default: those in the cache folder]
    #[arg(long, value_name = "FILE")]
    pub tuning: Option<PathBuf>,
}

impl DeviceArg {
    /// The device, with what was measured on it.
    pub fn open(&self) -> Result<Device> {
        // A file that was named has to be one, whatever the device.
        let named = self.tuning.as_deref().map(tuning::read).transpose()?;
        let device = self.device.open()?;
        if let Device::Gpu(gpu) = &device {
            let name = &gpu.properties().name;
            let mut known = Tuning::embedded(name);
            let cached = tuning_file().filter(|file| file.is_file());
            if let Some(file) = cached.filter(|_| named.is_none()) {
                match tuning::read(&file) {
                    Ok(lines) => known.add(&lines, name),
                    Err(e) => eprintln!("noiseforge: tiles are chosen without measurements: {e}"),
                }
            }
            known.add(&named.unwrap_or_default(), name);
            gpu.set_tuning(known);
        }
        Ok(device)
    }
}

/// Where measured choices of tiles are kept; none without a home directory.
pub fn tuning_file() -> Option<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("noiseforge").join("tuning.csv"))
}

/// Where and in which type a network works.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    #[command(flatten)]
    pub device: DeviceArg,
    /// Type of the activations: f32, or bf16 or f16 on a GPU
    #[arg(long, default_value = "f32", value_parser = network_dtype)]
    pub dtype: DType,
    /// Which pass draws a convolution's noise: load (the convolution's own), apply (that behind the
    /// convolution before), epilogue (the convolution before; in evaluation and attacks) or auto (the
    /// cheapest). It changes time and memory, no number
    #[arg(long, value_name = "PASS", default_value = "auto")]
    pub draw_noise: Site,
}

fn network_dtype(text: &str) -> Result<DType, String> {
    match text.parse() {
        Ok(dtype) if dtype != DType::F64 => Ok(dtype),
        _ => Err("expected f32, bf16 or f16".to_string()),
    }
}

impl PlaceArgs {
    /// Moves a network there.
    pub fn place(&self, model: &mut Model) -> Result<()> {
        let device = self.device.open()?;
        if device == Device::Cpu && self.dtype != DType::F32 {
            bail!(
                "--dtype {}: the CPU works in f32; 16-bit types need a GPU",
                self.dtype
            );
        }
        model.set_noise_plan(NoisePlan {
            site: self.draw_noise,
            ..NoisePlan::default()
        });
        Ok(model.to(&device, self.dtype)?)
    }
}

/// A network read from a file, and what its metadata leaves open.
#[derive(Debug, Args)]
pub struct WeightsArgs {
    /// Weights: a safetensors file with a PyTorch state_dict's names
    #[arg(long, value_name = "FILE")]
    pub weights: PathBuf,
    /// Network, for weights without metadata: vgg16, resnext29, preactresnet18, model-a, small, linear
    #[arg(long)]
    pub model: Option<Arch>,
    /// Channels of the first stage, for weights without metadata [default: the published network's]
    #[arg(long, value_parser = positive)]
    pub width: Option<usize>,
    /// Groups of ResNeXt's 3x3 convolutions, for weights without metadata [default: 2]
    #[arg(long, value_parser = positive)]
    pub cardinality: Option<usize>,
    /// Standard deviation of the noise on the image [default: the file's]. A network that was trained
    /// without noise can be tested with it, and one trained with it without: 0
    #[arg(long, value_name = "SIGMA", value_parser = sigma)]
    pub init_noise: Option<f32>,
    /// Standard deviation of the noise before every other convolution [default: the file's], likewise
    #[arg(long, value_name = "SIGMA", value_parser = sigma)]
    pub inner_noise: Option<f32>,
    /// Which layer carries the init noise: image or authors [default: the file's]
    #[arg(long)]
    pub noise_placement: Option<NoisePlacement>,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl WeightsArgs {
    /// Reads the network. Images and classes are the data set's where the file names none.
    pub fn load(&self, data: &Dataset) -> Result<Model> {
        self.load_with_noise(data, None)
    }

    /// [`load`](WeightsArgs::load), with this noise on the image and inside instead of what was asked for.
    pub fn load_with_noise(&self, data: &Dataset, noise: Option<(f32, f32)>) -> Result<Model> {
        let describe = |found: Option<Config>| {
            let mut config = match (found, self.model) {
                (Some(config), None) => config,
                (Some(config), Some(arch)) if config.arch == arch => config,
                (found, Some(arch)) => {
                    let new = Config::new(arch, data.image_shape(), data.classes().len());
                    match found {
                        Some(f) => new.with_noise(f.init_noise, f.inner_noise),
                        None => new,
                    }
                }
                (None, None) => {
                    return Err(noiseforge::Error::file(
                        &self.weights,
                        "metadata naming the network, or --model on the command line",
                        "neither",
                    ));
                }
            };
            config.width = self.width.unwrap_or(config.width);
            config.cardinality = self.cardinality.unwrap_or(config.cardinality);
            let asked = [self.init_noise, self.inner_noise];
            if !config.noise_at_test && asked.into_iter().flatten().any(|sigma| sigma > 0.0) {
                // The file's noise was training's alone.
                config = config.with_noise(0.0, 0.0);
                config.noise_at_test = true;
            }
            config.init_noise = self.init_noise.unwrap_or(config.init_noise);
            config.inner_noise = self.inner_noise.unwrap_or(config.inner_noise);
            if let Some(noise) = noise {
                (config.init_noise, config.inner_noise) = noise;
            }
            config.placement = self.noise_placement.unwrap_or(config.placement);
            Ok(config)
        };
        let mut model = Model::read(&self.weights, describe)?;
        model
            .check_finite()
            .with_context(|| format!("{} cannot be used", self.weights.display()))?;
        let (images, takes) = (data.image_shape(), model.config().input);
        if images != takes {
            bail!(
                "images of the wrong size: the network takes {takes}, the data set holds {images}"
            );
        }
        let (given, has) = (data.classes().len(), model.config().classes);
        if given > has {
            bail!("the data set has {given} classes, the network {has}");
        }
        Ok(model)
    }
}

/// Whether a pass through this network is random.
pub fn is_random(model: &Model) -> bool {
    let config = model.config();
    config.noise_at_test && (config.init_noise > 0.0 || config.inner_noise > 0.0)
}

/// Draws that make sense: one where nothing is random.
pub fn useful_draws(model: &Model, asked: usize) -> usize {
    if is_random(model) { asked } else { 1 }
}

/// One split of the data set; the procedural one does not depend on any seed given.
pub fn load_data(spec: &Spec, split: Split) -> Result<Dataset> {
    Ok(spec.load(split, 0)?)
}

/// `[1, h, w, c]` as JSON: h, w, c.
pub fn shape_json(shape: Shape) -> serde_json::Value {
    serde_json::json!([shape.h, shape.w, shape.c])
}

/// A network's description as JSON.
pub fn config_json(config: &Config) -> serde_json::Value {
    serde_json::json!({
        "model": config.arch.name(),
        "input": shape_json(config.input),
        "classes": config.classes,
        "width": config.width,
        "cardinality": config.cardinality,
        "init_noise": config.init_noise,
        "inner_noise": config.inner_noise,
        "noise_placement": config.placement.name(),
        "noise_at_test": config.noise_at_test,
        "relu_cap": config.relu_cap,
    })
}

/// The description that [`config_json`] wrote into this file.
pub fn config_of_json(path: &Path, value: &serde_json::Value) -> Result<Config> {
    use serde_json::Value;
    let Value::Object(map) = value else {
        bail!("{}: no description of the network", path.display());
    };
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(sizes) => {
            let sizes: Vec<String> = sizes.iter().map(Value::to_string).collect();
            sizes.join(",")
        }
        Value::Null => "none".to_string(),
        other => other.to_string(),
    };
    let metadata = map.iter().map(|(k, v)| (k.clone(), text(v))).collect();
    let config = Config::from_metadata(path, &metadata)?;
    config.with_context(|| format!("{}: no name of the network", path.display()))
}

/// `println!` that does not panic when nobody reads on (`noiseforge ... | head`).
macro_rules! say {
    ($($arg:tt)*) => {
        $crate::cli::common::write_line(std::format_args!($($arg)*))
    };
}
pub(crate) use say;

/// One line on standard output. Ends the program quietly if the reader is gone.
pub fn write_line(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => {
            eprintln!("noiseforge: cannot write to standard output: {e}");
            std::process::exit(1);
        }
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Ctrl-C asks to stop at the next safe point; a second one stops at once.
pub fn stop_on_ctrl_c() -> Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("cannot handle Ctrl-C")?;
    Ok(&STOP)
}

/// Whether Ctrl-C was pressed.
pub fn stop_flag() -> &'static AtomicBool {
    &STOP
}

/// An error once Ctrl-C was pressed.
pub fn check_stop() -> noiseforge::Result<()> {
    match STOP.load(Ordering::Relaxed) {
        true => Err(noiseforge::Error::Interrupted),
        false => Ok(()),
    }
}

/// A progress bar on standard error; invisible where that is no terminal.
pub fn bar(len: u64, what: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:>14} {bar:32} {pos}/{len} [{elapsed} < {eta}] {msg}")
            .expect("a valid template");
    let bar = ProgressBar::new(len)
        .with_style(style)
        .with_prefix(what.to_string());
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// Makes the folder, and makes sure that files can be written there.
pub fn prepare_folder(folder: &Path) -> Result<()> {
    let cannot = || format!("cannot write into {}", folder.display());
    std::fs::create_dir_all(folder).with_context(cannot)?;
    tempfile::tempfile_in(folder).with_context(cannot)?;
    Ok(())
}

/// Makes sure, before a long computation, that a file can be written there.
pub fn check_writable(file: &Path) -> Result<()> {
    let folder = match file.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if file.is_dir() {
        bail!("cannot write {}: it is a folder", file.display());
    }
    tempfile::tempfile_in(folder).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(())
}

/// Writes a JSON file as a whole or not at all.
pub fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    noiseforge::io::atomic::write_atomic(path, |out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        writeln!(out)
    })?;
    Ok(())
}

/// Reads a JSON file; the error names it.
pub fn read_json(path: &Path) -> Result<serde_json::Value> {
    let cannot = || format!("cannot read {}", path.display());
    let text = std::fs::read(path).with_context(cannot)?;
    serde_json::from_slice(&text).with_context(cannot)
}

/// `12.34` for 0.1234.
pub fn percent(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}
