//! Beyond the paper: figures 2 and 6 under attacks that know of the noise, at equal distance, and certificates.

use anyhow::{Context, Result};
use noiseforge::certify::{Verdict, curve};
use noiseforge::report::{Figure, Series, Table};
use noiseforge::statistics::wilson_of_shares;
use serde_json::{Value, json};

use super::Book;
use super::experiments::{Plan, reports};
use super::figures::{Case, Curves, accuracy};
use super::settings::{Defense, SMOOTHING};
use crate::cli::common::read_json;
use crate::cli::report::steps;

pub fn fig2(book: &mut Book) -> Result<()> {
    let plan = book.plan().clone();
    book.page.heading("Figure 2 under adaptive attacks");
    explain(book);
    let cases = Case::where_the_noise_is(&plan);
    let results = under_attack(book, &plan, "Figure 2", "fig2-adaptive", cases)?;
    book.results.insert("fig2-adaptive".into(), results);
    Ok(())
}

pub fn fig6(book: &mut Book) -> Result<()> {
    book.page.heading("Figure 6 under adaptive attacks");
    explain(book);
    let mut results = Vec::new();
    for plan in book.plans.clone() {
        let network = plan.network;
        let title = format!("Figure 6, {}", network.name());
        let key = format!("fig6-adaptive-{}", network.file_name());
        let defenses = plan.defenses().into_iter().chain(plan.more_defenses());
        let defenses = under_attack(book, &plan, &title, &key, Case::of(defenses))?;
        results.push(json!({"network": network.name(), "defenses": defenses}));
    }
    book.results.insert("fig6-adaptive".into(), json!(results));
    Ok(())
}

fn explain(book: &mut Book) {
    let settings = book.plan().scale.adaptive();
    book.page.paragraph(format!(
        "Every step of these attacks follows the mean over {} draws of the noise (EOT), where there is noise. First the \
         paper's attack at fixed c; then C&W's search for the smallest distance, and APGD for random networks (on the \
         cross-entropy and the DLR loss) within L2 radii, both of which compare, and confirm their successes, over draws \
         as well. The search stops at the boundary, where verdicts on a random network are a coin's throws, and so \
         overstates what noise is worth; APGD goes on. {} images, each judged {} times by the mean probability of {} draws that no attack has seen.",
        settings.eot,
        settings.count,
        settings.verdicts,
        super::settings::DRAWS
    ));
}

/// Three figures: C&W with EOT against c and distance, the search, APGD. Returns their points.
fn under_attack(
    book: &mut Book,
    plan: &Plan,
    title: &str,
    key: &str,
    cases: Vec<Case>,
) -> Result<Value> {
    let radii = plan.scale.adaptive().radii;
    let mut fixed = Curves::new(&format!("{title}: C&W with EOT at fixed c"));
    let mut searched = accuracy(format!("{title}: C&W's search with EOT"), "L2 distance");
    let mut within = accuracy(format!("{title}: APGD for random networks"), "L2 radius");
    let mut header = vec!["".to_string(), "clean".into()];
    header.extend(radii.iter().map(|r| format!("L2 {r}")));
    let caption = format!("{title}: accuracy (%) under APGD, with 95% intervals");
    let mut table = Table::new(caption, header);
    let mut results = Vec::new();
    for Case {
        name,
        defense,
        noise,
    } in cases
    {
        let attack = plan.attack_with_eot(defense, noise);
        fixed = fixed.attacked(book, &name, &attack)?;
        let search = reports(&mut book.workshop, &plan.search(defense, noise))?;
        let found = &search.first().context("a search without a report")?.summary;
        searched = searched.series(Series::new(&name, steps(&found.accuracy_by_l2)));

        let mut points = Vec::new();
        let mut ends = Vec::new();
        let mut cells = vec![name.clone()];
        for &radius in radii {
            let apgd = reports(&mut book.workshop, &plan.apgd(defense, noise, radius))?;
            let found = &apgd.first().context("an attack without a report")?.summary;
            let mut add = |radius: f64, accuracy: f64| -> Result<()> {
                let interval = wilson_of_shares(accuracy, found.count as u64, 0.05)?;
                points.push((radius, accuracy));
                ends.push((interval.low, interval.high));
                let [accuracy, low, high] =
                    [accuracy, interval.low, interval.high].map(|v| 100.0 * v);
                cells.push(format!("{accuracy:.1} ({low:.0}-{high:.0})"));
                Ok(())
            };
            if radius == radii[0] {
                add(0.0, found.clean_accuracy)?;
            }
            add(radius, found.robust_accuracy)?;
        }
        results.push(json!({"name": name, "accuracy_by_l2": found.accuracy_by_l2, "apgd": points}));
        within = within.series(Series::new(&name, points).errors(ends));
        table.row(cells);
    }
    book.page.table(&table);
    book.figure(&format!("{key}-apgd"), within);
    book.figure(&format!("{key}-search"), searched);
    let fixed = fixed.add_to(book, &format!("{key}-cw"));
    Ok(json!({"at_distance": results, "at_c": fixed}))
}

/// Certified accuracy of Cohen et al. 2019's ResNet-110 on CIFAR-10 for a sigma of 0.25, at multiples of 0.25.
const COHEN: [(f64, f64); 4] = [(0.0, 0.77), (0.25, 0.60), (0.5, 0.43), (0.75, 0.27)];

pub fn certified(book: &mut Book) -> Result<()> {
    let plan = book.plan().clone();
    let mut figure =
        Figure::new("Certified accuracy", "L2 radius", "certified accuracy").percent_y();
    let radii = COHEN.map(|(radius, _)| radius);
    let mut header = vec!["network".to_string(), "sigma".into()];
    header.extend(radii.iter().map(|r| format!("L2 {r}")));
    let mut table = Table::new("Certified accuracy (%)", header);
    let mut results = Vec::new();
    for defense in [plan.rse(), SMOOTHING, Defense::None] {
        let name = defense.name();
        let sigma = match defense {
            Defense::Rse { init, .. } => init,
            Defense::Smoothing { sigma } => sigma,
            // What noise does to a network that has never seen any.
            _ => 0.2,
        };
        let folder = book.workshop.make(&plan.certify(defense, sigma))?;
        let found = certificates(&folder.join("certify.json"))?;
        let at = |radius: f64| noiseforge::certify::certified_accuracy(&found.verdicts, radius);
        let share = |count: usize| count as f64 / found.verdicts.len() as f64;
        let mut row = vec![name.to_string(), sigma.to_string()];
        row.extend(radii.map(|r| format!("{:.1}", 100.0 * share(at(r)))));
        table.row(row);
        let points = curve(&found.verdicts, found.largest);
        let at_radii = radii.map(|r| (r, share(at(r))));
        results.push(json!({"name": name, "sigma": sigma, "certified": at_radii}));
        figure = figure.series(Series::new(format!("{name}, sigma {sigma}"), points));
    }
    let mut row = vec!["ResNet-110 (Cohen et al. 2019)".to_string(), "0.25".into()];
    row.extend(COHEN.map(|(_, accuracy)| format!("{:.1}", 100.0 * accuracy)));
    table.row(row);
    figure = figure.series(Series::new(
        "ResNet-110 of Cohen et al. 2019, sigma 0.25",
        COHEN,
    ));
    book.page.heading("Certified accuracy");
    book.page.paragraph(
        "Randomised smoothing: the class that wins under noise of sigma on the image cannot change within the radius, \
         with a confidence of 99.9% for each image. The theorem covers the noise on the image only: RSE's inner noise is \
         part of the random classifier that is smoothed and adds no radius.",
    );
    book.page.table(&table);
    book.figure("certified", figure);
    book.results.insert("certified".into(), json!(results));
    Ok(())
}

/// What a certification found.
struct Certificates {
    verdicts: Vec<Verdict>,
    /// The largest radius that its number of draws can certify.
    largest: f64,
}

fn certificates(file: &std::path::Path) -> Result<Certificates> {
    let cannot = || format!("cannot read {}", file.display());
    let report = read_json(file)?;
    let class = |value: &Value| value.as_u64().and_then(|class| u32::try_from(class).ok());
    let verdict = |image: &Value| {
        Some(Verdict {
            label: class(&image["label"])?,
            class: class(&image["predict"]),
            radius: image["radius"].as_f64()?,
        })
    };
    let images = report["images"]
        .as_array()
        .map(|all| all.iter().map(verdict));
    Ok(Certificates {
        verdicts: images.and_then(Iterator::collect).with_context(cannot)?,
        largest: report["largest_radius"].as_f64().with_context(cannot)?,
    })
}
