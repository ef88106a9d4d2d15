//! Attacks on [`Classifier`](crate::ensemble::Classifier)s.

pub mod carlini_wagner;

use crate::error::{Error, Result};
use crate::ops::margin::Direction;

/// What counts as success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Criterion {
    /// Any class but the true label.
    Untargeted {
        /// True label of each image.
        labels: Vec<u32>,
    },
    /// The target class.
    Targeted {
        /// Target of each image.
        targets: Vec<u32>,
    },
}

impl Criterion {
    /// The class of each image that the attack moves away from or towards.
    pub fn classes(&self) -> &[u32] {
        match self {
            Criterion::Untargeted { labels } => labels,
            Criterion::Targeted { targets } => targets,
        }
    }

    /// Away from the label, or towards the target.
    pub fn direction(&self) -> Direction {
        match self {
            Criterion::Untargeted { .. } => Direction::Away,
            Criterion::Targeted { .. } => Direction::Towards,
        }
    }

    /// Whether a prediction for image `i` is a success.
    pub fn is_met(&self, i: usize, prediction: u32) -> bool {
        match self {
            Criterion::Untargeted { labels } => prediction != labels[i],
            Criterion::Targeted { targets } => prediction == targets[i],
        }
    }

    /// An error unless there is one class below `classes` for each of `n` images.
    pub fn check(&self, op: &'static str, n: usize, classes: usize) -> Result<()> {
        let given = self.classes();
        if given.len() != n {
            return Err(Error::argument(
                op,
                "criterion",
                format_args!("{n} classes"),
                given.len(),
            ));
        }
        match given.iter().position(|&c| c as usize >= classes) {
            Some(i) => Err(Error::argument(
                op,
                "criterion",
                format_args!("classes below {classes}"),
                format_args!("{} for image {i}", given[i]),
            )),
            None => Ok(()),
        }
    }
}
