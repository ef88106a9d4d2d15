//! The figures of the built-in images.

use std::f32::consts::TAU;

use super::random::Draws;

/// The kinds of figures. All look the same, or like themselves turned, in a mirror.
pub(super) const CLASSES: [&str; 10] = [
    "disc", "ring", "square", "triangle", "cross", "crescent", "bars", "checker", "flower", "pair",
];

/// A figure somewhere in the image, turned by up to 26 degrees either way.
pub(super) struct Figure {
    class: usize,
    x: f32,
    y: f32,
    sin: f32,
    cos: f32,
    radius: f32,
}

impl Figure {
    /// `radius` is least and largest, in pixels; the centre is within `shift` of the image's along
    /// each axis.
    pub fn draw(class: usize, radius: [f32; 2], shift: f32, draws: &mut Draws) -> Self {
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

    /// How much of the pixel at these coordinates the figure covers, 0 to 1.
    pub fn cover(&self, x: f32, y: f32) -> f32 {
        let (x, y) = (x - self.x, y - self.y);
        let u = (self.cos * x + self.sin * y) / self.radius;
        let v = (self.cos * y - self.sin * x) / self.radius;
        (0.5 - self.radius * distance(self.class, u, v)).clamp(0.0, 1.0)
    }
}

/// Distance of a point to the edge of the figure of radius 1, negative inside; near corners and in
/// the flower only roughly so.
fn distance(class: usize, u: f32, v: f32) -> f32 {
    let disc = |u: f32, v: f32, radius: f32| u.hypot(v) - radius;
    let square = |u: f32, v: f32, half: f32| u.abs().max(v.abs()) - half;
    match CLASSES[class] {
        "disc" => disc(u, v, 0.9),
        "ring" => disc(u, v, 0.95).max(-disc(u, v, 0.5)),
        "square" => square(u, v, 0.8),
        "triangle" => (v - 0.6).max(0.866 * u.abs() - 0.5 * v - 0.55),
        "cross" => {
            let upright = (u.abs() - 0.33).max(v.abs() - 1.0);
            upright.min((u.abs() - 1.0).max(v.abs() - 0.33))
        }
        "crescent" => disc(u, v, 1.0).max(-disc(u - 0.55, v, 0.75)),
        "bars" => {
            let to_middle_line = v.abs().min((v.abs() - 0.7).abs());
            (u.abs() - 0.9).max(to_middle_line - 0.2)
        }
        "checker" => {
            let (u, v) = if u + v > 0.0 { (u, v) } else { (-u, -v) };
            square(u - 0.45, v - 0.45, 0.45)
        }
        "flower" => u.hypot(v) - (0.72 + 0.32 * (5.0 * v.atan2(u)).cos()),
        _ => disc(u.abs() - 0.52, v, 0.47),
    }
}

/// A straight bar across the image.
pub(super) struct Bar {
    sin: f32,
    cos: f32,
    offset: f32,
    half_width: f32,
}

impl Bar {
    /// In any direction, 1.6 to 4.4 pixels wide.
    pub fn draw(draws: &mut Draws) -> Self {
        let (sin, cos) = (TAU * draws.unit()).sin_cos();
        Bar {
            sin,
            cos,
            offset: draws.between(-10.0, 10.0),
            half_width: draws.between(0.8, 2.2),
        }
    }

    /// How much of the pixel at these coordinates the bar covers, 0 to 1.
    pub fn cover(&self, x: f32, y: f32) -> f32 {
        let distance = (self.cos * x + self.sin * y - self.offset).abs() - self.half_width;
        (0.5 - distance).clamp(0.0, 1.0)
    }
}
