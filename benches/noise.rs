//! Noise at the sizes networks have: normals per second, alone and drawn while a fused op reads.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use noiseforge::ops::isa::Isa;
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose, RowNoise};
use noiseforge::{Shape, Tensor};
use std::hint::black_box;

fn key(rows: usize) -> Noise {
    Noise {
        key: Key::consecutive(7, Purpose::Train, 0, rows, 0),
        layer: 1,
        sigma: 0.1,
        normals: Normals::Fast,
    }
}

/// The whole op, all threads. The first shape has the 2,097,152 elements that `torch.randn` is
/// measured at.
fn forward(c: &mut Criterion) {
    let mut group = c.benchmark_group("noise/forward");
    for shape in [
        Shape::new(32, 32, 32, 64),
        Shape::new(32, 32, 32, 3),
        Shape::new(32, 2, 2, 512),
    ] {
        for normals in [Normals::Fast, Normals::Precise] {
            let x = Tensor::from_vec(shape, vec![0.5f32; shape.len()]).expect("sizes agree");
            let noise = Noise {
                normals,
                ..key(shape.n)
            };
            group.throughput(Throughput::Elements(shape.len() as u64));
            group.bench_function(format!("{shape} {normals:?}"), |b| {
                b.iter(|| noise::forward(black_box(&x), &noise))
            });
        }
    }
    group.finish();
}

/// One thread, memory in cache: what a fused op pays for a run of pixels.
fn run(c: &mut Criterion) {
    let mut group = c.benchmark_group("noise/run");
    for (channels, pixels) in [(64, 32), (64, 1), (3, 32), (512, 2)] {
        let src = vec![0.5f32; channels * pixels];
        let mut dst = vec![0f32; channels * pixels];
        group.throughput(Throughput::Elements(src.len() as u64));
        for &isa in Isa::available() {
            let draw = RowNoise::new(&key(1), 0, channels).with_isa(isa);
            group.bench_function(format!("{pixels} x {channels} {isa:?}"), |b| {
                b.iter(|| draw.add(0, black_box(&src), black_box(&mut dst)))
            });
        }
    }
    group.finish();
}

criterion_group!(benches, forward, run);
criterion_main!(benches);
