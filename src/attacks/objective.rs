//! Functions of the scores that an attack raises.

use std::fmt;
use std::sync::Arc;

use super::image::{Goal, largest_other};

/// Value and gradient in the scores (written to the second argument, which starts at 0).
type Function = dyn Fn(&[f32], &mut [f32]) -> f64 + Send + Sync;

/// A function of one row of scores that an attack wants large.
#[derive(Clone)]
pub struct Objective(Arc<Function>);

impl Objective {
    /// Any function: it returns the value and writes the gradient, which starts at 0.
    pub fn new(function: impl Fn(&[f32], &mut [f32]) -> f64 + Send + Sync + 'static) -> Self {
        Objective(Arc::new(function))
    }

    /// Value; the gradient overwrites `gradient`.
    pub fn evaluate(&self, scores: &[f32], gradient: &mut [f32]) -> f64 {
        gradient.fill(0.0);
        (self.0)(scores, gradient)
    }

    /// Cross-entropy: `-log p_y` away from `y`, `log p_t` towards `t`.
    pub fn cross_entropy(goal: Goal) -> Self {
        Objective::new(move |z, gradient| {
            let class = goal.class() as usize;
            let sign = match goal {
                Goal::Away(_) => -1.0,
                Goal::Towards(_) => 1.0,
            };
            let most = f64::from(z.iter().fold(f32::NEG_INFINITY, |m, &z| m.max(z)));
            let sum: f64 = z.iter().map(|&z| (f64::from(z) - most).exp()).sum();
            let log_sum = most + sum.ln();
            // d log p_k / d z_j = [j = k] - p_j
            for (j, (g, &z)) in gradient.iter_mut().zip(z).enumerate() {
                let p = (f64::from(z) - log_sum).exp();
                let one = if j == class { 1.0 } else { 0.0 };
                *g = (sign * (one - p)) as f32;
            }
            sign * (f64::from(z[class]) - log_sum)
        })
    }

    /// The goal's margin ([`Goal::margin`]).
    pub fn margin(goal: Goal) -> Self {
        Objective::new(move |z, gradient| {
            let class = goal.class() as usize;
            let other = largest_other(z, class);
            let sign = match goal {
                Goal::Away(_) => -1.0,
                Goal::Towards(_) => 1.0,
            };
            gradient[class] = sign;
            gradient[other] = -sign;
            f64::from(sign) * (f64::from(z[class]) - f64::from(z[other]))
        })
    }

    /// `z_a - z_b`.
    pub fn difference(a: u32, b: u32) -> Self {
        let (a, b) = (a as usize, b as usize);
        Objective::new(move |z, gradient| {
            gradient[a] += 1.0;
            gradient[b] -= 1.0;
            f64::from(z[a]) - f64::from(z[b])
        })
    }
}

impl fmt::Debug for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Objective")
    }
}
