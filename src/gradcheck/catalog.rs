//! Checks of this library's own ops.
//!
//! Shapes are small and ragged: odd sizes, windows and groups that leave a rest, one channel more
//! than a vector.

mod convolutions;

use convolutions::{conv2d, fused_conv2d, noisy_conv2d};

use super::{Check, Report, check_network, normal};
use crate::error::Result;
use crate::models::{Arch, Config, Model};
use crate::nn::{Mode, Pass};
use crate::ops::batch_norm::{self, Activation, Running};
use crate::ops::loss::Scaling;
use crate::ops::margin::{self, Direction};
use crate::ops::noise::{self, Key, Noise, Normals, Purpose};
use crate::ops::pool2d::{self, Pool2d};
use crate::ops::{add, apply, linear, loss, relu};
use crate::tensor::{DType, Shape, Tensor};

/// Runs the checks of one op, one report per shape and mode.
pub type OpChecks = fn() -> Result<Vec<Report>>;

/// Name and checks of every op.
pub fn all() -> Vec<(&'static str, OpChecks)> {
    vec![
        ("noise", noise),
        ("conv2d", conv2d),
        ("noisy_conv2d", noisy_conv2d),
        ("fused_conv2d", fused_conv2d),
        ("linear", linear),
        ("batch_norm", batch_norm),
        ("relu", relu),
        ("brelu", brelu),
        ("max_pool2d", max_pool2d),
        ("average_pool2d", average_pool2d),
        ("global_average_pool2d", global_average_pool2d),
        ("add", add),
        ("apply", apply),
        ("cross_entropy", cross_entropy),
        ("distillation", distillation),
        ("margin", margin),
        ("network", network),
    ]
}

fn zeros(like: &Tensor) -> Tensor {
    Tensor::zeros(like.shape(), DType::F64)
}

/// A draw for `n` rows that are not in order.
fn draw(n: usize, normals: Normals) -> Noise {
    let mut key = Key::consecutive(7, Purpose::Test, 3, n, 2);
    key.rows = key.rows.iter().rev().copied().collect();
    Noise {
        key,
        layer: 4,
        sigma: 0.3,
        normals,
    }
}

fn noise() -> Result<Vec<Report>> {
    let x = normal(1, Shape::new(3, 3, 2, 17));
    let check = |name: &str, normals| {
        let noise = draw(3, normals);
        Check::new(name).input("x", &x).run(
            |i| noise::forward(&i[0], &noise),
            |_, dy| Ok(vec![dy.clone()]),
        )
    };
    Ok(vec![
        check("noise, fast", Normals::Fast)?,
        check("noise, precise", Normals::Precise)?,
    ])
}

fn linear() -> Result<Vec<Report>> {
    let report = Check::new("linear")
        .input("x", &normal(1, Shape::new(5, 1, 1, 19)))
        .input("w", &normal(2, Shape::new(7, 1, 1, 19)))
        .input("b", &normal(3, Shape::vector(7)))
        .run(
            |i| linear::forward(&i[0], &i[1], Some(&i[2])),
            |i, dy| {
                let (mut dw, mut db) = (zeros(&i[1]), zeros(&i[2]));
                linear::weight_grad(dy, &i[0], &mut dw, Some(&mut db))?;
                Ok(vec![linear::input_grad(dy, &i[1])?, dw, db])
            },
        )?;
    Ok(vec![report])
}

/// One batch norm, of the batch's statistics or of `running` ones, with or without affine.
fn batch_norm_pass(
    inputs: &[Tensor],
    running: Option<&Running>,
    activation: Activation,
) -> Result<(Tensor, batch_norm::Saved)> {
    let affine = (inputs.len() == 3).then(|| (&inputs[1], &inputs[2]));
    match running {
        Some(running) => batch_norm::forward_eval(&inputs[0], affine, running, activation),
        None => {
            let vector = Shape::vector(inputs[0].shape().c);
            let mut moved = Running {
                mean: Tensor::zeros(vector, DType::F64),
                var: Tensor::full(vector, DType::F64, 1.0),
            };
            batch_norm::forward_train(&inputs[0], affine, &mut moved, activation)
        }
    }
}

fn batch_norm() -> Result<Vec<Report>> {
    let x = normal(1, Shape::new(3, 4, 5, 11));
    let (gamma, beta) = (normal(2, Shape::vector(11)), normal(3, Shape::vector(11)));
    let running = Running {
        mean: normal(4, Shape::vector(11)),
        var: Tensor::full(Shape::vector(11), DType::F64, 1.7),
    };
    let mut reports = Vec::new();
    for (mode, running) in [("train", None), ("eval", Some(&running))] {
        for (name, activation, cap) in [
            ("identity", Activation::Identity, None),
            ("relu", Activation::Relu, Some(f64::INFINITY)),
            ("brelu", Activation::BoundedRelu(0.8), Some(0.8)),
        ] {
            for affine in [true, false] {
                let without = if affine { "" } else { ", no affine" };
                let mut check =
                    Check::new(format!("batch_norm {mode}, {name}{without}")).input("x", &x);
                if affine {
                    check = check.input("gamma", &gamma).input("beta", &beta);
                }
                if let Some(cap) = cap {
                    check = check.kinks(move |i| {
                        let (v, _) = batch_norm_pass(i, running, Activation::Identity)?;
                        Ok(clip_kinks(&v, cap))
                    });
                }
                reports.push(check.run(
                    |i| Ok(batch_norm_pass(i, running, activation)?.0),
                    |i, dy| {
                        let (_, saved) = batch_norm_pass(i, running, activation)?;
                        let (mut dgamma, mut dbeta) = (zeros(&gamma), zeros(&beta));
                        let with = affine.then(|| (&i[1], &i[2]));
                        let grads = affine.then_some((&mut dgamma, &mut dbeta));
                        let dx = batch_norm::backward(
                            dy.clone(),
                            &i[0],
                            with,
                            &saved,
                            activation,
                            grads,
                        )?;
                        Ok(if affine {
                            vec![dx, dgamma, dbeta]
                        } else {
                            vec![dx]
                        })
                    },
                )?);
            }
        }
    }
    Ok(reports)
}

/// The kinks of `min(max(v, 0), cap)`.
fn clip_kinks(v: &Tensor, cap: f64) -> Vec<f64> {
    let v = v.to_f64_vec();
    v.iter().copied().chain(v.iter().map(|v| v - cap)).collect()
}

fn clipped(name: &str, cap: Option<f64>) -> Result<Vec<Report>> {
    let report = Check::new(name)
        .input("x", &normal(1, Shape::new(2, 3, 5, 17)))
        .kinks(|i| Ok(clip_kinks(&i[0], cap.unwrap_or(f64::INFINITY))))
        .run(
            |i| relu::forward(i[0].clone(), cap),
            |i, dy| {
                let y = relu::forward(i[0].clone(), cap)?;
                Ok(vec![relu::backward(dy.clone(), &y, cap)?])
            },
        )?;
    Ok(vec![report])
}

fn relu() -> Result<Vec<Report>> {
    clipped("relu", None)
}

fn brelu() -> Result<Vec<Report>> {
    clipped("brelu", Some(0.7))
}

/// Name and windows of the poolings checked: side by side, overlapping and with gaps.
const POOLS: [(&str, Pool2d); 3] = [
    ("2x2 stride 2", Pool2d { k: 2, stride: 2 }),
    ("3x3 stride 2", Pool2d { k: 3, stride: 2 }),
    ("2x2 stride 3", Pool2d { k: 2, stride: 3 }),
];

const POOLED: Shape = Shape::new(2, 7, 6, 5);

/// Differences between all pixels of an image: max pooling's kinks are among them.
fn pixel_differences(x: &Tensor) -> Vec<f64> {
    let shape = x.shape();
    let (pixels, values) = (shape.h * shape.w, x.to_f64_vec());
    let mut out = Vec::new();
    for row in values.chunks(shape.row_len()) {
        for c in 0..shape.c {
            for p in 0..pixels {
                for q in 0..p {
                    out.push(row[p * shape.c + c] - row[q * shape.c + c]);
                }
            }
        }
    }
    out
}

fn max_pool2d() -> Result<Vec<Report>> {
    let check = |(name, pool): (&str, Pool2d)| {
        Check::new(format!("max_pool2d, {name}"))
            .input("x", &normal(1, POOLED))
            .kinks(|i| Ok(pixel_differences(&i[0])))
            .run(
                |i| Ok(pool2d::max_forward(&i[0], pool)?.0),
                |i, dy| {
                    let (_, argmax) = pool2d::max_forward(&i[0], pool)?;
                    Ok(vec![pool2d::max_backward(dy, &argmax, POOLED, pool)?])
                },
            )
    };
    POOLS.into_iter().map(check).collect()
}

fn average_pool2d() -> Result<Vec<Report>> {
    let check = |(name, pool): (&str, Pool2d)| {
        Check::new(format!("average_pool2d, {name}"))
            .input("x", &normal(1, POOLED))
            .run(
                |i| pool2d::average_forward(&i[0], pool),
                |_, dy| Ok(vec![pool2d::average_backward(dy, POOLED, pool)?]),
            )
    };
    POOLS.into_iter().map(check).collect()
}

fn global_average_pool2d() -> Result<Vec<Report>> {
    let report = Check::new("global_average_pool2d")
        .input("x", &normal(1, POOLED))
        .run(
            |i| pool2d::global_average_forward(&i[0]),
            |_, dy| Ok(vec![pool2d::global_average_backward(dy, POOLED)?]),
        )?;
    Ok(vec![report])
}

fn add() -> Result<Vec<Report>> {
    let shape = Shape::new(2, 3, 3, 5);
    let report = Check::new("add")
        .input("a", &normal(1, shape))
        .input("b", &normal(2, shape))
        .run(
            |i| add::forward(i[0].clone(), &i[1]),
            |_, dy| Ok(vec![dy.clone(), dy.clone()]),
        )?;
    Ok(vec![report])
}

/// The fused pass on `x`, `residual`, `gamma`, `beta`, with noise at its end.
fn apply_pass(
    i: &[Tensor],
    activation: Activation,
    pool: Option<Pool2d>,
) -> Result<(Tensor, apply::Saved)> {
    let vector = i[2].shape();
    let mut running = Running {
        mean: Tensor::zeros(vector, DType::F64),
        var: Tensor::full(vector, DType::F64, 1.0),
    };
    let norm = apply::Norm::Train {
        affine: Some((&i[2], &i[3])),
        running: &mut running,
        partials: None,
    };
    let then = apply::Then {
        residual: Some(&i[1]),
        activation,
        pool,
        noise: Some(&draw(i[0].shape().n, Normals::Fast)),
        record: true,
    };
    let (y, saved) = apply::forward(i[0].clone(), norm, &then)?;
    Ok((y, saved.expect("recorded")))
}

fn apply() -> Result<Vec<Report>> {
    let (cap, pool) = (0.9, Some(Pool2d { k: 2, stride: 2 }));
    let brelu = Activation::BoundedRelu(cap);
    let report = Check::new("apply")
        .input("x", &normal(1, POOLED))
        .input("residual", &normal(2, POOLED))
        .input("gamma", &normal(3, Shape::vector(POOLED.c)))
        .input("beta", &normal(4, Shape::vector(POOLED.c)))
        .kinks(move |i| {
            let inputs = [&i[0], &i[2], &i[3]].map(Tensor::clone);
            let (v, _) = batch_norm_pass(&inputs, None, Activation::Identity)?;
            let v = add::forward(v, &i[1])?;
            Ok([clip_kinks(&v, cap), pixel_differences(&v)].concat())
        })
        .run(
            |i| Ok(apply_pass(i, brelu, pool)?.0),
            |i, dy| {
                let (_, saved) = apply_pass(i, brelu, pool)?;
                let (mut dgamma, mut dbeta) = (zeros(&i[2]), zeros(&i[3]));
                let grads = Some((&mut dgamma, &mut dbeta));
                let found = apply::backward(dy.clone(), Some((&i[2], &i[3])), saved, grads)?;
                let dresidual = found.dresidual.expect("there is a residual");
                Ok(vec![found.dx, dresidual, dgamma, dbeta])
            },
        )?;
    Ok(vec![report])
}

const LOGITS: Shape = Shape::new(6, 1, 1, 10);
const CLASSES: [u32; 6] = [0, 9, 4, 4, 7, 2];

/// A value per row as a tensor.
fn column(values: Vec<f64>) -> Result<Tensor> {
    Tensor::from_vec(Shape::new(values.len(), 1, 1, 1), values)
}

/// The gradient of the sum of the rows' losses, each times its `dy`, from that of their mean.
fn weighted_rows(mut grad: Tensor, dy: &Tensor) -> Vec<Tensor> {
    let rows = grad.data_mut::<f64>().chunks_mut(LOGITS.c);
    for (row, dy) in rows.zip(dy.data::<f64>()) {
        row.iter_mut().for_each(|g| *g *= dy * LOGITS.n as f64);
    }
    vec![grad]
}

fn cross_entropy() -> Result<Vec<Report>> {
    let report = Check::new("cross_entropy")
        .input("logits", &normal(1, LOGITS))
        .run(
            |i| column(loss::cross_entropy(&i[0], &CLASSES)?.0),
            |i, dy| Ok(weighted_rows(loss::cross_entropy(&i[0], &CLASSES)?.1, dy)),
        )?;
    Ok(vec![report])
}

fn distillation() -> Result<Vec<Report>> {
    let teacher = normal(2, LOGITS);
    let check = |name: &str, temperature: f64, scaling: Scaling| {
        let loss = |z: &Tensor| loss::distillation(z, &teacher, temperature, scaling);
        Check::new(format!("distillation, {name}"))
            .input("student", &normal(1, LOGITS))
            .run(
                |i| column(loss(&i[0])?.0),
                |i, dy| Ok(weighted_rows(loss(&i[0])?.1, dy)),
            )
    };
    Ok(vec![
        check("T^2", 3.0, Scaling::Hinton)?,
        check("mean over classes", 0.7, Scaling::Authors)?,
    ])
}

fn margin() -> Result<Vec<Report>> {
    let check = |name: &str, direction: Direction, kappa: f64| {
        let margins = move |z: &Tensor, kappa: f64, weight: &[f64]| {
            margin::forward_backward(z, &CLASSES, direction, kappa, weight)
        };
        Check::new(name)
            .input("logits", &normal(1, LOGITS))
            .kinks(move |i| {
                let (unbounded, _) = margins(&i[0], 1e9, &[1.0; 6])?;
                let mut kinks: Vec<f64> = unbounded.iter().map(|m| m + kappa).collect();
                for row in i[0].data::<f64>().chunks(LOGITS.c) {
                    for (j, a) in row.iter().enumerate() {
                        kinks.extend(row[..j].iter().map(|b| a - b));
                    }
                }
                Ok(kinks)
            })
            .run(
                |i| column(margins(&i[0], kappa, &[1.0; 6])?.0),
                // Rows weighted by their dy: the gradient of the sum is then J^T dy.
                |i, dy| Ok(vec![margins(&i[0], kappa, dy.data())?.1]),
            )
    };
    Ok(vec![
        check("margin, away", Direction::Away, 1.0)?,
        check("margin, towards", Direction::Towards, 0.0)?,
    ])
}

/// Narrow networks with noise, under both modes of batch norm; one bounds its activations.
fn network() -> Result<Vec<Report>> {
    let config = |arch, side, width| Config {
        width,
        ..Config::new(arch, Shape::new(1, side, side, 3), 4).with_noise(0.2, 0.1)
    };
    let bounded = Config {
        relu_cap: Some(1.0),
        ..config(Arch::Small, 8, 3)
    };
    let networks = [
        ("small", config(Arch::Small, 9, 3)),
        ("small, bounded relu", bounded),
        ("resnext29", config(Arch::ResNeXt29, 6, 2)),
        ("preactresnet18", config(Arch::PreActResNet18, 9, 2)),
        ("linear", config(Arch::Linear, 5, 1)),
    ];
    let mut reports = Vec::new();
    for (name, config) in networks {
        let shape = config.input.with_n(3);
        let mut model = Model::new(config, 1)?;
        for (mode, mode_name) in [(Mode::Train, "train"), (Mode::Eval, "eval")] {
            let pass = Pass {
                mode,
                noise: Some(Key::consecutive(2, Purpose::Test, 5, shape.n, 1)),
                record: true,
            };
            let name = format!("{name} {mode_name}");
            reports.push(check_network(
                &name,
                &mut model,
                &normal(3, shape),
                &pass,
                2,
            )?);
        }
    }
    Ok(reports)
}
