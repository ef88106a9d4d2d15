//! Square attack: random search for scores alone.

use super::image::{Image, Norm};
use super::query::{BlackBox, Keep, OutOfQueries, Query};
use super::schedule::{BlackBoxAttack, Running};
use crate::error::{Error, Result};
use crate::rng::Stream;

/// Square attack (Andriushchenko et al. 2020): changes one random square at a time, and keeps a change
/// that raises the margin ([`Goal::margin`](super::Goal::margin)). The squares shrink as the search goes
/// on.
///
/// Where the classifier is random, changed and unchanged image are looked at under the same draw, two
/// queries a step: a comparison across draws would keep whoever was lucky.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Square {
    /// The ball's norm.
    pub norm: Norm,
    /// Its radius, above 0.
    pub eps: f64,
    /// Queries, at least 1.
    pub queries: u32,
    /// Share of the image that the first squares cover, above 0 and at most 1.
    pub p: f64,
    /// Whether the schedule, made for 10,000 queries, is stretched to `queries`.
    pub rescale: bool,
}

impl Square {
    /// As in AutoAttack: 5000 queries, `p = 0.8`, the schedule as it is.
    pub fn new(norm: Norm, eps: f64) -> Self {
        Square {
            norm,
            eps,
            queries: 5000,
            p: 0.8,
            rescale: false,
        }
    }

    /// Share of the image that a square covers at this query, the first being 0.
    pub fn share(&self, query: u32) -> f64 {
        let at = match self.rescale {
            false => u64::from(query),
            true => u64::from(query) * 10_000 / u64::from(self.queries.max(1)),
        };
        const HALVED_AFTER: [u64; 9] = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];
        let halvings = HALVED_AFTER.iter().filter(|&&after| at > after).count();
        self.p * 0.5f64.powi(halvings as i32)
    }

    async fn attack(&self, image: &Image, net: &mut BlackBox) -> Result<(), OutOfQueries> {
        let mut random = image.stream(2);
        let mut best = image.pixels.to_vec();
        match self.norm {
            Norm::Linf => stripes(self.eps, image, &mut best, &mut random),
            Norm::L2 => tiles(self.eps, image, &mut best, &mut random),
        }
        let scores = net.look(&best).await?;
        if net.offer(&best, &scores).await? {
            return Ok(());
        }
        let mut margin = image.goal.margin(&scores);
        let cost = if net.is_random() { 2 } else { 1 };
        let mut asked = 1;
        while asked + cost <= self.queries {
            let mut new = best.clone();
            let share = self.share(asked);
            match self.norm {
                Norm::Linf => flip(self.eps, image, &mut new, share, &mut random),
                Norm::L2 => move_mass(self.eps, image, &mut new, share, &mut random),
            }
            let draw = net.fresh_draw();
            let look = |x: &[f32]| Query {
                pixels: x.to_vec(),
                draw,
            };
            let mut queries = vec![look(&new)];
            if cost == 2 {
                queries.push(look(&best));
            }
            let scores = net.scores(queries).await?;
            asked += cost;
            if net.offer(&new, &scores[0]).await? {
                return Ok(());
            }
            if let Some(unchanged) = scores.get(1) {
                margin = image.goal.margin(unchanged);
            }
            let new_margin = image.goal.margin(&scores[0]);
            if new_margin > margin {
                (best, margin) = (new, new_margin);
            }
        }
        Ok(())
    }
}

/// Side of a square that covers this share of the image, at least `least` where it fits.
fn side(share: f64, image: &Image, least: usize) -> usize {
    let (h, w) = (image.shape.h, image.shape.w);
    let side = (share * (h * w) as f64).sqrt().round() as usize;
    side.max(least).min(h).min(w)
}

/// Place of a square: uniform among those inside the image.
fn place(side: usize, image: &Image, random: &mut Stream) -> (usize, usize) {
    let row = below(image.shape.h - side + 1, random);
    (row, below(image.shape.w - side + 1, random))
}

fn below(n: usize, random: &mut Stream) -> usize {
    // 1 - 2^-53 times n rounds to n for no size of an image.
    (random.uniform() * n as f64) as usize
}

fn sign(random: &mut Stream) -> f64 {
    if random.uniform() < 0.5 { -1.0 } else { 1.0 }
}

/// Positions of channel `channel` in a square.
fn window(
    (row, column): (usize, usize),
    (rows, columns): (usize, usize),
    image: &Image,
    channel: usize,
) -> impl Iterator<Item = usize> + Clone + use<> {
    let (w, c) = (image.shape.w, image.shape.c);
    (0..rows * columns).map(move |i| ((row + i / columns) * w + column + i % columns) * c + channel)
}

/// `Linf`, first point: every column of every channel by `eps` up or down.
fn stripes(eps: f64, image: &Image, x: &mut [f32], random: &mut Stream) {
    let per_row = image.shape.w * image.shape.c;
    let change: Vec<f32> = (0..per_row).map(|_| (eps * sign(random)) as f32).collect();
    for (i, x) in x.iter_mut().enumerate() {
        *x += change[i % per_row];
    }
    Norm::Linf.project(x, &image.pixels, eps);
}

/// `Linf`, a step: one square, every channel by `eps` up or down from the original.
fn flip(eps: f64, image: &Image, x: &mut [f32], share: f64, random: &mut Stream) {
    let side = side(share, image, 1);
    let place = place(side, image, random);
    for channel in 0..image.shape.c {
        let change = (eps * sign(random)) as f32;
        for i in window(place, (side, side), image, channel) {
            x[i] = image.pixels[i] + change;
        }
    }
    Norm::Linf.project(x, &image.pixels, eps);
}

/// `L2`, first point: a grid of 5 by 5 tiles, each with a bump up beside one down in every channel.
fn tiles(eps: f64, image: &Image, x: &mut [f32], random: &mut Stream) {
    let (h, w) = (image.shape.h, image.shape.w);
    let side = (h.min(w) / 5).max(1);
    for row in 0..h / side {
        for column in 0..w / side {
            let bump = bumps(side, random);
            // The rest that no tile covers lies on both edges.
            let place = (h % side / 2 + row * side, w % side / 2 + column * side);
            for channel in 0..image.shape.c {
                let sign = sign(random);
                for (i, b) in window(place, (side, side), image, channel).zip(&bump) {
                    x[i] += (sign * b) as f32;
                }
            }
        }
    }
    Norm::L2.scale(x, &image.pixels, eps);
    Norm::L2.project(x, &image.pixels, eps);
}

/// `L2`, a step: takes the perturbation of one square away and gives its mass, and what the ball leaves
/// unused, to another one as a new bump on what was there.
fn move_mass(eps: f64, image: &Image, x: &mut [f32], share: f64, random: &mut Stream) {
    // An odd side has a middle.
    let side = (side(share, image, 3) | 1)
        .min(image.shape.h)
        .min(image.shape.w);
    let to = place(side, image, random);
    let from = place(side, image, random);
    let bump = bumps(side, random);
    let c = image.shape.c;
    let delta: Vec<f64> = x
        .iter()
        .zip(image.pixels.iter())
        .map(|(x, o)| f64::from(*x) - f64::from(*o))
        .collect();
    let used: f64 = delta.iter().map(|d| d * d).sum();
    let unused = (eps * eps - used).max(0.0);
    let mut new = delta.clone();
    for channel in 0..c {
        let target = window(to, (side, side), image, channel);
        let source = window(from, (side, side), image, channel);
        let squares = |i: usize| delta[i] * delta[i];
        let there: f64 = target.clone().map(squares).sum();
        // The two may overlap: what both cover counts once.
        let inside = |i: usize| {
            let (row, column) = (i / c / image.shape.w, i / c % image.shape.w);
            (to.0..to.0 + side).contains(&row) && (to.1..to.1 + side).contains(&column)
        };
        let outside = source.clone().filter(|&i| !inside(i));
        let elsewhere: f64 = outside.map(squares).sum();
        let sign = sign(random);
        // nu = bump * sign + delta / ||delta||, rescaled to the mass there is
        let nu: Vec<f64> = target
            .clone()
            .zip(&bump)
            .map(|(i, b)| sign * b + delta[i] / (there.sqrt() + 1e-12))
            .collect();
        let length = nu.iter().map(|v| v * v).sum::<f64>().sqrt() + 1e-12;
        let mass = (unused / c as f64 + there + elsewhere).sqrt();
        source.for_each(|i| new[i] = 0.0);
        target.zip(nu).for_each(|(i, v)| new[i] = v / length * mass);
    }
    for ((x, o), d) in x.iter_mut().zip(image.pixels.iter()).zip(new) {
        *x = (f64::from(*o) + d) as f32;
    }
    Norm::L2.scale(x, &image.pixels, eps);
    Norm::L2.project(x, &image.pixels, eps);
}

/// A bump up and one down, side by side in a square (the paper's eta), upright or lying; of length 1.
fn bumps(side: usize, random: &mut Stream) -> Vec<f64> {
    let half = side / 2;
    let mut all = bump(half, side);
    all.extend(bump(side - half, side).iter().map(|v| -v));
    if random.uniform() > 0.5 {
        all = (0..side * side)
            .map(|i| all[i % side * side + i / side])
            .collect();
    }
    let length = all.iter().map(|v| v * v).sum::<f64>().sqrt();
    all.iter_mut().for_each(|v| *v /= length);
    all
}

/// Highest in the middle: `sum_{j = d}^{n} 1 / (j + 1)^2` at `d` rows or columns from it; of length 1.
fn bump(rows: usize, columns: usize) -> Vec<f64> {
    let n = (rows / 2).max(columns / 2);
    let mut all = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            let d = row.abs_diff(rows / 2).max(column.abs_diff(columns / 2));
            let terms = (d..=n).map(|j| 1.0 / ((j + 1) as f64).powi(2));
            all.push(terms.sum::<f64>());
        }
    }
    let length = all.iter().map(|v| v * v).sum::<f64>().sqrt();
    all.iter_mut().for_each(|v| *v /= length);
    all
}

impl BlackBoxAttack for Square {
    fn name(&self) -> &'static str {
        "square"
    }

    fn keep(&self) -> Keep {
        Keep::Surest
    }

    fn check(&self, _: usize) -> Result<()> {
        Error::unless_positive("square", "eps", self.eps)?;
        Error::unless_counted("square", "queries", self.queries as usize)?;
        if !(self.p > 0.0 && self.p <= 1.0) {
            return Err(Error::argument("square", "p", "above 0, at most 1", self.p));
        }
        Ok(())
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut BlackBox) -> Running<'a> {
        Box::pin(self.attack(image, classifier))
    }
}
