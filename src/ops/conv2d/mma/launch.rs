//! A plan's launch: the weights it packs, what it reads and writes.

use std::sync::Arc;

use super::{Plan, WARPS};
use crate::error::Result;
use crate::gpu::kernels::{Epilogue, Gemm, conv2d_mma as kernels, pack};
use crate::gpu::{Buffer, Gpu, Ptr, launch_blocks};
use crate::ops::conv2d::packs::pieces;
use crate::ops::conv2d::{Input, Weights, wgmma};
use crate::ops::noise::gpu::Fused;
use crate::ops::spans::divisor;
use crate::tensor::{DType, Tensor};

/// Weights in the order in which a plan reads them. They serve any batch.
pub(in crate::ops) fn packed(gpu: &Gpu, plan: &Plan, w: Weights<'_>) -> Result<Arc<Buffer<u8>>> {
    let p = plan.packing;
    w.form(gpu, &p, plan.dtype, || {
        let pieces = pieces(&p);
        let mut packed = gpu.alloc::<u8>(pieces * 16)?;
        let to = packed.ptr_mut().with_elem(plan.dtype.elem());
        let grid = [launch_blocks("conv2d", pieces, 256)?, 1, 1];
        pack::pack_weights(gpu, plan.dtype, grid, 0, to, w.ptr(), p)?;
        Ok(packed)
    })
}

/// What a launch reads and writes; null is nothing.
pub(in crate::ops) struct Operands {
    pub y: Ptr,
    pub x: Ptr,
    /// Rows of the batch that each image of `x` makes; see [`Plan::reads`].
    pub draws: usize,
    pub bias: Ptr,
    pub residual: Ptr,
    /// Written, or read where the result is gated by it.
    pub mask: Ptr,
    pub argmax: Ptr,
    /// The batch norm's statistics: `[chunks, 3, c]` and `[chunks]`; see [`Plan::chunks`].
    pub partial: Ptr,
    pub counts: Ptr,
}

impl Operands {
    /// The convolution alone.
    pub fn plain(y: Ptr, x: Ptr, bias: Option<Ptr>) -> Self {
        let null = Ptr::null();
        Operands {
            y,
            x,
            draws: 1,
            bias: bias.unwrap_or(null),
            residual: null,
            mask: null,
            argmax: null,
            partial: null,
            counts: null,
        }
    }
}

impl Plan {
    /// Parts in which the statistics come.
    pub fn chunks(&self) -> usize {
        if let Some(plan) = &self.wgmma {
            return plan.chunks();
        }
        let tiles = self.blocks / (self.gemm.blocks * self.gemm.supergroups) as usize;
        tiles * if self.blocking.tall { WARPS } else { 2 }
    }

    /// Whether every pixel of the result is written; the others are to be there before.
    pub fn covers(&self) -> bool {
        self.wgmma.as_ref().is_none_or(wgmma::Plan::covers)
    }

    /// Whether the kernel can gate its result by a mask.
    pub fn gates(&self) -> bool {
        self.wgmma.as_ref().is_none_or(wgmma::Plan::gates)
    }

    /// An epilogue that only stores.
    pub fn store(&self) -> Epilogue {
        let to = self.gemm.to;
        Epilogue {
            low: f32::NEG_INFINITY,
            cap: f32::INFINITY,
            pool: 0,
            noise: 0,
            gated: 0,
            vectors: to.c.is_multiple_of(8).into(),
            image: divisor((to.h * to.w) as usize),
        }
    }

    /// What a launch reads of a batch, and as how many rows each: `wgmma` copies rows that lie one behind the
    /// other, and no network's images have the channels that it takes.
    pub fn reads(&self, input: &Input<'_>) -> Result<(Tensor, usize)> {
        match self.wgmma {
            None => Ok((input.x.clone(), input.draws)),
            Some(_) => Ok((input.repeated()?, 1)),
        }
    }

    /// The convolution alone, with noise in the operand load.
    pub fn convolve(
        &self,
        gpu: &Gpu,
        w: Weights<'_>,
        operands: &Operands,
        noise: &Fused,
    ) -> Result<()> {
        let packed = packed(gpu, self, w)?;
        self.launch(gpu, &packed, operands, self.store(), noise, &Fused::none())
    }

    /// `noise` is drawn in the operand load, `next` behind everything.
    pub fn launch(
        &self,
        gpu: &Gpu,
        packed: &Buffer<u8>,
        o: &Operands,
        epilogue: Epilogue,
        noise: &Fused,
        next: &Fused,
    ) -> Result<()> {
        if let Some(plan) = &self.wgmma {
            let w = packed.ptr().with_elem(self.dtype.elem());
            return plan.launch(gpu, self.dtype, w, o, epilogue, noise, next);
        }
        let gemm = Gemm {
            draws: divisor(o.draws),
            ..self.gemm
        };
        let grid = [self.blocks as u32, 1, 1];
        let noisy = noise.mode != 0;
        let precise = u32::from(noise.mode == 2);
        let number = self.blocking.number;
        let shared = self.shared as u32;
        let w = packed.ptr().with_elem(self.dtype.elem());
        macro_rules! launch {
            ($kernel:ident $(, $dtype:expr)?) => {
                kernels::$kernel(
                    gpu, $($dtype,)? noisy, number, grid, shared, o.y, o.x, w, o.bias, o.residual, o.mask,
                    o.argmax, o.partial, o.counts, gemm, epilogue, noise.rows, precise, noise.draw,
                    next.rows, next.draw,
                )
            };
        }
        match self.dtype {
            DType::F32 => launch!(conv2d_tf32),
            dtype => launch!(conv2d_mma, dtype),
        }
    }
}
