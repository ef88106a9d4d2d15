//! What is compared and how much of it: scales, networks, defences, protocols.

use noiseforge::models::NoisePlacement;

use super::part::Part;

/// How much of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scale {
    /// A small CNN, short training, few images: minutes on two cores
    Quick,
    /// The paper's protocol: VGG16, ResNeXt29, Model A, 200 epochs, 1,600 images, 17 constants
    Paper,
}

/// Draws of an RSE network's verdict.
pub const DRAWS: usize = 50;

/// A network of the paper's, or the one of the quick scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    Small,
    Vgg16,
    ResNeXt29,
    ModelA,
}

impl Network {
    pub fn name(self) -> &'static str {
        match self {
            Network::Small => "small CNN",
            Network::Vgg16 => "VGG16",
            Network::ResNeXt29 => "ResNeXt29",
            Network::ModelA => "Model A",
        }
    }

    /// In names of files.
    pub fn file_name(self) -> &'static str {
        match self {
            Network::Small => "small",
            Network::Vgg16 => "vgg16",
            Network::ResNeXt29 => "resnext29",
            Network::ModelA => "model-a",
        }
    }

    /// `train`'s.
    pub fn words(self) -> &'static str {
        match self {
            Network::Small => "--model small --width 16",
            Network::Vgg16 => "--model vgg16",
            Network::ResNeXt29 => "--model resnext29",
            Network::ModelA => "--model model-a",
        }
    }
}

/// What protects a network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Defense {
    None,
    Rse {
        init: f64,
        inner: f64,
        placement: NoisePlacement,
    },
    Brelu,
    Distillation {
        /// With the loss of the authors' code, which lacks the square of the temperature.
        authors: bool,
    },
    /// FGSM, as the authors coded it.
    Adversarial,
    /// PGD adversarial training.
    Pgd,
    /// The same of a network with RSE's noise.
    PgdRse {
        init: f64,
        inner: f64,
    },
    /// Noise on the image alone: the training of randomised smoothing.
    Smoothing {
        sigma: f64,
    },
}

/// Randomised smoothing as Cohen et al. 2019 trained for a sigma of 0.25.
pub const SMOOTHING: Defense = Defense::Smoothing { sigma: 0.25 };

impl Defense {
    pub fn name(self) -> &'static str {
        match self {
            Defense::None => "no defence",
            Defense::Rse { .. } => "RSE",
            Defense::Brelu => "robust optimisation + BReLU",
            Defense::Distillation { .. } => "distillation",
            Defense::Adversarial => "adversarial retraining",
            Defense::Pgd => "PGD adversarial training",
            Defense::PgdRse { .. } => "RSE + PGD adversarial training",
            Defense::Smoothing { .. } => "noise on the image only",
        }
    }

    /// Whether the network draws noise at test.
    pub fn is_random(self) -> bool {
        use Defense::{PgdRse, Rse, Smoothing};
        matches!(self, Rse { .. } | PgdRse { .. } | Smoothing { .. })
    }
}

/// Noise while an attack and its verdicts run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TestNoise {
    /// The network's own.
    Own,
    /// This on the image and this inside.
    Set(f64, f64),
}

impl TestNoise {
    pub fn add_to(self, part: Part) -> Part {
        match self {
            TestNoise::Own => part,
            TestNoise::Set(init, inner) => {
                part.words(format!("--init-noise {init} --inner-noise {inner}"))
            }
        }
    }
}

/// How batch norm works while the attack runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BatchNorm {
    /// Running statistics: as one should
    Eval,
    /// The batch's statistics, which move the running ones: as the code did that matches Table 2
    Train,
}

/// What may be chosen of the protocol: traps of the published one.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    pub batch_norm: BatchNorm,
    /// Where RSE's networks carry the noise of the image.
    pub placement: NoisePlacement,
    /// Verdicts of RSE by one draw instead of [`DRAWS`].
    pub single_draw: bool,
}

/// The paper's attack at a scale.
pub struct AttackSettings {
    /// Images.
    pub count: usize,
    pub steps: u32,
    pub lr: f64,
    /// The first is the control, at which the attack changes nothing.
    pub constants: &'static [f64],
}

/// Attacks that know of the noise, at a scale.
pub struct AdaptiveSettings {
    pub count: usize,
    /// Draws of a gradient.
    pub eot: usize,
    /// Of the search for the smallest distance.
    pub search_steps: u32,
    /// Of each APGD.
    pub apgd_steps: u32,
    /// L2 radii of APGD.
    pub radii: &'static [f64],
    /// Constants of the paper's attack with these draws, which otherwise is as in [`AttackSettings`].
    pub constants: &'static [f64],
    /// Verdicts on each image.
    pub verdicts: usize,
}

impl Scale {
    pub fn attack(self) -> AttackSettings {
        match self {
            Scale::Quick => AttackSettings {
                count: 100,
                steps: 30,
                lr: 1e-2,
                constants: &[0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 1.0, 10.0],
            },
            Scale::Paper => AttackSettings {
                count: 1600,
                steps: 300,
                lr: 1e-3,
                constants: &[
                    0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 0.8, 1.0, 2.0, 3.0, 4.0, 7.0, 10.0, 30.0,
                    70.0, 100.0,
                ],
            },
        }
    }

    pub fn adaptive(self) -> AdaptiveSettings {
        match self {
            Scale::Quick => AdaptiveSettings {
                count: 50,
                eot: 5,
                search_steps: 50,
                apgd_steps: 20,
                radii: &[0.25, 0.5, 1.0],
                constants: &[0.01, 0.1, 1.0, 10.0],
                verdicts: 3,
            },
            Scale::Paper => AdaptiveSettings {
                count: 1000,
                eot: 20,
                search_steps: 200,
                apgd_steps: 100,
                radii: &[0.125, 0.25, 0.5, 0.75, 1.0, 1.5],
                constants: &[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0],
                verdicts: 10,
            },
        }
    }
}
