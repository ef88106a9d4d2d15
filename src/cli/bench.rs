//! `noiseforge bench`: what the networks' convolutions take, by the model or measured on the device.

mod totals;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use noiseforge::gpu::tuning::{self, Measurement};
use noiseforge::models::{Arch, Config, Convolution};
use noiseforge::ops::conv2d::model::{CARDS, Card};
use noiseforge::ops::conv2d::predict::{Launch, Pass};
use noiseforge::ops::conv2d::tune::{Effort, measure};
use noiseforge::ops::noise;
use noiseforge::report::Table;
use noiseforge::tensor::{DType, Device, Shape};
use serde_json::{Value, json};

use super::common::{DeviceArg, bar, check_stop, positive, say, stop_on_ctrl_c, tuning_file};

/// Time of the networks' convolutions: by a model of the card, or measured to choose their tiles
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  noiseforge bench --model --network vgg16 --card H200 --batch 1024
  noiseforge bench --tune

--model needs no GPU. For each layer and pass it prints how the work is cut, how long each pipe of the
chip and each memory is busy (microseconds), what bounds the launch, and the floor: the larger one of the
arithmetic at cuBLAS's rate and of memory's traffic. --tune times every way of cutting on the
device and writes the table that all commands choose by.")]
pub struct Args {
    /// Print the model's times
    #[arg(long, required_unless_present = "tune", conflicts_with = "tune")]
    model: bool,
    /// Measure, and write the table
    #[arg(long)]
    tune: bool,
    /// Only this network [default: vgg16, resnext29, preactresnet18, model-a
    /// and small]
    #[arg(long, value_name = "NAME")]
    network: Option<Arch>,
    /// Only this card, for --model: H200, H100, A100 or \"RTX 4090\" [default: all]
    #[arg(long, value_name = "NAME", value_parser = card)]
    card: Option<Card>,
    /// Only this batch [default: 128 and 1024]
    #[arg(long, value_parser = positive)]
    batch: Option<usize>,
    /// Type of the activations
    #[arg(long, default_value = "bf16", value_parser = dtype)]
    dtype: DType,
    /// Channels of the networks' first stage [default: the published networks']
    #[arg(long, value_parser = positive)]
    width: Option<usize>,
    /// File that --tune writes [default: the one that other commands read]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

const NETWORKS: [Arch; 5] = [
    Arch::Vgg16,
    Arch::ResNeXt29,
    Arch::PreActResNet18,
    Arch::ModelA,
    Arch::Small,
];
const BATCHES: [usize; 2] = [128, 1024];

fn card(text: &str) -> Result<Card, String> {
    let found = CARDS
        .iter()
        .find(|card| card.name.eq_ignore_ascii_case(text));
    let names = CARDS.map(|card| card.name).join(", ");
    found
        .copied()
        .ok_or_else(|| format!("expected one of {names}"))
}

fn dtype(text: &str) -> Result<DType, String> {
    match text.parse() {
        Ok(dtype @ (DType::BF16 | DType::F16)) => Ok(dtype),
        _ => Err("expected bf16 or f16, which tensor cores multiply".to_string()),
    }
}

/// A network's layers.
struct Network {
    arch: Arch,
    layers: Vec<Convolution>,
}

impl Args {
    fn networks(&self) -> Result<Vec<Network>> {
        let wanted = NETWORKS
            .into_iter()
            .filter(|arch| self.network.is_none_or(|only| only == *arch));
        let networks = wanted.map(|arch| {
            let side = if arch == Arch::ModelA { 96 } else { 32 };
            let mut config = Config::new(arch, Shape::new(1, side, side, 3), 10);
            config.width = self.width.unwrap_or(config.width);
            let layers = config.convolutions()?;
            Ok(Network { arch, layers })
        });
        let networks = networks.collect::<Result<Vec<_>>>()?;
        if networks.is_empty() {
            let names = NETWORKS.map(Arch::name).join(", ");
            bail!("--network: expected one of {names}");
        }
        Ok(networks)
    }

    fn batches(&self) -> Vec<usize> {
        self.batch.map_or(BATCHES.to_vec(), |batch| vec![batch])
    }
}

/// A layer's launch. In the forward pass the pool is its own only where batch norm is folded.
fn launch(layer: &Convolution, pass: Pass, n: usize, dtype: DType) -> Launch {
    Launch {
        pool: layer.pool,
        residual: layer.residual,
        // Where it is drawn in the load; elsewhere another pass takes it along.
        noise: layer.noise && pass != Pass::InputGrad && noise::in_load(dtype, layer.x.c),
        ..layer.launch(pass, dtype, n)
    }
}

/// With `json` and `--model`: `{"cards": [{"card", "network", "batch", "layers": [{"layer", "pass",
/// "kernel", "blocking", "tile", "blocks", "waves", "resident", "microseconds", "tensor", "issue", "mufu",
/// "shared", "l2", "hbm", "bound", "floor"}], "totals": [{"what", "microseconds", "floor", "launches"}]}]}`,
/// times in microseconds; what is not on tensor cores or not modelled has null. With `--tune`: `{"device",
/// "measurements", "file"}`.
pub fn run(args: &Args, json: bool) -> Result<()> {
    match args.model {
        true => model(args, json),
        false => tune(args, json),
    }
}

const PASSES: [(Pass, &str); 3] = [
    (Pass::Forward, "forward"),
    (Pass::InputGrad, "input grad"),
    (Pass::WeightGrad, "weight grad"),
];

fn model(args: &Args, json: bool) -> Result<()> {
    let networks = args.networks()?;
    let cards = CARDS
        .iter()
        .filter(|card| args.card.is_none_or(|only| only.name == card.name));
    let mut all = Vec::new();
    for card in cards {
        for network in &networks {
            for batch in args.batches() {
                let report = layers(args, card, network, batch)?;
                let totals = totals::all(card, &network.layers, batch, args.dtype)?;
                if json {
                    let totals: Vec<_> = totals.iter().map(totals::Total::json).collect();
                    all.push(json!({
                        "card": card.name,
                        "network": network.arch.name(),
                        "batch": batch,
                        "layers": report.1,
                        "totals": totals,
                    }));
                } else {
                    say!("{}", report.0);
                    say!("{}", totals::table(&totals));
                }
            }
        }
    }
    if json {
        say!(
            "{}",
            serde_json::to_string_pretty(&json!({ "cards": all }))?
        );
    }
    Ok(())
}

/// A table for people and one for programs.
fn layers(
    args: &Args,
    card: &Card,
    network: &Network,
    batch: usize,
) -> Result<(Table, Vec<Value>)> {
    let caption = format!(
        "{} on {}, batch {batch}, {}: microseconds by the model",
        network.arch.name(),
        card.name,
        args.dtype
    );
    let header = [
        "layer",
        "shape",
        "pass",
        "block",
        "tile",
        "blocks",
        "waves",
        "tensor",
        "issue",
        "MUFU",
        "shared",
        "L2",
        "HBM",
        "time",
        "bound",
        "floor",
        "floor/time",
    ];
    let mut table = Table::new(caption, header);
    let mut values = Vec::new();
    for layer in &network.layers {
        for (pass, name) in PASSES {
            let launch = launch(layer, pass, batch, args.dtype);
            let floor = 1e6 * card.floor(launch.operations()?, launch.bytes()?);
            let prediction = launch.predict(card, None, None)?;
            let us = |seconds: f64| format!("{:.1}", seconds * 1e6);
            let (x, w) = (layer.x, layer.w);
            let groups = match layer.conv.groups {
                1 => String::new(),
                groups => format!(" g{groups}"),
            };
            let shape = format!("{}>{} {}x{} k{}{groups}", x.c, w.n, x.h, x.w, w.h);
            let mut row = vec![layer.name.clone(), shape, name.to_string()];
            let mut value =
                json!({"layer": layer.name, "pass": name, "kernel": null, "floor": floor});
            match prediction {
                Some(p) => {
                    let t = p.times;
                    let [images, rows, cols] = p.tile;
                    row.extend([
                        format!(
                            "{} {}: {}x{}",
                            p.kernel.trim_start_matches("conv2d_"),
                            p.blocking,
                            p.rows,
                            p.cols
                        ),
                        format!("{images}x{rows}x{cols}"),
                        p.blocks.to_string(),
                        format!("{:.2}", t.waves),
                    ]);
                    let times = [
                        t.tensor,
                        t.issue,
                        t.mufu,
                        t.shared,
                        t.l2,
                        t.memory,
                        t.seconds(),
                    ];
                    row.extend(times.map(us));
                    row.extend([t.bound().to_string(), format!("{floor:.1}")]);
                    row.push(format!("{:.2}", floor / (t.seconds() * 1e6)));
                    let named = [
                        ("microseconds", t.seconds()),
                        ("tensor", t.tensor),
                        ("issue", t.issue),
                        ("mufu", t.mufu),
                        ("shared", t.shared),
                        ("l2", t.l2),
                        ("hbm", t.memory),
                    ];
                    for (name, seconds) in named {
                        value[name] = json!(seconds * 1e6);
                    }
                    value["kernel"] = json!(p.kernel);
                    value["blocking"] = json!(p.blocking);
                    value["tile"] = json!(p.tile);
                    value["blocks"] = json!(p.blocks);
                    value["waves"] = json!(t.waves);
                    value["resident"] = json!(t.resident);
                    value["bound"] = json!(t.bound());
                }
                None => {
                    row.extend(std::iter::repeat_n(String::new(), 11));
                    row.extend(["not modelled".to_string(), format!("{floor:.1}")]);
                }
            }
            table.row(row);
            values.push(value);
        }
    }
    Ok((table, values))
}

fn tune(args: &Args, json: bool) -> Result<()> {
    stop_on_ctrl_c()?;
    let Device::Gpu(gpu) = args.device.open()? else {
        bail!("--tune needs a GPU; `noiseforge devices` says what there is");
    };
    let out = match &args.out {
        Some(out) => out.clone(),
        None => tuning_file().context("no home directory for the table; --out FILE names one")?,
    };
    // A shape occurs several times in a network, and in several of them.
    let mut launches: Vec<Launch> = Vec::new();
    for network in args.networks()? {
        for batch in args.batches() {
            for layer in &network.layers {
                // As networks run it: with noise in the load where that is the cheapest.
                let forward = launch(layer, Pass::Forward, batch, args.dtype);
                let forward = Launch {
                    noise: forward.noise && noise::in_load(args.dtype, layer.x.c),
                    ..forward
                };
                let grad = launch(layer, Pass::InputGrad, batch, args.dtype);
                for launch in [forward, grad].map(|l| Launch {
                    pool: false,
                    residual: false,
                    ..l
                }) {
                    let same = |l: &Launch| {
                        (l.operation(), l.x.n, l.sizes())
                            == (launch.operation(), batch, launch.sizes())
                    };
                    if !launches.iter().any(same) {
                        launches.push(launch);
                    }
                }
            }
        }
    }
    let progress = bar(launches.len() as u64, "shapes");
    let mut found = Vec::new();
    for launch in &launches {
        check_stop()?;
        found.extend(measure(&gpu, launch, Effort::default())?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    let name = &gpu.properties().name;
    // What other devices, and other shapes of this one, were measured to take stays.
    let device = name.replace(',', " ");
    let mut lines = if out.exists() {
        tuning::read(&out)?
    } else {
        Vec::new()
    };
    let key = |m: &Measurement| (m.operation.clone(), m.dtype.to_string(), m.n, m.sizes);
    let anew: std::collections::HashSet<_> = found.iter().map(key).collect();
    lines.retain(|m| m.device != device || !anew.contains(&key(m)));
    lines.extend(found.iter().cloned());
    let text = lines.iter().map(|m| m.line() + "\n").collect::<String>();
    if let Some(folder) = out.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    noiseforge::io::atomic::write_atomic(&out, |file| {
        use std::io::Write;
        write!(file, "{}\n{text}", tuning::HEADER)
    })?;
    if json {
        say!(
            "{:#}",
            json!({"device": name, "measurements": found.len(), "file": out})
        );
    } else {
        say!(
            "{} measurements of {} shapes on {name} in {}",
            found.len(),
            launches.len(),
            out.display()
        );
    }
    Ok(())
}
