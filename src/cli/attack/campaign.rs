//! What all attacks share: images, draws, the run itself, verdicts and the report.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use noiseforge::attacks::{
    Criterion, Found, Options, Report as Done, Targets, WhiteBoxAttack, attack_black_box,
    attack_white_box, carlini_wagner, found_images,
};
use noiseforge::data::{Dataset, Spec, Split};
use noiseforge::ensemble::{Average, Ensemble};
use noiseforge::models::Model;
use noiseforge::nn::Mode;
use noiseforge::ops::noise::Purpose;
use noiseforge::tensor::Tensor;
use noiseforge::verdict::{ImageReport, Jury, Verdicts};
use serde_json::{Map, Value, json};

use super::partial::{self, Partial};
use super::{Job, Method, object, report};
use crate::cli::common::{self, PlaceArgs, WeightsArgs, positive, say};

/// Draws of a gradient or comparison in a random network, unless said otherwise.
pub const EOT: usize = 20;

/// Verdicts on fresh draws that a success has to pass in a random network, unless said otherwise.
const CONFIRMATIONS: u32 = 5;

/// Rows in one pass of the network, unless said otherwise.
const ROWS_ON_CPU: usize = 128;
const ROWS_ON_GPU: usize = 4096;

/// Over what the draws of a gradient are averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EotAverage {
    /// The objective of the mean probabilities
    Probabilities,
    /// The objective of the mean logits
    Logits,
    /// The mean of the draws' objectives
    Objective,
}

impl EotAverage {
    fn name(self) -> &'static str {
        match self {
            EotAverage::Probabilities => "probabilities",
            EotAverage::Logits => "logits",
            EotAverage::Objective => "objective",
        }
    }
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    weights: WeightsArgs,
    /// Data: synthetic[:N], cifar10:DIR, stl10:DIR, folder:DIR or npy:IMAGES,LABELS
    #[arg(long, value_name = "SPEC")]
    data: Spec,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How many images, from the first of the test set
    #[arg(long, default_value = "100", value_parser = positive)]
    count: usize,
    /// Towards the class after the true one, instead of away from the true one
    #[arg(long)]
    targeted: bool,
    /// Towards this class; images of the class itself are passed over
    #[arg(long, value_name = "CLASS", conflicts_with = "targeted")]
    target: Option<u32>,
    /// Draws of the noise in every gradient and every comparison [default: 1 where nothing is random and
    /// in the RSE paper's protocol, else 20]
    #[arg(long, value_name = "N", value_parser = positive)]
    eot: Option<usize>,
    /// What the draws are averaged over [default: logits for cw, else probabilities]
    #[arg(long, value_enum, value_name = "WHAT")]
    eot_average: Option<EotAverage>,
    /// Verdicts on fresh draws, of --eot draws each, most of which a success has to pass [default: 0 where
    /// nothing is random, else 5]
    #[arg(long, value_name = "N")]
    confirmations: Option<u32>,
    /// Forward passes allowed for each image: the attack ends before it would take more
    #[arg(long, value_name = "N", value_parser = positive)]
    max_queries: Option<usize>,
    #[command(flatten)]
    jury: JuryArgs,
    /// Rows (images times draws) in one pass of the network; does not change the result, but with
    /// --batch-norm train [default: 128, on a GPU 4096]
    #[arg(long, value_name = "ROWS", value_parser = positive)]
    batch: Option<usize>,
    #[command(flatten)]
    place: PlaceArgs,
}

/// How images are judged.
#[derive(Debug, Args)]
pub struct JuryArgs {
    /// How the draws of a verdict are put together: probabilities, logits or votes
    #[arg(long, default_value = "probabilities", value_parser = rule)]
    rule: Average,
    /// Draws of a verdict; 1 where nothing is random
    #[arg(long, value_name = "N", default_value = "10", value_parser = positive)]
    ensemble: usize,
    /// Verdicts on each image, each on draws of its own; 1 where nothing is random
    #[arg(long, value_name = "N", default_value = "10", value_parser = positive)]
    verdicts: usize,
}

fn rule(text: &str) -> Result<Average, String> {
    text.parse()
        .map_err(|_| "expected probabilities, logits or votes".to_string())
}

impl JuryArgs {
    /// The jury for a network.
    pub fn jury(&self, seed: u64, model: &Model) -> Jury {
        Jury {
            seed,
            rule: self.rule,
            draws: common::useful_draws(model, self.ensemble),
            verdicts: common::useful_draws(model, self.verdicts),
        }
    }
}

/// What an attack uses where the command line does not say.
pub struct Settings {
    /// Draws in a random network.
    pub eot: usize,
    pub average: EotAverage,
    pub mode: Mode,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            eot: EOT,
            average: EotAverage::Probabilities,
            mode: Mode::Eval,
        }
    }
}

/// The images under attack.
pub struct Victims {
    pub data: Dataset,
    /// Their indices in the data set.
    pub ids: Vec<u32>,
    pub criterion: Criterion,
}

impl Victims {
    /// The report's rows: what an attack found, and the verdicts on original and found images.
    pub fn rows(
        &self,
        found: &[Found],
        clean: &[Verdicts],
        verdicts: &[Verdicts],
    ) -> Vec<ImageReport> {
        let row = |i: usize| {
            let (label, goal) = (self.data.labels()[i], self.criterion.goal(i));
            ImageReport::new(self.ids[i], label, goal, &found[i], &clean[i], &verdicts[i])
        };
        (0..found.len()).map(row).collect()
    }
}

/// The attack's draws.
struct Draws {
    eot: usize,
    average: EotAverage,
    confirmations: u32,
    rows: usize,
}

impl RunArgs {
    fn victims(&self) -> Result<Victims> {
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
        Ok(Victims {
            data,
            ids: chosen.iter().map(|&i| i as u32).collect(),
            criterion,
        })
    }

    /// Whether the goal is a class.
    pub fn is_targeted(&self) -> bool {
        self.targeted || self.target.is_some()
    }

    /// The first images of the test set, at most a thousand.
    pub fn images_of_the_data_set(&self) -> Result<Vec<Vec<f32>>> {
        let test = common::load_data(&self.data, Split::Test)?.take(1000);
        let (x, _) = test.batch(&(0..test.len()).collect::<Vec<_>>())?;
        let images = x.data::<f32>().chunks(x.shape().row_len());
        Ok(images.map(<[f32]>::to_vec).collect())
    }

    fn draws(&self, model: &Model, settings: &Settings) -> Draws {
        let eot = common::useful_draws(model, self.eot.unwrap_or(settings.eot));
        let rows = match model.device().gpu() {
            Some(_) => ROWS_ON_GPU,
            None => ROWS_ON_CPU,
        };
        Draws {
            eot,
            average: self.eot_average.unwrap_or(settings.average),
            confirmations: match common::is_random(model) {
                true => self.confirmations.unwrap_or(CONFIRMATIONS),
                false => 0,
            },
            rows: self.batch.unwrap_or(rows).max(eot),
        }
    }

    /// Runs the jobs on the same images and writes their reports.
    pub(super) fn run(&self, jobs: &[Job], settings: Settings, json: bool) -> Result<()> {
        let victims = self.victims()?;
        let classes = victims.data.classes().len();
        for job in jobs {
            job.method.check(classes)?;
        }
        let mut model = self.weights.load(&victims.data)?;
        self.place.place(&mut model)?;
        common::prepare_folder(&self.out)?;
        common::stop_on_ctrl_c()?;
        let jury = self.jury.jury(self.weights.seed, &model);
        let draws = self.draws(&model, &settings);
        let clean = judge(&jury, &mut model, &victims.data, &victims.ids)?;
        let mut reports = Vec::new();
        for job in jobs {
            let asked = self.asked(job, &model, &victims, &jury, &draws);
            let started = Instant::now();
            let found = self.attack(job, &mut model, &victims, &draws, &settings, &asked)?;
            let attacked = started.elapsed().as_secs_f64();
            let adversarial = found_images(&found, victims.data.image_shape())?;
            let verdicts = judge_adversarial(&jury, &mut model, &victims, &adversarial)?;
            let images = victims.rows(&found, &clean, &verdicts);
            let name = job.method.name();
            let report = report::make(name, asked, &jury, job.eps, images, &model);
            report::write(&job.folder, &adversarial, &report)?;
            let seconds = started.elapsed().as_secs_f64();
            let timing = json!({
                "attack_seconds": attacked,
                "verdict_seconds": seconds - attacked,
                "images_per_second": found.len() as f64 / attacked,
                "device": model.device().to_string(),
            });
            common::write_json(&job.folder.join("timing.json"), &timing)?;
            let part = job.folder.join(partial::NAME);
            std::fs::remove_file(&part)
                .with_context(|| format!("cannot delete {}", part.display()))?;
            if !json {
                report::say_row(&report, reports.is_empty(), &job.label);
            }
            reports.push(serde_json::to_value(report)?);
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

    /// Everything that was set.
    fn asked(
        &self,
        job: &Job,
        model: &Model,
        victims: &Victims,
        jury: &Jury,
        draws: &Draws,
    ) -> Map<String, Value> {
        let mut asked = object(json!({
            "weights": self.weights.weights.display().to_string(),
            "network": common::config_json(model.config()),
            "device": model.device().to_string(),
            "dtype": model.dtype().to_string(),
            "data": self.data.to_string(),
            "split": "test",
            "count": victims.ids.len(),
            "targeted": matches!(victims.criterion, Criterion::Targeted { .. }),
            "target": self.target,
            "seed": jury.seed,
            "eot": draws.eot,
            "eot_average": draws.average.name(),
            "confirmations": draws.confirmations,
            "max_queries": self.max_queries,
            "rule": jury.rule.name(),
            "ensemble": jury.draws,
            "verdicts": jury.verdicts,
        }));
        asked.extend(job.parameters.clone());
        asked
    }

    fn attack(
        &self,
        job: &Job,
        model: &mut Model,
        victims: &Victims,
        draws: &Draws,
        settings: &Settings,
        asked: &Map<String, Value>,
    ) -> Result<Vec<Found>> {
        std::fs::create_dir_all(&job.folder)
            .with_context(|| format!("cannot write into {}", job.folder.display()))?;
        let identity = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "attack": job.method.name(),
            "asked": asked,
        });
        let (mut results_file, done) = Partial::open(&job.folder, &identity)?;
        let n = victims.ids.len();
        let mut results: Vec<Option<Found>> = vec![None; n];
        for (i, found) in done {
            if i < n && found.pixels.len() == victims.data.image_shape().row_len() {
                results[i] = Some(found);
            }
        }
        let left: Vec<usize> = (0..n).filter(|&i| results[i].is_none()).collect();
        let bar = common::bar(n as u64, "attacking");
        bar.set_position((n - left.len()) as u64);
        if !left.is_empty() {
            let (x, _) = victims.data.batch(&left)?;
            let ids: Vec<u32> = left.iter().map(|&i| victims.ids[i]).collect();
            let criterion = victims.criterion.select(&left);
            let targets = Targets {
                x: &x,
                ids: &ids,
                criterion: &criterion,
            };
            let by_objective = draws.average == EotAverage::Objective;
            let passes = if by_objective { 1 } else { draws.eot };
            let mut net = Ensemble::new(model, self.weights.seed, Purpose::Attack, passes)?;
            net.mode = settings.mode;
            net.average = match draws.average {
                EotAverage::Logits => Average::Logits,
                _ => Average::Probabilities,
            };
            let options = Options {
                seed: self.weights.seed,
                rows: draws.rows,
                mean_of_objective: draws.eot / passes,
                passes,
                confirmations: draws.confirmations,
                confidence: 0.0,
                budget: self.max_queries.map(|n| n as u64),
            };
            let mut report = |done: Option<(usize, &Found)>| {
                if let Some((i, found)) = done {
                    bar.inc(1);
                    results_file.add(left[i], found)?;
                }
                common::check_stop()
            };
            let found = job
                .method
                .attack(&mut net, targets, &options, &mut report)?;
            for (i, found) in left.iter().zip(found) {
                results[*i] = Some(found);
            }
        }
        bar.finish_and_clear();
        Ok(results
            .into_iter()
            .map(|r| r.expect("all are done"))
            .collect())
    }
}

impl Method {
    fn check(&self, classes: usize) -> noiseforge::Result<()> {
        match self {
            Method::Cw(attack) => attack.check(classes),
            Method::White(attack) => attack.check(classes),
            Method::Black(attack) => attack.check(classes),
        }
    }

    fn attack(
        &self,
        net: &mut Ensemble<'_>,
        targets: Targets<'_>,
        options: &Options,
        report: &mut Done<'_>,
    ) -> noiseforge::Result<Vec<Found>> {
        match self {
            Method::Cw(attack) => carlini_wagner::attack(net, targets, attack, options, report),
            Method::White(attack) => attack_white_box(net, targets, &**attack, options, report),
            Method::Black(attack) => attack_black_box(net, targets, &**attack, options, report),
        }
    }
}

/// Verdicts on images, with a progress bar.
pub fn judge(
    jury: &Jury,
    model: &mut Model,
    images: &Dataset,
    ids: &[u32],
) -> Result<Vec<Verdicts>> {
    let bar = common::bar((ids.len() * jury.verdicts) as u64, "judging");
    let verdicts = jury.judge(model, images, ids, &mut |done| {
        bar.set_position(done as u64);
        common::check_stop()
    })?;
    bar.finish_and_clear();
    Ok(verdicts)
}

/// Verdicts on the victims' adversarial images.
pub fn judge_adversarial(
    jury: &Jury,
    model: &mut Model,
    victims: &Victims,
    adversarial: &Tensor,
) -> Result<Vec<Verdicts>> {
    let labels = victims.data.labels().to_vec();
    let classes = victims.data.classes().to_vec();
    let images = Dataset::from_tensor(adversarial, labels, classes)
        .context("the attack left the box [0, 1]")?;
    judge(jury, model, &images, &victims.ids)
}
