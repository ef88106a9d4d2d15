//! Whole networks: VGG16 at batch 32 on 32x32 images, and C&W on the small one.

mod work;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use work::{BATCH, Call};

/// Images through the network in one call of the attack: 50 steps of a batch.
const ATTACK_IMAGES: usize = 50 * BATCH;

/// Prepares a call.
type Prepare = fn() -> anyhow::Result<Call>;

fn networks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("network");
    group.sample_size(10);
    let works: [(&str, usize, Prepare); 5] = [
        ("vgg16 train step, noise", BATCH, || work::vgg_train(true)),
        ("vgg16 train step", BATCH, || work::vgg_train(false)),
        ("vgg16 inference, noise", BATCH, || work::vgg_infer(true)),
        ("vgg16 inference", BATCH, || work::vgg_infer(false)),
        ("small C&W 50 steps", ATTACK_IMAGES, work::carlini_wagner),
    ];
    for (name, images, prepare) in works {
        let mut call = prepare().expect("sizes that fit");
        group.throughput(Throughput::Elements(images as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| call().expect("a finite loss"))
        });
    }
    group.finish();
}

criterion_group!(benches, networks);
criterion_main!(benches);
