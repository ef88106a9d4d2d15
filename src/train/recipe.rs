//! What a training step learns from.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::adversarial::{FgsmRetraining, PgdTraining};
use super::distill::Distillation;
use crate::error::Result;
use crate::models::Model;
use crate::tensor::Tensor;

/// What a training step learns from.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Recipe {
    /// The images and their labels.
    #[default]
    Plain,
    /// Images moved by FGSM in every second batch, on average.
    AdvFgsm(FgsmRetraining),
    /// Images moved by PGD.
    AdvPgd(PgdTraining),
    /// The images and a teacher's softened probabilities.
    Distill(Distillation),
}

impl Recipe {
    /// The name on the command line and in files.
    pub fn name(&self) -> &'static str {
        match self {
            Recipe::Plain => "plain",
            Recipe::AdvFgsm(_) => "adv-fgsm",
            Recipe::AdvPgd(_) => "adv-pgd",
            Recipe::Distill(_) => "distill",
        }
    }

    /// `recipe`, its name, and a key `recipe_...` for each of its parameters.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let Ok(Value::Object(fields)) = serde_json::to_value(self) else {
            unreachable!("a recipe is a struct of numbers and names");
        };
        let text = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let named = |(key, value): (String, Value)| match key.as_str() {
            "name" => ("recipe".to_string(), text(value)),
            _ => (format!("recipe_{key}"), text(value)),
        };
        fields.into_iter().map(named).collect()
    }

    pub(super) fn check(&self) -> Result<()> {
        match self {
            Recipe::Plain => Ok(()),
            Recipe::AdvFgsm(fgsm) => fgsm.check(),
            Recipe::AdvPgd(pgd) => pgd.check(),
            Recipe::Distill(distillation) => distillation.check(),
        }
    }

    /// The images that a step shows the network.
    pub(super) fn images(
        &self,
        model: &mut Model,
        x: Tensor,
        labels: &[u32],
        seed: u64,
        step: u32,
    ) -> Result<Tensor> {
        match self {
            Recipe::Plain | Recipe::Distill(_) => Ok(x),
            Recipe::AdvFgsm(fgsm) => fgsm.perturb(model, x, labels, seed, step),
            Recipe::AdvPgd(pgd) => pgd.perturb(model, &x, labels, seed, step),
        }
    }
}
