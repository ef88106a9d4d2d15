//! What a training step on a GPU keeps there, so that it can be captured once and replayed: where the
//! run stands, the loss scale, and all parameters as one table.

mod tensors;

pub use tensors::{MultiTensor, Slots};

use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, Ptr, kernels};
use crate::tensor::DType;

/// Where a run stands. Kernels read it; [`end`] moves it on.
pub struct Cursor(Buffer<kernels::Cursor>);

impl Cursor {
    /// At the first batch, draw 0.
    ///
    /// Errors: not enough device memory.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Cursor(gpu.zeros(1)?))
    }

    /// Goes to batch `batch` of its epoch, `draw` being the next step's draw.
    ///
    /// Errors: a fault of the device.
    pub fn set(&mut self, batch: u32, draw: u32) -> Result<()> {
        self.0.write(&[kernels::Cursor { batch, draw }])
    }

    /// `(batch, draw)` as the device has them. Waits for it.
    ///
    /// Errors: a fault of the device.
    pub fn read(&self) -> Result<(u32, u32)> {
        let cursor = self.0.to_vec()?[0];
        Ok((cursor.batch, cursor.draw))
    }

    pub(crate) fn ptr(&self, op: &'static str, gpu: &Gpu) -> Result<Ptr> {
        self.0.expect(op, "cursor", 1, gpu)?;
        Ok(self.0.ptr())
    }
}

/// Factor on the loss that keeps small gradients of f16 activations from vanishing, and the count of
/// steps. It moves by itself: halved after a step with a gradient that is not finite, which is left
/// out, doubled after 2000 good steps. For other types it is 1 and stays.
pub struct LossScale {
    state: Buffer<kernels::LossScale>,
    dynamic: bool,
}

/// What [`LossScale`] holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// The factor, a power of two.
    pub scale: f32,
    /// Steps since it last changed.
    pub good: u32,
    /// Steps left out.
    pub skipped: u32,
    /// Steps taken.
    pub steps: u32,
}

impl Scale {
    /// What training with activations of this type begins with.
    pub fn initial(dtype: DType) -> Self {
        Scale {
            scale: if dtype == DType::F16 { 65_536.0 } else { 1.0 },
            good: 0,
            skipped: 0,
            steps: 0,
        }
    }
}

/// Good steps after which the scale doubles.
const GROW_EVERY: u32 = 2000;

impl LossScale {
    /// [`Scale::initial`]; it moves for f16 alone.
    ///
    /// Errors: not enough device memory.
    pub fn new(gpu: &Gpu, dtype: DType) -> Result<Self> {
        let mut scale = LossScale {
            state: gpu.alloc(1)?,
            dynamic: dtype == DType::F16,
        };
        scale.set(Scale::initial(dtype))?;
        Ok(scale)
    }

    /// Goes on from this state.
    ///
    /// Errors: a scale that is not a finite number above 0; a fault of the device.
    pub fn set(&mut self, to: Scale) -> Result<()> {
        Error::unless_positive("LossScale::set", "scale", f64::from(to.scale))?;
        self.state.write(&[kernels::LossScale {
            scale: to.scale,
            inverse: 1.0 / to.scale,
            not_finite: 0,
            good: to.good,
            skipped: to.skipped,
            steps: to.steps,
        }])
    }

    /// The state. Waits for the device.
    ///
    /// Errors: a fault of the device.
    pub fn read(&self) -> Result<Scale> {
        let s = self.state.to_vec()?[0];
        Ok(Scale {
            scale: s.scale,
            good: s.good,
            skipped: s.skipped,
            steps: s.steps,
        })
    }

    pub(crate) fn ptr(&self, op: &'static str, gpu: &Gpu) -> Result<Ptr> {
        self.state.expect(op, "scale", 1, gpu)?;
        Ok(self.state.ptr())
    }

    /// Looks for gradients that are not finite, where that may happen without a mistake.
    pub(crate) fn check(&mut self, tensors: &MultiTensor) -> Result<()> {
        if !self.dynamic {
            return Ok(());
        }
        let gpu = tensors.gpu();
        let scale = self.ptr("step::check", gpu)?;
        kernels::step::step_check(gpu, tensors.grid(), 0, tensors.ptr(), scale)
    }
}

/// Ends a training step: the loss scale follows what the gradients were, the cursor goes to the next
/// batch and draw. Evaluation, which has no scale, may end its steps the same way.
///
/// Errors: the two lie on different devices.
pub fn end(scale: Option<&mut LossScale>, cursor: &mut Cursor) -> Result<()> {
    const OP: &str = "step::end";
    let gpu = cursor.0.gpu().clone();
    let (scale, every) = match scale {
        Some(scale) => {
            let every = if scale.dynamic { GROW_EVERY } else { 0 };
            (scale.ptr(OP, &gpu)?, every)
        }
        None => (Ptr::null(), 0),
    };
    kernels::step::step_end(&gpu, [1, 1, 1], 0, scale, cursor.0.ptr_mut(), every)
}

/// The learning rate of every step of an epoch, on the device.
pub struct LearningRates(Buffer<f64>);

impl LearningRates {
    /// For epochs of this many steps; [`LearningRates::set`] comes before the first.
    ///
    /// Errors: no step; not enough device memory.
    pub fn new(gpu: &Gpu, steps: usize) -> Result<Self> {
        if steps == 0 {
            return Err(Error::argument(
                "LearningRates::new",
                "steps",
                "at least 1",
                steps,
            ));
        }
        Ok(LearningRates(gpu.zeros(steps)?))
    }

    /// The rates of an epoch, one a step, in the place of the last epoch's.
    ///
    /// Errors: another number of steps; a rate that is negative or not finite; a fault of the device.
    pub fn set(&mut self, rates: &[f64]) -> Result<()> {
        for &rate in rates {
            Error::unless_not_negative("LearningRates::set", "rates", rate)?;
        }
        self.0.write(rates)
    }

    pub(crate) fn ptr(&self, op: &'static str, gpu: &Gpu) -> Result<Ptr> {
        self.0.expect(op, "rates", self.0.len(), gpu)?;
        Ok(self.0.ptr())
    }

    /// Index of the last step's.
    pub(crate) fn last(&self) -> u32 {
        (self.0.len() - 1).min(u32::MAX as usize) as u32
    }
}
