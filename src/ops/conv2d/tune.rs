//! Times the ways of cutting a convolution on a device; see [`crate::gpu::tuning`].

use super::model::Card;
use super::predict::{Launch, Pass};
use super::{Input, forward_of, input_grad};
use crate::error::{Error, Result};
use crate::gpu::tuning::{Measurement, Tuning};
use crate::gpu::{Gpu, Timer};
use crate::ops::noise::{self, Key, Noise, Normals, Purpose};
use crate::tensor::{DType, Device, Shape, Tensor};

/// How long and how often a way of cutting is timed.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Seconds of one sample.
    pub sample: f64,
    /// Samples, of which the median counts.
    pub samples: usize,
    /// Most calls of a sample.
    pub calls: usize,
}

impl Default for Effort {
    fn default() -> Self {
        Effort {
            sample: 0.004,
            samples: 5,
            calls: 200,
        }
    }
}

/// Random numbers, drawn where they are used.
fn random(gpu: &Gpu, shape: Shape, dtype: DType, draw: u32) -> Result<Tensor> {
    let device = Device::Gpu(gpu.clone());
    let zeros = Tensor::full_on(&device, shape, dtype, 0.0)?;
    noise::forward(&zeros, &draws(shape.n, draw))
}

fn draws(rows: usize, draw: u32) -> Noise {
    Noise {
        key: Key::consecutive(1, Purpose::Test, 0, rows, draw),
        layer: 0,
        sigma: 0.1,
        normals: Normals::Fast,
    }
}

/// Every way of cutting that fits a launch, timed. None where it does not run on tensor cores or (weight
/// gradients) has one way alone.
///
/// The device forgets what else it was told by [`Gpu::set_tuning`] until the end.
///
/// Errors: the shapes do not fit together; a fault of the device, or not enough memory.
pub fn measure(gpu: &Gpu, launch: &Launch, effort: Effort) -> Result<Vec<Measurement>> {
    let before = gpu.tuning();
    let measured = each(gpu, launch, effort);
    gpu.set_tuning((*before).clone());
    measured
}

fn each(gpu: &Gpu, launch: &Launch, effort: Effort) -> Result<Vec<Measurement>> {
    let card = Card::of(gpu.properties());
    let (kernel, blockings) = (launch.kernel(&card)?, launch.blockings(&card)?);
    if blockings.is_empty() {
        return Ok(Vec::new());
    }
    let (x, y) = (launch.x, launch.y()?);
    let read = match launch.pass {
        Pass::InputGrad => y,
        _ => x,
    };
    // Inputs take turns, so that the cache does not hold the next one.
    let bytes = read.len() * launch.dtype.size();
    let copies = (2 * gpu.properties().l2).div_ceil(bytes.max(1)).clamp(1, 8);
    let inputs = (0..copies).map(|i| random(gpu, read, launch.dtype, i as u32));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let w = random(gpu, launch.w, DType::F32, 100)?;
    let noise = launch.noise.then(|| draws(x.n, 101));
    let timer = Timer::new(gpu)?;
    let mut turn = 0;
    let mut call = || -> Result<()> {
        turn += 1;
        let input = &inputs[turn % copies];
        match (launch.pass, &noise) {
            (Pass::InputGrad, _) => input_grad(input, &w, x, launch.conv).map(drop),
            (_, noise) => {
                let input = Input::noisy(input, noise.as_ref());
                forward_of("conv2d::tune", &input, (&w).into(), None, launch.conv).map(drop)
            }
        }
    };
    let device = gpu.properties().name.clone();
    let mut found = Vec::new();
    for blocking in blockings {
        let mut measurement = Measurement {
            device: device.clone(),
            operation: launch.operation().to_string(),
            dtype: launch.dtype,
            n: x.n,
            sizes: launch.sizes(),
            kernel: kernel.to_string(),
            blocking,
            microseconds: 1.0,
        };
        gpu.set_tuning(Tuning::new(std::slice::from_ref(&measurement), &device));
        // Loads the kernel and fills the pool of memory.
        call()?;
        let once = timer.time(&mut call)?.max(1e-7);
        let calls = ((effort.sample / once) as usize).clamp(1, effort.calls.max(1));
        let samples = (0..effort.samples.max(1)).map(|_| {
            let all = timer.time(|| (0..calls).try_for_each(|_| call()))?;
            Ok(all / calls as f64)
        });
        let mut samples = samples.collect::<Result<Vec<f64>>>()?;
        samples.sort_by(f64::total_cmp);
        let median = samples[samples.len() / 2];
        if !(median.is_finite() && median > 0.0) {
            return Err(Error::Device {
                device: device.clone(),
                reason: format!("its clock says that a convolution took {median} s"),
            });
        }
        measurement.microseconds = median * 1e6;
        found.push(measurement);
    }
    Ok(found)
}
