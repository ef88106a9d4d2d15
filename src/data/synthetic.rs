//! The built-in images.

use std::f32::consts::TAU;

use rayon::prelude::*;

use super::random::{Draws, Use};
use super::{Dataset, Pixels, Split};
use crate::error::Result;
use crate::tensor::Shape;

const SIDE: usize = 32;
const IMAGE: Shape = Shape::new(1, SIDE, SIDE, 3);
const CLASSES: [&str; 10] = [
    "disc", "ring", "square", "triangle", "cross", "crescent", "bars", "checker", "star", "pair",
];

/// The least and the largest difference of colour between figure and background.
const CONTRAST: [f32; 2] = [0.15, 0.45];
/// Radius of the figure in pixels.
const RADIUS: [f32; 2] = [9.0, 13.0];
/// Amplitude of the fine texture.
const TEXTURE: f32 = 0.03;
/// How often the fine texture is that of another class.
const TEXTURE_WRONG: f32 = 0.15;
/// Standard deviation of the noise on each value.
const GRAIN: [f32; 2] = [0.01, 0.04];

/// `n` training images, or `n / 4` (rounded up) test images.
pub(super) fn generate(n: usize, split: Split, seed: u64) -> Result<Dataset> {
    let (n, purpose) = match split {
        Split::Train => (n, Use::SyntheticTrain),
        Split::Test => (n.div_ceil(4), Use::SyntheticTest),
    };
    let shape = IMAGE.with_n(n);
    let mut pixels = vec![0; shape.len()];
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
    let labels = (0..n).map(|i| (i % CLASSES.len()) as u32).collect();
    let classes = CLASSES.map(str::to_owned).to_vec();
    Ok(Dataset::from_parts(
        Pixels::Bytes(pixels),
        shape,
        labels,
        classes,
    ))
}

type Colour = [f32; 3];

/// One image, `[32, 32, 3]`.
fn paint(class: usize, draws: &mut Draws) -> Vec<f32> {
    let ground = [(); 3].map(|()| draws.between(0.25, 0.75));
    let contrast = draws.between(CONTRAST[0], CONTRAST[1]);
    let ink = other_colour(ground, contrast, draws);
    let mut image = Vec::with_capacity(IMAGE.len());

    // Ground: a colour with light from one side and two broad waves.
    let light = [draws.between(-0.1, 0.1), draws.between(-0.1, 0.1)];
    let waves = [(); 3].map(|()| Wave::new(0.03, 0.09, draws.between(0.01, 0.05), draws));
    for i in 0..SIDE * SIDE {
        let (x, y) = place(i);
        let shade = (light[0] * x + light[1] * y) / 16.0;
        for (value, wave) in ground.iter().zip(&waves) {
            image.push(value + shade + wave.at(x, y));
        }
    }

    // Clutter under the figure, then the figure, then something over it.
    let contrast_of_clutter = 0.7 * contrast;
    for _ in 0..2 + draws.below(3) {
        let colour = other_colour(ground, contrast_of_clutter, draws);
        let figure = Figure::new(draws.below(CLASSES.len()), [2.0, 4.0], 15.0, draws);
        fill(&mut image, colour, |x, y| figure.cover(x, y));
    }
    let figure = Figure::new(class, RADIUS, 3.5, draws);
    fill(&mut image, ink, |x, y| figure.cover(x, y));
    for _ in 0..draws.below(2) {
        let colour = other_colour(ground, 0.7 * contrast, draws);
        let bar = Bar::new(draws);
        fill(&mut image, colour, |x, y| bar.cover(x, y));
    }

    let kind = match draws.chance(TEXTURE_WRONG) {
        true => draws.below(CLASSES.len()),
        false => class,
    };
    texture(&mut image, kind, draws);
    let grain = draws.between(GRAIN[0], GRAIN[1]);
    for pair in image.chunks_exact_mut(2) {
        let normals = draws.normals();
        pair[0] += grain * normals[0];
        pair[1] += grain * normals[1];
    }
    image
}

/// Coordinates of a pixel's centre, the origin in the middle of the image.
fn place(i: usize) -> (f32, f32) {
    let middle = SIDE as f32 / 2.0 - 0.5;
    ((i % SIDE) as f32 - middle, (i / SIDE) as f32 - middle)
}

fn fill(image: &mut [f32], colour: Colour, cover: impl Fn(f32, f32) -> f32) {
    for (i, pixel) in image.chunks_exact_mut(3).enumerate() {
        let (x, y) = place(i);
        let cover = cover(x, y);
        for (value, ink) in pixel.iter_mut().zip(colour) {
            *value += cover * (ink - *value);
        }
    }
}

/// A colour at this root-mean-square distance from `from`, inside [0.1, 0.9].
fn other_colour(from: Colour, distance: f32, draws: &mut Draws) -> Colour {
    let mut step = [(); 3].map(|()| draws.between(-1.0, 1.0));
    let norm = (step.iter().map(|v| v * v).sum::<f32>() / 3.0)
        .sqrt()
        .max(0.1);
    for (step, from) in step.iter_mut().zip(from) {
        *step *= distance / norm;
        if !(0.1..=0.9).contains(&(from + *step)) {
            *step = -*step;
        }
    }
    [0, 1, 2].map(|i| (from[i] + step[i]).clamp(0.1, 0.9))
}

/// A sinusoid over the image.
struct Wave {
    kx: f32,
    ky: f32,
    phase: f32,
    amplitude: f32,
}

impl Wave {
    /// Direction and phase at random; `low` and `high` bound the cycles per pixel.
    fn new(low: f32, high: f32, amplitude: f32, draws: &mut Draws) -> Self {
        let k = TAU * draws.between(low, high);
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

/// A figure somewhere in the image.
struct Figure {
    class: usize,
    x: f32,
    y: f32,
    sin: f32,
    cos: f32,
    radius: f32,
}

impl Figure {
    fn new(class: usize, radius: [f32; 2], shift: f32, draws: &mut Draws) -> Self {
        let (sin, cos) = draws.between(-0.45, 0.45).sin_cos();
        Figure {
            class,
            x: draws.between(-shift, shift),
            y: draws.between(-shift, shift),
            sin,
            cos,
            radius: draws.between(radius[0], radius[1]),
        }
    }

    /// How much of the pixel the figure covers.
    fn cover(&self, x: f32, y: f32) -> f32 {
        let (x, y) = (x - self.x, y - self.y);
        let u = (self.cos * x + self.sin * y) / self.radius;
        let v = (self.cos * y - self.sin * x) / self.radius;
        (0.5 - self.radius * distance(self.class, u, v)).clamp(0.0, 1.0)
    }
}

/// Distance to the edge of the figure of radius 1 (a bound of it where that is simpler), negative
/// inside.
fn distance(class: usize, u: f32, v: f32) -> f32 {
    let square = |u: f32, v: f32, half: f32| u.abs().max(v.abs()) - half;
    let disc = |u: f32, v: f32, radius: f32| u.hypot(v) - radius;
    match class {
        0 => disc(u, v, 0.9),
        1 => disc(u, v, 0.95).max(-disc(u, v, 0.5)),
        2 => square(u, v, 0.8),
        3 => (v - 0.6).max(0.866 * u.abs() - 0.5 * v - 0.55),
        4 => (u.abs() - 0.33)
            .max(v.abs() - 1.0)
            .min((u.abs() - 1.0).max(v.abs() - 0.33)),
        5 => disc(u, v, 1.0).max(-disc(u - 0.55, v, 0.75)),
        6 => square(u, v, 0.9).max(0.2 - ((v + 0.9) / 0.72 - 0.5).fract().sub_half() * 0.72),
        7 => square(u, v, 0.9).max(if u * v > 0.0 {
            u.abs().min(v.abs())
        } else {
            -u.abs().min(v.abs())
        }),
        8 => {
            let angle = v.atan2(u) * 5.0 / 2.0;
            let edge = 0.72 + 0.32 * (2.0 * angle).cos();
            u.hypot(v) - edge
        }
        _ => disc(u.abs() - 0.52, v, 0.47),
    }
}

trait SubHalf {
    fn sub_half(self) -> f32;
}
impl SubHalf for f32 {
    fn sub_half(self) -> f32 {
        (self - 0.5).abs()
    }
}

/// A straight bar across the image.
struct Bar {
    sin: f32,
    cos: f32,
    offset: f32,
    half: f32,
}

impl Bar {
    fn new(draws: &mut Draws) -> Self {
        let (sin, cos) = (TAU * draws.unit()).sin_cos();
        Bar {
            sin,
            cos,
            offset: draws.between(-10.0, 10.0),
            half: draws.between(0.8, 2.2),
        }
    }

    fn cover(&self, x: f32, y: f32) -> f32 {
        let distance = (self.cos * x + self.sin * y - self.offset).abs() - self.half;
        (0.5 - distance).clamp(0.0, 1.0)
    }
}

/// Fine ripples, one direction per class, their phase drifting over the image.
fn texture(image: &mut [f32], class: usize, draws: &mut Draws) {
    let angle = std::f32::consts::PI * class as f32 / CLASSES.len() as f32;
    let k = TAU * 0.36;
    let (kx, ky) = (k * angle.cos(), k * angle.sin());
    let drift = [(); 2].map(|()| Wave::new(0.03, 0.06, 1.5, draws));
    let phase = TAU * draws.unit();
    for (i, pixel) in image.chunks_exact_mut(3).enumerate() {
        let (x, y) = place(i);
        let drift: f32 = drift.iter().map(|wave| wave.at(x, y)).sum();
        let ripple = TEXTURE * (kx * x + ky * y + phase + drift).sin();
        for value in pixel {
            *value += ripple;
        }
    }
}
