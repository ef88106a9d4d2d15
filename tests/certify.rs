//! Certificates: exact answers of linear classifiers, counts that do not depend on the batch, and the
//! command.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use noiseforge::attacks::Norm;
use noiseforge::certify::{
    Counts, Event, Outcome, Settings, Task, Verdict, average_radius, certified_accuracy,
};
use noiseforge::data::Dataset;
use noiseforge::ensemble::{Average, Classifier, Ensemble};
use noiseforge::io::npy;
use noiseforge::models::{Arch, Config, Model};
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose, Row, Rows};
use noiseforge::rng::Stream;
use noiseforge::selftest::linear::{Case, Linear};
use noiseforge::statistics::{
    binomial_tail, clopper_pearson_lower, clopper_pearson_upper, normal_cdf, normal_quantile,
};
use noiseforge::tensor::{Device, Shape, Tensor};

fn certify(sigma: f32, n0: u32, n: u32, alpha: f64) -> Settings {
    Settings {
        task: Task::Certify {
            n0,
            adaptive: false,
        },
        n,
        alpha,
        ..Settings::certify(sigma)
    }
}

fn adaptive(settings: &Settings) -> Settings {
    Settings {
        task: Task::Certify {
            n0: settings.n0(),
            adaptive: true,
        },
        ..settings.clone()
    }
}

/// The outcomes of all images, and how many draws were announced.
fn outcomes(settings: &Settings, model: &mut Model, data: &Dataset, ids: &[u32]) -> Vec<Outcome> {
    let mut found = vec![None; ids.len()];
    let mut draws = 0;
    settings
        .run(model, data, ids, &mut |event| {
            match event {
                Event::Draws(n) => draws += n,
                Event::Done(i, outcome) => assert!(found[i].replace(outcome).is_none()),
            }
            Ok(())
        })
        .unwrap();
    let each = u64::from(settings.n0()) + u64::from(settings.n);
    assert_eq!(draws, ids.len() as u64 * each);
    found.into_iter().map(Option::unwrap).collect()
}

fn dataset(linear: &Linear) -> Dataset {
    let classes = (0..linear.weights.len()).map(|c| c.to_string()).collect();
    Dataset::from_tensor(&linear.images, linear.labels.clone(), classes).unwrap()
}

/// Two classes on 2x2x1 images in the middle of the box: unit weights `w` and `-w`, so that the exact
/// distance is `|w . (x - 1/2)|`, here `distance` for every image.
fn two_classes(images: usize, distance: f64) -> Linear {
    let direction = [0.5f32, -0.5, 0.5, 0.5];
    let image = |i: usize| {
        let sign = if i.is_multiple_of(2) { 1.0 } else { -1.0 };
        direction.map(|d| (0.5 + sign * distance * f64::from(d)) as f32)
    };
    let pixels: Vec<f32> = (0..images).flat_map(image).collect();
    let weights = vec![direction.to_vec(), direction.map(|d| -d).to_vec()];
    let middle: f32 = direction.iter().map(|d| 0.5 * d).sum();
    let images = Tensor::from_vec(Shape::new(images, 2, 2, 1), pixels).unwrap();
    Linear::new(images, weights, vec![-middle, middle])
}

#[test]
fn a_radius_tends_to_the_exact_distance_from_below() {
    let linear = Linear::sized(Case::Interior, Shape::new(6, 4, 4, 3), 3, 1);
    let (data, ids) = (dataset(&linear), [0, 1, 2, 3, 4, 5]);
    let mut model = linear.model(0.0).unwrap();
    let exact: Vec<f64> = (0..6).map(|i| linear.distance(i, Norm::L2)).collect();
    let mut gaps = Vec::new();
    for n in [200, 2_000, 20_000] {
        // Of three classes 1 - pA > pB, so the limit is below the distance unless one rival dominates;
        // sigma that is small against the distance to the others makes it so.
        let settings = certify(0.25, 100, n, 0.001);
        let found = outcomes(&settings, &mut model, &data, &ids);
        for (i, o) in found.iter().enumerate() {
            assert_eq!(o.counts.draws(), u64::from(n));
            assert_eq!(o.counts.selection.iter().sum::<u32>(), 100);
            assert!(
                o.radius <= exact[i],
                "image {i}: {} > {}",
                o.radius,
                exact[i]
            );
            assert!(o.class.is_none_or(|c| c == linear.labels[i]), "image {i}");
        }
        gaps.push(
            found
                .iter()
                .zip(&exact)
                .map(|(o, d)| d - o.radius)
                .sum::<f64>(),
        );
    }
    assert!(gaps[1] < gaps[0] && gaps[2] < gaps[1], "{gaps:?}");

    // Two classes, where pA = Phi(d/sigma): the bound is within the width of the estimate. The radius
    // of the share itself lies 5 standard errors from d with probability 6e-7, and the bound's share
    // at alpha = 0.001 3.1 standard errors below that; its slope is sigma / phi(1).
    let linear = two_classes(2, 0.25);
    let (data, n) = (dataset(&linear), 20_000);
    let mut model = linear.model(0.0).unwrap();
    let p = normal_cdf(1.0);
    let error = (p * (1.0 - p) / f64::from(n)).sqrt() * 0.25 / 0.2419707;
    for o in outcomes(&certify(0.25, 100, n, 0.001), &mut model, &data, &[0, 1]) {
        let gap = 0.25 - o.radius;
        assert!(-2.0 * error < gap && gap < 9.0 * error, "{gap} for {error}");
    }
}

/// 10,000 certificates of an image at distance d, each with noise of its own: at most a share alpha
/// may exceed d. Clopper-Pearson's share is P(k >= k0) with k0 the smallest count whose bound exceeds
/// Phi(d/sigma): at most alpha, and known exactly; the number seen is binomial with that share, so a
/// right program leaves the range tested with probability 2e-6.
#[test]
fn certificates_beyond_the_exact_distance_are_as_rare_as_promised() {
    let (images, n, alpha, distance, sigma) = (10_000, 300, 0.05, 0.15, 0.25f32);
    let linear = two_classes(images, distance);
    let data = dataset(&linear);
    let ids: Vec<u32> = (0..images as u32).collect();
    let exact = linear.distance(0, Norm::L2);
    assert!((exact - distance).abs() < 1e-6);
    let settings = certify(sigma, 20, n, alpha);
    let found = outcomes(&settings, &mut linear.model(0.0).unwrap(), &data, &ids);
    let beyond = found.iter().filter(|o| o.radius > exact).count() as u64;

    let p = normal_cdf(exact / f64::from(sigma));
    let too_many = |k: &u64| clopper_pearson_lower(*k, u64::from(n), alpha).unwrap() > p;
    let k0 = (0..=u64::from(n)).find(too_many).unwrap();
    let share = binomial_tail(k0, u64::from(n), p).unwrap();
    assert!(share <= alpha);
    let at_least = binomial_tail(beyond, images as u64, share).unwrap();
    let at_most = 1.0 - binomial_tail(beyond + 1, images as u64, share).unwrap();
    assert!(
        at_least > 1e-6 && at_most > 1e-6,
        "{beyond} for a share of {share}"
    );
    // And in so many words; 5 standard errors of a share alpha.
    let most = alpha * images as f64 + 5.0 * (alpha * (1.0 - alpha) * images as f64).sqrt();
    assert!((beyond as f64) <= most, "{beyond}");
    // The wrong class is selected now and then, but not certified: of 10,000 such images none.
    assert!(
        found
            .iter()
            .zip(&linear.labels)
            .all(|(o, l)| o.class.is_none_or(|c| c == *l))
    );
}

/// The same for alpha = 0.001 with counts straight from the binomial distribution, also with early
/// abstentions: more than 30 of 10,000 false ones have probability below 1e-7 at a share of 0.001.
#[test]
fn judging_binomial_counts_keeps_alpha() {
    let (n, p) = (1000u32, 0.6);
    let settings = certify(1.0, 100, n, 0.001);
    let looks = adaptive(&settings).looks();
    assert_eq!(looks, [16, 63, 250]);
    let exact = normal_quantile(p).unwrap();
    let (mut beyond, mut beyond_adaptive, mut lost) = (0, 0, 0);
    for i in 0..10_000 {
        let mut stream = Stream::new(5, 99, i);
        let (mut k, mut stopped) = (0, false);
        for m in 1..=n {
            k += u32::from(stream.uniform() < p);
            if looks.contains(&m) {
                let upper = clopper_pearson_upper(u64::from(k), u64::from(m), 0.001 / 3.0);
                stopped |= upper.unwrap() <= 0.5;
            }
        }
        let counts = Counts {
            selection: vec![100, 0],
            estimation: vec![k, n - k],
        };
        let outcome = settings.judge(counts).unwrap();
        beyond += u32::from(outcome.radius > exact);
        beyond_adaptive += u32::from(!stopped && outcome.radius > exact);
        lost += u32::from(stopped && outcome.class.is_some());
    }
    assert!(binomial_tail(31, 10_000, 0.001).unwrap() < 1e-7);
    assert!(beyond <= 30, "{beyond}");
    assert!(
        beyond_adaptive <= beyond && lost <= 30,
        "{beyond_adaptive}, {lost}"
    );
}

/// An image on no class's side: early abstention saves draws, changes no certificate of the others,
/// and its draws are the first ones of the whole run.
#[test]
fn early_abstention_changes_no_certificate() {
    let linear = Linear::sized(Case::Interior, Shape::new(8, 3, 3, 1), 5, 3);
    let (data, ids) = (dataset(&linear), (0..8).collect::<Vec<u32>>());
    let mut model = linear.model(0.0).unwrap();
    // so much noise that no class has half of the draws of some images
    let settings = certify(2.0, 50, 3000, 0.001);
    let whole = outcomes(&settings, &mut model, &data, &ids);
    let early = outcomes(&adaptive(&settings), &mut model, &data, &ids);
    let mut stopped = 0;
    for (w, e) in whole.iter().zip(&early) {
        assert_eq!(w.counts.selection, e.counts.selection);
        if e.counts.draws() < 3000 {
            stopped += 1;
            assert!(
                adaptive(&settings)
                    .looks()
                    .contains(&(e.counts.draws() as u32))
            );
            assert_eq!((e.class, e.radius), (None, 0.0));
            let parts = e.counts.estimation.iter().zip(&w.counts.estimation);
            assert!(parts.into_iter().all(|(e, w)| e <= w));
        } else {
            assert_eq!(w, e);
        }
    }
    assert!(stopped > 0);
}

/// An RSE network whose mean scores are equal, so that noise decides.
fn noisy_model() -> Model {
    let config = Config::new(Arch::Small, Shape::new(1, 8, 8, 3), 4);
    let config = Config {
        width: 2,
        ..config.with_noise(0.2, 0.1)
    };
    let mut model = Model::new(config, 3).unwrap();
    let (x, _) = noisy_data(3).batch(&[0, 1, 2]).unwrap();
    let rows: Rows = (0..3).map(|id| Row { id, draw: 0 }).collect();
    let mut net = Ensemble::new(&mut model, 1, Purpose::Test, 50).unwrap();
    net.average = Average::Logits;
    let z = net.logits(&x, &rows).unwrap();
    let mean = |c: usize| (0..3).map(|i| z.data::<f32>()[i * 4 + c]).sum::<f32>() / 3.0;
    let mean: Vec<f32> = (0..4).map(mean).collect();
    let mut centred = false;
    model.visit_params(|name, param| {
        if name == "classifier.2.bias" {
            let bias = param.value.data_mut::<f32>();
            bias.iter_mut().zip(&mean).for_each(|(b, m)| *b -= m);
            centred = true;
        }
    });
    assert!(centred);
    model
}

fn noisy_data(n: usize) -> Dataset {
    let mut stream = Stream::new(1, 50, 0);
    let shape = Shape::new(n, 8, 8, 3);
    let pixels = (0..shape.len()).map(|_| stream.uniform() as f32).collect();
    let images = Tensor::from_vec::<f32>(shape, pixels).unwrap();
    let labels = (0..n as u32).map(|i| i % 4).collect();
    let classes = ["a", "b", "c", "d"].map(String::from).to_vec();
    Dataset::from_tensor(&images, labels, classes).unwrap()
}

#[test]
fn counts_do_not_depend_on_batch_neighbours_or_order() {
    let (mut model, data) = (noisy_model(), noisy_data(3));
    let ids = [10, 20, 30];
    let settings = certify(0.5, 10, 90, 0.01);
    let all = outcomes(&settings, &mut model, &data, &ids);
    // not everything is one class, else nothing is shown
    let varied = |o: &Outcome| o.counts.estimation.iter().filter(|&&k| k > 0).count() > 1;
    assert!(all.iter().any(varied), "{all:?}");
    for batch in [1, 7, 256] {
        for form in [settings.clone(), adaptive(&settings)] {
            let settings = Settings {
                batch: Some(batch),
                ..form
            };
            let found = outcomes(&settings, &mut model, &data, &ids);
            for (a, f) in all.iter().zip(&found) {
                if f.counts.draws() == 90 {
                    assert_eq!(a, f, "batch {batch}");
                }
            }
            if settings.looks().is_empty() {
                assert_eq!(found, all, "batch {batch}");
            }
        }
    }
    let turned = data.subset(&[2, 0]).unwrap();
    let found = outcomes(&settings, &mut model, &turned, &[30, 10]);
    assert_eq!(found, [all[2].clone(), all[0].clone()]);
    // the id names the noise
    let other = outcomes(&settings, &mut model, &turned, &[31, 11]);
    assert_ne!(other, found);
    // selection and estimation are different draws of one sequence
    let longer = outcomes(&certify(0.5, 10, 80, 0.01), &mut model, &data, &ids);
    for (a, b) in all.iter().zip(&longer) {
        assert_eq!(a.counts.selection, b.counts.selection);
    }
    let predict = Settings {
        task: Task::Predict,
        n: 100,
        ..settings
    };
    for (a, p) in all.iter().zip(outcomes(&predict, &mut model, &data, &ids)) {
        let sum = a.counts.selection.iter().zip(&a.counts.estimation);
        let sum: Vec<u32> = sum.map(|(a, b)| a + b).collect();
        assert_eq!(p.counts.estimation, sum);
    }
}

/// The certificate's words and those of the network's own layers have no block in common.
#[test]
fn the_noise_of_a_certificate_is_nobody_elses() {
    let shape = Shape::new(3, 4, 4, 3);
    let words = |purpose, layer, normals| -> HashSet<[u32; 4]> {
        let noise = Noise {
            key: Key::consecutive(0, purpose, 0, 3, 5),
            layer,
            sigma: 1.0,
            normals,
        };
        let words = noise::words(&noise, shape, &Device::Cpu).unwrap();
        words.into_iter().collect()
    };
    let ours = words(Purpose::Certify, 0, Normals::Precise);
    assert_eq!(ours.len(), 3 * 16);
    for layer in 0..20 {
        let own = words(Purpose::Eval, layer, Normals::Fast);
        assert!(ours.is_disjoint(&own), "layer {layer}");
    }
}

fn counts(selection: &[u32], estimation: &[u32]) -> Counts {
    Counts {
        selection: selection.to_vec(),
        estimation: estimation.to_vec(),
    }
}

#[test]
fn verdicts_from_counts() {
    let settings = certify(0.25, 100, 1000, 0.001);
    // The selection chooses, even where the estimate has another winner.
    let o = settings
        .judge(counts(&[20, 60, 20], &[990, 10, 0]))
        .unwrap();
    assert_eq!((o.class, o.radius), (None, 0.0));
    let o = settings
        .judge(counts(&[20, 60, 20], &[10, 990, 0]))
        .unwrap();
    assert_eq!(o.class, Some(1));
    assert!((o.statistic - 0.9760361872).abs() < 1e-9);
    assert!((o.radius - 0.494502).abs() < 1e-6);
    // 549 of 1000 abstain, 550 do not
    assert_eq!(
        settings.judge(counts(&[1, 0], &[549, 451])).unwrap().class,
        None
    );
    assert_eq!(
        settings.judge(counts(&[1, 0], &[550, 450])).unwrap().class,
        Some(0)
    );
    // Fewer draws than asked for are an early abstention.
    assert_eq!(
        settings.judge(counts(&[1, 0], &[900, 0])).unwrap().class,
        None
    );

    let predict = |votes: &[u32]| {
        let settings = Settings {
            task: Task::Predict,
            n: 100,
            ..settings.clone()
        };
        let none = vec![0; votes.len()];
        settings.judge(counts(&none, votes)).unwrap().class
    };
    assert_eq!(predict(&[34, 66]), None);
    assert_eq!(predict(&[33, 67]), Some(1));
    assert_eq!(predict(&[100]), Some(0));

    let verdict = |label, class, radius| Verdict {
        label,
        class,
        radius,
    };
    let all = [
        verdict(0, Some(0), 0.5),
        verdict(0, Some(1), 2.0),
        verdict(1, None, 0.0),
        verdict(1, Some(1), 0.25),
    ];
    assert_eq!(
        [0.0, 0.25, 0.3, 0.5, 0.6].map(|r| certified_accuracy(&all, r)),
        [2, 2, 1, 1, 0]
    );
    assert_eq!(average_radius(&all), 0.75 / 4.0);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let good = certify(0.25, 10, 100, 0.001);
    let refused = |settings: Settings, message: &str| {
        assert_eq!(settings.check().unwrap_err().to_string(), message);
    };
    refused(
        certify(0.0, 10, 100, 0.001),
        "certify: sigma: expected a finite number above 0, found 0",
    );
    refused(
        certify(0.25, 0, 100, 0.001),
        "certify: n0: expected at least 1 draw, found 0",
    );
    refused(
        certify(0.25, 10, 0, 0.001),
        "certify: n: expected at least 1 draw, found 0",
    );
    refused(
        certify(0.25, 10, 9, 0.001),
        "certify: n: expected at least n0, which is 10, found 9",
    );
    refused(
        certify(0.25, u32::MAX, u32::MAX, 0.001),
        "certify: n: expected n0 + n below 2^32, found 4294967295 + 4294967295",
    );
    for alpha in [0.0, 1.0, f64::NAN] {
        assert!(certify(0.25, 10, 100, alpha).check().is_err());
    }
    assert!(
        Settings {
            batch: Some(0),
            ..good.clone()
        }
        .check()
        .is_err()
    );
    let (mut model, data) = (noisy_model(), noisy_data(2));
    assert!(good.run(&mut model, &data, &[1], &mut |_| Ok(())).is_err());
    let linear = two_classes(2, 0.1);
    let error = good.run(&mut model, &dataset(&linear), &[1, 2], &mut |_| Ok(()));
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("certify: images: expected")
    );
}

// The command.

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_noiseforge"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Weights and data of a linear classifier in files, and what names them on the command line.
struct Files {
    dir: tempfile::TempDir,
    weights: String,
    data: String,
}

impl Files {
    fn new(linear: &Linear) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
        let (weights, images, labels) = (path("w.safetensors"), path("x.npy"), path("y.npy"));
        let mut model = linear.model(0.0).unwrap();
        model.checkpoint().unwrap().write(&weights).unwrap();
        let s = linear.images.shape();
        let pixels = linear.images.data::<f32>();
        npy::write_f32(images.as_ref(), &[s.n, s.h, s.w, s.c], pixels).unwrap();
        write_labels(labels.as_ref(), &linear.labels);
        let data = format!("npy:{images},{labels}");
        Files { dir, weights, data }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn args<'a>(&'a self, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        let out = out.to_str().unwrap();
        let mut args = vec!["certify", "--weights", &self.weights, "--data", &self.data];
        args.extend(["--sigma", "0.25", "--out", out, "--device", "cpu"]);
        args.extend(more);
        args
    }
}

/// An array of `u8`: the header of version 1.0, padded to 64 bytes and more.
fn write_labels(path: &Path, labels: &[u32]) {
    let header = format!(
        "{{'descr': '|u1', 'fortran_order': False, 'shape': ({},), }}",
        labels.len()
    );
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend(format!("{header:<117}\n").bytes());
    bytes.extend(labels.iter().map(|&l| l as u8));
    std::fs::write(path, bytes).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_command_writes_the_same_table_whatever_the_batch() {
    let linear = Linear::sized(Case::Interior, Shape::new(9, 4, 4, 1), 3, 2);
    let files = Files::new(&linear);
    let draws = ["--n0", "20", "--n", "500", "--json", "--skip", "2"];
    let mut tables = Vec::new();
    for (out, batch) in [("a", "1"), ("b", "64"), ("c", "5000"), ("a", "64")] {
        let out = files.out(out);
        let output = run(&[&files.args(&out, &draws)[..], &["--batch", batch]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(
            names(&out),
            ["certified-accuracy.svg", "certify.json", "certify.tsv"]
        );
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(
            report["scope"]
                .as_str()
                .unwrap()
                .contains("added to the image only")
        );
        assert_eq!(report["count"], 5);
        assert_eq!(report["n"], 500);
        assert_eq!(report["certified_accuracy"][0]["radius"], 0.0);
        assert_eq!(
            report["certified_accuracy"][0]["accuracy"],
            report["accuracy"]
        );
        let svg = std::fs::read_to_string(out.join("certified-accuracy.svg")).unwrap();
        assert!(roxmltree::Document::parse(&svg).is_ok());
        tables.push(std::fs::read(out.join("certify.tsv")).unwrap());
    }
    assert!(tables.iter().all(|t| *t == tables[0]));

    let table = String::from_utf8(tables[0].clone()).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split('\t').collect()).collect();
    assert_eq!(rows[0], ["idx", "label", "predict", "radius", "correct"]);
    let ids: Vec<&str> = rows[1..].iter().map(|r| r[0]).collect();
    assert_eq!(ids, ["0", "2", "4", "6", "8"]);
    // what the library says
    let positions = [0, 2, 4, 6, 8];
    let data = dataset(&linear).subset(&positions).unwrap();
    let settings = certify(0.25, 20, 500, 0.001);
    let mut model = linear.model(0.0).unwrap();
    let found = outcomes(&settings, &mut model, &data, &positions.map(|i| i as u32));
    for (row, o) in rows[1..].iter().zip(found) {
        assert_eq!(row[2], o.class.map_or("-1".to_string(), |c| c.to_string()));
        assert_eq!(row[3].parse::<f64>().unwrap(), o.radius);
        assert_eq!(row[4] == "1", row[1] == row[2]);
    }

    let out = files.out("predict");
    let output = run(&files.args(&out, &["--predict", "--n", "100", "--count", "2"]));
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(names(&out), ["predict.json", "predict.tsv"]);
    let table = std::fs::read_to_string(out.join("predict.tsv")).unwrap();
    assert_eq!(
        table.lines().next().unwrap(),
        "idx\tlabel\tpredict\tcorrect"
    );
    assert_eq!(table.lines().count(), 3);
}

/// Ctrl-C after the first image, then --resume: the table of a run never stopped.
#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_state_that_continues_to_the_same_table() {
    let linear = Linear::sized(Case::Interior, Shape::new(100, 6, 6, 3), 3, 2);
    let files = Files::new(&linear);
    let draws = ["--n0", "100", "--n", "20000"];
    let stopped = files.out("stopped");
    let child = Command::new(env!("CARGO_BIN_EXE_noiseforge"))
        .args(files.args(&stopped, &draws))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !stopped.join("state.json").exists() {
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "no image was done"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(
        message.contains("the same command with --resume continues"),
        "{message}"
    );
    assert_eq!(names(&stopped), ["state.json"]);

    // Nobody's run is thrown away, and none is continued as another.
    let output = run(&files.args(&stopped, &draws));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("add --resume to continue it"));
    let output = run(&files.args(&stopped, &["--n", "20001", "--resume"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("that run differs in n"),
        "{}",
        stderr(&output)
    );

    let output = run(&[&files.args(&stopped, &draws)[..], &["--resume"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let whole = files.out("whole");
    let output = run(&files.args(&whole, &draws));
    assert!(output.status.success(), "{}", stderr(&output));
    for file in ["certify.tsv", "certified-accuracy.svg"] {
        let bytes = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
        assert!(bytes(&stopped) == bytes(&whole), "{file}");
    }
    assert_eq!(names(&stopped), names(&whole));
}

#[test]
fn bad_arguments_are_refused_in_one_line() {
    let linear = two_classes(4, 0.1);
    let files = Files::new(&linear);
    let out = files.out("out");
    for (more, message) in [
        (
            &["--alpha", "0"][..],
            "alpha: expected a number between 0 and 1",
        ),
        (
            &["--alpha", "1"],
            "alpha: expected a number between 0 and 1",
        ),
        (
            &["--alpha", "NaN"],
            "alpha: expected a number between 0 and 1",
        ),
        (
            &["--sigma", "0"],
            "sigma: expected a finite number above 0, found 0",
        ),
        (
            &["--sigma", "-1"],
            "sigma: expected a finite number above 0, found -1",
        ),
        (&["--n", "0"], "n: expected at least 1 draw, found 0"),
        (
            &["--n", "50"],
            "n: expected at least n0, which is 100, found 50",
        ),
        (&["--n0", "0"], "n0: expected at least 1 draw, found 0"),
        (&["--data", "synthetic:40"], "images of the wrong size"),
        (&["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
    ] {
        let mut args = files.args(&out, &[]);
        match args.iter().position(|a| *a == more[0]) {
            Some(i) => args[i + 1] = more[1],
            None => args.extend(more),
        }
        let output = run(&args);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{more:?}: {error}");
        assert!(error.contains(message), "{more:?}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
        assert!(!out.exists(), "{more:?}");
    }
    // more classes than the network has
    let more = Linear::sized(Case::Interior, Shape::new(4, 2, 2, 1), 3, 2);
    let other = Files::new(&more);
    let mut args = files.args(&out, &[]);
    args[4] = &other.data;
    let output = run(&args);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("the data set has 3 classes, the network 2"));
    // a state that is none
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("state.json"), "{\"parameters\": 3").unwrap();
    let output = run(&files.args(&out, &["--n", "200", "--resume"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("not a state of this program's"));
}
