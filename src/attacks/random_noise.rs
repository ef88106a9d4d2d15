//! A control: noise that knows nothing of the network.

use super::gradient::random_in_ball;
use super::image::{Image, Norm};
use super::query::{BlackBox, Keep, OutOfQueries, Query};
use super::schedule::{BlackBoxAttack, Running};
use crate::error::{Error, Result};

/// Random points of the ball (`Linf`) or of its surface (`L2`, where nearly all of the ball is), cut off
/// at the box. An attack that finds less than this one is broken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomNoise {
    /// The ball's norm.
    pub norm: Norm,
    /// Its radius, above 0.
    pub eps: f64,
    /// Points, at least 1.
    pub tries: u32,
}

/// Points in one question.
const AT_ONCE: u32 = 64;

impl RandomNoise {
    /// 10,000 tries.
    pub fn new(norm: Norm, eps: f64) -> Self {
        RandomNoise {
            norm,
            eps,
            tries: 10_000,
        }
    }

    async fn attack(&self, image: &Image, net: &mut BlackBox) -> Result<(), OutOfQueries> {
        let mut random = image.stream(7);
        let mut left = self.tries;
        while left > 0 {
            // A budget that ends within a question still allows its first points.
            let allowed = net.queries_left().clamp(1, u64::from(AT_ONCE)) as u32;
            let now = left.min(allowed);
            left -= now;
            let mut points = Vec::new();
            for _ in 0..now {
                let mut x = image.pixels.to_vec();
                random_in_ball(self.norm, self.eps, &mut x, &mut random);
                if self.norm == Norm::L2 {
                    self.norm.scale(&mut x, &image.pixels, self.eps);
                }
                self.norm.project(&mut x, &image.pixels, self.eps);
                points.push(x);
            }
            let queries = points.iter().map(|x| Query {
                pixels: x.clone(),
                draw: net.fresh_draw(),
            });
            let queries = queries.collect();
            let scores = net.scores(queries).await?;
            for (x, scores) in points.iter().zip(scores) {
                if net.offer(x, &scores).await? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl BlackBoxAttack for RandomNoise {
    fn name(&self) -> &'static str {
        "noise"
    }

    fn keep(&self) -> Keep {
        Keep::Surest
    }

    fn check(&self, _: usize) -> Result<()> {
        Error::unless_positive("noise", "eps", self.eps)?;
        Error::unless_counted("noise", "tries", self.tries as usize)
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut BlackBox) -> Running<'a> {
        Box::pin(self.attack(image, classifier))
    }
}
