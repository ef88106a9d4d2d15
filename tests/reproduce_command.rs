//! `noiseforge reproduce` as its users run it.

mod common;

use std::path::Path;

use common::command::{json, refused};

fn modified(folder: &Path) -> Vec<(String, std::time::SystemTime)> {
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let done = path.join("done.json");
            let at = std::fs::metadata(&done).unwrap().modified().unwrap();
            (path.display().to_string(), at)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn parts_are_made_once_and_shared() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("paper").display().to_string();
    let ask = |names: &[&str]| {
        let args = [&["reproduce"], names, &["--json", "--data", "synthetic:40"]].concat();
        json(&[&args[..], &["--out", &out]].concat())
    };
    let first = ask(&["table1", "fig4"]);
    let parts = Path::new(&out).join("parts");
    let made = modified(&parts);
    // A network, an attack at six constants, and six verdicts of one draw.
    assert_eq!(made.len(), 8);
    assert_eq!(first["commands"].as_array().unwrap().len(), 8);
    assert_eq!(first["table1"].as_array().unwrap().len(), 5);
    let [one, fifty] = &first["fig4"].as_array().unwrap()[..] else {
        panic!("expected two curves, found {}", first["fig4"]);
    };
    assert_eq!((&one["draws"], &fifty["draws"]), (&1.into(), &50.into()));
    // The same images were judged.
    for (a, b) in one["points"]
        .as_array()
        .unwrap()
        .iter()
        .zip(fifty["points"].as_array().unwrap())
    {
        assert_eq!((&a["c"], &a["rms_l2"]), (&b["c"], &b["rms_l2"]));
        assert!(a["accuracy"].as_f64().unwrap() >= 0.0 && b["accuracy"].as_f64().unwrap() <= 1.0);
    }
    let moved = |i: usize| fifty["points"][i]["rms_l2"].as_f64().unwrap();
    assert!(moved(0) < 0.01 && moved(5) > moved(0), "{fifty}");

    // Nothing is computed again, and what another figure needs besides is added.
    assert_eq!(ask(&["fig4"])["fig4"], first["fig4"]);
    assert_eq!(modified(&parts), made);
    let page = std::fs::read_to_string(Path::new(&out).join("report.html")).unwrap();
    assert!(page.contains("Figure 4") && page.contains("attack transfer --from"));

    // A part that was interrupted in front of its last file goes on: the attack is made again, to the same numbers.
    let attack = made
        .iter()
        .find(|(path, _)| path.contains("/cw-rse"))
        .unwrap();
    std::fs::remove_file(Path::new(&attack.0).join("done.json")).unwrap();
    assert_eq!(ask(&["fig4"])["fig4"], first["fig4"]);

    let other = |more: &[&str], message: &str| {
        refused(
            &[&["reproduce", "fig4", "--out", &out], more].concat(),
            1,
            message,
        );
    };
    other(&["--data", "synthetic:50"], "with data \"synthetic:40\"");
    other(&["--data", "synthetic:40", "--seed", "1"], "with seed 0");
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("paper");
    let text = out.display().to_string();
    let ask = |more: &[&str], code: i32, message: &str| {
        refused(
            &[&["reproduce", "--out", &text], more].concat(),
            code,
            message,
        );
        assert!(!out.exists());
    };
    ask(&["table1", "--data", "cifar10:nowhere"], 1, "nowhere");
    ask(&["--data", "synthetic:40"], 2, "NAMES");
    ask(&["table9", "--data", "synthetic:40"], 2, "table9");
}
