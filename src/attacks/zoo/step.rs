//! How a coordinate moves.

use super::Solver;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// State of every coordinate.
pub(super) struct Steps {
    solver: Solver,
    lr: f64,
    m: Vec<f64>,
    v: Vec<f64>,
    /// Updates of each coordinate so far.
    t: Vec<i32>,
}

impl Steps {
    pub fn new(solver: Solver, lr: f64, coordinates: usize) -> Self {
        let n = match solver {
            Solver::Adam => coordinates,
            Solver::Newton => 0,
        };
        Steps {
            solver,
            lr,
            m: vec![0.0; n],
            v: vec![0.0; n],
            t: vec![0; n],
        }
    }

    /// Change of coordinate `i` of gradient `g` and curvature `g2`.
    pub fn change(&mut self, i: usize, g: f64, g2: f64) -> f64 {
        match self.solver {
            Solver::Adam => {
                // A coordinate is corrected by its own number of updates, not by the iteration's.
                self.t[i] += 1;
                let (m, v, t) = (&mut self.m[i], &mut self.v[i], self.t[i]);
                *m = BETA1 * *m + (1.0 - BETA1) * g;
                *v = BETA2 * *v + (1.0 - BETA2) * g * g;
                let m = *m / (1.0 - BETA1.powi(t));
                let v = *v / (1.0 - BETA2.powi(t));
                -self.lr * m / (v.sqrt() + EPS)
            }
            Solver::Newton => -self.lr * g / curvature(g2),
        }
    }
}

/// The curvature that Newton's step divides by: 1 where it is negative, and at least 0.1.
fn curvature(g2: f64) -> f64 {
    if g2 < 0.0 { 1.0 } else { g2.max(0.1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adam_counts_each_coordinate_by_itself() {
        let mut steps = Steps::new(Solver::Adam, 0.01, 3);
        let near = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
        };
        near(steps.change(0, 3.0, 0.0), -0.01);
        // m = 0.1 * (0.9 * 3 - 1), v = 0.001 * (0.999 * 9 + 1), corrected for two updates
        let (m, v) = (0.17 / 0.19, (0.001 * 9.991f64 / 0.001999).sqrt());
        near(steps.change(0, -1.0, 0.0), -0.01 * m / v);
        // a first update is lr g / (|g| + 1e-8), however many others were made before
        near(steps.change(1, -0.2, 0.0), 0.01);
        near(steps.change(2, 5e-3, 0.0), -0.01 * 5e-3 / (5e-3 + 1e-8));
        assert_eq!(steps.t, [2, 1, 1]);
        assert_eq!(steps.change(2, 0.0, 0.0).signum(), -1.0);
    }

    #[test]
    fn newtons_curvature_is_bounded_below() {
        let mut steps = Steps::new(Solver::Newton, 0.5, 1);
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-15);
        near(steps.change(0, 0.3, 2.0), -0.5 * 0.3 / 2.0);
        near(steps.change(0, 0.3, 0.1), -0.5 * 0.3 / 0.1);
        near(steps.change(0, 0.3, 0.05), -0.5 * 0.3 / 0.1);
        near(steps.change(0, 0.3, 0.0), -0.5 * 0.3 / 0.1);
        near(steps.change(0, -0.3, -1e-9), 0.5 * 0.3);
        near(steps.change(0, -0.3, -7.0), 0.5 * 0.3);
    }
}
