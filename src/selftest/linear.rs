//! Linear classifiers on images: the smallest perturbation, box included, is known exactly.

use crate::attacks::Norm;
use crate::error::Result;
use crate::models::{Arch, Config, Model};
use crate::nn::Entry;
use crate::ops::loss::largest;
use crate::rng::Stream;
use crate::tensor::{Shape, Tensor};

/// A linear classifier `z = W x + b` and images for it.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[1, h, w, c]` of an image.
    pub input: Shape,
    /// `[classes][h * w * c]`, pixels as they lie in an image.
    pub weights: Vec<Vec<f32>>,
    /// `[classes]`.
    pub biases: Vec<f32>,
    /// `[n, h, w, c]` in `[0, 1]`.
    pub images: Tensor,
    /// Class of each image by the classifier itself.
    pub labels: Vec<u32>,
}

/// Images that are hard for an attack in ways of their own. Weights are normal with standard deviation
/// `3 / sqrt(3072)`, so that logits are of order one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// In the interior of the box.
    Interior,
    /// The same, with 100 subtracted from every logit: their differences lose precision in f32.
    ShiftedLogits,
    /// Four fifths of the values are exactly 0.
    SparseImages,
    /// Every value is exactly 0 or 1.
    BinaryImages,
}

impl Case {
    /// All of them.
    pub const ALL: [Case; 4] = [
        Case::Interior,
        Case::ShiftedLogits,
        Case::SparseImages,
        Case::BinaryImages,
    ];

    /// A to D.
    pub fn name(self) -> &'static str {
        match self {
            Case::Interior => "A: interior",
            Case::ShiftedLogits => "B: logits shifted by -100",
            Case::SparseImages => "C: four fifths zeros",
            Case::BinaryImages => "D: zeros and ones",
        }
    }
}

/// Tag of the streams that make the cases.
const TAG: u32 = 0x200;

impl Linear {
    /// `n` images of 32x32x3 and ten classes.
    pub fn case(case: Case, n: usize, seed: u64) -> Self {
        Linear::sized(case, Shape::new(n, 32, 32, 3), 10, seed)
    }

    /// Images of any size.
    pub fn sized(case: Case, images: Shape, classes: usize, seed: u64) -> Self {
        let len = images.row_len();
        let mut random = Stream::new(seed, TAG, 0);
        let scale = 3.0 / 3072f64.sqrt();
        let weights: Vec<Vec<f32>> = (0..classes)
            .map(|_| (0..len).map(|_| (scale * random.normal()) as f32).collect())
            .collect();
        // The grey image is on every boundary.
        let shift = if case == Case::ShiftedLogits {
            100.0
        } else {
            0.0
        };
        let biases: Vec<f32> = weights
            .iter()
            .map(|w| (-0.5 * w.iter().map(|&w| f64::from(w)).sum::<f64>() - shift) as f32)
            .collect();
        let mut pixels = Vec::with_capacity(images.len());
        for i in 0..images.n {
            let w = &weights[i % classes];
            let norm = w.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
            let towards = |strength: f64, j: usize| strength * f64::from(w[j]) / norm;
            for j in 0..len {
                let u = random.uniform();
                pixels.push(match case {
                    Case::Interior | Case::ShiftedLogits => 0.5 + 0.2 * (u - 0.5) + towards(0.5, j),
                    Case::SparseImages if random.uniform() < 0.8 => 0.0,
                    Case::SparseImages => u + towards(2.0, j),
                    Case::BinaryImages => f64::from(u8::from(u + towards(2.0, j) > 0.5)),
                });
            }
        }
        let pixels: Vec<f32> = pixels.iter().map(|v| v.clamp(0.0, 1.0) as f32).collect();
        let images = Tensor::from_vec(images, pixels).expect("as many values as the shape says");
        Linear::new(images, weights, biases)
    }

    /// Of given weights and images.
    pub fn new(images: Tensor, weights: Vec<Vec<f32>>, biases: Vec<f32>) -> Self {
        let mut linear = Linear {
            input: images.shape().with_n(1),
            weights,
            biases,
            images,
            labels: Vec::new(),
        };
        let n = linear.images.shape().n;
        linear.labels = (0..n)
            .map(|i| {
                let z: Vec<f32> = linear.logits(linear.image(i)).map(|z| z as f32).collect();
                largest(&z) as u32
            })
            .collect();
        linear
    }

    /// Image `i`.
    pub fn image(&self, i: usize) -> &[f32] {
        self.images.row(i)
    }

    fn logits(&self, x: &[f32]) -> impl Iterator<Item = f64> {
        self.weights.iter().zip(&self.biases).map(move |(w, b)| {
            let products = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            products.sum::<f64>() + f64::from(*b)
        })
    }

    /// The classifier as a network, with Gaussian noise of this standard deviation on the image.
    pub fn model(&self, sigma: f32) -> Result<Model> {
        let config = Config::new(Arch::Linear, self.input, self.weights.len());
        let mut model = Model::new(config.with_noise(sigma, 0.0), 0)?;
        model.visit(|name, entry| {
            let Entry::Param(p, _) = entry else { return };
            let data = match name {
                "classifier.weight" => self.weights.concat(),
                _ => self.biases.clone(),
            };
            p.value = Tensor::from_vec(p.value.shape(), data).expect("the model's own shape");
        });
        Ok(model)
    }

    /// Distance from image `i` to the closest point of the box that has another class; infinite where
    /// there is none. Exact: with `d` the difference of two classes' weights, the best perturbation is
    /// `clip(t d)` in L2 and `clip(t sign(d))` in Linf, cut off at the box, with `t` by bisection.
    pub fn distance(&self, i: usize, norm: Norm) -> f64 {
        let x = self.image(i);
        let z: Vec<f64> = self.logits(x).collect();
        let label = self.labels[i] as usize;
        let others = (0..z.len()).filter(|&k| k != label).map(|k| {
            let d = self.weights[k].iter().zip(&self.weights[label]);
            let d: Vec<f64> = d.map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
            closest(x, &d, z[label] - z[k], norm)
        });
        others.fold(f64::INFINITY, f64::min)
    }

    /// How much closer than [`Linear::distance`] in L2 another class may win in f32: logits are sums of products,
    /// off by about `u sum |w x|` (`u = 2^-24`), and differ by `|d|` per unit of length. Twice that, for the
    /// image's own class and the closest other.
    pub fn rounding(&self, i: usize) -> f64 {
        let label = self.labels[i] as usize;
        let own = &self.weights[label];
        let products = own.iter().zip(self.image(i));
        let size: f64 = products.map(|(w, x)| f64::from((w * x).abs())).sum();
        let squared = |w: &[f32]| -> f64 {
            let d = w.iter().zip(own).map(|(a, b)| f64::from(a - b).powi(2));
            d.sum()
        };
        let others = (0..self.weights.len()).filter(|&k| k != label);
        let slope = others.map(|k| squared(&self.weights[k]).sqrt());
        let slope = slope.fold(f64::INFINITY, f64::min);
        let bias = f64::from(self.biases[label].abs());
        4.0 * 0.5f64.powi(24) * (size + bias) / slope
    }
}

/// Length of the smallest `delta` with `0 <= x + delta <= 1` and `d delta >= gap`.
fn closest(x: &[f32], d: &[f64], gap: f64, norm: Norm) -> f64 {
    if gap <= 0.0 {
        return 0.0;
    }
    let delta = |t: f64| {
        d.iter().zip(x).map(move |(&d, &x)| {
            let step = match norm {
                Norm::L2 => t * d,
                Norm::Linf if d == 0.0 => 0.0,
                Norm::Linf => t * d.signum(),
            };
            step.clamp(-f64::from(x), 1.0 - f64::from(x))
        })
    };
    let gained = |t: f64| delta(t).zip(d).map(|(a, d)| a * d).sum::<f64>();
    let (mut low, mut high) = (0.0, 1.0);
    while gained(high) < gap {
        high *= 2.0;
        if high > 1e12 {
            return f64::INFINITY;
        }
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if gained(middle) < gap {
            low = middle;
        } else {
            high = middle;
        }
    }
    match norm {
        Norm::L2 => delta(high).map(|v| v * v).sum::<f64>().sqrt(),
        Norm::Linf => delta(high).fold(0.0, |most, v| v.abs().max(most)),
    }
}
