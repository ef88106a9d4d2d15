//! The networks and attacks of the paper's experiments, as parts.

use std::rc::Rc;

use anyhow::Result;
use noiseforge::models::NoisePlacement;
use noiseforge::statistics::wilson_of_shares;
use noiseforge::verdict::Report;

use super::part::{Part, Workshop};
use super::settings::{
    AttackSettings, BatchNorm, DRAWS, Defense, Network, Protocol, SMOOTHING, Scale, TestNoise,
};

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

/// The parts of all experiments with one network at a scale.
#[derive(Debug, Clone)]
pub struct Plan {
    pub scale: Scale,
    pub network: Network,
    pub data: String,
    pub seed: u64,
    pub protocol: Protocol,
}

impl Plan {
    /// The paper's RSE (arXiv v2 and ECCV) for the network.
    pub fn rse(&self) -> Defense {
        let init = match self.network {
            Network::ResNeXt29 => 0.1,
            _ => 0.2,
        };
        self.rse_with(init, 0.1)
    }

    /// RSE with this noise on the image and this inside.
    pub fn rse_with(&self, init: f64, inner: f64) -> Defense {
        Defense::Rse {
            init,
            inner,
            placement: self.protocol.placement,
        }
    }

    /// The five of Table 2, in its order.
    pub fn defenses(&self) -> [Defense; 5] {
        [
            self.rse(),
            Defense::Adversarial,
            Defense::Brelu,
            Defense::Distillation { authors: false },
            Defense::None,
        ]
    }

    /// More than the paper has.
    pub fn more_defenses(&self) -> [Defense; 3] {
        let Defense::Rse { init, inner, .. } = self.rse() else {
            unreachable!("RSE")
        };
        [Defense::Pgd, Defense::PgdRse { init, inner }, SMOOTHING]
    }

    /// A defence of Table 2 as the authors' first code had it: RSE with 0.4 where their VGG16 puts it, distillation
    /// without the square of the temperature.
    pub fn as_published(&self, defense: Defense) -> Defense {
        match defense {
            Defense::Rse { .. } if self.network != Network::ResNeXt29 => Defense::Rse {
                init: 0.4,
                inner: 0.1,
                placement: NoisePlacement::Authors,
            },
            Defense::Distillation { .. } => Defense::Distillation { authors: true },
            other => other,
        }
    }

    /// Epochs, batch and learning rate.
    fn schedule(&self, defense: Defense) -> &'static str {
        match (self.scale, defense) {
            // Images moved by up to 0.3 are learned by a small step only.
            (Scale::Quick, Defense::Adversarial) => {
                "--epochs 10 --batch 64 --lr 0.01 --schedule cosine"
            }
            (Scale::Quick, _) => "--epochs 10 --batch 64 --lr 0.05 --schedule cosine",
            // The authors' own: the last weights are kept.
            (Scale::Paper, Defense::Adversarial) => {
                "--epochs 300 --batch 128 --lr 0.1 --schedule halving"
            }
            (Scale::Paper, _) => {
                "--epochs 200 --batch 128 --lr 0.1 --schedule phases --select-best-test"
            }
        }
    }

    /// The training of a network.
    pub fn train(&self, defense: Defense) -> Rc<Part> {
        let pgd = match self.scale {
            Scale::Quick => "--defense adv-pgd --adv-eps 4/255 --adv-steps 2 --adv-step-size 3/255",
            Scale::Paper => "--defense adv-pgd",
        };
        let part = Part::new(format!("train {}", defense.name()))
            .words("train")
            .words(self.network.words())
            .words(self.schedule(defense))
            .word("--data")
            .word(&self.data)
            .words(format!("--seed {}", self.seed));
        Rc::new(match defense {
            Defense::None => part.words("--defense none"),
            Defense::Rse {
                init,
                inner,
                placement,
            } => part
                .words("--defense rse")
                .words(format!("--init-noise {init} --inner-noise {inner}"))
                .words(match placement {
                    NoisePlacement::Image => "",
                    NoisePlacement::Authors => "--noise-placement authors",
                }),
            Defense::Brelu => part.words("--defense brelu --init-noise 0.05"),
            Defense::Distillation { authors } => part
                .words("--defense distill --temperature 40")
                .words(if authors {
                    "--distill-loss authors"
                } else {
                    ""
                })
                .words("--teacher")
                .file_of(&self.train(Defense::None), WEIGHTS),
            Defense::Adversarial => part.words("--defense adv-fgsm --adv-eps 0.1,0.3"),
            Defense::Pgd => part.words(pgd),
            Defense::PgdRse { init, inner } => part
                .words(pgd)
                .words(format!("--init-noise {init} --inner-noise {inner}")),
            Defense::Smoothing { sigma } => part.words(format!(
                "--defense rse --init-noise {sigma} --inner-noise 0"
            )),
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

    /// Draws of a verdict.
    pub fn draws(&self) -> usize {
        match self.protocol.single_draw {
            true => 1,
            false => DRAWS,
        }
    }

    /// The paper's C&W attack at all constants, judged by so many draws.
    pub fn attack(
        &self,
        defense: Defense,
        noise: TestNoise,
        batch_norm: BatchNorm,
        draws: usize,
    ) -> Rc<Part> {
        let AttackSettings {
            count,
            steps,
            lr,
            constants,
        } = self.scale.attack();
        let part = self
            .on("cw", "attack cw --protocol rse", defense)
            .words(format!("--count {count} --steps {steps} --lr {lr} --c"))
            .word(list(constants))
            .words(format!(
                "--ensemble {draws} --verdicts 1 --seed {}",
                self.seed
            ));
        Rc::new(noise.add_to(part).words(match batch_norm {
            BatchNorm::Eval => "",
            BatchNorm::Train => "--batch-norm train --batch 100",
        }))
    }

    /// What an attack that knows of the noise is asked beside its own: images, draws, verdicts.
    fn adaptive(&self, part: Part, defense: Defense, noise: TestNoise) -> Rc<Part> {
        let settings = self.scale.adaptive();
        let part = noise.add_to(part.words(format!("--count {}", settings.count)));
        let random = match noise {
            TestNoise::Own => defense.is_random(),
            TestNoise::Set(init, inner) => init > 0.0 || inner > 0.0,
        };
        let part = part.words(match random {
            true => format!("--eot {}", settings.eot),
            false => String::new(),
        });
        Rc::new(part.words(format!(
            "--ensemble {DRAWS} --verdicts {} --seed {}",
            settings.verdicts, self.seed
        )))
    }

    /// The paper's C&W attack with the mean over draws of the noise in each step.
    pub fn attack_with_eot(&self, defense: Defense, noise: TestNoise) -> Rc<Part> {
        let AttackSettings { steps, lr, .. } = self.scale.attack();
        let part = self
            .on("cw-eot", "attack cw --protocol rse", defense)
            .words(format!("--steps {steps} --lr {lr} --c"))
            .word(list(self.scale.adaptive().constants));
        self.adaptive(part, defense, noise)
    }

    /// C&W's search for the smallest distance, the mean over draws in each step and each comparison.
    pub fn search(&self, defense: Defense, noise: TestNoise) -> Rc<Part> {
        let steps = self.scale.adaptive().search_steps;
        let part = self
            .on("search", "attack cw --protocol adaptive", defense)
            .words(format!("--steps {steps}"));
        self.adaptive(part, defense, noise)
    }

    /// APGD for random networks within a radius.
    pub fn apgd(&self, defense: Defense, noise: TestNoise, radius: f64) -> Rc<Part> {
        let steps = self.scale.adaptive().apgd_steps;
        let part = self
            .on("apgd", "attack autoattack-rand --norm l2", defense)
            .words(format!("--eps {radius} --steps {steps}"));
        self.adaptive(part, defense, noise)
    }

    /// Certificates under noise of this sigma on the image, which takes the place of the network's own there.
    pub fn certify(&self, defense: Defense, sigma: f64) -> Rc<Part> {
        let size = match self.scale {
            Scale::Quick => "--count 50 --n 1000",
            Scale::Paper => "--skip 20 --n 100000",
        };
        let part = self
            .on("certify", "certify", defense)
            .words(format!("--sigma {sigma} --init-noise 0"))
            .words(size);
        Rc::new(part.words(format!("--seed {}", self.seed)))
    }

    /// Accuracy on the test set against the number of draws.
    pub fn accuracy_by_draws(&self, defense: Defense) -> Rc<Part> {
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
                    "--ensemble {} --verdicts 1 --seed {}",
                    self.draws(),
                    self.seed
                )),
        )
    }
}

/// Separated by commas.
fn list(numbers: &[f64]) -> String {
    let words: Vec<String> = numbers.iter().map(f64::to_string).collect();
    words.join(",")
}

const WEIGHTS: &str = "weights.safetensors";

/// The points of an attack's curve, ascending in c.
pub fn points(workshop: &mut Workshop, attack: &Rc<Part>) -> Result<Vec<Point>> {
    reports(workshop, attack)?.iter().map(point).collect()
}

/// An attack's reports: one for each constant.
pub fn reports(workshop: &mut Workshop, attack: &Rc<Part>) -> Result<Vec<Report>> {
    let folder = workshop.make(attack)?;
    Ok(Report::read_all(&folder.join("report.json"))?)
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
