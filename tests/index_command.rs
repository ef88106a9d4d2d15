//! `noiseforge index` as its users run it.

mod common;

use std::path::Path;

use common::command::{json, refused, run, text, train};

fn cells(page: &str, path: &str) -> Vec<String> {
    let document = roxmltree::Document::parse_with_options(
        page,
        roxmltree::ParsingOptions {
            allow_dtd: true,
            ..Default::default()
        },
    )
    .unwrap();
    let link = document
        .descendants()
        .find(|node| node.has_tag_name("a") && node.attribute("href") == Some(path));
    let row = link
        .unwrap_or_else(|| panic!("no link to {path}"))
        .ancestors()
        .find(|node| node.has_tag_name("tr"))
        .unwrap();
    let all = row.children().filter(|node| node.has_tag_name("td"));
    all.map(|cell| {
        cell.descendants()
            .filter_map(|n| n.text())
            .next()
            .unwrap_or("")
            .to_string()
    })
    .collect()
}

#[test]
fn every_run_has_its_row() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let trained = train(&dir.path().join("nets & more/rse"), &["--lr", "0.05"]);
    let weights = at("nets & more/rse/weights.safetensors");
    let on = ["--weights", &weights, "--data", "synthetic:40", "--json"];
    let sweep = [
        "attack", "cw", "--c", "1,100", "--steps", "5", "--count", "4",
    ];
    json(&[&sweep[..], &on, &["--out", &at("sweep")]].concat());
    let certify = ["certify", "--sigma", "0.2", "--n", "100", "--count", "3"];
    json(&[&certify[..], &on, &["--out", &at("certified")]].concat());
    json(&["report", &at("sweep"), "--json", "--out", &at("page")]);
    let folder = dir.path().display().to_string();
    let found = json(&["index", &folder, "--json"]);
    let mut kinds: Vec<(&str, &str)> = found["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| (run["path"].as_str().unwrap(), run["kind"].as_str().unwrap()))
        .collect();
    kinds.sort();
    // The constants' own folders belong to the sweep.
    assert_eq!(
        kinds,
        [
            ("certified/", "certification"),
            ("nets & more/rse/", "network"),
            ("page/", "page"),
            ("sweep/", "attack"),
        ]
    );
    assert_eq!(found["unreadable"], serde_json::json!([]));
    let page = std::fs::read_to_string(dir.path().join("index.html")).unwrap();
    let network = cells(&page, "./nets%20%26%20more/rse/");
    let accuracy = trained["final"]["test_accuracy"].as_f64().unwrap();
    assert_eq!(
        network[..5],
        ["nets & more/rse", "small", "rse", "synthetic:40", "1"]
    );
    assert!((network[5].parse::<f64>().unwrap() - 100.0 * accuracy).abs() < 0.051);
    let attack = cells(&page, "./sweep/");
    assert_eq!(attack[1], "cw, 2 constants to c = 100.0");
    assert_eq!(attack[3], "4");
    assert_eq!(cells(&page, "./certified/")[2..4], ["0.2", "3"]);
    assert_eq!(cells(&page, "./page/report.html")[0], "Attacks");

    // A damaged report is named, and the others are listed all the same.
    std::fs::write(Path::new(&at("sweep")).join("report.json"), "{").unwrap();
    let output = run(&["index", &folder]);
    assert!(output.status.success());
    assert!(text(&output.stderr).contains("left out: ") && text(&output.stderr).contains("sweep"));
    let page = std::fs::read_to_string(dir.path().join("index.html")).unwrap();
    assert!(!page.contains("./sweep/") && page.contains("./page/report.html"));
}

#[test]
fn where_there_is_nothing_it_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().display().to_string();
    refused(&["index", &folder], 1, "no runs in");
    refused(&["index", &format!("{folder}/nowhere")], 1, "is no folder");
    assert!(!dir.path().join("index.html").exists());
}
