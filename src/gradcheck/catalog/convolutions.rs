//! Convolutions: alone, with noise in their load, with all that may follow.

use super::{clip_kinks, draw, pixel_differences, zeros};
use crate::error::Result;
use crate::gradcheck::{Check, Report, normal};
use crate::ops::batch_norm::Activation;
use crate::ops::conv2d::{self, Conv2d, Input};
use crate::ops::fused_conv2d::{self, Epilogue, Extras};
use crate::ops::noise::Normals;
use crate::ops::noisy_conv2d;
use crate::ops::pool2d::Pool2d;
use crate::tensor::{Shape, Tensor};

/// Name, x, c_out, k and geometry of the convolutions checked.
const CONVOLUTIONS: [(&str, Shape, usize, usize, Conv2d); 5] = [
    (
        "3x3",
        Shape::new(2, 5, 6, 3),
        9,
        3,
        Conv2d {
            stride: 1,
            pad: 1,
            groups: 1,
        },
    ),
    (
        "3x3 stride 2",
        Shape::new(1, 7, 6, 17),
        4,
        3,
        Conv2d {
            stride: 2,
            pad: 1,
            groups: 1,
        },
    ),
    (
        "1x1 stride 2",
        Shape::new(2, 5, 5, 8),
        17,
        1,
        Conv2d {
            stride: 2,
            pad: 0,
            groups: 1,
        },
    ),
    (
        "3x3 groups 2",
        Shape::new(2, 4, 5, 6),
        10,
        3,
        Conv2d {
            stride: 1,
            pad: 1,
            groups: 2,
        },
    ),
    (
        "5x5 pad 3",
        Shape::new(1, 4, 3, 2),
        3,
        5,
        Conv2d {
            stride: 1,
            pad: 3,
            groups: 1,
        },
    ),
];

pub(super) fn conv2d() -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    for (name, x, c_out, k, conv) in CONVOLUTIONS {
        let w = normal(2, Shape::new(c_out, k, k, x.c / conv.groups));
        reports.push(
            Check::new(format!("conv2d, {name}"))
                .input("x", &normal(1, x))
                .input("w", &w)
                .input("b", &normal(3, Shape::vector(c_out)))
                .run(
                    |i| conv2d::forward(&i[0], &i[1], Some(&i[2]), conv),
                    |i, dy| {
                        let (mut dw, mut db) = (zeros(&i[1]), zeros(&i[2]));
                        conv2d::weight_grad(dy, &i[0], &mut dw, Some(&mut db), conv)?;
                        Ok(vec![conv2d::input_grad(dy, &i[1], x, conv)?, dw, db])
                    },
                )?,
        );
    }
    Ok(reports)
}

pub(super) fn noisy_conv2d() -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    for (name, x, c_out, k, conv) in CONVOLUTIONS {
        let noise = draw(x.n, Normals::Fast);
        let w = normal(2, Shape::new(c_out, k, k, x.c / conv.groups));
        reports.push(
            Check::new(format!("noisy_conv2d, {name}"))
                .input("x", &normal(1, x))
                .input("w", &w)
                .input("b", &normal(3, Shape::vector(c_out)))
                .run(
                    |i| noisy_conv2d::forward(&i[0], &noise, &i[1], Some(&i[2]), conv),
                    |i, dy| {
                        let (mut dw, mut db) = (zeros(&i[1]), zeros(&i[2]));
                        noisy_conv2d::weight_grad(dy, &i[0], &noise, &mut dw, Some(&mut db), conv)?;
                        Ok(vec![conv2d::input_grad(dy, &i[1], x, conv)?, dw, db])
                    },
                )?,
        );
    }
    Ok(reports)
}

/// The fused convolution on `x`, `w`, `b`, `residual`, with noise on both sides.
fn fused_pass(
    i: &[Tensor],
    conv: Conv2d,
    activation: Activation,
    pool: Option<Pool2d>,
) -> Result<(Tensor, Extras)> {
    let noise = draw(i[0].shape().n, Normals::Fast);
    let epilogue = Epilogue {
        residual: Some(&i[3]),
        activation,
        pool,
        noise: Some(&noise),
        record: true,
        ..Epilogue::default()
    };
    let input = Input::noisy(&i[0], Some(&noise));
    fused_conv2d::forward(input, &i[1], Some(&i[2]), conv, &epilogue)
}

pub(super) fn fused_conv2d() -> Result<Vec<Report>> {
    let (cap, pool) = (0.9, Some(Pool2d { k: 2, stride: 2 }));
    let mut reports = Vec::new();
    for (name, x, c_out, k, conv) in CONVOLUTIONS {
        let w = normal(2, Shape::new(c_out, k, k, x.c / conv.groups));
        let v = conv.output_shape("gradcheck", x, w.shape())?;
        let brelu = Activation::BoundedRelu(cap);
        let report = Check::new(format!("fused_conv2d, {name}"))
            .input("x", &normal(1, x))
            .input("w", &w)
            .input("b", &normal(3, Shape::vector(c_out)))
            .input("residual", &normal(4, v))
            .kinks(move |i| {
                let (v, _) = fused_pass_before(i, conv)?;
                Ok([clip_kinks(&v, cap), pixel_differences(&v)].concat())
            })
            .run(
                |i| Ok(fused_pass(i, conv, brelu, pool)?.0),
                |i, dy| {
                    let (_, extras) = fused_pass(i, conv, brelu, pool)?;
                    let dv = fused_conv2d::output_grad(dy.clone(), v, pool, &extras)?;
                    let noise = draw(x.n, Normals::Fast);
                    let (mut dw, mut db) = (zeros(&i[1]), zeros(&i[2]));
                    noisy_conv2d::weight_grad(&dv, &i[0], &noise, &mut dw, Some(&mut db), conv)?;
                    let dx = conv2d::input_grad(&dv, &i[1], x, conv)?;
                    Ok(vec![dx, dw, db, dv])
                },
            )?;
        reports.push(report);
    }
    Ok(reports)
}

/// What the activation of [`fused_pass`] sees.
fn fused_pass_before(i: &[Tensor], conv: Conv2d) -> Result<(Tensor, Extras)> {
    let noise = draw(i[0].shape().n, Normals::Fast);
    let epilogue = Epilogue {
        residual: Some(&i[3]),
        ..Epilogue::default()
    };
    let input = Input::noisy(&i[0], Some(&noise));
    fused_conv2d::forward(input, &i[1], Some(&i[2]), conv, &epilogue)
}
