//! The networks: names and sizes as PyTorch has them, noise where it belongs, rows that do not see
//! each other, checkpoints that fit.

use std::collections::BTreeMap;

use noiseforge::gradcheck::check_network;
use noiseforge::models::{Arch, Config, Model, NoisePlacement};
use noiseforge::nn::{Entry, Grads, Mode, NoisePlan, Pass, Site};
use noiseforge::ops::noise::{Key, Purpose, Row};
use noiseforge::rng::Stream;
use noiseforge::tensor::Device;
use noiseforge::{DType, Shape, Tensor};

const CIFAR: Shape = Shape::new(1, 32, 32, 3);

/// Narrow networks on the smallest images they take.
fn narrow() -> Vec<Config> {
    let config = |arch, input, width| Config {
        width,
        ..Config::new(arch, input, 5)
    };
    let resnext = config(Arch::ResNeXt29, Shape::new(1, 8, 8, 3), 2);
    vec![
        config(Arch::Vgg16, CIFAR, 4),
        resnext,
        config(Arch::ModelA, Shape::new(1, 96, 96, 3), 2),
        config(Arch::Small, Shape::new(1, 8, 8, 3), 3),
        config(Arch::Linear, Shape::new(1, 5, 7, 3), 1),
        config(Arch::PreActResNet18, Shape::new(1, 9, 8, 3), 2),
    ]
}

fn noisy(config: &Config) -> Config {
    config.clone().with_noise(0.2, 0.1)
}

fn images(shape: Shape, dtype: DType) -> Tensor {
    let mut stream = Stream::new(5, 99, 0);
    let data: Vec<f64> = (0..shape.len()).map(|_| stream.uniform()).collect();
    Tensor::from_vec(shape, data)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

fn eval(rows: Option<Vec<Row>>) -> Pass {
    Pass {
        mode: Mode::Eval,
        noise: rows.map(|rows| Key {
            seed: 11,
            purpose: Purpose::Test,
            rows: rows.into(),
        }),
        record: false,
    }
}

fn rows(ids: &[u32]) -> Vec<Row> {
    ids.iter().map(|&id| Row { id, draw: 2 }).collect()
}

/// A network whose running statistics fit its activations: freshly initialised ones let hardly
/// anything through in evaluation, and nothing would be seen there.
fn calibrated(config: &Config) -> Model {
    let mut model = Model::new(config.clone(), 0).unwrap();
    let x = images(config.input.with_n(8), DType::F32);
    let pass = Pass {
        mode: Mode::Train,
        ..eval(None)
    };
    for _ in 0..40 {
        model.forward(x.clone(), &pass).unwrap();
    }
    model
}

/// Shapes of all tensors by name, as PyTorch prints them.
fn shapes(model: &mut Model) -> BTreeMap<String, Vec<usize>> {
    let tensors = model.checkpoint().unwrap().tensors;
    tensors.into_iter().map(|(n, a)| (n, a.shape)).collect()
}

#[test]
fn parameters_are_counted_as_in_the_papers_code() {
    // 14.73, 9.13 and 1.13 million; PreActResNet-18 as in PyTorch
    let stl = Shape::new(1, 96, 96, 3);
    for (arch, input, expected) in [
        (Arch::Vgg16, CIFAR, 14_728_266),
        (Arch::ResNeXt29, CIFAR, 9_128_778),
        (Arch::ModelA, stl, 1_128_650),
        (Arch::PreActResNet18, CIFAR, 11_171_146),
    ] {
        let mut model = Model::new(Config::new(arch, input, 10), 0).unwrap();
        assert_eq!(model.count_params(), expected, "{arch}");
    }
}

#[test]
fn vgg16_has_torchvisions_names() {
    let mut model = Model::new(Config::new(Arch::Vgg16, CIFAR, 10), 0).unwrap();
    let shapes = shapes(&mut model);
    // convolutions of vgg16_bn: batch norm follows at +1, pooling takes a number
    let convs = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40];
    let mut expected: Vec<String> = Vec::new();
    for i in convs {
        for part in ["weight", "bias"] {
            expected.push(format!("features.{i}.{part}"));
        }
        for part in [
            "weight",
            "bias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
        ] {
            expected.push(format!("features.{}.{part}", i + 1));
        }
    }
    expected.extend([
        "classifier.weight".to_string(),
        "classifier.bias".to_string(),
    ]);
    expected.sort();
    assert_eq!(shapes.keys().cloned().collect::<Vec<_>>(), expected);
    assert_eq!(shapes["features.3.weight"], [64, 64, 3, 3]);
    assert_eq!(shapes["features.40.weight"], [512, 512, 3, 3]);
    assert_eq!(shapes["classifier.weight"], [10, 512]);
    assert!(shapes["features.1.num_batches_tracked"].is_empty());
}

#[test]
fn resnext29_is_2x64d() {
    let mut model = Model::new(Config::new(Arch::ResNeXt29, CIFAR, 10), 0).unwrap();
    let shapes = shapes(&mut model);
    assert_eq!(shapes["conv1.weight"], [64, 3, 1, 1]);
    assert_eq!(shapes["layer1.0.conv2.weight"], [128, 64, 3, 3]);
    assert_eq!(shapes["layer1.0.shortcut.0.weight"], [256, 64, 1, 1]);
    assert_eq!(shapes["layer3.2.conv3.weight"], [1024, 512, 1, 1]);
    assert_eq!(shapes["linear.weight"], [10, 1024]);
    assert!(!shapes.contains_key("layer1.1.shortcut.0.weight"));
}

#[test]
fn preactresnet18_has_the_names_of_robustbench() {
    let config = Config::new(Arch::PreActResNet18, CIFAR, 10);
    let shapes = shapes(&mut Model::new(config, 0).unwrap());
    let mut expected = vec!["conv1.weight".to_string()];
    for (stage, block) in [1, 2, 3, 4].into_iter().flat_map(|s| [(s, 0), (s, 1)]) {
        let name = format!("layer{stage}.{block}");
        for i in [1, 2] {
            expected.push(format!("{name}.conv{i}.weight"));
            for part in ["weight", "bias", "running_mean", "running_var"] {
                expected.push(format!("{name}.bn{i}.{part}"));
            }
            expected.push(format!("{name}.bn{i}.num_batches_tracked"));
        }
        if stage > 1 && block == 0 {
            expected.push(format!("{name}.shortcut.0.weight"));
        }
    }
    expected.extend(["linear.weight".to_string(), "linear.bias".to_string()]);
    expected.sort();
    assert_eq!(shapes.keys().cloned().collect::<Vec<_>>(), expected);
    assert_eq!(shapes["conv1.weight"], [64, 3, 3, 3]);
    assert_eq!(shapes["layer2.0.bn1.weight"], [64]);
    assert_eq!(shapes["layer2.0.conv1.weight"], [128, 64, 3, 3]);
    assert_eq!(shapes["layer4.0.shortcut.0.weight"], [512, 256, 1, 1]);
    assert_eq!(shapes["linear.weight"], [10, 512]);
}

#[test]
fn model_a_normalises_without_scale_and_shift() {
    let input = Shape::new(1, 96, 96, 3);
    let mut model = Model::new(Config::new(Arch::ModelA, input, 10), 0).unwrap();
    let shapes = shapes(&mut model);
    assert_eq!(shapes["features.0.weight"], [32, 3, 3, 3]);
    assert_eq!(shapes["features.19.weight"], [256, 256, 3, 3]);
    assert_eq!(shapes["features.20.running_mean"], [256]);
    assert!(!shapes.contains_key("features.20.weight"));
    assert_eq!(shapes["classifier.0.weight"], [10, 256]);
}

#[test]
fn weights_are_a_function_of_the_seed() {
    let config = Config::new(Arch::Small, CIFAR, 10);
    let tensors = |seed| {
        Model::new(config.clone(), seed)
            .unwrap()
            .checkpoint()
            .unwrap()
            .tensors
    };
    assert_eq!(tensors(3), tensors(3));
    assert_ne!(tensors(3), tensors(4));
}

#[test]
fn initial_weights_have_the_papers_spread() {
    let mut model = Model::new(Config::new(Arch::Vgg16, CIFAR, 10), 1).unwrap();
    model.visit_params(|name, p| {
        let n = p.value.shape().len() as f64;
        let values = p.value.to_f64_vec();
        let mean = values.iter().sum::<f64>() / n;
        let sd = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        if name == "features.24.weight" {
            // five standard errors of the mean and of the standard deviation
            assert!(mean.abs() < 5.0 * 0.02 / n.sqrt(), "{mean}");
            assert!((sd - 0.02).abs() < 5.0 * 0.02 / (2.0 * n).sqrt(), "{sd}");
        } else if name == "features.25.weight" {
            assert!((mean - 1.0).abs() < 5.0 * 0.02 / n.sqrt(), "{mean}");
        } else if name == "features.25.bias" {
            assert!(values.iter().all(|&v| v == 0.0));
        } else if name == "features.24.bias" {
            let bound = 1.0 / (9.0 * 256.0f64).sqrt();
            assert!(values.iter().all(|v| v.abs() <= bound));
            assert!(sd > 0.4 * bound);
        }
    });
}

/// Makes one noise sigma at a time non-zero by its placement and sees which input it reaches.
#[test]
fn init_noise_sits_where_the_placement_says() {
    let logits = |arch, init: f32, inner: f32, placement| {
        let config = Config {
            width: 4,
            placement,
            ..Config::new(arch, CIFAR, 5).with_noise(init, inner)
        };
        let mut model = calibrated(&config);
        let z = model
            .forward(images(CIFAR, DType::F32), &eval(Some(rows(&[7]))))
            .unwrap();
        z.data::<f32>().to_vec()
    };
    use NoisePlacement::{Authors, Image};
    for arch in [Arch::Vgg16, Arch::Small] {
        let quiet = logits(arch, 0.0, 0.0, Image);
        // Equal sigmas: the placement cannot matter.
        assert_eq!(
            logits(arch, 0.1, 0.1, Image),
            logits(arch, 0.1, 0.1, Authors)
        );
        assert_ne!(logits(arch, 0.1, 0.0, Image), quiet);
        assert_ne!(
            logits(arch, 0.1, 0.0, Image),
            logits(arch, 0.1, 0.0, Authors)
        );
        // The image gets the inner noise, and it alone if the others' is zero.
        assert_ne!(
            logits(arch, 0.0, 0.1, Authors),
            logits(arch, 0.0, 0.1, Image)
        );
    }
    // In the other networks the authors put it on the image, too.
    let resnext = |placement| logits(Arch::ResNeXt29, 0.3, 0.0, placement);
    assert_eq!(resnext(Image), resnext(Authors));
}

#[test]
fn sigma_zero_is_no_noise_to_the_bit() {
    for config in narrow() {
        let x = images(config.input.with_n(2), DType::F32);
        let mut model = calibrated(&config);
        let with = model
            .forward(x.clone(), &eval(Some(rows(&[0, 1]))))
            .unwrap();
        let without = model.forward(x, &eval(None)).unwrap();
        assert_eq!(with.data::<f32>(), without.data::<f32>(), "{}", config.arch);
    }
}

/// A row's logits and gradient are the same bits alone and in any batch, with noise.
#[test]
fn rows_do_not_see_each_other() {
    for config in narrow().iter().map(noisy) {
        let n = 7;
        let ids = [4, 0, 9, 2, 100, 3, 8];
        let x = images(config.input.with_n(n), DType::F32);
        let mut model = calibrated(&config);
        let mut run = |x: Tensor, ids: &[u32]| {
            let pass = Pass {
                record: true,
                ..eval(Some(rows(ids)))
            };
            let z = model.forward(x, &pass).unwrap();
            let dz = Tensor::full(z.shape(), DType::F32, 0.25);
            (z, model.backward(dz, Grads::InputOnly).unwrap())
        };
        let (z, dx) = run(x.clone(), &ids);
        for i in [6, 0, 3] {
            assert_ne!(
                z.gather_rows(&[0]).unwrap().data::<f32>(),
                z.gather_rows(&[1]).unwrap().data::<f32>()
            );
            let (z_i, dx_i) = run(x.gather_rows(&[i]).unwrap(), &ids[i..=i]);
            let (row_z, row_dx) = (z.gather_rows(&[i]).unwrap(), dx.gather_rows(&[i]).unwrap());
            assert_eq!(
                z_i.data::<f32>(),
                row_z.data::<f32>(),
                "{} logits",
                config.arch
            );
            assert_eq!(
                dx_i.data::<f32>(),
                row_dx.data::<f32>(),
                "{} gradient",
                config.arch
            );
        }
    }
}

#[test]
fn noise_is_the_same_in_both_precisions() {
    let config = noisy(&narrow()[3]);
    let x = images(config.input.with_n(2), DType::F32);
    let mut model = calibrated(&config);
    let single = model
        .forward(x.clone(), &eval(Some(rows(&[1, 2]))))
        .unwrap();
    model.to(&Device::Cpu, DType::F64).unwrap();
    let double = model
        .forward(x.to_dtype(DType::F64).unwrap(), &eval(Some(rows(&[1, 2]))))
        .unwrap();
    for (a, b) in single.to_f64_vec().iter().zip(double.to_f64_vec()) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

/// The other networks are in gradcheck's catalog.
#[test]
fn gradients_of_vgg16_and_model_a_match_differences() {
    for config in [narrow()[0].clone(), narrow()[2].clone()] {
        let config = noisy(&config);
        for mode in [Mode::Train, Mode::Eval] {
            let mut model = calibrated(&config);
            let x = images(config.input.with_n(2), DType::F64);
            let pass = Pass {
                mode,
                record: true,
                ..eval(Some(rows(&[3, 1])))
            };
            let report = check_network(config.arch.name(), &mut model, &x, &pass, 1).unwrap();
            assert!(report.passed(), "{mode:?}: {report}");
        }
    }
}

#[test]
fn checkpoints_round_trip_and_name_the_first_misfit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    for config in narrow().iter().map(noisy) {
        let mut model = Model::new(config.clone(), 3).unwrap();
        // statistics that are not the initial ones
        model.visit(|_, entry| match entry {
            Entry::Buffer(t, _) => t.data_mut::<f32>().iter_mut().for_each(|v| *v += 0.5),
            Entry::Count(n) => *n = 41,
            Entry::Param(..) => {}
        });
        let written = model.checkpoint().unwrap();
        written.write(&path).unwrap();
        let mut read = Model::read(&path, |config| Ok(config.unwrap())).unwrap();
        assert_eq!(read.config(), &config);
        assert_eq!(read.checkpoint().unwrap().tensors, written.tensors);
        let x = images(config.input.with_n(2), DType::F32);
        let pass = eval(Some(rows(&[0, 1])));
        let (a, b) = (model.forward(x.clone(), &pass), read.forward(x, &pass));
        assert_eq!(a.unwrap().data::<f32>(), b.unwrap().data::<f32>());
    }

    let mut small = Model::new(Config::new(Arch::Small, CIFAR, 10), 0).unwrap();
    small.checkpoint().unwrap().write(&path).unwrap();
    let before = small.checkpoint().unwrap();
    let error = Model::read(&path, |_| Ok(Config::new(Arch::Vgg16, CIFAR, 10)));
    assert_eq!(
        error.err().unwrap().to_string(),
        format!(
            "{}: expected `features.0.weight`: F32 of shape [64, 3, 3, 3], \
             found F32 of shape [32, 3, 3, 3]",
            path.display()
        )
    );
    let wider = Config {
        classes: 11,
        ..Config::new(Arch::Small, CIFAR, 10)
    };
    let error = Model::read(&path, |_| Ok(wider)).err().unwrap().to_string();
    assert!(
        error.contains("`classifier.2.weight`: F32 of shape [11, 128]"),
        "{error}"
    );
    assert_eq!(small.checkpoint().unwrap(), before);
}

/// The first linear layer behind the flattening is stored for PyTorch's channels-first order.
#[test]
fn flattened_weights_are_stored_channels_first() {
    let input = Shape::new(1, 8, 8, 3);
    let mut model = Model::new(
        Config {
            width: 1,
            ..Config::new(Arch::Small, input, 3)
        },
        0,
    )
    .unwrap();
    let stored = model.checkpoint().unwrap().tensors["classifier.0.weight"].clone();
    // 2x2 pixels of 2 channels are left
    assert_eq!(stored.shape, [4, 8]);
    let noiseforge::io::checkpoint::ArrayData::F32(stored) = stored.data else {
        panic!("weights are f32")
    };
    model.visit_params(|name, p| {
        if name == "classifier.0.weight" {
            let ours = p.value.data::<f32>();
            for (h, w, c) in [(0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1)] {
                assert_eq!(ours[(h * 2 + w) * 2 + c], stored[(c * 2 + h) * 2 + w]);
            }
        }
    });
}

#[test]
fn bad_descriptions_are_named() {
    let base = Config::new(Arch::Small, CIFAR, 10);
    let error = |config: Config| Model::new(config, 0).err().map(|e| e.to_string());
    let cases = [
        (
            Config {
                init_noise: f32::NAN,
                ..base.clone()
            },
            "Model::new: init noise: expected a standard deviation, finite and not negative, found NaN",
        ),
        (
            Config {
                inner_noise: -1.0,
                ..base.clone()
            },
            "Model::new: inner noise: expected a standard deviation, finite and not negative, found -1",
        ),
        (
            Config {
                classes: 1,
                ..base.clone()
            },
            "Model::new: classes: expected at least 2, found 1",
        ),
        (
            Config {
                width: 0,
                ..base.clone()
            },
            "Model::new: width: expected at least 1, found 0",
        ),
        (
            Config::new(Arch::Vgg16, Shape::new(1, 96, 96, 3), 10),
            "Model::new: input: expected images of 32 to 63 pixels a side for vgg16, found [1, 96, 96, 3]",
        ),
        (
            Config::new(Arch::ModelA, CIFAR, 10),
            "Model::new: input: expected images large enough for every layer up to features.16, \
             found [1, 32, 32, 3]",
        ),
        (
            Config {
                cardinality: 3,
                width: 8,
                ..Config::new(Arch::ResNeXt29, CIFAR, 10)
            },
            "none",
        ),
    ];
    for (config, expected) in cases {
        assert_eq!(error(config).as_deref().unwrap_or("none"), expected);
    }
    let mut model = Model::new(base, 0).unwrap();
    let wrong = images(Shape::new(1, 31, 32, 3), DType::F32);
    assert_eq!(
        model.forward(wrong, &eval(None)).unwrap_err().to_string(),
        "Model::forward: x: expected [1, 32, 32, 3] f32, found [1, 31, 32, 3] f32"
    );
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let mut model = Model::new(Config::new(Arch::Small, CIFAR, 10), 0).unwrap();
    model.check_finite().unwrap();
    model.visit(|name, entry| {
        if let Entry::Buffer(t, _) = entry
            && name == "features.4.running_var"
        {
            t.data_mut::<f32>()[3] = f32::NAN;
        }
    });
    assert_eq!(
        model.check_finite().unwrap_err().to_string(),
        "features.4.running_var: 1 of 32 values are NaN or infinite"
    );
}

#[test]
fn a_variance_below_zero_is_refused_on_reading() {
    let mut model = Model::new(Config::new(Arch::Small, CIFAR, 10), 0).unwrap();
    model.visit(|name, entry| {
        if let Entry::Buffer(t, _) = entry
            && name == "features.4.running_var"
        {
            t.data_mut::<f32>()[3] = -0.5;
        }
    });
    let checkpoint = model.checkpoint().unwrap();
    let path = std::path::Path::new("w.safetensors");
    let error = model.load_checkpoint(path, &checkpoint).unwrap_err();
    assert_eq!(
        error.to_string(),
        "w.safetensors: expected variances of at least 0 in `features.4.running_var`, found -0.5 in channel 3"
    );
}

/// Batch norm as part of the weights: the same function, in f64 to the last digits, and its gradient; and
/// rows that do not see each other.
#[test]
fn a_frozen_network_is_the_network() {
    for config in narrow().iter().map(noisy) {
        let config = Config {
            relu_cap: (config.arch == Arch::Small).then_some(0.7),
            ..config
        };
        let mut model = calibrated(&config);
        model.to(&Device::Cpu, DType::F64).unwrap();
        let x = images(config.input.with_n(3), DType::F64);
        let pass = Pass {
            record: true,
            ..eval(Some(rows(&[4, 0, 9])))
        };
        let z = model.forward(x.clone(), &pass).unwrap();
        let dz = Tensor::full(z.shape(), DType::F64, 0.25);
        let dx = model.backward(dz.clone(), Grads::InputOnly).unwrap();
        for site in [Site::Auto, Site::Load, Site::Apply, Site::Epilogue] {
            model.set_noise_plan(NoisePlan {
                site,
                ..NoisePlan::default()
            });
            let mut frozen = model.freeze().unwrap();
            let found = frozen.forward(x.clone(), 1, &pass).unwrap();
            let grad = frozen.backward(dz.clone()).unwrap();
            for (what, a, b) in [("logits", &z, &found), ("gradient", &dx, &grad)] {
                let largest = a.to_f64_vec().iter().fold(0.0f64, |m, v| m.max(v.abs()));
                for (a, b) in a.to_f64_vec().iter().zip(b.to_f64_vec()) {
                    let off = (a - b).abs() / largest;
                    assert!(off < 1e-11, "{} {site} {what}: {a} {b}", config.arch);
                }
            }
            // Draws of the three images, one of them read at once for two.
            let pairs = Pass {
                record: true,
                ..eval(Some(rows(&[4, 5, 0, 1, 9, 10])))
            };
            let by_two = frozen.forward(x.clone(), 2, &pairs).unwrap();
            let repeated = frozen
                .forward(x.gather_rows(&[0, 0, 1, 1, 2, 2]).unwrap(), 1, &pairs)
                .unwrap();
            assert_eq!(
                by_two.data::<f64>(),
                repeated.data::<f64>(),
                "{}",
                config.arch
            );
            let alone = Pass {
                record: true,
                ..eval(Some(rows(&[9])))
            };
            let row = x.gather_rows(&[2]).unwrap();
            let one = frozen.forward(row, 1, &alone).unwrap();
            let last = found.gather_rows(&[2]).unwrap();
            assert_eq!(one.data::<f64>(), last.data::<f64>(), "{}", config.arch);
        }
    }
    let model = Model::new(narrow()[3].clone(), 0).unwrap();
    let x = images(model.config().input.with_n(2), DType::F32);
    let pass = Pass {
        mode: Mode::Train,
        ..eval(None)
    };
    let error = model.freeze().unwrap().forward(x, 1, &pass).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Frozen::forward: pass.mode: expected eval, as the network is frozen, found train"
    );
}

/// Wherever noise is drawn, and whether blocks keep their input or have it made again: the same logits and
/// gradients to the bit. So they are without the images' gradient.
#[test]
fn no_number_depends_on_the_noise_plan() {
    for config in narrow().iter().map(noisy) {
        let x = images(config.input.with_n(3), DType::F32);
        let mut first: Option<Vec<Tensor>> = None;
        for (site, recompute, images_too) in [
            (Site::Load, false, true),
            (Site::Load, false, false),
            (Site::Load, true, true),
            (Site::Apply, false, true),
            (Site::Apply, true, false),
            (Site::Epilogue, true, true),
            (Site::Auto, true, false),
        ] {
            let mut model = Model::new(config.clone(), 3).unwrap();
            model.set_noise_plan(NoisePlan { site, recompute });
            let pass = Pass {
                mode: Mode::Train,
                record: true,
                ..eval(Some(rows(&[4, 0, 9])))
            };
            let mut all = vec![model.forward(x.clone(), &pass).unwrap()];
            let dz = Tensor::full(all[0].shape(), DType::F32, 0.25);
            if images_too {
                model.backward(dz, Grads::Accumulate).unwrap();
            } else {
                model.accumulate(dz).unwrap();
            }
            model.visit_params(|_, p| all.push(p.grad.clone()));
            match &first {
                None => first = Some(all),
                Some(first) => {
                    for (i, (a, b)) in first.iter().zip(&all).enumerate() {
                        let what = format!("{} {site} {recompute}: tensor {i}", config.arch);
                        assert_eq!(a.data::<f32>(), b.data::<f32>(), "{what}");
                    }
                }
            }
        }
    }
}
