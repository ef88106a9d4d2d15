//! `noiseforge index`: one page over many runs.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use noiseforge::report::{Report as Page, Table};
use noiseforge::verdict::Report;
use serde_json::{Value, json};

use super::common::{percent, read_json, say};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  noiseforge index runs

Writes DIR/index.html: the pages (reproduce, report, demo), trained networks, attacks and certifications in DIR and
the folders below it, each kind newest first, each with a link. Folders of a run are not looked into.")]
pub struct Args {
    /// Folder with runs
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// What a folder holds, by the file that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reproduction,
    Demo,
    Network,
    Attack,
    Certification,
    Page,
}

/// Looked for in this order: a reproduction has a page, too.
const KINDS: [(Kind, &str); 6] = [
    (Kind::Reproduction, "results.json"),
    (Kind::Demo, "demo.json"),
    (Kind::Network, "run.json"),
    (Kind::Attack, "report.json"),
    (Kind::Certification, "certify.json"),
    (Kind::Page, "report.html"),
];

/// A run's folder.
struct Run {
    kind: Kind,
    /// From the page's folder, with slashes.
    path: String,
    file: PathBuf,
    finished: SystemTime,
}

/// `{"page", "runs": [{"path", "kind", "finished"}], "unreadable": [messages]}`.
pub fn run(args: &Args, json: bool) -> Result<()> {
    if !args.folder.is_dir() {
        bail!("{} is no folder", args.folder.display());
    }
    let mut runs = Vec::new();
    find(&args.folder, "", &mut runs)?;
    if runs.is_empty() {
        bail!("no runs in {}", args.folder.display());
    }
    runs.sort_by(|a, b| (b.finished, &a.path).cmp(&(a.finished, &b.path)));
    let mut unreadable = Vec::new();
    let mut page = Page::new("Runs");
    page.subtitle(args.folder.display().to_string());
    for (heading, kinds, mut table) in sections() {
        for run in runs.iter().filter(|run| kinds.contains(&run.kind)) {
            match row(run) {
                Ok((file, cells)) => {
                    let path = format!("./{}{file}", run.path);
                    let finished = time(run.finished);
                    table.linked_row(path, cells.into_iter().chain([finished]));
                }
                Err(error) => unreadable.push(format!("{error:#}")),
            }
        }
        if !table.rows.is_empty() {
            page.heading(heading).table(&table);
        }
    }
    for message in &unreadable {
        eprintln!("noiseforge: left out: {message}");
    }
    let file = args.folder.join("index.html");
    page.write(&file)?;
    if json {
        let listed = runs.iter().map(|run| {
            json!({
                "path": run.path,
                "kind": format!("{:?}", run.kind).to_lowercase(),
                "finished": time(run.finished),
            })
        });
        let listed = listed.collect::<Vec<_>>();
        say!(
            "{:#}",
            json!({"page": file, "runs": listed, "unreadable": unreadable})
        );
    } else {
        say!("{}", file.display());
    }
    Ok(())
}

/// Runs in `folder`, which is `path` (empty, or with a slash at its end) from the page.
fn find(folder: &Path, path: &str, runs: &mut Vec<Run>) -> Result<()> {
    let found = KINDS.iter().find(|(_, file)| folder.join(file).is_file());
    if let Some(&(kind, file)) = found {
        let file = folder.join(file);
        let cannot = || format!("cannot read {}", file.display());
        let finished = file.metadata().and_then(|data| data.modified());
        runs.push(Run {
            kind,
            path: path.to_string(),
            finished: finished.with_context(cannot)?,
            file,
        });
        return Ok(());
    }
    let cannot = || format!("cannot read {}", folder.display());
    let mut entries = std::fs::read_dir(folder)
        .with_context(cannot)?
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(cannot)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        // A link could lead back up.
        let is_folder = entry.file_type().with_context(cannot)?.is_dir();
        if is_folder && !name.starts_with('.') {
            find(&entry.path(), &format!("{path}{name}/"), runs)?;
        }
    }
    Ok(())
}

/// Headings, the kinds below them and empty tables.
fn sections() -> [(&'static str, &'static [Kind], Table); 4] {
    let table = |header: &[&str]| Table::new("", header.iter().copied());
    [
        (
            "Pages",
            &[Kind::Reproduction, Kind::Demo, Kind::Page],
            table(&["page", "folder", "finished"]),
        ),
        (
            "Networks",
            &[Kind::Network],
            table(&[
                "folder",
                "network",
                "defence",
                "data",
                "epochs",
                "test accuracy %",
                "finished",
            ]),
        ),
        (
            "Attacks",
            &[Kind::Attack],
            table(&[
                "folder",
                "attack",
                "weights",
                "images",
                "clean %",
                "robust %",
                "median L2",
                "finished",
            ]),
        ),
        (
            "Certifications",
            &[Kind::Certification],
            table(&[
                "folder",
                "weights",
                "sigma",
                "images",
                "accuracy %",
                "average radius",
                "finished",
            ]),
        ),
    ]
}

/// The file a run's row leads to and its cells but the last.
fn row(run: &Run) -> Result<(&'static str, Vec<String>)> {
    let folder = match run.path.as_str() {
        "" => ".".to_string(),
        path => path.trim_end_matches('/').to_string(),
    };
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let share = |value: &Value| value.as_f64().map_or(String::new(), percent);
    Ok(match run.kind {
        Kind::Reproduction | Kind::Demo | Kind::Page => {
            ("report.html", vec![title(&run.file)?, folder])
        }
        Kind::Network => {
            let found = read_json(&run.file)?;
            let cells = [
                folder,
                text(&found["network"]["model"]),
                text(&found["defense"]),
                text(&found["data"]),
                text(&found["epochs"]),
                share(&found["final"]["test_accuracy"]),
            ];
            ("", cells.to_vec())
        }
        Kind::Attack => {
            let reports = Report::read_all(&run.file)?;
            let last = reports.last().context("a report without an attack")?;
            let s = &last.summary;
            let name = match (reports.len(), last.parameters.get("c")) {
                (2.., Some(c)) => {
                    format!("{}, {} constants to c = {c}", last.attack, reports.len())
                }
                _ => match last.robustbench.eps {
                    Some(eps) => format!("{} within {eps:.4}", last.attack),
                    None => last.attack.clone(),
                },
            };
            let weights = last.parameters.get("weights").unwrap_or(&Value::Null);
            let cells = [
                folder,
                name,
                text(weights),
                s.count.to_string(),
                percent(s.clean_accuracy),
                percent(s.robust_accuracy),
                s.median_l2.map_or("inf".to_string(), |v| format!("{v:.4}")),
            ];
            ("", cells.to_vec())
        }
        Kind::Certification => {
            let found = read_json(&run.file)?;
            let radius = found["average_radius"].as_f64();
            let cells = [
                folder,
                text(&found["weights"]),
                // A number of single precision.
                found["sigma"]
                    .as_f64()
                    .map_or(String::new(), |v| (v as f32).to_string()),
                text(&found["count"]),
                share(&found["accuracy"]),
                radius.map_or(String::new(), |v| format!("{v:.4}")),
            ];
            ("", cells.to_vec())
        }
    })
}

/// The title of the page beside `file`.
fn title(file: &Path) -> Result<String> {
    let page = file.with_file_name("report.html");
    let text = std::fs::read_to_string(&page);
    let text = text.with_context(|| format!("cannot read {}", page.display()))?;
    let title = text.split_once("<title>");
    let title = title.and_then(|(_, rest)| rest.split_once("</title>"));
    let (title, _) = title.with_context(|| format!("{} has no title", page.display()))?;
    // As the page escaped it.
    let plain = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
    ];
    let title = plain
        .iter()
        .fold(title.to_string(), |t, (from, to)| t.replace(from, to));
    Ok(title.replace("&amp;", "&"))
}

/// In UTC, to the second.
fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
