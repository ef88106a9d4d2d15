//! `noiseforge attack`: which attack, with which parameters.

mod campaign;
mod partial;
mod transfer;
pub mod verify;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use noiseforge::attacks::carlini_wagner::{CarliniWagner, First, Protocol};
use noiseforge::attacks::gradient::Pgd;
use noiseforge::attacks::{BlackBoxAttack, Norm, WhiteBoxAttack};
use noiseforge::ensemble::Average;
use noiseforge::nn::Mode;
use serde_json::{Map, Value, json};

use campaign::RunArgs;

const FILES: &str = "The folder holds adv.npy (f32, [n, h, w, c], row i is the i-th image attacked), \
report.json (every parameter, every image, all figures) and timing.json. An interrupted attack goes on \
when it is started again with the same arguments, and gives the same bytes.";

#[derive(Debug, Args)]
pub struct AttackArgs {
    #[command(subcommand)]
    attack: Attack,
}

#[derive(Debug, Subcommand)]
enum Attack {
    /// The L2 attack of Carlini and Wagner
    Cw(Box<CwArgs>),
    /// One step along the gradient's sign or direction
    Fgsm(Box<FgsmArgs>),
    /// A random step of half the radius, then one along the gradient
    Rfgsm(Box<FgsmArgs>),
    /// Steps of radius / steps along the gradient from the image
    Ifgsm(Box<IteratedArgs>),
    /// Projected gradient descent from random starts
    Pgd(Box<PgdArgs>),
    /// Judge the images another attack saved by other weights
    Transfer(Box<transfer::TransferArgs>),
}

/// An attack, ready to be run.
enum Method {
    Cw(CarliniWagner),
    White(Box<dyn WhiteBoxAttack>),
    #[allow(dead_code)]
    Black(Box<dyn BlackBoxAttack>),
}

/// One attack on all images, and where its results go.
struct Job {
    method: Method,
    /// What was set of the attack itself.
    parameters: Map<String, Value>,
    /// Radius, for attacks within one.
    eps: Option<f64>,
    folder: PathBuf,
    /// Column of the table on the terminal, where there is more than one job.
    label: String,
}

impl Method {
    fn name(&self) -> &'static str {
        match self {
            Method::Cw(attack) => attack.name(),
            Method::White(attack) => attack.name(),
            Method::Black(attack) => attack.name(),
        }
    }
}

/// A JSON object from `name: value` pairs.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => unreachable!("written as an object"),
    }
}

pub fn run(args: &AttackArgs, json: bool) -> Result<()> {
    match &args.attack {
        Attack::Cw(args) => args.run(json),
        Attack::Fgsm(args) => args.run(Pgd::fgsm, json),
        Attack::Rfgsm(args) => args.run(Pgd::random_fgsm, json),
        Attack::Ifgsm(args) => {
            let attack = Pgd::iterated_fgsm(args.bound.norm, args.bound.eps, args.steps);
            args.bound.run(&args.run, attack, json)
        }
        Attack::Pgd(args) => args.run(json),
        Attack::Transfer(args) => args.run(json),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProtocolArg {
    /// As the RSE paper ran it: given c, 300 steps of 1e-3, last iterate
    Rse,
    /// The original: binary search over c, closest success kept
    Cw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BatchNormArg {
    /// Running statistics
    Eval,
    /// The batch's statistics, which also move the running ones: as the authors' first code did.
    /// Images of a batch then depend on each other
    Train,
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = format!("Examples:
  noiseforge attack cw --weights w.safetensors --data cifar10:data --count 200 \\
      --protocol rse --c 0.01,0.03,0.06,0.1,0.2 --ensemble 50 --out runs/cw
  noiseforge attack cw --weights w.safetensors --data synthetic --count 50 --protocol cw \\
      --steps 1000 --eot 10 --out runs/cw-eot

{FILES} With several constants there is one such folder for each (c-0.01, ...) and a report.json
above them that holds them all.")
)]
struct CwArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Which published procedure
    #[arg(long, value_enum, default_value = "rse")]
    protocol: ProtocolArg,
    /// Constants, separated by commas (protocol rse) [default: 0.01,0.03,0.06,0.1,0.2]; or the first
    /// constant of the search (protocol cw; published: 0.001) [default: what a linear network needs]
    #[arg(long, value_delimiter = ',')]
    c: Vec<f64>,
    /// Adam steps for each constant [default: rse 300, cw 1000; published: 10000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Adam's step size [default: rse 0.001, cw 0.1, published: 0.01]
    #[arg(long)]
    lr: Option<f64>,
    /// What the step size falls to [default: rse --lr; cw a thousandth of it, published: --lr]
    #[arg(long)]
    lr_end: Option<f64>,
    /// Constants tried (protocol cw)
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    search_steps: u32,
    /// Constants tried side by side (protocol cw; published: 1)
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    /// Use all steps even when the loss stalls (protocol cw)
    #[arg(long)]
    no_abort_early: bool,
    /// Confidence: the margin in logits
    #[arg(long, default_value_t = 0.0)]
    kappa: f64,
    /// Batch norm during the attack
    #[arg(long, value_enum, default_value = "eval")]
    batch_norm: BatchNormArg,
}

impl CwArgs {
    fn params(&self, c: Option<f64>) -> CarliniWagner {
        let published = match self.protocol {
            ProtocolArg::Rse => CarliniWagner::rse(c.unwrap_or_default()),
            ProtocolArg::Cw => CarliniWagner {
                protocol: Protocol::Search {
                    first: c.map_or(First::Linear, First::Given),
                    search_steps: self.search_steps,
                    at_once: self.at_once,
                    abort_early: !self.no_abort_early,
                },
                ..CarliniWagner::precise()
            },
        };
        let lr = self.lr.unwrap_or(published.lr);
        CarliniWagner {
            steps: self.steps.unwrap_or(published.steps),
            lr,
            lr_end: self.lr_end.unwrap_or(lr * published.lr_end / published.lr),
            kappa: self.kappa,
            ..published
        }
    }

    fn run(&self, json: bool) -> Result<()> {
        let constants: Vec<Option<f64>> = match (self.protocol, &self.c[..]) {
            (ProtocolArg::Rse, []) => [0.01, 0.03, 0.06, 0.1, 0.2].map(Some).to_vec(),
            (ProtocolArg::Rse, c) => c.iter().copied().map(Some).collect(),
            (ProtocolArg::Cw, []) => vec![None],
            (ProtocolArg::Cw, [c]) => vec![Some(*c)],
            (ProtocolArg::Cw, _) => bail!("--protocol cw searches c: give at most one, the first"),
        };
        let several = constants.len() > 1;
        let jobs = constants.iter().map(|&c| {
            let params = self.params(c);
            let mut parameters = object(json!({
                "protocol": match self.protocol { ProtocolArg::Rse => "rse", ProtocolArg::Cw => "cw" },
                "c": c,
                "steps": params.steps,
                "lr": params.lr,
                "lr_end": params.lr_end,
                "kappa": params.kappa,
                "batch_norm": match self.batch_norm { BatchNormArg::Eval => "eval", BatchNormArg::Train => "train" },
            }));
            if self.protocol == ProtocolArg::Cw {
                parameters.extend(object(json!({
                    "search_steps": self.search_steps,
                    "at_once": self.at_once,
                    "abort_early": !self.no_abort_early,
                })));
            }
            let c = c.unwrap_or_default();
            Job {
                method: Method::Cw(params),
                parameters,
                eps: None,
                folder: match several {
                    true => self.run.out.join(format!("c-{c}")),
                    false => self.run.out.clone(),
                },
                label: format!("c {c}"),
            }
        });
        let (eot, mode) = match self.protocol {
            // One draw a step, as published.
            ProtocolArg::Rse => (1, self.batch_norm),
            ProtocolArg::Cw => (campaign::EOT, self.batch_norm),
        };
        let mode = match mode {
            BatchNormArg::Eval => Mode::Eval,
            BatchNormArg::Train => Mode::Train,
        };
        let settings = campaign::Settings {
            eot,
            average: Average::Logits,
            mode,
        };
        self.run.run(&jobs.collect::<Vec<_>>(), settings, json)
    }
}

fn norm(text: &str) -> Result<Norm, String> {
    text.parse().map_err(|_| "expected l2 or linf".to_string())
}

/// The ball an attack stays in.
#[derive(Debug, Args)]
struct BoundArgs {
    /// Norm of the perturbation: linf or l2
    #[arg(long, default_value = "linf", value_parser = norm)]
    norm: Norm,
    /// Radius, in units of an image's values, which lie in [0, 1] (8/255 is 0.03137)
    #[arg(long, value_parser = radius)]
    eps: f64,
}

/// A number or a fraction such as 8/255.
fn radius(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let value = match text.split_once('/') {
        Some((a, b)) => number(a).zip(number(b)).map(|(a, b)| a / b),
        None => number(text),
    };
    match value {
        Some(v) if v.is_finite() && v > 0.0 => Ok(v),
        _ => Err("expected a number above 0, or a fraction such as 8/255".to_string()),
    }
}

impl BoundArgs {
    /// Runs one attack in the ball.
    fn run(&self, run: &RunArgs, attack: Pgd, json: bool) -> Result<()> {
        let parameters = object(json!({
            "norm": self.norm.name(),
            "eps": self.eps,
            "step": attack.step,
            "steps": attack.steps,
            "restarts": attack.restarts,
        }));
        self.run_method(run, Method::White(Box::new(attack)), parameters, json)
    }

    fn run_method(
        &self,
        run: &RunArgs,
        method: Method,
        parameters: Map<String, Value>,
        json: bool,
    ) -> Result<()> {
        let job = Job {
            label: method.name().to_string(),
            method,
            parameters,
            eps: Some(self.eps),
            folder: run.out.clone(),
        };
        run.run(&[job], campaign::Settings::default(), json)
    }
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = format!("Example:
  noiseforge attack fgsm --weights w.safetensors --data cifar10:data --eps 8/255 --out runs/fgsm

{FILES}")
)]
struct FgsmArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    bound: BoundArgs,
}

impl FgsmArgs {
    fn run(&self, attack: fn(Norm, f64) -> Pgd, json: bool) -> Result<()> {
        let attack = attack(self.bound.norm, self.bound.eps);
        self.bound.run(&self.run, attack, json)
    }
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true, after_help = FILES)]
struct IteratedArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    bound: BoundArgs,
    /// Steps
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = format!("Examples:
  noiseforge attack pgd --weights w.safetensors --data cifar10:data --eps 8/255 --out runs/pgd
  noiseforge attack pgd --weights w.safetensors --data cifar10:data --norm l2 --eps 0.5 \\
      --steps 50 --restarts 5 --out runs/pgd-l2

{FILES}")
)]
struct PgdArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    bound: BoundArgs,
    /// Steps of each start
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Length of a step [default: a quarter of the radius]
    #[arg(long, value_parser = radius)]
    step: Option<f64>,
    /// Random starts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    restarts: u32,
}

impl PgdArgs {
    fn run(&self, json: bool) -> Result<()> {
        let published = Pgd::projected(self.bound.norm, self.bound.eps);
        let attack = Pgd {
            step: self.step.unwrap_or(published.step),
            steps: self.steps,
            restarts: self.restarts,
            ..published
        };
        self.bound.run(&self.run, attack, json)
    }
}
