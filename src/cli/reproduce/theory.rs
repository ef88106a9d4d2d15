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
        "at the predicted class",
        "trace of the Hessian",
        "largest gradient",
    ];
    let mut table = Table::new(
        "Section 3.3, in nats, ± standard errors: the first three with the network's own noise (inequality 5), the others without",
        header,
    );
    let mut figure = Figure::new(
        "Equation 7: loss added by noise on the image, over sigma^2 / 2",
        "sigma",
        "nats",
    )
    .log_x();
    let mut results = Vec::new();
    for defense in [Defense::None, book.plan().rse()] {
        let part = book.plan().theory(defense);
        let said = book.workshop.said(&part)?;
        let name = defense.name();
        let losses = &said["losses"];
        let estimates = [
            (&losses["expected"], 3),
            (&losses["ensemble"], 3),
            (&losses["predicted"], 3),
            (&said["trace"], 1),
            (&said["slope"], 2),
        ];
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let both = |e: &Value| (number(&e["mean"]), number(&e["error"]));
        let shown = |(estimate, digits): (&Value, usize)| {
            let (mean, error) = both(estimate);
            format!("{mean:.digits$} ± {error:.digits$}")
        };
        let cells = estimates.map(shown);
        table.row([name.to_string()].into_iter().chain(cells));
        let mut measured = Vec::new();
        let mut ends = Vec::new();
        let mut predicted = Vec::new();
        let (trace, _) = both(&said["trace"]);
        for added in said["added"].as_array().into_iter().flatten() {
            let sigma = number(&added["sigma"]);
            let (mean, error) = both(&added["measured"]);
            let scale = 2.0 / (sigma * sigma);
            measured.push((sigma, scale * mean));
            ends.push((scale * (mean - error), scale * (mean + error)));
            predicted.push((sigma, trace));
        }
        figure = figure
            .series(Series::new(format!("{name}, measured"), measured).errors(ends))
            .series(Series::new(format!("{name}, trace"), predicted));
        results.push(json!({"defense": name, "measured": said}));
    }
    book.page.heading("Theory");
    book.page.paragraph(
        "Jensen's inequality makes the loss of the mean prediction at most the mean loss, and the predicted class has the \
         largest mean probability. Noise on the image adds half its variance times the trace of the loss's Hessian, while \
         it is small: there the measured points lie on the trace. The largest gradient within 0.5 of an image is a lower bound of the loss's local Lipschitz constant.",
    );
    book.page.table(&table);
    book.figure("theory", figure);
    book.results.insert("theory".into(), json!(results));
    Ok(())
}
