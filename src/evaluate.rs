//! Accuracy of a network and of its ensemble, against the number of draws.

use std::ops::Range;

use crate::data::{Dataset, DeviceData, Pick, Plan};
use crate::ensemble::{Average, Ensemble, combine};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::models::Model;
use crate::ops::loss::{argmax, cross_entropy};
use crate::ops::noise::{Purpose, Row, Rows};
use crate::ops::step::Cursor;
use crate::tensor::{DType, Shape, Tensor};

/// How to judge.
#[derive(Debug, Clone)]
pub struct Judge {
    /// Seed of the noise.
    pub seed: u64,
    /// The draw the rows name ([`Ensemble`] counts its own from there): 0, or a training epoch.
    pub first_draw: u32,
    /// Numbers of draws to report, each at least 1; the largest decides the verdicts.
    pub draws: Vec<usize>,
    /// How draws are put together.
    pub average: Average,
}

/// What an evaluation found.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// `(draws, accuracy)` for every number of draws asked for, ascending.
    pub accuracy: Vec<(usize, f64)>,
    /// Mean cross-entropy with the largest number of draws, in nats.
    pub loss: f64,
    /// Class of each image with the largest number of draws.
    pub predictions: Vec<u32>,
    /// Scores with the largest number of draws, `[n, 1, 1, classes]`.
    pub scores: Tensor,
}

impl Judge {
    /// Judges images; `ids[i]` is the index that names image `i`'s noise (its index in the data set
    /// it comes from). `progress` is told how many images are done and may stop by an error.
    pub fn judge(
        &self,
        model: &mut Model,
        data: &Dataset,
        ids: &[u32],
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Evaluation> {
        if ids.len() != data.len() {
            return Err(Error::argument("evaluate", "ids", data.len(), ids.len()));
        }
        let device = model.device().clone();
        self.judge_chunks(model, data, progress, &mut |range, _| {
            let (x, _) = data.batch(&range.clone().collect::<Vec<_>>())?;
            let draw = self.first_draw;
            let rows = ids[range].iter().map(|&id| Row { id, draw }).collect();
            Ok((x.to(&device)?, rows))
        })
    }

    /// The same for images that lie on the model's device, each named by its index.
    pub(crate) fn judge_there(
        &self,
        model: &mut Model,
        data: &Dataset,
        there: &mut DeviceImages,
    ) -> Result<Evaluation> {
        self.judge_chunks(model, data, &mut |_| Ok(()), &mut |range, at_once| {
            there.fetch(range, at_once, self.first_draw)
        })
    }

    /// `fetch` gives images of a range, on the model's device, and names their noise; ranges follow each
    /// other, all of the length that it is told but for the last.
    fn judge_chunks(
        &self,
        model: &mut Model,
        data: &Dataset,
        progress: &mut dyn FnMut(usize) -> Result<()>,
        fetch: &mut dyn FnMut(Range<usize>, usize) -> Result<(Tensor, Rows)>,
    ) -> Result<Evaluation> {
        let mut draws = self.draws.clone();
        draws.sort_unstable();
        draws.dedup();
        let (Some(&most), false) = (draws.last(), draws.contains(&0)) else {
            return Err(Error::argument("evaluate", "draws", "at least 1", 0));
        };
        if data.image_shape() != model.config().input {
            let (expected, found) = (model.config().input, data.image_shape());
            return Err(Error::argument("evaluate", "images", expected, found));
        }
        let classes = model.config().classes;
        if let Some(label) = data.labels().iter().find(|&&l| l as usize >= classes) {
            let expected = format!("labels below {classes}, as the network has classes");
            return Err(Error::argument("evaluate", "labels", expected, label));
        }
        let mut net = Ensemble::new(model, self.seed, Purpose::Eval, most)?;
        net.average = self.average;

        let n = data.len();
        let mut right = vec![0usize; draws.len()];
        let (mut loss, mut scores) = (0.0, Vec::with_capacity(n * classes));
        let mut predictions = Vec::with_capacity(n);
        let images_at_once = (net.chunk / most).max(1);
        for start in (0..n).step_by(images_at_once) {
            let range = start..(start + images_at_once).min(n);
            let labels = &data.labels()[range.clone()];
            let (x, rows) = fetch(range, images_at_once)?;
            let z = net.logits_of_draws(&x, &rows)?.to_cpu()?;
            for (count, right) in draws.iter().zip(&mut right) {
                let first: Vec<usize> = (0..labels.len())
                    .flat_map(|i| (0..*count).map(move |j| i * most + j))
                    .collect();
                let combined = combine(&z.gather_rows(&first)?, *count, self.average)?;
                let classes = argmax(&combined)?;
                *right += classes.iter().zip(labels).filter(|(p, l)| p == l).count();
                if *count == most {
                    loss += cross_entropy(&combined, labels)?.0.iter().sum::<f64>();
                    predictions.extend(classes);
                    scores.extend_from_slice(combined.data::<f32>());
                }
            }
            progress(predictions.len())?;
        }
        Ok(Evaluation {
            accuracy: draws
                .iter()
                .zip(right)
                .map(|(&d, r)| (d, r as f64 / n as f64))
                .collect(),
            loss: loss / n as f64,
            predictions,
            scores: Tensor::from_vec(Shape::new(n, 1, 1, classes), scores)?,
        })
    }
}

impl Evaluation {
    /// Accuracy with the largest number of draws.
    pub fn final_accuracy(&self) -> f64 {
        self.accuracy
            .last()
            .expect("at least one number of draws")
            .1
    }
}

/// A data set on a GPU, to be judged again and again.
pub(crate) struct DeviceImages {
    data: DeviceData,
    cursor: Cursor,
    /// All images in order, in batches of so many.
    plan: Option<(usize, Plan)>,
}

impl DeviceImages {
    /// Errors: as [`DeviceData::new`].
    pub fn new(data: &Dataset, gpu: &Gpu) -> Result<Self> {
        Ok(DeviceImages {
            data: DeviceData::new(data, gpu)?,
            cursor: Cursor::new(gpu)?,
            plan: None,
        })
    }

    fn fetch(&mut self, range: Range<usize>, at_once: usize, draw: u32) -> Result<(Tensor, Rows)> {
        if self.plan.as_ref().is_none_or(|(rows, _)| *rows != at_once) {
            let picks = (0..self.data.len() as u32).map(Pick::unmoved);
            let plan = self.data.plan(&picks.collect::<Vec<_>>(), at_once)?;
            self.plan = Some((at_once, plan));
        }
        let (_, plan) = self.plan.as_ref().expect("made above");
        self.cursor.set((range.start / at_once) as u32, draw)?;
        let batch = self
            .data
            .batch(plan, &self.cursor, range.len(), DType::F32)?;
        Ok((batch.x, batch.rows))
    }
}
