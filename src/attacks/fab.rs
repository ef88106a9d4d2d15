//! FAB: the closest adversarial image, by projections on linearised boundaries.

use super::gradient::random_in_ball;
use super::image::{Goal, Image, Norm, ranked_others};
use super::objective::Objective;
use super::query::{Keep, OutOfQueries, Query, WhiteBox};
use super::schedule::{Running, WhiteBoxAttack};
use crate::error::{Error, Result};

/// Fast adaptive boundary attack (Croce and Hein 2020, "Minimally distorted adversarial examples with a
/// fast adaptive boundary attack").
///
/// A step projects the point `x` and the original `o` on the boundary to one class as it would be if the
/// network were linear, cut off at the box, and goes to `(1 - a) (x + eta d_x) + a (o + eta d_o)`. From
/// an adversarial image it goes back a part of the way to the original.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fab {
    /// What it is called.
    pub name: &'static str,
    /// Of the distance.
    pub norm: Norm,
    /// Looks for the boundary to each of so many wrong classes, the most likely ones, all at once, at one
    /// gradient a step each; where there is none, for the closest boundary, at a gradient for every wrong
    /// class a step. In an attack towards a class its boundary is the only one.
    pub targets: Option<u32>,
    /// Only images within this distance count, and the first that counts ends the attack; otherwise it
    /// looks for the closest one.
    pub bound: Option<f64>,
    /// Steps of each start, at least 1.
    pub steps: u32,
    /// Starts, at least 1: the first one at the original, others beside it.
    pub restarts: u32,
    /// Largest share `a` of the original's projection, between 0 and 1.
    pub alpha_max: f64,
    /// How far to go beyond a projection, at least 1.
    pub eta: f64,
    /// Share of the distance that is left after the way back, above 0 and below 1.
    pub beta: f64,
    /// Queries of the last search between the original and what was found.
    pub final_search: u32,
}

/// How far the last search goes beyond where it expects the boundary, in distances of the image found:
/// rounding shall not decide.
const BEYOND: f64 = 1e-3;

impl Fab {
    /// To the closest boundary: 100 steps from the original, `alpha_max` 0.1, `eta` 1.05, `beta` 0.9.
    pub fn untargeted(norm: Norm) -> Self {
        Fab {
            name: "fab",
            norm,
            targets: None,
            bound: None,
            steps: 100,
            restarts: 1,
            alpha_max: 0.1,
            eta: 1.05,
            beta: 0.9,
            final_search: 3,
        }
    }

    /// To the boundaries of the 9 most likely wrong classes.
    pub fn targeted(norm: Norm) -> Self {
        Fab {
            name: "fab-t",
            targets: Some(9),
            ..Fab::untargeted(norm)
        }
    }

    /// As an attack within a bound, above 0.
    pub fn within(self, eps: f64) -> Self {
        Fab {
            bound: Some(eps),
            ..self
        }
    }

    async fn attack(&self, image: &Image, net: &mut WhiteBox) -> Result<(), OutOfQueries> {
        let original = &image.pixels;
        let scores = net.look(original).await?;
        let sure = net.offer(original, &scores).await?;
        if sure || net.success() == Some(original) {
            return Ok(());
        }
        let margin = image.goal.margin(&scores);
        let mut walks: Vec<Walk> = match (image.goal, self.targets) {
            (Goal::Towards(_), _) => vec![Walk::new(vec![Objective::margin(image.goal)])],
            (Goal::Away(label), None) => {
                let others = ranked_others(&scores, label);
                let all = others.map(|k| Objective::difference(k, label)).collect();
                vec![Walk::new(all)]
            }
            (Goal::Away(label), Some(targets)) => ranked_others(&scores, label)
                .take(targets as usize)
                .map(|k| Walk::new(vec![Objective::difference(k, label)]))
                .collect(),
        };
        let mut random = image.stream(3);
        for start in 0..self.restarts {
            for walk in &mut walks {
                walk.x = original.to_vec();
                if start > 0 {
                    let found = walk.best.as_ref().map(|best| best.distance);
                    let radius = [found, self.bound].into_iter().flatten();
                    let radius = radius.fold(self.norm_of_a_start(), f64::min);
                    random_in_ball(self.norm, radius / 2.0, &mut walk.x, &mut random);
                    self.norm.project(&mut walk.x, original, radius);
                }
            }
            for _ in 0..self.steps {
                if self.step(image, net, &mut walks).await? {
                    return Ok(());
                }
            }
        }
        self.search(image, net, &mut walks, margin).await?;
        Ok(())
    }

    /// Where starts lie as long as nothing was found.
    fn norm_of_a_start(&self) -> f64 {
        match self.norm {
            Norm::L2 => 1.0,
            Norm::Linf => 0.3,
        }
    }

    /// A step of every walk; true at a success that ends the attack.
    async fn step(
        &self,
        image: &Image,
        net: &mut WhiteBox,
        walks: &mut [Walk],
    ) -> Result<bool, OutOfQueries> {
        let mut queries = Vec::new();
        for walk in walks.iter() {
            let draw = net.fresh_draw();
            for objective in &walk.boundaries {
                let pixels = walk.x.clone();
                queries.push((Query { pixels, draw }, objective.clone()));
            }
        }
        let mut slopes = net.slopes(queries).await?.into_iter();
        for walk in walks.iter_mut() {
            let slopes = slopes.by_ref().take(walk.boundaries.len());
            // The closest boundary of a linear network is at |f| / ||g||_q, q the dual norm.
            let distance =
                |value: f64, gradient: &[f32]| value.abs() / (1e-12 + self.dual_length(gradient));
            let closest = slopes
                .map(|s| (distance(s.value, &s.gradient), s))
                .min_by(|(a, _), (b, _)| a.total_cmp(b));
            let (_, slope) = closest.expect("a walk has a boundary");
            walk.x = self.next(image, &walk.x, slope.value, &slope.gradient);
        }
        let queries = walks.iter().map(|walk| Query {
            pixels: walk.x.clone(),
            draw: net.fresh_draw(),
        });
        let queries = queries.collect();
        let scores = net.scores(queries).await?;
        for (walk, scores) in walks.iter_mut().zip(scores) {
            if !image.goal.is_met(&scores) {
                continue;
            }
            if self.found(image, net, walk, &scores).await? {
                return Ok(true);
            }
            let beta = self.beta as f32;
            for (x, o) in walk.x.iter_mut().zip(image.pixels.iter()) {
                *x = o + beta * (*x - o);
            }
        }
        Ok(false)
    }

    /// Remembers an adversarial image and offers it; true if it ends the attack.
    async fn found(
        &self,
        image: &Image,
        net: &mut WhiteBox,
        walk: &mut Walk,
        scores: &[f32],
    ) -> Result<bool, OutOfQueries> {
        let distance = self.norm.distance(&walk.x, &image.pixels);
        if walk
            .best
            .as_ref()
            .is_none_or(|best| distance < best.distance)
        {
            walk.best = Some(Best {
                x: walk.x.clone(),
                distance,
                margin: image.goal.margin(scores),
            });
        }
        match self.bound {
            None => net.offer(&walk.x, scores).await.map(|_| false),
            Some(bound) if distance <= bound => net.offer(&walk.x, scores).await,
            Some(_) => Ok(false),
        }
    }

    /// `(1 - a) (x + eta d_x) + a (o + eta d_o)`, where the boundary's function is `value` at `x`.
    fn next(&self, image: &Image, x: &[f32], value: f64, gradient: &[f32]) -> Vec<f32> {
        let original = &image.pixels;
        // f(o) = f(x) + g (o - x) in the linear network
        let way = original.iter().zip(x).zip(gradient);
        let change: f64 = way
            .map(|((o, x), g)| (f64::from(*o) - f64::from(*x)) * f64::from(*g))
            .sum();
        let from_x = to_boundary(x, value, gradient, self.norm);
        let from_o = to_boundary(original, value + change, gradient, self.norm);
        let length = |d: &[f32]| self.norm.distance(d, &vec![0.0; d.len()]).max(1e-8);
        let (near, far) = (length(&from_x), length(&from_o));
        // a = min(||d_x|| / (||d_x|| + ||d_o||), alpha_max)
        let a = (near / (near + far)).min(self.alpha_max) as f32;
        let eta = self.eta as f32;
        let both = x.iter().zip(&from_x).zip(original.iter().zip(&from_o));
        both.map(|((x, dx), (o, d))| (1.0 - a) * (x + eta * dx) + a * (o + eta * d))
            .map(|x| x.clamp(0.0, 1.0))
            .collect()
    }

    fn dual_length(&self, gradient: &[f32]) -> f64 {
        let g = gradient.iter().map(|&g| f64::from(g));
        match self.norm {
            Norm::L2 => g.map(|g| g * g).sum::<f64>().sqrt(),
            Norm::Linf => g.map(f64::abs).sum(),
        }
    }

    /// Between the original (its margin below 0) and the best image of every walk, by the secant of the
    /// margin.
    async fn search(
        &self,
        image: &Image,
        net: &mut WhiteBox,
        walks: &mut [Walk],
        margin: f64,
    ) -> Result<(), OutOfQueries> {
        let mut walks: Vec<&mut Walk> = walks.iter_mut().filter(|w| w.best.is_some()).collect();
        // Margin at the closer end of each.
        let mut near = vec![(0.0, margin); walks.len()];
        for _ in 0..self.final_search {
            let mut shares = Vec::new();
            for (walk, &(at, margin)) in walks.iter_mut().zip(&near) {
                let best = walk.best.as_ref().expect("only walks that found one");
                // Zero of the line through (at, margin) and (1, best.margin).
                let zero = margin / (margin - best.margin).min(-1e-30);
                let share = (at + (1.0 - at) * zero + BEYOND).clamp(0.0, 1.0);
                walk.x = image
                    .pixels
                    .iter()
                    .zip(&best.x)
                    .map(|(&o, &x)| o + share as f32 * (x - o))
                    .collect();
                shares.push(share);
            }
            let queries = walks.iter().map(|walk| Query {
                pixels: walk.x.clone(),
                draw: net.fresh_draw(),
            });
            let queries = queries.collect();
            let scores = net.scores(queries).await?;
            for (((walk, near), share), scores) in
                walks.iter_mut().zip(&mut near).zip(shares).zip(scores)
            {
                if image.goal.is_met(&scores) {
                    // The closer end's share, of what is the whole now.
                    near.0 /= share.max(1e-12);
                    if self.found(image, net, walk, &scores).await? {
                        return Ok(());
                    }
                } else {
                    *near = (share, image.goal.margin(&scores));
                }
            }
        }
        Ok(())
    }
}

/// The way of one start to one boundary, or to the closest of several.
struct Walk {
    /// Functions that are 0 on a boundary.
    boundaries: Vec<Objective>,
    x: Vec<f32>,
    /// The closest adversarial image on the way.
    best: Option<Best>,
}

struct Best {
    x: Vec<f32>,
    distance: f64,
    margin: f64,
}

impl Walk {
    fn new(boundaries: Vec<Objective>) -> Self {
        Walk {
            boundaries,
            x: Vec::new(),
            best: None,
        }
    }
}

/// The smallest `d` with `value + g d = 0` and `0 <= x + d <= 1`; where there is none, the one that comes
/// closest.
///
/// `d_i = s_i min(t r_i, room_i)` with `s_i` the sign that leads to the boundary, `r_i` = `|g_i|` in L2 and
/// 1 in `Linf`. What it gains, `sum_i |g_i| min(t r_i, room_i)`, is concave in `t`: Newton's steps from 0
/// never go beyond the solution, and reach it after finitely many.
pub fn to_boundary(x: &[f32], value: f64, gradient: &[f32], norm: Norm) -> Vec<f32> {
    let towards = if value > 0.0 { -1.0 } else { 1.0 };
    let rooms = x.iter().zip(gradient).map(|(&x, &g)| {
        let (x, rate) = (f64::from(x), f64::from(g).abs());
        let room = if f64::from(g) * towards > 0.0 {
            1.0 - x
        } else {
            x
        };
        let speed = match norm {
            Norm::L2 => rate,
            Norm::Linf if rate == 0.0 => 0.0,
            Norm::Linf => 1.0,
        };
        (rate, speed, room)
    });
    let mut t = 0f64;
    // Each step but the last puts another value on the box; in practice a few steps are enough.
    for _ in 0..64 {
        let (mut gained, mut slope) = (0.0, 0.0);
        for (rate, speed, room) in rooms.clone() {
            if t * speed < room {
                gained += rate * t * speed;
                slope += rate * speed;
            } else {
                gained += rate * room;
            }
        }
        let missing = value.abs() - gained;
        if slope == 0.0 || missing <= 1e-12 * value.abs() {
            break;
        }
        t += missing / slope;
    }
    rooms
        .zip(gradient)
        .map(|((_, speed, room), &g)| {
            let sign = towards * if g < 0.0 { -1.0 } else { 1.0 };
            (sign * (t * speed).min(room)) as f32
        })
        .collect()
}

impl WhiteBoxAttack for Fab {
    fn name(&self) -> &'static str {
        self.name
    }

    fn keep(&self) -> Keep {
        match self.bound {
            Some(_) => Keep::Surest,
            None => Keep::Closest(self.norm),
        }
    }

    fn check(&self, _: usize) -> Result<()> {
        let op = self.name;
        if let Some(bound) = self.bound {
            Error::unless_positive(op, "bound", bound)?;
        }
        Error::unless_counted(op, "steps", self.steps as usize)?;
        Error::unless_counted(op, "restarts", self.restarts as usize)?;
        Error::unless_counted(op, "targets", self.targets.unwrap_or(1) as usize)?;
        for (arg, fits, expected, found) in [
            (
                "alpha_max",
                (0.0..=1.0).contains(&self.alpha_max),
                "0 to 1",
                self.alpha_max,
            ),
            (
                "eta",
                self.eta >= 1.0 && self.eta.is_finite(),
                "at least 1",
                self.eta,
            ),
            (
                "beta",
                self.beta > 0.0 && self.beta < 1.0,
                "between 0 and 1",
                self.beta,
            ),
        ] {
            if !fits {
                return Err(Error::argument(op, arg, expected, found));
            }
        }
        Ok(())
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut WhiteBox) -> Running<'a> {
        Box::pin(self.attack(image, classifier))
    }
}
