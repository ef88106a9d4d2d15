//! Everything of a VGG16 step at batch 32 that is bound by memory, not by arithmetic.
//!
//! Throughput counts the bytes an op has to move: each pass over a tensor once.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use noiseforge::ops::batch_norm::{self, Activation, Running};
use noiseforge::ops::pool2d::{self, Pool2d};
use noiseforge::ops::{adam, add, loss, margin, relu, sgd};
use noiseforge::{DType, Shape, Tensor};

/// Outputs of VGG16's convolution blocks on 32x32 images.
const ACTIVATIONS: [Shape; 5] = [
    Shape::new(32, 32, 32, 64),
    Shape::new(32, 16, 16, 128),
    Shape::new(32, 8, 8, 256),
    Shape::new(32, 4, 4, 512),
    Shape::new(32, 2, 2, 512),
];

/// Mean 0, variance 1, in no order a predictor could learn.
fn values(shape: Shape) -> Tensor {
    let mut state = 1u32;
    let data = (0..shape.len())
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * 3f32.sqrt()
        })
        .collect();
    Tensor::from_vec(shape, data).expect("as many values as the shape has")
}

/// A copy that shares nothing: what ops that work in place are given.
fn owned(t: &Tensor) -> Tensor {
    Tensor::from_vec(t.shape(), t.data::<f32>().to_vec()).expect("the same shape")
}

/// f32 bytes of `passes` passes over a tensor.
fn bytes(shape: Shape, passes: u64) -> Throughput {
    Throughput::Bytes(4 * passes * shape.len() as u64)
}

fn batch_norm(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch_norm");
    for shape in ACTIVATIONS {
        let x = values(shape);
        let vector = Shape::vector(shape.c);
        let gamma = Tensor::full(vector, DType::F32, 1.0);
        let beta = Tensor::zeros(vector, DType::F32);
        let affine = Some((&gamma, &beta));
        let mut running = Running {
            mean: beta.clone(),
            var: gamma.clone(),
        };
        let act = Activation::Relu;
        group.throughput(bytes(shape, 3));
        group.bench_function(format!("forward_train {shape}"), |b| {
            b.iter(|| batch_norm::forward_train(&x, affine, &mut running, act).unwrap());
        });
        group.throughput(bytes(shape, 2));
        group.bench_function(format!("forward_eval {shape}"), |b| {
            b.iter(|| batch_norm::forward_eval(&x, affine, &running, act).unwrap());
        });
        let (_, saved) = batch_norm::forward_train(&x, affine, &mut running, act).unwrap();
        let (mut dgamma, mut dbeta) = (owned(&gamma), owned(&beta));
        group.throughput(bytes(shape, 5));
        group.bench_function(format!("backward {shape}"), |b| {
            b.iter_batched(
                || owned(&x),
                |dy| {
                    let grads = Some((&mut dgamma, &mut dbeta));
                    batch_norm::backward(dy, &x, affine, &saved, act, grads).unwrap()
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn activations(c: &mut Criterion) {
    let mut group = c.benchmark_group("activations");
    for shape in [ACTIVATIONS[0], ACTIVATIONS[3]] {
        let x = values(shape);
        let in_place = |f: &dyn Fn(Tensor) -> Tensor, b: &mut criterion::Bencher| {
            b.iter_batched(|| owned(&x), f, BatchSize::PerIteration);
        };
        group.throughput(bytes(shape, 2));
        group.bench_function(format!("relu::forward {shape}"), |b| {
            in_place(&|x| relu::forward(x, None).unwrap(), b);
        });
        group.throughput(bytes(shape, 3));
        group.bench_function(format!("relu::backward {shape}"), |b| {
            in_place(&|dy| relu::backward(dy, &x, None).unwrap(), b);
        });
        group.bench_function(format!("add::forward {shape}"), |b| {
            in_place(&|a| add::forward(a, &x).unwrap(), b);
        });
    }
    group.finish();
}

fn pools(c: &mut Criterion) {
    let mut group = c.benchmark_group("pool2d");
    let pool = Pool2d { k: 2, stride: 2 };
    for shape in [ACTIVATIONS[0], ACTIVATIONS[3]] {
        let x = values(shape);
        let (y, argmax) = pool2d::max_forward(&x, pool).unwrap();
        // One input, a quarter of it out, a sixteenth in positions.
        let moved = (4 * shape.len() + 5 * y.shape().len()) as u64;
        group.throughput(Throughput::Bytes(moved));
        group.bench_function(format!("max_forward {shape}"), |b| {
            b.iter(|| pool2d::max_forward(&x, pool).unwrap());
        });
        group.bench_function(format!("max_backward {shape}"), |b| {
            b.iter(|| pool2d::max_backward(&y, &argmax, shape, pool).unwrap());
        });
        group.bench_function(format!("average_forward {shape}"), |b| {
            b.iter(|| pool2d::average_forward(&x, pool).unwrap());
        });
    }
    group.finish();
}

fn heads(c: &mut Criterion) {
    let mut group = c.benchmark_group("heads");
    let shape = Shape::new(32, 1, 1, 10);
    let logits = values(shape);
    let labels: Vec<u32> = (0..32).map(|i| i % 10).collect();
    group.throughput(bytes(shape, 2));
    group.bench_function(format!("loss::cross_entropy {shape}"), |b| {
        b.iter(|| loss::cross_entropy(black_box(&logits), &labels).unwrap());
    });
    let (away, weight) = (margin::Direction::Away, [1.0; 32]);
    group.bench_function(format!("margin::forward_backward {shape}"), |b| {
        let logits = black_box(&logits);
        b.iter(|| margin::forward_backward(logits, &labels, away, 0.0, &weight).unwrap());
    });
    group.finish();
}

fn optimisers(c: &mut Criterion) {
    let mut group = c.benchmark_group("optimisers");
    let shape = Shape::new(512, 3, 3, 512);
    let grad = values(shape);
    let (mut w, mut m, mut v) = (owned(&grad), owned(&grad), owned(&grad));
    let rule = sgd::Sgd {
        lr: 1e-9,
        momentum: 0.9,
        weight_decay: 5e-4,
        nesterov: false,
    };
    group.throughput(bytes(shape, 5));
    group.bench_function(format!("sgd::step {shape}"), |b| {
        b.iter(|| sgd::step(&mut w, &grad, &mut m, rule).unwrap());
    });
    v = relu::forward(v, None).unwrap();
    let t = vec![100; shape.n];
    group.throughput(bytes(shape, 7));
    group.bench_function(format!("adam::step {shape}"), |b| {
        b.iter(|| adam::step(&mut w, &grad, &mut m, &mut v, &t, adam::Adam::default()).unwrap());
    });
    group.finish();
}

criterion_group! {
    name = elementwise;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = batch_norm, activations, pools, heads, optimisers
}
criterion_main!(elementwise);
