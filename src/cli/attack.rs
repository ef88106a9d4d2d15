//! `noiseforge attack`.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use noiseforge::attacks::Criterion;
use noiseforge::attacks::carlini_wagner::{self, CarliniWagner, Found, Outcome, Protocol};
use noiseforge::data::{Dataset, Spec, Split};
use noiseforge::ensemble::{Average, Ensemble};
use noiseforge::evaluate::{Evaluation, Judge};
use noiseforge::io::npy;
use noiseforge::models::Model;
use noiseforge::nn::Mode;
use noiseforge::ops::noise::Purpose;
use noiseforge::tensor::Tensor;
use serde_json::json;

use super::common::{self, PlaceArgs, WeightsArgs, percent, positive, say};

#[derive(Debug, Args)]
pub struct AttackArgs {
    #[command(subcommand)]
    attack: Attack,
}

#[derive(Debug, Subcommand)]
enum Attack {
    /// The L2 attack of Carlini and Wagner
    Cw(Box<CwArgs>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProtocolArg {
    /// As the RSE paper ran it: given c, 300 steps of 1e-3, last iterate
    Rse,
    /// The original: binary search over c, closest success kept
    Cw,
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
    after_help = "Examples:
  noiseforge attack cw --weights w.safetensors --data cifar10:data --count 200 \\
      --protocol rse --c 0.01,0.03,0.06,0.1,0.2 --ensemble 50 --out runs/cw
  noiseforge attack cw --weights w.safetensors --data synthetic --count 50 --protocol cw \\
      --steps 1000 --eot 10 --out runs/cw-eot

The folder holds adv.npy (f32, [n, h, w, c], row i is the i-th image attacked) and report.json. With
several constants there is one such pair in a folder for each (c-0.01, ...) and a report.json above
them that holds them all."
)]
struct CwArgs {
    #[command(flatten)]
    weights: WeightsArgs,
    /// Data: synthetic[:N], cifar10:DIR, stl10:DIR, folder:DIR or npy:IMAGES,LABELS
    #[arg(long, value_name = "SPEC")]
    data: Spec,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How many images, from the first of the test set
    #[arg(long, default_value = "100", value_parser = positive)]
    count: usize,
    /// Which published procedure
    #[arg(long, value_enum, default_value = "rse")]
    protocol: ProtocolArg,
    /// Constants, separated by commas (protocol rse) [default: 0.01,0.03,0.06,0.1,0.2]; or the
    /// first constant of the search (protocol cw) [default: 0.001]
    #[arg(long, value_delimiter = ',')]
    c: Vec<f64>,
    /// Adam steps for each constant [default: rse 300, cw 10000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Adam's step size [default: rse 0.001, cw 0.01]
    #[arg(long)]
    lr: Option<f64>,
    /// Constants tried (protocol cw)
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    search_steps: u32,
    /// Use all steps even when the loss stalls (protocol cw)
    #[arg(long)]
    no_abort_early: bool,
    /// Confidence: the margin in logits
    #[arg(long, default_value_t = 0.0)]
    kappa: f64,
    /// Towards the class after the true one, instead of away from the true one
    #[arg(long)]
    targeted: bool,
    /// Towards this class; images of the class itself are passed over
    #[arg(long, value_name = "CLASS", conflicts_with = "targeted")]
    target: Option<u32>,
    /// Draws of the noise averaged in each step's gradient (EOT)
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    eot: usize,
    /// Batch norm during the attack
    #[arg(long, value_enum, default_value = "eval")]
    batch_norm: BatchNormArg,
    /// Draws of the verdict; 1 where the network has no noise
    #[arg(long, value_name = "N", default_value = "10", value_parser = positive)]
    ensemble: usize,
    /// Images attacked at once; does not change the result (with --batch-norm eval)
    #[arg(long, default_value = "100", value_parser = positive)]
    batch: usize,
    #[command(flatten)]
    place: PlaceArgs,
}

pub fn run(args: &AttackArgs, json: bool) -> Result<()> {
    match &args.attack {
        Attack::Cw(args) => args.run(json),
    }
}

/// The images under attack.
struct Target {
    data: Dataset,
    /// Their indices in the data set.
    ids: Vec<u32>,
    criterion: Criterion,
}

/// One constant's result.
struct Attacked {
    adversarial: Tensor,
    report: serde_json::Value,
    c: f64,
}

impl CwArgs {
    fn constants(&self) -> Result<Vec<f64>> {
        match (self.protocol, &self.c[..]) {
            (ProtocolArg::Rse, []) => Ok(vec![0.01, 0.03, 0.06, 0.1, 0.2]),
            (ProtocolArg::Rse, c) => Ok(c.to_vec()),
            (ProtocolArg::Cw, []) => Ok(vec![1e-3]),
            (ProtocolArg::Cw, [c]) => Ok(vec![*c]),
            (ProtocolArg::Cw, _) => bail!("--protocol cw searches c: give at most one, the first"),
        }
    }

    fn params(&self, c: f64) -> CarliniWagner {
        let published = match self.protocol {
            ProtocolArg::Rse => CarliniWagner::rse(c),
            ProtocolArg::Cw => CarliniWagner {
                protocol: Protocol::Search {
                    initial_c: c,
                    search_steps: self.search_steps,
                    abort_early: !self.no_abort_early,
                },
                ..CarliniWagner::search()
            },
        };
        CarliniWagner {
            steps: self.steps.unwrap_or(published.steps),
            lr: self.lr.unwrap_or(published.lr),
            kappa: self.kappa,
            ..published
        }
    }

    fn target(&self) -> Result<Target> {
        let test = common::load_data(&self.data, Split::Test)?;
        let classes = test.classes().len() as u32;
        if let Some(target) = self.target
            && target >= classes
        {
            bail!(
                "--target {target}: the data set has classes 0 to {}",
                classes - 1
            );
        }
        let chosen: Vec<usize> = (0..test.len())
            .filter(|&i| self.target != Some(test.labels()[i]))
            .take(self.count)
            .collect();
        if chosen.is_empty() {
            bail!("no image to attack: every label is the target");
        }
        let data = test.subset(&chosen)?;
        let labels = data.labels().to_vec();
        let criterion = match (self.target, self.targeted) {
            (Some(target), _) => Criterion::Targeted {
                targets: vec![target; labels.len()],
            },
            (None, true) => Criterion::Targeted {
                targets: labels.iter().map(|l| (l + 1) % classes).collect(),
            },
            (None, false) => Criterion::Untargeted { labels },
        };
        Ok(Target {
            data,
            ids: chosen.iter().map(|&i| i as u32).collect(),
            criterion,
        })
    }

    fn run(&self, json: bool) -> Result<()> {
        let constants = self.constants()?;
        for &c in &constants {
            self.params(c).check()?;
        }
        let target = self.target()?;
        let mut model = self.weights.load(&target.data)?;
        self.place.place(&mut model)?;
        common::prepare_folder(&self.out)?;
        common::stop_on_ctrl_c()?;
        let draws = common::useful_draws(&model, self.ensemble);
        let clean = self.judge(&mut model, &target.data, &target.ids, draws)?;
        if !json {
            say!(
                "{} images, {} draws, clean accuracy {}%",
                target.ids.len(),
                draws,
                percent(clean.final_accuracy())
            );
            say!(
                "{:>9}  {:>10}  {:>9}  {:>9}  {:>11}",
                "c",
                "accuracy %",
                "RMS L2",
                "mean L2",
                "median L2"
            );
        }
        let mut reports = Vec::new();
        for &c in &constants {
            let attacked = self.attack(&mut model, &target, &clean, draws, c)?;
            let folder = match constants.len() {
                1 => self.out.clone(),
                _ => self.out.join(format!("c-{c}")),
            };
            self.write(&folder, &attacked)?;
            if !json {
                let figure = |key: &str| match attacked.report[key].as_f64() {
                    Some(v) => format!("{v:.4}"),
                    None => "inf".to_string(),
                };
                say!(
                    "{:>9}  {:>10}  {:>9}  {:>9}  {:>11}",
                    attacked.c,
                    percent(attacked.report["accuracy"].as_f64().unwrap_or(f64::NAN)),
                    figure("rms_l2"),
                    figure("mean_l2_of_successes"),
                    figure("median_l2")
                );
            }
            reports.push(attacked.report);
        }
        let report = match reports.len() {
            1 => reports.remove(0),
            _ => {
                let all = json!({ "attacks": reports });
                common::write_json(&self.out.join("report.json"), &all)?;
                all
            }
        };
        if json {
            say!("{report:#}");
        } else {
            say!("{}", self.out.join("report.json").display());
        }
        Ok(())
    }

    fn judge(
        &self,
        model: &mut Model,
        data: &Dataset,
        ids: &[u32],
        draws: usize,
    ) -> Result<Evaluation> {
        let judge = Judge {
            seed: self.weights.seed,
            first_draw: 0,
            draws: vec![draws],
            average: Average::Probabilities,
        };
        Ok(judge.judge(model, data, ids, &mut |_| common::check_stop())?)
    }

    fn attack(
        &self,
        model: &mut Model,
        target: &Target,
        clean: &Evaluation,
        draws: usize,
        c: f64,
    ) -> Result<Attacked> {
        let params = self.params(c);
        let started = Instant::now();
        let (adversarial, found) = self.run_batches(model, target, &params)?;
        let seconds = started.elapsed().as_secs_f64();
        let labels = target.data.labels();
        let attacked = Dataset::from_tensor(
            &adversarial,
            labels.to_vec(),
            target.data.classes().to_vec(),
        )
        .context("the attack left the box [0, 1]")?;
        let verdict = self.judge(model, &attacked, &target.ids, draws)?;

        let criterion = &target.criterion;
        let rows: Vec<serde_json::Value> = (0..labels.len())
            .map(|i| {
                json!({
                    "id": target.ids[i],
                    "label": labels[i],
                    "target": match criterion {
                        Criterion::Targeted { targets } => Some(targets[i]),
                        Criterion::Untargeted { .. } => None,
                    },
                    "clean_prediction": clean.predictions[i],
                    "prediction": verdict.predictions[i],
                    "success": criterion.is_met(i, verdict.predictions[i]),
                    "attack_success": found[i].success,
                    "l2": found[i].l2_squared.sqrt(),
                    "l2_squared": found[i].l2_squared,
                    "c": found[i].c,
                    "forward_passes": u64::from(found[i].passes) * self.eot as u64,
                    "backward_passes": u64::from(found[i].passes) * self.eot as u64,
                })
            })
            .collect();
        let succeeded: Vec<f64> = (0..labels.len())
            .filter(|&i| criterion.is_met(i, verdict.predictions[i]))
            .map(|i| found[i].l2_squared.sqrt())
            .collect();
        let n = labels.len() as f64;
        let mean =
            (!succeeded.is_empty()).then(|| succeeded.iter().sum::<f64>() / succeeded.len() as f64);
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "attack": "cw",
            "protocol": match self.protocol { ProtocolArg::Rse => "rse", ProtocolArg::Cw => "cw" },
            "weights": self.weights.weights.display().to_string(),
            "network": common::config_json(model.config()),
            "data": self.data.to_string(),
            "split": "test",
            "count": labels.len(),
            "targeted": matches!(criterion, Criterion::Targeted { .. }),
            "c": c,
            "steps": params.steps,
            "lr": params.lr,
            "kappa": params.kappa,
            "search_steps": match params.protocol {
                Protocol::Search { search_steps, .. } => Some(search_steps),
                Protocol::Rse { .. } => None,
            },
            "eot": self.eot,
            "batch_norm": match self.batch_norm { BatchNormArg::Eval => "eval", BatchNormArg::Train => "train" },
            "seed": self.weights.seed,
            "ensemble": draws,
            "clean_accuracy": clean.final_accuracy(),
            "accuracy": verdict.final_accuracy(),
            "success_rate": succeeded.len() as f64 / n,
            "attack_success_rate": found.iter().filter(|f| f.success).count() as f64 / n,
            "rms_l2": carlini_wagner::rms_l2(&found),
            "mean_l2_of_successes": mean,
            "median_l2": median_with_failures(&succeeded, labels.len()),
            "seconds": seconds,
            "images": rows,
        });
        Ok(Attacked {
            adversarial,
            report,
            c,
        })
    }

    fn run_batches(
        &self,
        model: &mut Model,
        target: &Target,
        params: &CarliniWagner,
    ) -> Result<(Tensor, Vec<Found>)> {
        let n = target.ids.len();
        let bar = common::bar(n as u64 * 100, "attacking");
        let mut pixels = Vec::new();
        let mut found = Vec::new();
        let mut batch = self.batch;
        while found.len() < n {
            let range = found.len()..(found.len() + batch).min(n);
            let mut progress = |done: u32, most: u32| {
                let share = range.len() as u64 * 100 * u64::from(done) / u64::from(most);
                bar.set_position(range.start as u64 * 100 + share);
                common::check_stop()
            };
            match self.attack_batch(model, target, params, range.clone(), &mut progress) {
                // Fewer images at once give the same result, unless batch norm looks at them all.
                Err(noiseforge::Error::OutOfMemory { .. })
                    if self.batch_norm == BatchNormArg::Eval && range.len() > 1 =>
                {
                    batch = range.len() / 2;
                    let say = || eprintln!("noiseforge: too little memory; {batch} images at once");
                    bar.suspend(say);
                }
                outcome => {
                    let outcome = outcome?;
                    pixels.extend_from_slice(outcome.adversarial.data::<f32>());
                    found.extend(outcome.found);
                }
            }
        }
        bar.finish_and_clear();
        let shape = target.data.image_shape().with_n(n);
        Ok((Tensor::from_vec(shape, pixels)?, found))
    }

    /// Attacks the images at these positions together.
    fn attack_batch(
        &self,
        model: &mut Model,
        target: &Target,
        params: &CarliniWagner,
        range: Range<usize>,
        progress: &mut dyn FnMut(u32, u32) -> noiseforge::Result<()>,
    ) -> noiseforge::Result<Outcome> {
        let (x, _) = target.data.batch(&range.clone().collect::<Vec<_>>())?;
        let x = x.to(model.device())?;
        let classes = target.criterion.classes()[range.clone()].to_vec();
        let criterion = match target.criterion {
            Criterion::Untargeted { .. } => Criterion::Untargeted { labels: classes },
            Criterion::Targeted { .. } => Criterion::Targeted { targets: classes },
        };
        let mut net = Ensemble::new(model, self.weights.seed, Purpose::Attack, self.eot)?;
        net.average = Average::Logits;
        net.mode = match self.batch_norm {
            BatchNormArg::Eval => Mode::Eval,
            BatchNormArg::Train => Mode::Train,
        };
        let ids = &target.ids[range];
        carlini_wagner::attack(&mut net, &x, ids, &criterion, params, progress)
    }

    fn write(&self, folder: &Path, attacked: &Attacked) -> Result<()> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot write into {}", folder.display()))?;
        let s = attacked.adversarial.shape();
        npy::write_f32(
            &folder.join("adv.npy"),
            &[s.n, s.h, s.w, s.c],
            attacked.adversarial.data::<f32>(),
        )?;
        common::write_json(&folder.join("report.json"), &attacked.report)
    }
}

/// Median distance with failures counted as infinitely far; `None` is infinity.
fn median_with_failures(successes: &[f64], n: usize) -> Option<f64> {
    let mut sorted = successes.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = ((n - 1) / 2, n / 2);
    Some(0.5 * (sorted.get(low)? + sorted.get(high)?))
}

#[cfg(test)]
mod tests {
    use super::median_with_failures;

    #[test]
    fn failures_are_infinitely_far() {
        assert_eq!(median_with_failures(&[3.0, 1.0, 2.0], 3), Some(2.0));
        assert_eq!(median_with_failures(&[3.0, 1.0, 2.0], 4), Some(2.5));
        assert_eq!(median_with_failures(&[3.0, 1.0, 2.0], 5), Some(3.0));
        assert_eq!(median_with_failures(&[3.0, 1.0, 2.0], 6), None);
        assert_eq!(median_with_failures(&[], 1), None);
    }
}
