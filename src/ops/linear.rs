//! `y = x w^T + b`.
//!
//! A linear layer is a convolution with a kernel of one pixel over images of one pixel, and that is
//! how it is computed: each element is one sum in the order of the inputs, so that a row of the
//! result does not depend on the batch around it.

use super::conv2d::{self, Conv2d, Then, Weights};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

const CONV: Conv2d = Conv2d {
    stride: 1,
    pad: 0,
    groups: 1,
};

/// An error unless `shape` is `[n, 1, 1, c]` with sizes of at least 1.
fn expect_rows(op: &'static str, arg: &'static str, shape: Shape) -> Result<()> {
    if shape.h != 1 || shape.w != 1 || shape.is_empty() {
        return Err(Error::argument(
            op,
            arg,
            "a shape [n, 1, 1, c], n and c at least 1",
            shape,
        ));
    }
    Ok(())
}

/// x `[n, 1, 1, in]`, w `[out, 1, 1, in]`, b `[1, 1, 1, out]`, y `[n, 1, 1, out]`.
pub fn forward<'w>(x: &Tensor, w: impl Into<Weights<'w>>, b: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "linear::forward";
    let w = w.into();
    expect_rows(OP, "x", x.shape())?;
    expect_rows(OP, "w", w.shape())?;
    w.expect(OP, "w", w.shape().with_c(x.shape().c), x.kind().master())?;
    if x.gpu().is_some() {
        return conv2d::forward_of(OP, &x.into(), w, b, CONV);
    }
    // The bias last: where it is large, a sum that began with it would lose the products' digits.
    let mut y = conv2d::forward_of(OP, &x.into(), w, None, CONV)?;
    if let Some(b) = b {
        b.expect(OP, "b", Shape::vector(y.shape().c), y.kind())?;
        let c = y.shape().c;
        dispatch!(y.dtype(), T => {
            for row in y.data_mut::<T>().chunks_mut(c) {
                for (y, b) in row.iter_mut().zip(b.data::<T>()) {
                    *y += *b;
                }
            }
        });
    }
    Ok(y)
}

/// Gradient in `x`: `dx = dy w`.
pub fn input_grad<'w>(dy: &Tensor, w: impl Into<Weights<'w>>) -> Result<Tensor> {
    const OP: &str = "linear::input_grad";
    let w = w.into();
    expect_rows(OP, "dy", dy.shape())?;
    expect_rows(OP, "w", w.shape())?;
    conv2d::input_grad_of(
        OP,
        dy,
        w,
        dy.shape().with_c(w.shape().c),
        CONV,
        &Then::default(),
    )
}

/// Adds `dy^T x` to `dw` and the column sums of `dy` to `db`.
pub fn weight_grad(
    dy: &Tensor,
    x: &Tensor,
    dw: &mut Tensor,
    db: Option<&mut Tensor>,
) -> Result<()> {
    const OP: &str = "linear::weight_grad";
    expect_rows(OP, "dy", dy.shape())?;
    expect_rows(OP, "x", x.shape())?;
    let shape = Shape::new(dy.shape().c, 1, 1, x.shape().c);
    dw.expect(OP, "dw", shape, x.kind().master())?;
    conv2d::weight_grad_noisy(OP, dy, x, None, dw, db, CONV)
}
