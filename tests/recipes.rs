//! The compared defences: what they minimise and on which images, and that they continue to the same bits.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use noiseforge::attacks::gradient::Pgd;
use noiseforge::attacks::{Criterion, Norm, Options, Targets, attack_white_box};
use noiseforge::data::{Augment, Dataset, Spec, Split};
use noiseforge::ensemble::Ensemble;
use noiseforge::io::checkpoint::Checkpoint;
use noiseforge::models::{Arch, Config, Model};
use noiseforge::nn::{Entry, Grads, Mode, Pass};
use noiseforge::ops::loss::{Scaling, cross_entropy};
use noiseforge::ops::noise::{Key, Purpose};
use noiseforge::ops::sgd::Sgd;
use noiseforge::optim::Schedule;
use noiseforge::train::adversarial::{FgsmRetraining, PgdTraining};
use noiseforge::train::distill::Distillation;
use noiseforge::train::{Event, Recipe, Settings, Trainer};
use noiseforge::{Shape, Tensor};

const FGSM: FgsmRetraining = FgsmRetraining {
    eps_low: 0.1,
    eps_high: 0.3,
};

const PGD: PgdTraining = PgdTraining {
    eps: 0.1,
    steps: 3,
    step_size: 0.04,
};

const DISTILLATION: Distillation = Distillation {
    temperature: 5.0,
    scaling: Scaling::Hinton,
};

fn settings(recipe: Recipe) -> Settings {
    Settings {
        epochs: 2,
        batch: 16,
        sgd: Sgd {
            lr: 0.05,
            ..Settings::default().sgd
        },
        schedule: Schedule::Phases,
        augment: Some(Augment { pad: 2, flip: true }),
        recipe,
        seed: 4,
        ..Settings::default()
    }
}

fn data() -> (Dataset, Dataset) {
    let load = |split| Spec::Synthetic { n: 51 }.load(split, 0).unwrap();
    (load(Split::Train), load(Split::Test))
}

fn small(seed: u64, init_noise: f32, inner_noise: f32) -> Model {
    let input = Shape::new(1, 32, 32, 3);
    let mut config = Config::new(Arch::Small, input, 10).with_noise(init_noise, inner_noise);
    config.width = 3;
    Model::new(config, seed).unwrap()
}

/// `W x + b` on 4x4 images of one channel.
fn linear(classes: usize, seed: u64, noise: f32) -> Model {
    let config = Config::new(Arch::Linear, Shape::new(1, 4, 4, 1), classes).with_noise(noise, 0.0);
    Model::new(config, seed).unwrap()
}

fn images(n: usize, side: usize, channels: usize) -> Tensor {
    let shape = Shape::new(n, side, side, channels);
    let pixels = (0..shape.len()).map(|i| ((i * 37 + i / 5) % 101) as f32 / 100.0);
    Tensor::from_vec(shape, pixels.collect()).unwrap()
}

fn labelled(n: usize, classes: usize) -> Dataset {
    let labels = (0..n).map(|i| (i % classes) as u32).collect();
    let names = (0..classes).map(|k| k.to_string()).collect();
    Dataset::from_tensor(&images(n, 4, 1), labels, names).unwrap()
}

/// The bytes of a network as a file.
fn bytes(model: &mut Model) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights");
    model.checkpoint().unwrap().write(&path).unwrap();
    std::fs::read(path).unwrap()
}

/// Weights (a row a class) and biases of a linear network.
fn parameters(model: &mut Model) -> (Vec<Vec<f64>>, Vec<f64>) {
    let mut all = Vec::new();
    model.visit_params(|_, p| all.push(p.value.to_f64_vec()));
    let [w, b]: [Vec<f64>; 2] = all.try_into().unwrap();
    (w.chunks(16).map(<[f64]>::to_vec).collect(), b)
}

/// Runs to the end, saving the state after `save.0` steps.
fn run(recipe: Recipe, resume: Option<&Path>, save: Option<(usize, &Path)>) -> Vec<u8> {
    let (train, test) = data();
    // With noise wherever there may be some: the network's, the attack's, the teacher's.
    let (mut model, mut teacher) = (small(1, 0.2, 0.1), small(2, 0.1, 0.1));
    let mut trainer = match recipe {
        Recipe::Distill(_) => {
            Trainer::distill(&mut model, &mut teacher, &train, &test, settings(recipe)).unwrap()
        }
        _ => Trainer::new(&mut model, &train, &test, settings(recipe)).unwrap(),
    };
    if let Some(path) = resume {
        trainer.resume(path).unwrap();
    }
    let mut steps = 0;
    let observe = &mut |trainer: &mut Trainer<'_>, event: Event<'_>| {
        if let (Event::Step { .. }, Some((after, path))) = (event, save) {
            steps += 1;
            if steps == after {
                trainer.save(path)?;
            }
        }
        Ok(())
    };
    trainer.run(&AtomicBool::new(false), observe).unwrap();
    bytes(trainer.model())
}

#[test]
fn every_recipe_is_continued_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let mut results = vec![run(Recipe::Plain, None, None)];
    for recipe in [
        Recipe::AdvFgsm(FGSM),
        Recipe::AdvPgd(PGD),
        Recipe::Distill(DISTILLATION),
    ] {
        let whole = run(recipe, None, None);
        // 51 images: 3 batches of 16 and one of 3
        for after in [1, 4, 6] {
            let path = dir.path().join(format!("{}-{after}", recipe.name()));
            assert!(run(recipe, None, Some((after, &path))) == whole);
            assert!(
                run(recipe, Some(&path), None) == whole,
                "{recipe:?} {after}"
            );
        }
        assert!(!results.contains(&whole), "{recipe:?} changes nothing");
        results.push(whole);
    }
}

#[test]
fn a_state_of_another_recipe_is_refused_and_an_older_one_is_a_plain_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let other = PgdTraining { steps: 2, ..PGD };
    for (name, recipe) in [
        ("plain", Recipe::Plain),
        ("pgd", Recipe::AdvPgd(PGD)),
        ("distill", Recipe::Distill(DISTILLATION)),
    ] {
        run(recipe, None, Some((3, &path(name))));
    }
    let (train, test) = data();
    let refused = |teacher: Option<u64>, recipe, name: &str, now: &str, found: &str| {
        let (mut model, mut from) = (small(1, 0.2, 0.1), small(teacher.unwrap_or(0), 0.1, 0.1));
        let mut trainer = match teacher {
            Some(_) => Trainer::distill(&mut model, &mut from, &train, &test, settings(recipe)),
            None => Trainer::new(&mut model, &train, &test, settings(recipe)),
        }
        .unwrap();
        let error = trainer.resume(&path(name)).unwrap_err().to_string();
        let start = format!("{}: expected a run with {now}", path(name).display());
        assert!(
            error.starts_with(&start) && error.ends_with(found),
            "{error}"
        );
    };
    let pgd = Recipe::AdvPgd(PGD);
    refused(
        None,
        pgd,
        "plain",
        "recipe = adv-pgd, as asked for now",
        "found recipe = plain",
    );
    refused(
        None,
        Recipe::Plain,
        "pgd",
        "recipe = plain, as asked for now",
        "found recipe = adv-pgd",
    );
    let found = "found recipe_steps = 3";
    refused(
        None,
        Recipe::AdvPgd(other),
        "pgd",
        "recipe_steps = 2, as asked for now",
        found,
    );
    let distill = Recipe::Distill(DISTILLATION);
    refused(Some(3), distill, "distill", "recipe_teacher = ", &{
        let teacher = small(2, 0.1, 0.1).checkpoint().unwrap();
        format!("found recipe_teacher = {}", teacher.fingerprint())
    });

    let mut older = Checkpoint::read(path("plain")).unwrap();
    assert_eq!(older.metadata.remove("recipe").unwrap(), "plain");
    older.write(path("older")).unwrap();
    assert!(run(Recipe::Plain, Some(&path("older")), None) == run(Recipe::Plain, None, None));
    refused(
        None,
        pgd,
        "older",
        "recipe = adv-pgd, as asked for now",
        "found recipe = plain",
    );
}

#[test]
fn the_coin_is_fair_and_radii_are_uniform() {
    let radii: Vec<Option<f64>> = (0..20_000).map(|step| FGSM.radius(7, step)).collect();
    let heads: Vec<f64> = radii.iter().copied().flatten().collect();
    // Five standard deviations: of a share of 20,000, of a mean and of a share of 10,000.
    assert!((heads.len() as f64 / 20_000.0 - 0.5).abs() < 5.0 * 0.5 / 20_000f64.sqrt());
    assert!(heads.iter().all(|eps| (0.1..0.3).contains(eps)));
    let mean = heads.iter().sum::<f64>() / heads.len() as f64;
    assert!(
        (mean - 0.2).abs() < 5.0 * 0.2 / 12f64.sqrt() / 100.0,
        "{mean}"
    );
    let low = heads.iter().filter(|&&eps| eps < 0.15).count() as f64 / heads.len() as f64;
    assert!((low - 0.25).abs() < 5.0 * 0.4331 / 100.0, "{low}");
    // A step's coin says nothing about the next one's.
    let twice = radii
        .windows(2)
        .filter(|w| w[0].is_some() && w[1].is_some())
        .count();
    assert!((twice as f64 / 20_000.0 - 0.25).abs() < 0.02, "{twice}");
    assert_eq!(FGSM.radius(7, 11), radii[11]);
    assert!((0..64).any(|step| FGSM.radius(8, step) != radii[step as usize]));
}

/// The first step from `from` on whose coin is heads (or tails).
fn step_with(heads: bool, seed: u64) -> u32 {
    (0..)
        .find(|&step| FGSM.radius(seed, step).is_some() == heads)
        .unwrap()
}

/// Each pixel moves by eps times the sign of the gradient, here computed by hand:
/// `sum_k (p_k - [k = y]) w_k`; nothing is clipped.
#[test]
fn fgsm_moves_every_pixel_by_eps_along_the_gradients_sign() {
    let mut model = linear(3, 5, 0.0);
    let (w, b) = parameters(&mut model);
    let x = images(6, 4, 1);
    let labels = [0, 1, 2, 2, 1, 0];
    let step = step_with(true, 7);
    let eps = FGSM.radius(7, step).unwrap();
    let moved = FGSM
        .perturb(&mut model, x.clone(), &labels, 7, step)
        .unwrap();
    for (i, &label) in labels.iter().enumerate() {
        let row: Vec<f64> = x.row::<f32>(i).iter().map(|&v| f64::from(v)).collect();
        let z = |k: usize| b[k] + row.iter().zip(&w[k]).map(|(x, w)| x * w).sum::<f64>();
        let sum: f64 = (0..3).map(|k| z(k).exp()).sum();
        for (j, &found) in moved.row::<f32>(i).iter().enumerate() {
            let hit = |k| if k == label as usize { 1.0 } else { 0.0 };
            let g: f64 = (0..3).map(|k| (z(k).exp() / sum - hit(k)) * w[k][j]).sum();
            assert!(g.abs() > 1e-7, "too close to call");
            assert_eq!(found, (row[j] + eps * g.signum()) as f32, "{i} {j}");
        }
    }
    let outside = |&&v: &&f32| !(0.0..=1.0).contains(&v);
    assert!(moved.data::<f32>().iter().filter(outside).count() > 0);

    let same = FGSM
        .perturb(&mut model, x.clone(), &labels, 7, step_with(false, 7))
        .unwrap();
    assert!(same.data::<f32>() == x.data::<f32>());
}

/// The attack's gradient is the network's in train mode, under draws of its own.
#[test]
fn the_attacks_gradient_has_draws_of_its_own() {
    let x = images(4, 32, 3);
    let labels = [3, 1, 9, 0];
    let step = step_with(true, 7);
    let eps = FGSM.radius(7, step).unwrap();
    let mut model = small(1, 0.2, 0.1);
    let moved = FGSM
        .perturb(&mut model, x.clone(), &labels, 7, step)
        .unwrap();
    let by = |purpose| {
        let pass = Pass {
            mode: Mode::Train,
            noise: Some(Key::consecutive(7, purpose, 0, 4, step)),
            record: true,
        };
        let mut model = small(1, 0.2, 0.1);
        let z = model.forward(x.clone(), &pass).unwrap();
        let (_, dz) = cross_entropy(&z, &labels).unwrap();
        let g = model.backward(dz, Grads::InputOnly).unwrap();
        let pixels = x.data::<f32>().iter().zip(g.data::<f32>());
        pixels
            .map(|(&x, &g)| match g == 0.0 {
                true => x,
                false => (f64::from(x) + eps * f64::from(g.signum())) as f32,
            })
            .collect::<Vec<_>>()
    };
    assert!(moved.data::<f32>() == by(Purpose::Auxiliary));
    assert!(moved.data::<f32>() != by(Purpose::Train));
}

/// Batches that batch norm has seen.
fn batches_seen(model: &mut Model) -> Vec<u64> {
    let mut counts = Vec::new();
    model.visit(|_, entry| {
        if let Entry::Count(n) = entry {
            counts.push(*n);
        }
    });
    counts
}

#[test]
fn pgd_stays_in_ball_and_box_and_moves_the_statistics() {
    let mut model = small(1, 0.2, 0.1);
    let x = images(5, 32, 3);
    let labels = [3, 1, 9, 0, 0];
    let moved = PGD.perturb(&mut model, &x, &labels, 7, 2).unwrap();
    let pairs = || moved.data::<f32>().iter().zip(x.data::<f32>());
    // One rounding of an f32 below 1.
    assert!(pairs().all(|(a, b)| (f64::from(*a) - f64::from(*b)).abs() <= PGD.eps + 6e-8));
    assert!(pairs().all(|(a, _)| (0.0..=1.0).contains(a)));
    assert!(pairs().filter(|(a, b)| a != b).count() > x.shape().len() / 2);
    let seen = batches_seen(&mut model);
    assert!(!seen.is_empty() && seen.iter().all(|&n| n == 3), "{seen:?}");
    // Another step of the run has another start.
    let fresh = || small(1, 0.0, 0.0);
    let at = |model: &mut Model, step| PGD.perturb(model, &x, &labels, 7, step).unwrap();
    let first = at(&mut fresh(), 2);
    assert!(first.data::<f32>() == at(&mut fresh(), 2).data::<f32>());
    assert!(first.data::<f32>() != at(&mut fresh(), 3).data::<f32>());
}

/// Of two linear classes the gradient's sign is that of `w_other - w_y` everywhere, so steps that reach
/// across the ball end in its corner.
#[test]
fn pgd_finds_the_worst_corner_of_a_linear_network() {
    let mut model = linear(2, 5, 0.0);
    let (w, _) = parameters(&mut model);
    let x = images(4, 4, 1);
    let labels = [0, 1, 1, 0];
    let moved = PgdTraining { steps: 6, ..PGD }
        .perturb(&mut model, &x, &labels, 7, 0)
        .unwrap();
    for (i, &label) in labels.iter().enumerate() {
        let (y, other) = (label as usize, 1 - label as usize);
        for (j, (&found, &from)) in moved.row::<f32>(i).iter().zip(x.row::<f32>(i)).enumerate() {
            let corner = f64::from(from) + 0.1 * (w[other][j] - w[y][j]).signum();
            assert_eq!(found, corner.clamp(0.0, 1.0) as f32, "{i} {j}");
        }
    }
}

/// Two classes of 8x8 images with two features: the difference between left and right of +-0.12, which
/// shows the wrong class in a tenth of the images, and a chequered pattern of +-0.04, which is never wrong.
fn two_features(n: usize, seed: u64) -> Dataset {
    let noise = common::values(n * 64, seed);
    let pixel = |k: usize| {
        let (i, row, column) = (k / 64, k / 8 % 8, k % 8);
        let class = if i % 2 == 0 { 1.0 } else { -1.0 };
        let half = if (column < 4) == (i % 20 < 18) {
            class
        } else {
            -class
        };
        let square = if (row + column) % 2 == 0 {
            class
        } else {
            -class
        };
        (0.5 + 0.12 * half + 0.04 * square + 0.02 * noise[k]) as f32
    };
    let pixels = (0..n * 64).map(pixel).collect();
    let images = Tensor::from_vec(Shape::new(n, 8, 8, 1), pixels).unwrap();
    let labels = (0..n).map(|i| (i % 2) as u32).collect();
    Dataset::from_tensor(&images, labels, vec!["left".into(), "right".into()]).unwrap()
}

/// Accuracy of a linear network trained on two features, unharmed and within 0.06 of PGD.
fn robust_accuracy(recipe: Recipe) -> (f64, f64) {
    let (train, test) = (two_features(320, 1), two_features(80, 2));
    let config = Config::new(Arch::Linear, train.image_shape(), 2);
    let mut model = Model::new(config, 0).unwrap();
    let mut settings = Settings {
        epochs: 60,
        batch: 32,
        schedule: Schedule::Constant,
        augment: None,
        ..settings(recipe)
    };
    settings.sgd.lr = 0.5;
    settings.sgd.weight_decay = 0.0;
    let mut trainer = Trainer::new(&mut model, &train, &test, settings).unwrap();
    trainer
        .run(&AtomicBool::new(false), &mut |_, _| Ok(()))
        .unwrap();
    let clean = trainer.log().last().unwrap().test_accuracy;
    let indices: Vec<usize> = (0..test.len()).collect();
    let ids: Vec<u32> = (0..test.len() as u32).collect();
    let (x, labels) = test.batch(&indices).unwrap();
    let mut net = Ensemble::new(&mut model, 7, Purpose::Attack, 1).unwrap();
    let targets = Targets {
        x: &x,
        ids: &ids,
        criterion: &Criterion::Untargeted { labels },
    };
    let pgd = Pgd::projected(Norm::Linf, 0.06);
    let options = Options::default();
    let found = attack_white_box(&mut net, targets, &pgd, &options, &mut |_| Ok(())).unwrap();
    let kept = found.iter().filter(|f| !f.success).count();
    (clean, kept as f64 / found.len() as f64)
}

/// Plain training rests on the pattern that is never wrong, and that an attack turns round; adversarial
/// training leaves it.
#[test]
fn adversarial_training_makes_a_network_robust() {
    let (clean, robust) = robust_accuracy(Recipe::Plain);
    assert!(clean == 1.0 && robust < 0.1, "{clean} {robust}");
    let (clean, robust) = robust_accuracy(Recipe::AdvPgd(PgdTraining {
        eps: 0.06,
        steps: 4,
        step_size: 0.03,
    }));
    assert_eq!((clean, robust), (0.9, 0.9));
}

fn distilled(student: &mut Model, teacher: &mut Model, recipe: Distillation) -> f64 {
    let (train, test) = (labelled(40, 3), labelled(8, 3));
    let mut settings = settings(Recipe::Distill(recipe));
    settings.sgd.weight_decay = 0.0;
    let mut trainer = Trainer::distill(student, teacher, &train, &test, settings).unwrap();
    trainer
        .run(&AtomicBool::new(false), &mut |_, _| Ok(()))
        .unwrap();
    trainer.log().last().unwrap().train_loss
}

/// The gradient is 0 only where both see the same images: the augmented ones.
#[test]
fn a_student_that_is_its_teacher_stays_as_it_is() {
    for scaling in [Scaling::Hinton, Scaling::Authors] {
        let recipe = Distillation {
            scaling,
            ..Distillation::default()
        };
        let (mut student, mut teacher) = (linear(3, 1, 0.0), linear(3, 1, 0.0));
        let before = bytes(&mut student);
        assert_eq!(distilled(&mut student, &mut teacher, recipe), 0.0);
        assert!(bytes(&mut student) == before && bytes(&mut teacher) == before);
    }
}

#[test]
fn a_student_comes_close_to_its_teacher_which_does_not_move() {
    let mut teacher = linear(3, 2, 0.0);
    teacher.visit_params(|_, p| {
        p.value
            .data_mut::<f32>()
            .iter_mut()
            .for_each(|w| *w *= 20.0)
    });
    let before = bytes(&mut teacher);
    let first = distilled(&mut linear(3, 1, 0.0), &mut teacher, DISTILLATION);
    let mut student = linear(3, 1, 0.0);
    for _ in 0..8 {
        distilled(&mut student, &mut teacher, DISTILLATION);
    }
    let last = distilled(&mut student, &mut teacher, DISTILLATION);
    assert!(last < 0.3 * first, "{first}, then {last}");
    assert!(bytes(&mut teacher) == before);
}

/// A teacher draws the noise it has at test, and no other.
#[test]
fn a_teachers_noise_is_its_own() {
    let unmoved = |noise_at_test: bool| {
        let config = Config {
            noise_at_test,
            ..linear(3, 1, 0.3).config().clone()
        };
        let mut teacher = Model::new(config, 1).unwrap();
        let mut student = linear(3, 1, 0.0);
        let before = bytes(&mut student);
        distilled(&mut student, &mut teacher, DISTILLATION);
        bytes(&mut student) == before
    };
    assert!(unmoved(false));
    assert!(!unmoved(true));
    // Not the student's draws: equal networks with equal noise would be equal under them.
    let (mut student, mut teacher) = (linear(3, 1, 0.3), linear(3, 1, 0.3));
    assert!(distilled(&mut student, &mut teacher, DISTILLATION) > 0.0);
}

#[test]
fn what_does_not_fit_is_named() {
    let (train, test) = data();
    let error = |teacher: Option<Model>, recipe: Recipe| -> String {
        let mut model = small(1, 0.0, 0.0);
        let settings = settings(recipe);
        let result = match teacher {
            Some(mut teacher) => {
                Trainer::distill(&mut model, &mut teacher, &train, &test, settings).err()
            }
            None => Trainer::new(&mut model, &train, &test, settings).err(),
        };
        result.map_or("no error".to_string(), |e| e.to_string())
    };
    for temperature in [0.0, -1.0, f64::NAN] {
        let recipe = Recipe::Distill(Distillation {
            temperature,
            ..DISTILLATION
        });
        assert_eq!(
            error(Some(small(2, 0.0, 0.0)), recipe),
            format!("train: temperature: expected a finite number above 0, found {temperature}")
        );
    }
    let distill = Recipe::Distill(DISTILLATION);
    let teacher = |input, classes| Model::new(Config::new(Arch::Small, input, classes), 0).ok();
    for (teacher, recipe, expected) in [
        (
            None,
            distill,
            "teacher: expected a network to learn from, found none",
        ),
        (
            teacher(Shape::new(1, 32, 32, 3), 7),
            distill,
            "teacher: expected 10 classes, found 7 classes",
        ),
        (
            teacher(Shape::new(1, 32, 32, 1), 10),
            distill,
            "teacher: expected images [1, 32, 32, 3], found images [1, 32, 32, 1]",
        ),
        (
            Some(small(2, 0.0, 0.0)),
            Recipe::Plain,
            "recipe: expected distill, found plain",
        ),
        (
            None,
            Recipe::AdvFgsm(FgsmRetraining {
                eps_low: 0.3,
                eps_high: 0.1,
            }),
            "eps: expected the smaller radius first, found 0.3, 0.1",
        ),
        (
            None,
            Recipe::AdvFgsm(FgsmRetraining {
                eps_low: -0.1,
                eps_high: 0.1,
            }),
            "eps: expected a finite number above 0, found -0.1",
        ),
        (
            None,
            Recipe::AdvPgd(PgdTraining { eps: -0.1, ..PGD }),
            "eps: expected a finite number above 0, found -0.1",
        ),
        (
            None,
            Recipe::AdvPgd(PgdTraining { steps: 0, ..PGD }),
            "attack steps: expected at least 1, found 0",
        ),
        (
            None,
            Recipe::AdvPgd(PgdTraining {
                step_size: 0.0,
                ..PGD
            }),
            "attack step size: expected a finite number above 0, found 0",
        ),
    ] {
        assert_eq!(error(teacher, recipe), format!("train: {expected}"));
    }
}
