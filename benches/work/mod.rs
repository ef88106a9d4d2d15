//! What several benches time: VGG16's training step and inference, and an attack, at the peers'
//! sizes (`benches/peers/README.md`).

use anyhow::Result;
use noiseforge::attacks::carlini_wagner::{CarliniWagner, attack};
use noiseforge::attacks::{Criterion, Options, Targets};
use noiseforge::ensemble::Ensemble;
use noiseforge::models::{Arch, Config, Model};
use noiseforge::nn::{Mode, Pass};
use noiseforge::ops::loss::cross_entropy;
use noiseforge::ops::noise::{Key, Purpose};
use noiseforge::optim::Sgd;
use noiseforge::tensor::{Shape, Tensor};
use noiseforge::train::Settings;

/// The program's allocator (`src/main.rs`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Images of a batch.
pub const BATCH: usize = 32;

/// A call to be timed, its tensors prepared.
pub type Call = Box<dyn FnMut() -> Result<()> + Send>;

/// Values that are neither zero nor denormal nor all alike; what they are does not matter.
pub fn values(shape: Shape, scale: f32) -> Result<Tensor> {
    let data = (0..shape.len() as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 * scale / (1 << 24) as f32)
        .collect();
    Ok(Tensor::from_vec(shape, data)?)
}

/// VGG16 for 32x32, its images and labels.
fn vgg(noisy: bool) -> Result<(Model, Tensor, Vec<u32>)> {
    let (init, inner) = if noisy { (0.2, 0.1) } else { (0.0, 0.0) };
    let input = Shape::new(1, 32, 32, 3);
    let config = Config::new(Arch::Vgg16, input, 10).with_noise(init, inner);
    let labels = (0..BATCH as u32).map(|i| i % 10).collect();
    Ok((
        Model::new(config, 0)?,
        values(input.with_n(BATCH), 1.0)?,
        labels,
    ))
}

/// One training step: noise, forward, backward, SGD.
pub fn vgg_train(noisy: bool) -> Result<Call> {
    let (mut model, x, labels) = vgg(noisy)?;
    let settings = Settings::default().sgd;
    let mut optimizer = Sgd::new(&mut model, settings)?;
    let mut step = 0;
    Ok(Box::new(move || {
        let pass = Pass {
            mode: Mode::Train,
            noise: Some(Key::consecutive(0, Purpose::Train, 0, BATCH, step)),
            record: true,
        };
        step += 1;
        let logits = model.forward(x.clone(), &pass)?;
        let (_, dlogits) = cross_entropy(&logits, &labels)?;
        model.accumulate(dlogits)?;
        optimizer.step(&mut model)?;
        Ok(())
    }))
}

/// One forward pass in eval mode.
pub fn vgg_infer(noisy: bool) -> Result<Call> {
    let (mut model, x, _) = vgg(noisy)?;
    let mut draw = 0;
    Ok(Box::new(move || {
        let pass = Pass {
            mode: Mode::Eval,
            noise: Some(Key::consecutive(0, Purpose::Eval, 0, BATCH, draw)),
            record: false,
        };
        draw += 1;
        model.forward(x.clone(), &pass)?;
        Ok(())
    }))
}

/// C&W, c = 1, 50 steps, on the small network: the peers' with a batch norm behind each convolution.
pub fn carlini_wagner() -> Result<Call> {
    let input = Shape::new(1, 32, 32, 3);
    let mut model = Model::new(Config::new(Arch::Small, input, 10), 0)?;
    let x = values(input.with_n(BATCH), 1.0)?;
    let ids: Vec<u32> = (0..BATCH as u32).collect();
    let criterion = Criterion::Untargeted {
        labels: ids.iter().map(|i| i % 10).collect(),
    };
    let params = CarliniWagner {
        steps: 50,
        lr: 1e-2,
        ..CarliniWagner::rse(1.0)
    };
    Ok(Box::new(move || {
        let mut net = Ensemble::new(&mut model, 0, Purpose::Attack, 1)?;
        let targets = Targets {
            x: &x,
            ids: &ids,
            criterion: &criterion,
        };
        attack(&mut net, targets, &params, &Options::default(), &mut |_| {
            Ok(())
        })?;
        Ok(())
    }))
}
