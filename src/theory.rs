//! What the RSE paper's section 3.3 says of noise, measured on a network: the loss of the mean prediction against
//! the mean loss (its inequality 5), the loss that noise on the image adds against the curvature of the loss
//! (its equation 7), and how steep the loss is around images.
//!
//! Everything is stated for the cross-entropy `l(x) = -ln p(x)[y]`, in nats.

use crate::ensemble::{Classifier, Differentiable};
use crate::error::{Error, Result};
use crate::ops::loss::cross_entropy;
use crate::ops::noise::{Row, Rows};
use crate::rng::Stream;
use crate::tensor::Tensor;

/// Tag of the streams of probes and points.
const TAG: u32 = 0x310;
/// Rows in one pass.
const ROWS: usize = 256;

/// A mean over images, and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error over the images; 0 for one image.
    pub error: f64,
}

impl Estimate {
    /// Of at least one value.
    fn of(values: &[f64]) -> Self {
        let (n, mean) = (values.len() as f64, mean(values));
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Estimate {
            mean,
            error: (squares / (n * (n - 1.0).max(1.0))).sqrt(),
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The three sides of inequality 5, each at least the next.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Losses {
    /// `E_x E_e [-ln p_e(x)[y]]`: the loss that training lowers.
    pub expected: Estimate,
    /// `E_x [-ln E_e p_e(x)[y]]`: the loss of the ensemble.
    pub ensemble: Estimate,
    /// `E_x [-ln max_k E_e p_e(x)[k]]`: the loss at the class that the ensemble predicts.
    pub predicted: Estimate,
}

/// Images and their labels: `x` `[n, h, w, c]`, f32 on the CPU.
#[derive(Clone, Copy)]
pub struct Images<'a> {
    /// The images.
    pub x: &'a Tensor,
    /// Their classes.
    pub labels: &'a [u32],
}

impl Images<'_> {
    /// Of each image's value, from its position, pixels and label.
    fn estimate(
        self,
        mut value: impl FnMut(usize, &[f32], u32) -> Result<f64>,
    ) -> Result<Estimate> {
        let each = self.labels.iter().enumerate();
        let values = each.map(|(i, &label)| value(i, self.x.row(i), label));
        Ok(Estimate::of(&values.collect::<Result<Vec<_>>>()?))
    }

    fn check(self, op: &'static str, classes: usize) -> Result<()> {
        let n = self.x.shape().n;
        if n == 0 || self.labels.len() != n {
            let expected = format!("{} labels, at least 1", n);
            return Err(Error::argument(op, "labels", expected, self.labels.len()));
        }
        match self.labels.iter().find(|&&label| label as usize >= classes) {
            None => Ok(()),
            Some(label) => {
                let expected = format!("classes below {classes}");
                Err(Error::argument(op, "labels", expected, label))
            }
        }
    }
}

/// Inequality 5 by `draws` draws of a random classifier.
///
/// Errors: no image, no draw; a label that is no class; what the classifier says.
pub fn losses(net: &mut dyn Classifier, images: Images<'_>, draws: u32) -> Result<Losses> {
    const OP: &str = "theory::losses";
    images.check(OP, net.classes())?;
    Error::unless_counted(OP, "draws", draws as usize)?;
    let (mut expected, mut ensemble, mut predicted) = (Vec::new(), Vec::new(), Vec::new());
    for (i, &label) in images.labels.iter().enumerate() {
        let mut sums = vec![0f64; net.classes()];
        let mut losses = 0.0;
        let all: Vec<u32> = (0..draws).collect();
        for some in all.chunks(ROWS) {
            let x = images
                .x
                .gather_rows(&vec![i; some.len()])?
                .to(&net.device())?;
            let id = i as u32;
            let rows: Rows = some.iter().map(|&draw| Row { id, draw }).collect();
            let z = net.logits(&x, &rows)?.to_cpu()?;
            for z in z.data::<f32>().chunks(sums.len()) {
                let most = z.iter().fold(f32::NEG_INFINITY, |m, &z| m.max(z));
                let powers: Vec<f64> = z.iter().map(|&z| f64::from(z - most).exp()).collect();
                let total: f64 = powers.iter().sum();
                losses += total.ln() - f64::from(z[label as usize] - most);
                sums.iter_mut()
                    .zip(&powers)
                    .for_each(|(s, p)| *s += p / total);
            }
        }
        let n = f64::from(draws);
        let largest = sums.iter().fold(0f64, |m, &s| m.max(s));
        expected.push(losses / n);
        ensemble.push(-(sums[label as usize] / n).ln());
        predicted.push(-(largest / n).ln());
    }
    Ok(Losses {
        expected: Estimate::of(&expected),
        ensemble: Estimate::of(&ensemble),
        predicted: Estimate::of(&predicted),
    })
}

/// Loss and its gradient at points near images: the point's pixels, its image's label.
fn slopes(
    net: &mut dyn Differentiable,
    like: &Tensor,
    points: &[(Vec<f32>, u32)],
) -> Result<Vec<(f64, Vec<f32>)>> {
    let mut found = Vec::with_capacity(points.len());
    for some in points.chunks(ROWS) {
        let pixels = some.iter().flat_map(|(pixels, _)| pixels.iter().copied());
        let x = Tensor::from_vec(like.shape().with_n(some.len()), pixels.collect())?;
        let labels: Vec<u32> = some.iter().map(|(_, label)| *label).collect();
        let rows: Rows = (0..some.len() as u32)
            .map(|id| Row { id, draw: 0 })
            .collect();
        let mut losses = Vec::new();
        let device = net.device();
        let (_, dx) = net.input_grad(&x.to(&device)?, &rows, &mut |z| {
            let (of_rows, mut gradient) = cross_entropy(&z.to_cpu()?, &labels)?;
            losses = of_rows;
            // That of the sum over the rows, not of their mean.
            let n = some.len() as f32;
            gradient.data_mut::<f32>().iter_mut().for_each(|g| *g *= n);
            gradient.to(&device)
        })?;
        let dx = dx.to_cpu()?;
        let gradients = dx.data::<f32>().chunks(dx.shape().row_len());
        found.extend(losses.into_iter().zip(gradients.map(<[f32]>::to_vec)));
    }
    Ok(found)
}

/// What noise of standard deviation `sigma` on the image adds to the loss of a classifier that is itself not random,
/// the left side of equation 7: `E_e l(x + e) - l(x)`, by `draws` draws, each with its mirror image (`e` and `-e`,
/// whose first-order parts cancel).
///
/// Errors: as [`losses`]; `sigma` not above 0.
pub fn added_loss(
    net: &mut dyn Differentiable,
    images: Images<'_>,
    sigma: f64,
    draws: u32,
    seed: u64,
) -> Result<Estimate> {
    const OP: &str = "theory::added_loss";
    images.check(OP, net.classes())?;
    Error::unless_counted(OP, "draws", draws as usize)?;
    Error::unless_positive(OP, "sigma", sigma)?;
    images.estimate(|i, x, label| {
        let mut random = Stream::new(seed, TAG, i as u64);
        let mut points = vec![(x.to_vec(), label)];
        for _ in 0..draws {
            let noise: Vec<f32> = x.iter().map(|_| (sigma * random.normal()) as f32).collect();
            for sign in [1.0, -1.0] {
                let moved = x.iter().zip(&noise).map(|(x, e)| x + sign * e);
                points.push((moved.collect(), label));
            }
        }
        let found = slopes(net, images.x, &points)?;
        let noisy: Vec<f64> = found[1..].iter().map(|(loss, _)| *loss).collect();
        Ok(mean(&noisy) - found[0].0)
    })
}

/// The trace of the loss's Hessian in the image, of which equation 7 takes `sigma^2 / 2`: Hutchinson's estimator
/// `v H v` over `probes` vectors `v` of signs, `H v` by differences of gradients over `h v`.
///
/// Errors: as [`losses`]; no probe; `h` not above 0.
pub fn hessian_trace(
    net: &mut dyn Differentiable,
    images: Images<'_>,
    probes: u32,
    h: f64,
    seed: u64,
) -> Result<Estimate> {
    const OP: &str = "theory::hessian_trace";
    images.check(OP, net.classes())?;
    Error::unless_counted(OP, "probes", probes as usize)?;
    Error::unless_positive(OP, "h", h)?;
    images.estimate(|i, x, label| {
        let mut random = Stream::new(seed, TAG + 1, i as u64);
        let (mut points, mut signs) = (Vec::new(), Vec::new());
        for _ in 0..probes {
            let v: Vec<f32> = x
                .iter()
                .map(|_| if random.uniform() < 0.5 { -1.0 } else { 1.0 })
                .collect();
            for step in [h as f32, -h as f32] {
                let moved = x.iter().zip(&v).map(|(x, v)| x + step * v);
                points.push((moved.collect(), label));
            }
            signs.push(v);
        }
        let found = slopes(net, images.x, &points)?;
        // v (g(x + h v) - g(x - h v)) / 2h
        let curved = found.chunks(2).zip(&signs).map(|(ends, v)| {
            let differences = ends[0].1.iter().zip(&ends[1].1);
            let along = differences.zip(v);
            along
                .map(|((a, b), v)| f64::from(*v) * (f64::from(*a) - f64::from(*b)))
                .sum::<f64>()
                / (2.0 * h)
        });
        Ok(mean(&curved.collect::<Vec<_>>()))
    })
}

/// How steep the loss is around images: the largest gradient, in L2, at the image and at `points` points drawn
/// uniformly from the ball of radius `radius` around it. A lower bound of the local Lipschitz constant.
///
/// Errors: as [`losses`]; `radius` not above 0.
pub fn local_slope(
    net: &mut dyn Differentiable,
    images: Images<'_>,
    radius: f64,
    points: u32,
    seed: u64,
) -> Result<Estimate> {
    const OP: &str = "theory::local_slope";
    images.check(OP, net.classes())?;
    Error::unless_positive(OP, "radius", radius)?;
    images.estimate(|i, x, label| {
        let mut random = Stream::new(seed, TAG + 2, i as u64);
        let mut near = vec![(x.to_vec(), label)];
        for _ in 0..points {
            let direction: Vec<f64> = x.iter().map(|_| random.normal()).collect();
            let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
            // The radius below which a share u of the ball lies.
            let r = radius * random.uniform().powf(1.0 / x.len() as f64) / length;
            let moved = x.iter().zip(&direction).map(|(x, d)| x + (r * d) as f32);
            near.push((moved.collect(), label));
        }
        let found = slopes(net, images.x, &near)?;
        let steep = found.iter().map(|(_, g)| {
            let squares = g.iter().map(|&g| f64::from(g).powi(2));
            squares.sum::<f64>().sqrt()
        });
        Ok(steep.fold(0.0, f64::max))
    })
}
