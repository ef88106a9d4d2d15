//! `noiseforge train`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use noiseforge::data::{Augment, Dataset, Spec, Split};
use noiseforge::models::{Arch, Config, Model, NoisePlacement};
use noiseforge::nn::NoisePlan;
use noiseforge::ops::sgd::Sgd;
use noiseforge::optim::Schedule;
use noiseforge::train::{EpochLog, Event, Recipe, Select, Settings, Trainer};
use serde_json::json;

use super::common::{self, PlaceArgs, percent, positive, say, sigma};
use super::recipe::{Defense, RecipeArgs};

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:
  noiseforge train --model small --data synthetic --defense rse --epochs 10 --lr 0.05 --out runs/rse
  noiseforge train --model vgg16 --data cifar10:data --defense rse --init-noise 0.2 \\
      --inner-noise 0.1 --epochs 200 --out runs/vgg16-rse
  noiseforge train ... --out runs/vgg16-rse --resume      continue after Ctrl-C or a crash
  noiseforge train --model small --data synthetic --defense distill --temperature 40 \\
      --teacher runs/plain/weights.safetensors --out runs/distilled
  noiseforge train --model small --data synthetic --defense adv-pgd --adv-eps 8/255 \\
      --init-noise 0.2 --inner-noise 0.1 --out runs/rse-pgd      adversarial training of an RSE network

Randomised smoothing's training, noise on the image alone, is --defense rse --inner-noise 0.

The folder holds weights.safetensors (PyTorch's names and layouts), log.csv, run.json and, until
the run is done and after it, state.safetensors, from which --resume continues to the same bits."
)]
pub struct TrainArgs {
    /// Network: vgg16, resnext29, preactresnet18, model-a, small, linear
    #[arg(long)]
    model: Arch,
    /// Data: synthetic[:N], cifar10:DIR, stl10:DIR, folder:DIR or npy:IMAGES,LABELS
    #[arg(long, value_name = "SPEC")]
    data: Spec,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What protects the network
    #[arg(long, value_enum, default_value = "rse")]
    defense: Defense,
    /// Standard deviation of the noise on the image [default: rse 0.2 (resnext29 0.1), brelu 0.05, else 0]
    #[arg(long, value_name = "SIGMA", value_parser = sigma)]
    init_noise: Option<f32>,
    /// Standard deviation of the noise before every other convolution [default: rse 0.1, else 0]
    #[arg(long, value_name = "SIGMA", value_parser = sigma)]
    inner_noise: Option<f32>,
    /// Which layer carries the init noise: image, or authors (the second, as their VGG16 does; here the small
    /// CNN, too, while others stay with the image)
    #[arg(long, default_value = "image")]
    noise_placement: NoisePlacement,
    /// Channels of the first stage [default: the published network's]
    #[arg(long, value_parser = positive)]
    width: Option<usize>,
    /// Groups of ResNeXt's 3x3 convolutions [default: 2]
    #[arg(long, value_parser = positive)]
    cardinality: Option<usize>,
    /// Passes over the training set
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// Rows of a batch
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Learning rate at the start
    #[arg(long, default_value_t = 0.1)]
    lr: f64,
    /// Momentum
    #[arg(long, default_value_t = 0.9)]
    momentum: f64,
    /// Weight decay
    #[arg(long, default_value_t = 5e-4)]
    weight_decay: f64,
    /// Nesterov's momentum
    #[arg(long)]
    nesterov: bool,
    /// How the learning rate falls: phases (40, 30, 20, 10% of the epochs, each a tenth of the rate
    /// before), halving (8, 4, 2, 1 parts of 15, likewise), cosine or constant
    #[arg(long, default_value = "phases")]
    schedule: Schedule,
    /// The paper's rule: end with (and reload at each phase's end) the epoch of the best test
    /// accuracy. The test set then chooses the weights
    #[arg(long)]
    select_best_test: bool,
    /// No random crop (pad 4) and flip
    #[arg(long)]
    no_augment: bool,
    /// Do not keep the noisy inputs of convolutions for the weight gradients: make them again, with the
    /// same draw. Less memory, a little more time, the same numbers
    #[arg(long)]
    recompute_noise: bool,
    /// Seed of weights, order, augmentation and noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Continue the run in --out from its saved state
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    recipe: RecipeArgs,
}

/// The longest between two saves of the state.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// At the end of an epoch it is saved if that takes at most one part in so many of the time since the last save: on
/// a GPU an epoch can be over in less than a second.
const SAVING_SHARE: u32 = 20;

impl TrainArgs {
    fn config(&self, data: &Dataset) -> Result<Config> {
        let mut config = Config::new(self.model, data.image_shape(), data.classes().len());
        config.width = self.width.unwrap_or(config.width);
        config.cardinality = self.cardinality.unwrap_or(config.cardinality);
        config.placement = self.noise_placement;
        let (init, inner) = match self.defense {
            Defense::None => {
                if self
                    .init_noise
                    .or(self.inner_noise)
                    .is_some_and(|s| s > 0.0)
                {
                    bail!("--defense none has no noise; use --defense rse");
                }
                (0.0, 0.0)
            }
            Defense::Rse if self.model == Arch::ResNeXt29 => (0.1, 0.1),
            Defense::Rse => (0.2, 0.1),
            Defense::Brelu => {
                config.noise_at_test = false;
                config.relu_cap = Some(1.0);
                (0.05, 0.0)
            }
            Defense::Distill | Defense::AdvFgsm | Defense::AdvPgd => (0.0, 0.0),
        };
        Ok(config.with_noise(
            self.init_noise.unwrap_or(init),
            self.inner_noise.unwrap_or(inner),
        ))
    }

    fn settings(&self, recipe: Recipe) -> Settings {
        Settings {
            epochs: self.epochs,
            batch: self.batch,
            sgd: Sgd {
                lr: self.lr,
                momentum: self.momentum,
                weight_decay: self.weight_decay,
                nesterov: self.nesterov,
            },
            schedule: self.schedule,
            select: match self.select_best_test {
                true => Select::BestTest,
                false => Select::Last,
            },
            augment: (!self.no_augment).then_some(Augment { pad: 4, flip: true }),
            recipe,
            seed: self.seed,
        }
    }
}

pub fn run(args: &TrainArgs, json: bool, verbose: bool) -> Result<()> {
    let recipe = args.recipe.recipe(args.defense)?;
    let mut teacher = args.recipe.read_teacher()?;
    let train = common::load_data(&args.data, Split::Train)?;
    let test = common::load_data(&args.data, Split::Test)?;
    let mut model = Model::new(args.config(&train)?, args.seed)?;
    args.place.place(&mut model)?;
    model.set_noise_plan(NoisePlan {
        recompute: args.recompute_noise,
        ..model.noise_plan()
    });
    if let Some(teacher) = &mut teacher {
        args.place.place(teacher)?;
    }
    let gpu = model.device().gpu().cloned();
    let params = model.count_params();
    let (device, dtype) = (model.device().to_string(), model.dtype().to_string());
    let network = common::config_json(model.config());
    let settings = args.settings(recipe);
    let mut trainer = match &mut teacher {
        None => Trainer::new(&mut model, &train, &test, settings)?,
        Some(teacher) => Trainer::distill(&mut model, teacher, &train, &test, settings)?,
    };
    let state = args.out.join("state.safetensors");
    if args.resume {
        trainer
            .resume(&state)
            .with_context(|| format!("cannot resume from {}", state.display()))?;
    } else if state.exists() {
        bail!(
            "{} holds a run already; add --resume to continue it, or choose another --out",
            args.out.display()
        );
    }
    common::prepare_folder(&args.out)?;

    let started = Instant::now();
    let images = train_with_progress(&mut trainer, &state, &args.out, !json)?;
    let seconds = started.elapsed().as_secs_f64();

    let log = trainer.log().to_vec();
    let weights = args.out.join("weights.safetensors");
    let mut checkpoint = trainer.model().checkpoint()?;
    checkpoint.metadata.extend(trainer.recipe_metadata());
    for (key, value) in [
        ("defense", args.defense.name().to_string()),
        ("seed", args.seed.to_string()),
        ("epochs", args.epochs.to_string()),
    ] {
        checkpoint.metadata.insert(key.to_string(), value);
    }
    checkpoint.write(&weights)?;
    let last = log.last().expect("at least one epoch");
    let peak = gpu.map(|gpu| gpu.memory_use().peak);
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "network": network,
        "parameters": params,
        "device": device,
        "dtype": dtype,
        "defense": args.defense.name(),
        "recipe": recipe,
        "teacher": args.recipe.teacher().map(|path| path.display().to_string()),
        "data": args.data.to_string(),
        "train_images": train.len(),
        "test_images": test.len(),
        "epochs": args.epochs,
        "batch": args.batch,
        "lr": args.lr,
        "momentum": args.momentum,
        "weight_decay": args.weight_decay,
        "nesterov": args.nesterov,
        "schedule": args.schedule.to_string(),
        "select_best_test": args.select_best_test,
        "augment": !args.no_augment,
        "seed": args.seed,
        "seconds": seconds,
        "images_per_second": images as f64 / seconds,
        "draw_noise": args.place.draw_noise.name(),
        "recompute_noise": args.recompute_noise,
        "peak_device_bytes": peak,
        "final": last,
        "log": log,
        "weights": weights.display().to_string(),
    });
    common::write_json(&args.out.join("run.json"), &report)?;
    if json {
        say!("{report:#}");
    } else {
        if let (true, Some(peak)) = (verbose, peak) {
            say!("peak device memory {:.1} MB", peak as f64 / 1e6);
        }
        say!("{}", weights.display());
    }
    Ok(())
}

/// When the state of a run is saved.
struct Saves<'a> {
    state: &'a Path,
    last: Instant,
    took: Duration,
}

impl<'a> Saves<'a> {
    fn new(state: &'a Path) -> Self {
        Saves {
            state,
            last: Instant::now(),
            took: Duration::ZERO,
        }
    }

    fn are_due(&self, epoch_ends: bool) -> bool {
        let since = self.last.elapsed();
        since > SAVE_EVERY || epoch_ends && since >= self.took * SAVING_SHARE
    }

    fn save(&mut self, trainer: &mut Trainer<'_>) -> noiseforge::Result<()> {
        let started = Instant::now();
        trainer.save(self.state)?;
        self.last = Instant::now();
        self.took = self.last - started;
        Ok(())
    }
}

/// Runs to the end with a bar, one printed line per epoch, the state saved at least every minute.
/// Returns the images seen. After Ctrl-C the state is saved and the error says how to go on.
fn train_with_progress(
    trainer: &mut Trainer<'_>,
    state: &Path,
    out: &Path,
    print: bool,
) -> Result<u64> {
    let stop = common::stop_on_ctrl_c()?;
    let bar = common::bar(trainer.steps_per_epoch() as u64, "");
    if print && !trainer.is_done() {
        say!("{HEADER}");
    }
    let mut seen = 0;
    let mut saves = Saves::new(state);
    let mut epoch_started = Instant::now();
    let mut epoch_images = 0;
    let result = trainer.run(stop, &mut |trainer, event| {
        match event {
            Event::Step {
                epoch,
                step,
                rows,
                loss,
                accuracy,
                ..
            } => {
                seen += rows as u64;
                epoch_images += rows;
                let rate = epoch_images as f64 / epoch_started.elapsed().as_secs_f64();
                bar.set_prefix(format!("epoch {epoch}"));
                bar.set_position(step as u64);
                bar.set_message(format!(
                    "loss {loss:.4}  accuracy {}%  {rate:.0} images/s",
                    percent(accuracy)
                ));
                if saves.are_due(false) {
                    saves.save(trainer)?;
                }
            }
            Event::Epoch(line) => {
                if print {
                    let rate = epoch_images as f64 / epoch_started.elapsed().as_secs_f64();
                    bar.suspend(|| say!("{}  {rate:>8.0}", format_line(line)));
                }
                bar.reset();
                epoch_images = 0;
                epoch_started = Instant::now();
                write_log(&out.join("log.csv"), trainer.log())?;
                if trainer.is_done() || saves.are_due(true) {
                    saves.save(trainer)?;
                }
            }
        }
        Ok(())
    });
    bar.finish_and_clear();
    match result {
        Ok(()) => Ok(seen),
        Err(noiseforge::Error::Interrupted) => {
            trainer.save(state)?;
            Err(anyhow::Error::new(noiseforge::Error::Interrupted).context(format!(
                "stopped in epoch {} after {} of {} steps; the same command with --resume continues",
                trainer.epochs_done() + 1,
                trainer.batches_done(),
                trainer.steps_per_epoch()
            )))
        }
        Err(e) => Err(e.into()),
    }
}

const HEADER: &str = "epoch        lr  train loss  train acc %  test loss  test acc %  images/s";

fn format_line(line: &EpochLog) -> String {
    format!(
        "{:>5}  {:>8.6}  {:>10.4}  {:>11}  {:>9.4}  {:>10}",
        line.epoch,
        line.lr,
        line.train_loss,
        percent(line.train_accuracy),
        line.test_loss,
        percent(line.test_accuracy)
    )
}

/// One line per epoch; the whole file is written anew, so that a resumed run leaves no gap.
fn write_log(path: &Path, log: &[EpochLog]) -> noiseforge::Result<()> {
    noiseforge::io::atomic::write_atomic(path, |out| {
        let mut csv = csv::Writer::from_writer(out);
        for line in log {
            csv.serialize(line)?;
        }
        csv.flush()
    })
}
