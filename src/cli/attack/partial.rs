//! What an interrupted attack has found so far: one line of JSON for each image, behind a line that says
//! what was asked for.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use noiseforge::attacks::{Counts, Found};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A [`Found`] without what follows from its pixels, whose bits are kept.
#[derive(Serialize, Deserialize)]
struct Line {
    index: usize,
    pixels: String,
    success: bool,
    l2: f64,
    linf: f64,
    c: Option<f64>,
    forward: u64,
    backward: u64,
    forward_at_success: Option<u64>,
    out_of_queries: bool,
    broken_by: Option<String>,
}

/// Its name in the attack's folder.
pub const NAME: &str = "attack.part";

/// The file, open at its end.
pub struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    /// Opens or makes the file in this folder; gives what it holds, by the image's position.
    ///
    /// Errors: it was made for something else.
    pub fn open(folder: &Path, asked: &Value) -> Result<(Self, Vec<(usize, Found)>)> {
        let path = folder.join(NAME);
        let cannot = || format!("cannot use {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(cannot)?;
        let mut done = Vec::new();
        let mut whole = 0;
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).with_context(cannot)? > 0 {
            // A line that was cut off, and whatever follows it, is done again.
            if line.last() != Some(&b'\n') {
                break;
            }
            if whole == 0 {
                if serde_json::from_slice::<Value>(&line).ok().as_ref() != Some(asked) {
                    bail!(
                        "{} holds an unfinished attack with other settings: finish it, delete it or \
                         choose another folder",
                        folder.display()
                    );
                }
            } else {
                let Some(found) = read(&line) else { break };
                done.push(found);
            }
            whole += line.len() as u64;
            line.clear();
        }
        file.set_len(whole).with_context(cannot)?;
        file.seek(SeekFrom::Start(whole)).with_context(cannot)?;
        if whole == 0 {
            writeln!(file, "{asked}").with_context(cannot)?;
        }
        Ok((Partial { path, file }, done))
    }

    /// Adds an image's result.
    pub fn add(&mut self, index: usize, found: &Found) -> noiseforge::Result<()> {
        let line = Line {
            index,
            pixels: STANDARD.encode(bytemuck::cast_slice::<f32, u8>(&found.pixels)),
            success: found.success,
            l2: found.l2,
            linf: found.linf,
            c: found.c,
            forward: found.counts.forward,
            backward: found.counts.backward,
            forward_at_success: found.forward_at_success,
            out_of_queries: found.out_of_queries,
            broken_by: found.broken_by.map(str::to_string),
        };
        let mut text = serde_json::to_vec(&line).expect("plain data");
        text.push(b'\n');
        let write = self.file.write_all(&text);
        write.map_err(noiseforge::Error::io("write", &self.path))
    }
}

fn read(line: &[u8]) -> Option<(usize, Found)> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let bytes = STANDARD.decode(&line.pixels).ok()?;
    let found = Found {
        pixels: bytemuck::pod_collect_to_vec(&bytes),
        success: line.success,
        l2: line.l2,
        linf: line.linf,
        c: line.c,
        counts: Counts {
            forward: line.forward,
            backward: line.backward,
        },
        forward_at_success: line.forward_at_success,
        out_of_queries: line.out_of_queries,
        // As long-lived as the names that attacks give themselves; there are few.
        broken_by: line.broken_by.map(|name| &*name.leak()),
    };
    Some((line.index, found))
}
