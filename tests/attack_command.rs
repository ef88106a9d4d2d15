//! `noiseforge attack`, `attack transfer` and `verify` as their users run them.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use common::command::{files, json, refused, text, train};

/// A trained network with noise; the folder of its run.
fn network(dir: &Path, name: &str, more: &[&str]) -> PathBuf {
    let folder = dir.join(name);
    train(&folder, more);
    folder.join("weights.safetensors")
}

fn attack<'a>(name: &'a str, weights: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "attack",
        name,
        "--json",
        "--data",
        "synthetic:40",
        "--weights",
    ];
    args.extend([weights.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    args.extend(more);
    args
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

const RSE: [&str; 5] = ["--defense", "rse", "--init-noise", "0.2", "--inner-noise"];

#[test]
fn every_attack_writes_a_report_that_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let weights = network(dir.path(), "rse", &[&RSE[..], &["0.1"]].concat());
    let few = [
        "--count",
        "4",
        "--eot",
        "2",
        "--confirmations",
        "2",
        "--ensemble",
        "3",
    ];
    for (name, more) in [
        ("fgsm", &["--eps", "8/255"][..]),
        ("rfgsm", &["--eps", "0.1"]),
        ("ifgsm", &["--eps", "0.1", "--steps", "3", "--norm", "l2"]),
        ("pgd", &["--eps", "0.05", "--steps", "3", "--restarts", "2"]),
        (
            "apgd",
            &[
                "--eps",
                "0.05",
                "--steps",
                "4",
                "--loss",
                "targeted-dlr",
                "--targets",
                "2",
            ],
        ),
        ("fab", &["--norm", "l2", "--steps", "3", "--targets", "2"]),
        ("square", &["--eps", "0.05", "--queries", "20"]),
        ("noise", &["--eps", "0.05", "--tries", "20"]),
        ("autoattack-rand", &["--eps", "0.3", "--max-queries", "100"]),
        (
            "zoo",
            &["--iterations", "2", "--coordinates", "4", "--averages", "2"],
        ),
        ("ddn", &["--steps", "3"]),
        (
            "hopskipjump",
            &[
                "--iterations",
                "1",
                "--init-evals",
                "4",
                "--max-queries",
                "200",
            ],
        ),
        (
            "cw",
            &["--protocol", "cw", "--steps", "8", "--search-steps", "3"],
        ),
        (
            "cw",
            &["--c", "1", "--steps", "4", "--rule", "votes", "--targeted"],
        ),
    ] {
        let out = dir.path().join("attack");
        let report = json(&attack(name, &weights, &out, &[&few[..], more].concat()));
        assert_eq!(files(&out), ["adv.npy", "report.json", "timing.json"]);
        assert_eq!(report, read(&out.join("report.json")));
        // apgd-t, fab-t, zoo-adam: the member of a family is named, too
        assert!(report["attack"].as_str().unwrap().starts_with(name));
        assert_eq!(report["format"], 2);
        let images = report["images"].as_array().unwrap();
        assert_eq!((images.len(), report["verdicts"].as_u64()), (4, Some(10)));
        let low = report["robust_accuracy_interval"][0].as_f64().unwrap();
        let high = report["robust_accuracy_interval"][1].as_f64().unwrap();
        let robust = report["robust_accuracy"].as_f64().unwrap();
        assert!(low < robust + 1e-12 && robust < high + 1e-12 && high - low > 0.1);
        for image in images {
            assert!(image["forward_passes"].as_u64().unwrap() > 0);
            assert!(image["right"].as_u64().unwrap() <= 10);
        }
        let verified = json(&["verify", out.to_str().unwrap(), "--json"]);
        assert_eq!(verified, serde_json::json!({ "images": 4, "differ": [] }));
        std::fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn what_was_changed_does_not_verify() {
    let dir = tempfile::tempdir().unwrap();
    let weights = network(dir.path(), "plain", &["--defense", "none"]);
    let out = dir.path().join("pgd");
    json(&attack(
        "pgd",
        &weights,
        &out,
        &["--eps", "0.05", "--count", "3", "--steps", "2"],
    ));
    let folder = out.to_str().unwrap();
    let path = out.join("report.json");
    let report = read(&path);
    assert_eq!(
        (&report["ensemble"], &report["verdicts"]),
        (&1.into(), &1.into())
    );
    let write = |change: &dyn Fn(&mut Value)| {
        let mut changed = report.clone();
        change(&mut changed);
        std::fs::write(&path, changed.to_string()).unwrap();
    };
    write(&|r| r["robust_accuracy"] = 0.9.into());
    refused(
        &["verify", folder],
        1,
        "figures that follow from its images",
    );
    write(&|r| r["format"] = 1.into());
    refused(
        &["verify", folder],
        1,
        "expected a report of format 2, found format 1",
    );
    std::fs::write(&path, "[]").unwrap();
    refused(&["verify", folder], 1, "expected an attack's report");
    std::fs::write(&path, &report.to_string()[..500]).unwrap();
    refused(&["verify", folder], 1, "expected JSON");
    write(&|_| {});
    // an image moved by one: its distance is another
    let array = out.join("adv.npy");
    let mut bytes = std::fs::read(&array).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&0.123f32.to_le_bytes());
    std::fs::write(&array, bytes).unwrap();
    let output = common::command::run(&["verify", folder]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("1 of 3 images differ"));
    assert!(text(&output.stdout).contains("image 2: written"));
}

#[test]
fn saved_images_are_judged_by_other_weights() {
    let dir = tempfile::tempdir().unwrap();
    let weights = network(dir.path(), "plain", &["--defense", "none"]);
    let other = network(dir.path(), "rse", &[&RSE[..], &["0.1"]].concat());
    let out = dir.path().join("fgsm");
    let fgsm = json(&attack(
        "fgsm",
        &weights,
        &out,
        &["--eps", "0.1", "--count", "5"],
    ));
    let to = dir.path().join("transfer");
    let transfer = |weights: &Path| {
        let mut args = vec![
            "attack",
            "transfer",
            "--json",
            "--from",
            out.to_str().unwrap(),
        ];
        args.extend([
            "--weights",
            weights.to_str().unwrap(),
            "--out",
            to.to_str().unwrap(),
        ]);
        json(&args)
    };
    let own = transfer(&weights);
    for key in ["robust_accuracy", "accuracy", "median_linf", "rms_l2"] {
        assert_eq!(own[key], fgsm[key], "{key}");
    }
    assert_eq!(own["forward_passes"], 0);
    let others = transfer(&other);
    assert_eq!(others["verdicts"], 10);
    assert_eq!(others["parameters"]["from_attack"], "fgsm");
    json(&["verify", to.to_str().unwrap(), "--json"]);
}

/// Ctrl-C in the middle: the finished images are kept, and the rest gives the same bytes.
#[test]
fn an_interrupted_attack_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let weights = network(dir.path(), "plain", &[]);
    let settings = [
        "--protocol",
        "cw",
        "--steps",
        "40",
        "--count",
        "20",
        "--batch",
        "4",
    ];
    let whole = dir.path().join("whole");
    json(&attack("cw", &weights, &whole, &settings));
    let parts = dir.path().join("parts");
    let args = attack("cw", &weights, &parts, &settings);
    let mut child = Command::new(env!("CARGO_BIN_EXE_noiseforge"))
        .args(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let part = parts.join("attack.part");
    let lines = || std::fs::read(&part).map_or(0, |b| b.iter().filter(|&&c| c == b'\n').count());
    let started = Instant::now();
    while lines() < 3 && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!((3..21).contains(&lines()), "{} lines", lines());
    assert_eq!(files(&parts), ["attack.part"]);
    // a line cut off is done again
    let bytes = std::fs::read(&part).unwrap();
    std::fs::write(&part, &bytes[..bytes.len() - 10]).unwrap();
    // other settings do not mix with it
    let mut other = args.clone();
    other.extend(["--kappa", "1"]);
    refused(&other, 1, "holds an unfinished attack with other settings");
    json(&args);
    for file in ["adv.npy", "report.json"] {
        let [a, b] = [&whole, &parts].map(|f| std::fs::read(f.join(file)).unwrap());
        assert!(a == b, "{file}");
    }
    assert_eq!(files(&parts), ["adv.npy", "report.json", "timing.json"]);
}

#[test]
fn bad_arguments_are_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let weights = network(dir.path(), "plain", &[]);
    let out = dir.path().join("out");
    for (name, more, code, message) in [
        (
            "fgsm",
            &["--eps", "0"][..],
            2,
            "expected a number above 0, or a fraction such as 8/255",
        ),
        ("fgsm", &["--eps", "8/0"], 2, "expected a number above 0"),
        (
            "pgd",
            &["--eps", "0.1", "--norm", "l1"],
            2,
            "expected l2 or linf",
        ),
        (
            "pgd",
            &["--eps", "0.1", "--steps", "0"],
            2,
            "0 is not in 1..",
        ),
        (
            "pgd",
            &["--eps", "0.1", "--eot", "0"],
            2,
            "a whole number, at least 1",
        ),
        (
            "pgd",
            &["--eps", "0.1", "--max-queries", "0"],
            2,
            "a whole number, at least 1",
        ),
        (
            "pgd",
            &["--eps", "0.1", "--rule", "best"],
            2,
            "expected probabilities, logits or votes",
        ),
        (
            "cw",
            &["--kappa", "-1"],
            1,
            "kappa: expected a finite number, at least 0, found -1",
        ),
        (
            "cw",
            &["--lr-end", "0"],
            1,
            "last lr: expected a finite number above 0, found 0",
        ),
    ] {
        refused(&attack(name, &weights, &out, more), code, message);
        assert!(!out.exists(), "{name} {more:?}");
    }
    let nothing = dir.path().join("nothing");
    refused(&["verify", nothing.to_str().unwrap()], 1, "cannot read");
}
