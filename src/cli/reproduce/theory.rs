//! Section 3.3.

use anyhow::Result;
use noiseforge::report::{Figure, Series, Table};
use serde_json::{Value, json};

use super::Book;
use super::settings::Defense;

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
    for defense in [Defense::None, book.plan().rse()] {
        let part = book.plan().theory(defense);
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
