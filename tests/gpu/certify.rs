//! Certification on a GPU: the CPU's votes, whatever the batch.

use noiseforge::certify::{Event, Settings, Task};
use noiseforge::data::Dataset;
use noiseforge::gpu::Gpu;
use noiseforge::models::{Arch, Config, Model};
use noiseforge::selftest::linear::{Case, Linear};
use noiseforge::tensor::{DType, Device, Shape};
use noiseforge::{Result, Tensor};

use crate::harness::{once, run};
use crate::numbers::{get_u32, put_u32};

fn settings(batch: usize) -> Settings {
    Settings {
        task: Task::Certify {
            n0: 5,
            adaptive: false,
        },
        n: 12,
        alpha: 0.05,
        batch: Some(batch),
        ..Settings::certify(0.5)
    }
}

/// All votes of all images, one after the other.
fn votes(batch: usize, model: &mut Model, data: &Dataset) -> Result<Vec<u32>> {
    let mut votes = vec![Vec::new(); data.len()];
    let ids: Vec<u32> = (0..data.len() as u32).collect();
    settings(batch).run(model, data, &ids, &mut |event| {
        if let Event::Done(i, outcome) = event {
            votes[i] = [outcome.counts.selection, outcome.counts.estimation].concat();
        }
        Ok(())
    })?;
    Ok(votes.concat())
}

fn data(images: &Tensor, classes: usize) -> Dataset {
    let names = (0..classes).map(|c| c.to_string()).collect();
    Dataset::from_tensor(images, vec![0; images.shape().n], names).unwrap()
}

/// Precise noise has the CPU's bits, and no score of this classifier is so close to another that
/// the order of a sum decides.
#[test]
fn counts_of_a_linear_classifier_are_the_cpus() {
    let linear = Linear::sized(Case::Interior, Shape::new(3, 4, 4, 3), 3, 1);
    let data = data(&linear.images, 3);
    let expected = votes(64, &mut linear.model(0.0).unwrap(), &data).unwrap();
    let found = run(|gpu| {
        let mut model = linear.model(0.0)?;
        model.to(&Device::Gpu(gpu.clone()), DType::F32)?;
        Ok(vec![put_u32(gpu, &votes(20, &mut model, &data)?)?])
    });
    assert_eq!(get_u32(&found[0]), expected);
}

#[test]
fn counts_of_a_noisy_network_do_not_depend_on_the_batch() {
    let linear = Linear::sized(Case::Interior, Shape::new(3, 4, 4, 3), 3, 2);
    let data = data(&linear.images, 3);
    let noisy = |gpu: &Gpu, dtype| -> Result<Model> {
        let mut model = linear.model(0.3)?;
        model.to(&Device::Gpu(gpu.clone()), dtype)?;
        Ok(model)
    };
    for dtype in [DType::F32, DType::BF16] {
        once(|gpu| {
            let all: Vec<Vec<u32>> = [1, 7, 64]
                .into_iter()
                .map(|batch| votes(batch, &mut noisy(gpu, dtype).unwrap(), &data).unwrap())
                .collect();
            assert_eq!(all[0], all[1]);
            assert_eq!(all[0], all[2]);
            assert_eq!(all[0].iter().sum::<u32>(), 3 * 17);
        });
    }
    // Convolutions with noise of their own in front of them.
    let images = crate::harness::values(Shape::new(2, 8, 8, 3), 1);
    let images = images.data::<f32>().iter().map(|v| v.abs()).collect();
    let images = Tensor::from_vec::<f32>(Shape::new(2, 8, 8, 3), images).unwrap();
    let config = Config::new(Arch::Small, Shape::new(1, 8, 8, 3), 3);
    let config = Config {
        width: 2,
        ..config.with_noise(0.2, 0.1)
    };
    let data = self::data(&images, 3);
    once(|gpu| {
        let votes = |batch| {
            let mut model = Model::new(config.clone(), 1).unwrap();
            model.to(&Device::Gpu(gpu.clone()), DType::F32).unwrap();
            votes(batch, &mut model, &data).unwrap()
        };
        assert_eq!(votes(5), votes(34));
    });
}
