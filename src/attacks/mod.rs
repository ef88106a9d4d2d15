//! Attacks on [`Classifier`](crate::ensemble::Classifier)s.
//!
//! An attack is written for one image, as in its paper: it asks ([`BlackBox`], [`WhiteBox`]) and offers
//! what it finds. [`attack_black_box`] and [`attack_white_box`] run it on many images in one batch.

pub mod apgd;
pub mod auto;
pub mod carlini_wagner;
pub mod ddn;
pub mod fab;
mod found;
pub mod gradient;
pub mod hopskipjump;
mod image;
mod net;
mod objective;
mod query;
pub mod random_noise;
mod schedule;
pub mod square;
pub mod zoo;

pub use found::{Found, found_images, rms_l2};
pub use image::{Goal, Image, Norm, ranked_others};
pub use objective::Objective;
pub use query::{BlackBox, Counts, Keep, Offer, OutOfQueries, Query, Slope, WhiteBox};
pub use schedule::{
    BlackBoxAttack, Options, Report, Running, Targets, WhiteBoxAttack, attack_black_box,
    attack_white_box,
};

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

    /// The criterion of some of the images.
    ///
    /// Panics for an image that is not there.
    pub fn select(&self, images: &[usize]) -> Self {
        let classes = images.iter().map(|&i| self.classes()[i]).collect();
        match self {
            Criterion::Untargeted { .. } => Criterion::Untargeted { labels: classes },
            Criterion::Targeted { .. } => Criterion::Targeted { targets: classes },
        }
    }

    /// Image `i`'s goal.
    pub fn goal(&self, i: usize) -> Goal {
        match self {
            Criterion::Untargeted { labels } => Goal::Away(labels[i]),
            Criterion::Targeted { targets } => Goal::Towards(targets[i]),
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
        self.goal(i).is_met_by(prediction)
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
