//! Batch norm: its state, and the layer that it is where no convolution stands in front of it.

use super::{Back, Block, End, Entry, Gradients, Grads, Layer, Layout, Link, Mode, Param, Pass};
use crate::error::Result;
use crate::ops::apply::{self, Norm, Then};
use crate::ops::batch_norm::{Activation, Partials, Running};
use crate::ops::noise::Noise;
use crate::tensor::Tensor;

/// A batch norm's parameters and running estimates.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    /// Name in the `state_dict`, e.g. `features.1`.
    pub name: String,
    /// Scale and shift, `[1, 1, 1, c]` each.
    pub affine: Option<(Param, Param)>,
    /// What evaluation normalises with.
    pub running: Running,
    /// Batches seen in training.
    pub count: u64,
}

/// A batch norm's scale and shift.
type Affine<T> = Option<(T, T)>;

impl BatchNorm {
    /// Scale and shift.
    pub(super) fn affine(&self) -> Affine<&Tensor> {
        self.affine.as_ref().map(|(g, b)| (&g.value, &b.value))
    }

    /// What a forward pass normalises with; in training the running estimates are to move. `partials` are
    /// the batch's statistics, where they are known.
    pub(super) fn begin(&mut self, mode: Mode, partials: Option<Partials>) -> Norm<'_> {
        let affine = self.affine.as_ref().map(|(g, b)| (&g.value, &b.value));
        match mode {
            Mode::Train => {
                self.count += 1;
                Norm::Train {
                    affine,
                    running: &mut self.running,
                    partials,
                }
            }
            Mode::Eval => Norm::Eval {
                affine,
                running: &self.running,
            },
        }
    }

    /// Scale and shift, and where `trained` their gradients to add to.
    pub(super) fn split(&mut self, trained: bool) -> (Affine<&Tensor>, Affine<&mut Tensor>) {
        match &mut self.affine {
            Some((g, b)) => (
                Some((&g.value, &b.value)),
                trained.then_some((&mut g.grad, &mut b.grad)),
            ),
            None => (None, None),
        }
    }

    /// [`Layer::visit`].
    pub(super) fn visit(&mut self, visit: &mut dyn FnMut(&str, Entry<'_>)) {
        let name = &self.name;
        if let Some((gamma, beta)) = &mut self.affine {
            visit(
                &format!("{name}.weight"),
                Entry::Param(gamma, Layout::Vector),
            );
            visit(&format!("{name}.bias"), Entry::Param(beta, Layout::Vector));
        }
        visit(
            &format!("{name}.running_mean"),
            Entry::Buffer(&mut self.running.mean, Layout::Vector),
        );
        visit(
            &format!("{name}.running_var"),
            Entry::Buffer(&mut self.running.var, Layout::Vector),
        );
        visit(
            &format!("{name}.num_batches_tracked"),
            Entry::Count(&mut self.count),
        );
    }

    /// The same numbers, which no training of these reaches.
    fn duplicate(&self) -> Result<Self> {
        let param = |p: &Param| Param::new(p.value.duplicate()?);
        let affine = match &self.affine {
            Some((gamma, beta)) => Some((param(gamma)?, param(beta)?)),
            None => None,
        };
        Ok(BatchNorm {
            name: self.name.clone(),
            affine,
            running: Running {
                mean: self.running.mean.duplicate()?,
                var: self.running.var.duplicate()?,
            },
            count: self.count,
        })
    }
}

/// `activation(batch_norm(x) + residual)`: the pass that stands behind a convolution elsewhere, in front
/// of one. That is how networks with pre-activation begin a residual block (He et al. 2016), where `x` is
/// a sum which the block's other branch reads too, so that no convolution's weights can take the batch
/// norm in.
pub struct NormBlock {
    norm: BatchNorm,
    activation: Activation,
    saved: Option<Saved>,
}

/// What backward needs of forward.
struct Saved {
    applied: apply::Saved,
    /// The noise added at the end, to make the output again.
    next: Option<Noise>,
}

impl NormBlock {
    /// A block that has not run yet.
    pub fn new(norm: BatchNorm, activation: Activation) -> Self {
        NormBlock {
            norm,
            activation,
            saved: None,
        }
    }

    fn duplicate(&self) -> Result<Self> {
        Ok(NormBlock::new(self.norm.duplicate()?, self.activation))
    }
}

impl Block for NormBlock {
    fn backward_block(&mut self, dy: Tensor, back: Back<'_>) -> Result<Gradients> {
        let saved = self.saved.take();
        let Saved { applied, .. } = saved.expect("backward follows a recorded forward");
        let (affine, affine_grads) = self.norm.split(back.grads == Grads::Accumulate);
        let apply::Gradients { dx, dresidual } =
            apply::backward(dy, affine, applied, affine_grads)?;
        Ok(Gradients {
            dx: Some(back.then.follow(dx)?),
            dresidual,
        })
    }

    fn freeze_block(&self) -> Result<Box<dyn Block>> {
        Ok(Box::new(self.duplicate()?))
    }
}

impl Layer for NormBlock {
    fn end(&self) -> End {
        End::Apply
    }

    fn is_trained(&self) -> bool {
        self.norm.affine.is_some()
    }

    fn forward(&mut self, x: Tensor, pass: &Pass, link: &Link<'_>) -> Result<Tensor> {
        let then = Then {
            residual: link.residual,
            activation: self.activation,
            pool: None,
            noise: link.next,
            record: pass.record,
        };
        let (y, applied) = apply::forward(x, self.norm.begin(pass.mode, None), &then)?;
        self.saved = applied.map(|applied| Saved {
            applied,
            next: link.next.cloned(),
        });
        Ok(y)
    }

    fn backward(&mut self, dy: Tensor, back: Back<'_>) -> Result<Option<Tensor>> {
        Ok(self.backward_block(dy, back)?.dx)
    }

    fn remakes(&self) -> bool {
        true
    }

    fn remake(&self) -> Result<Tensor> {
        let saved = self.saved.as_ref();
        let Saved { applied, next } = saved.expect("a recorded forward comes before");
        let again = applied.again(self.norm.affine(), next.as_ref())?;
        Ok(again.expect("there is a batch norm"))
    }

    fn freeze(&self) -> Result<Box<dyn Layer>> {
        Ok(Box::new(self.duplicate()?))
    }

    fn visit(&mut self, visit: &mut dyn FnMut(&str, Entry<'_>)) {
        self.norm.visit(visit);
    }
}
