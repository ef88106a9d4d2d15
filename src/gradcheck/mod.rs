//! Gradient validation by directional differences in double precision.
//!
//! A backward pass claims `dx = J^T dy`. For a random `dy` and a random direction `v`,
//! `<dx, v>` has to equal the derivative of `<dy, f(x + t v)>` at `t = 0`, which a central
//! difference gives to about ten digits in f64. One direction sees every element at once: a single
//! wrong one among ten thousand shifts the result by a hundredth.
//!
//! It works for anything that can be written as two closures: an op, a block, a whole network
//! (its parameters are inputs like any other).
//!
//! ```
//! use noiseforge::gradcheck::{Check, normal};
//! use noiseforge::{Result, Shape, Tensor};
//!
//! fn map(x: &Tensor, f: impl Fn(f64) -> f64) -> Result<Tensor> {
//!     Tensor::from_vec(x.shape(), x.to_f64_vec().into_iter().map(f).collect())
//! }
//!
//! fn square(x: &Tensor) -> Result<Tensor> {
//!     map(x, |x| x * x)
//! }
//!
//! fn square_backward(x: &Tensor, dy: &Tensor, factor: f64) -> Result<Tensor> {
//!     let dx = x.to_f64_vec().into_iter().zip(dy.to_f64_vec());
//!     Tensor::from_vec(x.shape(), dx.map(|(x, dy)| factor * x * dy).collect())
//! }
//!
//! # fn main() -> Result<()> {
//! let x = normal(1, Shape::new(2, 3, 3, 4));
//! let right = Check::new("square").input("x", &x).run(
//!     |inputs| square(&inputs[0]),
//!     |inputs, dy| Ok(vec![square_backward(&inputs[0], dy, 2.0)?]),
//! )?;
//! assert!(right.passed(), "{right}");
//!
//! let wrong = Check::new("square").input("x", &x).run(
//!     |inputs| square(&inputs[0]),
//!     |inputs, dy| Ok(vec![square_backward(&inputs[0], dy, 3.0)?]),
//! )?;
//! assert!(!wrong.passed());
//! let element = wrong.worst_element.as_ref().unwrap();
//! assert!((element.analytic / element.numeric - 1.5).abs() < 1e-6);
//! # Ok(())
//! # }
//! ```
//!
//! # Kinks
//! ReLU, max pooling and hinges have points without a derivative; a difference across one means
//! nothing. Such a direction is tried again with smaller steps and then left out and counted. Kinks
//! can be declared ([`Check::kinks`]); those that are not are recognised by their jump: the
//! one-sided differences disagree, and unlike curvature the disagreement does not shrink with the
//! step. A check that had to leave out every direction of an input fails.

pub mod catalog;
mod network;
mod report;

pub use network::check_network;
pub use report::{Element, InputReport, Report};

use crate::error::{Error, Result};
use crate::tensor::{DType, Shape, Tensor};

const OP: &str = "gradcheck::run";

/// Steps tried before a direction is left out, each an eighth of the one before.
const STEPS: usize = 4;

/// Elements differentiated one by one when the worst one is looked for; more are first halved.
const ONE_BY_ONE: usize = 256;

/// From inputs to the values whose signs the kinks sit at.
type Kinks<'a> = Box<dyn Fn(&[Tensor]) -> Result<Vec<f64>> + 'a>;

/// A gradient check: what is checked, and how closely.
pub struct Check<'a> {
    name: String,
    inputs: Vec<(String, Tensor)>,
    kinks: Option<Kinks<'a>>,
    directions: usize,
    step: f64,
    tolerance: f64,
    ops: usize,
    seed: u64,
}

impl<'a> Check<'a> {
    /// A check without inputs yet: 8 directions, step 1e-6, tolerance 1e-6, seed 0.
    pub fn new(name: impl Into<String>) -> Self {
        Check {
            name: name.into(),
            inputs: Vec::new(),
            kinks: None,
            directions: 8,
            step: 1e-6,
            tolerance: 1e-6,
            ops: 1,
            seed: 0,
        }
    }

    /// Adds an input: the point to differentiate at. Converted to f64.
    pub fn input(mut self, name: impl Into<String>, value: &Tensor) -> Self {
        let value = Tensor::from_vec(value.shape(), value.to_f64_vec());
        let value = value.expect("as many elements as before");
        self.inputs.push((name.into(), value));
        self
    }

    /// Declares kinks: `f` maps the inputs to values that are 0 at a kink and change sign across
    /// it (for ReLU the input itself). A step along which one changes sign is not compared.
    pub fn kinks(mut self, f: impl Fn(&[Tensor]) -> Result<Vec<f64>> + 'a) -> Self {
        self.kinks = Some(Box::new(f));
        self
    }

    /// Random directions per input; at least 1.
    pub fn directions(mut self, directions: usize) -> Self {
        self.directions = directions;
        self
    }

    /// Step of the differences, in the unit of the inputs; directions have unit variance.
    pub fn step(mut self, step: f64) -> Self {
        self.step = step;
        self
    }

    /// Largest relative error that passes: of `|<dx, v> - difference|` to the largest of the
    /// two numbers, `|dx|` and what rounding alone can make of a gradient that is 0.
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// How many ops stand one after another in the function, 1 unless said: their roundings, independent
    /// of each other, add up to the square root of as many.
    pub fn ops(mut self, ops: usize) -> Self {
        self.ops = ops;
        self
    }

    /// Seed of the random directions.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Compares `backward` with differences of `forward`.
    ///
    /// `forward` takes the inputs in the order they were added and returns the output;
    /// `backward` takes the inputs and the output's gradient and returns one gradient per input.
    /// All are f64. Both have to be functions: the same inputs give the same result.
    ///
    /// Errors: no inputs or an empty one; no directions; a step or tolerance not above 0; a
    /// closure's error; results of another number, shape or dtype. A wrong gradient is no error
    /// but a report that did not pass.
    pub fn run(
        self,
        mut forward: impl FnMut(&[Tensor]) -> Result<Tensor>,
        mut backward: impl FnMut(&[Tensor], &Tensor) -> Result<Vec<Tensor>>,
    ) -> Result<Report> {
        self.check_settings()?;
        let mut random = Random::new(self.seed);
        let (names, inputs): (Vec<_>, Vec<_>) = self.inputs.iter().cloned().unzip();
        let y = forward(&inputs)?;
        if y.dtype() != DType::F64 || y.shape().is_empty() {
            let found = format!("{} {}", y.shape(), y.dtype());
            return Err(Error::argument(OP, "forward", "an f64 output", found));
        }
        let kinks = self.kinks.as_ref().map(|f| f(&inputs)).transpose()?;
        let mut differences = Differences {
            check: &self,
            forward: &mut forward,
            y: y.to_f64_vec(),
            y_shape: y.shape(),
            kinks,
            inputs: inputs.clone(),
        };
        let mut reports: Vec<InputReport> = names
            .iter()
            .zip(&inputs)
            .map(|(name, input)| InputReport::new(name, input.shape()))
            .collect();
        // The input, dy and gradient of the worst comparison so far.
        let mut worst: Option<(f64, usize, Vec<f64>, Vec<f64>)> = None;
        for _ in 0..self.directions {
            let dy = random.normals(y.shape().len());
            let dy_tensor = Tensor::from_vec(y.shape(), dy.clone())?;
            let grads = self.check_grads(backward(&inputs, &dy_tensor)?)?;
            for (i, grad) in grads.iter().enumerate() {
                let v = random.normals(grad.len());
                reports[i].directions += 1;
                let Some(comparison) = differences.compare(i, grad, &dy, &v)? else {
                    reports[i].skipped += 1;
                    continue;
                };
                let error = comparison.relative_error();
                reports[i].worst_error = larger(reports[i].worst_error, error);
                if worst.as_ref().is_none_or(|w| exceeds(error, w.0)) {
                    worst = Some((error, i, dy.clone(), grad.clone()));
                }
            }
        }
        let mut report = Report {
            name: self.name.clone(),
            tolerance: self.tolerance,
            inputs: reports,
            worst_element: None,
        };
        if let Some((error, i, dy, grad)) = worst
            && exceeds(error, self.tolerance)
        {
            let found = differences.worst_element(i, &grad, &dy, &mut random)?;
            report.worst_element = found.map(|(at, analytic, numeric)| Element {
                input: names[i].clone(),
                index: index(inputs[i].shape(), at),
                analytic,
                numeric,
            });
        }
        Ok(report)
    }

    fn check_settings(&self) -> Result<()> {
        if self.inputs.is_empty() {
            return Err(Error::argument(OP, "input", "at least one input", "none"));
        }
        if let Some((name, x)) = self.inputs.iter().find(|(_, x)| x.shape().is_empty()) {
            let found = format!("{name} {}", x.shape());
            return Err(Error::argument(OP, "input", "at least one element", found));
        }
        if self.directions == 0 {
            return Err(Error::argument(OP, "directions", "at least 1", 0));
        }
        for (arg, value) in [("step", self.step), ("tolerance", self.tolerance)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::argument(OP, arg, "a finite number above 0", value));
            }
        }
        Ok(())
    }

    fn check_grads(&self, grads: Vec<Tensor>) -> Result<Vec<Vec<f64>>> {
        if grads.len() != self.inputs.len() {
            let expected = format!("{} gradients, one per input", self.inputs.len());
            return Err(Error::argument(OP, "backward", expected, grads.len()));
        }
        for (grad, (name, x)) in grads.iter().zip(&self.inputs) {
            if grad.shape() != x.shape() || grad.dtype() != DType::F64 {
                let expected = format!("{} f64 for {name}", x.shape());
                let found = format!("{} {}", grad.shape(), grad.dtype());
                return Err(Error::argument(OP, "backward", expected, found));
            }
        }
        Ok(grads.iter().map(Tensor::to_f64_vec).collect())
    }
}

/// Whether error `a` is worse than `b`; a NaN is the worst.
fn exceeds(a: f64, b: f64) -> bool {
    !b.is_nan() && (a.is_nan() || a > b)
}

/// The worse of two errors.
fn larger(a: f64, b: f64) -> f64 {
    if exceeds(b, a) { b } else { a }
}

/// Products with a direction; where that is 0 they are too, even of a NaN.
fn products<'v>(a: &'v [f64], v: &'v [f64]) -> impl Iterator<Item = f64> + 'v {
    a.iter()
        .zip(v)
        .map(|(a, v)| if *v == 0.0 { 0.0 } else { a * v })
}

/// `[n, h, w, c]` of a position in a tensor.
fn index(shape: Shape, at: usize) -> [usize; 4] {
    let (pixel, c) = (at / shape.c, at % shape.c);
    let (line, w) = (pixel / shape.w, pixel % shape.w);
    [line / shape.h, line % shape.h, w, c]
}

/// Both sides of one comparison.
struct Comparison {
    analytic: f64,
    numeric: f64,
    /// What an error is relative to besides the two numbers.
    scale: f64,
}

impl Comparison {
    fn error(&self) -> f64 {
        (self.analytic - self.numeric).abs()
    }

    fn relative_error(&self) -> f64 {
        match self.error() {
            0.0 => 0.0,
            error => error / self.scale.max(self.analytic.abs()).max(self.numeric.abs()),
        }
    }
}

/// Differences of `<dy, forward>` around one point.
struct Differences<'c> {
    check: &'c Check<'c>,
    forward: &'c mut dyn FnMut(&[Tensor]) -> Result<Tensor>,
    y: Vec<f64>,
    y_shape: Shape,
    kinks: Option<Vec<f64>>,
    inputs: Vec<Tensor>,
}

/// One-sided and central differences of one step.
struct Sides {
    central: f64,
    jump: f64,
}

impl Differences<'_> {
    /// Output with input `i` moved by `t v`, and whether a declared kink lies between.
    fn at(&mut self, i: usize, v: &[f64], t: f64) -> Result<(Vec<f64>, bool)> {
        let x = self.inputs[i].clone();
        let moved = x
            .to_f64_vec()
            .iter()
            .zip(v)
            .map(|(x, v)| x + t * v)
            .collect();
        self.inputs[i] = Tensor::from_vec(x.shape(), moved)?;
        let y = (self.forward)(&self.inputs);
        let kinks = self.check.kinks.as_ref().map(|f| f(&self.inputs));
        self.inputs[i] = x;
        let y = y?;
        y.expect(OP, "forward", self.y_shape, DType::F64)?;
        let sign = |v: f64| (v > 0.0) as i8 - (v < 0.0) as i8;
        let crossed = match (&self.kinks, kinks.transpose()?) {
            (Some(before), Some(after)) => {
                before.len() != after.len()
                    || before.iter().zip(&after).any(|(&a, &b)| sign(a) != sign(b))
            }
            _ => false,
        };
        Ok((y.to_f64_vec(), crossed))
    }

    /// Differences of step `h`; none where a declared kink lies between.
    fn sides(&mut self, i: usize, dy: &[f64], v: &[f64], h: f64) -> Result<Option<Sides>> {
        let (right, crossed_right) = self.at(i, v, h)?;
        let (left, crossed_left) = self.at(i, v, -h)?;
        if crossed_right || crossed_left {
            return Ok(None);
        }
        // Subtracted before they are summed: what does not move cancels exactly.
        let (mut central, mut jump) = (0.0, 0.0);
        for (((dy, y), right), left) in dy.iter().zip(&self.y).zip(&right).zip(&left) {
            central += dy * (right - left);
            jump += dy * ((right - y) - (y - left));
        }
        Ok(Some(Sides {
            central: central / (2.0 * h),
            jump: jump.abs() / h,
        }))
    }

    /// Compares along `v`; none if every step crosses a kink.
    fn compare(
        &mut self,
        i: usize,
        grad: &[f64],
        dy: &[f64],
        v: &[f64],
    ) -> Result<Option<Comparison>> {
        let analytic = products(grad, v).sum();
        // Root mean square of <dx, v> over directions like v.
        let scale = products(grad, v).map(|p| p * p).sum::<f64>().sqrt();
        let terms = products(&self.y, dy).map(|p| p * p);
        let ops = (self.check.ops as f64).sqrt();
        let rounding = 16.0 * f64::EPSILON * ops * terms.sum::<f64>().sqrt();
        let tolerance = self.check.tolerance;
        let mut h = self.check.step;
        for _ in 0..STEPS {
            let comparison = |numeric: f64| Comparison {
                analytic,
                numeric,
                // Where the gradient is exactly 0 the difference still carries rounding.
                scale: scale.max(rounding / h / tolerance),
            };
            if let Some(sides) = self.sides(i, dy, v, h)? {
                let size = scale.max(sides.central.abs());
                // With a kink inside the step the central difference is off by at most half the
                // jump of the one-sided ones, so a small jump decides; so does a NaN.
                if sides.jump.is_nan() || sides.jump <= tolerance * size + 2.0 * rounding / h {
                    return Ok(Some(comparison(sides.central)));
                }
                // Curvature halves the jump with the step and leaves the central difference; a
                // kink does one or the other.
                if let Some(half) = self.sides(i, dy, v, h / 2.0)? {
                    let moved = (sides.central - half.central).abs();
                    let still = moved <= 0.25 * tolerance * size + 2.0 * rounding / h;
                    if still && half.jump <= 0.75 * sides.jump {
                        return Ok(Some(comparison(sides.central)));
                    }
                }
            }
            h /= 8.0;
        }
        Ok(None)
    }

    /// Position, analytic and numeric derivative of the element of input `i` with the largest
    /// discrepancy: halves a large input along the larger discrepancy, then takes every element.
    fn worst_element(
        &mut self,
        i: usize,
        grad: &[f64],
        dy: &[f64],
        random: &mut Random,
    ) -> Result<Option<(usize, f64, f64)>> {
        let (mut start, mut end) = (0, grad.len());
        while end - start > ONE_BY_ONE {
            let middle = start + (end - start) / 2;
            let mut discrepancy = |from: usize, to: usize| -> Result<f64> {
                let mut v = vec![0.0; grad.len()];
                v[from..to].copy_from_slice(&random.normals(to - from));
                let found = self.compare(i, grad, dy, &v)?;
                Ok(found.map_or(0.0, |c| c.error()))
            };
            let left = discrepancy(start, middle)?;
            if exceeds(discrepancy(middle, end)?, left) {
                start = middle;
            } else {
                end = middle;
            }
        }
        let mut worst: Option<(usize, Comparison)> = None;
        for at in start..end {
            let mut v = vec![0.0; grad.len()];
            v[at] = 1.0;
            if let Some(found) = self.compare(i, grad, dy, &v)?
                && worst
                    .as_ref()
                    .is_none_or(|(_, w)| exceeds(found.error(), w.error()))
            {
                worst = Some((at, found));
            }
        }
        Ok(worst.map(|(at, found)| (at, found.analytic, found.numeric)))
    }
}

/// A standard normal f64 tensor, a function of the seed: a point to check at.
pub fn normal(seed: u64, shape: Shape) -> Tensor {
    let data = Random::new(seed).normals(shape.len());
    Tensor::from_vec(shape, data).expect("as many values as the shape has")
}

/// SplitMix64 (Steele, Lea and Flood 2014) and Box-Muller: good enough for directions, and no
/// part of the noise streams that are checked.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// Uniform in (0, 1).
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((z >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn normals(&mut self, len: usize) -> Vec<f64> {
        let one = |_| {
            let radius = (-2.0 * self.uniform().ln()).sqrt();
            radius * (2.0 * std::f64::consts::PI * self.uniform()).cos()
        };
        (0..len).map(one).collect()
    }
}
