//! The report of an attack: everything that was set, and what became of every image. All figures are
//! computed from the images' rows.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Jury, Verdicts};
use crate::attacks::{Found, Goal};
use crate::error::{Error, Result};
use crate::statistics::{Interval, clopper_pearson, wilson_of_shares};

/// Form of the file: raised when a key changes its meaning.
pub const FORMAT: u32 = 2;

/// Intervals hold with this probability.
const LEVEL: f64 = 0.95;

/// What became of one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageReport {
    /// Its index in the data set.
    pub id: u32,
    /// Its true class.
    pub label: u32,
    /// The attack's target; none away from the label.
    pub target: Option<u32>,
    /// Class of the original image, by most verdicts.
    pub clean_prediction: u32,
    /// Verdicts on the original image that were right.
    pub clean_right: usize,
    /// Class of the adversarial image, by most verdicts.
    pub prediction: u32,
    /// Verdicts on the adversarial image that were right.
    pub right: usize,
    /// 95% interval (Clopper and Pearson) of the probability that a verdict on the adversarial image is
    /// right.
    pub right_interval: [f64; 2],
    /// Whether most verdicts meet the attack's goal.
    pub success: bool,
    /// Whether the attack saw its goal met, on its own draws.
    pub attack_success: bool,
    /// Member of a composite attack that met it.
    pub broken_by: Option<String>,
    /// L2 distance between the images.
    pub l2: f64,
    /// Largest change of a value.
    pub linf: f64,
    /// Weight of the margin, for attacks that have one.
    pub c: Option<f64>,
    /// Draws of the image that the attack sent forward.
    pub forward_passes: u64,
    /// Draws of the image that the attack sent backward.
    pub backward_passes: u64,
    /// Forward passes when the attack had its first success.
    pub forward_at_success: Option<u64>,
    /// Whether the query budget ended the attack.
    pub out_of_queries: bool,
}

impl ImageReport {
    /// From an attack's result and the verdicts on both images.
    pub fn new(
        id: u32,
        label: u32,
        goal: Goal,
        found: &Found,
        clean: &Verdicts,
        verdicts: &Verdicts,
    ) -> Self {
        let n = verdicts.0.len();
        let right = verdicts.count(label);
        let Interval { low, high } = clopper_pearson(right as u64, n as u64, 1.0 - LEVEL)
            .expect("no more verdicts are right than there are");
        let met = verdicts.0.iter().filter(|&&c| goal.is_met_by(c)).count();
        ImageReport {
            id,
            label,
            target: match goal {
                Goal::Away(_) => None,
                Goal::Towards(target) => Some(target),
            },
            clean_prediction: clean.majority(),
            clean_right: clean.count(label),
            prediction: verdicts.majority(),
            right,
            right_interval: [low, high],
            success: 2 * met > n,
            attack_success: found.success,
            broken_by: found.broken_by.map(str::to_string),
            l2: found.l2,
            linf: found.linf,
            c: found.c,
            forward_passes: found.counts.forward,
            backward_passes: found.counts.backward,
            forward_at_success: found.forward_at_success,
            out_of_queries: found.out_of_queries,
        }
    }
}

/// The figures of a report. Shares are of all images unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Images attacked.
    pub count: usize,
    /// Share of right verdicts on the original images.
    pub clean_accuracy: f64,
    /// Its 95% interval (Wilson), for images drawn from the same distribution.
    pub clean_accuracy_interval: [f64; 2],
    /// Share of right verdicts on the adversarial images.
    pub accuracy: f64,
    /// Robust accuracy: an image counts by the smaller one of its two shares of right verdicts, so that
    /// one misclassified without an attack is never robust.
    pub robust_accuracy: f64,
    /// Its 95% interval (Wilson).
    pub robust_accuracy_interval: [f64; 2],
    /// Images classified right by most verdicts without an attack.
    pub clean_correct: usize,
    /// Share of images on which most verdicts meet the attack's goal.
    pub success_rate: f64,
    /// The same among the images that were classified right.
    pub success_rate_of_correct: Option<f64>,
    /// Share of images on which the attack saw its goal met.
    pub attack_success_rate: f64,
    /// Median L2 distance over the images classified right, failures infinitely far; `None` is
    /// infinity.
    pub median_l2: Option<f64>,
    /// The same of the largest change.
    pub median_linf: Option<f64>,
    /// Mean L2 distance of the successes among the images classified right.
    pub mean_l2_of_successes: Option<f64>,
    /// Root mean square of the L2 distances of all images: the RSE paper's distortion.
    pub rms_l2: f64,
    /// Largest L2 distance.
    pub max_l2: f64,
    /// Largest change of a value.
    pub max_linf: f64,
    /// Forward passes in all.
    pub forward_passes: u64,
    /// Backward passes in all.
    pub backward_passes: u64,
    /// `[distance, accuracy]`: share of images classified right whose adversarial image is no success or
    /// farther away, in L2; falls at every distance listed.
    pub accuracy_by_l2: Vec<[f64; 2]>,
    /// The same against the largest change.
    pub accuracy_by_linf: Vec<[f64; 2]>,
    /// `[forward passes, accuracy]`: share of images classified right without a success so far.
    pub accuracy_by_forward_passes: Vec<[f64; 2]>,
}

/// RobustBench's keys for the same figures, accuracies in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RobustBench {
    /// Data set.
    pub dataset: String,
    /// Network.
    pub architecture: String,
    /// Radius of the attack; none for attacks of the smallest distance.
    pub eps: Option<f64>,
    /// Accuracy without an attack.
    pub clean_acc: f64,
    /// Robust accuracy; under AutoAttack's own key only where that was the attack.
    pub autoattack_acc: Option<f64>,
    /// Robust accuracy by another attack.
    pub external: Option<f64>,
    /// Draws of a verdict.
    pub number_forward_passes: usize,
}

impl Summary {
    /// Computed from the images' rows, each judged by so many verdicts.
    ///
    /// Panics without rows.
    pub fn new(rows: &[ImageReport], verdicts: usize) -> Self {
        assert!(!rows.is_empty(), "a report is of at least one image");
        let n = rows.len() as f64;
        let share = |of: &dyn Fn(&ImageReport) -> usize| {
            rows.iter()
                .map(|r| of(r) as f64 / verdicts as f64)
                .sum::<f64>()
                / n
        };
        let clean = share(&|r| r.clean_right);
        let robust = share(&|r| r.clean_right.min(r.right));
        let interval = |p: f64| {
            let Interval { low, high } =
                wilson_of_shares(p.clamp(0.0, 1.0), rows.len() as u64, 1.0 - LEVEL)
                    .expect("a share of at least one image");
            [low, high]
        };
        let correct: Vec<&ImageReport> = rows
            .iter()
            .filter(|r| 2 * r.clean_right > verdicts)
            .collect();
        let fell: Vec<&&ImageReport> = correct.iter().filter(|r| r.success).collect();
        let of_all =
            |met: &dyn Fn(&ImageReport) -> bool| rows.iter().filter(|r| met(r)).count() as f64 / n;
        let some = |v: f64, of: usize| (of > 0).then(|| v / of as f64);
        let distances = |of: &dyn Fn(&ImageReport) -> f64| -> Vec<f64> {
            let mut sorted: Vec<f64> = fell.iter().map(|r| of(r)).collect();
            sorted.sort_by(f64::total_cmp);
            sorted
        };
        let (l2, linf) = (distances(&|r| r.l2), distances(&|r| r.linf));
        let passes: Vec<f64> = {
            let seen = fell.iter().filter_map(|r| r.forward_at_success);
            let mut sorted: Vec<f64> = seen.map(|p| p as f64).collect();
            sorted.sort_by(f64::total_cmp);
            sorted
        };
        let most = |of: &dyn Fn(&ImageReport) -> f64| rows.iter().map(of).fold(0.0, f64::max);
        Summary {
            count: rows.len(),
            clean_accuracy: clean,
            clean_accuracy_interval: interval(clean),
            accuracy: share(&|r| r.right),
            robust_accuracy: robust,
            robust_accuracy_interval: interval(robust),
            clean_correct: correct.len(),
            success_rate: of_all(&|r| r.success),
            success_rate_of_correct: some(fell.len() as f64, correct.len()),
            attack_success_rate: of_all(&|r| r.attack_success),
            median_l2: median(&l2, correct.len()),
            median_linf: median(&linf, correct.len()),
            mean_l2_of_successes: some(l2.iter().sum(), l2.len()),
            rms_l2: (rows.iter().map(|r| r.l2.powi(2)).sum::<f64>() / n).sqrt(),
            max_l2: most(&|r| r.l2),
            max_linf: most(&|r| r.linf),
            forward_passes: rows.iter().map(|r| r.forward_passes).sum(),
            backward_passes: rows.iter().map(|r| r.backward_passes).sum(),
            accuracy_by_l2: falling(&l2, correct.len(), n),
            accuracy_by_linf: falling(&linf, correct.len(), n),
            accuracy_by_forward_passes: falling(&passes, correct.len(), n),
        }
    }
}

/// Accuracy beyond every value of `sorted`, where one image each falls.
fn falling(sorted: &[f64], correct: usize, n: f64) -> Vec<[f64; 2]> {
    let mut curve = vec![[0.0, correct as f64 / n]];
    for (i, &at) in sorted.iter().enumerate() {
        let left = (correct - i - 1) as f64 / n;
        match curve.last_mut() {
            Some(last) if last[0] == at => last[1] = left,
            _ => curve.push([at, left]),
        }
    }
    curve
}

/// Median of `n` distances of which these, ascending, are finite; `None` is infinity.
fn median(sorted: &[f64], n: usize) -> Option<f64> {
    let (low, high) = (n.checked_sub(1)? / 2, n / 2);
    Some(0.5 * (sorted.get(low)? + sorted.get(high)?))
}

fn parsed(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(path, "JSON", e))
}

/// An attack's report, as `report.json` holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the program.
    pub version: String,
    /// The attack's name.
    pub attack: String,
    /// Everything that was set, by the name of its option.
    pub parameters: Map<String, Value>,
    /// Seed of the attack and of the verdicts.
    pub seed: u64,
    /// How the draws of a verdict are put together.
    pub rule: String,
    /// Draws of a verdict.
    pub ensemble: usize,
    /// Verdicts on each image.
    pub verdicts: usize,
    /// The figures.
    #[serde(flatten)]
    pub summary: Summary,
    /// RobustBench's keys.
    pub robustbench: RobustBench,
    /// One row for each image, in the order of `adv.npy`.
    pub images: Vec<ImageReport>,
}

impl Report {
    /// Reads a report.
    ///
    /// Errors: no such file; not a report; of another format; figures that are not those of its rows.
    pub fn read(path: &Path) -> Result<Self> {
        Report::of_json(path, parsed(path)?)
    }

    /// Reads a report, or all of a file that holds several under `attacks`.
    ///
    /// Errors: as [`Report::read`]; none under `attacks`.
    pub fn read_all(path: &Path) -> Result<Vec<Self>> {
        let mut value = parsed(path)?;
        let Some(Value::Array(several)) = value.get_mut("attacks").map(Value::take) else {
            return Ok(vec![Report::of_json(path, value)?]);
        };
        if several.is_empty() {
            return Err(Error::file(path, "at least one attack", "none"));
        }
        let reports = several
            .into_iter()
            .map(|value| Report::of_json(path, value));
        reports.collect()
    }

    /// `path` is where it comes from.
    fn of_json(path: &Path, value: Value) -> Result<Self> {
        match value.get("format").and_then(Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => {
                let expected = format_args!("a report of format {FORMAT}");
                return Err(Error::file(path, expected, format_args!("format {format}")));
            }
            None => return Err(Error::file(path, "an attack's report", "no \"format\"")),
        }
        let report: Report = serde_json::from_value(value)
            .map_err(|e| Error::file(path, "an attack's report", e))?;
        if report.images.is_empty() || report.verdicts == 0 {
            return Err(Error::file(path, "at least one image and verdict", "none"));
        }
        if Summary::new(&report.images, report.verdicts) != report.summary {
            let found = "others: the file was changed";
            return Err(Error::file(
                path,
                "figures that follow from its images",
                found,
            ));
        }
        Ok(report)
    }

    /// The jury that judged.
    ///
    /// Errors: a rule that is not known.
    pub fn jury(&self) -> Result<Jury> {
        Ok(Jury {
            seed: self.seed,
            rule: self.rule.parse()?,
            draws: self.ensemble,
            verdicts: self.verdicts,
        })
    }
}
