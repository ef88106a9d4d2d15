//! VGG16 with batch norm for 32x32 images and noise before every convolution, in candle on the
//! CPU: training steps and inference, batch 32. Prints one JSON line per work.
//!
//! `peer-candle [--only SUBSTRING] [--reps N]`

use std::time::Instant;

use candle_core::{DType, Device, Module, ModuleT, Result, Tensor, Var};
use candle_nn::{
    batch_norm, conv2d, linear, loss, BatchNorm, Conv2d, Conv2dConfig, Linear, VarBuilder, VarMap,
};

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
const LEARNING_RATE: f64 = 0.01;
const MOMENTUM: f64 = 0.9;
const WEIGHT_DECAY: f64 = 5e-4;

struct Vgg16 {
    blocks: Vec<Vec<(Conv2d, BatchNorm)>>,
    head: Linear,
    noise: bool,
}

impl Vgg16 {
    fn new(vars: VarBuilder, noise: bool) -> Result<Self> {
        let config = Conv2dConfig {
            padding: 1,
            ..Default::default()
        };
        let mut c_in = 3;
        let mut blocks = Vec::new();
        for (i, widths) in BLOCKS.iter().enumerate() {
            let mut block = Vec::new();
            for (j, &c_out) in widths.iter().enumerate() {
                let vars = vars.pp(format!("{i}.{j}"));
                block.push((
                    conv2d(c_in, c_out, 3, config, vars.pp("conv"))?,
                    batch_norm(c_out, 1e-5, vars.pp("norm"))?,
                ));
                c_in = c_out;
            }
            blocks.push(block);
        }
        Ok(Vgg16 {
            blocks,
            head: linear(c_in, 10, vars.pp("head"))?,
            noise,
        })
    }

    fn logits(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = images.clone();
        let mut sigma = SIGMA_FIRST;
        for block in &self.blocks {
            for (conv, norm) in block {
                if self.noise {
                    x = (&x + x.randn_like(0.0, sigma)?)?;
                    sigma = SIGMA_INNER;
                }
                x = norm.forward_t(&conv.forward(&x)?, train)?.relu()?;
            }
            x = x.max_pool2d(2)?;
        }
        self.head.forward(&x.flatten_from(1)?)
    }
}

/// SGD with momentum, which candle's own lacks; PyTorch's rule.
struct Sgd {
    params: Vec<(Var, Tensor)>,
}

impl Sgd {
    fn new(vars: Vec<Var>) -> Result<Self> {
        let params = vars
            .into_iter()
            .map(|var| {
                let velocity = var.zeros_like()?;
                Ok((var, velocity))
            })
            .collect::<Result<_>>()?;
        Ok(Sgd { params })
    }

    fn step(&mut self, loss: &Tensor) -> Result<()> {
        let grads = loss.backward()?;
        for (var, velocity) in &mut self.params {
            // Running statistics are variables too, and have no gradient.
            if let Some(grad) = grads.get(var.as_tensor()) {
                let grad = (grad + (var.as_detached_tensor() * WEIGHT_DECAY)?)?;
                *velocity = ((&*velocity * MOMENTUM)? + grad)?;
                var.set(&(var.as_detached_tensor() - (&*velocity * LEARNING_RATE)?)?)?;
            }
        }
        Ok(())
    }
}

/// Milliseconds of each of `reps` calls, after one that is not counted.
fn time(reps: usize, mut call: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    call()?;
    let mut ms = Vec::new();
    for _ in 0..reps {
        let start = Instant::now();
        call()?;
        ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    ms.sort_by(f64::total_cmp);
    Ok(ms)
}

/// Peak resident memory of this process so far, in MB of 10^6 bytes.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1.024e-3)
}

fn measure(work: &str, reps: usize) -> Result<()> {
    let device = Device::Cpu;
    let vars = VarMap::new();
    let net = Vgg16::new(
        VarBuilder::from_varmap(&vars, DType::F32, &device),
        work.ends_with("noisy"),
    )?;
    let images = Tensor::rand(0f32, 1f32, (BATCH, 3, 32, 32), &device)?;
    let labels: Vec<u32> = (0..BATCH as u32).map(|i| i % 10).collect();
    let labels = Tensor::new(labels, &device)?;
    let ms = if work.starts_with("w2 train") {
        let mut sgd = Sgd::new(vars.all_vars())?;
        time(reps, || {
            let loss = loss::cross_entropy(&net.logits(&images, true)?, &labels)?;
            sgd.step(&loss)
        })?
    } else {
        time(reps, || net.logits(&images, false).map(drop))?
    };
    println!(
        r#"{{"peer": "candle", "work": "{work}", "layout": "nchw", "form": "eager", "ms_min": {:.3}, "ms_median": {:.3}, "peak_mb": {:.0}, "reps": {reps}}}"#,
        ms[0],
        (ms[ms.len() / 2] + ms[(ms.len() - 1) / 2]) / 2.0,
        peak_mb().unwrap_or(f64::NAN),
    );
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        args.get(at + 1).cloned()
    };
    let only = option("--only").unwrap_or_default();
    let reps = option("--reps").map_or(5, |r| r.parse().expect("--reps takes a number"));
    // Inference first: peak memory only grows.
    for work in ["w2 infer plain", "w2 infer noisy", "w2 train plain", "w2 train noisy"] {
        if work.contains(&only) {
            measure(work, reps)?;
        }
    }
    Ok(())
}
