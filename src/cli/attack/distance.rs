//! Attacks that look for the smallest distance: ZOO, DDN, HopSkipJump.

use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use noiseforge::attacks::Norm;
use noiseforge::attacks::ddn::Ddn;
use noiseforge::attacks::hopskipjump::HopSkipJump;
use noiseforge::attacks::zoo::{Draws, Solver, Space, Zoo};
use serde_json::json;

use super::campaign::RunArgs;
use super::{FILES, Method, norm, object};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SolverArg {
    /// Adam with moments and step counter of each coordinate's own
    Adam,
    /// The slope over the curvature
    Newton,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SpaceArg {
    /// x' = (tanh w + 1) / 2
    Tanh,
    /// The pixels, kept in the box: for images with many values at 0 or 1
    Clipped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DrawsArg {
    /// Each probe its own, as published: against noise the differences are then the noise's
    Independent,
    /// The two probes of a coordinate the same
    Pairs,
    /// All probes of an iteration the same
    Common,
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = format!("Examples:
  noiseforge attack zoo --weights w.safetensors --data cifar10:data --count 10 --out runs/zoo
  noiseforge attack zoo --weights rse.safetensors --data cifar10:data --count 10 --eot 1 \\
      --draws common --h 0.01 --max-queries 100000 --out runs/zoo-rse

{FILES}")
)]
pub struct ZooArgs {
    #[command(flatten)]
    run: RunArgs,
    /// How a coordinate moves
    #[arg(long, value_enum, default_value = "adam")]
    solver: SolverArg,
    /// What is searched
    #[arg(long, value_enum, default_value = "tanh")]
    space: SpaceArg,
    /// Iterations for each constant
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    iterations: u32,
    /// Coordinates of an iteration
    #[arg(long, default_value_t = 128)]
    coordinates: usize,
    /// Finite difference, in the searched space
    #[arg(long, default_value_t = 1e-4)]
    h: f64,
    /// Step size
    #[arg(long, default_value_t = 0.01)]
    lr: f64,
    /// Confidence: the margin in logits
    #[arg(long, default_value_t = 0.0)]
    kappa: f64,
    /// First constant; ten times as much while nothing succeeds [default: 0.5 for one, else 0.01]
    #[arg(long)]
    c: Option<f64>,
    /// Constants tried
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    search_steps: u32,
    /// Give a constant up when the loss has not fallen in so many iterations; 0 for never
    #[arg(long, default_value_t = 100)]
    early_stop: u32,
    /// Forget Adam's moments at the first success
    #[arg(long)]
    reset_at_success: bool,
    /// Perturb coarser grids first and choose coordinates by importance: as published for images larger
    /// than 32
    #[arg(long)]
    hierarchical: bool,
    /// Which draws the probes of an iteration see, in a random network
    #[arg(long, value_enum, default_value = "common")]
    draws: DrawsArg,
    /// Draws over which each probe is averaged, beside --eot
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    averages: u32,
}

impl ZooArgs {
    pub fn run(&self, json: bool) -> Result<()> {
        let published = match self.search_steps {
            1 => Zoo::published(),
            _ => Zoo::search(),
        };
        let attack = Zoo {
            solver: match self.solver {
                SolverArg::Adam => Solver::Adam,
                SolverArg::Newton => Solver::Newton,
            },
            space: match self.space {
                SpaceArg::Tanh => Space::Tanh,
                SpaceArg::Clipped => Space::Clipped,
            },
            iterations: self.iterations,
            coordinates: self.coordinates,
            h: self.h,
            lr: self.lr,
            kappa: self.kappa,
            c: self.c.unwrap_or(published.c),
            search_steps: self.search_steps,
            early_stop: self.early_stop,
            reset_at_success: self.reset_at_success,
            draws: match self.draws {
                DrawsArg::Independent => Draws::Independent,
                DrawsArg::Pairs => Draws::Pairs,
                DrawsArg::Common => Draws::Common,
            },
            averages: self.averages,
            ..published
        };
        let attack = match self.hierarchical {
            true => attack.for_images_of(usize::MAX, usize::MAX),
            false => attack,
        };
        let name = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
        let parameters = object(json!({
            "solver": name(&self.solver),
            "space": name(&self.space),
            "iterations": attack.iterations,
            "coordinates": attack.coordinates,
            "h": attack.h,
            "lr": attack.lr,
            "kappa": attack.kappa,
            "c": attack.c,
            "search_steps": attack.search_steps,
            "early_stop": attack.early_stop,
            "reset_at_success": attack.reset_at_success,
            "hierarchical": self.hierarchical,
            "draws": name(&self.draws),
            "averages": attack.averages,
        }));
        let method = Method::Black(Box::new(attack));
        self.run.run_one(method, parameters, None, json)
    }
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = format!("Example:
  noiseforge attack ddn --weights w.safetensors --data cifar10:data --out runs/ddn

{FILES}")
)]
pub struct DdnArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Steps
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// As published: the cross-entropy's gradient, and no last search
    #[arg(long)]
    published: bool,
}

impl DdnArgs {
    pub fn run(&self, json: bool) -> Result<()> {
        let attack = match self.published {
            true => Ddn::published(self.steps),
            false => Ddn::precise(self.steps),
        };
        let parameters = object(json!({
            "steps": self.steps,
            "published": self.published,
        }));
        let method = Method::White(Box::new(attack));
        self.run.run_one(method, parameters, None, json)
    }
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = format!("Example:
  noiseforge attack hopskipjump --weights w.safetensors --data cifar10:data --max-queries 5000 \\
      --out runs/hopskipjump

{FILES}")
)]
pub struct HopSkipJumpArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Which distance is made small: l2 or linf
    #[arg(long, default_value = "l2", value_parser = norm)]
    norm: Norm,
    /// Steps along the boundary
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    iterations: u32,
    /// Probes of the first estimate of a gradient
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    init_evals: u32,
    /// Most probes of an estimate
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    max_evals: u32,
    /// Points of a search looked at in one question
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    points: u32,
}

impl HopSkipJumpArgs {
    pub fn run(&self, json: bool) -> Result<()> {
        // Noise seldom meets a target: images of the data set do.
        let starts: Arc<[Vec<f32>]> = match self.run.is_targeted() {
            true => self.run.images_of_the_data_set()?.into(),
            false => Arc::new([]),
        };
        let attack = HopSkipJump {
            iterations: self.iterations,
            init_evals: self.init_evals,
            max_evals: self.max_evals,
            points: self.points,
            starts,
            ..HopSkipJump::published(self.norm)
        };
        let parameters = object(json!({
            "norm": self.norm.name(),
            "iterations": attack.iterations,
            "init_evals": attack.init_evals,
            "max_evals": attack.max_evals,
            "init_trials": attack.init_trials,
            "points": attack.points,
        }));
        let method = Method::Black(Box::new(attack));
        self.run.run_one(method, parameters, None, json)
    }
}
