//! `noiseforge attack cw`.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use noiseforge::attacks::carlini_wagner::{CarliniWagner, Protocol};
use noiseforge::nn::Mode;
use serde_json::json;

use super::campaign::{EOT, EotAverage, RunArgs, Settings};
use super::{FILES, Job, Method, object};

/// First constant of the published search.
const FIRST: f64 = 1e-3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProtocolArg {
    /// As the RSE paper ran it: given c, 300 steps of 1e-3, last iterate
    Rse,
    /// The original: binary search over c, closest success kept
    Cw,
    /// One minimisation in which c follows the iterates to the boundary: the closest images for the fewest
    /// passes
    Adaptive,
}

impl ProtocolArg {
    fn name(self) -> &'static str {
        match self {
            ProtocolArg::Rse => "rse",
            ProtocolArg::Cw => "cw",
            ProtocolArg::Adaptive => "adaptive",
        }
    }
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
  noiseforge attack cw --weights w.safetensors --data synthetic --count 50 --protocol adaptive \\
      --steps 100 --eot 10 --out runs/cw-eot

{FILES} With several constants there is one such folder for each (c-0.01, ...) and a report.json
above them that holds them all.")
)]
pub struct CwArgs {
    #[command(flatten)]
    run: RunArgs,
    /// How the constants are chosen
    #[arg(long, value_enum, default_value = "rse")]
    protocol: ProtocolArg,
    /// Constants, separated by commas (protocol rse) [default: 0.01,0.03,0.06,0.1,0.2]; or the first
    /// constant of the search (protocol cw) [default: 0.001]
    #[arg(long, value_delimiter = ',')]
    c: Vec<f64>,
    /// Adam steps for each constant [default: rse 300, cw 10000, adaptive 200]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Adam's step size; with adaptive in units of the change that a linear network would need [default: rse
    /// 0.001, cw 0.01, adaptive 1]
    #[arg(long)]
    lr: Option<f64>,
    /// What the step size falls to [default: --lr, adaptive a hundredth of it]
    #[arg(long)]
    lr_end: Option<f64>,
    /// Constants tried (protocol cw)
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    search_steps: u32,
    /// Constants tried side by side (protocol cw; published: 1)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
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
                    first: c.unwrap_or(FIRST),
                    search_steps: self.search_steps,
                    at_once: self.at_once,
                    abort_early: !self.no_abort_early,
                },
                ..CarliniWagner::search()
            },
            ProtocolArg::Adaptive => CarliniWagner::adaptive(200),
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

    pub fn run(&self, json: bool) -> Result<()> {
        let constants: Vec<Option<f64>> = match (self.protocol, &self.c[..]) {
            (ProtocolArg::Rse, []) => [0.01, 0.03, 0.06, 0.1, 0.2].map(Some).to_vec(),
            (ProtocolArg::Rse, c) => c.iter().copied().map(Some).collect(),
            (ProtocolArg::Cw, []) => vec![Some(FIRST)],
            (ProtocolArg::Cw, [c]) => vec![Some(*c)],
            (ProtocolArg::Cw, _) => bail!("--protocol cw searches c: give at most one, the first"),
            (ProtocolArg::Adaptive, []) => vec![None],
            (ProtocolArg::Adaptive, _) => bail!("--protocol adaptive finds c itself: give none"),
        };
        let several = constants.len() > 1;
        let jobs = constants.iter().map(|&c| {
            let params = self.params(c);
            let mut parameters = object(json!({
                "protocol": self.protocol.name(),
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
            let (label, folder) = match (self.protocol, c) {
                (ProtocolArg::Rse, Some(c)) => (format!("c {c}"), format!("c-{c}")),
                _ => ("cw".to_string(), "cw".to_string()),
            };
            Job {
                method: Method::Cw(params),
                parameters,
                eps: None,
                folder: match several {
                    true => self.run.out.join(folder),
                    false => self.run.out.clone(),
                },
                label,
            }
        });
        let (eot, mode) = match self.protocol {
            // One draw a step, as published.
            ProtocolArg::Rse => (1, self.batch_norm),
            ProtocolArg::Cw | ProtocolArg::Adaptive => (EOT, self.batch_norm),
        };
        let mode = match mode {
            BatchNormArg::Eval => Mode::Eval,
            BatchNormArg::Train => Mode::Train,
        };
        let settings = Settings {
            eot,
            average: EotAverage::Logits,
            mode,
        };
        self.run.run(&jobs.collect::<Vec<_>>(), settings, json)
    }
}
