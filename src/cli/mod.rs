//! The command line: one file per command, an `Args` struct and a function each.

mod attack;
mod audit;
mod bench;
mod certify;
mod common;
mod demo;
mod devices;
mod eval;
mod gradcheck;
mod index;
mod noise;
mod recipe;
mod report;
mod reproduce;
mod selftest;
mod theory;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Neural networks that carry Gaussian noise, and the laboratory that attacks them.
#[derive(Debug, Parser)]
#[command(version, about, after_help = "Start with:  noiseforge demo")]
struct Cli {
    /// Print results as JSON on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Say more about what was done
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train an RSE network and its undefended twin on built-in data, attack both, write a report
    Demo(demo::DemoArgs),
    /// Train a network
    Train(Box<train::TrainArgs>),
    /// Accuracy of a network, and of its ensemble against the number of draws
    Eval(eval::EvalArgs),
    /// Scores of a network or its ensemble, as an array
    Predict(eval::PredictArgs),
    /// Attack a network
    Attack(attack::AttackArgs),
    /// Attacks and verdicts against exact answers, on this machine
    Selftest(selftest::SelftestArgs),
    /// Whether an evaluation of a network is to be believed
    Audit(Box<audit::AuditArgs>),
    /// Find an attack's report again from the images it saved
    Verify(attack::verify::VerifyArgs),
    /// Tables and figures of attacks, from their reports
    Report(report::Args),
    /// A page that leads to all runs below a folder
    Index(index::Args),
    /// The paper's tables and figures, from data to page
    Reproduce(Box<reproduce::Args>),
    /// The paper's inequality 5 and equation 7, measured on a network
    Theory(Box<theory::Args>),
    /// Certified radii by randomised smoothing
    Certify(Box<certify::CertifyArgs>),
    /// Check every op's gradients against differences in double precision
    Gradcheck(gradcheck::Args),
    /// Time of the networks' convolutions: by a model of the card, or measured to choose their tiles
    Bench(bench::Args),
    /// One noise layer's draw, as an array
    Noise(noise::Args),
    /// What there is to compute on
    Devices(devices::DevicesArgs),
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    let result = match &cli.command {
        Command::Demo(args) => demo::run(args, json),
        Command::Train(args) => train::run(args, json, cli.verbose),
        Command::Eval(args) => eval::eval(args, json),
        Command::Predict(args) => eval::predict(args, json),
        Command::Attack(args) => attack::run(args, json),
        Command::Selftest(args) => selftest::run(args, json),
        Command::Audit(args) => audit::run(args, json),
        Command::Verify(args) => attack::verify::run(args, json),
        Command::Report(args) => report::run(args, json),
        Command::Index(args) => index::run(args, json),
        Command::Reproduce(args) => reproduce::run(args, json),
        Command::Theory(args) => theory::run(args, json),
        Command::Certify(args) => certify::run(args, json),
        Command::Gradcheck(args) => gradcheck::run(args, json),
        Command::Bench(args) => bench::run(args, json),
        Command::Noise(args) => noise::run(args, json),
        Command::Devices(args) => devices::run(args, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("noiseforge: {error:#}");
            let interrupted = error
                .chain()
                .any(|e| matches!(e.downcast_ref(), Some(noiseforge::Error::Interrupted)));
            ExitCode::from(if interrupted { 130 } else { 1 })
        }
    }
}
