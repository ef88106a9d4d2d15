//! A classifier as the schedule asks it, with or without gradients.

use crate::ensemble::{Classifier, Differentiable};
use crate::error::Result;
use crate::ops::noise::Rows;
use crate::tensor::{Device, Shape, Tensor};

/// What the schedule needs of a classifier.
pub(super) trait Net {
    fn classes(&self) -> usize;
    fn input(&self) -> Shape;
    fn device(&self) -> Device;
    fn scores(&mut self, x: &Tensor, rows: &Rows) -> Result<Tensor>;
    fn input_grad(
        &mut self,
        x: &Tensor,
        rows: &Rows,
        gradient: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor>;
}

pub(super) struct Black<'a>(pub &'a mut dyn Classifier);
pub(super) struct White<'a>(pub &'a mut dyn Differentiable);

impl Net for Black<'_> {
    fn classes(&self) -> usize {
        self.0.classes()
    }

    fn input(&self) -> Shape {
        self.0.input()
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn scores(&mut self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        self.0.logits(x, rows)
    }

    fn input_grad(
        &mut self,
        _: &Tensor,
        _: &Rows,
        _: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        unreachable!("a black-box attack has no way to ask for gradients")
    }
}

impl Net for White<'_> {
    fn classes(&self) -> usize {
        self.0.classes()
    }

    fn input(&self) -> Shape {
        self.0.input()
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn scores(&mut self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        self.0.logits(x, rows)
    }

    fn input_grad(
        &mut self,
        x: &Tensor,
        rows: &Rows,
        gradient: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        Ok(self.0.input_grad(x, rows, gradient)?.1)
    }
}
