//! What fixes a training run.

use std::collections::BTreeMap;

use super::Recipe;
use crate::data::Augment;
use crate::error::{Error, Result};
use crate::ops::sgd;
use crate::optim::Schedule;

/// Which weights a run ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Select {
    /// Those of the last step.
    #[default]
    Last,
    /// The paper's rule: the epoch with the best **test** accuracy, also reloaded at each phase's
    /// end. It lets the test set choose, so its test accuracy is optimistic.
    BestTest,
}

/// What fixes a training run, beside network and data.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Passes over the training set, at least 1.
    pub epochs: u32,
    /// Rows of a batch, at least 2. A last batch of one row is left out.
    pub batch: usize,
    /// Optimiser; its learning rate is the schedule's base rate.
    pub sgd: sgd::Sgd,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Which weights to end with.
    pub select: Select,
    /// Random crop and flip; `None` shows the images as they are.
    pub augment: Option<Augment>,
    /// What a step learns from.
    pub recipe: Recipe,
    /// Seed of the order, the augmentation, the noise and the recipe.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            epochs: 200,
            batch: 128,
            sgd: sgd::Sgd {
                lr: 0.1,
                momentum: 0.9,
                weight_decay: 5e-4,
                nesterov: false,
            },
            schedule: Schedule::Phases,
            select: Select::Last,
            augment: Some(Augment { pad: 4, flip: true }),
            recipe: Recipe::Plain,
            seed: 0,
        }
    }
}

impl Settings {
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |arg, expected: &str, found: String| {
            Err(Error::argument("train", arg, expected, found))
        };
        if self.epochs == 0 {
            return wrong("epochs", "at least 1", self.epochs.to_string());
        }
        if self.batch < 2 {
            return wrong("batch", "at least 2 rows", self.batch.to_string());
        }
        Error::unless_positive("train", "lr", self.sgd.lr)?;
        let momentum = self.sgd.momentum;
        if !(0.0..1.0).contains(&momentum) {
            return wrong("momentum", "at least 0 and below 1", momentum.to_string());
        }
        Error::unless_not_negative("train", "weight decay", self.sgd.weight_decay)?;
        self.recipe.check()
    }

    /// The settings but the recipe, as they stand in a state file.
    pub(super) fn to_metadata(&self) -> BTreeMap<String, String> {
        let augment = self.augment.as_ref();
        [
            ("epochs", self.epochs.to_string()),
            ("batch", self.batch.to_string()),
            ("lr", self.sgd.lr.to_string()),
            ("momentum", self.sgd.momentum.to_string()),
            ("weight_decay", self.sgd.weight_decay.to_string()),
            ("nesterov", self.sgd.nesterov.to_string()),
            ("schedule", self.schedule.to_string()),
            (
                "select_best_test",
                (self.select == Select::BestTest).to_string(),
            ),
            ("augment_pad", augment.map_or(0, |a| a.pad).to_string()),
            ("augment_flip", augment.is_some_and(|a| a.flip).to_string()),
            ("seed", self.seed.to_string()),
        ]
        .map(|(k, v)| (k.to_string(), v))
        .into_iter()
        .collect()
    }
}
