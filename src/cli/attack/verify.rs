//! `noiseforge verify`: a report's figures, found again from its images.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use noiseforge::attacks::Norm;
use noiseforge::data::Spec;
use noiseforge::models::Model;
use serde_json::{Value, json};

use super::campaign;
use super::transfer::Saved;
use crate::cli::common::{self, DeviceArg, percent, say};

#[derive(Debug, Args)]
#[command(after_help = "Example:
  noiseforge attack pgd --weights w.safetensors --data cifar10:data --eps 8/255 --out runs/pgd
  noiseforge verify runs/pgd

Judges the saved images again by the report's weights, rule, draws and seed, measures their distances
again, and compares every row. Fails if one differs. Verdicts can only differ by rounding: on another
kind of device, or another build.")]
pub struct VerifyArgs {
    /// The attack's folder: adv.npy and report.json
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Weights [default: the report's]
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Data set [default: the report's]
    #[arg(long, value_name = "SPEC")]
    data: Option<Spec>,
    #[command(flatten)]
    device: DeviceArg,
}

/// How far a perturbation may leave its ball by rounding of f32 pixels.
const ROUNDING: f64 = 1e-6;

pub fn run(args: &VerifyArgs, json: bool) -> Result<()> {
    let saved = Saved::read(&args.folder, args.data.as_ref())?;
    let report = &saved.report;
    let jury = report.jury()?;
    let file = args.folder.join("report.json");
    let weights = match (&args.weights, report.parameters.get("weights")) {
        (Some(path), _) => path.clone(),
        (None, Some(Value::String(path))) => PathBuf::from(path),
        _ => bail!("{} names no weights: give --weights", file.display()),
    };
    let network = report.parameters.get("network").unwrap_or(&Value::Null);
    let config = common::config_of_json(&file, network)?;
    let mut model = Model::read(&weights, |_| Ok(config.clone()))?;
    let device = args.device.open()?;
    let dtype = report.parameters.get("dtype").and_then(Value::as_str);
    model.to(&device, dtype.unwrap_or("f32").parse()?)?;
    common::stop_on_ctrl_c()?;
    let victims = &saved.victims;
    let clean = campaign::judge(&jury, &mut model, &victims.data, &victims.ids)?;
    let adversarial = &saved.adversarial;
    let verdicts = campaign::judge_adversarial(&jury, &mut model, victims, adversarial)?;

    let originals = saved.originals()?;
    let mut differ = Vec::new();
    for (i, row) in report.images.iter().enumerate() {
        let (x, adv): (&[f32], &[f32]) = (originals.row(i), adversarial.row(i));
        let found = json!({
            "l2": Norm::L2.distance(adv, x),
            "linf": Norm::Linf.distance(adv, x),
            "clean_right": clean[i].count(row.label),
            "clean_prediction": clean[i].majority(),
            "right": verdicts[i].count(row.label),
            "prediction": verdicts[i].majority(),
        });
        let written = json!({
            "l2": row.l2,
            "linf": row.linf,
            "clean_right": row.clean_right,
            "clean_prediction": row.clean_prediction,
            "right": row.right,
            "prediction": row.prediction,
        });
        if found != written {
            differ.push(json!({ "id": row.id, "written": written, "found": found }));
        }
    }
    if let (Some(eps), Some(norm)) = (
        report.robustbench.eps,
        report.parameters.get("norm").and_then(Value::as_str),
    ) {
        let norm: Norm = norm.parse()?;
        let farthest = match norm {
            Norm::L2 => report.summary.max_l2,
            Norm::Linf => report.summary.max_linf,
        };
        if farthest > eps + ROUNDING {
            bail!("a perturbation of {norm} norm {farthest} leaves the ball of radius {eps}");
        }
    }
    if json {
        say!(
            "{:#}",
            json!({ "images": report.images.len(), "differ": differ })
        );
    } else {
        for d in &differ {
            say!(
                "image {}: written {}, found {}",
                d["id"],
                d["written"],
                d["found"]
            );
        }
    }
    if !differ.is_empty() {
        bail!("{} of {} images differ", differ.len(), report.images.len());
    }
    if !json {
        say!(
            "{} images agree: robust accuracy {}%, {} verdicts of {} draws each",
            report.images.len(),
            percent(report.summary.robust_accuracy),
            jury.verdicts,
            jury.draws
        );
    }
    Ok(())
}
