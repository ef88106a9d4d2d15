//! Layers one after another: where the noise between two of them is drawn, and what is kept of it.

use std::fmt;
use std::str::FromStr;

use super::{Grads, Layer, Pass};
use crate::error::{Error, Result};
use crate::ops::conv2d::Then;
use crate::ops::ensemble::repeat;
use crate::ops::noise::{self, Noise};
use crate::tensor::Tensor;

/// Which pass over the data draws the noise in front of a convolution. The key says what is drawn; the
/// place costs time and memory, and changes no bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Site {
    /// The one that is cheapest: on a GPU the layer before, wherever nobody else reads its output;
    /// elsewhere the convolution itself on the CPU and where it has few channels or runs in f32, and a
    /// pass of its own where it does not.
    ///
    /// A convolution draws its patch's noise once per tile and again for the weight gradient, overlaps
    /// included; a pass that writes the operand anyway draws every element once.
    #[default]
    Auto,
    /// The convolution, while it loads its operand.
    Load,
    /// The pass behind the convolution before, which normalises, activates and pools. Where a layer does
    /// not end in one, [`Site::Load`].
    Apply,
    /// The convolution before, while it writes its result: in a frozen network, whose convolutions do all
    /// that themselves. Elsewhere [`Site::Load`].
    Epilogue,
}

impl Site {
    const ALL: [Site; 4] = [Site::Auto, Site::Load, Site::Apply, Site::Epilogue];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Site::Auto => "auto",
            Site::Load => "load",
            Site::Apply => "apply",
            Site::Epilogue => "epilogue",
        }
    }

    /// Whether a pass of its own draws the noise on `x`, which nobody has drawn yet.
    pub(super) fn is_alone(self, x: &Tensor) -> bool {
        self == Site::Auto && x.gpu().is_some() && !noise::in_load(x.dtype(), x.shape().c)
    }

    /// Whether the layer that wrote `x`'s successor draws the noise of the next one.
    fn is_before(self, end: End, x: &Tensor) -> bool {
        match self {
            Site::Auto => end != End::Other && x.gpu().is_some(),
            Site::Load => false,
            Site::Apply => end == End::Apply,
            Site::Epilogue => end == End::Epilogue,
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Site {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let expected = "auto, load, apply or epilogue";
        let found = Site::ALL.into_iter().find(|site| site.name() == s);
        found.ok_or_else(|| Error::argument("nn", "site", expected, s))
    }
}

/// How a network handles its noise. No number depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NoisePlan {
    /// Where it is drawn.
    pub site: Site,
    /// Blocks do not keep their input for the weight gradient, where the block before can make it again
    /// from what it keeps itself, its convolution's result: less memory, one more pass over it and one
    /// more draw.
    pub recompute: bool,
}

/// The last pass of a layer, which can take the next layer's noise along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The pass behind a convolution, [`apply`](crate::ops::apply).
    Apply,
    /// A convolution's own, [`fused_conv2d`](crate::ops::fused_conv2d).
    Epilogue,
    /// Another one, which cannot.
    Other,
}

/// How a layer stands between its neighbours in a forward pass.
#[derive(Clone, Copy)]
pub struct Link<'a> {
    /// For the layers inside.
    pub plan: NoisePlan,
    /// Whether `x` carries the layer's noise already.
    pub drawn: bool,
    /// Whether the layer before can make `x` again, so that it need not be kept.
    pub remade: bool,
    /// The next layer's noise, to be added to `y`; for layers with an [`End`] that can.
    pub next: Option<&'a Noise>,
    /// To be added in front of the last activation; for blocks.
    pub residual: Option<&'a Tensor>,
    /// Rows of the batch that each row of `x` makes, one after the other: an ensemble's draws, in front of the
    /// first layer. 1 for layers that do not [take](Layer::takes_draws) more.
    pub draws: usize,
}

impl Default for Link<'_> {
    /// A layer by itself.
    fn default() -> Self {
        Link {
            plan: NoisePlan::default(),
            drawn: false,
            remade: false,
            next: None,
            residual: None,
            draws: 1,
        }
    }
}

/// What a backward pass is to find.
#[derive(Clone, Copy)]
pub struct Back<'a> {
    /// Which gradients.
    pub grads: Grads,
    /// Whether anybody needs the gradient in the layer's input.
    pub input: bool,
    /// What follows the gradient in the layer's input: the one that the input got elsewhere, for blocks, and
    /// the [gate](Layer::gate) of the layer before, for layers that [apply](Layer::gates) it.
    pub then: Then<'a>,
    /// Whether the next layer has applied this one's gate to `dy`.
    pub gated: bool,
    /// The layer before, to make the input again where it was not kept.
    pub before: Option<&'a dyn Layer>,
}

/// Runs layers in order. `link` is the first one's on its left side, the last one's on its right.
pub(crate) fn forward<L: Layer>(
    layers: &mut [L],
    mut x: Tensor,
    pass: &Pass,
    link: &Link<'_>,
) -> Result<Tensor> {
    let plan = link.plan;
    let mut draws = link.draws;
    if !layers.first().is_some_and(L::takes_draws) {
        x = repeat(&x, 0..x.shape().n, draws)?;
        draws = 1;
    }
    let (mut drawn, mut remade) = (link.drawn, link.remade);
    for i in 0..layers.len() {
        let (layer, last) = (&layers[i], i + 1 == layers.len());
        let own = match last {
            true => None,
            false => layers[i + 1].noise(pass),
        };
        let own = own.filter(|_| plan.site.is_before(layer.end(), &x));
        let link = Link {
            plan,
            drawn,
            remade,
            next: if last { link.next } else { own.as_ref() },
            residual: link.residual.filter(|_| last),
            draws,
        };
        x = layers[i].forward(x, pass, &link)?;
        draws = 1;
        drawn = own.is_some();
        remade = plan.recompute && layers[i].remakes();
    }
    Ok(x)
}

/// What follows the gradient in a layer's input, which is the output of the layer before.
pub(super) fn behind<'a, L: Layer>(layer: &L, before: &'a L) -> Then<'a> {
    Then {
        plus: None,
        gate: before.gate().filter(|_| layer.gates()),
    }
}

/// Runs backward passes in reverse order; `None` if nobody needs the gradient in the input.
pub(crate) fn backward<L: Layer>(
    layers: &mut [L],
    mut dy: Tensor,
    back: Back<'_>,
) -> Result<Option<Tensor>> {
    // Where only parameters' gradients are wanted, what lies before all parameters has nothing to find.
    let first = match back.input {
        true => 0,
        false => layers
            .iter()
            .position(|l| l.is_trained())
            .unwrap_or(layers.len()),
    };
    let mut gated = back.gated;
    for i in (first..layers.len()).rev() {
        let (before, rest) = layers.split_at_mut(i);
        let then = match before.last() {
            None => back.then,
            Some(before) => behind(&rest[0], before),
        };
        let dx = rest[0].backward(
            dy,
            Back {
                grads: back.grads,
                input: back.input || i > first,
                then,
                gated,
                before: before.last().map(|l| l as &dyn Layer).or(back.before),
            },
        )?;
        gated = then.gate.is_some();
        match dx {
            Some(dx) => dy = dx,
            None => return Ok(None),
        }
    }
    if layers.is_empty() {
        dy = back.then.follow(dy)?;
    }
    Ok(back.input.then_some(dy))
}
