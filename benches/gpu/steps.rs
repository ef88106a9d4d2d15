//! Whole networks: passes, and the steps of training, attack and ensemble as programs run them.

use anyhow::Result;
use noiseforge::attacks::Criterion;
use noiseforge::data::{Dataset, DeviceData};
use noiseforge::ensemble::{Average, Classifier, Differentiable, Ensemble};
use noiseforge::models::{Arch, Config, Model};
use noiseforge::nn::{Grads, Mode, NoisePlan, Pass, Site};
use noiseforge::ops::adam::Adam;
use noiseforge::ops::loss::{Metrics, cross_entropy_step};
use noiseforge::ops::margin;
use noiseforge::ops::noise::{Key, Purpose, Row, Rows};
use noiseforge::ops::sgd;
use noiseforge::ops::step::{self, Cursor, LearningRates, LossScale, MultiTensor, Slots};
use noiseforge::ops::tanh_space::Iterates;
use noiseforge::optim::Sgd;
use noiseforge::tensor::{DType, Device};
use noiseforge::train::Settings;
use noiseforge::{Shape, Tensor};

use super::{BATCH, Bench, Work};

const INPUT: Shape = Shape::new(1, 32, 32, 3);
/// Multiply-adds of VGG16 for one image, counted as two operations each.
const FLOPS: usize = 626_000_000;

fn vgg16(b: &Bench, dtype: DType) -> Result<Model> {
    let config = Config::new(Arch::Vgg16, INPUT, 10).with_noise(0.2, 0.1);
    let mut model = Model::new(config, 0)?;
    model.to(&Device::Gpu(b.gpu.clone()), dtype)?;
    Ok(model)
}

/// Images in [0, 1], on the CPU.
fn images(b: &Bench, n: usize) -> Result<Tensor> {
    let mut x = b.values(INPUT.with_n(n), DType::F32, 1)?.to_cpu()?;
    for v in x.data_mut::<f32>() {
        *v = 0.5 + 0.5 * *v;
    }
    Ok(x)
}

fn work(passes: usize, images: usize) -> Work {
    Work::Flops(passes * FLOPS * images)
}

pub fn all(b: &Bench) -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        passes(b, dtype)?;
        training_step(b, dtype)?;
        attack_step(b, dtype)?;
        ensemble(b, dtype)?;
    }
    Ok(())
}

/// Launch by launch.
fn passes(b: &Bench, dtype: DType) -> Result<()> {
    let mut model = vgg16(b, dtype)?;
    let x = b.values(INPUT.with_n(BATCH), DType::F32, 1)?;
    let dy = b.values(Shape::new(BATCH, 1, 1, 10), DType::F32, 2)?;
    let key = Key::consecutive(0, Purpose::Train, 0, BATCH, 0);
    let pass = |mode, record| Pass {
        mode,
        noise: Some(key.clone()),
        record,
    };
    b.case(&format!("vgg16 forward {dtype}"), work(1, BATCH), || {
        model.forward(x.clone(), &pass(Mode::Eval, false))?;
        Ok(())
    })?;
    for site in [Site::Load, Site::Epilogue] {
        model.set_noise_plan(NoisePlan {
            site,
            ..NoisePlan::default()
        });
        let mut frozen = model.freeze()?;
        let name = format!("vgg16 frozen forward, noise in the {site} {dtype}");
        b.case(&name, work(1, BATCH), || {
            frozen.forward(x.clone(), 1, &pass(Mode::Eval, false))?;
            Ok(())
        })?;
    }
    model.set_noise_plan(NoisePlan::default());
    let name = format!("vgg16 forward and input gradient {dtype}");
    b.case(&name, work(2, BATCH), || {
        model.forward(x.clone(), &pass(Mode::Eval, true))?;
        model.backward(dy.clone(), Grads::InputOnly)?;
        Ok(())
    })?;
    let name = format!("vgg16 training pass {dtype}");
    b.case(&name, work(3, BATCH), || {
        model.forward(x.clone(), &pass(Mode::Train, true))?;
        model.accumulate(dy.clone())?;
        Ok(())
    })
}

/// Batch, augmentation, forward, backward, SGD: one graph, as [`noiseforge::train`] replays it.
fn training_step(b: &Bench, dtype: DType) -> Result<()> {
    let auto = NoisePlan::default();
    let load = NoisePlan {
        site: Site::Load,
        ..auto
    };
    let again = NoisePlan {
        recompute: true,
        ..auto
    };
    for (plan, what) in [
        (auto, ""),
        (load, ", noise in the load"),
        (again, ", inputs made again"),
    ] {
        training_step_with(
            b,
            dtype,
            plan,
            &format!("vgg16 training step{what} {dtype}"),
        )?;
    }
    Ok(())
}

fn training_step_with(b: &Bench, dtype: DType, noise: NoisePlan, name: &str) -> Result<()> {
    if !b.wanted(name) {
        return Ok(());
    }
    let mut model = vgg16(b, dtype)?;
    model.set_noise_plan(noise);
    let settings = Settings::default();
    let classes = (0..10).map(|c| c.to_string()).collect();
    let labels = (0..BATCH as u32).map(|i| i % 10).collect();
    let data = Dataset::from_tensor(&images(b, BATCH)?, labels, classes)?;
    let data = DeviceData::new(&data, &b.gpu)?;
    let picks = data.training_picks(settings.augment.as_ref(), 0, 0, BATCH)?;
    let plan = data.plan(&picks, BATCH)?;
    let mut rates = LearningRates::new(&b.gpu, 1)?;
    rates.set(&[1e-3])?;
    let mut cursor = Cursor::new(&b.gpu)?;
    let mut metrics = Metrics::new(&b.gpu)?;
    let mut scale = LossScale::new(&b.gpu, dtype)?;
    let mut optimizer = Sgd::new(&mut model, settings.sgd)?;
    let mut slots = Slots::default();
    let mut pushed = Ok(());
    let mut velocity = optimizer.velocity.iter_mut();
    model.visit_params(|_, p| {
        let v = velocity.next().expect("one velocity per parameter");
        if pushed.is_ok() {
            pushed = slots.push(&mut p.value, &mut p.grad, v, None);
        }
    });
    pushed?;
    let tensors = MultiTensor::new(slots)?;
    let mut step = || {
        let batch = data.batch(&plan, &cursor, BATCH, DType::F32)?;
        let pass = Pass {
            mode: Mode::Train,
            noise: Some(Key {
                seed: 0,
                purpose: Purpose::Train,
                rows: batch.rows,
            }),
            record: true,
        };
        let logits = model.forward(batch.x, &pass)?;
        let dlogits = cross_entropy_step(&logits, &batch.labels, Some(&scale), &mut metrics)?;
        model.accumulate(dlogits)?;
        sgd::step_all(&tensors, &rates, &cursor, &mut scale, settings.sgd)?;
        step::end(Some(&mut scale), &mut cursor)
    };
    b.gpu.reset_peak();
    step()?;
    let (graph, ()) = b.gpu.capture(step)?;
    let peak = b.gpu.memory_use().peak as f64 / 1e6;
    println!("{name}: {peak:.0} MB of device memory");
    b.case(name, work(3, BATCH), || Ok(graph.launch()?))
}

/// Forward, gradient in the images, Adam in tanh space, bookkeeping: one graph, as the attack replays it.
fn attack_step(b: &Bench, dtype: DType) -> Result<()> {
    let name = format!("vgg16 C&W iteration {dtype}");
    if !b.wanted(&name) {
        return Ok(());
    }
    let mut model = vgg16(b, dtype)?;
    let x = images(b, BATCH)?.to_gpu(&b.gpu)?;
    let rows: Vec<Row> = (0..BATCH as u32).map(|id| Row { id, draw: 0 }).collect();
    let c = vec![0.1; BATCH];
    let mut iterates = Iterates::new(&x, DType::F32, 1.0, &c, &rows, Adam::default(), 0)?;
    let labels: Vec<u32> = (0..BATCH as u32).map(|i| i % 10).collect();
    let classes = b.gpu.upload(&labels)?;
    let criterion = Criterion::Untargeted { labels };
    let mut margins = b.gpu.alloc(BATCH)?;
    let mut net = Ensemble::new(&mut model, 0, Purpose::Attack, 1)?;
    net.average = Average::Logits;
    let mut step = || {
        let (_, df) = net.input_grad(iterates.image(), &iterates.rows(), &mut |scores| {
            margin::attack_step(
                scores,
                &classes,
                criterion.direction(),
                0.0,
                64.0,
                &mut margins,
            )
        })?;
        iterates.step(&df, &margins, 64.0)
    };
    step()?;
    let (graph, ()) = b.gpu.capture(step)?;
    b.case(&name, work(2, BATCH), || Ok(graph.launch()?))
}

fn ensemble(b: &Bench, dtype: DType) -> Result<()> {
    const IMAGES: usize = 32;
    const DRAWS: usize = 50;
    let name = format!("vgg16 ensemble of {DRAWS} draws, {IMAGES} images {dtype}");
    if !b.wanted(&name) {
        return Ok(());
    }
    let mut model = vgg16(b, dtype)?;
    let x = images(b, IMAGES)?.to_gpu(&b.gpu)?;
    let rows: Rows = (0..IMAGES as u32).map(|id| Row { id, draw: 0 }).collect();
    let mut net = Ensemble::new(&mut model, 0, Purpose::Eval, DRAWS)?;
    b.case(&name, work(1, IMAGES * DRAWS), || {
        net.logits(&x, &rows)?;
        Ok(())
    })
}
