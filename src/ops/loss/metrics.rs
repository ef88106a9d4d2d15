//! The loss of training steps that nobody waits for.

use super::{check_logits, gpu};
use crate::error::Result;
use crate::gpu::{Buffer, Gpu, Ptr, kernels};
use crate::ops::step::LossScale;
use crate::tensor::Tensor;

/// Sums over training steps, kept on a device.
pub struct Metrics(Buffer<kernels::loss::Metrics>);

/// What [`Metrics`] hold.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Totals {
    /// Sum of the losses of all rows, in nats.
    pub loss: f64,
    /// Rows classified right.
    pub correct: u64,
    /// Rows seen.
    pub rows: u64,
    /// Rows whose loss was not finite.
    pub not_finite: u64,
    /// The first step with such a row, counted from 0.
    pub first_bad: Option<u64>,
    /// Steps seen.
    pub steps: u64,
}

impl Metrics {
    /// All 0.
    ///
    /// Errors: not enough device memory.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Metrics(gpu.zeros(1)?))
    }

    /// Begins again from these sums (the steps of a run that is continued).
    ///
    /// Errors: a fault of the device.
    pub fn set(&mut self, totals: Totals) -> Result<()> {
        self.0.write(&[kernels::loss::Metrics {
            loss: totals.loss,
            correct: totals.correct,
            rows: totals.rows,
            not_finite: totals.not_finite,
            steps: totals.steps,
            first_bad: totals.first_bad.map_or(0, |step| step + 1),
        }])
    }

    /// The sums. Waits for the device.
    ///
    /// Errors: a fault of the device.
    pub fn read(&self) -> Result<Totals> {
        let m = self.0.to_vec()?[0];
        Ok(Totals {
            loss: m.loss,
            correct: m.correct,
            rows: m.rows,
            not_finite: m.not_finite,
            first_bad: m.first_bad.checked_sub(1),
            steps: m.steps,
        })
    }
}

/// [`cross_entropy`](super::cross_entropy) inside a training step on a GPU: labels lie there, the
/// losses go to `metrics`, and nothing waits. Returns the gradient of the mean loss in the logits times
/// the loss scale (1 without).
///
/// logits and gradient `[n, 1, 1, classes]`, labels `n` class indices; the loss of a row whose label is
/// no class is NaN.
///
/// Errors: other shapes; logits on the CPU; another argument on another device.
pub fn cross_entropy_step(
    logits: &Tensor,
    labels: &Buffer<u32>,
    scale: Option<&LossScale>,
    metrics: &mut Metrics,
) -> Result<Tensor> {
    const OP: &str = "loss::cross_entropy_step";
    let shape = check_logits(OP, logits)?;
    let gpu = logits.expect_gpu(OP, "logits")?;
    labels.expect(OP, "labels", shape.n, gpu)?;
    metrics.0.expect(OP, "metrics", 1, gpu)?;
    let scale = match scale {
        Some(scale) => scale.ptr(OP, gpu)?,
        None => Ptr::null(),
    };
    let losses = gpu::cross_entropy(OP, gpu, logits, labels, scale)?;
    gpu::count(
        gpu,
        &mut metrics.0,
        &losses.per_row,
        &losses.predictions,
        labels,
    )?;
    Ok(losses.dlogits)
}

/// Adds a step whose losses the host computed; the classes predicted are those of the logits.
///
/// logits `[n, 1, 1, classes]`, a loss and a label for each row.
///
/// Errors: other shapes; logits on the CPU; another argument on another device.
pub fn count_step(
    logits: &Tensor,
    losses: &[f64],
    labels: &Buffer<u32>,
    metrics: &mut Metrics,
) -> Result<()> {
    const OP: &str = "loss::count_step";
    let shape = check_logits(OP, logits)?;
    let gpu = logits.expect_gpu(OP, "logits")?;
    labels.expect(OP, "labels", shape.n, gpu)?;
    metrics.0.expect(OP, "metrics", 1, gpu)?;
    let losses = gpu.upload(losses)?;
    losses.expect(OP, "losses", shape.n, gpu)?;
    let predictions = gpu::argmax(OP, gpu, logits)?;
    gpu::count(gpu, &mut metrics.0, &losses, &predictions, labels)
}
