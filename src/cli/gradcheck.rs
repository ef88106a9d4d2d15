//! `noiseforge gradcheck`: every op's backward pass against differences of its forward pass.

use anyhow::{Context, bail};
use noiseforge::gradcheck::{Report, catalog};
use serde_json::json;

use super::common::{DeviceArg, DeviceChoice, say};

/// Check every op's gradient against differences in double precision.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  noiseforge gradcheck
  noiseforge gradcheck --op conv2d
  noiseforge gradcheck --json")]
pub struct Args {
    /// Only this op (all of them without it).
    #[arg(long, value_name = "NAME")]
    op: Option<String>,
    #[command(flatten)]
    device: DeviceArg,
}

/// Prints a line per op and input; an error if a gradient is wrong or the op is unknown.
///
/// With `json`: `{"passed", "checks": [{"op", "check", "input", "shape", "directions", "skipped",
/// "worst_relative_error", "tolerance", "passed"}]}`; an error that is not finite is null.
pub fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    if let DeviceChoice::Cuda(_) = args.device.device {
        bail!("--device: gradients are checked in double precision, on the CPU");
    }
    let mut checks = catalog::all();
    if let Some(op) = &args.op {
        let known: Vec<_> = checks.iter().map(|(name, _)| *name).collect();
        checks.retain(|(name, _)| name == op);
        if checks.is_empty() {
            bail!("--op: unknown op {op:?}; known are {}", known.join(", "));
        }
    }
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    if !json {
        say!(
            "{:<40} {:<8} {:>10} {:>8} {:>12}  verdict",
            "check",
            "input",
            "directions",
            "skipped",
            "worst error"
        );
    }
    for (op, check) in checks {
        for report in check().with_context(|| format!("gradcheck of {op}"))? {
            if json {
                rows.extend(json_rows(op, &report));
            } else {
                print_rows(&report);
            }
            if !report.passed() {
                wrong.push(report);
            }
        }
    }
    if json {
        let all = json!({ "passed": wrong.is_empty(), "checks": rows });
        say!("{}", serde_json::to_string_pretty(&all)?);
    }
    if !wrong.is_empty() {
        let reports: Vec<_> = wrong.iter().map(Report::to_string).collect();
        bail!(
            "{} gradient checks failed\n{}",
            wrong.len(),
            reports.join("\n")
        );
    }
    Ok(())
}

fn print_rows(report: &Report) {
    for input in &report.inputs {
        let verdict = if input.passed(report.tolerance) {
            "ok"
        } else {
            "WRONG"
        };
        say!(
            "{:<40} {:<8} {:>10} {:>8} {:>12.1e}  {verdict}",
            report.name,
            input.name,
            input.directions,
            input.skipped,
            input.worst_error
        );
    }
}

fn json_rows(op: &str, report: &Report) -> Vec<serde_json::Value> {
    let row = |input: &noiseforge::gradcheck::InputReport| {
        let shape = input.shape;
        json!({
            "op": op,
            "check": report.name,
            "input": input.name,
            "shape": [shape.n, shape.h, shape.w, shape.c],
            "directions": input.directions,
            "skipped": input.skipped,
            "worst_relative_error": input.worst_error,
            "tolerance": report.tolerance,
            "passed": input.passed(report.tolerance),
        })
    };
    report.inputs.iter().map(row).collect()
}
