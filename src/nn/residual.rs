//! `relu(body(x) + shortcut(x))`.

use super::{ConvBlock, Entry, Grads, Layer, Pass};
use crate::error::Result;
use crate::ops::{add, relu};
use crate::tensor::Tensor;

/// A residual block; without a shortcut the input itself is added.
pub struct Residual {
    body: Vec<ConvBlock>,
    shortcut: Option<ConvBlock>,
    /// The activation's cap, for bounded ReLU.
    cap: Option<f64>,
    saved: Option<Tensor>,
}

impl Residual {
    /// The last block of `body`, and `shortcut`, carry no activation of their own.
    pub fn new(body: Vec<ConvBlock>, shortcut: Option<ConvBlock>, cap: Option<f64>) -> Self {
        Residual {
            body,
            shortcut,
            cap,
            saved: None,
        }
    }
}

impl Layer for Residual {
    fn forward(&mut self, x: Tensor, pass: &Pass) -> Result<Tensor> {
        let straight = match &mut self.shortcut {
            Some(shortcut) => shortcut.forward(x.clone(), pass)?,
            None => x.clone(),
        };
        let bent = self
            .body
            .iter_mut()
            .try_fold(x, |x, block| block.forward(x, pass))?;
        let y = relu::forward(add::forward(bent, &straight)?, self.cap)?;
        self.saved = pass.record.then(|| y.clone());
        Ok(y)
    }

    fn backward(&mut self, dy: Tensor, grads: Grads) -> Result<Tensor> {
        let y = self
            .saved
            .take()
            .expect("backward follows a recorded forward");
        let d = relu::backward(dy, &y, self.cap)?;
        let straight = match &mut self.shortcut {
            Some(shortcut) => shortcut.backward(d.clone(), grads)?,
            None => d.clone(),
        };
        let bent = self
            .body
            .iter_mut()
            .rev()
            .try_fold(d, |d, block| block.backward(d, grads))?;
        add::forward(bent, &straight)
    }

    fn visit(&mut self, visit: &mut dyn FnMut(&str, Entry<'_>)) {
        for block in self.body.iter_mut().chain(&mut self.shortcut) {
            block.visit(visit);
        }
    }
}
