//! Defensive distillation (Papernot et al. 2016): a student learns a teacher's softened probabilities.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::models::{Config, Frozen, Model};
use crate::nn::{Mode, Pass};
use crate::ops::loss::{self, Scaling};
use crate::ops::noise::{Key, Purpose};
use crate::tensor::Tensor;

/// What a student minimises: the divergence of [`loss::distillation`], mean over the batch. Networks are
/// tested at temperature 1, as always.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distillation {
    /// `T`, above 0.
    pub temperature: f64,
    /// With Hinton's `T^2`, or as the authors' code had it.
    pub scaling: Scaling,
}

impl Default for Distillation {
    fn default() -> Self {
        Distillation {
            temperature: 40.0,
            scaling: Scaling::default(),
        }
    }
}

impl Distillation {
    pub(super) fn check(&self) -> Result<()> {
        Error::unless_positive("train", "temperature", self.temperature)
    }

    pub(super) fn loss(&self, student: &Tensor, teacher: &Tensor) -> Result<(Vec<f64>, Tensor)> {
        loss::distillation(student, teacher, self.temperature, self.scaling)
    }
}

/// A trained network that is not trained on: batch norm by its running statistics, the noise it has at
/// test by one fresh draw a row and step.
pub(super) struct Teacher<'a> {
    model: &'a mut Model,
    /// On a GPU, what runs.
    frozen: Option<Frozen>,
    /// Of its weights and description.
    pub fingerprint: String,
}

impl<'a> Teacher<'a> {
    /// Errors: other images, classes, dtype or device than the student's.
    pub fn new(model: &'a mut Model, student: &Model) -> Result<Self> {
        let (found, expected) = (model.config(), student.config());
        let wrong = |expected: String, found: String| {
            Err(Error::argument("train", "teacher", expected, found))
        };
        if found.input != expected.input {
            let images = |config: &Config| format!("images {}", config.input);
            return wrong(images(expected), images(found));
        }
        if found.classes != expected.classes {
            let classes = |config: &Config| format!("{} classes", config.classes);
            return wrong(classes(expected), classes(found));
        }
        if model.kind() != student.kind() {
            let place = |model: &Model| format!("a network of {}", model.kind());
            return wrong(place(student), place(model));
        }
        let fingerprint = model.checkpoint()?.fingerprint();
        let frozen = model.device().gpu().map(|_| model.freeze()).transpose()?;
        Ok(Teacher {
            model,
            frozen,
            fingerprint,
        })
    }

    /// Logits of the images that a step shows its student.
    pub fn logits(&mut self, x: &Tensor, seed: u64, step: u32) -> Result<Tensor> {
        let n = x.shape().n;
        let noise = Key::consecutive(seed, Purpose::Auxiliary, 0, n, step);
        let pass = Pass {
            mode: Mode::Eval,
            noise: Some(noise).filter(|_| self.model.config().noise_at_test),
            record: false,
        };
        match &mut self.frozen {
            Some(frozen) => frozen.forward(x.clone(), 1, &pass),
            None => self.model.forward(x.clone(), &pass),
        }
    }
}
