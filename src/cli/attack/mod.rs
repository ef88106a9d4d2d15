//! `noiseforge attack`: which attack, with which parameters.

mod auto;
mod campaign;
mod cw;
mod distance;
mod gradient;
mod partial;
mod report;
mod transfer;
pub mod verify;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use noiseforge::attacks::auto::AutoAttack;
use noiseforge::attacks::carlini_wagner::CarliniWagner;
use noiseforge::attacks::gradient::Pgd;
use noiseforge::attacks::{BlackBoxAttack, Norm, WhiteBoxAttack};
use serde_json::{Map, Value, json};

use auto::{ApgdArgs, FabArgs, NoiseArgs, RandArgs, SquareArgs};
use campaign::RunArgs;
use cw::CwArgs;
use distance::{DdnArgs, HopSkipJumpArgs, ZooArgs};
use gradient::{FgsmArgs, IteratedArgs, PgdArgs};

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
    /// Automatic projected gradient descent: on the cross-entropy, the DLR loss or the targeted DLR loss
    Apgd(Box<ApgdArgs>),
    /// The closest boundary by linearisation, of the smallest distance or within a radius
    Fab(Box<FabArgs>),
    /// Square: random search that needs scores alone
    Square(Box<SquareArgs>),
    /// Random noise within the radius: the control that every attack has to beat
    Noise(Box<NoiseArgs>),
    /// ZOO: Carlini and Wagner's loss, its slope from differences of scores, coordinate by coordinate
    Zoo(Box<ZooArgs>),
    /// Decoupled direction and norm: the smallest L2 distance by gradients
    Ddn(Box<DdnArgs>),
    /// HopSkipJump: the smallest distance from predicted classes alone
    Hopskipjump(Box<HopSkipJumpArgs>),
    /// The standard ensemble: APGD on the cross-entropy and on the targeted DLR loss, targeted FAB, Square
    Autoattack(Box<FgsmArgs>),
    /// The ensemble for random networks: APGD on the cross-entropy and the DLR loss, every comparison
    /// and every success over several draws
    AutoattackRand(Box<RandArgs>),
    /// Judge the images another attack saved by other weights
    Transfer(Box<transfer::TransferArgs>),
}

/// An attack, ready to be run.
enum Method {
    Cw(CarliniWagner),
    White(Box<dyn WhiteBoxAttack>),
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
        Attack::Ifgsm(args) => args.run(json),
        Attack::Pgd(args) => args.run(json),
        Attack::Apgd(args) => args.run(json),
        Attack::Fab(args) => args.run(json),
        Attack::Square(args) => args.run(json),
        Attack::Noise(args) => args.run(json),
        Attack::Zoo(args) => args.run(json),
        Attack::Ddn(args) => args.run(json),
        Attack::Hopskipjump(args) => args.run(json),
        Attack::Autoattack(args) => args.run_standard(json),
        Attack::AutoattackRand(args) => args.run(json),
        Attack::Transfer(args) => args.run(json),
    }
}

pub fn norm(text: &str) -> Result<Norm, String> {
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
pub fn radius(text: &str) -> Result<f64, String> {
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

    /// `steps` where they can be chosen.
    fn run_auto(
        &self,
        run: &RunArgs,
        attack: AutoAttack,
        steps: Option<u32>,
        json: bool,
    ) -> Result<()> {
        let members: Vec<&str> = attack.members.iter().map(|m| m.name()).collect();
        let mut parameters = object(json!({
            "norm": self.norm.name(),
            "eps": self.eps,
            "members": members,
        }));
        if let Some(steps) = steps {
            parameters.insert("steps".into(), json!(steps));
        }
        self.run_method(run, Method::White(Box::new(attack)), parameters, json)
    }

    fn run_method(
        &self,
        run: &RunArgs,
        method: Method,
        parameters: Map<String, Value>,
        json: bool,
    ) -> Result<()> {
        run.run_one(method, parameters, Some(self.eps), json)
    }
}

impl RunArgs {
    /// Runs one attack with the usual draws.
    fn run_one(
        &self,
        method: Method,
        parameters: Map<String, Value>,
        eps: Option<f64>,
        json: bool,
    ) -> Result<()> {
        let job = Job {
            label: method.name().to_string(),
            method,
            parameters,
            eps,
            folder: self.out.clone(),
        };
        self.run(&[job], campaign::Settings::default(), json)
    }
}
