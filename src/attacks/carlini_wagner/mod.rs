//! The L2 attack of Carlini and Wagner 2017, batched over images and constants.
//!
//! Minimises `||x' - x||^2 + c max(Z_t - max_{i != t} Z_i, -kappa)` (signs of the margin swapped for
//! a target) over `w`, `x' = (tanh w + 1) / 2`, by Adam. Every image has its own constants, optimiser
//! state and random draws.
//!
//! [`Protocol::Rse`] is the attack as the RSE paper ran it: one given `c`, 300 steps of 1e-3, one
//! draw a step, the last iterate, success or not; pixels at 0 and 1 never move.
//! [`Protocol::Search`] is the original: binary search over `c`, the closest success kept.

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

use descent::{Ends, descend, hinge};
use search::Search;

/// Which of the two published procedures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Protocol {
    /// The RSE paper's: this `c`, and the last iterate.
    Rse {
        /// Weight of the margin, at least 0.
        c: f64,
    },
    /// Carlini and Wagner's: binary search over `c`, best success kept.
    Search {
        /// First constant.
        first: First,
        /// Constants tried, at least 1.
        search_steps: u32,
        /// Constants tried side by side, as rows of one batch and under the same draws, at least 1.
        at_once: u32,
        /// Give a constant up when the loss has not fallen by 0.01% in two successive tenths of the
        /// steps. (The original stops after one, over the sum of a batch; but from saturated
        /// pixels, where the gradient in `w` almost vanishes, nothing falls for the first tenth.)
        abort_early: bool,
    },
}

/// Where a search over `c` begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum First {
    /// This constant, above 0; ten times as much while nothing succeeds.
    Given(f64),
    /// What a linear network would need: with the margin `g` below 0 at the image and `v` its gradient,
    /// `||d||^2 - c v d` is smallest at `d = c v / 2`, which closes the gap at `c = 2 |g| / ||v||^2`. Twice as
    /// much while nothing succeeds.
    Linear,
}

/// The attack's parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CarliniWagner {
    /// Which procedure.
    pub protocol: Protocol,
    /// Adam steps for each constant, at least 1.
    pub steps: u32,
    /// Adam's step size in `w`, above 0.
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
                first: First::Given(1e-3),
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

    /// The search as it finds the smallest distances: 9 constants of 1,000 steps, three at once, from what
    /// a linear network would need, with a step size that is large enough at first for pixels at 0 and 1,
    /// which lie far out in `w`, and falls to a thousandth.
    pub fn precise() -> Self {
        CarliniWagner {
            protocol: Protocol::Search {
                first: First::Linear,
                search_steps: 9,
                at_once: 3,
                abort_early: true,
            },
            steps: 1000,
            lr: 0.1,
            lr_end: 1e-4,
            ..CarliniWagner::search()
        }
    }
}

/// How much `from_image` shrinks in a search, so that pixels at 0 and 1 can move.
const SHRINK: f64 = 0.999_999;

/// Constant where the first-order estimate says nothing: no gradient.
const NO_ESTIMATE: f64 = 1e-3;

/// The constant that a linear network with this margin (below 0) and squared gradient needs.
fn linear_constant(margin: f64, squared_gradient: f64) -> f64 {
    match -2.0 * margin / squared_gradient {
        c if c.is_finite() && c > 0.0 => c,
        _ => NO_ESTIMATE,
    }
}

/// Parts of a minimisation, each with its own step size.
const STAGES: u32 = 8;

impl CarliniWagner {
    /// Adam with a step's size.
    fn adam(&self, step: u32) -> Adam {
        let stage = step / self.steps.div_ceil(STAGES);
        let fall = (self.lr_end / self.lr).powf(f64::from(stage) / f64::from(STAGES - 1));
        Adam {
            lr: self.lr * fall,
            ..Adam::default()
        }
    }

    fn search_from(&self, estimate: f64) -> Search {
        let Protocol::Search {
            first,
            search_steps,
            at_once,
            ..
        } = self.protocol
        else {
            unreachable!("the paper's procedure does not search")
        };
        let (first, growth) = match first {
            First::Given(c) => (c, 10.0),
            First::Linear => (estimate, 2.0),
        };
        Search::new(first, growth, search_steps, at_once)
    }

    async fn attack(&self, image: &Image, net: &mut WhiteBox) -> Result<(), OutOfQueries> {
        let (first, abort_early) = match self.protocol {
            Protocol::Rse { c } => {
                let ends = Ends {
                    shrink: 1.0,
                    abort_early: false,
                    offers: false,
                };
                let mut descended = descend(net, image, self, &[c], ends).await?;
                net.hand_in(descended.last.remove(0), descended.success[0]);
                return Ok(());
            }
            Protocol::Search {
                first, abort_early, ..
            } => (first, abort_early),
        };
        let mut estimate = NO_ESTIMATE;
        if first == First::Linear {
            let slope = net
                .slope(&image.pixels, &hinge(image.goal, self.kappa))
                .await?;
            let squared = slope.gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
            estimate = linear_constant(slope.value - self.kappa, squared);
        }
        let mut search = self.search_from(estimate);
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
                if let First::Given(c) = first {
                    Error::unless_positive(OP, "first c", c)?;
                }
                at_least_one("search steps", search_steps)?;
                at_least_one("constants at once", at_once)
            }
        }
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut WhiteBox) -> Running<'a> {
        Box::pin(self.attack(image, classifier))
    }
}

/// Attacks images as [`attack_white_box`] does. On a GPU, where the attack does not choose between random
/// draws, images, optimiser and bests stay there, [`Options::rows`] rows at once, and a step is one
/// graph.
///
/// Errors: as [`attack_white_box`].
pub fn attack(
    net: &mut dyn Differentiable,
    targets: Targets<'_>,
    params: &CarliniWagner,
    options: &Options,
    report: &mut Report<'_>,
) -> Result<Vec<Found>> {
    let chooses = options.confirmations > 0 && matches!(params.protocol, Protocol::Search { .. });
    let resident = !chooses && options.mean_of_objective == 1 && options.budget.is_none();
    match net.device().gpu().cloned() {
        Some(gpu) if resident => device::attack(net, &gpu, targets, params, options, report),
        _ => attack_white_box(net, targets, params, options, report),
    }
}
