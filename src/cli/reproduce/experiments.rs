//! The networks and attacks of the paper's experiments, as parts.

use std::rc::Rc;

use anyhow::Result;
use noiseforge::statistics::wilson_of_shares;
use noiseforge::verdict::Report;

use super::part::{Part, Workshop};

/// How much of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scale {
    /// A small CNN, short training, few images: minutes on two cores
    Quick,
    /// The paper's protocol: VGG16, 200 epochs, 1,600 images, 17 constants
    Paper,
}

/// Draws of an RSE network's verdict.
pub const DRAWS: usize = 50;

/// What protects a network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Defense {
    None,
    Rse { init: f64, inner: f64 },
    Brelu,
    Distillation,
    Adversarial,
}

/// The paper's noise (arXiv v2 and ECCV) for VGG16 and Model A.
pub const RSE: Defense = Defense::Rse {
    init: 0.2,
    inner: 0.1,
};

/// The five of Table 2, in its order.
pub const DEFENSES: [Defense; 5] = [
    RSE,
    Defense::Adversarial,
    Defense::Brelu,
    Defense::Distillation,
    Defense::None,
];

impl Defense {
    pub fn name(self) -> &'static str {
        match self {
            Defense::None => "no defence",
            Defense::Rse { .. } => "RSE",
            Defense::Brelu => "robust optimisation + BReLU",
            Defense::Distillation => "distillation",
            Defense::Adversarial => "adversarial retraining",
        }
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

/// How batch norm works while the attack runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Running statistics: as one should.
    Evaluation,
    /// The batch's statistics, which move the running ones: as the code did that matches Table 2.
    Published,
}

/// One constant's outcome.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    pub c: f64,
    /// Share of right predictions.
    pub accuracy: f64,
    /// Wilson's 95% interval.
    pub interval: [f64; 2],
    /// Root mean square of the L2 distances.
    pub rms: f64,
}

/// The parts of all experiments at a scale.
pub struct Plan {
    pub scale: Scale,
    pub data: String,
    pub seed: u64,
}

impl Plan {
    /// The network, for people.
    pub fn network(&self) -> &'static str {
        match self.scale {
            Scale::Quick => "small CNN",
            Scale::Paper => "VGG16",
        }
    }

    /// Images attacked, steps, step size and constants; the first is the control.
    pub fn attack_settings(&self) -> (usize, u32, f64, &'static [f64]) {
        match self.scale {
            Scale::Quick => (100, 60, 5e-3, &[0.0, 0.01, 0.03, 0.06, 0.1, 0.2]),
            Scale::Paper => (
                1600,
                300,
                1e-3,
                &[
                    0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 0.8, 1.0, 2.0, 3.0, 4.0, 7.0, 10.0, 30.0,
                    70.0, 100.0,
                ],
            ),
        }
    }

    /// The training of a network.
    pub fn train(&self, defense: Defense) -> Rc<Part> {
        let mut part = Part::new(format!("train {}", defense.name())).words("train");
        part = match self.scale {
            Scale::Quick => part.words(
                "--model small --epochs 12 --batch 64 --lr 0.05 --schedule cosine",
            ),
            // Adversarial retraining runs 300 epochs and keeps the last weights.
            Scale::Paper if defense == Defense::Adversarial => {
                part.words("--model vgg16 --epochs 300 --batch 128 --lr 0.1 --schedule phases")
            }
            Scale::Paper => part.words(
                "--model vgg16 --epochs 200 --batch 128 --lr 0.1 --schedule phases --select-best-test",
            ),
        };
        part = part.word("--data").word(&self.data);
        part = part.words(format!("--seed {}", self.seed));
        Rc::new(match defense {
            Defense::None => part.words("--defense none"),
            Defense::Rse { init, inner } => part.words(format!(
                "--defense rse --init-noise {init} --inner-noise {inner}"
            )),
            Defense::Brelu => part.words("--defense brelu --init-noise 0.05"),
            Defense::Distillation => part
                .words("--defense distill --temperature 40 --teacher")
                .file_of(&self.train(Defense::None), WEIGHTS),
            Defense::Adversarial => part.words("--defense adv-fgsm --adv-eps 0.1,0.3"),
        })
    }

    /// A command on a network and the data.
    fn on(&self, name: &str, command: &str, defense: Defense) -> Part {
        Part::new(format!("{name} {}", defense.name()))
            .words(command)
            .word("--weights")
            .file_of(&self.train(defense), WEIGHTS)
            .word("--data")
            .word(&self.data)
    }

    /// The paper's C&W attack at all constants, judged by so many draws.
    pub fn attack(
        &self,
        defense: Defense,
        noise: TestNoise,
        protocol: Protocol,
        draws: usize,
    ) -> Rc<Part> {
        let (count, steps, lr, constants) = self.attack_settings();
        let constants: Vec<String> = constants.iter().map(f64::to_string).collect();
        let mut part = self
            .on("cw", "attack cw --protocol rse", defense)
            .words(format!("--count {count} --steps {steps} --lr {lr} --c"))
            .word(constants.join(","))
            .words(format!(
                "--ensemble {draws} --verdicts 1 --seed {}",
                self.seed
            ));
        if let TestNoise::Set(init, inner) = noise {
            part = part.words(format!("--init-noise {init} --inner-noise {inner}"));
        }
        if protocol == Protocol::Published {
            part = part.words("--batch-norm train --batch 100");
        }
        Rc::new(part)
    }

    /// Accuracy on the test set against the number of draws.
    pub fn draws(&self, defense: Defense) -> Rc<Part> {
        Rc::new(
            self.on("eval", "eval", defense)
                .words(format!("--ensemble {DRAWS} --seed {}", self.seed)),
        )
    }

    /// The measurements of section 3.3.
    pub fn theory(&self, defense: Defense) -> Rc<Part> {
        let count = match self.scale {
            Scale::Quick => 100,
            Scale::Paper => 1000,
        };
        Rc::new(
            self.on("theory", "theory", defense)
                .words(format!("--count {count} --seed {}", self.seed)),
        )
    }

    /// The images of an attack at one constant, judged by another number of draws.
    pub fn judged_by(&self, attack: &Rc<Part>, defense: Defense, c: f64, draws: usize) -> Rc<Part> {
        Rc::new(
            Part::new(format!("judge {}", defense.name()))
                .words("attack transfer --from")
                .file_of(attack, &format!("c-{c}"))
                .words("--weights")
                .file_of(&self.train(defense), WEIGHTS)
                .words(format!(
                    "--ensemble {draws} --verdicts 1 --seed {}",
                    self.seed
                )),
        )
    }

    /// The targeted attack of Table 3 towards one class.
    pub fn targeted(&self, defense: Defense, target: usize) -> Rc<Part> {
        let steps = match self.scale {
            Scale::Quick => 200,
            Scale::Paper => 1000,
        };
        Rc::new(
            self.on("targeted", "attack cw --protocol rse", defense)
                .words(format!(
                    "--count 2 --steps {steps} --lr 0.01 --c 100 --target {target}"
                ))
                .words(format!(
                    "--ensemble {DRAWS} --verdicts 1 --seed {}",
                    self.seed
                )),
        )
    }
}

const WEIGHTS: &str = "weights.safetensors";

/// The points of an attack's curve, ascending in c.
pub fn points(workshop: &mut Workshop, attack: &Rc<Part>) -> Result<Vec<Point>> {
    let folder = workshop.make(attack)?;
    Report::read_all(&folder.join("report.json"))?
        .iter()
        .map(point)
        .collect()
}

/// The outcome of one attack.
pub fn point(report: &Report) -> Result<Point> {
    let s = &report.summary;
    let interval = wilson_of_shares(s.accuracy, s.count as u64, 0.05)?;
    let c = report
        .parameters
        .get("c")
        .and_then(serde_json::Value::as_f64);
    Ok(Point {
        c: c.unwrap_or(f64::NAN),
        accuracy: s.accuracy,
        interval: [interval.low, interval.high],
        rms: s.rms_l2,
    })
}
