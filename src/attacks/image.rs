//! What an attack is given: an image, a goal, and where distances are measured.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Criterion;
use crate::error::Error;
use crate::ops::loss::largest;
use crate::ops::margin::largest_other;
use crate::rng::Stream;
use crate::tensor::{Shape, Tensor};

/// What counts as success for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Any class but this one, the true label.
    Away(u32),
    /// This class.
    Towards(u32),
}

impl Goal {
    /// The label or the target.
    pub fn class(self) -> u32 {
        match self {
            Goal::Away(class) | Goal::Towards(class) => class,
        }
    }

    /// Whether this prediction is a success.
    pub fn is_met_by(self, prediction: u32) -> bool {
        match self {
            Goal::Away(label) => prediction != label,
            Goal::Towards(target) => prediction == target,
        }
    }

    /// Whether these scores are a success: the largest wins, the first of equals.
    pub fn is_met(self, scores: &[f32]) -> bool {
        self.is_met_by(largest(scores) as u32)
    }

    /// By how much the scores are a success: `max_{k != y} z_k - z_y` away from `y`,
    /// `z_t - max_{k != t} z_k` towards `t`. Above 0 is a success, below 0 is none.
    pub fn margin(self, scores: &[f32]) -> f64 {
        let class = self.class() as usize;
        let other = largest_other(scores, class);
        let towards = f64::from(scores[class]) - f64::from(scores[other]);
        match self {
            Goal::Away(_) => -towards,
            Goal::Towards(_) => towards,
        }
    }
}

/// The classes but this one, the largest score first, the first of equals first.
pub fn ranked_others(scores: &[f32], class: u32) -> impl Iterator<Item = u32> + use<> {
    let mut others: Vec<usize> = (0..scores.len()).filter(|&k| k != class as usize).collect();
    others.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    others.into_iter().map(|k| k as u32)
}

/// One image under attack.
#[derive(Debug, Clone)]
pub struct Image {
    /// `h * w * c` values in `[0, 1]`, channels innermost.
    pub pixels: Arc<[f32]>,
    /// `[1, h, w, c]`.
    pub shape: Shape,
    /// Its index in the data set: names its random numbers.
    pub id: u32,
    /// What counts as success.
    pub goal: Goal,
    /// Number of the classifier's classes.
    pub classes: usize,
    /// Seed of the attack's own random numbers.
    pub seed: u64,
}

/// Streams of attacks are numbered from here: no other part of the library uses these tags.
const FIRST_TAG: u32 = 0x100;

impl Image {
    /// Random numbers of this image for one use: the same on every machine, whatever was drawn for
    /// others.
    pub fn stream(&self, usage: u32) -> Stream {
        Stream::new(self.seed, FIRST_TAG + usage, u64::from(self.id))
    }

    /// Row `i` of a batch.
    pub(super) fn of_batch(
        images: &Tensor,
        i: usize,
        id: u32,
        criterion: &Criterion,
        classes: usize,
        seed: u64,
    ) -> Self {
        Image {
            pixels: images.row(i).into(),
            shape: images.shape().with_n(1),
            id,
            goal: criterion.goal(i),
            classes,
            seed,
        }
    }
}

/// How far two images are from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Square root of the sum of squares.
    L2,
    /// Largest change of a value.
    Linf,
}

impl Norm {
    /// `||a - b||`.
    pub fn distance(self, a: &[f32], b: &[f32]) -> f64 {
        let differences = a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b));
        match self {
            Norm::L2 => differences.map(|d| d * d).sum::<f64>().sqrt(),
            Norm::Linf => differences.fold(0.0, |most, d| d.abs().max(most)),
        }
    }

    /// Moves `x` to the closest point of the ball of radius `eps` around `centre`, then into `[0, 1]`,
    /// which never leads out of the ball again: `centre` lies in the box.
    pub fn project(self, x: &mut [f32], centre: &[f32], eps: f64) {
        match self {
            Norm::Linf => {
                let eps = eps as f32;
                for (x, &c) in x.iter_mut().zip(centre) {
                    *x = x.clamp(c - eps, c + eps).clamp(0.0, 1.0);
                }
            }
            Norm::L2 => {
                // Rounding may not lead out: a hair inside, a wider one where f32 is coarse beside eps.
                for hair in [1e-6, 1e-5, 1e-4, 1e-3] {
                    let distance = self.distance(x, centre);
                    if distance <= eps {
                        break;
                    }
                    let share = (eps / distance * (1.0 - hair)) as f32;
                    for (x, &c) in x.iter_mut().zip(centre) {
                        *x = c + share * (*x - c);
                    }
                }
                x.iter_mut().for_each(|x| *x = x.clamp(0.0, 1.0));
            }
        }
    }

    /// Moves `x` along the ray from `centre` to distance `radius`; `centre` itself stays.
    pub(super) fn scale(self, x: &mut [f32], centre: &[f32], radius: f64) {
        let distance = self.distance(x, centre);
        if distance > 0.0 {
            let share = (radius / distance) as f32;
            for (x, &c) in x.iter_mut().zip(centre) {
                *x = c + share * (*x - c);
            }
        }
    }

    /// The direction of unit norm along which a linear function of this gradient rises fastest: the
    /// sign in `Linf`, `g / ||g||` in `L2`; 0 where the gradient is 0.
    pub fn steepest(self, gradient: &[f32]) -> Vec<f32> {
        match self {
            Norm::Linf => gradient
                .iter()
                .map(|&g| if g == 0.0 { 0.0 } else { g.signum() })
                .collect(),
            Norm::L2 => {
                let norm = self.distance(gradient, &vec![0.0; gradient.len()]);
                let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
                gradient
                    .iter()
                    .map(|&g| (f64::from(g) * scale) as f32)
                    .collect()
            }
        }
    }

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Norm::L2 => "l2",
            Norm::Linf => "linf",
        }
    }
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Norm {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "l2" => Ok(Norm::L2),
            "linf" => Ok(Norm::Linf),
            _ => Err(Error::argument("attacks", "norm", "l2 or linf", s)),
        }
    }
}
