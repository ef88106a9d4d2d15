//! Adam (Kingma and Ba 2015).

use crate::error::Result;
use crate::tensor::Tensor;

/// Hyper-parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Step size.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Adam {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
        }
    }
}

/// One update; `t[i]` counts row `i`'s steps from 1, so that rows of a batch may start anew.
/// `w`, `grad`, `m`, `v` have one shape, `t` has `n` entries; a row with `t = 0` stays untouched.
pub fn step(
    _w: &mut Tensor,
    _grad: &Tensor,
    _m: &mut Tensor,
    _v: &mut Tensor,
    _t: &[u32],
    _adam: Adam,
) -> Result<()> {
    unimplemented!()
}
