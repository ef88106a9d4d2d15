//! A training run's state as one file, so that it is either all there or not at all.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Progress, Trainer};
use crate::error::{Error, Result};
use crate::io::checkpoint::Checkpoint;
use crate::models::{put_array, to_array};
use crate::nn::Entry;
use crate::tensor::Tensor;

/// Prefixes of the tensors in a state file.
const MODEL: &str = "model.";
const VELOCITY: &str = "velocity.";
const BEST: &str = "best.";

fn with_prefix(prefix: &str, from: Checkpoint, to: &mut Checkpoint) {
    let named = from.tensors.into_iter();
    to.tensors
        .extend(named.map(|(name, array)| (format!("{prefix}{name}"), array)));
}

fn without_prefix(prefix: &str, from: &Checkpoint) -> Checkpoint {
    let tensors = from
        .tensors
        .iter()
        .filter_map(|(name, array)| Some((name.strip_prefix(prefix)?.to_string(), array.clone())))
        .collect();
    Checkpoint {
        tensors,
        metadata: BTreeMap::new(),
    }
}

impl Trainer<'_> {
    /// Everything that is needed to continue: weights, statistics, velocities, best weights so far,
    /// progress, and the settings it was made with.
    fn state(&mut self) -> Result<Checkpoint> {
        self.look()?;
        let mut state = Checkpoint {
            tensors: BTreeMap::new(),
            metadata: self.description(),
        };
        with_prefix(MODEL, self.model.checkpoint()?, &mut state);
        if let Some(best) = &self.best {
            with_prefix(BEST, best.clone(), &mut state);
        }
        let mut velocity = self.optimizer.velocity.iter();
        let mut result = Ok(());
        self.model.visit(|name, entry| {
            if let Entry::Param(_, layout) = entry {
                let v = velocity.next().expect("one velocity per parameter");
                match to_array(v, layout) {
                    Ok(array) => drop(state.tensors.insert(format!("{VELOCITY}{name}"), array)),
                    Err(e) => result = Err(e),
                }
            }
        });
        result?;
        let progress = serde_json::to_string(&self.progress).expect("plain numbers");
        state.metadata.insert("progress".to_string(), progress);
        Ok(state)
    }

    /// The recipe as it stands in files: [`Recipe::to_metadata`](super::Recipe::to_metadata) and, under
    /// `recipe_teacher`, the fingerprint of a teacher's weights.
    pub fn recipe_metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = self.settings.recipe.to_metadata();
        if let Some(teacher) = &self.teacher {
            metadata.insert("recipe_teacher".to_string(), teacher.fingerprint.clone());
        }
        metadata
    }

    /// Network, settings and sizes of the data: what must agree for a run to be continued.
    fn description(&self) -> BTreeMap<String, String> {
        let mut description = self.model.config().to_metadata();
        description.insert("dtype".to_string(), self.model.dtype().to_string());
        description.extend(self.settings.to_metadata());
        description.extend(self.recipe_metadata());
        for (key, data) in [("train_images", self.train), ("test_images", self.test)] {
            description.insert(key.to_string(), data.len().to_string());
        }
        description
    }

    /// Writes the state; the file is replaced as a whole or not at all.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        self.state()?.write(path)
    }

    /// Continues from a saved state. An error names the first setting that differs from the one
    /// the state was made with.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let state = Checkpoint::read(path)?;
        for (key, value) in &self.description() {
            let found = state.metadata.get(key).map(String::as_str);
            // Older files name no recipe.
            match found.or((key == "recipe").then_some("plain")) {
                Some(found) if found == value => {}
                found => {
                    let found = found.unwrap_or("nothing");
                    let was = format!("a run with {key} = {value}, as asked for now");
                    return Err(Error::file(path, was, format_args!("{key} = {found}")));
                }
            }
        }
        let progress: Progress = state
            .metadata
            .get("progress")
            .and_then(|text| serde_json::from_str(text).ok())
            .ok_or_else(|| Error::file(path, "a run's progress in the metadata", "none"))?;

        self.model
            .load_checkpoint(path, &without_prefix(MODEL, &state))?;
        let best = without_prefix(BEST, &state);
        let mut velocity = self.optimizer.velocity.iter_mut();
        let mut result = Ok(());
        self.model.visit(|name, entry| {
            let Entry::Param(_, layout) = entry else {
                return;
            };
            let v = velocity.next().expect("one velocity per parameter");
            let read = |v: &mut Tensor| {
                let name = format!("{VELOCITY}{name}");
                let array = state.tensors.get(&name).ok_or_else(|| {
                    Error::file(path, format_args!("`{name}`"), "no tensor of that name")
                })?;
                put_array(v, array, layout)
            };
            if result.is_ok() {
                result = read(v);
            }
        });
        result?;
        self.best = (!best.tensors.is_empty()).then_some(best);
        self.progress = progress;
        if let Some(device) = &mut self.device {
            device.forget_place();
        }
        Ok(())
    }
}
