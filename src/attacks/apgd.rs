//! Auto-PGD: gradient ascent within a ball that chooses its own steps.

use super::gradient::random_in_ball;
use super::image::{Goal, Image, Norm, ranked_others};
use super::objective::Objective;
use super::query::{Keep, OutOfQueries, Query, WhiteBox};
use super::schedule::{Running, WhiteBoxAttack};
use crate::error::{Error, Result};
use crate::rng::Stream;

/// What [`Apgd`] raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// [`Objective::cross_entropy`].
    CrossEntropy,
    /// [`Objective::dlr`]; needs 3 classes.
    Dlr,
    /// [`Objective::targeted_dlr`] towards each of so many wrong classes, the most likely ones; needs
    /// 4 classes. All targets climb at once. In an attack towards a class that is the only target.
    TargetedDlr {
        /// At least 1; all wrong classes where there are fewer.
        targets: u32,
    },
}

/// Auto-PGD (Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of
/// diverse parameter-free attacks"): steps with momentum, of first `2 eps`, halved at [`checkpoints`]
/// where the loss no longer rises enough; then it goes on from the best point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Apgd {
    /// What it is called.
    pub name: &'static str,
    /// The ball's norm.
    pub norm: Norm,
    /// Its radius, above 0.
    pub eps: f64,
    /// What it raises.
    pub loss: Loss,
    /// Gradients of each start, at least 1.
    pub steps: u32,
    /// A step is halved where a smaller share than this of the steps since the last checkpoint raised
    /// the loss; between 0 and 1.
    pub rho: f64,
    /// Random starts, at least 1.
    pub restarts: u32,
}

/// Share of the step itself in a step with momentum; the rest is the step before.
const STEP_SHARE: f32 = 0.75;

impl Apgd {
    /// On the cross-entropy, with the paper's 100 steps and one start.
    pub fn cross_entropy(norm: Norm, eps: f64) -> Self {
        Apgd {
            name: "apgd-ce",
            norm,
            eps,
            loss: Loss::CrossEntropy,
            steps: 100,
            rho: 0.75,
            restarts: 1,
        }
    }

    /// On the difference of logits ratio.
    pub fn dlr(norm: Norm, eps: f64) -> Self {
        Apgd {
            name: "apgd-dlr",
            loss: Loss::Dlr,
            ..Apgd::cross_entropy(norm, eps)
        }
    }

    /// On the targeted difference of logits ratio, towards 9 classes.
    pub fn targeted_dlr(norm: Norm, eps: f64) -> Self {
        Apgd {
            name: "apgd-t",
            loss: Loss::TargetedDlr { targets: 9 },
            ..Apgd::cross_entropy(norm, eps)
        }
    }

    async fn attack(&self, image: &Image, net: &mut WhiteBox) -> Result<(), OutOfQueries> {
        let objectives = match (self.loss, image.goal) {
            (Loss::CrossEntropy, goal) => vec![Objective::cross_entropy(goal)],
            (Loss::Dlr, goal) => vec![Objective::dlr(goal)],
            (Loss::TargetedDlr { .. }, Goal::Towards(target)) => {
                vec![Objective::targeted_dlr(None, target)]
            }
            (Loss::TargetedDlr { targets }, Goal::Away(label)) => {
                let scores = net.look(&image.pixels).await?;
                if net.offer(&image.pixels, &scores).await? {
                    return Ok(());
                }
                ranked_others(&scores, label)
                    .take(targets as usize)
                    .map(|target| Objective::targeted_dlr(Some(label), target))
                    .collect()
            }
        };
        let mut random = image.stream(1);
        for _ in 0..self.restarts {
            let mut ascents: Vec<Ascent> = objectives
                .iter()
                .map(|_| Ascent::new(self, image, &mut random))
                .collect();
            for _ in 0..self.steps {
                let queries = ascents.iter().zip(&objectives);
                let queries = queries.map(|(a, o)| (a.query(net), o.clone())).collect();
                let slopes = net.slopes(queries).await?;
                for (ascent, slope) in ascents.iter_mut().zip(slopes) {
                    if net.offer(&ascent.x, &slope.scores).await? {
                        return Ok(());
                    }
                    ascent.climb(self, image, slope.value, slope.gradient);
                }
            }
            // Nobody asks for the gradient at the last points.
            let queries = ascents.iter().map(|a| a.query(net)).collect();
            let scores = net.scores(queries).await?;
            for (ascent, scores) in ascents.iter().zip(scores) {
                if net.offer(&ascent.x, &scores).await? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// One start's way up: `x^(k)` and what the paper's Algorithm 1 remembers.
struct Ascent {
    x: Vec<f32>,
    /// `x^(k-1)`.
    previous: Vec<f32>,
    /// The highest point so far, its value and gradient.
    best: Point,
    step: f64,
    /// Steps made.
    k: u32,
    /// Value at `x^(k-1)`.
    last: f64,
    /// Steps since the last checkpoint that raised the value.
    rises: u32,
    /// Checkpoints still to come, the next one last.
    checkpoints: Vec<u32>,
    /// At the last checkpoint: where it was, whether the step was halved, the best value.
    at: (u32, bool, f64),
}

struct Point {
    x: Vec<f32>,
    value: f64,
    gradient: Vec<f32>,
}

impl Ascent {
    fn new(attack: &Apgd, image: &Image, random: &mut Stream) -> Self {
        let mut x = image.pixels.to_vec();
        random_in_ball(attack.norm, attack.eps, &mut x, random);
        attack.norm.project(&mut x, &image.pixels, attack.eps);
        let mut checkpoints = checkpoints(attack.steps);
        checkpoints.reverse();
        Ascent {
            previous: x.clone(),
            best: Point {
                x: x.clone(),
                value: f64::NEG_INFINITY,
                gradient: Vec::new(),
            },
            x,
            step: 2.0 * attack.eps,
            k: 0,
            last: f64::NEG_INFINITY,
            rises: 0,
            checkpoints,
            at: (0, false, f64::NEG_INFINITY),
        }
    }

    fn query(&self, net: &mut WhiteBox) -> Query {
        Query {
            pixels: self.x.clone(),
            draw: net.fresh_draw(),
        }
    }

    /// From `x^(k)`, where value and gradient are these, to `x^(k+1)`.
    fn climb(&mut self, attack: &Apgd, image: &Image, value: f64, mut gradient: Vec<f32>) {
        if self.k > 0 && value > self.last {
            self.rises += 1;
        }
        self.last = value;
        if self.k == 0 || value > self.best.value {
            self.best = Point {
                x: self.x.clone(),
                value,
                gradient: gradient.clone(),
            };
        }
        if self.k == 0 {
            self.at.2 = value;
        }
        if self.checkpoints.last() == Some(&self.k) {
            self.checkpoints.pop();
            let (checkpoint, was_halved, best_then) = self.at;
            // Condition 1: too few of the steps rose. Condition 2: the step was kept at the last
            // checkpoint, and nothing better was found since.
            let few = f64::from(self.rises) < attack.rho * f64::from(self.k - checkpoint);
            let halve = few || (!was_halved && self.best.value <= best_then);
            if halve {
                self.step /= 2.0;
                self.x.clone_from(&self.best.x);
                gradient.clone_from(&self.best.gradient);
            }
            self.at = (self.k, halve, self.best.value);
            self.rises = 0;
        }

        let project = |x: &mut [f32]| attack.norm.project(x, &image.pixels, attack.eps);
        let x = &self.x;
        // z = P(x + step * s(gradient))
        let step = self.step as f32;
        let direction = attack.norm.steepest(&gradient);
        let mut z: Vec<f32> = x
            .iter()
            .zip(&direction)
            .map(|(x, d)| x + step * d)
            .collect();
        project(&mut z);
        // x' = P(x + a (z - x) + (1 - a) (x - previous)), the first step without momentum
        if self.k > 0 {
            for ((z, x), previous) in z.iter_mut().zip(x).zip(&self.previous) {
                *z = x + STEP_SHARE * (*z - x) + (1.0 - STEP_SHARE) * (x - previous);
            }
            project(&mut z);
        }
        self.previous = std::mem::replace(&mut self.x, z);
        self.k += 1;
    }
}

/// Steps after which [`Apgd`] looks back: `w_j = ceil(p_j n)` with `p_0 = 0`, `p_1 = 0.22`,
/// `p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)`; for 100 steps 22, 41, 57, 70, 80, 87, 93, 99.
pub fn checkpoints(steps: u32) -> Vec<u32> {
    let mut all: Vec<u32> = Vec::new();
    // In hundredths, which are exact.
    let (mut p, mut period) = (22u64, 22u64);
    while p <= 100 {
        let at = (p * u64::from(steps)).div_ceil(100) as u32;
        if all.last() != Some(&at) {
            all.push(at);
        }
        period = (period - 3).max(6);
        p += period;
    }
    all
}

impl WhiteBoxAttack for Apgd {
    fn name(&self) -> &'static str {
        self.name
    }

    fn keep(&self) -> Keep {
        Keep::Surest
    }

    fn check(&self, classes: usize) -> Result<()> {
        Error::unless_positive(self.name, "eps", self.eps)?;
        for (arg, count) in [("steps", self.steps), ("restarts", self.restarts)] {
            Error::unless_counted(self.name, arg, count as usize)?;
        }
        if !(0.0..=1.0).contains(&self.rho) {
            return Err(Error::argument(self.name, "rho", "0 to 1", self.rho));
        }
        let (needed, expected) = match self.loss {
            Loss::CrossEntropy => (2, "at least 2"),
            Loss::Dlr => (3, "at least 3 for the difference of logits ratio"),
            Loss::TargetedDlr { targets } => {
                Error::unless_counted(self.name, "targets", targets as usize)?;
                (4, "at least 4 for the targeted difference of logits ratio")
            }
        };
        if classes < needed {
            return Err(Error::argument(self.name, "classes", expected, classes));
        }
        Ok(())
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut WhiteBox) -> Running<'a> {
        Box::pin(self.attack(image, classifier))
    }
}
