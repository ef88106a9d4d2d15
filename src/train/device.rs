//! Training on a GPU. Data, augmentation, noise, loss and learning rates live there, and a step is one
//! graph, replayed; the host waits only when it wants to know how the run stands. Recipes in which the host
//! has a part, all but the plain one, are launched as they are.

use std::collections::HashMap;
use std::time::Instant;

use super::distill::Teacher;
use super::{Progress, Recipe, Settings};
use crate::data::{Dataset, DeviceData, Plan};
use crate::error::{Error, Result};
use crate::evaluate::DeviceImages;
use crate::gpu::{Gpu, LOOK_EVERY, Repeated};
use crate::models::Model;
use crate::nn::{Entry, Mode, Pass};
use crate::ops::conv2d::Packs;
use crate::ops::loss::{Metrics, Totals, count_step, cross_entropy_step};
use crate::ops::noise::{Key, Purpose};
use crate::ops::sgd;
use crate::ops::step::{self, Cursor, LearningRates, LossScale, MultiTensor, Scale, Slots};
use crate::optim::Sgd;
use crate::tensor::{DType, Tensor};

/// What a step learns from, beside its batch.
pub(super) struct Lesson<'a, 't> {
    pub settings: &'a Settings,
    pub teacher: Option<&'a mut Teacher<'t>>,
    /// What names the step's random numbers.
    pub draw: u32,
}

/// What a run keeps on the device.
pub(super) struct DeviceRun {
    gpu: Gpu,
    data: DeviceData,
    /// What the epochs are judged by.
    pub test: DeviceImages,
    plan: Option<Plan>,
    rates: LearningRates,
    cursor: Cursor,
    metrics: Metrics,
    scale: LossScale,
    tensors: Option<MultiTensor>,
    packs: Packs,
    /// The step, by its number of rows: an epoch's last batch may have fewer.
    steps: HashMap<usize, Repeated>,
    /// The epoch the plan and the rates are of.
    epoch: Option<u32>,
    /// Steps replayed since batch norm's counts were last brought up to date.
    replayed: u64,
    looked: Option<Instant>,
}

impl DeviceRun {
    pub fn new(
        gpu: &Gpu,
        train: &Dataset,
        test: &Dataset,
        steps: usize,
        dtype: DType,
    ) -> Result<Self> {
        Ok(DeviceRun {
            gpu: gpu.clone(),
            data: DeviceData::new(train, gpu)?,
            test: DeviceImages::new(test, gpu)?,
            plan: None,
            rates: LearningRates::new(gpu, steps)?,
            cursor: Cursor::new(gpu)?,
            metrics: Metrics::new(gpu)?,
            scale: LossScale::new(gpu, dtype)?,
            tensors: None,
            packs: Packs::new(gpu),
            steps: HashMap::new(),
            epoch: None,
            replayed: 0,
            looked: None,
        })
    }

    /// Lets the next step be another one than the one behind the last.
    pub fn forget_place(&mut self) {
        self.epoch = None;
    }

    /// Puts an epoch's order, augmentation and learning rates on the device, unless they are there.
    /// `rates` has one entry a step.
    pub fn enter_epoch(
        &mut self,
        settings: &Settings,
        progress: &Progress,
        rates: &[f64],
    ) -> Result<()> {
        if self.epoch == Some(progress.epoch) {
            return Ok(());
        }
        let Settings {
            augment,
            seed,
            batch,
            ..
        } = settings;
        let picks = self
            .data
            .training_picks(augment.as_ref(), *seed, progress.epoch, *batch)?;
        match &mut self.plan {
            Some(plan) => self.data.set_plan(plan, &picks)?,
            None => self.plan = Some(self.data.plan(&picks, *batch)?),
        }
        self.rates.set(rates)?;
        let last = progress.step + rates.len() as u64;
        let draw = u32::try_from(last).map(|_| progress.step as u32);
        let draw =
            draw.map_err(|_| Error::argument("train", "epochs", "fewer than 2^32 steps", last))?;
        self.cursor.set(progress.batch as u32, draw)?;
        self.metrics.set(Totals {
            loss: progress.loss,
            correct: progress.correct,
            rows: progress.rows,
            steps: progress.batch as u64,
            ..Totals::default()
        })?;
        if let Some(scale) = progress.scale {
            self.scale.set(scale)?;
        }
        self.epoch = Some(progress.epoch);
        Ok(())
    }

    /// The next step of the epoch, on `rows` rows.
    pub fn step(
        &mut self,
        model: &mut Model,
        optimizer: &mut Sgd,
        lesson: &mut Lesson<'_, '_>,
        rows: usize,
    ) -> Result<()> {
        self.find_tensors(model, optimizer)?;
        self.packs.prepare()?;
        if lesson.settings.recipe != Recipe::Plain {
            return self.launch(model, lesson, rows, true);
        }
        let gpu = self.gpu.clone();
        let mut step = self.steps.remove(&rows).unwrap_or_default();
        let replayed = step.run(&gpu, || self.launch(model, lesson, rows, true));
        self.steps.insert(rows, step);
        // Where the pass itself ran or was recorded, batch norm has counted.
        self.replayed += u64::from(replayed?);
        Ok(())
    }

    /// Builds the optimiser's table before the first step. It holds for the whole run: whatever
    /// replaces weights or velocities writes them in place.
    fn find_tensors(&mut self, model: &mut Model, optimizer: &mut Sgd) -> Result<()> {
        if self.tensors.is_some() {
            return Ok(());
        }
        let mut slots = Slots::default();
        let mut result = Ok(());
        let mut velocity = optimizer.velocity.iter_mut();
        model.visit_params(|_, p| {
            let v = velocity.next().expect("one velocity per parameter");
            if result.is_ok() {
                result = slots.push(&mut p.value, &mut p.grad, v, None);
            }
        });
        result?;
        self.tensors = Some(MultiTensor::new(slots)?);
        Ok(())
    }

    /// `w <- w - lr grad loss(f_eps(w, x), y)`, one draw `eps` per row, on the recipe's `x` and loss; without
    /// `update` only up to the gradient.
    fn launch(
        &mut self,
        model: &mut Model,
        lesson: &mut Lesson<'_, '_>,
        rows: usize,
        update: bool,
    ) -> Result<()> {
        let plan = self.plan.as_ref().expect("an epoch was entered");
        let batch = self.data.batch(plan, &self.cursor, rows, DType::F32)?;
        let Lesson { settings, draw, .. } = *lesson;
        let (recipe, seed) = (&settings.recipe, settings.seed);
        let x = match recipe {
            Recipe::Plain | Recipe::Distill(_) => batch.x,
            _ => recipe.images(model, batch.x, &batch.labels.to_vec()?, seed, draw)?,
        };
        let taught = match &mut lesson.teacher {
            Some(teacher) => Some(teacher.logits(&x, seed, draw)?),
            None => None,
        };
        let pass = Pass {
            mode: Mode::Train,
            noise: Some(Key {
                seed,
                purpose: Purpose::Train,
                rows: batch.rows,
            }),
            record: true,
        };
        let (scale, metrics) = (&self.scale, &mut self.metrics);
        self.packs.during(|| {
            let logits = model.forward(x, &pass)?;
            let dlogits = match (recipe, &taught) {
                (Recipe::Distill(distillation), Some(taught)) => {
                    let (losses, dlogits) = distillation.loss(&logits, taught)?;
                    count_step(&logits, &losses, &batch.labels, metrics)?;
                    scaled(dlogits, scale)?
                }
                _ => cross_entropy_step(&logits, &batch.labels, Some(scale), metrics)?,
            };
            model.accumulate(dlogits)
        })?;
        if update {
            let tensors = self.tensors.as_ref().expect("built before");
            sgd::step_all(
                tensors,
                &self.rates,
                &self.cursor,
                &mut self.scale,
                settings.sgd,
            )?;
            step::end(Some(&mut self.scale), &mut self.cursor)?;
        }
        Ok(())
    }

    /// Whether it is time to look how the run stands.
    pub fn is_due(&self) -> bool {
        self.looked.is_none_or(|at| at.elapsed() > LOOK_EVERY)
    }

    /// Waits for the device and brings `progress` and batch norm's counts up to date.
    pub fn look(&mut self, model: &mut Model, progress: &mut Progress) -> Result<()> {
        let replayed = std::mem::take(&mut self.replayed);
        model.visit(|_, entry| {
            if let Entry::Count(count) = entry {
                *count += replayed;
            }
        });
        if self.epoch == Some(progress.epoch) {
            let totals = self.metrics.read()?;
            progress.loss = totals.loss;
            progress.correct = totals.correct;
            progress.rows = totals.rows;
            if let Some(bad) = totals.first_bad {
                let step = progress.step - progress.batch as u64 + bad;
                return Err(super::loss_not_finite(
                    step,
                    progress.epoch,
                    totals.not_finite as usize,
                    totals.rows as usize,
                ));
            }
            if model.dtype() == DType::F16 {
                progress.scale = Some(self.scale.read()?);
            }
        }
        self.looked = Some(Instant::now());
        Ok(())
    }

    /// The largest of `rows / 2`, `rows / 4`, ... rows of which a step fits into memory, found by
    /// trying; the weights stay what they are.
    pub fn rows_that_fit(
        &mut self,
        model: &mut Model,
        lesson: &mut Lesson<'_, '_>,
        rows: usize,
    ) -> Option<usize> {
        self.steps.clear();
        let before = model.checkpoint().ok()?;
        let fits = std::iter::successors(Some(rows / 2), |r| Some(r / 2))
            .take_while(|&r| r >= 2)
            .find(|&r| {
                self.launch(model, lesson, r, false).is_ok() && self.gpu.synchronize().is_ok()
            });
        model.load_checkpoint("before".as_ref(), &before).ok()?;
        fits
    }
}

/// The gradient times the loss scale, which is waited for.
fn scaled(gradient: Tensor, scale: &LossScale) -> Result<Tensor> {
    let factor = scale.read()?.scale;
    let Some(gpu) = gradient.gpu().filter(|_| factor != 1.0) else {
        return Ok(gradient);
    };
    let mut here = gradient.to_cpu()?;
    here.data_mut::<f32>().iter_mut().for_each(|g| *g *= factor);
    here.to_gpu(gpu)?.to_dtype(gradient.dtype())
}

/// The loss scale, as the state of a run holds it.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(remote = "Scale")]
pub(super) struct ScaleFields {
    scale: f32,
    good: u32,
    skipped: u32,
    steps: u32,
}
