//! HopSkipJump (Chen, Jordan and Wainwright 2020): an attack of the smallest distance that sees nothing but
//! the predicted class.
//!
//! It keeps a point on the boundary, estimates the boundary's normal from the classes of random points
//! around it, steps along it, and searches the boundary again towards the original.

use std::sync::Arc;

use super::{BlackBox, BlackBoxAttack, Image, Keep, Norm, OutOfQueries, Query, Running};
use crate::error::{Error, Result};
use crate::rng::Stream;

/// The attack's parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct HopSkipJump {
    /// Which distance is made small.
    pub norm: Norm,
    /// Steps along the boundary, at least 1.
    pub iterations: u32,
    /// Probes of the first estimate, at least 1; `sqrt(t)` times as many in iteration `t`.
    pub init_evals: u32,
    /// Most probes of an estimate, at least 1.
    pub max_evals: u32,
    /// Images of uniform noise that are tried as a start, until one meets the goal.
    pub init_trials: u32,
    /// Images to start from where no noise meets the goal (for a target, which noise seldom hits, images of
    /// other classes): `h * w * c` values each. The closest that meets it is taken.
    pub starts: Arc<[Vec<f32>]>,
    /// Points of a search looked at in one question, at least 1: 1 takes the fewest queries, more take
    /// fewer questions.
    pub points: u32,
}

/// Noise images tried in one question.
const TRIALS_AT_ONCE: u32 = 16;
/// Halvings of a step before it is given up.
const HALVINGS: u32 = 24;

/// A point that met the goal when it was looked at, and its scores then.
struct Adversarial {
    pixels: Vec<f32>,
    scores: Vec<f32>,
}

impl HopSkipJump {
    /// As published.
    pub fn published(norm: Norm) -> Self {
        HopSkipJump {
            norm,
            iterations: 40,
            init_evals: 100,
            max_evals: 10_000,
            init_trials: 1000,
            starts: Arc::new([]),
            points: 3,
        }
    }

    async fn attack(&self, image: &Image, net: &mut BlackBox) -> Result<(), OutOfQueries> {
        let original = &image.pixels[..];
        let scores = net.look(original).await?;
        if image.goal.is_met(&scores) {
            net.offer(original, &scores).await?;
            if net.closest() == Some(0.0) {
                return Ok(());
            }
        }
        let mut random = image.stream(5);
        let Some(start) = self.start(image, net, &mut random).await? else {
            return Ok(());
        };
        net.offer(&start.pixels, &start.scores).await?;
        let d = original.len() as f64;
        let mut at = self.to_boundary(image, net, start).await?;
        for t in 1..=self.iterations {
            let distance = self.norm.distance(&at.pixels, original);
            if distance == 0.0 {
                return Ok(());
            }
            // Probes as far from the boundary as the search may have left the point.
            let delta = match self.norm {
                _ if t == 1 => 0.1,
                Norm::L2 => d.sqrt() * self.precision(d) * distance,
                Norm::Linf => d * self.precision(d) * distance,
            };
            let count = f64::from(self.init_evals) * f64::from(t).sqrt();
            let count = (count as u32).min(self.max_evals);
            let normal = self
                .normal(image, net, &at.pixels, delta, count, &mut random)
                .await?;
            let first = distance / f64::from(t).sqrt();
            if let Some(next) = self.step(image, net, &at, &normal, first).await? {
                at = next;
            }
            at = self.to_boundary(image, net, at).await?;
        }
        Ok(())
    }

    /// How near the boundary a search ends, as a share of the way.
    fn precision(&self, d: f64) -> f64 {
        match self.norm {
            Norm::L2 => 1.0 / (d * d.sqrt()),
            Norm::Linf => 1.0 / (d * d),
        }
    }

    /// Looks at points under one draw, and returns the first that meets the goal.
    async fn first_success(
        &self,
        image: &Image,
        net: &mut BlackBox,
        points: Vec<Vec<f32>>,
    ) -> Result<Option<(usize, Adversarial)>, OutOfQueries> {
        let draw = net.fresh_draw();
        let query = |pixels: &Vec<f32>| Query {
            pixels: pixels.clone(),
            draw,
        };
        let answers = net.scores(points.iter().map(query).collect()).await?;
        let mut pairs = points.into_iter().zip(answers).enumerate();
        let first = pairs.find(|(_, (_, scores))| image.goal.is_met(scores));
        Ok(first.map(|(i, (pixels, scores))| (i, Adversarial { pixels, scores })))
    }

    async fn start(
        &self,
        image: &Image,
        net: &mut BlackBox,
        random: &mut Stream,
    ) -> Result<Option<Adversarial>, OutOfQueries> {
        let mut tried = 0;
        while tried < self.init_trials {
            let count = TRIALS_AT_ONCE.min(self.init_trials - tried);
            tried += count;
            let noise = (0..count)
                .map(|_| {
                    image
                        .pixels
                        .iter()
                        .map(|_| random.uniform() as f32)
                        .collect()
                })
                .collect();
            if let Some((_, start)) = self.first_success(image, net, noise).await? {
                return Ok(Some(start));
            }
        }
        let fits = self.starts.iter().filter(|s| s.len() == image.pixels.len());
        let mut starts: Vec<Vec<f32>> = fits.cloned().collect();
        starts.sort_by_key(|s| {
            // Distances are not negative, and then their bits are in their order.
            self.norm.distance(s, &image.pixels).to_bits()
        });
        Ok(self.first_success(image, net, starts).await?.map(|s| s.1))
    }

    /// Between the original (0) and a point (1): on the line in L2, the point clipped to a ball around the
    /// original in Linf.
    fn between(&self, image: &Image, point: &[f32], share: f64, distance: f64) -> Vec<f32> {
        let pairs = image.pixels.iter().zip(point);
        match self.norm {
            Norm::L2 => pairs
                .map(|(&o, &p)| (f64::from(o) + share * (f64::from(p) - f64::from(o))) as f32)
                .collect(),
            Norm::Linf => {
                let radius = share * distance;
                let within = |(&o, &p): (&f32, &f32)| {
                    let (o, p) = (f64::from(o), f64::from(p));
                    p.clamp(o - radius, o + radius) as f32
                };
                pairs.map(within).collect()
            }
        }
    }

    /// The boundary between the original and a point beyond it; what is found is offered.
    async fn to_boundary(
        &self,
        image: &Image,
        net: &mut BlackBox,
        from: Adversarial,
    ) -> Result<Adversarial, OutOfQueries> {
        let distance = self.norm.distance(&from.pixels, &image.pixels);
        let precision = self.precision(image.pixels.len() as f64);
        let (mut low, mut high) = (0.0, 1.0);
        let end = from.pixels.clone();
        let mut at = from;
        while high - low > precision {
            let part = (high - low) / f64::from(self.points + 1);
            let share = |j: u32| low + part * f64::from(j);
            let points = (1..=self.points)
                .map(|j| self.between(image, &end, share(j), distance))
                .collect();
            match self.first_success(image, net, points).await? {
                Some((i, found)) => {
                    high = share(i as u32 + 1);
                    at = found;
                }
                None => low = share(self.points),
            }
            low = low.max(high - part);
        }
        net.offer(&at.pixels, &at.scores).await?;
        Ok(at)
    }

    /// Estimate of the boundary's normal towards success, of the norm's unit length: the mean of random
    /// directions, each times the class' sign at its end less the mean sign.
    async fn normal(
        &self,
        image: &Image,
        net: &mut BlackBox,
        at: &[f32],
        delta: f64,
        count: u32,
        random: &mut Stream,
    ) -> Result<Vec<f32>, OutOfQueries> {
        let mut queries = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let direction: Vec<f64> = at
                .iter()
                .map(|_| match self.norm {
                    Norm::L2 => random.normal(),
                    Norm::Linf => 2.0 * random.uniform() - 1.0,
                })
                .collect();
            let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
            let scale = if length > 0.0 { delta / length } else { 0.0 };
            queries.push(Query {
                pixels: at
                    .iter()
                    .zip(direction)
                    .map(|(&a, d)| (f64::from(a) + scale * d).clamp(0.0, 1.0) as f32)
                    .collect(),
                // Draws of their own: together they see the boundary of the mean.
                draw: net.fresh_draw(),
            });
        }
        let answers = net.scores(queries.clone()).await?;
        let signs: Vec<f64> = answers
            .iter()
            .map(|s| if image.goal.is_met(s) { 1.0 } else { -1.0 })
            .collect();
        let mean = signs.iter().sum::<f64>() / f64::from(count);
        // Where all agree there is nothing to subtract.
        let base = if mean.abs() == 1.0 { 0.0 } else { mean };
        let mut normal = vec![0f64; at.len()];
        for (query, sign) in queries.iter().zip(signs) {
            for ((n, &p), &a) in normal.iter_mut().zip(&query.pixels).zip(at) {
                // The way really gone, box included.
                *n += (sign - base) * (f64::from(p) - f64::from(a));
            }
        }
        let most = normal.iter().fold(0.0, |most: f64, n| most.max(n.abs()));
        let scale = if most > 0.0 { 1.0 / most } else { 0.0 };
        let normal: Vec<f32> = normal.iter().map(|n| (n * scale) as f32).collect();
        Ok(self.norm.steepest(&normal))
    }

    /// The longest of `first`, `first / 2`, ... along the normal that meets the goal.
    async fn step(
        &self,
        image: &Image,
        net: &mut BlackBox,
        at: &Adversarial,
        normal: &[f32],
        first: f64,
    ) -> Result<Option<Adversarial>, OutOfQueries> {
        let mut halvings = 0;
        while halvings < HALVINGS {
            let points = (0..self.points)
                .map(|j| {
                    let step = first * (-f64::from(halvings + j)).exp2();
                    let pairs = at.pixels.iter().zip(normal);
                    let moved = |(&a, &n): (&f32, &f32)| {
                        (f64::from(a) + step * f64::from(n)).clamp(0.0, 1.0) as f32
                    };
                    pairs.map(moved).collect()
                })
                .collect();
            if let Some((_, found)) = self.first_success(image, net, points).await? {
                return Ok(Some(found));
            }
            halvings += self.points;
        }
        Ok(None)
    }
}

impl BlackBoxAttack for HopSkipJump {
    fn name(&self) -> &'static str {
        "hopskipjump"
    }

    fn keep(&self) -> Keep {
        Keep::Closest(self.norm)
    }

    fn check(&self, _: usize) -> Result<()> {
        for (arg, count) in [
            ("iterations", self.iterations),
            ("init_evals", self.init_evals),
            ("max_evals", self.max_evals),
            ("points", self.points),
        ] {
            Error::unless_counted("hopskipjump", arg, count as usize)?;
        }
        for start in &*self.starts {
            if let Some(v) = start.iter().find(|v| !(0.0..=1.0).contains(*v)) {
                let expected = "values in [0, 1]";
                return Err(Error::argument("hopskipjump", "starts", expected, v));
            }
        }
        Ok(())
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut BlackBox) -> Running<'a> {
        Box::pin(self.attack(image, classifier))
    }
}
