//! Accuracy of a network and of its ensemble, against the number of draws.

use crate::data::Dataset;
use crate::ensemble::{Average, Ensemble, combine};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::ops::loss::{argmax, cross_entropy};
use crate::ops::noise::{Purpose, Row, Rows};
use crate::tensor::{Shape, Tensor};

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
        let mut draws = self.draws.clone();
        draws.sort_unstable();
        draws.dedup();
        let (Some(&most), false) = (draws.last(), draws.contains(&0)) else {
            return Err(Error::argument("evaluate", "draws", "at least 1", 0));
        };
        if ids.len() != data.len() {
            return Err(Error::argument("evaluate", "ids", data.len(), ids.len()));
        }
        if data.image_shape() != model.config().input {
            let (expected, found) = (model.config().input, data.image_shape());
            return Err(Error::argument("evaluate", "images", expected, found));
        }
        let classes = model.config().classes;
        if let Some(label) = data.labels().iter().find(|&&l| l as usize >= classes) {
            let expected = format!("labels below {classes}, as the network has classes");
            return Err(Error::argument("evaluate", "labels", expected, label));
        }
        let device = model.device().clone();
        let mut net = Ensemble::new(model, self.seed, Purpose::Eval, most)?;
        net.average = self.average;

        let n = data.len();
        let mut right = vec![0usize; draws.len()];
        let (mut loss, mut scores) = (0.0, Vec::with_capacity(n * classes));
        let mut predictions = Vec::with_capacity(n);
        let images_at_once = (net.chunk / most).max(1);
        let indices: Vec<usize> = (0..n).collect();
        let mut judge_chunk = |chunk: &[usize], (x, labels): (Tensor, Vec<u32>)| {
            let x = x.to(&device)?;
            let rows: Rows = chunk
                .iter()
                .map(|&i| Row {
                    id: ids[i],
                    draw: self.first_draw,
                })
                .collect();
            let z = net.logits_of_draws(&x, &rows)?.to_cpu()?;
            for (count, right) in draws.iter().zip(&mut right) {
                let first: Vec<usize> = (0..chunk.len())
                    .flat_map(|i| (0..*count).map(move |j| i * most + j))
                    .collect();
                let combined = combine(&z.gather_rows(&first)?, *count, self.average)?;
                let classes = argmax(&combined)?;
                *right += classes.iter().zip(&labels).filter(|(p, l)| p == l).count();
                if *count == most {
                    loss += cross_entropy(&combined, &labels)?.0.iter().sum::<f64>();
                    predictions.extend(classes);
                    scores.extend_from_slice(combined.data::<f32>());
                }
            }
            progress(predictions.len())
        };
        // The next images are fetched while these are judged.
        std::thread::scope(|scope| {
            let (send, receive) = std::sync::mpsc::sync_channel(1);
            let chunks = indices.chunks(images_at_once);
            scope.spawn({
                let chunks = chunks.clone();
                move || {
                    chunks
                        .map(|chunk| data.batch(chunk))
                        .try_for_each(|b| send.send(b))
                }
            });
            chunks
                .zip(receive)
                .try_for_each(|(chunk, batch)| judge_chunk(chunk, batch?))
        })?;
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
