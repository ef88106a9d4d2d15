//! Convolutions of VGG16 on 32 x 32 images, batch 32, 3 x 3 kernels with padding 1: forward, and
//! forward with both gradients. The throughput counts multiply-adds of the full kernel as two.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use noiseforge::ops::conv2d::{self, Conv2d};
use noiseforge::ops::linear;
use noiseforge::{DType, Shape, Tensor};

const CONV: Conv2d = Conv2d {
    stride: 1,
    pad: 1,
    groups: 1,
};

/// Values in [-1, 1) without pattern.
fn values(shape: Shape, seed: u64) -> Tensor {
    let mut state = seed;
    let data = (0..shape.len())
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(shape, data).expect("as many values as the shape has")
}

fn convolutions(c: &mut Criterion) {
    for (c_in, c_out, size) in [
        (3, 64, 32),
        (64, 64, 32),
        (128, 128, 16),
        (256, 256, 8),
        (512, 512, 4),
    ] {
        let x = values(Shape::new(32, size, size, c_in), 1);
        let w = values(Shape::new(c_out, 3, 3, c_in), 2);
        let b = values(Shape::vector(c_out), 3);
        let dy = values(x.shape().with_c(c_out), 4);
        let mut dw = Tensor::zeros(w.shape(), DType::F32);
        let mut db = Tensor::zeros(b.shape(), DType::F32);
        let flops = 2 * dy.shape().len() * w.shape().row_len();
        let mut group = c.benchmark_group("conv2d");
        let name = format!("{c_in},{c_out},{size}");
        group.throughput(Throughput::Elements(flops as u64));
        group.bench_function(BenchmarkId::new("forward", &name), |bench| {
            bench.iter(|| conv2d::forward(black_box(&x), &w, Some(&b), CONV).unwrap())
        });
        group.bench_function(BenchmarkId::new("input_grad", &name), |bench| {
            bench.iter(|| conv2d::input_grad(black_box(&dy), &w, x.shape(), CONV).unwrap())
        });
        group.bench_function(BenchmarkId::new("weight_grad", &name), |bench| {
            bench.iter(|| {
                conv2d::weight_grad(black_box(&dy), &x, &mut dw, Some(&mut db), CONV).unwrap()
            })
        });
        group.throughput(Throughput::Elements(3 * flops as u64));
        group.bench_function(BenchmarkId::new("forward and gradients", &name), |bench| {
            bench.iter(|| {
                let y = conv2d::forward(black_box(&x), &w, Some(&b), CONV).unwrap();
                conv2d::weight_grad(&dy, &x, &mut dw, Some(&mut db), CONV).unwrap();
                (y, conv2d::input_grad(&dy, &w, x.shape(), CONV).unwrap())
            })
        });
    }
}

fn linears(c: &mut Criterion) {
    for (n, inputs, outputs) in [(32, 512, 10), (32, 4096, 128), (1600, 4096, 128)] {
        let x = values(Shape::new(n, 1, 1, inputs), 1);
        let w = values(Shape::new(outputs, 1, 1, inputs), 2);
        let dy = values(Shape::new(n, 1, 1, outputs), 3);
        let mut dw = Tensor::zeros(w.shape(), DType::F32);
        let mut group = c.benchmark_group("linear");
        let name = format!("{n},{inputs},{outputs}");
        group.throughput(Throughput::Elements(2 * (n * inputs * outputs) as u64));
        group.bench_function(BenchmarkId::new("forward", &name), |bench| {
            bench.iter(|| linear::forward(black_box(&x), &w, None).unwrap())
        });
        group.bench_function(BenchmarkId::new("input_grad", &name), |bench| {
            bench.iter(|| linear::input_grad(black_box(&dy), &w).unwrap())
        });
        group.bench_function(BenchmarkId::new("weight_grad", &name), |bench| {
            bench.iter(|| linear::weight_grad(black_box(&dy), &x, &mut dw, None).unwrap())
        });
    }
}

criterion_group!(benches, convolutions, linears);
criterion_main!(benches);
