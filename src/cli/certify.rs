//! `noiseforge certify`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use noiseforge::certify::{
    Counts, Event, Outcome, Settings, Task, Verdict, average_radius, certified_accuracy, curve,
};
use noiseforge::data::{Dataset, Spec, Split};
use noiseforge::io::atomic::write_atomic;
use noiseforge::io::fingerprint::Fingerprint;
use noiseforge::models::Model;
use noiseforge::report::{Figure, Series};
use noiseforge::statistics::wilson;
use serde_json::{Value, json};

use super::common::{self, PlaceArgs, WeightsArgs, percent, positive, say};

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:
  noiseforge certify --weights w.safetensors --data cifar10:data --sigma 0.25 --skip 20 --out runs/cert
  noiseforge certify --weights w.safetensors --data synthetic --sigma 0.25 --count 20 --n 1000 --out c
  noiseforge certify --predict --weights w.safetensors --data synthetic --sigma 0.25 --n 1000 --out p

The folder holds certify.tsv (idx, label, predict, radius, correct, as in Cohen et al. 2019; predict is
-1 for an abstention; there is no column of times, which stand in certify.json, so that the same
command writes the same table byte for byte, whatever --batch), certify.json (every parameter, each
image's votes, certified accuracy at radii) and certified-accuracy.svg. With --predict they are
predict.tsv (no radius) and predict.json. After Ctrl-C state.json is there instead, and the same
command with --resume goes on with the images that are left.

The certificate covers noise on the image only: --sigma is added to the image, and the whole network
with its own noise is the classifier that is smoothed. Its own noise layers give no radius."
)]
pub struct CertifyArgs {
    #[command(flatten)]
    weights: WeightsArgs,
    /// Data: synthetic[:N], cifar10:DIR, stl10:DIR, folder:DIR or npy:IMAGES,LABELS
    #[arg(long, value_name = "SPEC")]
    data: Spec,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Standard deviation of the noise added to the image
    #[arg(long)]
    sigma: f32,
    /// Draws that select the class (not with --predict)
    #[arg(long, default_value_t = 100)]
    n0: u32,
    /// Draws of the estimate
    #[arg(long, default_value_t = 100_000)]
    n: u32,
    /// Largest probability of a false certificate, for each image
    #[arg(long, default_value_t = 0.001)]
    alpha: f64,
    /// Only the class of the smoothed classifier, or an abstention, without a radius
    #[arg(long)]
    predict: bool,
    /// Abstain before all draws are made where a certificate is out of reach
    #[arg(long, conflicts_with = "predict")]
    adaptive: bool,
    /// Every K-th image of the test set, from the first
    #[arg(long, value_name = "K", default_value = "1", value_parser = positive)]
    skip: usize,
    /// At most N images
    #[arg(long, value_name = "N", value_parser = positive)]
    count: Option<usize>,
    /// Rows of one batch; does not change the result [default: what suits the device]
    #[arg(long, value_parser = positive)]
    batch: Option<usize>,
    /// Continue an interrupted run
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// The state of an unfinished run is written this often.
const SAVE: Duration = Duration::from_secs(30);
/// What the theorem is about, for every report.
const SCOPE: &str = "The theorem of Cohen et al. 2019 covers the noise added to the image only; the \
                     whole network, its own noise layers included, is the classifier that is smoothed.";

/// The images and what is known of them.
struct Run<'a> {
    args: &'a CertifyArgs,
    settings: Settings,
    data: Dataset,
    /// Their indices in the data set.
    ids: Vec<u32>,
    outcomes: Vec<Option<Outcome>>,
    /// Every parameter that results depend on.
    parameters: Value,
}

pub fn run(args: &CertifyArgs, json: bool) -> Result<()> {
    let settings = Settings {
        task: match args.predict {
            true => Task::Predict,
            false => Task::Certify {
                n0: args.n0,
                adaptive: args.adaptive,
            },
        },
        sigma: args.sigma,
        n: args.n,
        alpha: args.alpha,
        seed: args.weights.seed,
        batch: args.batch,
    };
    settings.check()?;
    let test = common::load_data(&args.data, Split::Test)?;
    let most = args.count.unwrap_or(usize::MAX);
    let chosen: Vec<usize> = (0..test.len()).step_by(args.skip).take(most).collect();
    let data = test.subset(&chosen)?;
    let mut model = args.weights.load(&data)?;
    args.place.place(&mut model)?;
    let mut run = Run {
        args,
        settings,
        outcomes: vec![None; chosen.len()],
        ids: chosen.iter().map(|&i| i as u32).collect(),
        parameters: Value::Null,
        data,
    };
    run.parameters = run.describe(&model)?;
    common::prepare_folder(&args.out)?;
    run.resume()?;
    common::stop_on_ctrl_c()?;

    let started = Instant::now();
    if let Err(e) = run.draw(&mut model) {
        let done = run.outcomes.iter().flatten().count();
        if done > 0 {
            run.save()?;
        }
        let all = run.ids.len();
        return Err(e.context(format!(
            "stopped after {done} of {all} images; the same command with --resume continues"
        )));
    }
    let report = run.write(started.elapsed().as_secs_f64())?;
    match json {
        true => say!("{report:#}"),
        false => run.print(&report),
    }
    Ok(())
}

impl Run<'_> {
    fn name(&self) -> &'static str {
        match self.args.predict {
            true => "predict",
            false => "certify",
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.args.out.join(name)
    }

    fn describe(&self, model: &Model) -> Result<Value> {
        let args = self.args;
        let mut pixels = Fingerprint::new();
        for i in 0..self.data.len() {
            let (image, labels) = self.data.batch(&[i])?;
            for v in image.data::<f32>() {
                pixels.add(&v.to_le_bytes());
            }
            pixels.add(&labels[0].to_le_bytes());
        }
        let mut weights = Fingerprint::new();
        let path = &args.weights.weights;
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        weights.add(&bytes);
        let n0 = (!args.predict).then_some(args.n0);
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "task": self.name(),
            "weights": path.display().to_string(),
            "weights_fingerprint": weights.text(),
            "network": common::config_json(model.config()),
            "device": model.device().to_string(),
            "dtype": model.dtype().to_string(),
            "data": args.data.to_string(),
            "data_fingerprint": pixels.text(),
            "split": "test",
            "skip": args.skip,
            "count": self.ids.len(),
            "sigma": args.sigma,
            "n0": n0,
            "n": args.n,
            "alpha": args.alpha,
            "adaptive": args.adaptive,
            "looks": self.settings.looks(),
            "seed": args.weights.seed,
            "noise": "precise",
        }))
    }

    /// Takes over what an interrupted run has done.
    fn resume(&mut self) -> Result<()> {
        let path = self.file("state.json");
        if !path.is_file() {
            return Ok(());
        }
        let shown = path.display();
        if !self.args.resume {
            bail!(
                "{shown} is an interrupted run's; add --resume to continue it, or choose another --out"
            );
        }
        let broken = || format!("cannot resume from {shown}: not a state of this program's");
        let text = std::fs::read_to_string(&path).with_context(broken)?;
        let state: Value = serde_json::from_str(&text).with_context(broken)?;
        // As it reads after having been written.
        let ours: Value = serde_json::from_str(&self.parameters.to_string())?;
        if state["parameters"] != ours {
            let theirs = &state["parameters"];
            let differs = ours.as_object().into_iter().flatten();
            let key = differs
                .filter(|(k, v)| theirs[k.as_str()] != **v)
                .map(|(k, _)| k);
            let keys: Vec<&str> = key.map(String::as_str).collect();
            bail!(
                "cannot resume from {shown}: that run differs in {}",
                keys.join(", ")
            );
        }
        let images = state["images"].as_array().with_context(broken)?;
        for image in images {
            let id = image["idx"].as_u64().with_context(broken)?;
            let place = self.ids.iter().position(|&i| u64::from(i) == id);
            let votes = |key: &str| -> Option<Vec<u32>> {
                let votes = image[key].as_array()?.iter();
                votes.map(|v| u32::try_from(v.as_u64()?).ok()).collect()
            };
            let counts = Counts {
                selection: votes("selection").with_context(broken)?,
                estimation: votes("votes").with_context(broken)?,
            };
            self.outcomes[place.with_context(broken)?] = Some(self.settings.judge(counts)?);
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        let state = json!({ "parameters": self.parameters, "images": self.rows() });
        common::write_json(&self.file("state.json"), &state)
    }

    /// Makes the draws that are missing.
    fn draw(&mut self, model: &mut Model) -> Result<()> {
        let left: Vec<usize> = (0..self.ids.len())
            .filter(|&i| self.outcomes[i].is_none())
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        let per_image = u64::from(self.settings.n0()) + u64::from(self.settings.n);
        let bar = common::bar(self.ids.len() as u64 * per_image, self.name());
        bar.set_position((self.ids.len() - left.len()) as u64 * per_image);
        bar.reset_eta();
        let data = self.data.subset(&left)?;
        let ids: Vec<u32> = left.iter().map(|&i| self.ids[i]).collect();
        let mut saved: Option<Instant> = None;
        let settings = self.settings.clone();
        let mut failed = None;
        let drawn = settings.run(model, &data, &ids, &mut |event| {
            match event {
                Event::Draws(n) => bar.inc(n),
                Event::Done(i, outcome) => {
                    self.outcomes[left[i]] = Some(outcome);
                    if saved.is_none_or(|at| at.elapsed() > SAVE) {
                        saved = Some(Instant::now());
                        if let Err(e) = self.save() {
                            failed = Some(e);
                            return Err(noiseforge::Error::Interrupted);
                        }
                    }
                }
            }
            common::check_stop()
        });
        bar.finish_and_clear();
        match failed {
            Some(e) => Err(e),
            None => Ok(drawn?),
        }
    }

    /// The images that are done.
    fn rows(&self) -> Vec<Value> {
        let done = self.outcomes.iter().enumerate();
        done.filter_map(|(i, outcome)| {
            let outcome = outcome.as_ref()?;
            let label = self.data.labels()[i];
            let mut row = json!({
                "idx": self.ids[i],
                "label": label,
                "predict": outcome.class,
                "correct": outcome.class == Some(label),
                "selection": outcome.counts.selection,
                "votes": outcome.counts.estimation,
                "draws": outcome.counts.draws(),
            });
            match self.args.predict {
                true => row["p_value"] = json!(outcome.statistic),
                false => {
                    row["radius"] = json!(outcome.radius);
                    row["p_lower"] = json!(outcome.statistic);
                }
            }
            Some(row)
        })
        .collect()
    }

    fn verdicts(&self) -> Vec<Verdict> {
        let done = self.outcomes.iter().zip(self.data.labels());
        done.filter_map(|(outcome, &label)| {
            let outcome = outcome.as_ref()?;
            Some(Verdict {
                label,
                class: outcome.class,
                radius: outcome.radius,
            })
        })
        .collect()
    }

    /// Writes table, report and figure; the state is done with.
    fn write(&self, seconds: f64) -> Result<Value> {
        let verdicts = self.verdicts();
        let n = verdicts.len();
        let share = |k: usize| k as f64 / n as f64;
        let correct = verdicts.iter().filter(|v| v.is_correct()).count();
        let abstained = verdicts.iter().filter(|v| v.class.is_none()).count();
        let interval = wilson(correct as u64, n as u64, 0.05)?;
        let mut report = self.parameters.clone();
        report["accuracy"] = json!(share(correct));
        report["accuracy_95"] = json!([interval.low, interval.high]);
        report["abstained"] = json!(share(abstained));
        if !self.args.predict {
            let largest = self.settings.largest_radius()?;
            report["scope"] = json!(SCOPE);
            report["largest_radius"] = json!(largest);
            report["average_radius"] = json!(average_radius(&verdicts));
            report["certified_accuracy"] = radii(largest)
                .map(|r| json!({"radius": r, "accuracy": share(certified_accuracy(&verdicts, r))}))
                .collect();
            self.curve(&verdicts, largest)
                .write_svg(self.file("certified-accuracy.svg"))?;
        }
        report["seconds"] = json!(seconds);
        report["images"] = json!(self.rows());
        self.write_table(&verdicts)?;
        common::write_json(&self.file(&format!("{}.json", self.name())), &report)?;
        remove(&self.file("state.json"))?;
        Ok(report)
    }

    fn write_table(&self, verdicts: &[Verdict]) -> Result<()> {
        let path = self.file(&format!("{}.tsv", self.name()));
        let radius = !self.args.predict;
        write_atomic(&path, |out| {
            match radius {
                true => writeln!(out, "idx\tlabel\tpredict\tradius\tcorrect")?,
                false => writeln!(out, "idx\tlabel\tpredict\tcorrect")?,
            }
            for (id, v) in self.ids.iter().zip(verdicts) {
                let class = v.class.map_or(-1, i64::from);
                write!(out, "{id}\t{}\t{class}\t", v.label)?;
                if radius {
                    // All digits: a rounded radius could be larger than the certified one.
                    write!(out, "{}\t", v.radius)?;
                }
                writeln!(out, "{}", u8::from(v.is_correct()))?;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn curve(&self, verdicts: &[Verdict], largest: f64) -> Figure {
        let name = format!("sigma {}", self.settings.sigma);
        Figure::new("Certified accuracy", "L2 radius", "certified accuracy")
            .percent_y()
            .caption(SCOPE)
            .series(Series::new(name, curve(verdicts, largest)))
    }

    fn print(&self, report: &Value) {
        let number = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
        say!(
            "{} images: accuracy {}%, abstained {}%",
            self.ids.len(),
            percent(number(&report["accuracy"])),
            percent(number(&report["abstained"]))
        );
        if let Some(rows) = report["certified_accuracy"].as_array() {
            say!("{:>9}  {:>20}", "L2 radius", "certified accuracy %");
            for row in rows {
                let accuracy = percent(number(&row["accuracy"]));
                say!("{:>9.2}  {accuracy:>20}", number(&row["radius"]));
            }
            say!("{SCOPE}");
        }
        let path = self.file(&format!("{}.json", self.name()));
        say!("{}", path.display());
    }
}

/// The radii of the papers' tables: multiples of a quarter, as far as a certificate can reach.
fn radii(largest: f64) -> impl Iterator<Item = f64> {
    (0..)
        .map(|i| 0.25 * f64::from(i))
        .take_while(move |&r| r == 0.0 || r <= largest)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
