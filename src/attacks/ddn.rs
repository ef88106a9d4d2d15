//! Decoupled direction and norm (Rony et al. 2019): the smallest L2 perturbation by gradient steps on spheres
//! whose radius shrinks after every success and grows after every failure.

use std::f64::consts::PI;

use super::{Image, Keep, Norm, Objective, OutOfQueries, Query, Running, WhiteBox, WhiteBoxAttack};
use crate::error::{Error, Result};

/// What the gradient is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The cross-entropy, as published.
    CrossEntropy,
    /// The margin between the label or target and the largest other score. Its gradient is the direction to
    /// the nearest boundary alone; the cross-entropy's also leads away from all others.
    Margin,
}

/// The attack's parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ddn {
    /// Gradients, at least 1.
    pub steps: u32,
    /// By how much the radius changes, in (0, 1).
    pub gamma: f64,
    /// The first radius, above 0.
    pub init_norm: f64,
    /// Levels of a pixel after quantisation, at least 2; `None` for no quantisation.
    pub levels: Option<u32>,
    /// What the gradient is of.
    pub loss: Loss,
    /// Rounds at the end in which the success is moved towards the original, along the line between them:
    /// 15 points of equal distances, looked at in one question. Each leaves a sixteenth of the interval.
    pub refinements: u32,
}

/// Points of a refinement.
const POINTS: u32 = 15;

impl Ddn {
    /// As published, but for the quantisation.
    pub fn published(steps: u32) -> Self {
        Ddn {
            steps,
            gamma: 0.05,
            init_norm: 1.0,
            levels: None,
            loss: Loss::CrossEntropy,
            refinements: 0,
        }
    }

    /// With the margin's gradient, and refined: the smallest distances.
    pub fn precise(steps: u32) -> Self {
        Ddn {
            loss: Loss::Margin,
            refinements: 2,
            ..Ddn::published(steps)
        }
    }

    async fn attack(&self, image: &Image, net: &mut WhiteBox) -> Result<(), OutOfQueries> {
        let objective = match self.loss {
            Loss::CrossEntropy => Objective::cross_entropy(image.goal),
            Loss::Margin => Objective::margin(image.goal),
        };
        let mut random = image.stream(6);
        let original = &image.pixels[..];
        let mut radius = self.init_norm;
        let mut x = original.to_vec();
        for step in 0..self.steps {
            let slope = net.slope(&x, &objective).await?;
            let success = image.goal.is_met(&slope.scores);
            if success {
                net.offer(&x, &slope.scores).await?;
                if net.closest() == Some(0.0) {
                    return Ok(());
                }
            }
            // Cosine from 1 to 0.01.
            let share = f64::from(step) / f64::from(self.steps);
            let alpha = 0.01 + 0.99 * 0.5 * (1.0 + (PI * share).cos());
            let mut direction = Norm::L2.steepest(&slope.gradient);
            if direction.iter().all(|&d| d == 0.0) {
                let z: Vec<f32> = x.iter().map(|_| random.normal() as f32).collect();
                direction = Norm::L2.steepest(&z);
            }
            radius *= match success {
                true => 1.0 - self.gamma,
                false => 1.0 + self.gamma,
            };
            let pairs = x.iter().zip(original).zip(&direction);
            let delta: Vec<f64> = pairs
                .map(|((&x, &o), &g)| f64::from(x) - f64::from(o) + alpha * f64::from(g))
                .collect();
            let length = delta.iter().map(|d| d * d).sum::<f64>().sqrt();
            // A step that leads back to the image leaves no direction.
            let scale = if length > 0.0 { radius / length } else { 0.0 };
            for ((x, &o), d) in x.iter_mut().zip(original).zip(delta) {
                *x = self.quantise((f64::from(o) + scale * d).clamp(0.0, 1.0)) as f32;
            }
        }
        let scores = net.look(&x).await?;
        if image.goal.is_met(&scores) {
            net.offer(&x, &scores).await?;
        }
        self.refine(image, net).await
    }

    fn quantise(&self, x: f64) -> f64 {
        match self.levels {
            None => x,
            Some(levels) => {
                let most = f64::from(levels - 1);
                (x * most).round() / most
            }
        }
    }

    async fn refine(&self, image: &Image, net: &mut WhiteBox) -> Result<(), OutOfQueries> {
        let Some(end) = net.success().map(<[f32]>::to_vec) else {
            return Ok(());
        };
        let (mut failure, mut success) = (0.0, 1.0);
        for _ in 0..self.refinements {
            let draw = net.fresh_draw();
            let part = (success - failure) / f64::from(POINTS + 1);
            let shares: Vec<f64> = (1..=POINTS)
                .map(|j| failure + part * f64::from(j))
                .collect();
            let point = |&t: &f64| Query {
                pixels: end
                    .iter()
                    .zip(&image.pixels[..])
                    .map(|(&e, &o)| {
                        let (e, o) = (f64::from(e), f64::from(o));
                        self.quantise(o + t * (e - o)) as f32
                    })
                    .collect(),
                draw,
            };
            let queries: Vec<Query> = shares.iter().map(point).collect();
            let answers = net.scores(queries.clone()).await?;
            // The closest is offered first, and the farther ones where it is refuted.
            let mut nearest = None;
            for ((query, scores), &t) in queries.iter().zip(&answers).zip(&shares) {
                if !image.goal.is_met(scores) {
                    continue;
                }
                net.offer(&query.pixels, scores).await?;
                if net.success() == Some(&query.pixels[..]) {
                    nearest = Some(t);
                    break;
                }
            }
            success = nearest.unwrap_or(success);
            failure = success - part;
        }
        Ok(())
    }
}

impl WhiteBoxAttack for Ddn {
    fn name(&self) -> &'static str {
        "ddn"
    }

    fn keep(&self) -> Keep {
        Keep::Closest(Norm::L2)
    }

    fn check(&self, _: usize) -> Result<()> {
        const OP: &str = "ddn";
        Error::unless_counted(OP, "steps", self.steps as usize)?;
        if !(self.gamma > 0.0 && self.gamma < 1.0) {
            let expected = "a number between 0 and 1";
            return Err(Error::argument(OP, "gamma", expected, self.gamma));
        }
        if let Some(levels @ 0..2) = self.levels {
            return Err(Error::argument(OP, "levels", "at least 2", levels));
        }
        Error::unless_positive(OP, "init_norm", self.init_norm)
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut WhiteBox) -> Running<'a> {
        Box::pin(self.attack(image, classifier))
    }
}
