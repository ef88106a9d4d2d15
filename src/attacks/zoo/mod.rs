//! Zeroth-order optimisation (Chen et al. 2017): the attack of Carlini and Wagner without gradients.
//!
//! Minimises `F = ||x' - x||^2 + c max(log p_y - max_{k != y} log p_k + kappa, 0)` (swapped towards a target)
//! along 128 random coordinates at a time. A coordinate's slope is `(F(+h) - F(-h)) / 2h`, its curvature
//! `(F(+h) - 2 F(0) + F(-h)) / h^2`; all probes of a step are rows of one question.
//!
//! The published attack meets a random classifier with a new draw in every probe, so that a slope is the
//! difference of two draws divided by `2h` and says nothing. [`Draws::Common`] lets the probes of a step see
//! the same draw, and the noise cancels.

mod space;
mod step;

use super::carlini_wagner::search::Search;
use super::{BlackBox, BlackBoxAttack, Image, Keep, Norm, Offer, OutOfQueries, Query, Running};
use crate::error::{Error, Result};
use crate::rng::Stream;

use space::Perturbed;
use step::Steps;

/// How a coordinate moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Solver {
    /// Adam with moments and step counter of each coordinate's own.
    Adam,
    /// The slope over the curvature; over 1 where that is negative, and over 0.1 where it is less.
    Newton,
}

/// What is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// `w` with `x' = (tanh w + 1) / 2`. Pixels at 0 and 1 hardly move.
    Tanh,
    /// The pixels themselves, kept in the box. As published for images with saturated pixels.
    Clipped,
}

/// Which draws the probes of a step see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draws {
    /// Each its own, as published.
    Independent,
    /// The two of a coordinate the same.
    Pairs,
    /// All of a step the same.
    Common,
}

/// Size of the perturbed grid from an iteration on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// First iteration on it.
    pub from: u32,
    /// Its longer side, at least 1; the image's own where that is smaller.
    pub side: usize,
}

/// The grids as published: 32, 64 from iteration 2,000, 128 from 10,000.
pub const PUBLISHED_GRIDS: [Grid; 3] = [
    Grid { from: 0, side: 32 },
    Grid {
        from: 2000,
        side: 64,
    },
    Grid {
        from: 10_000,
        side: 128,
    },
];

/// The attack's parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Zoo {
    /// How a coordinate moves.
    pub solver: Solver,
    /// What is searched.
    pub space: Space,
    /// Iterations for each constant, at least 1.
    pub iterations: u32,
    /// Coordinates of an iteration, without replacement, at least 1.
    pub coordinates: usize,
    /// Finite difference, above 0, in the searched space.
    pub h: f64,
    /// Step size, above 0.
    pub lr: f64,
    /// Confidence: the margin by which a success must be one; at least 0.
    pub kappa: f64,
    /// First constant, above 0; ten times as much while nothing succeeds.
    pub c: f64,
    /// Constants tried, at least 1.
    pub search_steps: u32,
    /// Give a constant up when the loss has not fallen by 0.01% in so many iterations; 0 for never.
    pub early_stop: u32,
    /// Forget Adam's moments at the first success of a constant.
    pub reset_at_success: bool,
    /// Perturb a coarser grid than the image's, in ascending order of iterations, the first from 0. Empty
    /// for the image's own.
    pub grids: Vec<Grid>,
    /// Choose coordinates in proportion to the largest perturbation around them.
    pub importance: bool,
    /// Which draws the probes see.
    pub draws: Draws,
    /// Draws over which each value of `F` is averaged, at least 1.
    pub averages: u32,
}

impl Zoo {
    /// As published for CIFAR-10, with one constant.
    pub fn published() -> Self {
        Zoo {
            solver: Solver::Adam,
            space: Space::Tanh,
            iterations: 1000,
            coordinates: 128,
            h: 1e-4,
            lr: 1e-2,
            kappa: 0.0,
            c: 0.5,
            search_steps: 1,
            early_stop: 100,
            reset_at_success: false,
            grids: Vec::new(),
            importance: false,
            draws: Draws::Independent,
            averages: 1,
        }
    }

    /// As published, with a binary search over 9 constants.
    pub fn search() -> Self {
        Zoo {
            c: 0.01,
            search_steps: 9,
            ..Zoo::published()
        }
    }

    /// The grids and the importance sampling as published, for images larger than 32.
    pub fn for_images_of(mut self, h: usize, w: usize) -> Self {
        if h.max(w) > 32 {
            self.grids = PUBLISHED_GRIDS.to_vec();
            self.importance = true;
        }
        self
    }

    async fn attack(&self, image: &Image, net: &mut BlackBox) -> Result<(), OutOfQueries> {
        let scores = net.look(&image.pixels).await?;
        // An image misclassified already is at distance 0.
        if self.is_met(image, &scores) {
            let offer = net.try_offer(&image.pixels, &scores).await?;
            if matches!(offer, Offer::Success | Offer::Sure) {
                return Ok(());
            }
        }
        let mut random = image.stream(4);
        let mut search = Search::new(self.c, self.search_steps, 1);
        loop {
            let constants = search.next();
            let &[c] = &constants[..] else { return Ok(()) };
            net.c = Some(c);
            let success = self.minimise(image, net, c, &mut random).await?;
            search.tell(&constants, &[success]);
        }
    }

    fn is_met(&self, image: &Image, scores: &[f32]) -> bool {
        image.goal.is_met(scores) && image.goal.margin(scores) >= self.kappa
    }

    /// Whether it found a success.
    async fn minimise(
        &self,
        image: &Image,
        net: &mut BlackBox,
        c: f64,
        random: &mut Stream,
    ) -> Result<bool, OutOfQueries> {
        let first = self
            .grid(image, 0)
            .unwrap_or([image.shape.h, image.shape.w]);
        let mut at = Perturbed::new(self.space, image, first);
        let mut steps = Steps::new(self.solver, self.lr, at.m.len());
        let mut found = false;
        let mut previous_loss = f64::INFINITY;
        for iteration in 0..self.iterations {
            if iteration > 0
                && let Some(grid) = self.grid(image, iteration)
                && grid != at.grid
            {
                at.regrid(grid);
                steps = Steps::new(self.solver, self.lr, at.m.len());
            }
            let weights = match self.importance {
                true => at.importance(),
                false => None,
            };
            let chosen = choose(at.m.len(), weights.as_deref(), self.coordinates, random);
            let values = self.values(image, net, &at, &chosen, c).await?;

            if self.is_met(image, &values.scores) {
                let success = match net.try_offer(&at.pixels, &values.scores).await? {
                    Offer::Refuted => false,
                    Offer::Success | Offer::Sure => true,
                    Offer::NotBetter => found || net.confirm(&at.pixels).await?,
                };
                if success && !found && self.reset_at_success {
                    steps = Steps::new(self.solver, self.lr, at.m.len());
                }
                found |= success;
            }
            for (&i, [up, down]) in chosen.iter().zip(&values.probes) {
                let slope = (up - down) / (2.0 * self.h);
                let curvature = (up - 2.0 * values.here + down) / (self.h * self.h);
                at.step(i, steps.change(i, slope, curvature));
            }
            if self.early_stop > 0 && iteration % self.early_stop == 0 {
                if values.here > 0.9999 * previous_loss {
                    break;
                }
                previous_loss = values.here;
            }
        }
        Ok(found)
    }

    /// The grid that begins at an iteration.
    fn grid(&self, image: &Image, iteration: u32) -> Option<[usize; 2]> {
        let grid = self.grids.iter().find(|g| g.from == iteration)?;
        let (h, w) = (image.shape.h, image.shape.w);
        let most = h.max(w);
        let side = |n: usize| match grid.side < most {
            true => (n * grid.side).div_ceil(most),
            false => n,
        };
        Some([side(h), side(w)])
    }

    /// `F` here and along the chosen coordinates.
    async fn values(
        &self,
        image: &Image,
        net: &mut BlackBox,
        at: &Perturbed,
        chosen: &[usize],
        c: f64,
    ) -> Result<Values, OutOfQueries> {
        let averages = self.averages as usize;
        let squared = at.squared();
        let mut distances = vec![squared];
        let mut queries = Vec::with_capacity((2 * chosen.len() + 1) * averages);
        let mut draws = Vec::new();
        let mut ask = |pixels: &[f32], draws: &[u32]| {
            queries.extend(draws.iter().map(|&draw| Query {
                pixels: pixels.to_vec(),
                draw,
            }));
        };
        fresh(net, averages, &mut draws);
        ask(&at.pixels, &draws);
        for &i in chosen {
            for (second, h) in [(false, self.h), (true, -self.h)] {
                match self.draws {
                    Draws::Common => {}
                    Draws::Pairs if second => {}
                    Draws::Pairs | Draws::Independent => fresh(net, averages, &mut draws),
                }
                let probe = at.probe(i, h, squared);
                ask(&probe.pixels, &draws);
                distances.push(probe.squared);
            }
        }
        let answers = net.scores(queries).await?;
        let scores = mean_probability(&answers[..averages]);
        let of_draws = answers.chunks(averages);
        let values: Vec<f64> = of_draws
            .zip(distances)
            .map(|(scores, squared)| {
                // Differences of log-probabilities are those of scores.
                let hinge = |s: &Vec<f32>| (self.kappa - image.goal.margin(s)).max(0.0);
                squared + c * scores.iter().map(hinge).sum::<f64>() / averages as f64
            })
            .collect();
        Ok(Values {
            here: values[0],
            scores,
            probes: values[1..].chunks(2).map(|p| [p[0], p[1]]).collect(),
        })
    }
}

/// `F` at the iterate and its probes.
struct Values {
    here: f64,
    /// The iterate's scores.
    scores: Vec<f32>,
    /// At `+h` and `-h` of each coordinate.
    probes: Vec<[f64; 2]>,
}

fn fresh(net: &mut BlackBox, count: usize, draws: &mut Vec<u32>) {
    draws.clear();
    draws.extend((0..count).map(|_| net.fresh_draw()));
}

/// Log of the mean probability; one draw's scores as they are.
fn mean_probability(scores: &[Vec<f32>]) -> Vec<f32> {
    let [first, rest @ ..] = scores else {
        return Vec::new();
    };
    if rest.is_empty() {
        return first.clone();
    }
    let mut mean = vec![0f64; first.len()];
    for z in scores {
        let most = f64::from(z.iter().fold(f32::NEG_INFINITY, |m, &z| m.max(z)));
        let exp: Vec<f64> = z.iter().map(|&z| (f64::from(z) - most).exp()).collect();
        let sum: f64 = exp.iter().sum();
        mean.iter_mut().zip(exp).for_each(|(m, e)| *m += e / sum);
    }
    let n = scores.len() as f64;
    // 1e-30 as in the published attack: a class of probability 0 stays finite.
    mean.iter().map(|m| (m / n + 1e-30).ln() as f32).collect()
}

/// `count` different numbers below `n` in proportion to their weights (Efraimidis and Spirakis 2006:
/// those of the smallest `-ln(u) / weight`), ascending; all of them where there are no more.
fn choose(n: usize, weights: Option<&[f64]>, count: usize, random: &mut Stream) -> Vec<usize> {
    if count >= n {
        return (0..n).collect();
    }
    let mut keys: Vec<(f64, usize)> = (0..n)
        .map(|i| {
            let key = -(1.0 - random.uniform()).ln();
            (key / weights.map_or(1.0, |w| w[i]), i)
        })
        .collect();
    keys.select_nth_unstable_by(count, |a, b| a.partial_cmp(b).expect("no NaN"));
    let mut chosen: Vec<usize> = keys[..count].iter().map(|&(_, i)| i).collect();
    chosen.sort_unstable();
    chosen
}

impl BlackBoxAttack for Zoo {
    fn name(&self) -> &'static str {
        match self.solver {
            Solver::Adam => "zoo-adam",
            Solver::Newton => "zoo-newton",
        }
    }

    fn keep(&self) -> Keep {
        Keep::Closest(Norm::L2)
    }

    fn check(&self, _: usize) -> Result<()> {
        const OP: &str = "zoo";
        for (arg, v) in [("h", self.h), ("lr", self.lr), ("c", self.c)] {
            Error::unless_positive(OP, arg, v)?;
        }
        Error::unless_not_negative(OP, "kappa", self.kappa)?;
        for (arg, count) in [
            ("iterations", self.iterations as usize),
            ("coordinates", self.coordinates),
            ("search_steps", self.search_steps as usize),
            ("averages", self.averages as usize),
        ] {
            Error::unless_counted(OP, arg, count)?;
        }
        let expected = "sides of at least 1 from iteration 0 on, ascending";
        let first = self.grids.first().is_none_or(|g| g.from == 0);
        let ascending = self
            .grids
            .is_sorted_by(|a, b| a.from < b.from && a.side <= b.side);
        if !first || !ascending || self.grids.iter().any(|g| g.side == 0) {
            let found = format!("{:?}", self.grids);
            return Err(Error::argument(OP, "grids", expected, found));
        }
        Ok(())
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut BlackBox) -> Running<'a> {
        Box::pin(self.attack(image, classifier))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_chosen_once_and_by_weight() {
        let mut random = Stream::new(1, 1, 0);
        let weights = [1.0, 0.0, 3.0, 1.0];
        let mut firsts = [0; 4];
        for _ in 0..5000 {
            let one = choose(4, Some(&weights), 1, &mut random);
            firsts[one[0]] += 1;
            let three = choose(4, Some(&weights), 3, &mut random);
            assert_eq!(three, [0, 2, 3]);
        }
        // 1000, 0, 3000, 1000; standard deviations below 36
        assert!(
            firsts[1] == 0 && (2855..3145).contains(&firsts[2]),
            "{firsts:?}"
        );
        assert!((880..1120).contains(&firsts[0]), "{firsts:?}");
        assert_eq!(choose(3, None, 5, &mut random), [0, 1, 2]);
        let mut counts = [0; 10];
        for _ in 0..5000 {
            choose(10, None, 3, &mut random)
                .into_iter()
                .for_each(|i| counts[i] += 1);
        }
        // 1500 each, standard deviation 32
        assert!(
            counts.iter().all(|c| (1370..1630).contains(c)),
            "{counts:?}"
        );
    }
}
