//! The tables and figures.

use std::rc::Rc;

use anyhow::{Context, Result};
use noiseforge::data::Dataset;
use noiseforge::io::npy;
use noiseforge::report::{Cell, Figure, ImageGrid, Picture, Series, Table};
use noiseforge::tensor::Tensor;
use noiseforge::verdict::Report;
use serde_json::{Value, json};

use super::Book;
use super::experiments::{
    DEFENSES, DRAWS, Defense, Point, Protocol, RSE, Scale, TestNoise, point, points,
};
use super::paper;
use super::part::Part;

fn percent(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}

/// `(x, accuracy)` with error bars.
fn curve(name: &str, points: &[Point], x: impl Fn(&Point) -> f64) -> Series {
    let at: Vec<(f64, f64)> = points.iter().map(|p| (x(p), p.accuracy)).collect();
    let ends: Vec<(f64, f64)> = points.iter().map(|p| p.interval.into()).collect();
    Series::new(name, at).errors(ends)
}

/// Without the control at c = 0, which has no place on a logarithmic axis.
fn by_c(name: &str, points: &[Point]) -> Series {
    let attacked: Vec<Point> = points.iter().copied().filter(|p| p.c > 0.0).collect();
    curve(name, &attacked, |p| p.c)
}

fn by_distance(name: &str, points: &[Point]) -> Series {
    curve(name, points, |p| p.rms)
}

fn accuracy(title: &str, x: &str) -> Figure {
    Figure::new(title, x, "accuracy")
        .percent_y()
        .range_y(0.0, 1.0)
}

fn listed(points: &[Point]) -> Value {
    let one = |p: &Point| json!({"c": p.c, "accuracy": p.accuracy, "interval": p.interval, "rms_l2": p.rms});
    points.iter().map(one).collect()
}

/// The settings, from the recipes themselves.
pub fn table1(book: &mut Book) {
    let mut table = Table::new(
        "Table 1: the defences' settings",
        ["defence", "noiseforge train"],
    );
    let mut rows = Vec::new();
    for defense in DEFENSES {
        let command = book.plan.train(defense).shown();
        table.row([defense.name().to_string(), command.clone()]);
        rows.push(json!({"defense": defense.name(), "command": command}));
    }
    book.page.heading("Table 1");
    book.page.paragraph(
        "The paper gives RSE's noise as 0.4 on the image and 0.1 inside in its first version and as 0.2 and 0.1 later \
         (ResNeXt29: 0.1 and 0.1), 50 draws; distillation a temperature of 40; adversarial retraining FGSM with epsilon \
         from 0.1 to 0.3; robust optimisation noise of 0.05 and activations bounded by 1.",
    );
    book.page.table(&table);
    book.results.insert("table1".into(), json!(rows));
}

/// An attack's curve in a protocol, with the network's own noise.
fn attacked(book: &mut Book, defense: Defense, protocol: Protocol) -> Result<Vec<Point>> {
    let attack = book.plan.attack(defense, TestNoise::Own, protocol, DRAWS);
    points(&mut book.workshop, &attack)
}

pub fn table2(book: &mut Book) -> Result<()> {
    let mut header = vec!["defence".to_string(), "source".into(), "c = 0".into()];
    header.extend(paper::TABLE2_C.map(|c| format!("c = {c}")));
    let network = book.plan.network();
    let caption = format!(
        "Table 2: accuracy (%) under C&W, with 95% intervals; the paper's and the authors' rows are of VGG16, the others \
         of the {network} trained here"
    );
    let mut table = Table::new(caption, header);
    let mut results = Vec::new();
    for defense in DEFENSES {
        let name = defense.name();
        let row = |source: &str, clean: String, cells: Vec<String>| {
            [vec![name.to_string(), source.to_string(), clean], cells].concat()
        };
        if let Some(numbers) = paper::table2(name) {
            let cells = numbers.map(|v| format!("{v:.2}")).to_vec();
            table.row(row("the paper", String::new(), cells));
        }
        if let (Defense::Rse { .. }, Some(curve)) = (defense, paper::vgg16(name)) {
            let cells = paper::TABLE2_C.iter().map(|c| {
                let found = curve.iter().find(|(at, ..)| at == c);
                found.map_or(String::new(), |(_, accuracy, _)| format!("{accuracy:.2}"))
            });
            table.row(row("the authors' file", String::new(), cells.collect()));
        }
        for (protocol, source) in [
            (Protocol::Published, "here, as published"),
            (Protocol::Evaluation, "here, evaluation mode"),
        ] {
            let points = attacked(book, defense, protocol)?;
            let cell = |c: f64| {
                let found = points.iter().find(|p| p.c == c);
                found.map_or(String::new(), |p| {
                    let [low, high] = p.interval.map(|v| format!("{:.0}", 100.0 * v));
                    format!("{} ({low}-{high})", percent(p.accuracy))
                })
            };
            table.row(row(source, cell(0.0), paper::TABLE2_C.map(cell).to_vec()));
            results.push(json!({"defense": name, "protocol": source, "points": listed(&points)}));
        }
    }
    book.page.heading("Table 2");
    book.page.paragraph(
        "As published: the attack with batch norm in training mode, as the authors' code ran it, so that the images of a \
         batch depend on each other and the running statistics move while the attack runs. Evaluation mode is how an \
         attack should be run. c = 0 is the control: the attack changes nothing.",
    );
    book.page.table(&table);
    book.results.insert("table2".into(), json!(results));
    Ok(())
}

/// Curves under the attack, against c and against distance.
struct Curves {
    against_c: Figure,
    against_distance: Figure,
    results: Vec<Value>,
}

impl Curves {
    /// `what` is figure `number`'s title.
    fn new(number: u32, what: &str) -> Self {
        let by_distance = format!("Figure {number}, against distance");
        Curves {
            against_c: accuracy(&format!("Figure {number}: {what}"), "c").log_x(),
            against_distance: accuracy(&by_distance, "RMS L2 distance"),
            results: Vec::new(),
        }
    }

    fn attacked(mut self, book: &mut Book, name: &str, attack: &Rc<Part>) -> Result<Self> {
        let points = points(&mut book.workshop, attack)?;
        self.against_c = self.against_c.series(by_c(name, &points));
        self.against_distance = self.against_distance.series(by_distance(name, &points));
        self.results
            .push(json!({"name": name, "points": listed(&points)}));
        Ok(self)
    }

    /// Adds them to the page, the folder and the results.
    fn add_to(self, book: &mut Book, key: &str) {
        book.figure(key, self.against_c);
        book.figure(&format!("{key}-distance"), self.against_distance);
        book.results.insert(key.into(), json!(self.results));
    }
}

pub fn fig2(book: &mut Book) -> Result<()> {
    let Defense::Rse { init, inner } = RSE else {
        unreachable!("the paper's RSE")
    };
    let cases = [
        ("noise in training and at test", RSE, TestNoise::Own),
        ("noise in training only", RSE, TestNoise::Set(0.0, 0.0)),
        (
            "noise at test only",
            Defense::None,
            TestNoise::Set(init, inner),
        ),
        ("no noise", Defense::None, TestNoise::Own),
    ];
    let mut curves = Curves::new(2, "where the noise is");
    for (name, defense, noise) in cases {
        let attack = book
            .plan
            .attack(defense, noise, Protocol::Evaluation, DRAWS);
        curves = curves.attacked(book, name, &attack)?;
    }
    book.page.heading("Figure 2");
    book.page.paragraph(
        "The paper: noise is needed in training and at test; with noise at test only, clean accuracy falls to about 20%.",
    );
    curves.add_to(book, "fig2");
    Ok(())
}

pub fn fig3(book: &mut Book) -> Result<()> {
    let levels = [(0.1, 0.05), (0.2, 0.1), (0.3, 0.2)];
    let mut curves = Curves::new(3, "amounts of noise, one draw");
    let noisy = levels.map(|(init, inner)| Defense::Rse { init, inner });
    for defense in [Defense::None].into_iter().chain(noisy) {
        let name = match defense {
            Defense::Rse { init, inner } => format!("{init} on the image, {inner} inside"),
            _ => "no noise".to_string(),
        };
        let attack = book
            .plan
            .attack(defense, TestNoise::Own, Protocol::Evaluation, 1);
        curves = curves.attacked(book, &name, &attack)?;
    }
    book.page.heading("Figure 3");
    book.page.paragraph(
        "The paper: more noise costs clean accuracy and withstands larger c. Verdicts of one draw each.",
    );
    curves.add_to(book, "fig3");
    Ok(())
}

/// RSE's images at these constants, judged by so many draws.
fn judged(book: &mut Book, constants: &[f64], draws: usize) -> Result<Vec<Point>> {
    let attack = book
        .plan
        .attack(RSE, TestNoise::Own, Protocol::Evaluation, DRAWS);
    if draws == DRAWS {
        let mut all = points(&mut book.workshop, &attack)?;
        all.retain(|p| constants.contains(&p.c));
        return Ok(all);
    }
    let one = |&c: &f64| -> Result<Point> {
        let part = book.plan.judged_by(&attack, RSE, c, draws);
        let folder = book.workshop.make(&part)?;
        let judged = point(&Report::read(&folder.join("report.json"))?)?;
        Ok(Point { c, ..judged })
    };
    constants.iter().map(one).collect()
}

pub fn fig4(book: &mut Book) -> Result<()> {
    let mut figure = accuracy("Figure 4: 1 and 50 draws", "RMS L2 distance");
    let mut results = Vec::new();
    for draws in [1, DRAWS] {
        let (.., constants) = book.plan.attack_settings();
        let points = judged(book, constants, draws)?;
        let name = if draws == 1 {
            "1 draw".to_string()
        } else {
            format!("{draws} draws")
        };
        figure = figure.series(by_distance(&name, &points));
        results.push(json!({"draws": draws, "points": listed(&points)}));
    }
    book.page.heading("Figure 4");
    book.page.paragraph(
        "The same adversarial images, judged by one draw and by the mean of 50. The paper: 50 draws are about 8 points \
         better.",
    );
    book.figure(
        "fig4",
        figure.caption("The undefended network's point of view is figure 6."),
    );
    book.results.insert("fig4".into(), json!(results));
    Ok(())
}

pub fn fig5(book: &mut Book) -> Result<()> {
    let part = book.plan.draws(RSE);
    let said = book.workshop.said(&part)?;
    let mut clean = Vec::new();
    for entry in said["accuracy_by_draws"].as_array().into_iter().flatten() {
        let number = |key: &str| entry[key].as_f64().unwrap_or(f64::NAN);
        clean.push((number("draws"), number("accuracy")));
    }
    let mut figure = accuracy("Figure 5: accuracy against draws", "draws").log_x();
    figure = figure.series(Series::new("clean, whole test set", clean.clone()));
    let mut results = vec![json!({"name": "clean", "points": clean})];
    let constants = [0.03, 0.1];
    let mut by_draws = Vec::new();
    for draws in [1, 2, 5, 10, 20, DRAWS] {
        by_draws.push((draws as f64, judged(book, &constants, draws)?));
    }
    for (i, c) in constants.into_iter().enumerate() {
        let at: Vec<(f64, f64)> = by_draws
            .iter()
            .map(|(draws, points)| (*draws, points[i].accuracy))
            .collect();
        let name = format!("C&W, c = {c}");
        figure = figure.series(Series::new(&name, at.clone()));
        results.push(json!({"name": name, "points": at}));
    }
    book.page.heading("Figure 5");
    book.page
        .paragraph("The paper: about ten draws are enough.");
    book.figure("fig5", figure);
    book.results.insert("fig5".into(), json!(results));
    Ok(())
}

pub fn fig6(book: &mut Book) -> Result<()> {
    let network = book.plan.network();
    let mut against_c = accuracy(&format!("Figure 6: accuracy against c, {network}"), "c").log_x();
    let mut distance = Figure::new("Figure 6: distance against c", "c", "RMS L2 distance").log_x();
    let mut against_distance = accuracy("Figure 6: accuracy against distance", "RMS L2 distance");
    let mut results = Vec::new();
    for defense in DEFENSES {
        let points = attacked(book, defense, Protocol::Evaluation)?;
        let name = defense.name();
        against_c = against_c.series(by_c(name, &points));
        against_distance = against_distance.series(by_distance(name, &points));
        let moved = points.iter().filter(|p| p.c > 0.0).map(|p| (p.c, p.rms));
        distance = distance.series(Series::new(name, moved.collect::<Vec<_>>()));
        results.push(json!({"defense": name, "points": listed(&points)}));
    }
    let mut theirs = accuracy("The authors' files: VGG16", "c").log_x();
    let mut theirs_by_distance =
        accuracy("The authors' files, against distance", "RMS L2 distance");
    for (name, curve) in paper::VGG16 {
        let at = |x: fn(&(f64, f64, f64)) -> f64| -> Vec<(f64, f64)> {
            curve.iter().map(|p| (x(p), p.1 / 100.0)).collect()
        };
        theirs = theirs.series(Series::new(name, at(|p| p.0)));
        theirs_by_distance = theirs_by_distance.series(Series::new(name, at(|p| p.2)));
    }
    book.page.heading("Figure 6");
    if book.plan.scale == Scale::Quick {
        book.page.paragraph(
            "The authors' curves are of VGG16 on all of CIFAR-10: their shapes may be compared, their heights not. \
             ResNeXt29 and Model A are not run at this scale.",
        );
    } else {
        book.page
            .paragraph("ResNeXt29 and, for want of STL-10, Model A: not run.");
    }
    book.figure("fig6", against_c);
    book.figure("fig6-authors", theirs);
    book.figure("fig6-distance", against_distance);
    book.figure("fig6-authors-distance", theirs_by_distance);
    book.figure("fig6-moved", distance);
    book.results.insert("fig6".into(), json!(results));
    Ok(())
}

/// The image of table 3: the second of the test set, CIFAR-10's ship.
const SHIP: u32 = 1;

/// What the targeted attack found for one target: the report's row and the image.
struct Targeted {
    report: Report,
    row: usize,
    /// `[n, h, w, c]`.
    images: Tensor,
}

fn targeted(book: &mut Book, defense: Defense, target: usize) -> Result<Targeted> {
    let part: Rc<Part> = book.plan.targeted(defense, target);
    let folder = book.workshop.make(&part)?;
    let report = Report::read(&folder.join("report.json"))?;
    let row = report.images.iter().position(|image| image.id == SHIP);
    let (shape, pixels) = npy::read_f32(&folder.join("adv.npy"))?;
    let shape = noiseforge::tensor::Shape::new(shape[0], shape[1], shape[2], shape[3]);
    Ok(Targeted {
        row: row.context("the attack did not reach the second image")?,
        report,
        images: Tensor::from_vec(shape, pixels)?,
    })
}

/// The classes that are not the image's own.
fn targets(test: &Dataset) -> Vec<usize> {
    let own = test.labels()[SHIP as usize] as usize;
    (0..test.classes().len())
        .filter(|&class| class != own)
        .collect()
}

pub fn table3(book: &mut Book, test: &Dataset) -> Result<()> {
    let targets = targets(test);
    let mut header = vec!["defence".to_string()];
    header.extend(targets.iter().map(|&t| test.classes()[t].clone()));
    let own = &test.classes()[test.labels()[SHIP as usize] as usize];
    let caption = format!(
        "Table 3: squared L2 distance of targeted C&W (c = 100) on the second test image ({own}); in brackets where the \
         ensemble does not see the target"
    );
    let mut table = Table::new(caption, header);
    let mut results = Vec::new();
    for defense in DEFENSES {
        let mut cells = vec![defense.name().to_string()];
        let mut row = Vec::new();
        for &target in &targets {
            let found = targeted(book, defense, target)?;
            let image = &found.report.images[found.row];
            let squared = format!("{:.3}", image.l2.powi(2));
            cells.push(if image.success {
                squared
            } else {
                format!("({squared})")
            });
            row.push(json!({
                "target": test.classes()[target], "squared_l2": image.l2.powi(2), "success": image.success,
            }));
        }
        table.row(cells);
        results.push(json!({"defense": defense.name(), "targets": row}));
    }
    book.page.heading("Table 3");
    book.page.paragraph(
        "One image, every target. The published attack works in the pixels without bounds; this one stays in the box.",
    );
    book.page.table(&table);
    book.results.insert("table3".into(), json!(results));
    Ok(())
}

pub fn fig7(book: &mut Book, test: &Dataset) -> Result<()> {
    let targets = targets(test);
    let columns = targets.iter().map(|&t| test.classes()[t].clone());
    let mut grid = ImageGrid::new("Figure 7: what table 3's attack adds, inverted", columns);
    let (original, _) = test.batch(&[SHIP as usize])?;
    for defense in DEFENSES {
        let mut cells = Vec::new();
        for &target in &targets {
            let found = targeted(book, defense, target)?;
            let image = &found.report.images[found.row];
            let adversarial = found.images.gather_rows(&[found.row])?;
            let picture = Picture::of_inverted_difference(&original, &adversarial, 0)?;
            let label = format!("{:.3}", image.l2.powi(2));
            cells.push(Cell::picture(picture).label(label).ok(!image.success));
        }
        grid.row(defense.name(), cells);
    }
    book.page.heading("Figure 7");
    book.page.image_grid(&grid);
    Ok(())
}

pub fn theory(book: &mut Book) -> Result<()> {
    let header = [
        "network",
        "mean loss",
        "loss of the mean",
        "loss at the predicted class",
        "trace of the Hessian",
        "largest gradient",
    ];
    let mut table = Table::new(
        "Section 3.3, in nats: the first three with the network's own noise (inequality 5), the others without",
        header,
    );
    let mut figure = Figure::new(
        "Equation 7: loss added by noise on the image",
        "sigma",
        "nats",
    )
    .log_x()
    .log_y();
    let mut results = Vec::new();
    for defense in [Defense::None, RSE] {
        let part = book.plan.theory(defense);
        let said = book.workshop.said(&part)?;
        let name = defense.name();
        let losses = &said["losses"];
        let estimates = [
            &losses["expected"],
            &losses["ensemble"],
            &losses["predicted"],
            &said["trace"],
            &said["slope"],
        ];
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let shown = |e: &Value| format!("{:.4} +- {:.4}", number(&e["mean"]), number(&e["error"]));
        let cells = estimates.iter().map(|e| shown(e));
        table.row([name.to_string()].into_iter().chain(cells));
        for (key, kind) in [("measured", "measured"), ("predicted", "sigma^2 / 2 trace")] {
            let added = said["added"].as_array().into_iter().flatten();
            let points = added.map(|a| (number(&a["sigma"]), number(&a[key]["mean"])));
            let points: Vec<_> = points.collect();
            figure = figure.series(Series::new(format!("{name}, {kind}"), points));
        }
        results.push(json!({"defense": name, "measured": said}));
    }
    book.page.heading("Theory");
    book.page.paragraph(
        "Jensen's inequality makes the loss of the mean prediction at most the mean loss, and the predicted class has the \
         largest mean probability. Noise on the image adds half its variance times the trace of the loss's Hessian, while \
         it is small. The largest gradient within 0.5 of an image is a lower bound of the loss's local Lipschitz constant.",
    );
    book.page.table(&table);
    book.figure("theory", figure);
    book.results.insert("theory".into(), json!(results));
    Ok(())
}
