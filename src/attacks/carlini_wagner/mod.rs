//! The L2 attack of Carlini and Wagner 2017, batched over images and constants.
//!
//! Minimises `||x' - x||^2 + c max(Z_t - max_{i != t} Z_i, -kappa)` (signs of the margin swapped for
//! a target) over `w`, `x' = (tanh w + 1) / 2`, by Adam. Every image has its own constants, optimiser
//! state and random draws.
//!
//! [`Protocol::Rse`] is the attack as the RSE paper ran it: one given `c`, 300 steps of 1e-3, one
//! draw a step, the last iterate, success or not; pixels at 0 and 1 never move.
//! [`Protocol::Search`] is the original: binary search over `c`, the closest success kept.
//! [`Protocol::Adaptive`] minimises once, over the pixels themselves, and `c` follows the iterates to the
//! boundary: closer images in a fraction of the passes.

mod adaptive;
mod descent;
mod device;
pub(super) mod search;

use super::{
    Found, Image, Keep, Norm, Options, OutOfQueries, Report, Running, Targets, WhiteBox,
    WhiteBoxAttack, attack_white_box,
};
use crate::ensemble::Differentiable;
use crate::error::{Error, Result};
use crate::ops::adam::Adam;

use descent::{Ends, descend};
use search::Search;

/// How the constant is found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Protocol {
    /// The RSE paper's: this `c`, and the last iterate.
    Rse {
        /// Weight of the margin, at least 0.
        c: f64,
    },
    /// Carlini and Wagner's: binary search over `c`, best success kept.
    Search {
        /// First constant, above 0; ten times as much while nothing succeeds.
        first: f64,
        /// Constants tried, at least 1.
        search_steps: u32,
        /// Constants tried side by side, as rows of one batch and under the same draws, at least 1.
        at_once: u32,
        /// Give a constant up when the loss has not fallen by 0.01% in two successive tenths of the
        /// steps. (The original stops after one, over the sum of a batch; but from saturated
        /// pixels, where the gradient in `w` almost vanishes, nothing falls for the first tenth.)
        abort_early: bool,
    },
    /// One minimisation over the pixels, kept in the box, in which `c` falls by a few percent after every step
    /// that met the goal and rises by as much after every other: the iterates stay at the boundary while the
    /// step size falls. The closest success is kept.
    Adaptive,
}

/// The attack's parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CarliniWagner {
    /// Which procedure.
    pub protocol: Protocol,
    /// Adam steps for each constant, at least 1.
    pub steps: u32,
    /// Adam's step size in `w`, above 0; with [`Protocol::Adaptive`] in units of the change that a linear network
    /// would need, the root mean square over the pixels.
    pub lr: f64,
    /// What it has fallen to in the last eighth of the steps, by the same factor after every eighth; above
    /// 0. As published it does not fall, and then the search ends about 1% above the smallest distance.
    pub lr_end: f64,
    /// Confidence: the margin, in logits, by which a success must be one; at least 0.
    pub kappa: f64,
}

impl CarliniWagner {
    /// The RSE paper's attack at constant `c`.
    pub fn rse(c: f64) -> Self {
        CarliniWagner {
            protocol: Protocol::Rse { c },
            steps: 300,
            lr: 1e-3,
            lr_end: 1e-3,
            kappa: 0.0,
        }
    }

    /// The original attack with its published parameters (9 constants, 10,000 steps each).
    pub fn search() -> Self {
        CarliniWagner {
            protocol: Protocol::Search {
                first: 1e-3,
                search_steps: 9,
                at_once: 1,
                abort_early: true,
            },
            steps: 10_000,
            lr: 1e-2,
            lr_end: 1e-2,
            kappa: 0.0,
        }
    }

    /// The smallest distances that so many steps find.
    pub fn adaptive(steps: u32) -> Self {
        CarliniWagner {
            protocol: Protocol::Adaptive,
            steps,
            lr: 1.0,
            lr_end: 0.01,
            kappa: 0.0,
        }
    }
}

/// How much `from_image` shrinks in a search, so that pixels at 0 and 1 can move.
const SHRINK: f64 = 0.999_999;

/// Parts of a minimisation, each with its own step size.
const STAGES: u32 = 8;

impl CarliniWagner {
    /// How far a step's part of the minimisation is, from 0 to 1.
    fn progress(&self, step: u32) -> f64 {
        f64::from(step / self.steps.div_ceil(STAGES)) / f64::from(STAGES - 1)
    }

    /// Adam with a step's size.
    fn adam(&self, step: u32) -> Adam {
        let fall = (self.lr_end / self.lr).powf(self.progress(step));
        Adam {
            lr: self.lr * fall,
            ..Adam::default()
        }
    }

    async fn attack(&self, image: &Image, net: &mut WhiteBox) -> Result<(), OutOfQueries> {
        match self.protocol {
            Protocol::Rse { c } => {
                let ends = Ends {
                    shrink: 1.0,
                    abort_early: false,
                    offers: false,
                };
                let mut descended = descend(net, image, self, &[c], ends).await?;
                net.hand_in(descended.last.remove(0), descended.success[0]);
                Ok(())
            }
            Protocol::Search {
                first,
                search_steps,
                at_once,
                abort_early,
            } => {
                let mut search = Search::new(first, search_steps, at_once);
                loop {
                    let c = search.next();
                    if c.is_empty() {
                        return Ok(());
                    }
                    let ends = Ends {
                        shrink: SHRINK,
                        abort_early,
                        offers: true,
                    };
                    let descended = descend(net, image, self, &c, ends).await?;
                    search.tell(&c, &descended.success);
                }
            }
            Protocol::Adaptive => adaptive::follow(net, image, self).await,
        }
    }
}

impl WhiteBoxAttack for CarliniWagner {
    fn name(&self) -> &'static str {
        "cw"
    }

    fn keep(&self) -> Keep {
        Keep::Closest(Norm::L2)
    }

    fn check(&self, _: usize) -> Result<()> {
        const OP: &str = "carlini_wagner";
        let at_least_one = |arg, count: u32| Error::unless_counted(OP, arg, count as usize);
        at_least_one("steps", self.steps)?;
        Error::unless_positive(OP, "lr", self.lr)?;
        Error::unless_positive(OP, "last lr", self.lr_end)?;
        Error::unless_not_negative(OP, "kappa", self.kappa)?;
        match self.protocol {
            Protocol::Rse { c } => Error::unless_not_negative(OP, "c", c),
            Protocol::Search {
                first,
                search_steps,
                at_once,
                ..
            } => {
                Error::unless_positive(OP, "first c", first)?;
                at_least_one("search steps", search_steps)?;
                at_least_one("constants at once", at_once)
            }
            Protocol::Adaptive => Ok(()),
        }
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut WhiteBox) -> Running<'a> {
        Box::pin(self.attack(image, classifier))
    }
}

/// Attacks images as [`attack_white_box`] does. On a GPU, where the attack does not choose between random
/// draws (and is not [`Protocol::Adaptive`]), images, optimiser and bests stay there, [`Options::rows`]
/// rows at once, and a step is one graph.
///
/// Errors: as [`attack_white_box`].
pub fn attack(
    net: &mut dyn Differentiable,
    targets: Targets<'_>,
    params: &CarliniWagner,
    options: &Options,
    report: &mut Report<'_>,
) -> Result<Vec<Found>> {
    let chooses = match params.protocol {
        Protocol::Rse { .. } => false,
        Protocol::Search { .. } => options.confirmations > 0,
        Protocol::Adaptive => true,
    };
    let resident = !chooses && options.mean_of_objective == 1 && options.budget.is_none();
    match net.device().gpu().cloned() {
        Some(gpu) if resident => device::attack(net, &gpu, targets, params, options, report),
        _ => attack_white_box(net, targets, params, options, report),
    }
}
