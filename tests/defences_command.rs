//! The compared defences as their users train and test them.

mod common;

use std::path::Path;

use noiseforge::Shape;
use noiseforge::io::checkpoint::Checkpoint;
use noiseforge::models::{Arch, Config, Model};
use serde_json::{Value, json};

use common::command::{files, json as result_of, refused, train, train_args};

fn metadata(folder: &Path, key: &str) -> String {
    let weights = Checkpoint::read(folder.join("weights.safetensors")).unwrap();
    weights.metadata[key].clone()
}

/// Accuracy and draws of an evaluation.
fn eval(folder: &Path, more: &[&str]) -> Value {
    let weights = folder.join("weights.safetensors");
    let weights = ["eval", "--json", "--weights", weights.to_str().unwrap()];
    let data = ["--data", "synthetic:40", "--ensemble", "5"];
    result_of(&[&weights[..], &data, more].concat())
}

#[test]
fn each_defence_says_what_it_was_trained_by() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let plain = train(&path("plain"), &["--defense", "none"]);
    assert_eq!(plain["recipe"], json!({"name": "plain"}));
    assert!(plain["teacher"].is_null());

    let fgsm = train(
        &path("fgsm"),
        &["--defense", "adv-fgsm", "--adv-eps", "8/255,0.25"],
    );
    let expected = json!({"name": "adv-fgsm", "eps_low": 8.0 / 255.0, "eps_high": 0.25});
    assert_eq!(fgsm["recipe"], expected);
    assert_eq!(fgsm["network"]["init_noise"], 0.0);

    let noise = ["--init-noise", "0.2", "--inner-noise", "0.1"];
    let args = ["--defense", "adv-pgd", "--adv-steps", "2"];
    let pgd = train(&path("pgd"), &[&args[..], &noise].concat());
    let (eps, step_size) = (8.0 / 255.0, 2.0 / 255.0);
    let expected = json!({"name": "adv-pgd", "eps": eps, "steps": 2, "step_size": step_size});
    assert_eq!(pgd["recipe"], expected);
    assert_eq!(pgd["defense"], "adv-pgd");
    assert_eq!(pgd["network"]["init_noise"], 0.2f32);
    assert_eq!(metadata(&path("pgd"), "defense"), "adv-pgd");
    assert_eq!(metadata(&path("pgd"), "recipe_steps"), "2");
    assert_eq!(eval(&path("pgd"), &[])["draws"], 5);

    let teacher = path("plain").join("weights.safetensors");
    let teacher = teacher.to_str().unwrap();
    let args = [
        "--defense",
        "distill",
        "--teacher",
        teacher,
        "--distill-loss",
        "authors",
    ];
    let distilled = train(&path("distilled"), &args);
    let expected = json!({"name": "distill", "temperature": 40.0, "scaling": "authors"});
    assert_eq!(distilled["recipe"], expected);
    assert_eq!(distilled["teacher"], teacher);
    assert_eq!(metadata(&path("distilled"), "recipe_temperature"), "40.0");
    assert_eq!(metadata(&path("distilled"), "recipe_teacher").len(), 16);

    // another recipe than the run's own
    let folder = path("fgsm");
    let again = [&train_args(&folder)[..], &["--resume"]].concat();
    let resumed = |more: &[&'static str], message: &str| {
        refused(&[&again[..], more].concat(), 1, message);
    };
    let message = "expected a run with recipe = adv-pgd, as asked for now, found recipe = adv-fgsm";
    resumed(&["--defense", "adv-pgd"], message);
    resumed(&["--defense", "none"], "expected a run with recipe = plain");
    let args = ["--defense", "adv-fgsm", "--adv-eps", "8/255,0.2"];
    resumed(
        &args,
        "expected a run with recipe_eps_high = 0.2, as asked for now, found",
    );
}

#[test]
fn noise_may_be_drawn_at_test_alone_or_in_training_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    train(&path("plain"), &["--defense", "none"]);
    let none = eval(&path("plain"), &[]);
    let some = eval(
        &path("plain"),
        &["--init-noise", "0.3", "--inner-noise", "0.1"],
    );
    assert_eq!((&none["draws"], &some["draws"]), (&json!(1), &json!(5)));
    assert_ne!(none["loss"], some["loss"]);

    train(&path("rse"), &[]);
    let without = eval(&path("rse"), &["--init-noise", "0", "--inner-noise", "0"]);
    assert_eq!(without["draws"], 1);
    assert_ne!(without["loss"], eval(&path("rse"), &[])["loss"]);

    // Robust optimisation draws none at test unless it is asked to.
    train(&path("brelu"), &["--defense", "brelu"]);
    let usual = eval(&path("brelu"), &[]);
    let noisy = eval(&path("brelu"), &["--inner-noise", "0.1"]);
    assert_eq!((&usual["draws"], &noisy["draws"]), (&json!(1), &json!(5)));
    assert_eq!(noisy["network"]["init_noise"], 0.0);
    assert_ne!(usual["loss"], noisy["loss"]);

    // The same on an attack, and randomised smoothing's training.
    let smoothed = train(
        &path("smoothed"),
        &["--defense", "rse", "--inner-noise", "0"],
    );
    assert_eq!(smoothed["network"]["inner_noise"], 0.0);
    assert_eq!(smoothed["network"]["init_noise"], 0.2f32);
    let weights = path("plain").join("weights.safetensors");
    let out = path("attack");
    let attack = [
        "attack",
        "fgsm",
        "--json",
        "--weights",
        weights.to_str().unwrap(),
    ];
    let more = [
        "--data",
        "synthetic:40",
        "--count",
        "3",
        "--eps",
        "8/255",
        "--ensemble",
        "5",
    ];
    let noise = ["--inner-noise", "0.1", "--out", out.to_str().unwrap()];
    let report = result_of(&[&attack[..], &more, &noise].concat());
    assert_eq!(report["parameters"]["network"]["inner_noise"], 0.1f32);
}

#[test]
fn bad_arguments_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    train(&path("teacher"), &[]);
    let file = path("teacher").join("weights.safetensors");
    let mut weights = Checkpoint::read(&file).unwrap();
    weights.metadata.clear();
    weights.write(path("bare")).unwrap();
    let out = path("out");
    let args = train_args(&out);
    let (file, bare, missing) = (file.to_str().unwrap(), path("bare"), path("missing"));
    let (bare, missing) = (bare.to_str().unwrap(), missing.to_str().unwrap());
    let other = |input, classes, name: &str| {
        let config = Config::new(Arch::Linear, input, classes);
        let mut model = Model::new(config, 0).unwrap();
        model.checkpoint().unwrap().write(path(name)).unwrap();
        path(name).display().to_string()
    };
    let seven = other(Shape::new(1, 32, 32, 3), 7, "seven");
    let grey = other(Shape::new(1, 32, 32, 1), 10, "grey");
    for (more, code, message) in [
        (
            &["distill"][..],
            1,
            "--defense distill needs --teacher WEIGHTS",
        ),
        (&["distill", "--teacher", missing], 1, "cannot read "),
        (
            &["distill", "--teacher", bare],
            1,
            "bare: expected metadata naming the network, found none",
        ),
        (
            &["distill", "--teacher", file, "--temperature", "0"],
            1,
            "train: temperature: expected a finite number above 0, found 0",
        ),
        (
            &["distill", "--teacher", file, "--temperature", "-2"],
            1,
            "train: temperature: expected a finite number above 0, found -2",
        ),
        (
            &["distill", "--teacher", &seven],
            1,
            "train: teacher: expected 10 classes, found 7 classes",
        ),
        (
            &["distill", "--teacher", &grey],
            1,
            "train: teacher: expected images [1, 32, 32, 3], found images [1, 32, 32, 1]",
        ),
        (
            &["rse", "--temperature", "2"],
            1,
            "--temperature belongs to --defense distill",
        ),
        (
            &["none", "--teacher", file],
            1,
            "--teacher belongs to --defense distill",
        ),
        (
            &["none", "--adv-eps", "0.1"],
            1,
            "--adv-eps belongs to --defense adv-fgsm and adv-pgd",
        ),
        (
            &["adv-fgsm", "--adv-steps", "3"],
            1,
            "--adv-steps belongs to --defense adv-pgd",
        ),
        (
            &["adv-fgsm", "--adv-eps", "0.3,0.1"],
            1,
            "train: eps: expected the smaller radius first, found 0.3, 0.1",
        ),
        (
            &["adv-fgsm", "--adv-eps", "-0.1"],
            2,
            "expected a number above 0, or a fraction",
        ),
        (
            &["adv-fgsm", "--adv-eps", "0.1,-0.3"],
            2,
            "expected a number above 0, or a fraction",
        ),
        (
            &["adv-fgsm", "--adv-eps", "0.1,0.2,0.3"],
            1,
            "is one radius or LOW,HIGH",
        ),
        (
            &["adv-pgd", "--adv-eps", "0.1,0.2"],
            1,
            "--adv-eps of --defense adv-pgd is one radius",
        ),
        (
            &["adv-pgd", "--adv-steps", "0"],
            1,
            "train: attack steps: expected at least 1, found 0",
        ),
        (
            &["adv-pgd", "--adv-step-size", "0"],
            2,
            "expected a number above 0, or a fraction",
        ),
    ] {
        refused(&[&args[..], &["--defense"], more].concat(), code, message);
    }
    assert!(!files(dir.path()).contains(&"out".to_string()));
}
