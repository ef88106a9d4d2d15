//! The program run as a command.

use std::path::Path;
use std::process::{Command, Output, Stdio};

pub fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_noiseforge"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn json(args: &[&str]) -> serde_json::Value {
    let output = run(args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Expects a refusal with this exit code whose message contains `message`.
pub fn refused(args: &[&str], code: i32, message: &str) {
    let output = run(args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.contains(message), "{args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    assert!(
        output.stdout.is_empty(),
        "{args:?}: {}",
        text(&output.stdout)
    );
    // clap adds usage hints; our own errors are one line
    if code == 1 {
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    }
}

pub fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What trains a narrow network for one epoch on a few images.
pub fn train_args(out: &Path) -> Vec<&str> {
    let mut args: Vec<&str> =
        "train --model small --width 2 --data synthetic:40 --epochs 1 --batch 16"
            .split(' ')
            .collect();
    args.extend(["--out", out.to_str().unwrap()]);
    args
}

/// Trains it; the folder holds the run.
pub fn train(folder: &Path, more: &[&str]) -> serde_json::Value {
    json(&[&train_args(folder)[..], &["--json"], more].concat())
}
