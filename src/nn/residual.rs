//! `act(body(x) + shortcut(x))`.

use super::{Back, End, Entry, Layer, Link, Pass, chain};
use crate::error::Result;
use crate::ops::conv2d::Then;
use crate::ops::relu::Mask;
use crate::tensor::Tensor;

/// A layer that adds `link.residual` in front of its activation.
pub trait Block: Layer {
    /// [`Layer::backward`], with the residual's gradient.
    fn backward_block(&mut self, dy: Tensor, back: Back<'_>) -> Result<Gradients>;

    /// [`Layer::freeze`].
    fn freeze_block(&self) -> Result<Box<dyn Block>>;
}

/// The gradients of a [`Block`].
pub struct Gradients {
    /// In the input, where it was asked for; with [`Back::then`].
    pub dx: Option<Tensor>,
    /// In the residual, where there was one.
    pub dresidual: Option<Tensor>,
}

/// A residual block; without a shortcut the input itself is added. The body's last block adds it, in
/// front of its activation.
///
/// The input is read twice, each time with noise of its own or without: nobody can add noise to it
/// beforehand.
pub struct Residual {
    body: Vec<Box<dyn Block>>,
    shortcut: Option<Box<dyn Block>>,
}

impl Residual {
    /// Panics without a block in `body`.
    pub fn new(body: Vec<Box<dyn Block>>, shortcut: Option<Box<dyn Block>>) -> Self {
        assert!(!body.is_empty(), "a residual block of nothing");
        Residual { body, shortcut }
    }
}

impl Layer for Residual {
    fn end(&self) -> End {
        self.body.last().expect("not empty").end()
    }

    fn gate(&self) -> Option<&Mask> {
        self.body.last().expect("not empty").gate()
    }

    fn gates(&self) -> bool {
        self.body[0].gates()
    }

    fn is_trained(&self) -> bool {
        self.body.iter().any(|b| b.is_trained())
    }

    fn forward(&mut self, x: Tensor, pass: &Pass, link: &Link<'_>) -> Result<Tensor> {
        let straight = match &mut self.shortcut {
            Some(shortcut) => {
                let link = Link {
                    plan: link.plan,
                    remade: link.remade,
                    ..Link::default()
                };
                shortcut.forward(x.clone(), pass, &link)?
            }
            None => x.clone(),
        };
        let link = Link {
            residual: Some(&straight),
            ..*link
        };
        chain::forward(&mut self.body, x, pass, &link)
    }

    fn backward(&mut self, dy: Tensor, back: Back<'_>) -> Result<Option<Tensor>> {
        let (last, rest) = self.body.split_last_mut().expect("not empty");
        let before = rest.last().map(|b| b as &dyn Layer).or(back.before);
        let then = match rest.last() {
            None => Then::default(),
            Some(before) => chain::behind(&*last, before),
        };
        let Gradients { dx, dresidual } = last.backward_block(
            dy,
            Back {
                grads: back.grads,
                input: back.input || !rest.is_empty(),
                then,
                gated: back.gated,
                before,
            },
        )?;
        let gated = then.gate.is_some();
        let straight = dresidual.expect("forward gave it one");
        let straight = match &mut self.shortcut {
            Some(shortcut) => {
                let back = Back {
                    then: Then::default(),
                    gated: false,
                    ..back
                };
                shortcut.backward(straight, back)?
            }
            None => Some(straight),
        };
        // The body's first block adds the other branch's gradient.
        let back = Back {
            then: Then {
                plus: straight.as_ref(),
                gate: back.then.gate,
            },
            gated,
            ..back
        };
        match dx {
            Some(dx) => chain::backward(rest, dx, back),
            None => Ok(None),
        }
    }

    fn freeze(&self) -> Result<Box<dyn Layer>> {
        let body = self.body.iter().map(|block| block.freeze_block());
        let shortcut = self.shortcut.as_ref().map(|block| block.freeze_block());
        Ok(Box::new(Residual::new(
            body.collect::<Result<_>>()?,
            shortcut.transpose()?,
        )))
    }

    fn visit(&mut self, visit: &mut dyn FnMut(&str, Entry<'_>)) {
        for block in self.body.iter_mut().chain(&mut self.shortcut) {
            block.visit(visit);
        }
    }
}
