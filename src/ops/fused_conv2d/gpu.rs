//! The fused convolution on a GPU. Arguments are checked by the callers.

use super::{Epilogue, Extras, composed};
use crate::error::Result;
use crate::gpu::{Gpu, Ptr, kernels};
use crate::ops::apply::Gate;
use crate::ops::apply::gpu::{Passed, fuses, passed};
use crate::ops::batch_norm::{self, Activation, Partials, gpu::Vectors, gpu::bounds};
use crate::ops::conv2d::gpu::tensor_cores;
use crate::ops::conv2d::mma::{self, Operands, Plan};
use crate::ops::conv2d::{self, Conv2d, Input, Weights};
use crate::ops::noise::gpu::Fused;
use crate::ops::pool2d::{self, Argmax};
use crate::ops::relu::{self, Mask};
use crate::tensor::{Shape, Tensor};

/// `shapes` are the batch's, the convolution's result's and the whole pass's.
#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    op: &'static str,
    gpu: &Gpu,
    input: &Input<'_>,
    w: Weights<'_>,
    b: Option<&Tensor>,
    shapes: [Shape; 3],
    conv: Conv2d,
    epilogue: &Epilogue<'_>,
) -> Result<(Tensor, Extras)> {
    let pool = epilogue.pool.is_some();
    let [x_shape, v_shape, y_shape] = shapes;
    if fits_one_pass(epilogue) {
        let (dtype, w_shape) = (input.x.dtype(), w.shape());
        let plan = tensor_cores(op, gpu, false, dtype, x_shape, w_shape, v_shape, conv, pool)?;
        if let Some(plan) = plan {
            return on_tensor_cores(gpu, &plan, input, w, b, shapes, epilogue);
        }
    }
    let v = conv2d::forward_of(op, input, w, b, conv)?;
    let statistics = epilogue.statistics.then(|| batch_norm::partials(&v));
    let (y, mut extras) = behind(op, gpu, v, epilogue, y_shape)?;
    extras.statistics = statistics.transpose()?;
    Ok((y, extras))
}

/// Whether a kernel does all of it at once: no pool, or a fused one without a residual.
fn fits_one_pass(epilogue: &Epilogue<'_>) -> bool {
    let alone = |pool| fuses(pool) && epilogue.residual.is_none();
    epilogue.pool.is_none_or(alone)
}

/// All of it in the convolution's kernel.
fn on_tensor_cores(
    gpu: &Gpu,
    plan: &Plan,
    input: &Input<'_>,
    w: Weights<'_>,
    b: Option<&Tensor>,
    [x_shape, v_shape, y_shape]: [Shape; 3],
    epilogue: &Epilogue<'_>,
) -> Result<(Tensor, Extras)> {
    let mask = epilogue.masked().then(|| relu::gpu::mask(gpu, y_shape));
    let mask = mask.transpose()?;
    let argmax = epilogue.pool.filter(|_| epilogue.record);
    let argmax = argmax.map(|pool| pool2d::gpu::argmax(gpu, y_shape, pool));
    let argmax = argmax.transpose()?;
    let mut statistics = match epilogue.statistics {
        true => Some((
            gpu.alloc::<f32>(plan.chunks() * 3 * v_shape.c)?,
            gpu.alloc::<u32>(plan.chunks())?,
        )),
        false => None,
    };
    let (partial, counts) = match &mut statistics {
        Some((partial, counts)) => (partial.ptr_mut(), counts.ptr_mut()),
        None => (Ptr::null(), Ptr::null()),
    };
    let (x, draws) = plan.reads(input)?;
    let mut y = Tensor::uninit(gpu, y_shape, x.dtype())?;
    let operands = Operands {
        residual: epilogue.residual.map_or(Ptr::null(), Tensor::ptr),
        mask: mask.as_ref().map_or(Ptr::null(), Mask::ptr),
        argmax: argmax.as_ref().map_or(Ptr::null(), Argmax::ptr),
        partial,
        counts,
        draws,
        ..Operands::plain(y.ptr_mut()?, x.ptr(), b.map(Tensor::ptr))
    };
    let (low, cap) = bounds(epilogue.activation);
    let next = Fused::new(gpu, epilogue.noise, y_shape)?;
    let behind = kernels::Epilogue {
        low,
        cap,
        pool: epilogue.pool.is_some().into(),
        noise: next.mode,
        image: next.row_pixels,
        ..plan.store()
    };
    let noise = Fused::new(gpu, input.noise, x_shape)?;
    let packed = mma::packed(gpu, plan, w)?;
    plan.launch(gpu, &packed, &operands, behind, &noise, &next)?;
    let statistics =
        statistics.map(|(partial, counts)| Partials::on_device(v_shape, partial, counts));
    let extras = Extras {
        mask,
        argmax,
        statistics: statistics.transpose()?,
    };
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
    if !fits_one_pass(epilogue) {
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
