//! What the model says of a convolution on a card, with no device at hand.

use super::Conv2d;
use super::mma::{self, Demands};
use super::model::{Card, Times};
use super::{mma_weight_grad, wgmma, wgmma_weight_grad};
use crate::error::Result;
use crate::gpu::tuning::{Sizes, Tuning};
use crate::tensor::{DType, Shape};

/// Which pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// y of x, with its epilogue.
    Forward,
    /// dx of dy.
    InputGrad,
    /// dw of dy and x.
    WeightGrad,
}

/// A convolution that might be launched.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// Which pass.
    pub pass: Pass,
    /// The activations' type.
    pub dtype: DType,
    /// The input's shape, of all rows.
    pub x: Shape,
    /// Rows that read the same image, in the forward pass: an ensemble's draws.
    pub draws: usize,
    /// The weights' shape.
    pub w: Shape,
    /// Its geometry.
    pub conv: Conv2d,
    /// A 2x2 max pool behind it, in the forward pass.
    pub pool: bool,
    /// A residual of the result's size is added, in the forward pass.
    pub residual: bool,
    /// Noise in the operand load.
    pub noise: bool,
}

/// How it would be cut, and how long it would take.
#[derive(Debug, Clone, Copy)]
pub struct Prediction {
    /// The family of kernels.
    pub kernel: &'static str,
    /// The number of the way of cutting.
    pub blocking: u32,
    /// A block's part of the product.
    pub rows: usize,
    /// Its columns.
    pub cols: usize,
    /// Images, rows and columns of a tile.
    pub tile: [usize; 3],
    /// Blocks of the launch.
    pub blocks: usize,
    /// The model's times.
    pub times: Times,
}

impl Launch {
    /// The result's shape.
    ///
    /// Errors: the shapes do not fit together.
    pub fn y(&self) -> Result<Shape> {
        self.conv.output_shape("conv2d::predict", self.x, self.w)
    }

    /// What it has to compute, a multiply-add counted as two; taps on padding count.
    ///
    /// Errors: the shapes do not fit together.
    pub fn operations(&self) -> Result<f64> {
        let w = self.w;
        Ok(2.0 * self.y()?.len() as f64 * (w.h * w.w * w.c) as f64)
    }

    /// Bytes of memory that it has to read and write: each tensor once, what is pooled in the launch after
    /// its pool, weights in the activations' type.
    ///
    /// Errors: the shapes do not fit together.
    pub fn bytes(&self) -> Result<f64> {
        let forward = self.pass == Pass::Forward;
        let y = self.y()?.len();
        let kept = if self.pool && forward { y / 4 } else { y };
        let residual = if self.residual && forward { y } else { 0 };
        let x = if forward {
            self.x.len() / self.draws
        } else {
            self.x.len()
        };
        Ok((self.dtype.size() * (x + kept + residual + self.w.len())) as f64)
    }

    /// What it is called in a table of measurements.
    pub fn operation(&self) -> &'static str {
        match self.pass {
            Pass::Forward => mma::operation(false),
            Pass::InputGrad => mma::operation(true),
            Pass::WeightGrad => "weight grad",
        }
    }

    /// Its shape in a table of measurements.
    pub fn sizes(&self) -> Sizes {
        mma::sizes(self.x, self.w, self.conv)
    }

    /// The model's answer, with a blocking of its choice, the measured one, or the one that is asked for.
    /// `None`: not on tensor cores.
    ///
    /// Errors: the shapes do not fit together.
    pub fn predict(
        &self,
        card: &Card,
        tuning: Option<&Tuning>,
        blocking: Option<u32>,
    ) -> Result<Option<Prediction>> {
        let op = "conv2d::predict";
        let y = self.y()?;
        let demands = Demands {
            pool: self.pool && self.pass == Pass::Forward,
            noise: self.noise && self.pass == Pass::Forward,
            blocking,
            tuning,
            card: *card,
        };
        if self.pass == Pass::WeightGrad {
            return self.weight_grad(op, y, card, blocking);
        }
        let grad = self.pass == Pass::InputGrad;
        let plan = mma::plan(op, grad, self.dtype, self.x, self.w, y, self.conv, demands)?;
        let Some(plan) = plan else { return Ok(None) };
        let by_wgmma = self.wgmma(card, y).filter(|_| {
            // A number of the other family's asks for that.
            blocking.is_none_or(|number| number >= wgmma::FIRST_BLOCKING)
        });
        let by_wgmma = by_wgmma.and_then(|problem| {
            let measured = tuning.and_then(|tuning| {
                let (name, n) = (self.operation(), self.x.n);
                tuning.blocking(name, self.dtype, wgmma::KERNEL, n, self.sizes())
            });
            let plan = |pool| problem.plan(card.multiprocessors, pool, blocking.or(measured));
            // A pool may be a pass of its own, which is not part of this.
            plan(demands.pool).or_else(|| plan(false))
        });
        if let Some(plan) = by_wgmma {
            let (blocking, [rows, cols]) = plan.blocking();
            let times = plan.times(card, demands.noise, self.bytes()?);
            return Ok(Some(Prediction {
                kernel: wgmma::KERNEL,
                blocking,
                rows,
                cols,
                tile: plan.tile(),
                blocks: (times.waves * card.multiprocessors as f64) as usize,
                times,
            }));
        }
        let tile = plan.gemm.tile;
        let mut times = plan.times;
        times.memory = self.bytes()? / card.memory;
        Ok(Some(Prediction {
            kernel: mma::KERNEL,
            blocking: plan.blocking.number,
            rows: plan.blocking.rows,
            cols: plan.blocking.cols,
            tile: [tile.images, tile.rows, tile.cols].map(|v| v as usize),
            blocks: plan.blocks,
            times,
        }))
    }

    /// Whether the family of compute capability 9.0 takes it.
    fn wgmma(&self, card: &Card, y: Shape) -> Option<wgmma::Problem> {
        let grad = self.pass == Pass::InputGrad;
        wgmma::Problem::of_shapes(grad, self.x, self.w, y, self.conv)
            .filter(|_| card.arch == "sm_90a" && self.dtype != DType::F32)
    }

    fn weight_grad(
        &self,
        op: &'static str,
        y: Shape,
        card: &Card,
        blocking: Option<u32>,
    ) -> Result<Option<Prediction>> {
        let device = mma_weight_grad::Device {
            multiprocessors: card.multiprocessors,
            // What the system keeps of each block's.
            shared: card.shared - 1024,
        };
        let (x, w) = (self.x, self.w);
        let by_wgmma = wgmma_weight_grad::Problem::of_shapes(x, w, y, false, self.conv)
            .filter(|_| card.arch == "sm_90a" && self.dtype != DType::F32 && blocking.is_none())
            .and_then(|problem| problem.plan(card));
        if let Some(plan) = by_wgmma {
            let [rows, cols] = plan.block();
            return Ok(Some(Prediction {
                kernel: wgmma_weight_grad::KERNEL,
                blocking: 0,
                rows,
                cols,
                tile: plan.tile(),
                blocks: plan.blocks(),
                times: plan.times(card, self.bytes()?),
            }));
        }
        let plan = mma_weight_grad::plan(op, self.dtype, x, w, y, false, self.conv, device)?;
        let Some(plan) = plan.filter(|_| blocking.is_none()) else {
            return Ok(None);
        };
        let work = plan.work;
        let mut times = work.times(card, self.bytes()?);
        if !self.noise {
            times.mufu = 0.0;
        }
        Ok(Some(Prediction {
            kernel: "conv2d_mma_weight_grad",
            blocking: 0,
            rows: 64 << plan.p.log_rows,
            cols: (plan.p.windows * 8 * plan.p.taps) as usize,
            tile: [plan.p.images, plan.p.rows, plan.p.cols].map(|v| v as usize),
            blocks: work.pieces * work.splits,
            times,
        }))
    }

    /// The blockings that fit, of the family that a device takes for it; none for weight gradients, which have
    /// no choice. Families may differ in the last bit of a result, so no measurement chooses between them.
    ///
    /// Errors: the shapes do not fit together.
    pub fn blockings(&self, card: &Card) -> Result<Vec<u32>> {
        if self.pass == Pass::WeightGrad {
            return Ok(Vec::new());
        }
        let numbers: Vec<u32> = match self.wgmma(card, self.y()?) {
            Some(problem) => problem.numbers().collect(),
            None => mma::numbers().collect(),
        };
        let mut found = Vec::new();
        for number in numbers {
            let prediction = self.predict(card, None, Some(number))?;
            if prediction.is_some_and(|p| p.blocking == number) {
                found.push(number);
            }
        }
        Ok(found)
    }

    /// The family of kernels that a device takes for it, as tables of measurements name it.
    ///
    /// Errors: the shapes do not fit together.
    pub fn kernel(&self, card: &Card) -> Result<&'static str> {
        Ok(match self.wgmma(card, self.y()?) {
            Some(_) => wgmma::KERNEL,
            None => mma::KERNEL,
        })
    }
}
