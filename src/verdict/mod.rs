//! Verdicts on images, adversarial or not, by the rule that is attacked.
//!
//! What is attacked and judged is a rule: the class of the mean over `n` draws, or of most of them.
//! Where the network is random the rule is, too: one verdict says little of it. A [`Jury`] judges every
//! image several times, each time under draws that nobody has seen, least of all the attack.

mod report;

pub use report::{FORMAT, ImageReport, Report, RobustBench, Summary};

use crate::data::Dataset;
use crate::ensemble::Average;
use crate::error::{Error, Result};
use crate::evaluate::Judge;
use crate::models::Model;

/// How images are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jury {
    /// Seed of the noise. Draws for judging never are those of an attack, whatever the seeds.
    pub seed: u64,
    /// How the draws of a verdict are put together.
    pub rule: Average,
    /// Draws of a verdict, at least 1.
    pub draws: usize,
    /// Verdicts on each image, at least 1.
    pub verdicts: usize,
}

/// The verdicts on one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdicts(pub Vec<u32>);

impl Verdicts {
    /// How many say this class.
    pub fn count(&self, class: u32) -> usize {
        self.0.iter().filter(|&&c| c == class).count()
    }

    /// The class most of them say, the smallest of equals.
    pub fn majority(&self) -> u32 {
        let most = self
            .0
            .iter()
            .map(|&c| (self.count(c), std::cmp::Reverse(c)));
        most.max().expect("at least one verdict").1.0
    }
}

impl Jury {
    /// An error naming what is out of range.
    pub fn check(&self) -> Result<()> {
        Error::unless_counted("jury", "draws", self.draws)?;
        Error::unless_counted("jury", "verdicts", self.verdicts)
    }

    /// Judges images; `ids[i]` names image `i`'s noise. `progress` is told how many verdicts stand.
    ///
    /// Errors: nothing to judge by; images or labels that do not fit the network; what `progress` says.
    pub fn judge(
        &self,
        model: &mut Model,
        images: &Dataset,
        ids: &[u32],
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Verdicts>> {
        self.check()?;
        let mut all = vec![Verdicts(Vec::with_capacity(self.verdicts)); ids.len()];
        for v in 0..self.verdicts {
            let judge = Judge {
                seed: self.seed,
                first_draw: v as u32,
                draws: vec![self.draws],
                average: self.rule,
            };
            let mut done = |i| progress(v * ids.len() + i);
            let evaluation = judge.judge(model, images, ids, &mut done)?;
            for (verdicts, class) in all.iter_mut().zip(evaluation.predictions) {
                verdicts.0.push(class);
            }
        }
        Ok(all)
    }
}
