//! Whole networks on the GPU path beside the CPU: training, attacks, ensembles.

use noiseforge::attacks::carlini_wagner::{CarliniWagner, Protocol, attack};
use noiseforge::attacks::{Criterion, Found, Options, Targets};
use noiseforge::data::{Augment, Spec, Split};
use noiseforge::ensemble::{Average, Classifier, Ensemble};
use noiseforge::models::{Arch, Config, Model};
use noiseforge::nn::{Mode, Pass};
use noiseforge::ops::loss::cross_entropy;
use noiseforge::ops::noise::{Key, Purpose, Row, Rows};
use noiseforge::ops::sgd;
use noiseforge::optim::{Schedule, Sgd};
use noiseforge::tensor::{DType, Device, Shape};
use noiseforge::train::{Settings, Trainer};
use noiseforge::{Result, Tensor};

use crate::harness::{distance, emulator, once, open_pooled, run_with, values};

const SGD: sgd::Sgd = sgd::Sgd {
    lr: 0.05,
    momentum: 0.9,
    weight_decay: 5e-4,
    nesterov: false,
};

pub fn network(arch: Arch, size: usize, width: usize) -> Model {
    let mut config = Config::new(arch, Shape::new(1, size, size, 3), 10).with_noise(0.2, 0.1);
    config.width = width;
    Model::new(config, 3).unwrap()
}

pub fn images(input: Shape, n: usize, seed: u64) -> Tensor {
    let mut x = values(input.with_n(n), seed);
    for v in x.data_mut::<f32>() {
        *v = 0.5 + 0.5 * *v;
    }
    x
}

/// Losses of `steps` training steps, and every parameter and statistic after them.
pub fn trained(
    model: &mut Model,
    device: &Device,
    dtype: DType,
    steps: u32,
) -> Result<Vec<Tensor>> {
    model.to(device, dtype)?;
    let n = 6;
    let labels: Vec<u32> = (0..n as u32).map(|i| i * 7 % 10).collect();
    let mut optimizer = Sgd::new(model, SGD)?;
    let mut losses = Vec::new();
    for step in 0..steps {
        let x = images(model.config().input, n, u64::from(step));
        let x = x.to_dtype(dtype.master())?.to(device)?;
        let pass = Pass {
            mode: Mode::Train,
            noise: Some(Key::consecutive(1, Purpose::Train, 0, n, step)),
            record: true,
        };
        let logits = model.forward(x, &pass)?;
        let (loss, dlogits) = cross_entropy(&logits, &labels)?;
        losses.push(loss.iter().sum::<f64>() as f32);
        model.accumulate(dlogits)?;
        optimizer.step(model)?;
    }
    let losses = Tensor::from_vec::<f32>(Shape::vector(losses.len()), losses)?;
    let mut all = vec![losses.to(device)?];
    model.visit(|_, entry| {
        use noiseforge::nn::Entry;
        match entry {
            Entry::Param(p, _) => all.push(p.value.clone()),
            Entry::Buffer(t, _) => all.push(t.clone()),
            Entry::Count(_) => {}
        }
    });
    Ok(all)
}

/// The GPU's distance from f64 is at most a small multiple of what the CPU's f32 is off itself: both
/// add up the same numbers in other orders, and errors grow alike from step to step.
#[track_caller]
fn close_to_the_cpu(arch: Arch, size: usize, width: usize, steps: u32) {
    let on_cpu = |dtype| {
        let mut model = network(arch, size, width);
        trained(&mut model, &Device::Cpu, dtype, steps).unwrap()
    };
    let (exact, cpu) = (on_cpu(DType::F64), on_cpu(DType::F32));
    let gpu = run_with(open_pooled, |gpu| {
        let mut model = network(arch, size, width);
        trained(&mut model, &Device::Gpu(gpu.clone()), DType::F32, steps)
    });
    assert_eq!(gpu.len(), cpu.len());
    for (i, ((exact, cpu), gpu)) in exact.iter().zip(&cpu).zip(&gpu).enumerate() {
        let largest = exact
            .to_f64_vec()
            .iter()
            .fold(0.0f64, |m, v| m.max(v.abs()));
        let own = distance(cpu, exact);
        let bound = 10.0 * own + 1e-6 * largest;
        let found = distance(gpu, exact);
        println!("{arch} tensor {i}: off by {found:.2e}, the CPU by {own:.2e}");
        assert!(
            found <= bound,
            "tensor {i}: off by {found:e}, the CPU by {own:e}"
        );
    }
}

#[test]
fn three_steps_of_the_small_network() {
    close_to_the_cpu(Arch::Small, 8, 8, 3);
}

#[test]
fn a_step_of_a_narrow_vgg16() {
    // Five poolings leave one pixel of 32.
    close_to_the_cpu(Arch::Vgg16, 32, 4, 1);
}

#[test]
fn a_step_of_a_narrow_resnext() {
    close_to_the_cpu(Arch::ResNeXt29, 8, 4, 1);
}

#[test]
fn a_step_of_a_narrow_preactresnet() {
    close_to_the_cpu(Arch::PreActResNet18, 8, 4, 1);
}

fn settings(epochs: u32) -> Settings {
    Settings {
        epochs,
        batch: 8,
        sgd: SGD,
        schedule: Schedule::Cosine,
        augment: Some(Augment { pad: 2, flip: true }),
        seed: 5,
        ..Settings::default()
    }
}

/// The whole training run: data, augmentation, noise, schedule and statistics on the device, steps
/// replayed as graphs, a last batch of another size.
fn trained_run(device: &Device, dtype: DType, n: usize, epochs: u32) -> (Vec<f64>, Vec<Tensor>) {
    let load = |split, n| Spec::Synthetic { n: 200 }.load(split, 0).unwrap().take(n);
    let (train, test) = (load(Split::Train, n), load(Split::Test, 10));
    let mut config = Config::new(Arch::Small, train.image_shape(), train.classes().len());
    config = config.with_noise(0.2, 0.1);
    config.width = 2;
    let mut model = Model::new(config, 3).unwrap();
    model.to(device, dtype).unwrap();
    let mut trainer = Trainer::new(&mut model, &train, &test, settings(epochs)).unwrap();
    trainer.run(&false.into(), &mut |_, _| Ok(())).unwrap();
    let mut log = Vec::new();
    for line in trainer.log() {
        log.extend([
            line.train_loss,
            line.test_loss,
            line.lr,
            line.train_accuracy,
        ]);
    }
    let mut all = Vec::new();
    model.visit_params(|_, p| all.push(p.value.to_cpu().unwrap()));
    (log, all)
}

#[test]
fn a_training_run_on_the_device_is_the_cpus() {
    let (log, cpu) = trained_run(&Device::Cpu, DType::F32, 29, 2);
    let (found, gpu) = once(|_| trained_run(&Device::Gpu(open_pooled()), DType::F32, 29, 2));
    for (a, b) in log.iter().zip(&found) {
        assert!((a - b).abs() <= 1e-4 * a.abs(), "{log:?} {found:?}");
    }
    for (i, (a, b)) in cpu.iter().zip(&gpu).enumerate() {
        let largest = a.to_f64_vec().iter().fold(0.0f64, |m, v| m.max(v.abs()));
        assert!(distance(a, b) <= 1e-4 * largest, "tensor {i}");
    }
    // Twice the same bits.
    let (again, twice) = once(|_| trained_run(&Device::Gpu(open_pooled()), DType::F32, 29, 2));
    assert_eq!(found, again);
    for (a, b) in gpu.iter().zip(&twice) {
        assert_eq!(a.data::<f32>(), b.data::<f32>());
    }
}

#[test]
fn sixteen_bit_training_follows_f32() {
    let (log, _) = once(|_| trained_run(&Device::Gpu(open_pooled()), DType::F32, 24, 2));
    for dtype in [DType::BF16, DType::F16] {
        let (found, params) = once(|_| trained_run(&Device::Gpu(open_pooled()), dtype, 24, 2));
        // Train loss of both epochs: activations carry 8 or 11 bits, the loss is about 2.
        for i in [0, 4] {
            assert!(
                (log[i] - found[i]).abs() < 0.05 * log[i],
                "{dtype}: {log:?} {found:?}"
            );
        }
        for p in &params {
            assert_eq!(p.count_not_finite().unwrap(), 0);
        }
    }
}

/// After the first steps, neither allocation nor waiting: a step is one graph.
#[test]
fn steps_neither_allocate_nor_wait() {
    let Some(emulator) = emulator() else { return };
    once(|_| {
        let gpu = open_pooled();
        let load = |split| Spec::Synthetic { n: 200 }.load(split, 0).unwrap().take(64);
        let (train, test) = (load(Split::Train), load(Split::Test));
        let mut config = Config::new(Arch::Small, train.image_shape(), train.classes().len());
        config.width = 1;
        let mut model = Model::new(config.with_noise(0.2, 0.1), 3).unwrap();
        model.to(&Device::Gpu(gpu.clone()), DType::F32).unwrap();
        let mut trainer = Trainer::new(&mut model, &train, &test, settings(1)).unwrap();
        let mut counts = Vec::new();
        trainer
            .run(&false.into(), &mut |_, _| {
                counts.push(emulator.take_stats());
                Ok(())
            })
            .unwrap();
        // Eight steps: the first as it is, the second captured, six replayed; then evaluation.
        assert_eq!(counts.len(), 9);
        for stats in &counts[2..8] {
            assert_eq!(stats.graph_launches, 1, "{stats:?}");
            assert_eq!(stats.allocations, 0, "{stats:?}");
            // The host looks how the run stands, every 250 ms: on a GPU far less than once a step.
            assert!(stats.synchronisations <= 1, "{stats:?}");
        }
    });
}

/// The same of the attack: step by step only launches of one graph, until the host looks.
#[test]
fn attack_steps_neither_allocate_nor_wait() {
    let Some(emulator) = emulator() else { return };
    once(|_| {
        let mut model = lively();
        let gpu = open_pooled();
        model.to(&Device::Gpu(gpu.clone()), DType::F32).unwrap();
        let x = images(model.config().input, 3, 9);
        let mut net = Ensemble::new(&mut model, 7, Purpose::Attack, 2).unwrap();
        let criterion = Criterion::Untargeted {
            labels: vec![0, 1, 2],
        };
        let targets = Targets {
            x: &x,
            ids: &[3, 1, 4],
            criterion: &criterion,
        };
        let params = CarliniWagner {
            steps: 8,
            ..CarliniWagner::rse(0.5)
        };
        let mut counts = Vec::new();
        let mut count = |done: Option<(usize, &Found)>| {
            if done.is_none() {
                counts.push(emulator.take_stats());
            }
            Ok(())
        };
        attack(&mut net, targets, &params, &Options::default(), &mut count).unwrap();
        assert_eq!(counts.len(), 8);
        for stats in &counts[2..] {
            assert_eq!(stats.graph_launches, 1, "{stats:?}");
            assert_eq!(stats.allocations, 0, "{stats:?}");
            assert!(stats.synchronisations <= 1, "{stats:?}");
        }
    });
}

#[test]
fn an_interrupted_run_continues_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    for dtype in [DType::F32, DType::F16] {
        let (_, whole) = once(|_| trained_run(&Device::Gpu(open_pooled()), dtype, 29, 2));
        let parts = once(|_| {
            let device = Device::Gpu(open_pooled());
            let load = |split, n| Spec::Synthetic { n: 200 }.load(split, 0).unwrap().take(n);
            let (train, test) = (load(Split::Train, 29), load(Split::Test, 10));
            let mut config = Config::new(Arch::Small, train.image_shape(), train.classes().len());
            config = config.with_noise(0.2, 0.1);
            config.width = 2;
            let mut all = Vec::new();
            for part in 0..3 {
                let mut model = Model::new(config.clone(), 3).unwrap();
                model.to(&device, dtype).unwrap();
                let mut trainer = Trainer::new(&mut model, &train, &test, settings(2)).unwrap();
                if part > 0 {
                    trainer.resume(&path).unwrap();
                }
                let mut steps = 0;
                let stop = std::sync::atomic::AtomicBool::new(false);
                let result = trainer.run(&stop, &mut |_, _| {
                    steps += 1;
                    // In the middle of the first epoch, then of the second.
                    stop.store(part < 2 && steps == 3, std::sync::atomic::Ordering::Relaxed);
                    Ok(())
                });
                assert_eq!(result.is_err(), part < 2);
                trainer.save(&path).unwrap();
                all.clear();
                model.visit_params(|_, p| all.push(p.value.to_cpu().unwrap()));
            }
            all
        });
        for (a, b) in whole.iter().zip(&parts) {
            assert_eq!(a.data::<f32>(), b.data::<f32>(), "{dtype}");
        }
    }
}

/// A network whose activations keep their size from layer to layer: weights N(0, 2 / fan_in). Those a
/// run begins with are so small that, with the running statistics it begins with, images would move
/// logits by little more than rounding does.
pub fn lively() -> Model {
    let mut model = network(Arch::Small, 8, 4);
    model.visit_params(|_, p| {
        let fan_in = p.value.shape().row_len() as f64;
        let (n, c) = (p.value.shape().n, p.value.shape().c);
        // Weights alone: vectors over channels are [1, 1, 1, c].
        if n > 1 || fan_in > c as f64 {
            let factor = ((2.0 / fan_in).sqrt() / 0.02) as f32;
            p.value
                .data_mut::<f32>()
                .iter_mut()
                .for_each(|w| *w *= factor);
        }
    });
    model
}

fn attacked(device: &Device, params: &CarliniWagner, eot: usize) -> Vec<Found> {
    let mut model = lively();
    model.to(device, DType::F32).unwrap();
    let x = images(model.config().input, 5, 9);
    let mut net = Ensemble::new(&mut model, 7, Purpose::Attack, eot).unwrap();
    net.average = Average::Logits;
    let rows: Rows = (0..5).map(|id| Row { id, draw: 0 }).collect();
    let labels = net.predict(&x.to(device).unwrap(), &rows).unwrap();
    let ids = [3, 1, 4, 15, 9];
    let criterion = Criterion::Untargeted { labels };
    let targets = Targets {
        x: &x,
        ids: &ids,
        criterion: &criterion,
    };
    let options = Options {
        passes: eot,
        ..Options::default()
    };
    attack(&mut net, targets, params, &options, &mut |_| Ok(())).unwrap()
}

#[test]
fn ten_steps_of_the_attack_are_the_cpus() {
    // A confidence that ten steps do not reach: once the hinge holds, what is left of the gradient is
    // the distance, rounding noise at first, which Adam blows up to whole steps.
    let kappa = 100.0;
    let rse = CarliniWagner {
        steps: 10,
        lr: 0.01,
        kappa,
        ..CarliniWagner::rse(0.5)
    };
    let search = CarliniWagner {
        protocol: Protocol::Search {
            first: 0.1,
            search_steps: 2,
            at_once: 1,
            abort_early: true,
        },
        steps: 10,
        lr: 0.02,
        lr_end: 0.02,
        kappa: 0.0,
    };
    let at_once = CarliniWagner {
        protocol: Protocol::Search {
            first: 0.05,
            search_steps: 5,
            at_once: 2,
            abort_early: true,
        },
        lr_end: 0.01,
        ..search
    };
    let adaptive = CarliniWagner::adaptive(10);
    let mut cases = vec![(rse, 1), (rse, 3)];
    // The search ends rows and keeps the closest, so its hinge must hold: on the emulator, whose
    // arithmetic is so near the CPU's that nothing is blown up.
    if emulator().is_some() {
        cases.extend([(search, 1), (at_once, 2), (adaptive, 2)]);
    }
    for (params, eot) in cases {
        let cpu = attacked(&Device::Cpu, &params, eot);
        let gpu = once(|_| attacked(&Device::Gpu(open_pooled()), &params, eot));
        // Adam divides by the gradient's size: where a gradient is as small as its rounding error, a
        // step may go the other way. Few pixels may, and none farther than ten steps of `lr` go.
        let pixels =
            |found: &[Found]| -> Vec<f32> { found.iter().flat_map(|f| f.pixels.clone()).collect() };
        let (on_cpu, on_gpu) = (pixels(&cpu), pixels(&gpu));
        let moved = on_cpu.iter().zip(&on_gpu).map(|(a, b)| (a - b).abs());
        let strayed = moved.clone().filter(|&d| d > 1e-4).count();
        let total = on_cpu.len();
        assert!(strayed * 100 <= total, "{params:?}: {strayed} of {total}");
        let farthest = moved.fold(0.0, f32::max);
        assert!(
            f64::from(farthest) <= 0.5 * params.lr * 10.0,
            "{params:?}: {farthest}"
        );
        for (a, b) in cpu.iter().zip(&gpu) {
            assert_eq!((a.success, a.counts), (b.success, b.counts), "{params:?}");
            let (c, d) = (a.c.unwrap(), b.c.unwrap());
            assert!((c / d - 1.0).abs() < 1e-4, "{c} {d}");
            assert!((a.l2.powi(2) - b.l2.powi(2)).abs() < 1e-3 * (a.l2.powi(2) + 1e-3));
        }
    }
}

#[test]
fn an_ensemble_of_five_draws_is_the_cpus() {
    let scores = |device: &Device| -> Result<Tensor> {
        let mut model = lively();
        model.to(device, DType::F32)?;
        let x = images(model.config().input, 4, 9).to(device)?;
        let mut net = Ensemble::new(&mut model, 7, Purpose::Eval, 5)?;
        let rows: Rows = (0..4).map(|id| Row { id, draw: 0 }).collect();
        net.logits(&x, &rows)
    };
    let cpu = scores(&Device::Cpu).unwrap();
    let gpu = run_with(open_pooled, |gpu| {
        Ok(vec![scores(&Device::Gpu(gpu.clone()))?])
    });
    assert!(
        distance(&cpu, &gpu[0]) < 1e-5,
        "{}",
        distance(&cpu, &gpu[0])
    );
}

/// Chunk after chunk, and call after call: the same bits as at once. From the third time on a chunk is one
/// graph, which needs no memory.
#[test]
fn an_ensembles_chunks_are_one_graph_each() {
    let Some(emulator) = emulator() else { return };
    for draws in [1, 3] {
        once(|_| {
            let gpu = open_pooled();
            let mut model = lively();
            model.to(&Device::Gpu(gpu.clone()), DType::BF16).unwrap();
            let x = images(model.config().input, 11, 9).to_gpu(&gpu).unwrap();
            let rows: Rows = (0..11).map(|id| Row { id, draw: 4 }).collect();
            let mut net = Ensemble::new(&mut model, 7, Purpose::Eval, draws).unwrap();
            let whole = net.logits(&x, &rows).unwrap().to_cpu().unwrap();
            net.chunk = 2 * draws;
            for call in 0..3 {
                let parts = net.logits(&x, &rows).unwrap().to_cpu().unwrap();
                assert_eq!(whole.data::<f32>(), parts.data::<f32>(), "call {call}");
            }
            emulator.take_stats();
            let again = net.logits_of_draws(&x, &rows).unwrap();
            let stats = emulator.take_stats();
            // Five chunks of two images and one of one.
            assert_eq!(stats.graph_launches, 6, "{stats:?}");
            assert_eq!(stats.allocations, 0, "{stats:?}");
            // Another seed is not in that graph.
            let same = net.logits_of_draws(&x, &rows).unwrap();
            net.seed = 8;
            let other = net.logits_of_draws(&x, &rows).unwrap();
            let host = |t: &Tensor| t.to_cpu().unwrap().data::<f32>().to_vec();
            assert_eq!(host(&again), host(&same));
            assert_ne!(host(&again), host(&other));
        });
    }
}

/// Too little memory for all rows at once: the same bits with fewer.
#[test]
fn an_ensemble_goes_on_with_fewer_rows_at_once() {
    let Some(emulator) = emulator() else { return };
    once(|_| {
        let scores = |limit: Option<usize>| {
            let gpu = open_pooled();
            let mut model = lively();
            model.to(&Device::Gpu(gpu.clone()), DType::F32).unwrap();
            let x = images(model.config().input, 8, 9).to_gpu(&gpu).unwrap();
            let rows: Rows = (0..8).map(|id| Row { id, draw: 0 }).collect();
            let mut net = Ensemble::new(&mut model, 7, Purpose::Eval, 4).unwrap();
            let most = net.chunk;
            let before = emulator.memory_used();
            if let Some(more) = limit {
                emulator.set_memory_limit(before + more);
            }
            let scores = net.logits(&x, &rows).and_then(|z| z.to_cpu());
            emulator.set_memory_limit(16 << 30);
            (scores, (most, net.chunk), emulator.memory_used() - before)
        };
        let (whole, (most, chunk), used) = scores(None);
        assert_eq!(chunk, most);
        // The pool asks for more than it needs: less and less memory, until that is too little for all rows.
        let mut limits = (1..10).rev().map(|tenths| used * tenths / 10);
        let parts = limits.find_map(|limit| {
            let (parts, (_, chunk), _) = scores(Some(limit));
            (chunk < 32).then_some(parts)
        });
        let parts = parts.expect("a tenth is too little").unwrap();
        assert_eq!(whole.unwrap().data::<f32>(), parts.data::<f32>());
        let (none, ..) = scores(Some(4096));
        let text = none.unwrap_err().to_string();
        assert!(text.contains("out of memory: asked for "), "{text}");
    });
}

#[test]
fn too_large_a_batch_says_which_one_fits() {
    let Some(emulator) = emulator() else { return };
    once(|_| {
        let load = |split| Spec::Synthetic { n: 200 }.load(split, 0).unwrap().take(64);
        let (train, test) = (load(Split::Train), load(Split::Test));
        let mut config = Config::new(Arch::Small, train.image_shape(), train.classes().len());
        config.width = 2;
        let mut model = Model::new(config, 3).unwrap();
        let gpu = open_pooled();
        model.to(&Device::Gpu(gpu.clone()), DType::F32).unwrap();
        let large = Settings {
            batch: 64,
            ..settings(1)
        };
        let mut trainer = Trainer::new(&mut model, &train, &test, large).unwrap();
        emulator.set_memory_limit(emulator.memory_used() + (2 << 20));
        let result = trainer.run(&false.into(), &mut |_, _| Ok(()));
        emulator.set_memory_limit(16 << 30);
        let text = result.unwrap_err().to_string();
        let fits = ["; a batch of 32 rows fits", "; a batch of 16 rows fits"];
        assert!(fits.iter().any(|fits| text.ends_with(fits)), "{text}");
    });
}
