//! `noiseforge report` as its users run it.

mod common;

use std::path::Path;

use serde_json::Value;

use common::command::{files, json, refused, train};

fn attack(weights: &Path, name: &str, more: &[&str], out: &Path) {
    let mut args = vec![
        "attack",
        name,
        "--data",
        "synthetic:40",
        "--count",
        "6",
        "--json",
    ];
    args.extend([
        "--weights",
        weights.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]);
    args.extend(more);
    json(&args);
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_page_puts_attacks_together() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    train(&at("net"), &["--lr", "0.05"]);
    let weights = at("net").join("weights.safetensors");
    attack(
        &weights,
        "cw",
        &["--c", "1,100", "--steps", "20", "--lr", "0.05"],
        &at("sweep"),
    );
    attack(
        &weights,
        "pgd",
        &["--eps", "0.2", "--steps", "5"],
        &at("pgd"),
    );
    attack(&weights, "ddn", &["--steps", "20"], &at("ddn"));
    let named = |name: &str| format!("{name}={}", at(name).display());
    let (sweep, ddn) = (named("sweep"), named("ddn"));
    let pgd = at("pgd").join("report.json").display().to_string();
    let page = at("page").display().to_string();
    let found = json(&["report", "--json", &sweep, &pgd, &ddn, "--out", &page]);

    let runs = found["runs"].as_array().unwrap();
    let names: Vec<_> = runs
        .iter()
        .map(|run| run["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["sweep", "pgd", "ddn"]);
    assert_eq!(runs[0]["attacks"].as_array().unwrap().len(), 2);
    // Image by image the fewest right verdicts, from the files.
    // PGD's bound is its own.
    let mut all = vec![read(&at("ddn").join("report.json"))];
    let swept = read(&at("sweep").join("report.json"));
    all.extend(swept["attacks"].as_array().unwrap().iter().cloned());
    let verdicts = all[0]["verdicts"].as_f64().unwrap();
    let least = |i: usize| {
        let right = all.iter().flat_map(|report| {
            let image = &report["images"][i];
            ["right", "clean_right"].map(|key| image[key].as_u64().unwrap())
        });
        right.min().unwrap() as f64 / verdicts
    };
    let expected = (0..6).map(least).sum::<f64>() / 6.0;
    let together = found["together"].as_array().unwrap();
    assert_eq!(together.len(), 1);
    assert_eq!(together[0]["attacks"].as_array().unwrap().len(), 3);
    assert_eq!(together[0]["robust_accuracy"].as_f64().unwrap(), expected);
    assert_eq!(
        files(&at("page")),
        [
            "accuracy-c.svg",
            "accuracy-l2.svg",
            "accuracy-linf.svg",
            "accuracy-passes.svg",
            "accuracy-rms.svg",
            "report.html"
        ]
    );
    let html = std::fs::read_to_string(at("page").join("report.html")).unwrap();
    for expected in [
        "sweep, c = 1.0",
        "sweep, c = 100.0",
        "<svg",
        "Accuracy against distance",
    ] {
        assert!(html.contains(expected), "{expected}");
    }

    refused(
        &["report", &sweep, &sweep, "--out", &page],
        1,
        "two attacks are called \"sweep\"",
    );
    let mut edited = read(&at("pgd").join("report.json"));
    edited["robust_accuracy"] = Value::from(0.25);
    std::fs::write(at("edited.json"), edited.to_string()).unwrap();
    let edited = at("edited.json").display().to_string();
    refused(
        &["report", &edited, "--out", &page],
        1,
        "the file was changed",
    );
    std::fs::write(at("edited.json"), "{\"format\": 2, \"attacks\": []}").unwrap();
    refused(
        &["report", &edited, "--out", &page],
        1,
        "at least one attack",
    );
    let missing = at("missing").display().to_string();
    refused(&["report", &missing, "--out", &page], 1, "missing");
}
