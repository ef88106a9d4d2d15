//! Heads: flattening, global average, linear layers.

use super::{Back, Entry, FrozenDense, Grads, Layer, Layout, Link, Param, Pass};
use crate::error::Result;
use crate::ops::conv2d::Constant;
use crate::ops::{linear, pool2d, relu};
use crate::tensor::{Shape, Tensor};

/// `[n, h, w, c]` to `[n, 1, 1, h*w*c]`, pixels outermost.
#[derive(Default)]
pub struct Flatten {
    saved: Option<Shape>,
}

impl Layer for Flatten {
    fn forward(&mut self, x: Tensor, pass: &Pass, _: &Link<'_>) -> Result<Tensor> {
        let shape = x.shape();
        self.saved = pass.record.then_some(shape);
        x.reshape(Shape::new(shape.n, 1, 1, shape.row_len()))
    }

    fn backward(&mut self, dy: Tensor, _: Back<'_>) -> Result<Option<Tensor>> {
        let shape = self
            .saved
            .take()
            .expect("backward follows a recorded forward");
        dy.reshape(shape).map(Some)
    }

    fn freeze(&self) -> Result<Box<dyn Layer>> {
        Ok(Box::new(Flatten::default()))
    }

    fn visit(&mut self, _: &mut dyn FnMut(&str, Entry<'_>)) {}
}

/// Mean over all pixels.
#[derive(Default)]
pub struct GlobalAverage {
    saved: Option<Shape>,
}

impl Layer for GlobalAverage {
    fn forward(&mut self, x: Tensor, pass: &Pass, _: &Link<'_>) -> Result<Tensor> {
        self.saved = pass.record.then(|| x.shape());
        pool2d::global_average_forward(&x)
    }

    fn backward(&mut self, dy: Tensor, _: Back<'_>) -> Result<Option<Tensor>> {
        let shape = self
            .saved
            .take()
            .expect("backward follows a recorded forward");
        pool2d::global_average_backward(&dy, shape).map(Some)
    }

    fn freeze(&self) -> Result<Box<dyn Layer>> {
        Ok(Box::new(GlobalAverage::default()))
    }

    fn visit(&mut self, _: &mut dyn FnMut(&str, Entry<'_>)) {}
}

/// A linear layer with bias, and a (bounded) ReLU behind it if asked for.
pub struct Dense {
    name: String,
    weight: Param,
    bias: Param,
    layout: Layout,
    /// `Some(cap)` puts a ReLU behind the layer.
    activation: Option<Option<f64>>,
    saved: Option<(Tensor, Option<Tensor>)>,
}

impl Dense {
    /// `weight` is `[out, 1, 1, in]`; `layout` says how it stands in a file.
    pub fn new(
        name: String,
        weight: Param,
        bias: Param,
        layout: Layout,
        activation: Option<Option<f64>>,
    ) -> Self {
        Dense {
            name,
            weight,
            bias,
            layout,
            activation,
            saved: None,
        }
    }
}

impl Layer for Dense {
    fn is_trained(&self) -> bool {
        true
    }

    fn forward(&mut self, x: Tensor, pass: &Pass, _: &Link<'_>) -> Result<Tensor> {
        let y = linear::forward(&x, &self.weight.value, Some(&self.bias.value))?;
        let y = match self.activation {
            Some(cap) => relu::forward(y, cap)?,
            None => y,
        };
        self.saved = pass
            .record
            .then(|| (x, self.activation.is_some().then(|| y.clone())));
        Ok(y)
    }

    fn backward(&mut self, dy: Tensor, back: Back<'_>) -> Result<Option<Tensor>> {
        let (x, y) = self
            .saved
            .take()
            .expect("backward follows a recorded forward");
        let dy = match (self.activation, &y) {
            (Some(cap), Some(y)) => relu::backward(dy, y, cap)?,
            _ => dy,
        };
        if back.grads == Grads::Accumulate {
            linear::weight_grad(&dy, &x, &mut self.weight.grad, Some(&mut self.bias.grad))?;
        }
        let dx = back
            .input
            .then(|| linear::input_grad(&dy, &self.weight.value));
        dx.transpose()
    }

    fn freeze(&self) -> Result<Box<dyn Layer>> {
        let w = Constant::new(self.weight.value.duplicate()?);
        let b = self.bias.value.duplicate()?;
        Ok(Box::new(FrozenDense::new(w, b, self.activation)))
    }

    fn visit(&mut self, visit: &mut dyn FnMut(&str, Entry<'_>)) {
        let name = &self.name;
        visit(
            &format!("{name}.weight"),
            Entry::Param(&mut self.weight, self.layout),
        );
        visit(
            &format!("{name}.bias"),
            Entry::Param(&mut self.bias, Layout::Vector),
        );
    }
}
