//! Convolutions on a GPU: a plan and a launch for each. Arguments are checked by the callers.
//!
//! 16-bit types (and f32, where tf32 is allowed) go to the tensor cores if their shape fits, the rest to
//! the CUDA cores.

use super::mma::{self, Demands, Operands};
use super::model::Card;
use super::plans::{Key, Plans};
use super::{Conv2d, Input, Then, Weights, mma_weight_grad, plan, wgmma, wgmma_weight_grad};
use crate::error::Result;
use crate::gpu::kernels::{Epilogue, conv2d as kernels};
use crate::gpu::{Gpu, Ptr, launch_blocks};
use crate::ops::noise::gpu::Fused;
use crate::ops::noise::{self, Noise};
use crate::ops::relu::{self, Mask};
use crate::ops::spans::divisor;
use crate::tensor::{DType, Shape, Tensor};

/// The plan for the tensor cores; `None`: not there.
#[allow(clippy::too_many_arguments)]
pub(in crate::ops) fn tensor_cores(
    op: &'static str,
    gpu: &Gpu,
    grad: bool,
    dtype: DType,
    x: Shape,
    w: Shape,
    y: Shape,
    conv: Conv2d,
    pool: bool,
) -> Result<Option<mma::Plan>> {
    if dtype == DType::F32 && !gpu.options().tf32 {
        return Ok(None);
    }
    let key = Key {
        grad,
        dtype,
        x,
        w,
        conv,
        pool,
        bias: false,
    };
    let plans = gpu.remembered::<Plans>();
    plans
        .tensor_cores
        .get(key, || plan_tensor_cores(op, gpu, y, key))
}

/// A plan that nobody asked for before.
fn plan_tensor_cores(op: &'static str, gpu: &Gpu, y: Shape, key: Key) -> Result<Option<mma::Plan>> {
    let Key {
        grad,
        dtype,
        x,
        w,
        conv,
        pool,
        ..
    } = key;
    let options = gpu.options();
    let tuning = gpu.tuning();
    let demands = Demands {
        pool,
        // Whether there is noise or not: the bits of the statistics depend on the tiles, and must not on the
        // place where noise is drawn.
        noise: !grad && noise::in_load(dtype, x.c),
        blocking: options.blocking,
        tuning: Some(&tuning),
        card: Card::of(gpu.properties()),
    };
    let Some(mut plan) = mma::plan(op, grad, dtype, x, w, y, conv, demands)? else {
        return Ok(None);
    };
    let problem = wgmma::Problem::new(gpu, dtype, grad, x, w, y, conv);
    let mma = |number| number < wgmma::FIRST_BLOCKING;
    if let Some(problem) = problem.filter(|_| !options.blocking.is_some_and(mma)) {
        let measured = || {
            let (name, sizes) = (mma::operation(grad), mma::sizes(x, w, conv));
            tuning.blocking(name, dtype, wgmma::KERNEL, x.n, sizes)
        };
        let blocking = options.blocking.or_else(measured);
        let cut = problem.plan(gpu.properties().multiprocessors, pool, blocking);
        // A pool that its tiles cannot hold is a pass of its own.
        plan.wgmma = Some(match cut {
            Some(cut) => cut,
            None if pool => return Ok(None),
            None => unreachable!("some tile of one column fits"),
        });
    }
    Ok(Some(plan))
}

#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    op: &'static str,
    gpu: &Gpu,
    input: &Input<'_>,
    w: Weights<'_>,
    b: Option<&Tensor>,
    (x_shape, y_shape): (Shape, Shape),
    conv: Conv2d,
) -> Result<Tensor> {
    let x = input.x;
    let noise = Fused::new(gpu, input.noise, x_shape)?;
    let mut y = Tensor::uninit(gpu, y_shape, x.dtype())?;
    let plan = tensor_cores(
        op,
        gpu,
        false,
        x.dtype(),
        x_shape,
        w.shape(),
        y_shape,
        conv,
        false,
    )?;
    if let Some(plan) = plan {
        let (x, draws) = plan.reads(input)?;
        let operands = Operands {
            draws,
            ..Operands::plain(y.ptr_mut()?, x.ptr(), b.map(Tensor::ptr))
        };
        plan.convolve(gpu, w, &operands, &noise)?;
        return Ok(y);
    }
    let mut plan = plan::direct(op, false, x_shape, w.shape(), y_shape, conv)?;
    plan.p.patch.draws = divisor(input.draws);
    kernels::conv2d_forward(
        gpu,
        x.dtype(),
        noise.mode,
        plan.cols,
        plan.grid,
        plan.shared,
        y.ptr_mut()?,
        x.ptr(),
        w.ptr(),
        b.map_or(Ptr::null(), Tensor::ptr),
        plan.p,
        noise.rows,
        noise.draw,
    )?;
    Ok(y)
}

pub(super) fn input_grad(
    op: &'static str,
    gpu: &Gpu,
    dy: &Tensor,
    w: Weights<'_>,
    x_shape: Shape,
    conv: Conv2d,
    then: &Then<'_>,
) -> Result<Tensor> {
    let plan = tensor_cores(
        op,
        gpu,
        true,
        dy.dtype(),
        x_shape,
        w.shape(),
        dy.shape(),
        conv,
        false,
    )?;
    if let Some(plan) = plan {
        let plus = then.plus;
        let gate = then.gate.filter(|_| plan.gates());
        // What no kernel pixel meets.
        let mut dx = match (plan.covers(), plus) {
            (true, _) => Tensor::uninit(gpu, x_shape, dy.dtype())?,
            (false, Some(plus)) => Then { plus: None, gate }.follow(plus.duplicate()?)?,
            (false, None) => Tensor::full_on(&dy.device(), x_shape, dy.dtype(), 0.0)?,
        };
        let operands = Operands {
            residual: plus.map_or(Ptr::null(), Tensor::ptr),
            mask: gate.map_or(Ptr::null(), Mask::ptr),
            ..Operands::plain(dx.ptr_mut()?, dy.ptr(), None)
        };
        let epilogue = Epilogue {
            gated: gate.is_some().into(),
            ..plan.store()
        };
        let packed = mma::packed(gpu, &plan, w)?;
        let none = Fused::none();
        plan.launch(gpu, &packed, &operands, epilogue, &none, &none)?;
        return match then.gate {
            Some(gate) if !plan.gates() => relu::backward_mask(dx, gate),
            _ => Ok(dx),
        };
    }
    let plan = plan::direct(op, true, x_shape, w.shape(), dy.shape(), conv)?;
    let mut dx = Tensor::uninit(gpu, x_shape, dy.dtype())?;
    kernels::conv2d_input_grad(
        gpu,
        dy.dtype(),
        plan.cols,
        plan.grid,
        plan.shared,
        dx.ptr_mut()?,
        dy.ptr(),
        w.ptr(),
        plan.p,
    )?;
    then.follow(dx)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn weight_grad(
    op: &'static str,
    gpu: &Gpu,
    dy: &Tensor,
    x: &Tensor,
    noise: Option<&Noise>,
    dw: &mut Tensor,
    db: Option<&mut Tensor>,
    conv: Conv2d,
) -> Result<()> {
    let w = dw.shape();
    let key = Key {
        grad: false,
        dtype: x.dtype(),
        x: x.shape(),
        w,
        conv,
        pool: false,
        bias: db.is_some(),
    };
    let plans = gpu.remembered::<Plans>();
    let plan = plans.wgmma_weight_grad.get(key, || {
        let Key { dtype, x, bias, .. } = key;
        let problem = wgmma_weight_grad::Problem::new(gpu, dtype, x, w, dy.shape(), bias, conv);
        Ok(problem.and_then(|problem| problem.plan(&Card::of(gpu.properties()))))
    })?;
    if let Some(plan) = plan {
        // It reads what it multiplies as it lies in memory.
        let drawn = noise.map(|noise| noise::forward(x, noise)).transpose()?;
        return weight_grad_by_wgmma(op, gpu, &plan, dy, drawn.as_ref().unwrap_or(x), dw, db);
    }
    let noise = Fused::new(gpu, noise, x.shape())?;
    let device = mma_weight_grad::Device {
        multiprocessors: gpu.properties().multiprocessors,
        shared: gpu.properties().shared,
    };
    let plan = plans.weight_grad.get(key, || {
        let Key { dtype, x, bias, .. } = key;
        mma_weight_grad::plan(op, dtype, x, w, dy.shape(), bias, conv, device)
    })?;
    if let Some(plan) = plan {
        return weight_grad_on_tensor_cores(op, gpu, &plan, dy, x, &noise, dw, db);
    }
    let plan = plan::outer(op, x.shape(), w, dy.shape(), db.is_some(), conv)?;
    let mut partial = gpu.alloc::<f32>(plan.partial_len(w))?;
    kernels::conv2d_weight_grad(
        gpu,
        x.dtype(),
        noise.mode,
        plan.grid,
        plan.shared,
        partial.ptr_mut(),
        dy.ptr(),
        x.ptr(),
        plan.p,
        noise.rows,
        noise.draw,
    )?;
    let (db, bias_splits) = match db {
        Some(db) => (db.ptr_mut()?, plan.splits as u32),
        None => (Ptr::null(), 0),
    };
    let rows = plan.p.partial_rows;
    add_splits(op, gpu, dw, db, partial.ptr(), rows, bias_splits)
}

fn weight_grad_by_wgmma(
    op: &'static str,
    gpu: &Gpu,
    plan: &wgmma_weight_grad::Plan,
    dy: &Tensor,
    x: &Tensor,
    dw: &mut Tensor,
    db: Option<&mut Tensor>,
) -> Result<()> {
    let (t, splits) = (x.dtype(), plan.splits);
    let bias_splits = if db.is_some() { splits as u32 } else { 0 };
    let db = db.map_or(Ok(Ptr::null()), Tensor::ptr_mut)?;
    if splits == 1 {
        return plan.launch(gpu, t, dw.ptr_mut()?, db, dy.ptr(), x.ptr());
    }
    let mut partial = gpu.alloc::<f32>(plan.partial_len())?;
    let to = partial.ptr_mut();
    let bias = to.offset(splits * dw.shape().len() * size_of::<f32>());
    plan.launch(gpu, t, to, bias, dy.ptr(), x.ptr())?;
    add_splits(op, gpu, dw, db, partial.ptr(), splits as u32, bias_splits)
}

#[allow(clippy::too_many_arguments)]
fn weight_grad_on_tensor_cores(
    op: &'static str,
    gpu: &Gpu,
    plan: &mma_weight_grad::Plan,
    dy: &Tensor,
    x: &Tensor,
    noise: &Fused,
    dw: &mut Tensor,
    db: Option<&mut Tensor>,
) -> Result<()> {
    let (w, t, splits) = (dw.shape(), x.dtype(), plan.work.splits);
    let bias_splits = if db.is_some() { splits as u32 } else { 0 };
    let db = db.map_or(Ok(Ptr::null()), Tensor::ptr_mut)?;
    if splits == 1 {
        return plan.launch(gpu, t, dw.ptr_mut()?, db, dy.ptr(), x.ptr(), noise);
    }
    let mut partial = gpu.alloc::<f32>(plan.partial_len(w))?;
    let to = partial.ptr_mut();
    let bias = to.offset(splits * w.len() * size_of::<f32>());
    plan.launch(gpu, t, to, bias, dy.ptr(), x.ptr(), noise)?;
    add_splits(op, gpu, dw, db, partial.ptr(), splits as u32, bias_splits)
}

/// Adds `rows` partial sums to dw, and `bias_rows` behind them to db.
fn add_splits(
    op: &'static str,
    gpu: &Gpu,
    dw: &mut Tensor,
    db: Ptr,
    partial: Ptr,
    rows: u32,
    bias_rows: u32,
) -> Result<()> {
    let w = dw.shape();
    let elements = w.len() + if bias_rows > 0 { w.n } else { 0 };
    let vector = w.len().is_multiple_of(4) && w.n.is_multiple_of(4);
    let each = if vector { 4 } else { 1 };
    let log_lanes = lanes(elements / each, rows, gpu.properties().multiprocessors).ilog2();
    kernels::conv2d_weight_grad_sum(
        gpu,
        vector,
        [
            launch_blocks(op, elements, (256 >> log_lanes) * each)?,
            1,
            1,
        ],
        0,
        dw.ptr_mut()?,
        db,
        partial,
        w.len() as u64,
        w.n as u32,
        rows,
        bias_rows,
        log_lanes,
    )
}

/// Threads that share an element's rows of partial sums: several where there are many rows and too few elements to
/// keep the device busy, at most 32.
fn lanes(threads: usize, rows: u32, multiprocessors: usize) -> usize {
    /// Rows whose loads a thread has in flight at a time.
    const UNROLLED: usize = 8;
    let busy = multiprocessors * 1024;
    let wanted = (busy / threads.max(1)).max(1);
    let most = (rows as usize / UNROLLED).max(1);
    1 << wanted.min(most).min(32).ilog2()
}
