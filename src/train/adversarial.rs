//! Adversarial training: a step learns from images moved against the network as it stands.
//!
//! The gradients are taken in train mode: batch norm normalises by the batch, and its running statistics
//! move with these passes too, as in the RSE paper's code. Their noise has draws of its own. On a GPU the
//! passes run there, and the host moves the images.

use serde::Serialize;

use crate::dispatch;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Grads, Mode, Pass};
use crate::ops::loss::cross_entropy;
use crate::ops::noise::{Key, Purpose};
use crate::rng::Stream;
use crate::tensor::{Real, Tensor};

/// Streams of this module: coin and radius of a step, random starts of its rows.
const FGSM: u32 = 0x220;
const START: u32 = 0x221;

/// Adversarial retraining as the RSE paper's code has it: with probability 1/2 a batch is replaced by its
/// FGSM version (Goodfellow et al. 2015),
///
/// `x + eps sign(grad loss(x, y))`, one `eps ~ U(low, high)` for the batch, **not** clipped to `[0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FgsmRetraining {
    /// Smallest radius, above 0.
    pub eps_low: f64,
    /// Largest radius, at least the smallest.
    pub eps_high: f64,
}

impl Default for FgsmRetraining {
    fn default() -> Self {
        FgsmRetraining {
            eps_low: 0.1,
            eps_high: 0.3,
        }
    }
}

impl FgsmRetraining {
    pub(super) fn check(&self) -> Result<()> {
        Error::unless_positive("train", "eps", self.eps_low)?;
        Error::unless_positive("train", "eps", self.eps_high)?;
        if self.eps_low > self.eps_high {
            let expected = "the smaller radius first";
            let found = format_args!("{}, {}", self.eps_low, self.eps_high);
            return Err(Error::argument("train", "eps", expected, found));
        }
        Ok(())
    }

    /// The radius of a step; `None` where the coin says that its images stay as they are.
    pub fn radius(&self, seed: u64, step: u32) -> Option<f64> {
        let mut random = Stream::new(seed, FGSM, u64::from(step));
        let heads = random.uniform() < 0.5;
        let radius = self.eps_low + (self.eps_high - self.eps_low) * random.uniform();
        heads.then_some(radius)
    }

    /// The images `[n, h, w, c]` that a step learns from. It moves batch norm's statistics.
    ///
    /// Errors: images or labels that do not fit the network; a fault of the device.
    pub fn perturb(
        &self,
        model: &mut Model,
        images: Tensor,
        labels: &[u32],
        seed: u64,
        step: u32,
    ) -> Result<Tensor> {
        check(model, &images)?;
        let Some(eps) = self.radius(seed, step) else {
            return Ok(images);
        };
        let mut x = images.to_cpu()?;
        let gradient = input_grad(model, &x, labels, seed, step, 0)?;
        dispatch!(x.dtype(), T => {
            let pixels = x.data_mut::<T>().iter_mut().zip(gradient.data::<T>());
            pixels.for_each(|(x, &g)| *x = T::of(x.f64() + eps * sign(g)));
        });
        x.to(model.device())
    }
}

/// PGD adversarial training (Madry et al. 2018): every batch is replaced by the last iterate of
///
/// `x <- P(x + step_size sign(grad loss(x, y)))`
///
/// from a uniformly random point of the ball, with `P` the projection on the ball (`Linf`, radius `eps`)
/// and on `[0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PgdTraining {
    /// Radius, above 0.
    pub eps: f64,
    /// Steps, at least 1.
    pub steps: u32,
    /// Length of a step, above 0.
    pub step_size: f64,
}

impl Default for PgdTraining {
    fn default() -> Self {
        PgdTraining {
            eps: 8.0 / 255.0,
            steps: 10,
            step_size: 2.0 / 255.0,
        }
    }
}

impl PgdTraining {
    pub(super) fn check(&self) -> Result<()> {
        Error::unless_positive("train", "eps", self.eps)?;
        Error::unless_counted("train", "attack steps", self.steps as usize)?;
        Error::unless_positive("train", "attack step size", self.step_size)
    }

    /// The images `[n, h, w, c]` that a step learns from. It moves batch norm's statistics.
    ///
    /// Errors: images or labels that do not fit the network; a fault of the device.
    pub fn perturb(
        &self,
        model: &mut Model,
        images: &Tensor,
        labels: &[u32],
        seed: u64,
        step: u32,
    ) -> Result<Tensor> {
        check(model, images)?;
        let images = &images.to_cpu()?;
        let mut x = images.clone();
        let row_len = x.shape().row_len();
        dispatch!(x.dtype(), T => {
            let rows = x.data_mut::<T>().chunks_mut(row_len).zip(images.data::<T>().chunks(row_len));
            for (i, (row, image)) in rows.enumerate() {
                let mut random = Stream::new(seed, START, u64::from(step) << 32 | i as u64);
                for (x, &centre) in row.iter_mut().zip(image) {
                    let start = centre.f64() + self.eps * (2.0 * random.uniform() - 1.0);
                    *x = self.project(start, centre);
                }
            }
        });
        for k in 0..self.steps {
            let gradient = input_grad(model, &x, labels, seed, step, k)?;
            dispatch!(x.dtype(), T => {
                let pixels = x.data_mut::<T>().iter_mut().zip(images.data::<T>());
                for ((x, &centre), &g) in pixels.zip(gradient.data::<T>()) {
                    *x = self.project(x.f64() + self.step_size * sign(g), centre);
                }
            });
        }
        x.to(model.device())
    }

    /// The closest value within `eps` of `centre`, then in `[0, 1]`.
    fn project<T: Real>(&self, x: f64, centre: T) -> T {
        let centre = centre.f64();
        T::of(
            x.clamp(centre - self.eps, centre + self.eps)
                .clamp(0.0, 1.0),
        )
    }
}

/// `sign(g)`, 0 for 0.
fn sign<T: Real>(g: T) -> f64 {
    match g.f64() {
        0.0 => 0.0,
        g => g.signum(),
    }
}

/// Gradient in images on the CPU of the batch's summed cross-entropy, in train mode; the `k`-th of a step,
/// with draws of the noise that no other pass has. It comes to the CPU.
fn input_grad(
    model: &mut Model,
    x: &Tensor,
    labels: &[u32],
    seed: u64,
    step: u32,
    k: u32,
) -> Result<Tensor> {
    let n = x.shape().n;
    let first = k.wrapping_mul(n as u32);
    let pass = Pass {
        mode: Mode::Train,
        noise: Some(Key::consecutive(seed, Purpose::Auxiliary, first, n, step)),
        record: true,
    };
    let device = model.device().clone();
    let logits = model.forward(x.to(&device)?, &pass)?.to_cpu()?;
    let (_, mut dlogits) = cross_entropy(&logits, labels)?;
    // Of the sum, not of the mean: less is lost in 16-bit types.
    dispatch!(dlogits.dtype(), T => {
        for d in dlogits.data_mut::<T>() {
            *d = T::of(n as f64 * d.f64());
        }
    });
    let dx = model.backward(dlogits.to(&device)?, Grads::InputOnly)?;
    dx.to_cpu()
}

fn check(model: &Model, x: &Tensor) -> Result<()> {
    let images = model.config().input.with_n(x.shape().n);
    x.expect(
        "adversarial training",
        "images",
        images,
        model.kind().master(),
    )
}
