//! The attacks of AutoAttack, by themselves and together, and the random control.

use anyhow::Result;
use clap::{Args, ValueEnum};
use noiseforge::attacks::Norm;
use noiseforge::attacks::apgd::{Apgd, Loss};
use noiseforge::attacks::auto::AutoAttack;
use noiseforge::attacks::fab::Fab;
use noiseforge::attacks::random_noise::RandomNoise;
use noiseforge::attacks::square::Square;
use serde_json::json;

use super::campaign::RunArgs;
use super::{BoundArgs, FILES, Method, norm, object, radius};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LossArg {
    /// Cross-entropy
    Ce,
    /// Difference of logits ratio
    Dlr,
    /// Targeted difference of logits ratio
    TargetedDlr,
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = format!("Example:
  noiseforge attack apgd --weights w.safetensors --data cifar10:data --eps 8/255 --loss dlr --out runs/apgd

{FILES}")
)]
pub struct ApgdArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    bound: BoundArgs,
    /// What is raised
    #[arg(long, value_enum, default_value = "ce")]
    loss: LossArg,
    /// Gradients of each start
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Random starts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    restarts: u32,
    /// Wrong classes, the most likely ones, of the targeted loss
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    targets: u32,
}

impl ApgdArgs {
    pub fn run(&self, json: bool) -> Result<()> {
        let BoundArgs { norm, eps } = self.bound;
        let (published, loss) = match self.loss {
            LossArg::Ce => (Apgd::cross_entropy(norm, eps), Loss::CrossEntropy),
            LossArg::Dlr => (Apgd::dlr(norm, eps), Loss::Dlr),
            LossArg::TargetedDlr => (
                Apgd::targeted_dlr(norm, eps),
                Loss::TargetedDlr {
                    targets: self.targets,
                },
            ),
        };
        let attack = Apgd {
            loss,
            steps: self.steps,
            restarts: self.restarts,
            ..published
        };
        let parameters = object(json!({
            "norm": norm.name(),
            "eps": eps,
            "loss": attack.name,
            "steps": self.steps,
            "restarts": self.restarts,
            "targets": (self.loss == LossArg::TargetedDlr).then_some(self.targets),
        }));
        let method = Method::White(Box::new(attack));
        self.bound.run_method(&self.run, method, parameters, json)
    }
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = format!("Examples:
  noiseforge attack fab --weights w.safetensors --data cifar10:data --norm l2 --out runs/fab
  noiseforge attack fab --weights w.safetensors --data cifar10:data --eps 8/255 --out runs/fab-8

{FILES}")
)]
pub struct FabArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Norm of the perturbation: linf or l2
    #[arg(long, default_value = "linf", value_parser = norm)]
    norm: Norm,
    /// Only within this radius [default: the closest image, however far]
    #[arg(long, value_parser = radius)]
    eps: Option<f64>,
    /// Wrong classes, the most likely ones, whose boundaries are looked for [default: the closest one]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    targets: Option<u32>,
    /// Steps of each start
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Starts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    restarts: u32,
}

impl FabArgs {
    pub fn run(&self, json: bool) -> Result<()> {
        let published = match self.targets {
            Some(_) => Fab::targeted(self.norm),
            None => Fab::untargeted(self.norm),
        };
        let attack = Fab {
            targets: self.targets,
            bound: self.eps,
            steps: self.steps,
            restarts: self.restarts,
            ..published
        };
        let parameters = object(json!({
            "norm": self.norm.name(),
            "eps": self.eps,
            "targets": self.targets,
            "steps": self.steps,
            "restarts": self.restarts,
        }));
        let method = Method::White(Box::new(attack));
        self.run.run_one(method, parameters, self.eps, json)
    }
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = format!("Example:
  noiseforge attack square --weights w.safetensors --data cifar10:data --eps 8/255 --out runs/square

{FILES}")
)]
pub struct SquareArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    bound: BoundArgs,
    /// Queries of each image
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..))]
    queries: u32,
    /// Share of the image that the first squares cover
    #[arg(long, default_value_t = 0.8)]
    p: f64,
    /// Stretch the schedule of squares, made for 10,000 queries, to --queries
    #[arg(long)]
    rescale: bool,
}

impl SquareArgs {
    pub fn run(&self, json: bool) -> Result<()> {
        let BoundArgs { norm, eps } = self.bound;
        let attack = Square {
            queries: self.queries,
            p: self.p,
            rescale: self.rescale,
            ..Square::new(norm, eps)
        };
        let parameters = object(json!({
            "norm": norm.name(),
            "eps": eps,
            "queries": self.queries,
            "p": self.p,
            "rescale": self.rescale,
        }));
        let method = Method::Black(Box::new(attack));
        self.bound.run_method(&self.run, method, parameters, json)
    }
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true, after_help = FILES)]
pub struct NoiseArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    bound: BoundArgs,
    /// Tries for each image
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    tries: u32,
}

impl NoiseArgs {
    pub fn run(&self, json: bool) -> Result<()> {
        let BoundArgs { norm, eps } = self.bound;
        let attack = RandomNoise {
            tries: self.tries,
            ..RandomNoise::new(norm, eps)
        };
        let parameters = object(json!({
            "norm": norm.name(),
            "eps": eps,
            "tries": self.tries,
        }));
        let method = Method::Black(Box::new(attack));
        self.bound.run_method(&self.run, method, parameters, json)
    }
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = format!("Example:
  noiseforge attack autoattack-rand --weights rse.safetensors --data cifar10:data --eps 8/255 \\
      --eot 20 --confirmations 5 --out runs/rand

{FILES}")
)]
pub struct RandArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    bound: BoundArgs,
    /// Gradients of each APGD
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Then targeted FAB and Square, too
    #[arg(long)]
    all: bool,
}

impl RandArgs {
    pub fn run(&self, json: bool) -> Result<()> {
        let BoundArgs { norm, eps } = self.bound;
        let attack = match self.all {
            true => AutoAttack::rand_with_all(norm, eps, self.steps),
            false => AutoAttack::rand(norm, eps, self.steps),
        };
        self.bound
            .run_auto(&self.run, attack, Some(self.steps), json)
    }
}
