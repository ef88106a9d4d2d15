//! `noiseforge report`: tables and figures of attacks, from their reports alone.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use noiseforge::report::{Figure, Report as Page, Series, Table};
use noiseforge::verdict::{Report, Summary};
use serde_json::{Value, json};

use super::common::{percent, prepare_folder, say};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  noiseforge attack cw --weights rse.safetensors --data cifar10:data --out runs/cw-rse
  noiseforge attack cw --weights plain.safetensors --data cifar10:data --out runs/cw-plain
  noiseforge report RSE=runs/cw-rse plain=runs/cw-plain --out runs/page

Writes DIR/report.html, one self-contained page, and its figures as DIR/*.svg. Every number follows from
the images' rows in the report.json files: nothing is computed again. Attacks on the same weights and images
within the same bound (or without one) are also put together: an image counts by the one that did best on it.")]
pub struct Args {
    /// Attacks: their folders or report.json files, with or without a name to show
    #[arg(value_name = "[NAME=]DIR", required = true)]
    runs: Vec<String>,
    /// Folder for the page
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// One command's attacks: several constants of C&W, or one.
struct Run {
    name: String,
    path: PathBuf,
    reports: Vec<Report>,
}

impl Run {
    fn read(argument: &str) -> Result<Run> {
        let (name, path) = match argument.split_once('=') {
            // A path may hold the sign, too.
            Some((name, path)) if !Path::new(argument).exists() => (Some(name), Path::new(path)),
            _ => (None, Path::new(argument)),
        };
        let file = if path.is_dir() {
            path.join("report.json")
        } else {
            path.to_path_buf()
        };
        let folder = file.parent().unwrap_or(Path::new(""));
        let named = || {
            folder
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        let name = name.map(str::to_string).or_else(named).unwrap_or_default();
        Ok(Run {
            name,
            reports: Report::read_all(&file)?,
            path: path.to_path_buf(),
        })
    }

    /// A report's name among all.
    fn label(&self, report: &Report) -> String {
        match (&report.parameters.get("c"), self.reports.len()) {
            (Some(Value::Number(c)), 2..) => format!("{}, c = {c}", self.name),
            _ => self.name.clone(),
        }
    }
}

/// `{"runs": [{"name", "path", "attacks": [the reports without their images]}], "together": [{"weights",
/// "attacks", "robust_accuracy"}], "page"}`.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let runs = args.runs.iter().map(|argument| Run::read(argument));
    let runs = runs.collect::<Result<Vec<_>>>()?;
    for (i, run) in runs.iter().enumerate() {
        if runs[..i].iter().any(|other| other.name == run.name) {
            bail!(
                "two attacks are called {:?}: give one a name, NAME={}",
                run.name,
                run.path.display()
            );
        }
    }
    prepare_folder(&args.out)?;
    let together = together(&runs);
    let figures = figures(&runs);
    let page = page(&runs, &together, &figures);
    let file = args.out.join("report.html");
    page.write(&file)?;
    for (name, figure) in &figures {
        let path = args.out.join(format!("{name}.svg"));
        figure
            .write_svg(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if json {
        let without_images = |report: &Report| -> Result<Value> {
            let mut value = serde_json::to_value(report)?;
            value.as_object_mut().map(|fields| fields.remove("images"));
            Ok(value)
        };
        let listed = runs.iter().map(|run| {
            let attacks = run
                .reports
                .iter()
                .map(without_images)
                .collect::<Result<Vec<_>>>()?;
            Ok(json!({"name": run.name, "path": run.path, "attacks": attacks}))
        });
        let listed = listed.collect::<Result<Vec<_>>>()?;
        let together = together.iter().map(|t| {
            json!({"weights": t.weights, "attacks": t.names, "robust_accuracy": t.robust_accuracy})
        });
        let together = together.collect::<Vec<_>>();
        say!(
            "{:#}",
            json!({"runs": listed, "together": together, "page": file})
        );
    } else {
        say!("{}", table(&runs));
        if let Some(table) = table_of_together(&together) {
            say!("{table}");
        }
        say!("{}", file.display());
    }
    Ok(())
}

/// Several attacks on the same images and weights, within the same bound, judged alike.
struct Together {
    weights: String,
    names: Vec<String>,
    robust_accuracy: f64,
}

fn together(runs: &[Run]) -> Vec<Together> {
    let all = runs
        .iter()
        .flat_map(|run| run.reports.iter().map(move |report| (run, report)));
    let mut groups: Vec<(String, Vec<(String, &Report)>)> = Vec::new();
    for (run, report) in all {
        let ids: Vec<u32> = report.images.iter().map(|image| image.id).collect();
        let setting = |name| report.parameters.get(name);
        // What may be done to an image: attacks of other budgets say nothing together.
        let budget = (
            setting("norm").filter(|_| report.robustbench.eps.is_some()),
            report.robustbench.eps,
        );
        let jury = (&report.rule, report.ensemble, report.verdicts);
        let key = format!(
            "{:?}",
            (setting("weights"), setting("data"), ids, budget, jury)
        );
        let entry = (run.label(report), report);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, group)) => group.push(entry),
            None => groups.push((key, vec![entry])),
        }
    }
    let several = groups.into_iter().filter(|(_, group)| group.len() > 1);
    several
        .map(|(_, group)| {
            let first = group[0].1;
            let images = first.images.len();
            let share = |i: usize| {
                let least = group.iter().map(|(_, report)| {
                    let image = &report.images[i];
                    image.right.min(image.clean_right)
                });
                least.min().unwrap_or(0) as f64 / first.verdicts as f64
            };
            let weights = first.parameters.get("weights").and_then(Value::as_str);
            Together {
                weights: weights.unwrap_or_default().to_string(),
                robust_accuracy: (0..images).map(share).sum::<f64>() / images as f64,
                names: group.into_iter().map(|(name, _)| name).collect(),
            }
        })
        .collect()
}

fn table(runs: &[Run]) -> Table {
    let header = [
        "attack",
        "images",
        "clean %",
        "robust %",
        "95% interval",
        "success %",
        "median L2",
        "mean L2",
        "RMS L2",
        "max Linf",
        "forwards/image",
    ];
    let mut table = Table::new(
        "Success among images that were right before, mean L2 of successes",
        header,
    );
    let distance = |v: Option<f64>, none: &str| v.map_or(none.to_string(), |v| format!("{v:.4}"));
    for run in runs {
        for report in &run.reports {
            let s = &report.summary;
            let [low, high] = s.robust_accuracy_interval;
            table.row([
                run.label(report),
                s.count.to_string(),
                percent(s.clean_accuracy),
                percent(s.robust_accuracy),
                format!("{} - {}", percent(low), percent(high)),
                s.success_rate_of_correct.map_or("-".to_string(), percent),
                distance(s.median_l2, "inf"),
                distance(s.mean_l2_of_successes, "-"),
                distance(Some(s.rms_l2), "-"),
                distance(Some(s.max_linf), "-"),
                format!("{:.0}", s.forward_passes as f64 / s.count as f64),
            ]);
        }
    }
    table
}

/// Nothing where no two attacks belong together.
fn table_of_together(together: &[Together]) -> Option<Table> {
    let header = ["weights", "attacks", "robust %"];
    let caption = "Attacks put together: an image counts by the one that did best on it";
    let mut table = Table::new(caption, header);
    for group in together {
        let robust = percent(group.robust_accuracy);
        table.row([group.weights.clone(), group.names.join("; "), robust]);
    }
    (!together.is_empty()).then_some(table)
}

/// The points of a curve that falls in steps.
pub fn steps(curve: &[[f64; 2]]) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    for &[x, y] in curve {
        if let Some(&(_, before)) = points.last() {
            points.push((x, before));
        }
        points.push((x, y));
    }
    points
}

/// Figures that the attacks have points for, by the names of their files.
fn figures(runs: &[Run]) -> Vec<(&'static str, Figure)> {
    let single = |run: &&Run| run.reports.len() == 1;
    let searches = |run: &&Run| single(run) && run.reports[0].robustbench.eps.is_none();
    let curves = |figure: Figure, of: &dyn Fn(&Summary) -> &Vec<[f64; 2]>, runs: &[&Run]| {
        runs.iter().fold(figure.percent_y(), |figure, run| {
            figure.series(Series::new(&run.name, steps(of(&run.reports[0].summary))))
        })
    };
    let figure = |title: &str, x: &str| Figure::new(title, x, "robust accuracy");
    let mut found = Vec::new();
    let searching: Vec<&Run> = runs.iter().filter(searches).collect();
    if !searching.is_empty() {
        let l2 = figure("Accuracy against distance", "L2 distance");
        let l2 = curves(l2, &|s| &s.accuracy_by_l2, &searching);
        let caption = "Share of the images that stay right when each may be moved so far.";
        found.push(("accuracy-l2", l2.caption(caption)));
        let linf = figure("Accuracy against largest change", "Linf distance");
        found.push((
            "accuracy-linf",
            curves(linf, &|s| &s.accuracy_by_linf, &searching),
        ));
    }
    let swept: Vec<&Run> = runs.iter().filter(|run| run.reports.len() > 1).collect();
    if !swept.is_empty() {
        let sweep = |figure: Figure, x: &dyn Fn(&Report) -> f64| {
            swept.iter().fold(figure.percent_y(), |figure, run| {
                let point = |r: &Report| (x(r), r.summary.robust_accuracy);
                let ends = |r: &Report| r.summary.robust_accuracy_interval.into();
                let points: Vec<_> = run.reports.iter().map(point).collect();
                let errors: Vec<(f64, f64)> = run.reports.iter().map(ends).collect();
                figure.series(Series::new(&run.name, points).errors(errors))
            })
        };
        let c = |r: &Report| r.parameters.get("c").and_then(Value::as_f64).unwrap_or(0.0);
        found.push((
            "accuracy-c",
            sweep(figure("Accuracy against c", "c").log_x(), &c),
        ));
        let by_distance = figure("Accuracy against distance, c by c", "RMS L2 distance");
        let caption = "The same c does not move all networks' images equally far.";
        found.push((
            "accuracy-rms",
            sweep(by_distance, &|r| r.summary.rms_l2).caption(caption),
        ));
    }
    let all: Vec<&Run> = runs.iter().filter(single).collect();
    if !all.is_empty() {
        let passes = figure("Accuracy against effort", "forward passes of an image");
        found.push((
            "accuracy-passes",
            curves(passes, &|s| &s.accuracy_by_forward_passes, &all),
        ));
    }
    found
}

fn page(runs: &[Run], together: &[Together], figures: &[(&str, Figure)]) -> Page {
    let mut page = Page::new("Attacks");
    page.subtitle("From the reports of noiseforge attack");
    page.paragraph(
        "Robust accuracy is the share of right verdicts, on draws that no attack has seen; an image that is \
         wrong without an attack is never robust. Median L2 counts failures as infinitely far.",
    );
    page.table(&table(runs));
    if let Some(table) = table_of_together(together) {
        page.table(&table);
    }
    page.heading("Figures");
    for (_, figure) in figures {
        page.figure(figure);
    }
    page.heading("What was run");
    for run in runs {
        for report in &run.reports {
            page.paragraph(run.label(report));
            let mut facts = vec![
                ("attack".to_string(), report.attack.clone()),
                ("seed".to_string(), report.seed.to_string()),
                (
                    "verdicts".to_string(),
                    format!(
                        "{} of {} draws each, by {}",
                        report.verdicts, report.ensemble, report.rule
                    ),
                ),
                ("version".to_string(), report.version.clone()),
            ];
            let plain = report
                .parameters
                .iter()
                .filter(|(_, v)| !v.is_null() && !v.is_object());
            facts.extend(plain.map(|(name, value)| {
                let text = value.as_str().map_or(value.to_string(), str::to_string);
                (name.clone(), text)
            }));
            page.facts(&facts);
        }
    }
    page
}
