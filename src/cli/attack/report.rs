//! Reports: made of their images' rows, written, and shown as a row of a table.

use std::path::Path;

use anyhow::{Context, Result};
use noiseforge::io::npy;
use noiseforge::models::Model;
use noiseforge::tensor::Tensor;
use noiseforge::verdict::{FORMAT, ImageReport, Jury, Report, RobustBench, Summary};
use serde_json::{Map, Value};

use crate::cli::common::{self, percent, say};

/// A report from its images' rows.
pub fn make(
    attack: &str,
    parameters: Map<String, Value>,
    jury: &Jury,
    eps: Option<f64>,
    images: Vec<ImageReport>,
    model: &Model,
) -> Report {
    let summary = Summary::new(&images, jury.verdicts);
    let robust = 100.0 * summary.robust_accuracy;
    let is_auto = attack.starts_with("autoattack");
    Report {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_string(),
        attack: attack.to_string(),
        robustbench: RobustBench {
            dataset: parameters
                .get("data")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_string(),
            architecture: model.config().arch.name().to_string(),
            eps,
            clean_acc: 100.0 * summary.clean_accuracy,
            autoattack_acc: is_auto.then_some(robust),
            external: (!is_auto).then_some(robust),
            number_forward_passes: jury.draws,
        },
        parameters,
        seed: jury.seed,
        rule: jury.rule.name().to_string(),
        ensemble: jury.draws,
        verdicts: jury.verdicts,
        summary,
        images,
    }
}

/// Writes the images and the report.
pub fn write(folder: &Path, adversarial: &Tensor, report: &Report) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot write into {}", folder.display()))?;
    let s = adversarial.shape();
    let (shape, data) = ([s.n, s.h, s.w, s.c], adversarial.data::<f32>());
    npy::write_f32(&folder.join("adv.npy"), &shape, data)?;
    common::write_json(&folder.join("report.json"), &serde_json::to_value(report)?)
}

/// A row of the table on the terminal, below its head where it is the first.
pub fn say_row(report: &Report, first: bool, label: &str) {
    let s = &report.summary;
    if first {
        say!(
            "{} images, {} verdicts of {} draws each ({}), clean accuracy {}%",
            s.count,
            report.verdicts,
            report.ensemble,
            report.rule,
            percent(s.clean_accuracy)
        );
        say!(
            "{:>12}  {:>9} {:>15}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>14}",
            "attack",
            "robust %",
            "95% interval",
            "success %",
            "median L2",
            "mean L2",
            "RMS L2",
            "max Linf",
            "forwards/image"
        );
    }
    let figure = |v: Option<f64>| v.map_or("inf".to_string(), |v| format!("{v:.4}"));
    let [low, high] = s.robust_accuracy_interval;
    say!(
        "{label:>12}  {:>9} {:>15}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>14.0}",
        percent(s.robust_accuracy),
        format!("{} - {}", percent(low), percent(high)),
        percent(s.success_rate),
        figure(s.median_l2),
        s.mean_l2_of_successes
            .map_or("-".to_string(), |v| format!("{v:.4}")),
        figure(Some(s.rms_l2)),
        figure(Some(s.max_linf)),
        s.forward_passes as f64 / s.count as f64
    );
}
