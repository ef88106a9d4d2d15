//! The figures of curves.

use std::rc::Rc;

use anyhow::Result;
use noiseforge::report::{Figure, Series};
use noiseforge::verdict::Report;
use serde_json::{Value, json};

use super::Book;
use super::experiments::{Plan, Point, point, points};
use super::paper;
use super::part::Part;
use super::settings::{DRAWS, Defense, Network, Scale, TestNoise};

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

/// Accuracy against `x`.
pub fn accuracy(title: impl Into<String>, x: &str) -> Figure {
    Figure::new(title, x, "accuracy").percent_y()
}

/// Points, in results.json.
pub fn listed(points: &[Point]) -> Value {
    let one = |p: &Point| json!({"c": p.c, "accuracy": p.accuracy, "interval": p.interval, "rms_l2": p.rms});
    points.iter().map(one).collect()
}

/// A network under attack: a curve.
pub struct Case {
    pub name: String,
    pub defense: Defense,
    pub noise: TestNoise,
}

impl Case {
    fn new(name: impl Into<String>, defense: Defense, noise: TestNoise) -> Self {
        Case {
            name: name.into(),
            defense,
            noise,
        }
    }

    /// Figure 2's.
    pub fn where_the_noise_is(plan: &Plan) -> Vec<Case> {
        let rse = plan.rse();
        let Defense::Rse { init, inner, .. } = rse else {
            unreachable!("the paper's RSE")
        };
        let (own, test_only) = (TestNoise::Own, TestNoise::Set(init, inner));
        vec![
            Case::new("noise in training and at test", rse, own),
            Case::new("noise in training only", rse, TestNoise::Set(0.0, 0.0)),
            Case::new("noise at test only", Defense::None, test_only),
            Case::new("no noise", Defense::None, own),
        ]
    }

    /// Defences with their own noise.
    pub fn of(defenses: impl IntoIterator<Item = Defense>) -> Vec<Case> {
        let case = |defense: Defense| Case::new(defense.name(), defense, TestNoise::Own);
        defenses.into_iter().map(case).collect()
    }
}

/// Curves under the paper's attack, against c and against distance.
pub struct Curves {
    pub against_c: Figure,
    pub against_distance: Figure,
    pub results: Vec<Value>,
}

impl Curves {
    /// Without curves, under this title.
    pub fn new(title: &str) -> Self {
        Curves {
            against_c: accuracy(title, "c").log_x(),
            against_distance: accuracy(format!("{title}, against distance"), "RMS L2 distance"),
            results: Vec::new(),
        }
    }

    /// With the curve of an attack.
    pub fn attacked(mut self, book: &mut Book, name: &str, attack: &Rc<Part>) -> Result<Self> {
        let points = points(&mut book.workshop, attack)?;
        self.add(name, &points);
        Ok(self)
    }

    fn add(&mut self, name: &str, points: &[Point]) {
        let (c, distance) = (&mut self.against_c, &mut self.against_distance);
        c.series.push(by_c(name, points));
        distance.series.push(by_distance(name, points));
        self.results
            .push(json!({"name": name, "points": listed(points)}));
    }

    /// Adds both figures to the page and the folder. Returns the points.
    pub fn add_to(self, book: &mut Book, key: &str) -> Value {
        book.figure(key, self.against_c);
        book.figure(&format!("{key}-distance"), self.against_distance);
        json!(self.results)
    }
}

pub fn fig2(book: &mut Book) -> Result<()> {
    let plan = book.plan().clone();
    let mut curves = Curves::new("Figure 2: where the noise is");
    for case in Case::where_the_noise_is(&plan) {
        let attack = plan.attack(
            case.defense,
            case.noise,
            plan.protocol.batch_norm,
            plan.draws(),
        );
        curves = curves.attacked(book, &case.name, &attack)?;
    }
    book.page.heading("Figure 2");
    book.page.paragraph(
        "The paper: noise is needed in training and at test; with noise at test only, clean accuracy falls to about 20%.",
    );
    let points = curves.add_to(book, "fig2");
    book.results.insert("fig2".into(), points);
    Ok(())
}

pub fn fig3(book: &mut Book) -> Result<()> {
    let plan = book.plan().clone();
    let mut curves = Curves::new("Figure 3: amounts of noise, one draw");
    let levels = [(0.1, 0.05), (0.2, 0.1), (0.3, 0.2)];
    let noisy = levels.map(|(init, inner)| {
        let name = format!("{init} on the image, {inner} inside");
        (name, plan.rse_with(init, inner))
    });
    let none = ("no noise".to_string(), Defense::None);
    for (name, defense) in [none].into_iter().chain(noisy) {
        let attack = plan.attack(defense, TestNoise::Own, plan.protocol.batch_norm, 1);
        curves = curves.attacked(book, &name, &attack)?;
    }
    book.page.heading("Figure 3");
    book.page.paragraph(
        "The paper: more noise costs clean accuracy and withstands larger c. Verdicts of one draw each.",
    );
    let points = curves.add_to(book, "fig3");
    book.results.insert("fig3".into(), points);
    Ok(())
}

/// RSE's images at these constants, judged by so many draws.
fn judged(book: &mut Book, constants: &[f64], draws: usize) -> Result<Vec<Point>> {
    let plan = book.plan().clone();
    let rse = plan.rse();
    let attack = plan.attack(rse, TestNoise::Own, plan.protocol.batch_norm, DRAWS);
    if draws == DRAWS {
        let mut all = points(&mut book.workshop, &attack)?;
        all.retain(|p| constants.contains(&p.c));
        return Ok(all);
    }
    let one = |&c: &f64| -> Result<Point> {
        let part = plan.judged_by(&attack, rse, c, draws);
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
        let constants = book.plan().scale.attack().constants;
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
    let part = book.plan().accuracy_by_draws(book.plan().rse());
    let said = book.workshop.said(&part)?;
    let mut clean = Vec::new();
    for entry in said["accuracy_by_draws"].as_array().into_iter().flatten() {
        let number = |key: &str| entry[key].as_f64().unwrap_or(f64::NAN);
        clean.push((number("draws"), number("accuracy")));
    }
    let mut figure = accuracy("Figure 5: accuracy against draws", "draws").log_x();
    figure = figure.series(Series::new("clean, whole test set", clean.clone()));
    let mut results = vec![json!({"name": "clean", "points": clean})];
    let constants = match book.plan().scale {
        // Smaller ones hardly move the images.
        Scale::Quick => [0.1, 1.0],
        Scale::Paper => [0.03, 0.1],
    };
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
    book.page.heading("Figure 6");
    if book.plan().scale == Scale::Quick {
        book.page.paragraph(
            "The authors' curves are of VGG16 on all of CIFAR-10: their shapes may be compared, their heights not. \
             ResNeXt29 and Model A are not run at this scale.",
        );
    } else if !book.has(Network::ModelA) {
        book.page
            .paragraph("Model A was not run: there was no STL-10 (--stl stl10:DIR).");
    }
    let mut results = Vec::new();
    for plan in book.plans.clone() {
        results.push(fig6_of(book, &plan)?);
    }
    book.results.insert("fig6".into(), json!(results));
    Ok(())
}

/// All defences of one network. Returns their points.
fn fig6_of(book: &mut Book, plan: &Plan) -> Result<Value> {
    let network = plan.network.name();
    let mut curves = Curves::new(&format!("Figure 6: {network}"));
    let title = format!("Figure 6: {network}, distance against c");
    let mut moved = Figure::new(title, "c", "RMS L2 distance").log_x();
    for case in Case::of(plan.defenses()) {
        let (batch_norm, draws) = (plan.protocol.batch_norm, plan.draws());
        let attack = plan.attack(case.defense, case.noise, batch_norm, draws);
        let points = points(&mut book.workshop, &attack)?;
        curves.add(&case.name, &points);
        let points = points.iter().filter(|p| p.c > 0.0).map(|p| (p.c, p.rms));
        moved = moved.series(Series::new(&case.name, points.collect::<Vec<_>>()));
    }
    // The small CNN is beside the paper's first network.
    let theirs = match plan.network {
        Network::Small => Network::Vgg16,
        own => own,
    };
    let name = theirs.name();
    let mut by_c = accuracy(format!("The authors' files: {name}"), "c").log_x();
    let mut by_distance = accuracy(
        format!("The authors' files: {name}, against distance"),
        "RMS L2 distance",
    );
    for defense in plan.defenses() {
        let curve = paper::curve(theirs, defense);
        let at = |x: fn(&paper::Point) -> f64| -> Vec<(f64, f64)> {
            let attacked = curve.iter().filter(|p| p.c > 0.0);
            attacked.map(|p| (x(p), p.accuracy / 100.0)).collect()
        };
        by_c = by_c.series(Series::new(defense.name(), at(|p| p.c)));
        by_distance = by_distance.series(Series::new(defense.name(), at(|p| p.rms)));
    }
    let key = format!("fig6-{}", plan.network.file_name());
    let Curves {
        against_c,
        against_distance,
        results,
    } = curves;
    book.figure(&key, against_c);
    book.figure(&format!("{key}-authors"), by_c);
    book.figure(&format!("{key}-distance"), against_distance);
    book.figure(&format!("{key}-authors-distance"), by_distance);
    book.figure(&format!("{key}-moved"), moved);
    Ok(json!({"network": network, "data": plan.data, "defenses": results}))
}
