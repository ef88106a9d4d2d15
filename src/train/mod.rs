//! Training by noisy SGD: a fresh draw of the noise for every row and update.
//!
//! A run is a pure function of its settings, data and seed. Its state can be saved between any two
//! steps and continued to the same bits.

pub mod adversarial;
mod device;
pub mod distill;
mod recipe;
mod settings;
mod state;

use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::data::Dataset;
use crate::ensemble::Average;
use crate::error::{Error, Result};
use crate::evaluate::Judge;
use crate::io::checkpoint::Checkpoint;
use crate::models::Model;
use crate::nn::{Mode, Pass};
use crate::ops::loss::{argmax, cross_entropy};
use crate::ops::noise::{Key, Purpose};
use crate::ops::step::Scale;
use crate::optim::Sgd;
use crate::tensor::Device;

use device::{DeviceRun, Lesson, ScaleFields};
use distill::Teacher;

pub use recipe::Recipe;
pub use settings::{Select, Settings};

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochLog {
    /// Epoch, counted from 1.
    pub epoch: u32,
    /// Learning rate of its last step.
    pub lr: f64,
    /// Mean loss over its rows, in nats, each seen with one draw during training: cross-entropy on the
    /// images as the recipe moved them, or the loss of distillation.
    pub train_loss: f64,
    /// Share of its rows classified right, seen the same way.
    pub train_accuracy: f64,
    /// Mean cross-entropy on the test set, one draw.
    pub test_loss: f64,
    /// Accuracy on the test set, one draw.
    pub test_accuracy: f64,
}

/// What a run tells while it runs.
pub enum Event<'a> {
    /// A step is done.
    Step {
        /// Epoch, counted from 1.
        epoch: u32,
        /// Steps done in it.
        step: usize,
        /// Steps it has.
        steps: usize,
        /// Rows of the step.
        rows: usize,
        /// Mean loss since the epoch's start.
        loss: f64,
        /// Accuracy since the epoch's start.
        accuracy: f64,
    },
    /// An epoch is done.
    Epoch(&'a EpochLog),
}

/// Where a run stands between two steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    epoch: u32,
    /// Batches done in the epoch.
    batch: usize,
    /// Steps done in all: the draw of the next step's noise.
    step: u64,
    /// Sums over the epoch's rows.
    loss: f64,
    correct: u64,
    rows: u64,
    log: Vec<EpochLog>,
    /// Best test accuracy so far, and its epoch.
    best: Option<(f64, u32)>,
    /// The loss scale of f16 training.
    #[serde(default, with = "scale_option")]
    scale: Option<Scale>,
}

/// An optional [`Scale`] in a state file.
mod scale_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Scale, ScaleFields};

    #[derive(Serialize, Deserialize)]
    struct Wrapped(#[serde(with = "ScaleFields")] Scale);

    pub fn serialize<S: Serializer>(scale: &Option<Scale>, s: S) -> Result<S::Ok, S::Error> {
        scale.map(Wrapped).serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Scale>, D::Error> {
        Ok(Option::<Wrapped>::deserialize(d)?.map(|w| w.0))
    }
}

fn loss_not_finite(step: u64, epoch: u32, count: usize, total: usize) -> Error {
    Error::NotFinite {
        what: format!(
            "training loss at step {step} (epoch {}); a smaller learning rate may help",
            epoch + 1
        ),
        count,
        total,
    }
}

/// A last batch of one row is left out: batch norm needs two.
fn steps_per_epoch(images: usize, batch: usize) -> usize {
    images / batch + usize::from(images % batch > 1)
}

/// A training run.
pub struct Trainer<'a> {
    model: &'a mut Model,
    settings: Settings,
    train: &'a Dataset,
    test: &'a Dataset,
    optimizer: Sgd,
    progress: Progress,
    best: Option<Checkpoint>,
    /// Whom the network learns from, if the recipe is distillation.
    teacher: Option<Teacher<'a>>,
    /// What the run keeps on a GPU, where the network is on one.
    device: Option<DeviceRun>,
}

impl<'a> Trainer<'a> {
    /// A run that has not begun.
    ///
    /// Errors: settings or data that do not fit; distillation, which needs [`Trainer::distill`].
    pub fn new(
        model: &'a mut Model,
        train: &'a Dataset,
        test: &'a Dataset,
        settings: Settings,
    ) -> Result<Self> {
        Trainer::with_teacher(model, None, train, test, settings)
    }

    /// The same by [`Recipe::Distill`] from a teacher of the same images and classes, which stays as it is.
    ///
    /// Errors: another recipe; a teacher that does not fit.
    pub fn distill(
        model: &'a mut Model,
        teacher: &'a mut Model,
        train: &'a Dataset,
        test: &'a Dataset,
        settings: Settings,
    ) -> Result<Self> {
        Trainer::with_teacher(model, Some(teacher), train, test, settings)
    }

    fn with_teacher(
        model: &'a mut Model,
        teacher: Option<&'a mut Model>,
        train: &'a Dataset,
        test: &'a Dataset,
        settings: Settings,
    ) -> Result<Self> {
        settings.check()?;
        let recipe = settings.recipe;
        let distills = matches!(recipe, Recipe::Distill(_));
        match (distills, &teacher) {
            (true, None) => {
                let expected = "a network to learn from";
                return Err(Error::argument("train", "teacher", expected, "none"));
            }
            (false, Some(_)) => {
                let found = recipe.name();
                return Err(Error::argument("train", "recipe", "distill", found));
            }
            _ => {}
        }
        for (arg, data) in [("train", train), ("test", test)] {
            let config = model.config();
            if data.image_shape() != config.input {
                let (expected, found) = (config.input, data.image_shape());
                return Err(Error::argument("train", arg, expected, found));
            }
            if data.classes().len() != config.classes {
                let expected = format!("{} classes", config.classes);
                return Err(Error::argument(
                    "train",
                    arg,
                    expected,
                    data.classes().len(),
                ));
            }
        }
        if train.len() < 2 {
            return Err(Error::argument(
                "train",
                "train",
                "at least 2 images",
                train.len(),
            ));
        }
        let teacher = match teacher {
            Some(teacher) => Some(Teacher::new(teacher, model)?),
            None => None,
        };
        let optimizer = Sgd::new(model, settings.sgd)?;
        let device = match model.device() {
            Device::Cpu => None,
            Device::Gpu(gpu) => {
                let steps = steps_per_epoch(train.len(), settings.batch);
                Some(DeviceRun::new(gpu, train, test, steps, model.dtype())?)
            }
        };
        Ok(Trainer {
            model,
            settings,
            train,
            test,
            optimizer,
            progress: Progress::default(),
            best: None,
            teacher,
            device,
        })
    }

    /// The lines of the log so far.
    pub fn log(&self) -> &[EpochLog] {
        &self.progress.log
    }

    /// Whether every epoch is done.
    pub fn is_done(&self) -> bool {
        self.progress.epoch >= self.settings.epochs
    }

    /// Epochs done.
    pub fn epochs_done(&self) -> u32 {
        self.progress.epoch
    }

    /// Batches done in the current epoch.
    pub fn batches_done(&self) -> usize {
        self.progress.batch
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        steps_per_epoch(self.train.len(), self.settings.batch)
    }

    /// The network as it stands.
    pub fn model(&mut self) -> &mut Model {
        self.model
    }

    /// Trains until every epoch is done, or until `stop` is set: then [`Error::Interrupted`], with
    /// the state between two steps. A loss that is not finite is an error.
    ///
    /// On a GPU the host runs ahead of the device; [`Event::Step`] tells the loss as the host last
    /// saw it.
    pub fn run(
        &mut self,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(&mut Self, Event<'_>) -> Result<()>,
    ) -> Result<()> {
        while !self.is_done() {
            let steps = self.steps_per_epoch();
            let order = match self.device {
                None => self
                    .train
                    .shuffled_indices(self.settings.seed, self.progress.epoch),
                Some(_) => Vec::new(),
            };
            self.enter_epoch()?;
            while self.progress.batch < steps {
                if stop.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                let start = self.progress.batch * self.settings.batch;
                let end = (start + self.settings.batch).min(self.train.len());
                match self.device {
                    None => self.step(&order[start..end])?,
                    Some(_) => self.device_step(end - start)?,
                }
                let Progress {
                    epoch,
                    batch,
                    loss,
                    correct,
                    rows,
                    ..
                } = self.progress;
                let event = Event::Step {
                    epoch: epoch + 1,
                    step: batch,
                    steps,
                    rows: end - start,
                    loss: loss / rows.max(1) as f64,
                    accuracy: correct as f64 / rows.max(1) as f64,
                };
                observe(self, event)?;
            }
            let line = self.end_epoch()?;
            observe(self, Event::Epoch(&line))?;
        }
        Ok(())
    }

    /// The learning rate of a step of the current epoch.
    fn rate(&self, step: u64) -> f64 {
        let steps = self.steps_per_epoch() as u64 * u64::from(self.settings.epochs);
        self.settings.schedule.rate(
            self.settings.sgd.lr,
            self.progress.epoch,
            self.settings.epochs,
            step,
            steps,
        )
    }

    /// Prepares the device for the current epoch.
    fn enter_epoch(&mut self) -> Result<()> {
        let first = self.progress.step - self.progress.batch as u64;
        let steps = self.steps_per_epoch() as u64;
        let rates: Vec<f64> = (first..first + steps).map(|step| self.rate(step)).collect();
        match &mut self.device {
            None => Ok(()),
            Some(device) => device.enter_epoch(&self.settings, &self.progress, &rates),
        }
    }

    /// What names the next step's random numbers.
    fn draw(&self) -> Result<u32> {
        let step = self.progress.step;
        u32::try_from(step)
            .map_err(|_| Error::argument("train", "epochs", "fewer than 2^32 steps", step))
    }

    /// The next step on the device.
    fn device_step(&mut self, rows: usize) -> Result<()> {
        let rate = self.rate(self.progress.step);
        let draw = self.draw()?;
        let device = self.device.as_mut().expect("training on a device");
        let mut lesson = Lesson {
            settings: &self.settings,
            teacher: self.teacher.as_mut(),
            draw,
        };
        let step = device.step(self.model, &mut self.optimizer, &mut lesson, rows);
        if let Err(Error::OutOfMemory { .. }) = step {
            let fits = device.rows_that_fit(self.model, &mut lesson, rows);
            return step.map_err(|e| e.with_batch_that_fits(fits));
        }
        step?;
        self.optimizer.settings.lr = rate;
        self.progress.batch += 1;
        self.progress.step += 1;
        if device.is_due() {
            self.look()?;
        }
        Ok(())
    }

    /// Brings the host's knowledge of the run up to date.
    fn look(&mut self) -> Result<()> {
        match &mut self.device {
            None => Ok(()),
            Some(device) => device.look(self.model, &mut self.progress),
        }
    }

    /// `w <- w - lr grad loss(f_eps(w, x), y)`, one draw `eps` per row, on the recipe's `x` and loss.
    fn step(&mut self, indices: &[usize]) -> Result<()> {
        let Settings {
            seed,
            augment,
            recipe,
            ..
        } = &self.settings;
        let (x, labels) = match augment {
            Some(augment) => {
                self.train
                    .augmented_batch(indices, augment, *seed, self.progress.epoch)?
            }
            None => self.train.batch(indices)?,
        };
        let draw = self.draw()?;
        let x = recipe.images(self.model, x, &labels, *seed, draw)?;
        let taught = match &mut self.teacher {
            Some(teacher) => Some(teacher.logits(&x, *seed, draw)?),
            None => None,
        };
        let pass = Pass {
            mode: Mode::Train,
            noise: Some(Key::consecutive(
                *seed,
                Purpose::Train,
                0,
                indices.len(),
                draw,
            )),
            record: true,
        };
        let logits = self.model.forward(x, &pass)?;
        let (losses, dlogits) = match (recipe, &taught) {
            (Recipe::Distill(distillation), Some(taught)) => distillation.loss(&logits, taught)?,
            _ => cross_entropy(&logits, &labels)?,
        };
        let bad = losses.iter().filter(|l| !l.is_finite()).count();
        if bad > 0 {
            let Progress { step, epoch, .. } = self.progress;
            return Err(loss_not_finite(step, epoch, bad, losses.len()));
        }
        self.model.accumulate(dlogits)?;
        self.optimizer.settings.lr = self.rate(self.progress.step);
        self.optimizer.step(self.model)?;

        let right = argmax(&logits)?
            .iter()
            .zip(&labels)
            .filter(|(p, l)| p == l)
            .count();
        let progress = &mut self.progress;
        progress.loss += losses.iter().sum::<f64>();
        progress.correct += right as u64;
        progress.rows += losses.len() as u64;
        progress.batch += 1;
        progress.step += 1;
        Ok(())
    }

    fn end_epoch(&mut self) -> Result<EpochLog> {
        self.look()?;
        let epoch = self.progress.epoch;
        let (test_loss, test_accuracy) = self.evaluate(epoch)?;
        let line = EpochLog {
            epoch: epoch + 1,
            lr: self.optimizer.settings.lr,
            train_loss: self.progress.loss / self.progress.rows as f64,
            train_accuracy: self.progress.correct as f64 / self.progress.rows as f64,
            test_loss,
            test_accuracy,
        };
        self.progress.log.push(line.clone());

        let next = epoch + 1;
        let (schedule, epochs) = (self.settings.schedule, self.settings.epochs);
        let phase_ends =
            next == epochs || schedule.phase(next, epochs) != schedule.phase(epoch, epochs);
        if self.settings.select == Select::BestTest {
            if self
                .progress
                .best
                .is_none_or(|(best, _)| test_accuracy > best)
            {
                self.progress.best = Some((test_accuracy, next));
                self.best = Some(self.model.checkpoint()?);
            }
            if phase_ends && let Some(best) = &self.best {
                self.model.load_checkpoint("best epoch".as_ref(), best)?;
            }
        }
        if phase_ends {
            self.optimizer.reset()?;
        }
        let log = std::mem::take(&mut self.progress.log);
        self.progress = Progress {
            epoch: next,
            step: self.progress.step,
            best: self.progress.best,
            scale: self.progress.scale,
            log,
            ..Progress::default()
        };
        Ok(line)
    }

    /// Mean loss and accuracy on the test set, one draw (the epoch's).
    fn evaluate(&mut self, epoch: u32) -> Result<(f64, f64)> {
        let judge = Judge {
            seed: self.settings.seed,
            first_draw: epoch,
            draws: vec![1],
            average: Average::default(),
        };
        let found = match &mut self.device {
            Some(device) => judge.judge_there(self.model, self.test, &mut device.test)?,
            None => {
                let ids: Vec<u32> = (0..self.test.len() as u32).collect();
                judge.judge(self.model, self.test, &ids, &mut |_| Ok(()))?
            }
        };
        Ok((found.loss, found.final_accuracy()))
    }
}
