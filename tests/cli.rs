//! The program as its users run it: results, refusals in one clear line, nothing left half done.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use noiseforge::data::{Spec, Split};
use noiseforge::io::npy;

use common::command::{files, json, refused, run, text, train, train_args};

#[test]
fn train_eval_predict_attack() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let report = train(&run_dir, &[]);
    assert_eq!(
        files(&run_dir),
        [
            "log.csv",
            "run.json",
            "state.safetensors",
            "weights.safetensors"
        ]
    );
    assert_eq!(report["network"]["init_noise"], 0.2f32);
    assert_eq!(report["log"].as_array().unwrap().len(), 1);
    let csv = std::fs::read_to_string(run_dir.join("log.csv")).unwrap();
    let header = csv.lines().next().unwrap();
    assert_eq!(
        header,
        "epoch,lr,train_loss,train_accuracy,test_loss,test_accuracy"
    );
    assert_eq!(csv.lines().count(), 2);

    let weights = run_dir.join("weights.safetensors");
    let weights = weights.to_str().unwrap();
    let base = ["--weights", weights, "--data", "synthetic:40"];
    let eval = json(&[&["eval", "--json", "--ensemble", "5"], &base[..]].concat());
    assert_eq!(eval["images"], 10);
    assert_eq!(eval["draws"], 5);
    let curve = eval["accuracy_by_draws"].as_array().unwrap();
    assert_eq!(
        curve
            .iter()
            .map(|p| p["draws"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [1, 2, 5]
    );
    assert_eq!(curve[2]["accuracy"], eval["accuracy"]);

    // the scores say what eval said, and are log-probabilities
    let out = dir.path().join("logits.npy");
    let out_text = out.to_str().unwrap();
    let predict = json(
        &[
            &["predict", "--json", "--ensemble", "5", "--out", out_text],
            &base[..],
        ]
        .concat(),
    );
    assert_eq!(predict["accuracy"], eval["accuracy"]);
    let (shape, logits) = npy::read_f32(&out).unwrap();
    assert_eq!(shape, [10, 10]);
    for row in logits.chunks(10) {
        let total: f32 = row.iter().map(|v| v.exp()).sum();
        assert!((total - 1.0).abs() < 1e-4, "{total}");
    }
    // sigma 0 on the command line takes the noise away: one draw is all there is
    let quiet = json(
        &[
            &["eval", "--json", "--init-noise", "0", "--inner-noise", "0"],
            &base[..],
        ]
        .concat(),
    );
    assert_eq!(quiet["draws"], 1);

    let attacked = dir.path().join("cw");
    let attacked_text = attacked.to_str().unwrap();
    let args = [
        "attack",
        "cw",
        "--json",
        "--count",
        "3",
        "--steps",
        "5",
        "--c",
        "0.1,1",
        "--out",
        attacked_text,
    ];
    let report = json(&[&args[..], &base[..]].concat());
    assert_eq!(files(&attacked), ["c-0.1", "c-1", "report.json"]);
    let one = &report["attacks"][1];
    assert_eq!(one["parameters"]["c"], 1.0);
    assert_eq!(one["images"].as_array().unwrap().len(), 3);
    let (shape, adversarial) = npy::read_f32(&attacked.join("c-1/adv.npy")).unwrap();
    assert_eq!(shape, [3, 32, 32, 3]);
    assert!(adversarial.iter().all(|v| (0.0..=1.0).contains(v)));
    // the distances in the report are those of the arrays in the file
    let test = "synthetic:40"
        .parse::<Spec>()
        .unwrap()
        .load(Split::Test, 0)
        .unwrap();
    let (clean, _) = test.batch(&[0, 1, 2]).unwrap();
    for (i, image) in one["images"].as_array().unwrap().iter().enumerate() {
        let row = |data: &[f32]| data[i * 3072..][..3072].to_vec();
        let squared: f64 = row(&adversarial)
            .iter()
            .zip(row(clean.data()))
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum();
        let reported = image["l2"].as_f64().unwrap();
        assert!(
            (squared.sqrt() - reported).abs() <= 1e-6 * reported,
            "{image}"
        );
    }
    let written = std::fs::read(attacked.join("c-1/report.json")).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(&written, one);
    // the same attack in smaller batches is the same attack
    let again = dir.path().join("again");
    let args = [
        "attack",
        "cw",
        "--json",
        "--count",
        "3",
        "--steps",
        "5",
        "--c",
        "1",
        "--batch",
        "1",
        "--out",
        again.to_str().unwrap(),
    ];
    json(&[&args[..], &base[..]].concat());
    let same = std::fs::read(again.join("adv.npy")).unwrap()
        == std::fs::read(attacked.join("c-1/adv.npy")).unwrap();
    assert!(same);
}

#[test]
fn a_finished_run_is_not_overwritten_and_resumes_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    train(&run_dir, &[]);
    let before = std::fs::read(run_dir.join("weights.safetensors")).unwrap();
    let args = train_args(&run_dir);
    refused(&args, 1, "holds a run already; add --resume");
    train(&run_dir, &["--resume"]);
    assert!(std::fs::read(run_dir.join("weights.safetensors")).unwrap() == before);
    refused(
        &[&args[..], &["--resume", "--lr", "0.2"]].concat(),
        1,
        "expected a run with lr = 0.2, as asked for now, found lr = 0.1",
    );
}

/// Where noise is drawn and what is kept of it changes no number.
#[test]
fn the_noise_plan_changes_no_number() {
    let dir = tempfile::tempdir().unwrap();
    let usual = train(&dir.path().join("usual"), &[]);
    assert_eq!(usual["draw_noise"], "auto");
    assert_eq!(usual["recompute_noise"], false);
    let more = [
        "--draw-noise",
        "apply",
        "--recompute-noise",
        "--device",
        "cpu",
    ];
    let other = train(&dir.path().join("other"), &more);
    assert_eq!(other["draw_noise"], "apply");
    assert_eq!(other["recompute_noise"], true);
    // Of the device's pool.
    assert!(other["peak_device_bytes"].is_null());
    assert_eq!(usual["log"], other["log"]);
    let weights = |run: &str| std::fs::read(dir.path().join(run).join("weights.safetensors"));
    assert!(weights("usual").unwrap() == weights("other").unwrap());
    let args = train_args(dir.path());
    refused(
        &[&args[..], &["--draw-noise", "there"]].concat(),
        2,
        "nn: site: expected auto, load, apply or epilogue, found there",
    );
}

/// Ctrl-C in the middle of an epoch, then --resume: the weights of a run never stopped.
#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_state_that_continues_to_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = |out: &str| -> Vec<String> {
        [
            "train",
            "--model",
            "small",
            "--width",
            "8",
            "--data",
            "synthetic:600",
            "--epochs",
            "3",
            "--batch",
            "16",
            "--out",
            out,
        ]
        .map(String::from)
        .to_vec()
    };
    let whole = dir.path().join("whole");
    let args = arguments(whole.to_str().unwrap());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    assert!(run(&args).status.success());

    let stopped = dir.path().join("stopped");
    let mut args = arguments(stopped.to_str().unwrap());
    let child = Command::new(env!("CARGO_BIN_EXE_noiseforge"))
        .args(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // the state file appears at the end of the first epoch
    let started = Instant::now();
    while !stopped.join("state.safetensors").exists() {
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "no epoch ended"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(
        stderr.contains("the same command with --resume continues"),
        "{stderr}"
    );
    assert!(!stopped.join("weights.safetensors").exists());

    args.push("--resume".to_string());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = run(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bytes = |folder: &Path| std::fs::read(folder.join("weights.safetensors")).unwrap();
    assert!(bytes(&stopped) == bytes(&whole));
    let bytes = |folder: &Path| std::fs::read(folder.join("log.csv")).unwrap();
    assert!(bytes(&stopped) == bytes(&whole));
}

#[test]
fn bad_arguments_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let train = ["train", "--data", "synthetic:40", "--out", out];
    let with = |more: &[&'static str]| -> Vec<String> {
        train.iter().chain(more).map(|s| s.to_string()).collect()
    };
    for (more, code, message) in [
        (
            &["--model", "vgg99"][..],
            2,
            "expected vgg16, resnext29, preactresnet18, model-a, small, linear, found vgg99",
        ),
        (
            &["--model", "small", "--init-noise", "-1"],
            2,
            "a finite number, at least 0",
        ),
        (
            &["--model", "small", "--init-noise", "NaN"],
            2,
            "a finite number, at least 0",
        ),
        (&["--model", "small", "--epochs", "0"], 2, "0 is not in 1.."),
        (
            &["--model", "small", "--batch", "1"],
            1,
            "train: batch: expected at least 2 rows, found 1",
        ),
        (
            &["--model", "small", "--lr", "nan"],
            1,
            "train: lr: expected a finite number above 0",
        ),
        (
            &["--model", "small", "--device", "cuda:99"],
            1,
            "device cuda:99: ",
        ),
        (
            &[
                "--model",
                "small",
                "--defense",
                "none",
                "--init-noise",
                "0.1",
            ],
            1,
            "--defense none has no noise",
        ),
        (&["--model", "model-a"], 1, "expected images large enough"),
    ] {
        let args = with(more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused(&args, code, message);
    }
    refused(
        &[
            "train",
            "--model",
            "small",
            "--data",
            "cifar11:x",
            "--out",
            out,
        ],
        2,
        "synthetic[:N], cifar10:DIR",
    );
    refused(
        &[
            "train",
            "--model",
            "small",
            "--data",
            "folder:/nonexistent",
            "--out",
            out,
        ],
        1,
        "/nonexistent: expected a directory with train/CLASS/ and test/CLASS/",
    );
    assert!(
        files(dir.path()).is_empty(),
        "a refused command left {:?}",
        files(dir.path())
    );
}

#[test]
fn bad_weights_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    train(&run_dir, &[]);
    let weights = run_dir.join("weights.safetensors");
    let eval = |weights: &Path, more: &[&str], code: i32, message: &str| {
        let weights = weights.to_str().unwrap();
        let base = ["eval", "--weights", weights, "--data", "synthetic:40"];
        refused(&[&base[..], more].concat(), code, message);
    };
    eval(
        &weights,
        &["--ensemble", "0"],
        2,
        "a whole number, at least 1",
    );
    eval(
        &weights,
        &["--model", "vgg16"],
        1,
        "expected `features.0.weight`: F32 of shape [64, 3, 3, 3], found F32 of shape [2, 3, 3, 3]",
    );
    eval(&dir.path().join("nothing"), &[], 1, "cannot read");

    let bytes = std::fs::read(&weights).unwrap();
    let broken = dir.path().join("broken.safetensors");
    for len in [0, 7, 100, bytes.len() - 1] {
        std::fs::write(&broken, &bytes[..len]).unwrap();
        eval(&broken, &[], 1, "broken.safetensors");
    }
    // NaN in the last tensor
    let mut nan = bytes.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&broken, nan).unwrap();
    eval(&broken, &[], 1, "values are NaN or infinite");

    // images of another size
    let images = dir.path().join("x.npy");
    npy::write_f32(&images, &[2, 8, 8, 3], &[0.5; 384]).unwrap();
    let labels = dir.path().join("y.npy");
    write_labels(&labels, &[0, 1]);
    let spec = format!("npy:{},{}", images.display(), labels.display());
    refused(
        &[
            "eval",
            "--weights",
            weights.to_str().unwrap(),
            "--data",
            &spec,
        ],
        1,
        "images of the wrong size: the network takes [1, 32, 32, 3], the data set holds [1, 8, 8, 3]",
    );
    let out = dir.path().join("cw");
    let out = out.to_str().unwrap();
    let attack = [
        "attack",
        "cw",
        "--weights",
        weights.to_str().unwrap(),
        "--data",
        "synthetic:40",
        "--count",
        "1",
        "--out",
        out,
    ];
    refused(
        &[&attack[..], &["--c", "-1"]].concat(),
        1,
        "c: expected a finite number, at least 0, found -1",
    );
    refused(
        &[&attack[..], &["--protocol", "cw", "--c", "0"]].concat(),
        1,
        "first c: expected a finite number above 0",
    );
    refused(
        &[&attack[..], &["--target", "10"]].concat(),
        1,
        "the data set has classes 0 to 9",
    );
    refused(
        &[&attack[..], &["--eot", "0"]].concat(),
        2,
        "a whole number, at least 1",
    );
    let missing = dir.path().join("missing/logits.npy");
    refused(
        &[
            "predict",
            "--weights",
            weights.to_str().unwrap(),
            "--data",
            "synthetic:40",
            "--out",
            missing.to_str().unwrap(),
        ],
        1,
        "cannot write",
    );
}

/// A version 1 `.npy` file of i64.
fn write_labels(path: &Path, labels: &[i64]) {
    let mut header = format!(
        "{{'descr': '<i8', 'fortran_order': False, 'shape': ({},), }}",
        labels.len()
    );
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(labels.iter().flat_map(|l| l.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn every_command_has_help_and_commands_with_results_have_examples() {
    for command in [
        &["train"][..],
        &["eval"],
        &["predict"],
        &["attack", "cw"],
        &["noise"],
        &["gradcheck"],
        &["devices"],
        &["bench"],
        &["demo"],
    ] {
        let output = run(&[command, &["--help"]].concat());
        assert!(output.status.success());
        let help = text(&output.stdout);
        assert!(help.contains("Example"), "{command:?}: {help}");
    }
}

#[test]
fn the_demo_writes_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let summary = json(&[
        "demo",
        "--quick",
        "--json",
        "--out",
        dir.path().to_str().unwrap(),
    ]);
    assert_eq!(
        files(dir.path()),
        [
            "demo.json",
            "plain.safetensors",
            "report.html",
            "rse.safetensors"
        ]
    );
    assert_eq!(summary["networks"].as_array().unwrap().len(), 2);
    let html = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(html.contains("Accuracy against c") && html.contains("data:image/png"));
    // images in base64 may contain any three letters
    let prose: Vec<&str> = html
        .split('"')
        .filter(|s| !s.starts_with("data:"))
        .collect();
    assert!(
        prose
            .iter()
            .all(|s| !s.contains("NaN") && !s.contains("inf"))
    );
}

#[test]
fn the_model_needs_no_gpu_and_its_parts_fit_together() {
    let found = json(&["bench", "--model", "--network", "small", "--json"]);
    let cards = found["cards"].as_array().unwrap();
    // Four cards, two batches.
    assert_eq!(cards.len(), 8);
    for card in cards {
        let layers = card["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 6 * 3);
        for layer in layers.iter().filter(|l| !l["kernel"].is_null()) {
            let of = |name: &str| layer[name].as_f64().unwrap();
            let all = of("microseconds");
            for pipe in ["tensor", "issue", "mufu", "shared", "l2", "hbm"] {
                assert!((0.0..=all * 1.0001).contains(&of(pipe)), "{layer}");
            }
            assert!(layer["bound"].is_string());
        }
        let forward: f64 = layers
            .iter()
            .filter(|l| l["pass"] == "forward")
            .map(|l| l["microseconds"].as_f64().unwrap())
            .sum();
        let total = card["totals"][0]["microseconds"].as_f64().unwrap();
        assert!((forward..1.2 * forward + 10.0).contains(&total), "{card}");
    }
}

#[test]
fn bench_refuses_what_it_cannot_do() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken.csv");
    std::fs::write(&broken, "device,operation\nH100,forward\n").unwrap();
    let broken = broken.to_str().unwrap();
    refused(&["bench"], 2, "--model");
    refused(
        &["bench", "--model", "--card", "H9000"],
        2,
        "H200, H100, A100, RTX 4090",
    );
    refused(&["bench", "--model", "--dtype", "f32"], 2, "bf16 or f16");
    refused(
        &["bench", "--model", "--network", "linear"],
        1,
        "--network: expected one of",
    );
    refused(
        &["bench", "--tune", "--device", "cpu"],
        1,
        "--tune needs a GPU",
    );
    let tuned = ["bench", "--tune", "--device", "cpu", "--tuning", broken];
    refused(&tuned, 1, "the first line");
}
