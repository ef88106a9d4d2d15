//! One minimisation in which the constant follows the iterates.

use super::CarliniWagner;
use super::descent::hinge;
use crate::attacks::query::Offer;
use crate::attacks::{Image, OutOfQueries, WhiteBox};
use crate::ops::adam;
use crate::tensor::{DType, Tensor};

/// Constant where the first-order estimate says nothing: no gradient.
const NO_ESTIMATE: f64 = 1e-3;

/// Smallest and largest change of a pixel that is taken for what a linear network needs.
const CHANGES: [f64; 2] = [1e-5, 0.3];

/// What a linear network needs, with the hinge `h` below 0 at the image and `v` its gradient.
#[derive(Clone, Copy)]
struct Linear {
    /// `||d||^2 - c v d` is smallest at `d = c v / 2`, which closes the gap at `c = 2 |h| / ||v||^2`.
    c: f64,
    /// The root mean square of that `d` over the pixels: `|h| / ||v|| / sqrt(n)`.
    change: f64,
}

impl Linear {
    fn estimate(hinge: f64, gradient: &[f32]) -> Self {
        let squared: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
        let c = -2.0 * hinge / squared;
        let change = -hinge / (squared * gradient.len() as f64).sqrt();
        let [least, most] = CHANGES;
        Linear {
            c: if c.is_finite() && c > 0.0 {
                c
            } else {
                NO_ESTIMATE
            },
            // Neither finite without a gradient.
            change: if change.is_nan() {
                least
            } else {
                change.clamp(least, most)
            },
        }
    }
}

/// By how much `c` changes after a step, at first and at last.
const FACTOR: [f64; 2] = [1.05, 1.005];

/// Adam on the pixels, each step's result clipped to the box. `c` is divided by a factor where the step met
/// the goal, else multiplied by it; the factor falls as the step size does.
pub(super) async fn follow(
    net: &mut WhiteBox,
    image: &Image,
    params: &CarliniWagner,
) -> Result<(), OutOfQueries> {
    const FITS: &str = "an image as the classifier takes it";
    let objective = hinge(image.goal, params.kappa);
    let mut x = Tensor::from_vec(image.shape, image.pixels.to_vec()).expect(FITS);
    let mut m = Tensor::zeros(image.shape, DType::F32);
    let mut v = Tensor::zeros(image.shape, DType::F32);
    // Known from the first step.
    let mut linear = None;
    for step in 0..params.steps {
        let slope = net.slope(x.data::<f32>(), &objective).await?;
        let hinge = slope.value - params.kappa;
        let Linear { c, change } =
            linear.get_or_insert_with(|| Linear::estimate(hinge, &slope.gradient));
        net.c = Some(*c);
        let mut met =
            image.goal.is_met(&slope.scores) && image.goal.margin(&slope.scores) >= params.kappa;
        if met {
            met = net.try_offer(x.data::<f32>(), &slope.scores).await? != Offer::Refuted;
        }

        // d/dx' of ||x' - x||^2 - c hinge
        let weight = *c as f32;
        let of = |((x, original), g): ((&f32, &f32), &f32)| 2.0 * (x - original) - weight * g;
        let pixels = x.data::<f32>().iter().zip(&image.pixels[..]);
        let dx = pixels.zip(&slope.gradient).map(of).collect();
        let dx = Tensor::from_vec(image.shape, dx).expect(FITS);
        let mut adam = params.adam(step);
        adam.lr *= *change;
        adam::step(&mut x, &dx, &mut m, &mut v, &[step + 1], adam).expect(FITS);
        x.data_mut::<f32>()
            .iter_mut()
            .for_each(|x| *x = x.clamp(0.0, 1.0));

        let [first, last] = FACTOR.map(f64::ln);
        let factor = (first + (last - first) * params.progress(step)).exp();
        *c *= if met { 1.0 / factor } else { factor };
    }
    Ok(())
}
