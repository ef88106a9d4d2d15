//! Functions of the scores that an attack raises.

use std::fmt;
use std::sync::Arc;

use super::image::Goal;
use crate::ops::margin::largest_other;

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

    /// Difference of logits ratio (Croce and Hein 2020), which no scale or shift of the scores changes:
    /// `(max_{k != y} z_k - z_y) / (z_(1) - z_(3))` away from `y`, its negative towards `y`; `z_(j)` is
    /// the `j`-th largest of three or more scores.
    pub fn dlr(goal: Goal) -> Self {
        Objective::new(move |z, gradient| {
            let class = goal.class() as usize;
            let other = largest_other(z, class);
            let first = largest_but(z, &[]);
            let second = largest_but(z, &[first]);
            let third = largest_but(z, &[first, second]);
            let (up, down) = match goal {
                Goal::Away(_) => (other, class),
                Goal::Towards(_) => (class, other),
            };
            ratio(z, (up, down), &[(first, 1.0), (third, -1.0)], gradient)
        })
    }

    /// Targeted difference of logits ratio (Croce and Hein 2020):
    /// `(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)` for four or more scores, with `y` the class `from`,
    /// or whichever is the largest but `t`.
    pub fn targeted_dlr(from: Option<u32>, to: u32) -> Self {
        let to = to as usize;
        Objective::new(move |z, gradient| {
            let from = from.map_or_else(|| largest_other(z, to), |class| class as usize);
            let first = largest_but(z, &[]);
            let second = largest_but(z, &[first]);
            let third = largest_but(z, &[first, second]);
            let fourth = largest_but(z, &[first, second, third]);
            let scale = [(first, 1.0), (third, -0.5), (fourth, -0.5)];
            ratio(z, (to, from), &scale, gradient)
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

/// Position of the largest score but those of `taken`, the first of equals; there is one.
fn largest_but(z: &[f32], taken: &[usize]) -> usize {
    let rest = (0..z.len()).filter(|k| !taken.contains(k));
    rest.reduce(|best, k| if z[k] > z[best] { k } else { best })
        .expect("attacks on a ratio ask for enough classes")
}

/// `r = (z_up - z_down) / s` with `s = sum_k c_k z_k` over `scale`, and
/// `dr/dz = (e_up - e_down) / s - r / s * sum_k c_k e_k`.
fn ratio(
    z: &[f32],
    (up, down): (usize, usize),
    scale: &[(usize, f64)],
    gradient: &mut [f32],
) -> f64 {
    // Where the largest scores are equal the ratio is finite all the same.
    let s = 1e-12 + scale.iter().map(|&(k, c)| c * f64::from(z[k])).sum::<f64>();
    let r = (f64::from(z[up]) - f64::from(z[down])) / s;
    gradient[up] += (1.0 / s) as f32;
    gradient[down] -= (1.0 / s) as f32;
    for &(k, c) in scale {
        gradient[k] -= (c * r / s) as f32;
    }
    r
}

impl fmt::Debug for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Objective")
    }
}
