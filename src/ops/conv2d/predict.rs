//! What the model says of a convolution on a card, with no device at hand.

use super::Conv2d;
use super::mma::{self, Demands};
use super::model::{Card, Times};
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
    /// The input's shape.
    pub x: Shape,
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
        Ok((self.dtype.size() * (self.x.len() + kept + residual + self.w.len())) as f64)
    }

    /// What it is called in a table of measurements.
    pub fn operation(&self) -> &'static str {
        match self.pass {
            Pass::Forward => mma::operation(false, self.noise),
            Pass::InputGrad => mma::operation(true, false),
            Pass::WeightGrad => "weight grad",
        }
    }

    /// Its shape in a table of measurements.
    pub fn sizes(&self) -> Sizes {
        mma::sizes(self.x, self.w, self.conv)
    }

    /// The model's answer, with a blocking of its choice, the measured one, or the one that is asked for.
    /// `None`: not on tensor cores, or (weight gradients) not modelled.
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
        let grad = match self.pass {
            Pass::Forward => false,
            Pass::InputGrad => true,
            Pass::WeightGrad => return Ok(None),
        };
        let plan = mma::plan(op, grad, self.dtype, self.x, self.w, y, self.conv, demands)?;
        let Some(plan) = plan else { return Ok(None) };
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

    /// The blockings that fit.
    ///
    /// Errors: the shapes do not fit together.
    pub fn blockings(&self, card: &Card) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for number in mma::numbers() {
            let prediction = self.predict(card, None, Some(number))?;
            if prediction.is_some_and(|p| p.blocking == number) {
                found.push(number);
            }
        }
        Ok(found)
    }
}
