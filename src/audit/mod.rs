//! Is an evaluation to be believed? The checks that Carlini et al. 2019 and Athalye et al. 2018 ask for, run on the
//! evaluation itself: its classifier, its attack, its draws.

mod checks;

use crate::attacks::{
    BlackBoxAttack, Criterion, Found, Norm, Options, Targets, WhiteBoxAttack, attack_black_box,
    attack_white_box,
};
use crate::ensemble::Differentiable;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing to object to.
    Pass,
    /// Look at it.
    Warn,
    /// The evaluation says nothing of the network's robustness.
    Fail,
}

impl Level {
    /// PASS, WARN or FAIL.
    pub fn name(self) -> &'static str {
        match self {
            Level::Pass => "PASS",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// What was checked.
    pub name: &'static str,
    /// How it ended.
    pub level: Level,
    /// The numbers.
    pub detail: String,
    /// Indices, in the data set, of the images that object.
    pub images: Vec<u32>,
}

/// Makes the evaluation's attack for a radius, with so many times its steps.
pub type MakeAttack<'a> = dyn Fn(f64, u32) -> Box<dyn WhiteBoxAttack> + 'a;

/// An evaluation within a bound.
pub struct Evaluation<'a> {
    /// The classifier that is attacked and judged.
    pub net: &'a mut dyn Differentiable,
    /// The images, `[n, h, w, c]` in `[0, 1]`, f32 on the CPU.
    pub x: &'a Tensor,
    /// Their indices in the data set.
    pub ids: &'a [u32],
    /// Their labels.
    pub labels: &'a [u32],
    /// The ball's norm.
    pub norm: Norm,
    /// Its radius.
    pub eps: f64,
    /// The attack.
    pub attack: &'a MakeAttack<'a>,
    /// How it is run: draws, confirmations, seed.
    pub options: Options,
}

impl Evaluation<'_> {
    fn options(&self) -> Options {
        self.options.clone()
    }

    fn criterion(&self) -> Criterion {
        Criterion::Untargeted {
            labels: self.labels.to_vec(),
        }
    }

    fn white(&mut self, attack: &dyn WhiteBoxAttack, options: &Options) -> Result<Vec<Found>> {
        let criterion = self.criterion();
        let targets = Targets {
            x: self.x,
            ids: self.ids,
            criterion: &criterion,
        };
        attack_white_box(self.net, targets, attack, options, &mut |_| Ok(()))
    }

    fn black(&mut self, attack: &dyn BlackBoxAttack, options: &Options) -> Result<Vec<Found>> {
        let criterion = self.criterion();
        let targets = Targets {
            x: self.x,
            ids: self.ids,
            criterion: &criterion,
        };
        attack_black_box(self.net, targets, attack, options, &mut |_| Ok(()))
    }

    /// The evaluation's own attack at another radius, with so many times its steps.
    fn own(&mut self, eps: f64, times: u32) -> Result<Vec<Found>> {
        let (attack, options) = ((self.attack)(eps, times), self.options());
        self.white(&*attack, &options)
    }

    /// Runs all checks; `report` is told each as it ends and may stop by an error.
    ///
    /// Errors: no image; what the classifier or an attack says.
    pub fn audit(
        &mut self,
        report: &mut dyn FnMut(&Finding) -> Result<()>,
    ) -> Result<Vec<Finding>> {
        Error::unless_counted("audit", "images", self.ids.len())?;
        let mut all = Vec::new();
        let mut add = |finding: Finding| {
            report(&finding)?;
            all.push(finding);
            Ok::<(), Error>(())
        };
        let seen = self.look()?;
        for check in checks::OF_THE_CLASSIFIER {
            add(check(self, &seen)?)?;
        }
        let own = self.own(self.eps, 1)?;
        for check in checks::OF_THE_ATTACK {
            add(check(self, &seen, &own)?)?;
        }
        Ok(all)
    }
}

/// The worst of several.
pub fn verdict(findings: &[Finding]) -> Level {
    findings
        .iter()
        .map(|f| f.level)
        .max()
        .unwrap_or(Level::Pass)
}
