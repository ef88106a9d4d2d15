//! Parts of an experiment: commands of this program whose results are kept and found again by what was asked.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use noiseforge::io::fingerprint::Fingerprint;
use serde_json::{Value, json};

use crate::cli::common::{self, say};

/// A word of a command.
#[derive(Debug, Clone)]
pub enum Word {
    Text(String),
    /// A file or folder that another part leaves in its folder.
    Of(Rc<Part>, String),
}

/// One command, without `--out`, `--device` and `--dtype`.
#[derive(Debug)]
pub struct Part {
    /// What it is, for people.
    pub name: String,
    words: Vec<Word>,
}

impl Part {
    pub fn new(name: impl Into<String>) -> Self {
        Part {
            name: name.into(),
            words: Vec::new(),
        }
    }

    /// With these words behind the others, separated by white space.
    pub fn words(mut self, text: impl AsRef<str>) -> Self {
        let words = text.as_ref().split_whitespace().map(str::to_string);
        self.words.extend(words.map(Word::Text));
        self
    }

    /// With one word more, whatever it holds.
    pub fn word(mut self, text: impl Into<String>) -> Self {
        self.words.push(Word::Text(text.into()));
        self
    }

    /// With the path of what another part leaves behind.
    pub fn file_of(mut self, part: &Rc<Part>, path: &str) -> Self {
        self.words.push(Word::Of(part.clone(), path.to_string()));
        self
    }

    /// The command, other parts' files by the names of their folders.
    pub fn shown(&self) -> String {
        let word = |word: &Word| match word {
            Word::Text(text) => text.clone(),
            Word::Of(part, path) => format!("parts/{}/{path}", part.folder()),
        };
        let words: Vec<String> = self.words.iter().map(word).collect();
        format!("noiseforge {}", words.join(" "))
    }

    /// The folder's name: follows from the command, from the commands that made its files, and from the version.
    fn folder(&self) -> String {
        let mut print = Fingerprint::new();
        print.add(env!("CARGO_PKG_VERSION").as_bytes());
        for word in &self.words {
            let text = match word {
                Word::Text(text) => text.clone(),
                Word::Of(part, path) => format!("{}/{path}", part.folder()),
            };
            print.add(format!(" {text}").as_bytes());
        }
        let plain = |c: char| match c.is_alphanumeric() {
            true => c.to_ascii_lowercase(),
            false => '-',
        };
        let name: String = self.name.chars().map(plain).collect();
        format!("{name}-{}", print.text())
    }
}

/// Where parts are made and kept.
pub struct Workshop {
    /// One folder a part.
    pub folder: PathBuf,
    /// `--device` and `--dtype`.
    pub place: Vec<String>,
    /// Whether to say what is done.
    pub say: bool,
    /// Commands of the parts asked for, in the order they are made in, and the seconds each took.
    pub log: Vec<(String, f64)>,
}

/// Written last into a part's folder.
const DONE: &str = "done.json";

impl Workshop {
    /// The folder of a part, which is made unless it is there. One that was interrupted goes on.
    pub fn make(&mut self, part: &Rc<Part>) -> Result<PathBuf> {
        let mut args = vec!["--json".to_string()];
        for word in &part.words {
            args.push(match word {
                Word::Text(text) => text.clone(),
                Word::Of(other, path) => {
                    let file = self.make(other)?.join(path);
                    file.display().to_string()
                }
            });
        }
        let folder = self.folder.join(part.folder());
        let answers_alone = |command: &String| ["eval", "theory"].contains(&command.as_str());
        let writes_a_folder = !args.get(1).is_some_and(answers_alone);
        let shown = |args: &[String]| format!("noiseforge {}", args[1..].join(" "));
        if writes_a_folder {
            args.extend(["--out".to_string(), folder.display().to_string()]);
        }
        let command = shown(&args);
        let done = folder.join(DONE);
        if let Some(seconds) = finished(&done)? {
            self.note(command, seconds);
            return Ok(folder);
        }
        common::check_stop()?;
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot write into {}", folder.display()))?;
        args.extend(self.place.iter().cloned());
        let states = ["state.safetensors", "state.json"];
        if states.iter().any(|state| folder.join(state).exists()) {
            args.push("--resume".to_string());
        }
        if self.say {
            say!("{command}");
        }
        let started = Instant::now();
        let program = std::env::current_exe().context("cannot find this program")?;
        let output = Command::new(program)
            .args(&args)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {command}"))?;
        if output.status.code() == Some(130) {
            return Err(noiseforge::Error::Interrupted.into());
        }
        if !output.status.success() {
            bail!("{} failed: {command}", part.name);
        }
        let mut said: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{}: the command's answer is no JSON", part.name))?;
        // An attack's rows are in its report.json.
        if let Some(fields) = said.as_object_mut() {
            fields.remove("images");
            fields.remove("attacks");
        }
        let seconds = started.elapsed().as_secs_f64();
        let record = json!({"command": command, "seconds": seconds, "said": said});
        common::write_json(&done, &record)?;
        self.note(command, seconds);
        Ok(folder)
    }

    fn note(&mut self, command: String, seconds: f64) {
        if self.log.iter().all(|(known, _)| *known != command) {
            self.log.push((command, seconds));
        }
    }

    /// What a part's command said, made where it is not there.
    pub fn said(&mut self, part: &Rc<Part>) -> Result<Value> {
        let file = self.make(part)?.join(DONE);
        Ok(common::read_json(&file)?["said"].take())
    }
}

/// The seconds a finished part took; none where it is not finished.
fn finished(done: &Path) -> Result<Option<f64>> {
    if !done.exists() {
        return Ok(None);
    }
    let seconds = common::read_json(done)?["seconds"].as_f64();
    Ok(Some(seconds.unwrap_or(0.0)))
}
