//! Certificates by randomised smoothing (Cohen, Rosenfeld and Kolter 2019, "Certified Adversarial
//! Robustness via Randomized Smoothing").
//!
//! The smoothed classifier answers `g(x) = argmax_c P(f(x + sigma z) = c)`, `z ~ N(0, I)`. If its top
//! class has probability at least `pA > 1/2`, then `g` gives that class on the whole open ball of
//! radius `R = sigma Phi^-1(pA)` in L2 around `x` (theorem 1 with `pB = 1 - pA`).
//!
//! **What is certified.** `f` is the whole network with its own noise layers: a random function of the
//! image, whose randomness the probability averages over, too. The theorem is about the noise on the
//! image alone, which certification adds before the network sees it. Noise inside the network gives no
//! radius by itself; it only makes `f` another classifier.
//!
//! **Which random numbers.** Draw `d` of image `id` adds [`Normals::Precise`] noise under
//! [`Purpose::Certify`], layer 0; the network's own noise of the same draw is under [`Purpose::Eval`],
//! its layers numbered from 0 as ever. Word 2 of the counter is `purpose * 2^16 + layer`, so no block is
//! ever shared, not even where the network has noise on the image as its own layer 0. Selection takes
//! draws `0 .. n0`, estimation `n0 .. n0 + n`: class and bound come from independent draws, as the proof
//! needs. Counts of an image depend on the network, the image, its id, the seed and the numbers of
//! draws; not on the batch, the neighbours or the order.
//!
//! Noisy images are not clipped to the box. Normals end at 6.76 standard deviations and sums are
//! rounded to f32: the certificate is one of statistics, not of exact arithmetic.

mod counting;
mod summary;

use crate::error::{Error, Result};
use crate::ops::noise::{Normals, Purpose};
use crate::statistics::{
    check_alpha, clopper_pearson_lower, clopper_pearson_upper, fair_coin_p_value, normal_quantile,
};

pub use counting::Event;
pub use summary::{Verdict, average_radius, certified_accuracy, curve};

/// The noise of a certificate.
const PURPOSE: Purpose = Purpose::Certify;
/// The network's own noise meanwhile.
const OWN_PURPOSE: Purpose = Purpose::Eval;
const NORMALS: Normals = Normals::Precise;

/// What is asked of the smoothed classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Cohen's CERTIFY: class and radius, or abstention.
    Certify {
        /// Draws that select the class, at least 1.
        n0: u32,
        /// Abstain before all draws are made where a certificate is out of reach ([`Settings::looks`]).
        adaptive: bool,
    },
    /// Cohen's PREDICT: class, or abstention.
    Predict,
}

/// How to certify or predict.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What is asked.
    pub task: Task,
    /// Standard deviation of the noise on the image, in the image's unit; above 0.
    pub sigma: f32,
    /// Draws of the estimate (CERTIFY) or of the vote (PREDICT).
    pub n: u32,
    /// Largest probability that a certificate or an answer is false, for one image.
    pub alpha: f64,
    /// Seed of all noise.
    pub seed: u64,
    /// Rows of one batch; `None` for what suits the device. It changes no result.
    pub batch: Option<usize>,
}

/// Votes for each class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Of the selection's draws, `[classes]`; all 0 for [`Task::Predict`].
    pub selection: Vec<u32>,
    /// Of the other draws, `[classes]`.
    pub estimation: Vec<u32>,
}

impl Counts {
    /// No votes yet.
    pub fn new(classes: usize) -> Self {
        Counts {
            selection: vec![0; classes],
            estimation: vec![0; classes],
        }
    }

    /// Draws of the estimate.
    pub fn draws(&self) -> u64 {
        self.estimation.iter().map(|&k| u64::from(k)).sum()
    }
}

/// What the smoothed classifier says about one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its class; `None` where it abstains.
    pub class: Option<u32>,
    /// Certified radius in L2, in the image's unit: no point closer than this has another class; 0
    /// without a certificate.
    pub radius: f64,
    /// Lower bound of the selected class's probability (CERTIFY), p-value of the vote (PREDICT).
    pub statistic: f64,
    /// The votes.
    pub counts: Counts,
}

/// Shares of `n` after which `adaptive` looks at the estimate.
const LOOKS: [u32; 3] = [64, 16, 4];

impl Settings {
    /// Cohen's parameters: `n0 = 100`, `n = 100,000`, `alpha = 0.001`.
    pub fn certify(sigma: f32) -> Self {
        Settings {
            task: Task::Certify {
                n0: 100,
                adaptive: false,
            },
            sigma,
            n: 100_000,
            alpha: 0.001,
            seed: 0,
            batch: None,
        }
    }

    /// Draws of the selection.
    pub fn n0(&self) -> u32 {
        match self.task {
            Task::Certify { n0, .. } => n0,
            Task::Predict => 0,
        }
    }

    /// Checks every value.
    pub fn check(&self) -> Result<()> {
        const OP: &str = "certify";
        Error::unless_positive(OP, "sigma", f64::from(self.sigma))?;
        check_alpha(OP, self.alpha)?;
        let refuse = |arg, expected: String, found| Err(Error::argument(OP, arg, expected, found));
        if self.n == 0 {
            return refuse("n", "at least 1 draw".into(), self.n.to_string());
        }
        if let Task::Certify { n0, .. } = self.task {
            if n0 == 0 {
                return refuse("n0", "at least 1 draw".into(), n0.to_string());
            }
            if self.n < n0 {
                let expected = format!("at least n0, which is {n0}");
                return refuse("n", expected, self.n.to_string());
            }
            if n0.checked_add(self.n).is_none() {
                let found = format!("{n0} + {}", self.n);
                return refuse("n", "n0 + n below 2^32".into(), found);
            }
        }
        match self.batch {
            Some(0) => refuse("batch", "at least 1 row".into(), "0".into()),
            _ => Ok(()),
        }
    }

    /// Numbers of estimation draws after which CERTIFY may abstain early: none unless adaptive.
    ///
    /// The rule: at look `i` of `L`, with `k` of `m` draws for the selected class, abstain if the upper
    /// Clopper-Pearson bound of `k / m` at level `1 - alpha/L` does not exceed 1/2.
    ///
    /// Why it is sound: an abstention claims nothing, and a certificate is given only where the bound of
    /// all `n` draws gives it, so `P(false certificate) <= P(lower(k, n, alpha) > pA) <= alpha` as
    /// without looks. What it costs: where `pA > 1/2` and a certificate was to be had, it is lost with
    /// probability at most `L alpha/L = alpha`.
    pub fn looks(&self) -> Vec<u32> {
        match self.task {
            Task::Certify { adaptive: true, .. } => {
                let mut looks: Vec<u32> = LOOKS.iter().map(|s| self.n.div_ceil(*s)).collect();
                looks.dedup();
                looks.retain(|&m| m < self.n);
                looks
            }
            _ => Vec::new(),
        }
    }

    /// Whether a certificate is out of reach after these draws ([`Settings::looks`]).
    fn is_hopeless(&self, counts: &Counts) -> Result<bool> {
        let looks = self.looks().len().max(1) as f64;
        let (class, _) = top_two(&counts.selection);
        let k = u64::from(counts.estimation[class]);
        Ok(clopper_pearson_upper(k, counts.draws(), self.alpha / looks)? <= 0.5)
    }

    /// The verdict from the votes.
    ///
    /// CERTIFY: the class `c` with most votes of the selection; `pA` the lower Clopper-Pearson bound of
    /// its share of the estimation's `n` draws; radius `sigma Phi^-1(pA)` if `pA > 1/2`, else abstain,
    /// also after fewer than `n` draws. PREDICT: the class with most votes, if the two-sided test of a
    /// fair coin between the first and the second has a p-value of at most alpha. Of classes with equal
    /// votes the first counts as the larger.
    ///
    /// Errors: what [`Settings::check`] refuses; counts without a vote.
    pub fn judge(&self, counts: Counts) -> Result<Outcome> {
        self.check()?;
        if counts.draws() == 0 || counts.selection.len() != counts.estimation.len() {
            let expected = "votes for as many classes in selection and estimation";
            return Err(Error::argument("certify", "counts", expected, "others"));
        }
        let (class, radius, statistic) = match self.task {
            Task::Certify { .. } => {
                let (class, _) = top_two(&counts.selection);
                let k = u64::from(counts.estimation[class]);
                let bound = clopper_pearson_lower(k, counts.draws(), self.alpha)?;
                match bound > 0.5 && counts.draws() >= u64::from(self.n) {
                    true => {
                        let radius = f64::from(self.sigma) * normal_quantile(bound)?;
                        (Some(class as u32), radius, bound)
                    }
                    false => (None, 0.0, bound),
                }
            }
            Task::Predict => {
                let (first, second) = top_two(&counts.estimation);
                let a = u64::from(counts.estimation[first]);
                let b = second.map_or(0, |second| u64::from(counts.estimation[second]));
                let p = fair_coin_p_value(a, a + b)?;
                ((p <= self.alpha).then_some(first as u32), 0.0, p)
            }
        };
        Ok(Outcome {
            class,
            radius,
            statistic,
            counts,
        })
    }

    /// Largest radius these settings can certify: `sigma Phi^-1(alpha^(1/n))`, 0 if that is negative.
    ///
    /// Errors: what [`Settings::check`] refuses.
    pub fn largest_radius(&self) -> Result<f64> {
        self.check()?;
        let n = u64::from(self.n);
        let bound = clopper_pearson_lower(n, n, self.alpha)?;
        Ok((f64::from(self.sigma) * normal_quantile(bound)?).max(0.0))
    }
}

/// The classes with most and second most votes; the first of equals comes first.
fn top_two(votes: &[u32]) -> (usize, Option<usize>) {
    let mut order: Vec<usize> = (0..votes.len()).collect();
    order.sort_by_key(|&c| (std::cmp::Reverse(votes[c]), c));
    (order[0], order.get(1).copied())
}
