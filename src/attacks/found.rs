//! What an attack found.

use super::image::Norm;
use super::query::Counts;
use crate::error::Result;
use crate::tensor::{Shape, Tensor};

/// What became of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The best image found, `h * w * c` values; the original where an attack of the smallest
    /// distance found none.
    pub pixels: Vec<f32>,
    /// Whether the attack saw its goal met, on its own draws.
    pub success: bool,
    /// Where it did, the attack that found `pixels`: of several run one after the other the one that broke
    /// the image.
    pub broken_by: Option<&'static str>,
    /// `||x' - x||_2` of `pixels`.
    pub l2: f64,
    /// `||x' - x||_inf` of `pixels`.
    pub linf: f64,
    /// Weight of the margin against the distance that gave it (Carlini and Wagner's `c`); the last one
    /// tried where there is no success. For attacks that have one.
    pub c: Option<f64>,
    /// What it took.
    pub counts: Counts,
    /// Forward passes when the first success was kept.
    pub forward_at_success: Option<u64>,
    /// Whether the budget ended the attack.
    pub out_of_queries: bool,
}

impl Found {
    /// With the distances between the original image and the one found.
    pub fn new(original: &[f32], pixels: Vec<f32>, success: bool, counts: Counts) -> Self {
        Found {
            l2: Norm::L2.distance(&pixels, original),
            linf: Norm::Linf.distance(&pixels, original),
            pixels,
            success,
            c: None,
            forward_at_success: success.then_some(counts.forward),
            counts,
            out_of_queries: false,
            broken_by: None,
        }
    }
}

/// The images found as a batch `[n, h, w, c]` on the CPU.
///
/// Errors: images of another size.
pub fn found_images(found: &[Found], image: Shape) -> Result<Tensor> {
    let pixels = found.iter().flat_map(|f| &f.pixels).copied().collect();
    Tensor::from_vec::<f32>(image.with_n(found.len()), pixels)
}

/// Root mean square of the L2 distances: the RSE paper's average distortion, over all images, success
/// or not.
pub fn rms_l2(found: &[Found]) -> f64 {
    (found.iter().map(|f| f.l2.powi(2)).sum::<f64>() / found.len() as f64).sqrt()
}
