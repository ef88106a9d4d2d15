//! The L2 attack of Carlini and Wagner 2017, batched over images.
//!
//! Minimises `||x' - x||^2 + c max(Z_t - max_{i != t} Z_i, -kappa)` (signs of the margin swapped for
//! a target) over `w`, `x' = (tanh w + 1) / 2`, by Adam. Every image is a row with its own constant,
//! optimiser state and random draws: its result does not depend on the other rows, as long as batch
//! norm uses running statistics.
//!
//! [`Protocol::Rse`] is the attack as the RSE paper ran it: one given `c`, 300 steps of 1e-3, one
//! draw a step, the last iterate, success or not; pixels at 0 and 1 never move.
//! [`Protocol::Search`] is the original: binary search over `c`, the closest success kept.

mod descent;
mod device;

use crate::attacks::Criterion;
use crate::ensemble::Differentiable;
use crate::error::{Error, Result};
use crate::ops::tanh_space;
use crate::tensor::Tensor;

use descent::Descent;

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
        /// First constant, above 0.
        initial_c: f64,
        /// Constants tried, at least 1.
        search_steps: u32,
        /// Give a constant up when the loss has not fallen by 0.01% in two successive tenths of the
        /// steps. (The original stops after one, over the sum of a batch; but from saturated
        /// pixels, where the gradient in `w` almost vanishes, nothing falls for the first tenth.)
        abort_early: bool,
    },
}

/// The attack's parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CarliniWagner {
    /// Which procedure.
    pub protocol: Protocol,
    /// Adam steps for each constant, at least 1.
    pub steps: u32,
    /// Adam's step size in `w`.
    pub lr: f64,
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
            kappa: 0.0,
        }
    }

    /// The original attack with its published parameters (9 constants, 10,000 steps each).
    pub fn search() -> Self {
        CarliniWagner {
            protocol: Protocol::Search {
                initial_c: 1e-3,
                search_steps: 9,
                abort_early: true,
            },
            steps: 10_000,
            lr: 1e-2,
            kappa: 0.0,
        }
    }

    /// An error naming the first parameter out of range; [`attack`] checks this too.
    pub fn check(&self) -> Result<()> {
        const OP: &str = "carlini_wagner";
        let at_least_one = |arg, count: u32| match count {
            0 => Err(Error::argument(OP, arg, "at least 1", count)),
            _ => Ok(()),
        };
        at_least_one("steps", self.steps)?;
        Error::unless_positive(OP, "lr", self.lr)?;
        Error::unless_not_negative(OP, "kappa", self.kappa)?;
        match self.protocol {
            Protocol::Rse { c } => Error::unless_not_negative(OP, "c", c),
            Protocol::Search {
                initial_c,
                search_steps,
                ..
            } => {
                Error::unless_positive(OP, "initial c", initial_c)?;
                at_least_one("search steps", search_steps)
            }
        }
    }
}

/// What became of one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Whether the attack itself saw its criterion met (on the draws of its own steps).
    pub success: bool,
    /// `||x' - x||^2` of the image returned.
    pub l2_squared: f64,
    /// The constant that gave it; the last one tried where none did.
    pub c: f64,
    /// Forward passes, each of all EOT draws together. As many backward passes.
    pub passes: u32,
}

/// Root mean square of the L2 distances: the RSE paper's average distortion, over all images,
/// success or not.
pub fn rms_l2(found: &[Found]) -> f64 {
    (found.iter().map(|f| f.l2_squared).sum::<f64>() / found.len() as f64).sqrt()
}

/// Adversarial images, row by row, and what became of each.
pub struct Outcome {
    /// `[n, h, w, c]` in `[0, 1]`, on the CPU; the original image where a search found no success.
    pub adversarial: Tensor,
    /// One entry per row.
    pub found: Vec<Found>,
}

/// Attacks images `x` `[n, h, w, c]` in `[0, 1]`. `ids[i]` is image `i`'s index in its data set: with
/// the classifier's seed it names the draws the attack sees. `progress` is told every step (steps
/// done, of at most how many) and may stop the attack by an error. The attack runs where `x` lies,
/// which is where the classifier works.
pub fn attack(
    net: &mut dyn Differentiable,
    x: &Tensor,
    ids: &[u32],
    criterion: &Criterion,
    params: &CarliniWagner,
    progress: &mut dyn FnMut(u32, u32) -> Result<()>,
) -> Result<Outcome> {
    params.check()?;
    let n = ids.len();
    x.expect("carlini_wagner", "x", net.input().with_n(n), x.kind())?;
    criterion.check("carlini_wagner", n, net.classes())?;
    let original = x.to_cpu()?;
    match params.protocol {
        Protocol::Rse { c } => {
            let mut report = |step| progress(step, params.steps);
            let descent = Descent {
                net,
                x,
                ids,
                criterion,
                params,
                shrink: 1.0,
                abort_early: false,
                first_draw: 0,
            };
            let last = descent.run(&vec![c; n], &mut report)?.last;
            let squared = tanh_space::squared_distances(&last.images, &original)?;
            let found = (0..n).map(|i| Found {
                success: last.success[i],
                l2_squared: squared[i],
                c,
                passes: last.passes[i],
            });
            Ok(Outcome {
                found: found.collect(),
                adversarial: last.images,
            })
        }
        Protocol::Search {
            initial_c,
            search_steps,
            abort_early,
        } => {
            let mut search = Search::new(initial_c, n);
            let mut found = vec![
                Found {
                    success: false,
                    l2_squared: 0.0,
                    c: initial_c,
                    passes: 0,
                };
                n
            ];
            let mut best = original;
            for round in 0..search_steps {
                if round + 1 == search_steps && search_steps >= 10 {
                    search.repeat_upper();
                }
                let mut report =
                    |step| progress(round * params.steps + step, search_steps * params.steps);
                let descent = Descent {
                    net,
                    x,
                    ids,
                    criterion,
                    params,
                    shrink: 0.999_999,
                    abort_early,
                    first_draw: round * params.steps,
                };
                let result = descent.run(&search.c, &mut report)?;
                for (i, f) in found.iter_mut().enumerate() {
                    let c = search.c[i];
                    f.passes += result.last.passes[i];
                    match &result.closest[i] {
                        Some((squared, image)) if !f.success || *squared < f.l2_squared => {
                            (f.success, f.l2_squared, f.c) = (true, *squared, c);
                            put_row(&mut best, i, image);
                        }
                        _ if !f.success => f.c = c,
                        _ => {}
                    }
                    search.next(i, result.closest[i].is_some());
                }
            }
            Ok(Outcome {
                adversarial: best,
                found,
            })
        }
    }
}

/// Binary search over `c`, one per row: ten times as much until the first success, then halves.
struct Search {
    c: Vec<f64>,
    lower: Vec<f64>,
    upper: Vec<Option<f64>>,
}

impl Search {
    fn new(initial: f64, n: usize) -> Self {
        Search {
            c: vec![initial; n],
            lower: vec![0.0; n],
            upper: vec![None; n],
        }
    }

    fn next(&mut self, i: usize, success: bool) {
        let (c, lower, upper) = (self.c[i], &mut self.lower[i], &mut self.upper[i]);
        if success {
            *upper = Some(upper.map_or(c, |u| u.min(c)));
        } else {
            *lower = lower.max(c);
        }
        self.c[i] = upper.map_or(10.0 * c, |u| 0.5 * (*lower + u));
    }

    /// The last of ten or more constants tries the smallest that succeeded once more.
    fn repeat_upper(&mut self) {
        for (c, upper) in self.c.iter_mut().zip(&self.upper) {
            *c = upper.unwrap_or(*c);
        }
    }
}

fn row(images: &Tensor, r: usize) -> &[f32] {
    let len = images.shape().row_len();
    &images.data::<f32>()[r * len..][..len]
}

fn put_row(images: &mut Tensor, i: usize, pixels: &[f32]) {
    let len = images.shape().row_len();
    images.data_mut::<f32>()[i * len..][..len].copy_from_slice(pixels);
}
