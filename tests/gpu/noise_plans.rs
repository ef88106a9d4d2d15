//! Where networks draw their noise, and what they keep of it: time and memory, no bit.

use noiseforge::Tensor;
use noiseforge::models::{Arch, Config, Model};
use noiseforge::nn::{Grads, Mode, NoisePlan, Pass, Site};
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose};
use noiseforge::tensor::{DType, Device, Shape};

use crate::harness::{distance, emulator, once, open_pooled, run_with, values};
use crate::networks::{images, lively, network, trained};

fn assert_same(a: &[Tensor], b: &[Tensor], what: &str) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.data::<f32>(), b.data::<f32>(), "{what}: tensor {i}");
    }
}

#[test]
fn training_has_the_same_bits_wherever_noise_is_drawn() {
    for (arch, size, width, dtype) in [
        (Arch::Small, 8, 8, DType::F32),
        (Arch::Small, 9, 5, DType::BF16),
        (Arch::Small, 8, 8, DType::F16),
        (Arch::ResNeXt29, 8, 4, DType::BF16),
        (Arch::PreActResNet18, 8, 4, DType::BF16),
    ] {
        let run = |site, recompute| {
            once(|_| {
                let gpu = open_pooled();
                let mut model = network(arch, size, width);
                model.set_noise_plan(NoisePlan { site, recompute });
                let found = trained(&mut model, &Device::Gpu(gpu), dtype, 2).unwrap();
                let found = found.iter().map(Tensor::to_cpu);
                found.collect::<noiseforge::Result<Vec<_>>>().unwrap()
            })
        };
        let load = run(Site::Load, false);
        for (site, recompute) in [
            (Site::Auto, false),
            (Site::Apply, true),
            (Site::Epilogue, false),
            (Site::Load, true),
        ] {
            let what = format!("{arch} {dtype} {site} {recompute}");
            assert_same(&load, &run(site, recompute), &what);
        }
    }
}

/// A frozen network's logits and gradients, wherever it draws; near the network's own.
#[test]
fn frozen_networks_have_the_same_bits_wherever_noise_is_drawn() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let passes = |site: Option<Site>| {
            run_with(open_pooled, |gpu| {
                let mut model = lively();
                model.to(&Device::Gpu(gpu.clone()), dtype)?;
                let n = 3;
                let x = images(model.config().input, n, 9).to_gpu(gpu)?;
                let pass = Pass {
                    mode: Mode::Eval,
                    noise: Some(Key::consecutive(1, Purpose::Eval, 5, n, 2)),
                    record: true,
                };
                let dz = |z: &Tensor| values(z.shape(), 4).to_gpu(gpu);
                match site {
                    Some(site) => {
                        model.set_noise_plan(NoisePlan {
                            site,
                            recompute: false,
                        });
                        let mut frozen = model.freeze()?;
                        let z = frozen.forward(x, 1, &pass)?;
                        let dx = frozen.backward(dz(&z)?)?;
                        Ok(vec![z, dx])
                    }
                    None => {
                        let z = model.forward(x, &pass)?;
                        let dx = model.backward(dz(&z)?, Grads::InputOnly)?;
                        Ok(vec![z, dx])
                    }
                }
            })
        };
        let load = passes(Some(Site::Load));
        for site in [Site::Epilogue, Site::Auto] {
            assert_same(&load, &passes(Some(site)), &format!("{dtype} {site}"));
        }
        if dtype == DType::F32 {
            let own = passes(None);
            for (a, b) in own.iter().zip(&load) {
                let largest = a.to_f64_vec().iter().fold(0.0f64, |m, v| m.max(v.abs()));
                // Six layers of sums that round the folded weights once more.
                let off = distance(a, b) / largest;
                assert!(off < 1e-5, "off by {off:e}");
            }
        }
    }
}

/// Losses and weights of three steps.
fn three_steps(recompute: bool, dtype: DType) -> Vec<Tensor> {
    once(|_| {
        let gpu = open_pooled();
        let mut model = network(Arch::Small, 9, 8);
        model.set_noise_plan(NoisePlan {
            recompute,
            ..NoisePlan::default()
        });
        let found = trained(&mut model, &Device::Gpu(gpu), dtype, 3).unwrap();
        found.iter().map(|t| t.to_cpu().unwrap()).collect()
    })
}

/// The most memory that a training pass of a whole network has in use, beside weights and gradients. It is
/// recorded, not run: kernels matter for time alone.
fn peak(arch: Arch, rows: usize, dtype: DType, recompute: bool) -> usize {
    once(|_| {
        let gpu = open_pooled();
        let config = Config::new(arch, Shape::new(1, 32, 32, 3), 10).with_noise(0.2, 0.1);
        let mut model = Model::new(config, 3).unwrap();
        model.to(&Device::Gpu(gpu.clone()), dtype).unwrap();
        model.set_noise_plan(NoisePlan {
            recompute,
            ..NoisePlan::default()
        });
        let key = Key::consecutive(1, Purpose::Train, 0, rows, 0);
        let x = Tensor::full_on(
            model.device(),
            model.config().input.with_n(rows),
            DType::F32,
            0.0,
        )
        .unwrap();
        // The list of rows is uploaded when noise is first drawn: not while a graph is recorded.
        let noise = Noise {
            key: key.clone(),
            layer: 0,
            sigma: 0.1,
            normals: Normals::Fast,
        };
        noise::forward(&x, &noise).unwrap();
        let pass = Pass {
            mode: Mode::Train,
            noise: Some(key),
            record: true,
        };
        gpu.reset_peak();
        let before = gpu.memory_use().in_use;
        gpu.capture(|| {
            let z = model.forward(x.clone(), &pass)?;
            model.accumulate(z)
        })
        .unwrap();
        gpu.memory_use().peak - before
    })
}

#[test]
fn noise_drawn_again_saves_memory_and_changes_no_bit() {
    for dtype in [DType::F32, DType::BF16] {
        let (kept, again) = (three_steps(false, dtype), three_steps(true, dtype));
        assert_same(&kept, &again, &format!("{dtype}"));
    }
    if emulator().is_none() {
        // A GPU that other tests share has another peak.
        return;
    }
    for (arch, rows) in [(Arch::Vgg16, 128), (Arch::ResNeXt29, 32)] {
        let bytes = |recompute| peak(arch, rows, DType::BF16, recompute);
        let (most, less) = (bytes(false), bytes(true));
        println!("{arch}, {rows} images: {most} bytes with inputs kept, {less} made again");
        assert!(less * 10 < most * 9, "{arch}: {less} of {most} bytes");
    }
}

/// Nobody asks for the images' gradient in training: one launch less.
#[test]
fn training_does_without_the_images_gradient() {
    let Some(emulator) = emulator() else { return };
    let launches = |images_too: bool| {
        once(|_| {
            let gpu = open_pooled();
            let mut model = network(Arch::Small, 8, 4);
            model.to(&Device::Gpu(gpu.clone()), DType::F32).unwrap();
            let x = images(model.config().input, 2, 9).to_gpu(&gpu).unwrap();
            let pass = Pass {
                mode: Mode::Train,
                noise: Some(Key::consecutive(1, Purpose::Train, 5, 2, 2)),
                record: true,
            };
            let z = model.forward(x, &pass).unwrap();
            emulator.take_stats();
            match images_too {
                true => drop(model.backward(z, Grads::Accumulate).unwrap()),
                false => model.accumulate(z).unwrap(),
            }
            gpu.synchronize().unwrap();
            emulator.take_stats().launches
        })
    };
    assert!(launches(false) < launches(true));
}

/// Weights are packed once for all passes; and what trains the network leaves the frozen one alone.
#[test]
fn a_frozen_network_stays_what_it_is() {
    once(|_| {
        let gpu = open_pooled();
        let mut model = lively();
        let device = Device::Gpu(gpu.clone());
        model.to(&device, DType::BF16).unwrap();
        let x = images(model.config().input, 2, 9).to_gpu(&gpu).unwrap();
        let pass = Pass {
            mode: Mode::Eval,
            noise: Some(Key::consecutive(1, Purpose::Eval, 5, 2, 2)),
            record: true,
        };
        let mut frozen = model.freeze().unwrap();
        let mut launches = Vec::new();
        let mut run = || {
            emulator().map(|e| e.take_stats());
            let z = frozen.forward(x.clone(), 1, &pass).unwrap();
            let dx = frozen.backward(z.clone()).unwrap();
            gpu.synchronize().unwrap();
            launches.extend(emulator().map(|e| e.take_stats().launches));
            [z.to_cpu().unwrap(), dx.to_cpu().unwrap()]
        };
        let first = run();
        let second = run();
        trained(&mut model, &device, DType::BF16, 1).unwrap();
        let third = run();
        assert_same(&first, &second, "again");
        assert_same(&first, &third, "after training");
        if let [first, second, third] = launches[..] {
            // Four convolutions and two linear layers, forward and backward, as far as tensor cores take them.
            assert!(second + 8 <= first, "{launches:?}");
            assert_eq!(second, third);
        }
    });
}
