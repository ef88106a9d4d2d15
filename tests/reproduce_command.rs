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
    // A network, an attack at eight constants, and eight verdicts of one draw.
    assert_eq!(made.len(), 10);
    assert_eq!(first["commands"].as_array().unwrap().len(), 10);
    assert_eq!(first["table1"].as_array().unwrap().len(), 8);
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
    let single = ["--data", "synthetic:40", "--single-draw"];
    other(&single, "with single_draw false");
}

/// What stands behind a flag of a command.
fn value<'a>(command: &'a str, flag: &str) -> Option<&'a str> {
    let mut words = command.split(' ');
    words.find(|word| *word == flag)?;
    words.next()
}

fn reproduced(names: &[&str], out: &str) -> serde_json::Value {
    let data = ["--data", "synthetic:20", "--json", "--out", out];
    json(&[&["reproduce"], names, &data].concat())
}

/// What was run.
fn commands(found: &serde_json::Value) -> Vec<&str> {
    let all = found["commands"].as_array().unwrap().iter();
    all.map(|c| c["command"].as_str().unwrap()).collect()
}

#[test]
fn the_protocols_are_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("paper").display().to_string();
    let found = reproduced(&["table2", "certified"], &out);
    let commands = commands(&found);
    // Five attacks in each protocol.
    let attacks: Vec<&&str> = commands
        .iter()
        .filter(|c| c.contains("attack cw"))
        .collect();
    let published: Vec<&&&str> = attacks
        .iter()
        .filter(|c| value(c, "--batch-norm") == Some("train"))
        .collect();
    assert_eq!((attacks.len(), published.len()), (10, 5));
    let noise = |command: &str| {
        let of = |flag: &str| value(command, flag).unwrap_or("").to_string();
        [
            of("--init-noise"),
            of("--inner-noise"),
            of("--noise-placement"),
        ]
    };
    let trained = |what: &str| -> Vec<&str> {
        commands
            .iter()
            .filter(|c| c.starts_with("noiseforge train") && c.contains(what))
            .copied()
            .collect()
    };
    let mut rse: Vec<_> = trained("--defense rse").iter().map(|c| noise(c)).collect();
    rse.sort();
    assert_eq!(
        rse,
        [
            ["0.2", "0.1", ""],
            ["0.25", "0", ""],
            ["0.4", "0.1", "authors"]
        ]
    );
    let distilled: Vec<_> = trained("--defense distill")
        .iter()
        .map(|c| value(c, "--distill-loss"))
        .collect();
    assert!(
        distilled.contains(&None) && distilled.contains(&Some("authors")),
        "{distilled:?}"
    );
    let rows = found["table2"].as_array().unwrap();
    assert_eq!(rows.len(), 10);
    // The certificates of a network that has the image's noise replace it.
    let certified = commands
        .iter()
        .filter(|c| c.starts_with("noiseforge certify"));
    for command in certified {
        assert_eq!(value(command, "--init-noise"), Some("0"));
    }
    let shares = |row: &serde_json::Value| -> Vec<f64> {
        let all = row["certified"].as_array().unwrap();
        all.iter().map(|pair| pair[1].as_f64().unwrap()).collect()
    };
    for row in found["certified"].as_array().unwrap() {
        let shares = shares(row);
        assert!(
            shares.is_sorted_by(|a, b| a >= b) && shares[0] <= 1.0,
            "{row}"
        );
    }
    let page = std::fs::read_to_string(Path::new(&out).join("report.html")).unwrap();
    for text in ["34.75", "88.56", "ResNet-110"] {
        assert!(page.contains(text), "{text}");
    }
}

#[test]
fn adaptive_attacks_average_where_there_is_noise() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("paper").display().to_string();
    let found = reproduced(&["fig2-adaptive"], &out);
    let commands = commands(&found);
    let attacks: Vec<&&str> = commands.iter().filter(|c| c.contains(" attack ")).collect();
    // Four cases under C&W at fixed c, C&W's search and APGD at three radii; two cases have noise at test.
    assert_eq!(attacks.len(), 4 * 5);
    let averaged = attacks.iter().filter(|c| value(c, "--eot") == Some("5"));
    assert_eq!(averaged.count(), 2 * 5);
    let cases = found["fig2-adaptive"]["at_distance"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let points: Vec<[f64; 2]> = serde_json::from_value(case["apgd"].clone()).unwrap();
        assert_eq!(
            points.iter().map(|p| p[0]).collect::<Vec<_>>(),
            [0.0, 0.25, 0.5, 1.0]
        );
        // Each radius is attacked by itself, so that a larger one may leave a little more.
        assert!(points[3][1] <= points[0][1] + 1e-9, "{case}");
    }
}

#[test]
fn the_papers_networks_have_their_own_settings() {
    let dir = tempfile::tempdir().unwrap();
    // Four images in STL-10's format: 96x96, planes of columns, labels from 1.
    let stl = dir.path().join("stl");
    std::fs::create_dir(&stl).unwrap();
    for split in ["train", "test"] {
        std::fs::write(stl.join(format!("{split}_X.bin")), vec![7; 4 * 3 * 96 * 96]).unwrap();
        std::fs::write(stl.join(format!("{split}_y.bin")), [1, 2, 3, 4]).unwrap();
    }
    std::fs::write(
        stl.join("class_names.txt"),
        "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n",
    )
    .unwrap();
    let stl = format!("stl10:{}", stl.display());
    let out = dir.path().join("paper").display().to_string();
    let args = [
        "reproduce",
        "table1",
        "--data",
        "synthetic:40",
        "--json",
        "--out",
        &out,
    ];
    let found = json(&[&args[..], &["--scale", "paper", "--stl", &stl]].concat());
    let rows = found["table1"].as_array().unwrap();
    assert_eq!(rows.len(), 3 * 8);
    let command = |network: &str, defense: &str| {
        let row = rows
            .iter()
            .find(|r| r["network"] == network && r["defense"] == defense);
        row.unwrap()["command"].as_str().unwrap()
    };
    for (network, model, init) in [
        ("VGG16", "vgg16", "0.2"),
        ("ResNeXt29", "resnext29", "0.1"),
        ("Model A", "model-a", "0.2"),
    ] {
        let rse = command(network, "RSE");
        assert_eq!(value(rse, "--model"), Some(model));
        assert_eq!(value(rse, "--init-noise"), Some(init));
        assert_eq!(value(rse, "--epochs"), Some("200"));
        assert!(rse.contains("--select-best-test"));
        let adversarial = command(network, "adversarial retraining");
        assert_eq!(value(adversarial, "--epochs"), Some("300"));
        assert_eq!(value(adversarial, "--schedule"), Some("halving"));
        assert!(!adversarial.contains("--select-best-test"));
    }
    assert!(command("Model A", "no defence").contains(&stl));
    assert!(!command("VGG16", "no defence").contains(&stl));
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
    let stl = ["table1", "--data", "synthetic:40", "--stl", "stl10:nowhere"];
    ask(&stl, 1, "--stl belongs to --scale paper");
    ask(&[&stl[..], &["--scale", "paper"]].concat(), 1, "nowhere");
    let wrong = ["table1", "--data", "synthetic:40", "--stl", "synthetic:40"];
    ask(
        &[&wrong[..], &["--scale", "paper"]].concat(),
        1,
        "images of 96x96, found 32x32",
    );
    ask(&["table3", "--data", "synthetic:4"], 1, "2 test images");
}
