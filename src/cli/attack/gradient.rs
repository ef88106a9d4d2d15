//! FGSM, its forms, and projected gradient descent.

use anyhow::Result;
use clap::Args;
use noiseforge::attacks::Norm;
use noiseforge::attacks::auto::AutoAttack;
use noiseforge::attacks::gradient::Pgd;

use super::campaign::RunArgs;
use super::{BoundArgs, FILES, radius};

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = format!("Example:
  noiseforge attack fgsm --weights w.safetensors --data cifar10:data --eps 8/255 --out runs/fgsm

{FILES}")
)]
pub struct FgsmArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    bound: BoundArgs,
}

impl FgsmArgs {
    pub fn run(&self, attack: fn(Norm, f64) -> Pgd, json: bool) -> Result<()> {
        let attack = attack(self.bound.norm, self.bound.eps);
        self.bound.run(&self.run, attack, json)
    }

    /// The standard ensemble, which takes the same arguments.
    pub fn run_standard(&self, json: bool) -> Result<()> {
        let attack = AutoAttack::standard(self.bound.norm, self.bound.eps);
        self.bound.run_auto(&self.run, attack, None, json)
    }
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true, after_help = FILES)]
pub struct IteratedArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    bound: BoundArgs,
    /// Steps
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
}

impl IteratedArgs {
    pub fn run(&self, json: bool) -> Result<()> {
        let attack = Pgd::iterated_fgsm(self.bound.norm, self.bound.eps, self.steps);
        self.bound.run(&self.run, attack, json)
    }
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
pub struct PgdArgs {
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
    pub fn run(&self, json: bool) -> Result<()> {
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
