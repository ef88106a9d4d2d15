//! The audit objects to eight evaluations that are broken, each by the check that is about it, and to none of
//! four that are sound.

use noiseforge::attacks::apgd::Apgd;
use noiseforge::attacks::gradient::Pgd;
use noiseforge::attacks::{Norm, Options, WhiteBoxAttack};
use noiseforge::audit::{Evaluation, Finding, Level, MakeAttack, verdict};
use noiseforge::ensemble::{Average, Classifier, Differentiable, Ensemble};
use noiseforge::models::{Arch, Config, Model};
use noiseforge::nn::Mode;
use noiseforge::ops::loss::softmax;
use noiseforge::ops::noise::{Purpose, Row, Rows};
use noiseforge::selftest::linear::{Case, Linear};
use noiseforge::tensor::Device;
use noiseforge::{Result, Shape, Tensor};

const IMAGES: usize = 20;

/// Weights N(0, 2 / fan_in): scores that depend on the image.
fn small(sigma: f32) -> (Model, Tensor) {
    let input = Shape::new(1, 16, 16, 3);
    let mut config = Config::new(Arch::Small, input, 6).with_noise(sigma, sigma);
    config.width = 4;
    let mut model = Model::new(config, 5).unwrap();
    model.visit_params(|_, p| {
        let shape = p.value.shape();
        if shape.n > 1 {
            let factor = (2.0 / shape.row_len() as f64).sqrt() / 0.02;
            let weights = p.value.data_mut::<f32>();
            weights.iter_mut().for_each(|w| *w *= factor as f32);
        }
    });
    let x = Linear::sized(Case::SparseImages, input.with_n(IMAGES), 6, 7).images;
    (model, x)
}

fn linear(sigma: f32) -> (Model, Tensor) {
    let linear = Linear::sized(Case::Interior, Shape::new(IMAGES, 8, 8, 3), 2, 3);
    (linear.model(sigma).unwrap(), linear.images)
}

fn apgd(steps: u32) -> impl Fn(f64, u32) -> Box<dyn WhiteBoxAttack> {
    move |eps, times| {
        Box::new(Apgd {
            steps: steps * times,
            ..Apgd::cross_entropy(Norm::Linf, eps)
        })
    }
}

fn audit(
    net: &mut dyn Differentiable,
    x: &Tensor,
    eps: f64,
    attack: &MakeAttack<'_>,
    options: Options,
) -> Vec<Finding> {
    let ids: Vec<u32> = (0..x.shape().n as u32).collect();
    let rows: Rows = ids.iter().map(|&id| Row { id, draw: 1 << 20 }).collect();
    let labels = net.predict(x, &rows).unwrap();
    let mut evaluation = Evaluation {
        net,
        x,
        ids: &ids,
        labels: &labels,
        norm: Norm::Linf,
        eps,
        attack,
        options,
    };
    evaluation.audit(&mut |_| Ok(())).unwrap()
}

/// Draws of a random network.
fn draws(passes: usize, confirmations: u32) -> Options {
    Options {
        passes,
        confirmations,
        ..Options::default()
    }
}

fn ensemble(model: &mut Model, draws: usize) -> Ensemble<'_> {
    Ensemble::new(model, 3, Purpose::Attack, draws).unwrap()
}

fn is_sound(name: &str, findings: &[Finding]) {
    assert_eq!(findings.len(), 13);
    assert!(verdict(findings) < Level::Fail, "{name}: {findings:#?}");
}

fn fails(name: &str, findings: &[Finding], check: &str) {
    let found = findings.iter().find(|f| f.name == check).unwrap();
    assert_eq!(found.level, Level::Fail, "{name}: {findings:#?}");
}

#[test]
fn sound_evaluations_pass() {
    let (mut model, x) = linear(0.0);
    let found = audit(
        &mut ensemble(&mut model, 1),
        &x,
        0.03,
        &apgd(40),
        Options::default(),
    );
    is_sound("linear", &found);
    let (mut model, x) = linear(0.1);
    let found = audit(
        &mut ensemble(&mut model, 20),
        &x,
        0.03,
        &apgd(40),
        draws(20, 5),
    );
    is_sound("noisy linear", &found);
    let (mut model, x) = small(0.0);
    let found = audit(
        &mut ensemble(&mut model, 1),
        &x,
        0.02,
        &apgd(60),
        Options::default(),
    );
    is_sound("small", &found);
    let (mut model, x) = small(0.05);
    let found = audit(
        &mut ensemble(&mut model, 10),
        &x,
        0.02,
        &apgd(40),
        draws(10, 5),
    );
    is_sound("noisy small", &found);
}

/// A classifier with something between it and the attack.
struct Broken<'m> {
    net: Ensemble<'m>,
    how: How,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    ZeroedGradient,
    QuantisedInput,
    ScaledSoftmax,
    DetachedNoise,
    Probabilities,
}

impl Broken<'_> {
    fn input_of(&self, x: &Tensor) -> Tensor {
        match self.how {
            How::QuantisedInput => {
                let levels = x.data::<f32>().iter().map(|v| (v * 7.0).round() / 7.0);
                Tensor::from_vec(x.shape(), levels.collect()).unwrap()
            }
            _ => x.clone(),
        }
    }

    fn scores_of(&self, z: &Tensor) -> Result<Tensor> {
        match self.how {
            How::ScaledSoftmax => {
                let scaled = z.data::<f32>().iter().map(|v| v * 1e4);
                Tensor::from_vec(z.shape(), scaled.collect())
            }
            How::Probabilities => softmax(z),
            _ => Ok(z.clone()),
        }
    }
}

impl Classifier for Broken<'_> {
    fn classes(&self) -> usize {
        self.net.classes()
    }

    fn input(&self) -> Shape {
        self.net.input()
    }

    fn device(&self) -> Device {
        self.net.device()
    }

    fn logits(&mut self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        let z = self.net.logits(&self.input_of(x), rows)?;
        self.scores_of(&z)
    }
}

impl Differentiable for Broken<'_> {
    fn input_grad(
        &mut self,
        x: &Tensor,
        rows: &Rows,
        gradient: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let scores = self.logits(x, rows)?;
        let g = gradient(&scores)?;
        let other: Rows = rows
            .iter()
            .map(|r| Row {
                draw: r.draw + 7,
                ..*r
            })
            .collect();
        let rows = if self.how == How::DetachedNoise {
            &other
        } else {
            rows
        };
        let (how, x) = (self.how, self.input_of(x));
        let (_, dx) = self.net.input_grad(&x, rows, &mut |z| match how {
            How::ScaledSoftmax => {
                let scaled = g.data::<f32>().iter().map(|v| v * 1e4);
                Tensor::from_vec(z.shape(), scaled.collect())
            }
            // Good enough for what is asked of it: the check is about the scores.
            _ => Ok(g.clone()),
        })?;
        // Rounding has no slope.
        let none = how == How::ZeroedGradient || how == How::QuantisedInput;
        let dx = if none {
            Tensor::zeros(dx.shape(), dx.dtype())
        } else {
            dx
        };
        Ok((scores, dx))
    }
}

#[test]
fn broken_classifiers_are_found() {
    for (name, how, sigma, check) in [
        (
            "zeroed gradient",
            How::ZeroedGradient,
            0.0,
            "gradients are there",
        ),
        (
            "quantised input",
            How::QuantisedInput,
            0.0,
            "gradients are there",
        ),
        (
            "scaled softmax",
            How::ScaledSoftmax,
            0.0,
            "gradients are there",
        ),
        (
            "detached noise",
            How::DetachedNoise,
            0.5,
            "gradients are right",
        ),
        (
            "probabilities",
            How::Probabilities,
            0.0,
            "scores are logits",
        ),
    ] {
        let (mut model, x) = small(sigma);
        let net = ensemble(&mut model, 1);
        let confirmations = if sigma > 0.0 { 10 } else { 0 };
        let mut broken = Broken { net, how };
        let found = audit(&mut broken, &x, 0.02, &apgd(20), draws(1, confirmations));
        fails(name, &found, check);
    }
}

#[test]
fn batch_statistics_are_found() {
    let (mut model, x) = small(0.0);
    let mut net = ensemble(&mut model, 1);
    net.mode = Mode::Train;
    net.average = Average::Logits;
    let found = audit(&mut net, &x, 0.02, &apgd(20), Options::default());
    fails("train mode", &found, "images do not see each other");
}

#[test]
fn a_verdict_of_one_draw_is_found() {
    let (mut model, x) = linear(0.1);
    let found = audit(
        &mut ensemble(&mut model, 1),
        &x,
        0.03,
        &apgd(20),
        draws(1, 0),
    );
    fails("one draw", &found, "randomness is judged on fresh draws");
}

#[test]
fn an_attack_that_stops_too_early_is_found() {
    let (mut model, x) = small(0.0);
    let pgd = |steps: u32, share: f64| {
        move |eps: f64, times: u32| -> Box<dyn WhiteBoxAttack> {
            Box::new(Pgd {
                steps: steps * times,
                step: share * eps,
                ..Pgd::projected(Norm::Linf, eps)
            })
        }
    };
    let mut net = ensemble(&mut model, 1);
    // From a random start, two steps of a tenth of the radius.
    let found = audit(&mut net, &x, 0.02, &pgd(2, 0.1), Options::default());
    fails("too few steps", &found, "more steps change nothing");
    // From the image, steps that never come near the radius.
    let timid = |eps: f64, times: u32| -> Box<dyn WhiteBoxAttack> {
        Box::new(Pgd::iterated_fgsm(Norm::Linf, 0.01 * eps, 10 * times))
    };
    let found = audit(&mut net, &x, 0.005, &timid, Options::default());
    fails("budget not reached", &found, "the budget is used");
}
