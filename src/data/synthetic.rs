//! The built-in images: ten kinds of figures, 32x32 RGB, made from a seed.
//!
//! An image is a ground with uneven light, small figures of any kind strewn over it, one large
//! figure of the class, sometimes a bar across, and grain. Colours, place, size, rotation and
//! contrast are random and independent of the class, so mean colour says nothing and single pixels
//! say little (a linear classifier reaches about 20%): it takes a convolution to tell the classes
//! apart. Contrast is 20 to 60% over hundreds of pixels, so the figures can be seen through noise;
//! what is small, faint, covered or at the rim keeps a small network from getting everything right.
//! Robustness measured on this set shows a mechanism, not its size on other data.

use std::f32::consts::TAU;

use rayon::prelude::*;

use super::figure::{Bar, CLASSES, Figure};
use super::random::{Draws, Use};
use super::{Dataset, Pixels, Split};
use crate::error::Result;
use crate::tensor::Shape;

const SIDE: usize = 32;
const IMAGE: Shape = Shape::new(1, SIDE, SIDE, 3);

/// Root-mean-square difference between the colours of figure and ground, least and largest.
const CONTRAST: [f32; 2] = [0.2, 0.6];
/// Contrast of small figures and bars as a part of the figure's.
const DISTRACTION: f32 = 0.6;
/// Radius of the figure in pixels, least and largest.
const RADIUS: [f32; 2] = [9.0, 13.0];
/// Farthest that the figure's centre is from the image's, along each axis.
const SHIFT: f32 = 3.0;
/// Standard deviation of the grain, least and largest.
const GRAIN: [f32; 2] = [0.01, 0.04];

/// `n` training images, or `n / 4` (rounded up) test images; classes take turns.
///
/// Image i of a split is a function of the seed and i: a smaller set is the beginning of a larger.
pub(super) fn generate(n: usize, split: Split, seed: u64) -> Result<Dataset> {
    let (n, purpose) = match split {
        Split::Train => (n, Use::SyntheticTrain),
        Split::Test => (n.div_ceil(4), Use::SyntheticTest),
    };
    let mut pixels = vec![0; n * IMAGE.len()];
    pixels
        .par_chunks_exact_mut(IMAGE.len())
        .enumerate()
        .for_each(|(i, image)| {
            let mut draws = Draws::new(seed, purpose, 0, i as u32);
            let values = paint(i % CLASSES.len(), &mut draws);
            for (byte, value) in image.iter_mut().zip(values) {
                *byte = (value.clamp(0.0, 1.0) * 255.0).round() as u8;
            }
        });
    Ok(Dataset::from_parts(
        Pixels::Bytes(pixels),
        IMAGE.with_n(n),
        (0..n).map(|i| (i % CLASSES.len()) as u32).collect(),
        CLASSES.map(str::to_owned).to_vec(),
    ))
}

type Colour = [f32; 3];

/// One image, `[32, 32, 3]`; values may lie a little outside [0, 1].
fn paint(class: usize, draws: &mut Draws) -> Vec<f32> {
    let ground = [(); 3].map(|()| draws.between(0.25, 0.75));
    let contrast = draws.between(CONTRAST[0], CONTRAST[1]);
    let ink = apart(ground, contrast, draws);

    let mut image = lit_ground(ground, draws);
    for _ in 0..2 + draws.below(3) {
        let colour = apart(ground, DISTRACTION * contrast, draws);
        let small = Figure::draw(draws.below(CLASSES.len()), [2.0, 4.0], 15.0, draws);
        fill(&mut image, colour, |x, y| small.cover(x, y));
    }
    let figure = Figure::draw(class, RADIUS, SHIFT, draws);
    fill(&mut image, ink, |x, y| figure.cover(x, y));
    if draws.chance(0.5) {
        let colour = apart(ground, DISTRACTION * contrast, draws);
        let bar = Bar::draw(draws);
        fill(&mut image, colour, |x, y| bar.cover(x, y));
    }

    let grain = draws.between(GRAIN[0], GRAIN[1]);
    for pair in image.chunks_exact_mut(2) {
        let normals = draws.normals();
        pair[0] += grain * normals[0];
        pair[1] += grain * normals[1];
    }
    image
}

/// Coordinates of a pixel's centre, the origin in the middle of the image, y downwards.
fn place(i: usize) -> (f32, f32) {
    let middle = SIDE as f32 / 2.0 - 0.5;
    ((i % SIDE) as f32 - middle, (i / SIDE) as f32 - middle)
}

/// The ground: a colour, light from one side, and a broad wave in each channel.
fn lit_ground(colour: Colour, draws: &mut Draws) -> Vec<f32> {
    let light = [draws.between(-0.1, 0.1), draws.between(-0.1, 0.1)];
    let waves = [(); 3].map(|()| {
        let amplitude = draws.between(0.01, 0.05);
        Wave::draw([0.03, 0.09], amplitude, draws)
    });
    let mut image = Vec::with_capacity(IMAGE.len());
    for i in 0..SIDE * SIDE {
        let (x, y) = place(i);
        let shade = (light[0] * x + light[1] * y) / 16.0;
        for (value, wave) in colour.iter().zip(&waves) {
            image.push(value + shade + wave.at(x, y));
        }
    }
    image
}

/// Lays a colour over the image where `cover` (0 to 1, of a pixel's coordinates) says.
fn fill(image: &mut [f32], colour: Colour, cover: impl Fn(f32, f32) -> f32) {
    for (i, pixel) in image.chunks_exact_mut(3).enumerate() {
        let (x, y) = place(i);
        let cover = cover(x, y);
        for (value, ink) in pixel.iter_mut().zip(colour) {
            *value += cover * (ink - *value);
        }
    }
}

/// A colour at this root-mean-square distance from `from`, or as near to it as [0.1, 0.9] allows.
fn apart(from: Colour, distance: f32, draws: &mut Draws) -> Colour {
    let step = [(); 3].map(|()| draws.between(-1.0, 1.0));
    let length = (step.iter().map(|v| v * v).sum::<f32>() / 3.0).sqrt();
    let scale = distance / length.max(0.1);
    [0, 1, 2].map(|i| {
        let step = scale * step[i];
        let there = from[i] + step;
        let inside = (0.1..=0.9).contains(&there);
        if inside { there } else { from[i] - step }.clamp(0.1, 0.9)
    })
}

/// A sinusoid over the image.
struct Wave {
    kx: f32,
    ky: f32,
    phase: f32,
    amplitude: f32,
}

impl Wave {
    /// Direction and phase at random, and so many cycles per pixel, least and most.
    fn draw(frequency: [f32; 2], amplitude: f32, draws: &mut Draws) -> Self {
        let k = TAU * draws.between(frequency[0], frequency[1]);
        let (sin, cos) = (TAU * draws.unit()).sin_cos();
        Wave {
            kx: k * cos,
            ky: k * sin,
            phase: TAU * draws.unit(),
            amplitude,
        }
    }

    fn at(&self, x: f32, y: f32) -> f32 {
        self.amplitude * (self.kx * x + self.ky * y + self.phase).sin()
    }
}
