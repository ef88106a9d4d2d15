//! Images and perturbations as 8-bit RGB pictures.

use base64::Engine as _;
use image::ImageEncoder as _;

use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{Real, Tensor};

/// A picture of 8-bit RGB pixels, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

/// What a value that is not finite is shown as: magenta, which no reader overlooks.
const NOT_FINITE: [u8; 3] = [255, 0, 255];

impl Picture {
    /// From `3 * width * height` bytes; errors unless there are as many, or if a size is 0 or
    /// above 16384.
    pub fn from_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        let sizes = 1..=1 << 14;
        if !sizes.contains(&width) || !sizes.contains(&height) {
            return Err(Error::argument(
                "Picture::from_rgb",
                "width, height",
                "1 to 16384 each",
                format_args!("{width} and {height}"),
            ));
        }
        if rgb.len() != 3 * width * height {
            return Err(Error::argument(
                "Picture::from_rgb",
                "rgb",
                format_args!("{} bytes", 3 * width * height),
                rgb.len(),
            ));
        }
        Ok(Picture { width, height, rgb })
    }

    /// Row `row` of images `[n, h, w, c]` in [0, 1], `c` 1 or 3. Values outside are clipped; a
    /// pixel that is not finite is magenta.
    pub fn of_image(images: &Tensor, row: usize) -> Result<Self> {
        let values = row_values("Picture::of_image", "images", images, row)?;
        Self::paint(images, &values)
    }

    /// The signed difference `to - from` of two images on grey: `0.5 + gain * (to - from)`,
    /// clipped. State the gain beside it; [`amplification`] gives one.
    pub fn of_difference(from: &Tensor, to: &Tensor, row: usize, gain: f64) -> Result<Self> {
        let difference = difference("Picture::of_difference", from, to, row)?;
        let values: Vec<f64> = difference.iter().map(|d| 0.5 + gain * d).collect();
        Self::paint(from, &values)
    }

    /// The difference as the paper prints it: `1 - (to - from)`, clipped. White is unchanged, and
    /// so is what grew.
    pub fn of_inverted_difference(from: &Tensor, to: &Tensor, row: usize) -> Result<Self> {
        let difference = difference("Picture::of_inverted_difference", from, to, row)?;
        let values: Vec<f64> = difference.iter().map(|d| 1.0 - d).collect();
        Self::paint(from, &values)
    }

    fn paint(like: &Tensor, values: &[f64]) -> Result<Self> {
        let shape = like.shape();
        let mut rgb = Vec::with_capacity(3 * shape.h * shape.w);
        for pixel in values.chunks_exact(shape.c) {
            if pixel.iter().all(|v| v.is_finite()) {
                let byte = |v: f64| (v.clamp(0.0, 1.0) * 255.0).round() as u8;
                // One channel is grey.
                rgb.extend((0..3).map(|i| byte(pixel[i % shape.c])));
            } else {
                rgb.extend(NOT_FINITE);
            }
        }
        Self::from_rgb(shape.w, shape.h, rgb)
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, three bytes each.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The picture as a PNG file.
    pub fn to_png(&self) -> Vec<u8> {
        let mut png = Vec::new();
        let color = image::ExtendedColorType::Rgb8;
        image::codecs::png::PngEncoder::new(&mut png)
            .write_image(&self.rgb, self.width as u32, self.height as u32, color)
            .expect("sizes were checked when the picture was made, and memory takes every byte");
        png
    }

    pub(super) fn data_uri(&self) -> String {
        let base64 = base64::engine::general_purpose::STANDARD.encode(self.to_png());
        format!("data:image/png;base64,{base64}")
    }
}

/// The largest of 1, 2, 5, 10, 20, 50, ... 10000 by which the row's difference `to - from` can be
/// multiplied without leaving ±0.5; use the smallest over all rows shown side by side.
pub fn amplification(from: &Tensor, to: &Tensor, row: usize) -> Result<f64> {
    let difference = difference("report::amplification", from, to, row)?;
    let finite = difference.iter().filter(|d| d.is_finite());
    let largest = finite.fold(0.0, |m: f64, d| m.max(d.abs()));
    let mut gain = 1.0;
    for power in [1.0, 10.0, 100.0, 1000.0, 10_000.0] {
        for factor in [1.0, 2.0, 5.0] {
            // Rounding of f32 images may carry an intended 0.05 just above it.
            if power * factor <= 10_000.0 && power * factor * largest <= 0.5 * (1.0 + 1e-5) {
                gain = power * factor;
            }
        }
    }
    Ok(gain)
}

fn difference(op: &'static str, from: &Tensor, to: &Tensor, row: usize) -> Result<Vec<f64>> {
    let a = row_values(op, "from", from, row)?;
    let b = row_values(op, "to", to, row)?;
    if from.shape().with_n(1) != to.shape().with_n(1) {
        return Err(Error::argument(
            op,
            "to",
            format_args!("images as in `from`, {}", from.shape()),
            to.shape(),
        ));
    }
    Ok(a.iter().zip(&b).map(|(a, b)| b - a).collect())
}

fn row_values(
    op: &'static str,
    arg: &'static str,
    images: &Tensor,
    row: usize,
) -> Result<Vec<f64>> {
    let shape = images.shape();
    if !matches!(shape.c, 1 | 3) || shape.row_len() == 0 {
        return Err(Error::argument(op, arg, "images of 1 or 3 channels", shape));
    }
    if row >= shape.n {
        return Err(Error::argument(
            op,
            "row",
            format_args!("a row below {}", shape.n),
            row,
        ));
    }
    let range = row * shape.row_len()..(row + 1) * shape.row_len();
    Ok(dispatch!(images.dtype(), T => images.data::<T>()[range].iter().map(|v| v.f64()).collect()))
}
