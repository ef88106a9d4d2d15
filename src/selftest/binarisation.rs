//! The binarisation test (Zimmermann et al. 2022): a two-class problem made of a network's own scores, with
//! an adversarial image that is known to exist. An attack that does not find it is broken, or blinded.

use std::collections::HashMap;

use crate::attacks::{Criterion, Norm};
use crate::ensemble::{Classifier, Differentiable};
use crate::error::Result;
use crate::ops::noise::{Row, Rows};
use crate::rng::Stream;
use crate::tensor::{Device, Shape, Tensor};

/// A linear readout of another classifier's scores `z`: class 0 below the threshold of its image, class 1
/// above, `s = (0, w z - t)`.
pub struct Binary<'a> {
    net: &'a mut dyn Differentiable,
    /// Each image's direction and threshold, by its index in the data set.
    readouts: Readouts,
}

type Readouts = HashMap<u32, Readout>;

/// `w` and `t`.
#[derive(Debug, Clone)]
pub struct Readout {
    /// `[classes]`.
    pub direction: Vec<f64>,
    /// Between the inner points and the point that is known.
    pub threshold: f64,
    /// The known image, class 1 within the radius.
    pub adversarial: Vec<f32>,
}

/// How the problems are made.
#[derive(Debug, Clone, Copy)]
pub struct Binarisation {
    /// The ball's norm.
    pub norm: Norm,
    /// Its radius: the known image lies on it.
    pub eps: f64,
    /// Points within `inner * eps` that stay class 0.
    pub inner_points: usize,
    /// Share of the radius that holds them.
    pub inner: f64,
    /// Points on the ball of which the one that stands out most is taken.
    pub boundary_points: usize,
    /// Seed of the points.
    pub seed: u64,
}

impl Binarisation {
    /// 200 inner points within half the radius, 50 on it.
    pub fn new(norm: Norm, eps: f64, seed: u64) -> Self {
        Binarisation {
            norm,
            eps,
            inner_points: 200,
            inner: 0.5,
            boundary_points: 50,
            seed,
        }
    }

    /// Makes the problem of every image of `x`. A row is `None` where no point stands out: the scores hardly
    /// move within the ball.
    ///
    /// Errors: what the classifier says.
    pub fn readouts(
        &self,
        net: &mut dyn Classifier,
        x: &Tensor,
        ids: &[u32],
    ) -> Result<Vec<Option<Readout>>> {
        let mut all = Vec::new();
        for (i, &id) in ids.iter().enumerate() {
            let centre = x.row(i);
            let mut random = Stream::new(self.seed, TAG, u64::from(id));
            let inner = self.points(centre, self.inner_points, self.inner, &mut random);
            let outer = self.points(centre, self.boundary_points, 1.0, &mut random);
            let of =
                |net: &mut dyn Classifier, points: &[Vec<f32>]| scores(net, points, x.shape(), id);
            let inner = of(net, &inner)?;
            let z = of(net, &outer)?;
            all.push(
                readout(&inner, &z).map(|(direction, threshold, k)| Readout {
                    direction,
                    threshold,
                    adversarial: outer[k].clone(),
                }),
            );
        }
        Ok(all)
    }

    /// Corners of the Linf ball, or points on the L2 sphere, of a share of the radius.
    fn points(&self, centre: &[f32], n: usize, share: f64, random: &mut Stream) -> Vec<Vec<f32>> {
        let radius = self.eps * share;
        let point = |_| {
            let z: Vec<f32> = centre.iter().map(|_| random.normal() as f32).collect();
            let direction = self.norm.steepest(&z);
            let mut x: Vec<f32> = centre
                .iter()
                .zip(direction)
                .map(|(c, d)| c + radius as f32 * d)
                .collect();
            self.norm.project(&mut x, centre, radius);
            x
        };
        (0..n).map(point).collect()
    }
}

/// Tag of the points' random streams.
const TAG: u32 = 0x210;

fn scores(
    net: &mut dyn Classifier,
    points: &[Vec<f32>],
    image: Shape,
    id: u32,
) -> Result<Vec<Vec<f64>>> {
    let shape = image.with_n(points.len());
    let x = Tensor::from_vec(shape, points.concat())?.to(&net.device())?;
    let rows: Rows = points.iter().map(|_| Row { id, draw: 0 }).collect();
    let z = net.logits(&x, &rows)?.to_cpu()?;
    let rows = z.data::<f32>().chunks(z.shape().c);
    Ok(rows
        .map(|z| z.iter().map(|&z| f64::from(z)).collect())
        .collect())
}

/// Direction, threshold and position of the outer point that lies farthest beyond all inner ones, along the
/// line from the inner points' mean to it.
fn readout(inner: &[Vec<f64>], outer: &[Vec<f64>]) -> Option<(Vec<f64>, f64, usize)> {
    let classes = outer.first()?.len();
    let mean: Vec<f64> = (0..classes)
        .map(|k| inner.iter().map(|z| z[k]).sum::<f64>() / inner.len() as f64)
        .collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let candidates = outer.iter().enumerate().filter_map(|(i, z)| {
        let mut w: Vec<f64> = z.iter().zip(&mean).map(|(z, m)| z - m).collect();
        let norm = dot(&w, &w).sqrt();
        w.iter_mut().for_each(|w| *w /= norm);
        let most = inner
            .iter()
            .map(|z| dot(&w, z))
            .fold(f64::NEG_INFINITY, f64::max);
        let at = dot(&w, z);
        // Next to the known point: few others of the ball are class 1.
        (at > most).then_some((at - most, w, most + 0.9 * (at - most), i))
    });
    let best = candidates.max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some((best.1, best.2, best.3))
}

impl<'a> Binary<'a> {
    /// The readouts of these images.
    pub fn new(
        net: &'a mut dyn Differentiable,
        of: impl IntoIterator<Item = (u32, Readout)>,
    ) -> Self {
        Binary {
            net,
            readouts: of.into_iter().collect(),
        }
    }

    /// What counts as success: class 1.
    pub fn criterion(images: usize) -> Criterion {
        Criterion::Untargeted {
            labels: vec![0; images],
        }
    }
}

/// `(0, w z - t)` of each row, on the CPU.
fn read(readouts: &Readouts, z: &Tensor, rows: &Rows) -> Result<Tensor> {
    let z = z.to_cpu()?;
    let classes = z.shape().c;
    let of_rows = z.data::<f32>().chunks(classes).zip(rows.iter());
    let scores = of_rows.flat_map(|(z, row)| {
        let readout = &readouts[&row.id];
        let products = z.iter().zip(&readout.direction);
        let at: f64 = products.map(|(z, w)| f64::from(*z) * w).sum();
        [0.0, (at - readout.threshold) as f32]
    });
    Tensor::from_vec(z.shape().with_c(2), scores.collect::<Vec<f32>>())
}

impl Classifier for Binary<'_> {
    fn classes(&self) -> usize {
        2
    }

    fn input(&self) -> Shape {
        self.net.input()
    }

    fn device(&self) -> Device {
        self.net.device()
    }

    fn rows_are_independent(&self) -> bool {
        self.net.rows_are_independent()
    }

    fn logits(&mut self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        let z = self.net.logits(x, rows)?;
        read(&self.readouts, &z, rows)
    }
}

impl Differentiable for Binary<'_> {
    fn input_grad(
        &mut self,
        x: &Tensor,
        rows: &Rows,
        gradient: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let readouts = &self.readouts;
        let device = self.net.device();
        let mut scores = None;
        // dz = w ds_1
        let (_, dx) = self.net.input_grad(x, rows, &mut |z| {
            let s = read(readouts, z, rows)?;
            let g = gradient(&s)?.to_cpu()?;
            scores = Some(s);
            let mut dz = Vec::with_capacity(z.shape().len());
            for (g, row) in g.data::<f32>().chunks(2).zip(rows.iter()) {
                let direction = &readouts[&row.id].direction;
                dz.extend(direction.iter().map(|w| (f64::from(g[1]) * w) as f32));
            }
            Tensor::from_vec(z.shape(), dz)?.to(&device)
        })?;
        Ok((scores.expect("the classifier asks for the gradient"), dx))
    }
}
