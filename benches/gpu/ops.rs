//! The fused pass beside the ops it fuses, and the small ops.

use anyhow::Result;
use noiseforge::ensemble::Average;
use noiseforge::gpu::Buffer;
use noiseforge::ops::adam::{self, Adam};
use noiseforge::ops::apply::{self, Norm, Then};
use noiseforge::ops::batch_norm::{self, Activation, Running};
use noiseforge::ops::ensemble;
use noiseforge::ops::loss::{Metrics, cross_entropy_step, log_softmax};
use noiseforge::ops::margin::{self, Direction, Margin};
use noiseforge::ops::noise::{self, Normals};
use noiseforge::ops::pool2d::{self, Pool2d};
use noiseforge::ops::sgd::{self, Sgd};
use noiseforge::ops::step::{Cursor, LearningRates, LossScale, MultiTensor, Slots};
use noiseforge::ops::{linear, relu};
use noiseforge::tensor::{DType, Device};
use noiseforge::{Shape, Tensor};

use super::{Bench, Work, noise_of};

pub fn all(b: &Bench, shape: Shape) -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        fused(b, shape, dtype)?;
        pools(b, shape, dtype)?;
    }
    heads(b)?;
    optimisers(b)
}

/// Batch norm, ReLU, 2x2 max pooling and the next layer's noise: one pass, and one op after another.
fn fused(b: &Bench, shape: Shape, dtype: DType) -> Result<()> {
    let x = b.values(shape, dtype, 1)?;
    let c = Shape::vector(shape.c);
    let (gamma, beta) = (b.values(c, DType::F32, 3)?, b.values(c, DType::F32, 4)?);
    let affine = Some((&gamma, &beta));
    let device = Device::Gpu(b.gpu.clone());
    let running = Running {
        mean: Tensor::full_on(&device, c, DType::F32, 0.0)?,
        var: Tensor::full_on(&device, c, DType::F32, 1.0)?,
    };
    let pool = Pool2d { k: 2, stride: 2 };
    let noise = noise_of(shape.n, Normals::Fast);
    // What one pass moves, for both: the share of the copy rate shows what the passes between cost.
    let bytes = Work::Bytes(dtype.size() * shape.len() * 5 / 4);
    b.case(
        &format!("apply: bn + relu + pool + noise {dtype}"),
        bytes,
        || {
            let then = Then {
                residual: None,
                activation: Activation::Relu,
                pool: Some(pool),
                noise: Some(&noise),
                record: false,
            };
            let running = &running;
            apply::forward(x.clone(), Norm::Eval { affine, running }, &then)?;
            Ok(())
        },
    )?;
    b.case(
        &format!("bn + relu, pool, noise one by one {dtype}"),
        bytes,
        || {
            let (y, _) = batch_norm::forward_eval(&x, affine, &running, Activation::Relu)?;
            noise::forward(&pool2d::max_forward(&y, pool)?.0, &noise)?;
            Ok(())
        },
    )
}

fn pools(b: &Bench, shape: Shape, dtype: DType) -> Result<()> {
    let x = b.values(shape, dtype, 1)?;
    let (n, size) = (shape.len(), dtype.size());
    let pool = Pool2d { k: 2, stride: 2 };
    let (y, argmax) = pool2d::max_forward(&x, pool)?;
    let name = format!("max pool 2x2, backward {dtype}");
    b.case(&name, Work::Bytes(size * (n + n / 4) + n / 4), || {
        pool2d::max_backward(&y, &argmax, shape, pool)?;
        Ok(())
    })?;
    let name = format!("average pool 2x2 {dtype}");
    b.case(&name, Work::Bytes(size * (n + n / 4)), || {
        pool2d::average_forward(&x, pool)?;
        Ok(())
    })?;
    b.case(
        &format!("global average {dtype}"),
        Work::Bytes(size * n),
        || {
            pool2d::global_average_forward(&x)?;
            Ok(())
        },
    )
}

/// What stands behind a network: small tensors, so that a launch's own time is most of it.
fn heads(b: &Bench) -> Result<()> {
    let (rows, inputs, classes) = (1024, 512, 10);
    let x = b.values(Shape::new(rows, 1, 1, inputs), DType::F32, 1)?;
    let w = b.values(Shape::new(classes, 1, 1, inputs), DType::F32, 2)?;
    b.case(
        "linear 512>10, 1024 rows f32",
        Work::Flops(2 * rows * inputs * classes),
        || {
            linear::forward(&x, &w, None)?;
            Ok(())
        },
    )?;
    let logits = linear::forward(&x, &w, None)?;
    let bytes = Work::Bytes(2 * 4 * rows * classes);
    let labels: Vec<u32> = (0..rows as u32).map(|i| i % classes as u32).collect();
    let labels = b.gpu.upload(&labels)?;
    let mut metrics = Metrics::new(&b.gpu)?;
    b.case("cross-entropy, 1024 rows f32", bytes, || {
        cross_entropy_step(&logits, &labels, None, &mut metrics)?;
        Ok(())
    })?;
    let mut margins: Buffer<Margin> = b.gpu.alloc(rows)?;
    b.case("C&W margin, 1024 rows f32", bytes, || {
        margin::attack_step(&logits, &labels, Direction::Away, 0.0, 1.0, &mut margins)?;
        Ok(())
    })?;
    b.case("log-softmax, 1024 rows f32", bytes, || {
        log_softmax(&logits)?;
        Ok(())
    })?;
    b.case("ensemble mean of 32 draws, 32 images f32", bytes, || {
        ensemble::combine(&logits, 32, Average::Probabilities)?;
        Ok(())
    })
}

/// One launch over VGG16's 14.7 million parameters, as 14 tensors.
fn optimisers(b: &Bench) -> Result<()> {
    let shape = Shape::vector(1_052_019);
    let count = 14 * shape.len();
    let tensors = |moments: usize| -> Result<(MultiTensor, Vec<Tensor>)> {
        let mut slots = Slots::default();
        let mut keep = Vec::new();
        for i in 0..14 {
            let mut four = (0..4).map(|j| b.values(shape, DType::F32, i * 4 + j));
            let mut next = || four.next().expect("four of them");
            let (mut w, mut grad, mut first, mut second) = (next()?, next()?, next()?, next()?);
            second = relu::forward(second, None)?;
            let second_of = (moments == 2).then_some(&mut second);
            slots.push(&mut w, &mut grad, &mut first, second_of)?;
            keep.extend([w, grad, first, second]);
        }
        Ok((MultiTensor::new(slots)?, keep))
    };
    let mut rates = LearningRates::new(&b.gpu, 1)?;
    rates.set(&[1e-3])?;
    let cursor = Cursor::new(&b.gpu)?;
    let mut scale = LossScale::new(&b.gpu, DType::F32)?;
    if b.wanted("sgd, 14.7 million parameters") {
        let (table, _keep) = tensors(1)?;
        let sgd = Sgd {
            lr: 1e-3,
            momentum: 0.9,
            weight_decay: 5e-4,
            nesterov: false,
        };
        // Read w, grad, velocity; write them, the gradient as 0.
        b.case(
            "sgd, 14.7 million parameters",
            Work::Bytes(6 * 4 * count),
            || Ok(sgd::step_all(&table, &rates, &cursor, &mut scale, sgd)?),
        )?;
    }
    if b.wanted("adam, 14.7 million parameters") {
        let (table, _keep) = tensors(2)?;
        b.case(
            "adam, 14.7 million parameters",
            Work::Bytes(8 * 4 * count),
            || {
                Ok(adam::step_all(
                    &table,
                    &rates,
                    &cursor,
                    &mut scale,
                    Adam::default(),
                )?)
            },
        )?;
    }
    Ok(())
}
