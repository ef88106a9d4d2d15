//! Adversarial training and distillation on the GPU path beside the CPU.

use std::path::Path;

use noiseforge::data::{Augment, Spec, Split};
use noiseforge::models::{Arch, Config, Model};
use noiseforge::ops::loss::{Metrics, Scaling, Totals, count_step, distillation};
use noiseforge::optim::Schedule;
use noiseforge::tensor::{DType, Device, Shape};
use noiseforge::train::adversarial::{FgsmRetraining, PgdTraining};
use noiseforge::train::distill::Distillation;
use noiseforge::train::{Event, Recipe, Settings, Trainer};
use noiseforge::{Result, Tensor};

use crate::harness::{distance, once, open_pooled, run, values};

fn recipes() -> [Recipe; 3] {
    [
        Recipe::AdvFgsm(FgsmRetraining::default()),
        Recipe::AdvPgd(PgdTraining {
            steps: 2,
            ..PgdTraining::default()
        }),
        Recipe::Distill(Distillation {
            temperature: 5.0,
            ..Distillation::default()
        }),
    ]
}

fn network(seed: u64) -> Model {
    let input = Shape::new(1, 32, 32, 3);
    let mut config = Config::new(Arch::Small, input, 10).with_noise(0.2, 0.1);
    config.width = 2;
    Model::new(config, seed).unwrap()
}

/// Mean training losses, and every parameter after the run; `save` after so many steps.
fn trained(
    recipe: Recipe,
    device: &Device,
    dtype: DType,
    save: Option<(usize, &Path)>,
    resume: Option<&Path>,
) -> Result<(Vec<f64>, Vec<Tensor>)> {
    let load = |split, n| Spec::Synthetic { n: 200 }.load(split, 0).unwrap().take(n);
    let (train, test) = (load(Split::Train, 19), load(Split::Test, 4));
    let settings = Settings {
        epochs: 2,
        batch: 8,
        schedule: Schedule::Cosine,
        augment: Some(Augment { pad: 2, flip: true }),
        recipe,
        seed: 5,
        ..Settings::default()
    };
    let (mut model, mut teacher) = (network(3), network(4));
    model.to(device, dtype)?;
    teacher.to(device, dtype)?;
    let mut trainer = match recipe {
        Recipe::Distill(_) => Trainer::distill(&mut model, &mut teacher, &train, &test, settings)?,
        _ => Trainer::new(&mut model, &train, &test, settings)?,
    };
    if let Some(path) = resume {
        trainer.resume(path)?;
    }
    let mut steps = 0;
    trainer.run(&false.into(), &mut |trainer, event| {
        if let (Event::Step { .. }, Some((after, path))) = (event, save) {
            steps += 1;
            if steps == after {
                trainer.save(path)?;
            }
        }
        Ok(())
    })?;
    let losses = trainer.log().iter().map(|line| line.train_loss).collect();
    let mut all = Vec::new();
    model.visit_params(|_, p| all.push(p.value.to_cpu()));
    Ok((losses, all.into_iter().collect::<Result<_>>()?))
}

#[test]
fn a_run_by_each_recipe_is_the_cpus() {
    for recipe in recipes() {
        let cpu = Device::Cpu;
        let (log, cpu) = trained(recipe, &cpu, DType::F32, None, None).unwrap();
        let gpu = || Device::Gpu(open_pooled());
        let (found, gpu) = once(|_| trained(recipe, &gpu(), DType::F32, None, None)).unwrap();
        for (a, b) in log.iter().zip(&found) {
            assert!(
                (a - b).abs() <= 1e-3 * a.abs(),
                "{recipe:?}: {log:?} {found:?}"
            );
        }
        // A gradient near 0 may have another sign; its pixel then moves the other way, and the weights
        // follow. `the_same_pixels_move` counts them.
        if matches!(recipe, Recipe::Distill(_)) {
            for (i, (a, b)) in cpu.iter().zip(&gpu).enumerate() {
                let largest = a.to_f64_vec().iter().fold(0.0f64, |m, v| m.max(v.abs()));
                assert!(distance(a, b) <= 1e-4 * largest, "tensor {i}");
            }
        }
    }
}

/// Images moved on the device are the CPU's but where the sign of a gradient is a matter of rounding.
#[test]
fn the_same_pixels_move() {
    let x = values(Shape::new(6, 32, 32, 3), 1);
    let mut images = x.clone();
    let pixels = images.data_mut::<f32>();
    pixels.iter_mut().for_each(|v| *v = 0.5 + 0.4 * *v);
    let labels = [1, 7, 0, 3, 3, 9];
    let fgsm = FgsmRetraining::default();
    let step = (0..).find(|&step| fgsm.radius(5, step).is_some()).unwrap();
    let moved = |device: &Device| -> Result<[Tensor; 2]> {
        let mut model = network(3);
        model.to(device, DType::F32)?;
        let there = images.to(device)?;
        let by_fgsm = fgsm.perturb(&mut model, there.clone(), &labels, 5, step)?;
        let pgd = PgdTraining {
            steps: 2,
            ..PgdTraining::default()
        };
        let by_pgd = pgd.perturb(&mut model, &there, &labels, 5, step)?;
        Ok([by_fgsm.to_cpu()?, by_pgd.to_cpu()?])
    };
    let cpu = moved(&Device::Cpu).unwrap();
    let gpu = once(|_| moved(&Device::Gpu(open_pooled()))).unwrap();
    for (a, b) in cpu.iter().zip(&gpu) {
        let pairs = || a.data::<f32>().iter().zip(b.data::<f32>());
        let others = pairs().filter(|(a, b)| a != b).count();
        println!("{others} of {}", a.shape().len());
        assert!(others * 1000 < a.shape().len(), "{others}");
        assert!(
            pairs()
                .zip(images.data::<f32>())
                .filter(|((a, _), x)| a != x)
                .count()
                > 10_000
        );
    }
}

#[test]
fn a_run_on_the_device_continues_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    for recipe in recipes() {
        let path = dir.path().join(recipe.name());
        let run = |save, resume| {
            let gpu = || Device::Gpu(open_pooled());
            once(|_| trained(recipe, &gpu(), DType::F32, save, resume)).unwrap()
        };
        let (log, whole) = run(Some((2, &path)), None);
        let (again, resumed) = run(None, Some(&path));
        assert_eq!(log, again, "{recipe:?}");
        for (a, b) in whole.iter().zip(&resumed) {
            assert_eq!(a.data::<f32>(), b.data::<f32>(), "{recipe:?}");
        }
    }
}

#[test]
fn recipes_in_sixteen_bits_follow_f32() {
    for recipe in recipes() {
        let run = |dtype| {
            let gpu = || Device::Gpu(open_pooled());
            once(|_| trained(recipe, &gpu(), dtype, None, None)).unwrap()
        };
        let (log, _) = run(DType::F32);
        for dtype in [DType::BF16, DType::F16] {
            let (found, params) = run(dtype);
            for (a, b) in log.iter().zip(&found) {
                assert!(
                    (a - b).abs() < 0.1 * a,
                    "{recipe:?} {dtype}: {log:?} {found:?}"
                );
            }
            for p in &params {
                assert_eq!(p.count_not_finite().unwrap(), 0);
            }
        }
    }
}

/// The host computes: the same bits.
#[test]
fn the_loss_of_distillation_is_the_hosts() {
    let shape = Shape::new(5, 1, 1, 7);
    let (student, teacher) = (values(shape, 1), values(shape, 2));
    let (losses, gradient) = distillation(&student, &teacher, 4.0, Scaling::Hinton).unwrap();
    let labels = [0, 3, 6, 2, 2];
    let right = noiseforge::ops::loss::argmax(&student).unwrap();
    let right = right.iter().zip(&labels).filter(|(p, l)| p == l).count() as u64;
    let gpu = run(|gpu| {
        let (z, t) = (student.to_gpu(gpu)?, teacher.to_gpu(gpu)?);
        let (found, gradient) = distillation(&z, &t, 4.0, Scaling::Hinton)?;
        assert_eq!(found, losses);
        let mut metrics = Metrics::new(gpu)?;
        count_step(&z, &found, &gpu.upload(&labels)?, &mut metrics)?;
        let expected = Totals {
            loss: losses.iter().sum(),
            correct: right,
            rows: 5,
            steps: 1,
            ..Totals::default()
        };
        let totals = metrics.read()?;
        assert!((totals.loss - expected.loss).abs() < 1e-12);
        let loss = expected.loss;
        assert_eq!(Totals { loss, ..totals }, expected);
        let short = count_step(&z, &found[1..], &gpu.upload(&labels)?, &mut metrics);
        let text = short.unwrap_err().to_string();
        assert!(
            text.starts_with("loss::count_step: losses: expected 5 elements"),
            "{text}"
        );
        Ok(vec![gradient])
    });
    assert_eq!(gpu[0].data::<f32>(), gradient.data::<f32>());
}
