//! Attacks that follow the gradient's sign or direction within a bound: FGSM, its iterated and
//! randomised forms, and projected gradient descent.

use super::image::{Image, Norm};
use super::objective::Objective;
use super::query::{Keep, OutOfQueries, WhiteBox};
use super::schedule::{Running, WhiteBoxAttack};
use crate::error::{Error, Result};
use crate::rng::Stream;

/// Where an attack within a bound begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the image.
    Image,
    /// Uniformly in the ball.
    Random,
    /// One step of half the bound in a random direction (rand-FGSM, Tramer et al. 2018: the sign of a
    /// normal vector in `Linf`).
    RandomStep,
}

/// Projected gradient descent (Madry et al. 2018) on the cross-entropy:
/// `x <- P(x + step * s(grad))` with `s` the sign (`Linf`) or the normalised gradient (`L2`) and `P`
/// the projection on the ball and the box. One step of size `eps` from the image is FGSM (Goodfellow
/// et al. 2015); many from the image are I-FGSM (Kurakin et al. 2017).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pgd {
    /// What it is called.
    pub name: &'static str,
    /// The ball's norm.
    pub norm: Norm,
    /// Its radius, above 0.
    pub eps: f64,
    /// Length of a step, above 0.
    pub step: f64,
    /// Steps of each start, at least 1.
    pub steps: u32,
    /// Where each begins.
    pub start: Start,
    /// Starts, at least 1. More than one make sense from a random start.
    pub restarts: u32,
}

impl Pgd {
    /// FGSM.
    pub fn fgsm(norm: Norm, eps: f64) -> Self {
        Pgd {
            name: "fgsm",
            norm,
            eps,
            step: eps,
            steps: 1,
            start: Start::Image,
            restarts: 1,
        }
    }

    /// Rand-FGSM: a random step of `eps / 2`, then one of the gradient's for the rest.
    pub fn random_fgsm(norm: Norm, eps: f64) -> Self {
        Pgd {
            name: "rfgsm",
            step: eps / 2.0,
            start: Start::RandomStep,
            ..Pgd::fgsm(norm, eps)
        }
    }

    /// I-FGSM: steps of `eps / steps` from the image.
    pub fn iterated_fgsm(norm: Norm, eps: f64, steps: u32) -> Self {
        Pgd {
            name: "ifgsm",
            step: eps / f64::from(steps.max(1)),
            steps,
            ..Pgd::fgsm(norm, eps)
        }
    }

    /// PGD from a random start: 20 steps of a quarter of the radius.
    pub fn projected(norm: Norm, eps: f64) -> Self {
        Pgd {
            name: "pgd",
            step: eps / 4.0,
            steps: 20,
            start: Start::Random,
            ..Pgd::fgsm(norm, eps)
        }
    }

    async fn attack(&self, image: &Image, net: &mut WhiteBox) -> Result<(), OutOfQueries> {
        let objective = Objective::cross_entropy(image.goal);
        let mut random = image.stream(0);
        for _ in 0..self.restarts {
            let mut x = self.first(image, &mut random);
            for _ in 0..self.steps {
                let slope = net.slope(&x, &objective).await?;
                if net.offer(&x, &slope.scores).await? {
                    return Ok(());
                }
                let direction = self.norm.steepest(&slope.gradient);
                let step = self.step as f32;
                x.iter_mut()
                    .zip(&direction)
                    .for_each(|(x, d)| *x += step * d);
                self.norm.project(&mut x, &image.pixels, self.eps);
            }
            let scores = net.look(&x).await?;
            if net.offer(&x, &scores).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn first(&self, image: &Image, random: &mut Stream) -> Vec<f32> {
        let mut x = image.pixels.to_vec();
        match self.start {
            Start::Image => {}
            Start::Random => random_in_ball(self.norm, self.eps, &mut x, random),
            Start::RandomStep => {
                let z: Vec<f32> = x.iter().map(|_| random.normal() as f32).collect();
                let half = (self.eps / 2.0) as f32;
                let direction = self.norm.steepest(&z);
                x.iter_mut()
                    .zip(direction)
                    .for_each(|(x, d)| *x += half * d);
            }
        }
        self.norm.project(&mut x, &image.pixels, self.eps);
        x
    }
}

/// Adds a point of the ball, uniformly distributed in it.
pub(super) fn random_in_ball(norm: Norm, eps: f64, x: &mut [f32], random: &mut Stream) {
    match norm {
        Norm::Linf => {
            for x in x {
                *x += (eps * (2.0 * random.uniform() - 1.0)) as f32;
            }
        }
        Norm::L2 => {
            let z: Vec<f64> = x.iter().map(|_| random.normal()).collect();
            let length = z.iter().map(|z| z * z).sum::<f64>().sqrt();
            // The radius' share r has P(r < t) = t^d.
            let radius = eps * random.uniform().powf(1.0 / z.len() as f64);
            for (x, z) in x.iter_mut().zip(z) {
                *x += (radius * z / length) as f32;
            }
        }
    }
}

impl WhiteBoxAttack for Pgd {
    fn name(&self) -> &'static str {
        self.name
    }

    fn keep(&self) -> Keep {
        Keep::Surest
    }

    fn check(&self, _: usize) -> Result<()> {
        Error::unless_positive("pgd", "eps", self.eps)?;
        Error::unless_positive("pgd", "step", self.step)?;
        for (arg, count) in [("steps", self.steps), ("restarts", self.restarts)] {
            Error::unless_counted("pgd", arg, count as usize)?;
        }
        Ok(())
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut WhiteBox) -> Running<'a> {
        Box::pin(self.attack(image, classifier))
    }
}
