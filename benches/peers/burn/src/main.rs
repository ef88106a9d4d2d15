//! VGG16 with batch norm for 32x32 images and noise before every convolution, in burn on its
//! `flex` CPU backend: training steps and inference, batch 32. Prints one JSON line per work.
//!
//! `peer-burn [--only SUBSTRING] [--reps N]`

use std::time::Instant;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution, Int, Tensor, activation::relu};

const BATCH: usize = 32;
/// Output channels of each convolution, in blocks that end with a 2x2 max pool.
const BLOCKS: [&[usize]; 5] = [
    &[64, 64],
    &[128, 128],
    &[256, 256, 256],
    &[512, 512, 512],
    &[512, 512, 512],
];
const SIGMA_FIRST: f64 = 0.2;
const SIGMA_INNER: f64 = 0.1;

#[derive(Module, Debug)]
struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm,
}

#[derive(Module, Debug)]
struct Vgg16 {
    blocks: Vec<Vec<ConvNorm>>,
    pool: MaxPool2d,
    head: Linear,
}

impl Vgg16 {
    fn new(device: &Device) -> Self {
        let mut c_in = 3;
        let mut blocks = Vec::new();
        for widths in BLOCKS {
            let mut block = Vec::new();
            for &c_out in widths {
                block.push(ConvNorm {
                    conv: Conv2dConfig::new([c_in, c_out], [3, 3])
                        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                        .init(device),
                    norm: BatchNormConfig::new(c_out).init(device),
                });
                c_in = c_out;
            }
            blocks.push(block);
        }
        Vgg16 {
            blocks,
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            head: LinearConfig::new(c_in, 10).init(device),
        }
    }

    fn logits(&self, images: Tensor<4>, noise: bool) -> Tensor<2> {
        let mut x = images;
        let mut sigma = SIGMA_FIRST;
        for block in &self.blocks {
            for ConvNorm { conv, norm } in block {
                if noise {
                    let z = x.random_like(Distribution::Normal(0.0, sigma));
                    x = x + z;
                    sigma = SIGMA_INNER;
                }
                x = relu(norm.forward(conv.forward(x)));
            }
            x = self.pool.forward(x);
        }
        self.head.forward(x.flatten(1, 3))
    }
}

/// Milliseconds of each of `reps` calls, sorted, after one that is not counted.
fn time(reps: usize, mut call: impl FnMut()) -> Vec<f64> {
    call();
    let mut ms = Vec::new();
    for _ in 0..reps {
        let start = Instant::now();
        call();
        ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    ms.sort_by(f64::total_cmp);
    ms
}

/// Peak resident memory of this process so far, in MB of 10^6 bytes.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1.024e-3)
}

fn train(noise: bool, reps: usize) -> Vec<f64> {
    let device = Device::default().autodiff();
    let mut net = Some(Vgg16::new(&device));
    let images = Tensor::<4>::random([BATCH, 3, 32, 32], Distribution::Uniform(0.0, 1.0), &device);
    let labels = Tensor::<1, Int>::arange(0..BATCH as i64, &device).remainder_scalar(10);
    let loss = CrossEntropyLossConfig::new().init(&device);
    let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
    let mut sgd = SgdConfig::new()
        .with_momentum(Some(momentum))
        .with_weight_decay(Some(WeightDecayConfig::new(5e-4)))
        .init();
    time(reps, || {
        // Taken, not cloned: a second owner would make the optimiser copy every weight.
        let model = net.take().expect("put back at the end of every step");
        let loss = loss.forward(model.logits(images.clone(), noise), labels.clone());
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        net = Some(sgd.step(0.01, model, grads));
    })
}

fn infer(noise: bool, reps: usize) -> Vec<f64> {
    let device = Device::default();
    let net = Vgg16::new(&device);
    let images = Tensor::<4>::random([BATCH, 3, 32, 32], Distribution::Uniform(0.0, 1.0), &device);
    time(reps, || {
        // Reading the logits is what makes sure that they were computed.
        net.logits(images.clone(), noise).into_data();
    })
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        args.get(at + 1).cloned()
    };
    let only = option("--only").unwrap_or_default();
    let reps = option("--reps").map_or(5, |r| r.parse().expect("--reps takes a number"));
    // Inference first: peak memory only grows.
    let works: [(&str, fn(bool, usize) -> Vec<f64>, bool); 4] = [
        ("w2 infer plain", infer, false),
        ("w2 infer noisy", infer, true),
        ("w2 train plain", train, false),
        ("w2 train noisy", train, true),
    ];
    for (work, measure, noise) in works {
        if !work.contains(&only) {
            continue;
        }
        let ms = measure(noise, reps);
        println!(
            r#"{{"peer": "burn-flex", "work": "{work}", "layout": "nchw", "form": "eager", "ms_min": {:.3}, "ms_median": {:.3}, "peak_mb": {:.0}, "reps": {reps}}}"#,
            ms[0],
            (ms[ms.len() / 2] + ms[(ms.len() - 1) / 2]) / 2.0,
            peak_mb().unwrap_or(f64::NAN),
        );
    }
}
