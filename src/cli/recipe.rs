//! What `noiseforge train` learns from: the compared defences' own arguments.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use noiseforge::Error;
use noiseforge::models::Model;
use noiseforge::ops::loss::Scaling;
use noiseforge::train::Recipe;
use noiseforge::train::adversarial::{FgsmRetraining, PgdTraining};
use noiseforge::train::distill::Distillation;

use super::attack::radius;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Defense {
    /// No noise
    None,
    /// Random Self-Ensemble: noise before every convolution, in training and at test
    Rse,
    /// Bounded ReLU, and noise on the image in training only (Zantedeschi et al. 2017)
    Brelu,
    /// Defensive distillation (Papernot et al. 2016) from --teacher
    Distill,
    /// Adversarial retraining: every second batch, on average, is its FGSM version, as the RSE paper's code
    /// had it (not clipped to [0, 1]). May carry RSE's noise
    AdvFgsm,
    /// PGD adversarial training (Madry et al. 2018), Linf. May carry RSE's noise
    AdvPgd,
}

impl Defense {
    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Defense::None => "none",
            Defense::Rse => "rse",
            Defense::Brelu => "brelu",
            Defense::Distill => "distill",
            Defense::AdvFgsm => "adv-fgsm",
            Defense::AdvPgd => "adv-pgd",
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DistillLoss {
    /// KL divergence times T^2, mean over the batch (Hinton et al. 2015)
    Hinton,
    /// KL divergence without T^2, mean over the batch and the classes, as the RSE paper's code had it
    Authors,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Options of single defences")]
pub struct RecipeArgs {
    /// distill: weights to learn from, with their metadata
    #[arg(long, value_name = "WEIGHTS")]
    teacher: Option<PathBuf>,
    /// distill: temperature of both networks in training; tests are at 1 [default: 40]
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// distill: how the loss is scaled [default: hinton]
    #[arg(long, value_enum, value_name = "LOSS")]
    distill_loss: Option<DistillLoss>,
    /// adv-fgsm: a batch's radius is uniform between two, LOW,HIGH [default: 0.1,0.3], or one; adv-pgd: the
    /// radius [default: 8/255]
    #[arg(
        long,
        value_name = "EPS",
        value_delimiter = ',',
        num_args = 1,
        value_parser = radius
    )]
    adv_eps: Vec<f64>,
    /// adv-pgd: steps of the attack [default: 10]
    #[arg(long, value_name = "N")]
    adv_steps: Option<u32>,
    /// adv-pgd: length of a step [default: 2/255]
    #[arg(long, value_name = "SIZE", value_parser = radius)]
    adv_step_size: Option<f64>,
}

impl RecipeArgs {
    /// Errors: an argument of another defence; distillation without a teacher.
    pub fn recipe(&self, defense: Defense) -> Result<Recipe> {
        use Defense::{AdvFgsm, AdvPgd, Distill};
        let belong: [(&str, bool, &[Defense]); 6] = [
            ("--teacher", self.teacher.is_some(), &[Distill]),
            ("--temperature", self.temperature.is_some(), &[Distill]),
            ("--distill-loss", self.distill_loss.is_some(), &[Distill]),
            ("--adv-eps", !self.adv_eps.is_empty(), &[AdvFgsm, AdvPgd]),
            ("--adv-steps", self.adv_steps.is_some(), &[AdvPgd]),
            ("--adv-step-size", self.adv_step_size.is_some(), &[AdvPgd]),
        ];
        for (name, given, to) in belong {
            if given && !to.contains(&defense) {
                let to: Vec<_> = to.iter().map(|d| d.name()).collect();
                bail!("{name} belongs to --defense {}", to.join(" and "));
            }
        }
        Ok(match defense {
            Defense::None | Defense::Rse | Defense::Brelu => Recipe::Plain,
            Distill if self.teacher.is_none() => {
                bail!("--defense distill needs --teacher WEIGHTS to learn from")
            }
            Distill => {
                let published = Distillation::default();
                Recipe::Distill(Distillation {
                    temperature: self.temperature.unwrap_or(published.temperature),
                    scaling: match self.distill_loss {
                        None => published.scaling,
                        Some(DistillLoss::Hinton) => Scaling::Hinton,
                        Some(DistillLoss::Authors) => Scaling::Authors,
                    },
                })
            }
            AdvFgsm => Recipe::AdvFgsm(match self.adv_eps[..] {
                [] => FgsmRetraining::default(),
                [eps] => FgsmRetraining {
                    eps_low: eps,
                    eps_high: eps,
                },
                [eps_low, eps_high] => FgsmRetraining { eps_low, eps_high },
                _ => bail!("--adv-eps of --defense adv-fgsm is one radius or LOW,HIGH"),
            }),
            AdvPgd => {
                let published = PgdTraining::default();
                Recipe::AdvPgd(PgdTraining {
                    eps: match self.adv_eps[..] {
                        [] => published.eps,
                        [eps] => eps,
                        _ => bail!("--adv-eps of --defense adv-pgd is one radius"),
                    },
                    steps: self.adv_steps.unwrap_or(published.steps),
                    step_size: self.adv_step_size.unwrap_or(published.step_size),
                })
            }
        })
    }

    /// Where the teacher was read from.
    pub fn teacher(&self) -> Option<&Path> {
        self.teacher.as_deref()
    }

    /// Reads the teacher, if there is one.
    ///
    /// Errors: a file that cannot be read, holds no description of its network, or weights that are not finite.
    pub fn read_teacher(&self) -> Result<Option<Model>> {
        let Some(path) = &self.teacher else {
            return Ok(None);
        };
        let mut model = Model::read(path, |found| {
            found.ok_or_else(|| Error::file(path, "metadata naming the network", "none"))
        })?;
        let finite = model.check_finite();
        finite.with_context(|| format!("{} cannot be used", path.display()))?;
        Ok(Some(model))
    }
}
