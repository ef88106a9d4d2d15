//! Training: it learns, and it continues to the same bits.

use std::sync::atomic::{AtomicBool, Ordering};

use noiseforge::data::{Augment, Dataset, Spec, Split};
use noiseforge::models::{Arch, Config, Model};
use noiseforge::ops::sgd::Sgd;
use noiseforge::optim::Schedule;
use noiseforge::train::{EpochLog, Event, Recipe, Select, Settings, Trainer};
use noiseforge::{Error, Shape, Tensor};

fn settings() -> Settings {
    Settings {
        epochs: 3,
        batch: 16,
        sgd: Sgd {
            lr: 0.05,
            ..Settings::default().sgd
        },
        schedule: Schedule::Phases,
        select: Select::BestTest,
        augment: Some(Augment { pad: 2, flip: true }),
        recipe: Recipe::Plain,
        seed: 4,
    }
}

fn data() -> (Dataset, Dataset) {
    let spec = Spec::Synthetic { n: 67 };
    (
        spec.load(Split::Train, 0).unwrap(),
        spec.load(Split::Test, 0).unwrap(),
    )
}

fn model() -> Model {
    let mut config = Config::new(Arch::Small, Shape::new(1, 32, 32, 3), 10).with_noise(0.2, 0.1);
    config.width = 3;
    Model::new(config, 1).unwrap()
}

/// Runs to the end, saving the state after `save_after` steps, and returns the weights and the log.
fn run(
    resume: Option<&std::path::Path>,
    save: Option<(usize, &std::path::Path)>,
) -> (Vec<u8>, Vec<EpochLog>) {
    let (train, test) = data();
    let mut model = model();
    let mut trainer = Trainer::new(&mut model, &train, &test, settings()).unwrap();
    if let Some(path) = resume {
        trainer.resume(path).unwrap();
    }
    let mut steps = 0;
    trainer
        .run(&AtomicBool::new(false), &mut |trainer, event| {
            if let Event::Step { .. } = event {
                steps += 1;
                if let Some((after, path)) = save
                    && steps == after
                {
                    trainer.save(path)?;
                }
            }
            Ok(())
        })
        .unwrap();
    let log = trainer.log().to_vec();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w");
    trainer.model().checkpoint().unwrap().write(&path).unwrap();
    (std::fs::read(path).unwrap(), log)
}

#[test]
fn a_run_is_continued_to_the_same_bits_from_any_step() {
    let (whole, log) = run(None, None);
    assert_eq!(log.len(), 3);
    let dir = tempfile::tempdir().unwrap();
    // 67 images: 4 batches of 16 and one of 3; steps 1, 5 (an epoch's last), 6, 14
    for after in [1, 5, 6, 14] {
        let path = dir.path().join(format!("state-{after}"));
        assert!(run(None, Some((after, &path))) == (whole.clone(), log.clone()));
        assert!(
            run(Some(&path), None) == (whole.clone(), log.clone()),
            "{after}"
        );
    }
}

#[test]
fn the_thread_count_does_not_matter() {
    let (whole, log) = run(None, None);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        assert!(pool.install(|| run(None, None)) == (whole.clone(), log.clone()));
    }
}

#[test]
fn a_stop_leaves_a_state_between_two_steps() {
    let (whole, log) = run(None, None);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let (train, test) = data();
    let mut model = model();
    let mut trainer = Trainer::new(&mut model, &train, &test, settings()).unwrap();
    let stop = AtomicBool::new(false);
    let mut steps = 0;
    let result = trainer.run(&stop, &mut |_, event| {
        if let Event::Step { .. } = event {
            steps += 1;
            stop.store(steps == 7, Ordering::Relaxed);
        }
        Ok(())
    });
    assert!(matches!(result, Err(Error::Interrupted)));
    assert_eq!(
        (steps, trainer.epochs_done(), trainer.batches_done()),
        (7, 1, 2)
    );
    trainer.save(&path).unwrap();
    assert!(run(Some(&path), None) == (whole, log));
}

#[test]
fn a_state_of_another_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    run(None, Some((2, &path)));
    let (train, test) = data();
    let mut model = model();
    let other = Settings {
        seed: 5,
        ..settings()
    };
    let mut trainer = Trainer::new(&mut model, &train, &test, other).unwrap();
    assert_eq!(
        trainer.resume(&path).unwrap_err().to_string(),
        format!(
            "{}: expected a run with seed = 5, as asked for now, found seed = 4",
            path.display()
        )
    );
    assert_eq!(trainer.epochs_done(), 0);
}

/// Two classes of flat images, dark and bright.
fn easy(n: usize) -> Dataset {
    let shape = Shape::new(n, 8, 8, 1);
    let pixels = (0..n)
        .flat_map(|i| vec![if i % 2 == 0 { 0.25f32 } else { 0.75 }; 64])
        .collect();
    let images = Tensor::from_vec(shape, pixels).unwrap();
    let labels = (0..n as u32).map(|i| i % 2).collect();
    Dataset::from_tensor(&images, labels, vec!["dark".into(), "bright".into()]).unwrap()
}

#[test]
fn an_easy_problem_is_learnt_with_noise() {
    let (train, test) = (easy(64), easy(32));
    let mut config = Config::new(Arch::Small, train.image_shape(), 2).with_noise(0.2, 0.1);
    config.width = 4;
    let mut model = Model::new(config, 0).unwrap();
    let settings = Settings {
        epochs: 30,
        augment: None,
        schedule: Schedule::Cosine,
        select: Select::Last,
        ..settings()
    };
    let mut trainer = Trainer::new(&mut model, &train, &test, settings).unwrap();
    trainer
        .run(&AtomicBool::new(false), &mut |_, _| Ok(()))
        .unwrap();
    let last = trainer.log().last().unwrap();
    assert_eq!(last.test_accuracy, 1.0);
    assert!(last.train_loss < 0.3 && last.train_loss < trainer.log()[0].train_loss);
}

#[test]
fn a_loss_that_explodes_is_an_error() {
    let (train, test) = data();
    let mut model = model();
    let wild = Settings {
        sgd: Sgd {
            lr: 1e30,
            ..settings().sgd
        },
        ..settings()
    };
    let mut trainer = Trainer::new(&mut model, &train, &test, wild).unwrap();
    let error = trainer
        .run(&AtomicBool::new(false), &mut |_, _| Ok(()))
        .unwrap_err();
    assert!(
        error.to_string().starts_with("training loss at step"),
        "{error}"
    );
}

#[test]
fn bad_settings_are_named() {
    let (train, test) = data();
    let error = |settings: Settings| -> String {
        match Trainer::new(&mut model(), &train, &test, settings) {
            Err(e) => e.to_string(),
            Ok(_) => "no error".into(),
        }
    };
    let sgd = |lr, momentum, weight_decay| Settings {
        sgd: Sgd {
            lr,
            momentum,
            weight_decay,
            nesterov: false,
        },
        ..settings()
    };
    assert_eq!(
        error(Settings {
            epochs: 0,
            ..settings()
        }),
        "train: epochs: expected at least 1, found 0"
    );
    assert_eq!(
        error(Settings {
            batch: 1,
            ..settings()
        }),
        "train: batch: expected at least 2 rows, found 1"
    );
    assert_eq!(
        error(sgd(-0.1, 0.9, 0.0)),
        "train: lr: expected a finite number above 0, found -0.1"
    );
    assert_eq!(
        error(sgd(0.1, 1.0, 0.0)),
        "train: momentum: expected at least 0 and below 1, found 1"
    );
    assert_eq!(
        error(sgd(0.1, 0.9, f64::NAN)),
        "train: weight decay: expected a finite number, at least 0, found NaN"
    );
    let other = easy(8);
    let mut model = model();
    let error = Trainer::new(&mut model, &other, &other, settings())
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "train: train: expected [1, 32, 32, 3], found [1, 8, 8, 1]"
    );
}
