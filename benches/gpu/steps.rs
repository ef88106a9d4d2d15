//! Whole networks: passes, and the steps of training, attack and ensemble as programs run them.

use anyhow::Result;
use noiseforge::attacks::Criterion;
use noiseforge::data::{Dataset, DeviceData};
use noiseforge::ensemble::{Average, Classifier, Differentiable, Ensemble};
use noiseforge::models::{Arch, Config, Model};
use noiseforge::nn::{Grads, Mode, NoisePlan, Pass, Site};
use noiseforge::ops::adam::Adam;
use noiseforge::ops::conv2d::Packs;
use noiseforge::ops::conv2d::predict::Pass as Direction;
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
const LARGE_BATCH: usize = 1024;

/// What is timed: a network in a type, on batches of a size, with RSE's noise or none.
#[derive(Clone, Copy)]
struct Network {
    arch: Arch,
    dtype: DType,
    n: usize,
    noise: bool,
}

impl Network {
    fn config(self) -> Config {
        let config = Config::new(self.arch, INPUT, 10);
        match self.noise {
            true => config.with_noise(0.2, 0.1),
            false => config,
        }
    }

    fn model(self, b: &Bench) -> Result<Model> {
        let mut model = Model::new(self.config(), 0)?;
        model.to(&Device::Gpu(b.gpu.clone()), self.dtype)?;
        Ok(model)
    }

    /// As benches/peers/torch_gpu.py names it.
    fn name(self, what: &str) -> String {
        let batch = match self.n {
            BATCH => String::new(),
            n => format!(" batch {n}"),
        };
        format!("{} {what} {}{batch}", self.arch, self.dtype)
    }

    /// The convolutions' operations in so many passes over so many images.
    fn work(self, passes: usize, images: usize) -> Result<Work> {
        let mut operations = 0.0;
        for layer in self.config().convolutions()? {
            operations += layer
                .launch(Direction::Forward, self.dtype, images)
                .operations()?;
        }
        Ok(Work::Flops(passes * operations as usize))
    }
}

/// Images in [0, 1], on the CPU.
fn images(b: &Bench, n: usize) -> Result<Tensor> {
    let mut x = b.values(INPUT.with_n(n), DType::F32, 1)?.to_cpu()?;
    for v in x.data_mut::<f32>() {
        *v = (0.5 + 0.25 * *v).clamp(0.0, 1.0);
    }
    Ok(x)
}

pub fn all(b: &Bench) -> Result<()> {
    let network = |arch, dtype, n| Network {
        arch,
        dtype,
        n,
        noise: true,
    };
    let vgg16 = network(Arch::Vgg16, DType::BF16, BATCH);
    let resnext = network(Arch::ResNeXt29, DType::BF16, BATCH);
    for net in [vgg16, resnext] {
        training_step(b, net, NoisePlan::default(), "training step")?;
        attack_step(b, net)?;
        ensemble(b, net, 32)?;
        ensemble(b, net, 1)?;
        passes(b, net)?;
        // What the noise costs.
        let clean = Network {
            noise: false,
            ..net
        };
        training_step(
            b,
            clean,
            NoisePlan::default(),
            "training step without noise",
        )?;
    }
    let plan = NoisePlan {
        site: Site::Load,
        ..NoisePlan::default()
    };
    training_step(b, vgg16, plan, "training step, noise in the load")?;
    let plan = NoisePlan {
        recompute: true,
        ..NoisePlan::default()
    };
    training_step(b, vgg16, plan, "training step, inputs made again")?;
    let large = network(Arch::Vgg16, DType::BF16, LARGE_BATCH);
    training_step(b, large, NoisePlan::default(), "training step")?;
    attack_step(b, large)
}

/// In f32, on CUDA cores.
pub fn single(b: &Bench) -> Result<()> {
    let full = Network {
        arch: Arch::Vgg16,
        dtype: DType::F32,
        n: BATCH,
        noise: true,
    };
    training_step(b, full, NoisePlan::default(), "training step")?;
    attack_step(b, full)?;
    ensemble(b, full, 32)?;
    passes(b, full)
}

/// Launch by launch.
fn passes(b: &Bench, net: Network) -> Result<()> {
    let whats = [
        "forward",
        "frozen forward, noise in the load",
        "frozen forward, noise in the epilogue",
        "forward and input gradient",
        "training pass",
    ];
    if !whats.iter().any(|what| b.wanted(&net.name(what))) {
        return Ok(());
    }
    let n = net.n;
    let mut model = net.model(b)?;
    let x = b.values(INPUT.with_n(n), DType::F32, 1)?;
    let dy = b.values(Shape::new(n, 1, 1, 10), DType::F32, 2)?;
    let key = Key::consecutive(0, Purpose::Train, 0, n, 0);
    let pass = |mode, record| Pass {
        mode,
        noise: Some(key.clone()),
        record,
    };
    b.case(&net.name("forward"), net.work(1, n)?, || {
        model.forward(x.clone(), &pass(Mode::Eval, false))?;
        Ok(())
    })?;
    for site in [Site::Load, Site::Epilogue] {
        model.set_noise_plan(NoisePlan {
            site,
            ..NoisePlan::default()
        });
        let mut frozen = model.freeze()?;
        let name = net.name(&format!("frozen forward, noise in the {site}"));
        b.case(&name, net.work(1, n)?, || {
            frozen.forward(x.clone(), 1, &pass(Mode::Eval, false))?;
            Ok(())
        })?;
    }
    model.set_noise_plan(NoisePlan::default());
    let name = net.name("forward and input gradient");
    b.case(&name, net.work(2, n)?, || {
        model.forward(x.clone(), &pass(Mode::Eval, true))?;
        model.backward(dy.clone(), Grads::InputOnly)?;
        Ok(())
    })?;
    b.case(&net.name("training pass"), net.work(3, n)?, || {
        model.forward(x.clone(), &pass(Mode::Train, true))?;
        model.accumulate(dy.clone())?;
        Ok(())
    })
}

/// Batch, augmentation, forward, backward, SGD: one graph, as [`noiseforge::train`] replays it.
fn training_step(b: &Bench, net: Network, noise: NoisePlan, what: &str) -> Result<()> {
    let Network { dtype, n, .. } = net;
    let name = &net.name(what);
    if !b.wanted(name) {
        return Ok(());
    }
    let mut model = net.model(b)?;
    model.set_noise_plan(noise);
    let settings = Settings::default();
    let classes = (0..10).map(|c| c.to_string()).collect();
    let labels = (0..n as u32).map(|i| i % 10).collect();
    let data = Dataset::from_tensor(&images(b, n)?, labels, classes)?;
    let data = DeviceData::new(&data, &b.gpu)?;
    let picks = data.training_picks(settings.augment.as_ref(), 0, 0, n)?;
    let plan = data.plan(&picks, n)?;
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
    let mut packs = Packs::new(&b.gpu);
    let mut step = |packs: &mut Packs| {
        let batch = data.batch(&plan, &cursor, n, DType::F32)?;
        let pass = Pass {
            mode: Mode::Train,
            noise: Some(Key {
                seed: 0,
                purpose: Purpose::Train,
                rows: batch.rows,
            }),
            record: true,
        };
        packs.during(|| {
            let logits = model.forward(batch.x, &pass)?;
            let dlogits = cross_entropy_step(&logits, &batch.labels, Some(&scale), &mut metrics)?;
            model.accumulate(dlogits)
        })?;
        sgd::step_all(&tensors, &rates, &cursor, &mut scale, settings.sgd)?;
        step::end(Some(&mut scale), &mut cursor)
    };
    b.gpu.reset_peak();
    step(&mut packs)?;
    packs.prepare()?;
    let (graph, ()) = b.gpu.capture(|| step(&mut packs))?;
    let peak = b.gpu.memory_use().peak as f64 / 1e6;
    println!("{name}: {peak:.0} MB of device memory");
    b.case(name, net.work(3, n)?, || Ok(graph.launch()?))
}

/// Forward, gradient in the images, Adam in tanh space, bookkeeping: one graph, as the attack replays it.
fn attack_step(b: &Bench, net: Network) -> Result<()> {
    let n = net.n;
    let name = net.name("C&W iteration");
    if !b.wanted(&name) {
        return Ok(());
    }
    let mut model = net.model(b)?;
    let x = images(b, n)?.to_gpu(&b.gpu)?;
    let rows: Vec<Row> = (0..n as u32).map(|id| Row { id, draw: 0 }).collect();
    let c = vec![0.1; n];
    let mut iterates = Iterates::new(&x, DType::F32, 1.0, &c, &rows, Adam::default(), 0)?;
    let labels: Vec<u32> = (0..n as u32).map(|i| i % 10).collect();
    let classes = b.gpu.upload(&labels)?;
    let criterion = Criterion::Untargeted { labels };
    let mut margins = b.gpu.alloc(n)?;
    let mut ensemble = Ensemble::new(&mut model, 0, Purpose::Attack, 1)?;
    ensemble.average = Average::Logits;
    let mut step = || {
        let (_, df) = ensemble.input_grad(iterates.image(), &iterates.rows(), &mut |scores| {
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
    b.case(&name, net.work(2, n)?, || Ok(graph.launch()?))
}

fn ensemble(b: &Bench, net: Network, images: usize) -> Result<()> {
    const DRAWS: usize = 50;
    let name = net.name(&format!("ensemble of {DRAWS} draws, {images} images"));
    if !b.wanted(&name) {
        return Ok(());
    }
    let mut model = net.model(b)?;
    let x = self::images(b, images)?.to_gpu(&b.gpu)?;
    let rows: Rows = (0..images as u32).map(|id| Row { id, draw: 0 }).collect();
    let mut ensemble = Ensemble::new(&mut model, 0, Purpose::Eval, DRAWS)?;
    b.case(&name, net.work(1, images * DRAWS)?, || {
        ensemble.logits(&x, &rows)?;
        Ok(())
    })
}
