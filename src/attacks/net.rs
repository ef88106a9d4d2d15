//! A classifier that shows scores alone, where the schedule wants one that could show more.

use crate::ensemble::{Classifier, Differentiable};
use crate::error::Result;
use crate::ops::noise::Rows;
use crate::tensor::{Device, Shape, Tensor};

/// Black-box attacks have no way to ask for gradients: nobody calls `input_grad`.
pub(super) struct ScoresOnly<'a>(pub &'a mut dyn Classifier);

impl Classifier for ScoresOnly<'_> {
    fn classes(&self) -> usize {
        self.0.classes()
    }

    fn input(&self) -> Shape {
        self.0.input()
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn rows_are_independent(&self) -> bool {
        self.0.rows_are_independent()
    }

    fn logits(&mut self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        self.0.logits(x, rows)
    }
}

impl Differentiable for ScoresOnly<'_> {
    fn input_grad(
        &mut self,
        _: &Tensor,
        _: &Rows,
        _: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        unreachable!("a black-box attack has no way to ask for gradients")
    }
}
