//! The fused convolution on a GPU. Arguments are checked by the callers.

use super::{Epilogue, Extras, composed};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::apply::Gate;
use crate::ops::apply::gpu::{Passed, fuses, passed};
use crate::ops::batch_norm::{self, Activation, gpu::Vectors};
use crate::ops::conv2d::{self, Conv2d};
use crate::ops::noise::Noise;
use crate::tensor::{Shape, Tensor};

/// `shapes` are the convolution's result's and the whole pass's.
#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    op: &'static str,
    gpu: &Gpu,
    x: &Tensor,
    noise: Option<&Noise>,
    w: &Tensor,
    b: Option<&Tensor>,
    (_v_shape, y_shape): (Shape, Shape),
    conv: Conv2d,
    epilogue: &Epilogue<'_>,
) -> Result<(Tensor, Extras)> {
    let v = conv2d::forward_noisy(op, x, noise, w, b, conv)?;
    let statistics = epilogue.statistics.then(|| batch_norm::partials(&v));
    let (y, mut extras) = behind(op, gpu, v, epilogue, y_shape)?;
    extras.statistics = statistics.transpose()?;
    Ok((y, extras))
}

/// What follows the convolution, by as few passes as there are without it.
fn behind(
    op: &'static str,
    gpu: &Gpu,
    v: Tensor,
    epilogue: &Epilogue<'_>,
    y_shape: Shape,
) -> Result<(Tensor, Extras)> {
    let then = epilogue.then();
    let nothing = then.residual.is_none()
        && then.activation == Activation::Identity
        && then.pool.is_none()
        && then.noise.is_none();
    if nothing {
        return Ok((v, Extras::default()));
    }
    let one_pass = match then.pool {
        Some(pool) => fuses(pool) && then.residual.is_none(),
        None => true,
    };
    if !one_pass {
        return composed(v, epilogue);
    }
    let vectors = Vectors::new(None, None);
    let found = passed(op, gpu, &v, vectors, epilogue.masked(), &then, y_shape)?;
    let Passed { y, gate, pooled } = found;
    let extras = Extras {
        mask: match gate {
            Gate::Mask(mask) | Gate::Pooled(mask) => Some(mask),
            Gate::None | Gate::Output(_) => None,
        },
        argmax: pooled.map(|(_, argmax)| argmax),
        statistics: None,
    };
    Ok((y, extras))
}
