//! The tables, and the pictures of the third.

use std::rc::Rc;

use anyhow::{Context, Result};
use noiseforge::data::Dataset;
use noiseforge::io::npy;
use noiseforge::report::{Cell, ImageGrid, Picture, Table};
use noiseforge::tensor::{Shape, Tensor};
use noiseforge::verdict::Report;
use serde_json::json;

use super::Book;
use super::experiments::{Point, points};
use super::figures::listed;
use super::paper;
use super::part::Part;
use super::settings::{BatchNorm, Defense, Network, TestNoise};

/// The settings, from the recipes themselves.
pub fn table1(book: &mut Book) {
    let mut table = Table::new(
        "Table 1: the defences' settings",
        ["network", "defence", "noiseforge train"],
    );
    let mut rows = Vec::new();
    for plan in &book.plans {
        let more = plan.more_defenses();
        for defense in plan.defenses().into_iter().chain(more) {
            let command = plan.train(defense).shown();
            let (network, name) = (plan.network.name(), defense.name());
            table.row([network.to_string(), name.to_string(), command.clone()]);
            rows.push(json!({"network": network, "defense": name, "command": command}));
        }
    }
    book.page.heading("Table 1");
    book.page.paragraph(
        "The paper gives RSE's noise as 0.4 on the image and 0.1 inside in its first version and as 0.2 and 0.1 later \
         (ResNeXt29: 0.1 and 0.1), 50 draws; distillation a temperature of 40; adversarial retraining FGSM with epsilon \
         from 0.1 to 0.3; robust optimisation noise of 0.05 and activations bounded by 1. The last three of each network \
         are not in the paper.",
    );
    book.page.table(&table);
    book.results.insert("table1".into(), json!(rows));
}

/// A row of Table 2 that was measured: the points at its constants, with the control.
fn measured(book: &mut Book, defense: Defense, batch_norm: BatchNorm) -> Result<Vec<Point>> {
    let plan = book.plan();
    let attack = plan.attack(defense, TestNoise::Own, batch_norm, plan.draws());
    points(&mut book.workshop, &attack)
}

pub fn table2(book: &mut Book) -> Result<()> {
    let mut header = vec!["defence".to_string(), "source".into(), "c = 0".into()];
    header.extend(paper::TABLE2_C.map(|c| format!("c = {c}")));
    let plan = book.plan().clone();
    let caption = format!(
        "Table 2: accuracy (%) under C&W, with 95% intervals; the paper's and the authors' rows are of VGG16, the others \
         of the {} trained here",
        plan.network.name()
    );
    let mut table = Table::new(caption, header);
    let mut results = Vec::new();
    // Of a hundred images no accuracy has decimals.
    let digits = if plan.scale.attack().count > 100 {
        2
    } else {
        0
    };
    for defense in plan.defenses() {
        let name = defense.name();
        // A defence is named in its first row.
        let mut row = |source: &str, cell: &dyn Fn(f64) -> String| {
            let named = if source == "paper" { name } else { "" };
            let cells = [0.0].into_iter().chain(paper::TABLE2_C).map(cell);
            let head = [named, source].map(str::to_string);
            table.row(head.into_iter().chain(cells));
        };
        let printed = paper::table2(defense).unwrap_or_default();
        row("paper", &|c| {
            let at = paper::TABLE2_C.iter().position(|of| *of == c);
            at.map_or(String::new(), |at| format!("{:.2}", printed[at]))
        });
        let theirs = paper::curve(Network::Vgg16, defense);
        row("authors' file", &|c| {
            let found = theirs.iter().find(|p| p.c == c);
            found.map_or(String::new(), |p| format!("{:.2}", p.accuracy))
        });
        for (of, batch_norm, source) in [
            (
                plan.as_published(defense),
                BatchNorm::Train,
                "here, as published",
            ),
            (defense, plan.protocol.batch_norm, "here, as one should"),
        ] {
            let points = measured(book, of, batch_norm)?;
            row(source, &|c| {
                let found = points.iter().find(|p| p.c == c);
                found.map_or(String::new(), |p| {
                    let [low, high] = p.interval.map(|v| format!("{:.0}", 100.0 * v));
                    format!("{:.digits$} ({low}-{high})", 100.0 * p.accuracy)
                })
            });
            results.push(json!({"defense": name, "protocol": source, "points": listed(&points)}));
        }
    }
    book.page.heading("Table 2");
    book.page.paragraph(
        "As published: the attack with batch norm in training mode, as the authors' code ran it, so that the images of a \
         batch depend on each other and the running statistics move while the attack runs; RSE's noise of 0.4 before the \
         second convolution, where their VGG16 puts it, and 0.1 elsewhere; distillation without the square of the \
         temperature in its loss. As one should: running statistics, noise of 0.2 on the image and 0.1 inside. c = 0 is \
         the control: the attack changes next to nothing.",
    );
    if plan.protocol.batch_norm == BatchNorm::Train {
        book.page
            .paragraph("This run asked for training mode in the second protocol, too.");
    }
    book.page.table(&table);
    book.results.insert("table2".into(), json!(results));
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
    let part: Rc<Part> = book.plan().targeted(defense, target);
    let folder = book.workshop.make(&part)?;
    let report = Report::read(&folder.join("report.json"))?;
    let row = report.images.iter().position(|image| image.id == SHIP);
    let (shape, pixels) = npy::read_f32(&folder.join("adv.npy"))?;
    let shape = Shape::new(shape[0], shape[1], shape[2], shape[3]);
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
    for defense in book.plan().defenses() {
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
    for defense in book.plan().defenses() {
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
