//! Attacks on linear models, whose exact answers are known.
#![allow(dead_code)]

use noiseforge::Result;
use noiseforge::attacks::{
    BlackBoxAttack, Criterion, Found, Norm, Options, Targets, WhiteBoxAttack, attack_black_box,
    attack_white_box,
};
use noiseforge::ensemble::Ensemble;
use noiseforge::models::Model;
use noiseforge::ops::noise::Purpose;
use noiseforge::selftest::linear::Linear;

/// The linear classifier's own labels, away from which an attack goes.
pub fn untargeted(linear: &Linear) -> Criterion {
    Criterion::Untargeted {
        labels: linear.labels.clone(),
    }
}

pub fn white(
    linear: &Linear,
    model: &mut Model,
    criterion: &Criterion,
    attack: &dyn WhiteBoxAttack,
    draws: usize,
    options: Options,
) -> Result<Vec<Found>> {
    let mut net = Ensemble::new(model, 7, Purpose::Attack, draws)?;
    let ids: Vec<u32> = (0..criterion.classes().len() as u32).collect();
    let targets = Targets {
        x: &linear.images,
        ids: &ids,
        criterion,
    };
    let options = Options {
        passes: draws,
        ..options
    };
    attack_white_box(&mut net, targets, attack, &options, &mut |_| Ok(()))
}

pub fn black(
    linear: &Linear,
    model: &mut Model,
    attack: &dyn BlackBoxAttack,
    options: Options,
) -> Result<Vec<Found>> {
    let mut net = Ensemble::new(model, 7, Purpose::Attack, 1)?;
    let ids: Vec<u32> = (0..linear.labels.len() as u32).collect();
    let targets = Targets {
        x: &linear.images,
        ids: &ids,
        criterion: &untargeted(linear),
    };
    attack_black_box(&mut net, targets, attack, &options, &mut |_| Ok(()))
}

/// Exact distance of every image.
pub fn distances(linear: &Linear, norm: Norm) -> Vec<f64> {
    let n = linear.labels.len();
    (0..n).map(|i| linear.distance(i, norm)).collect()
}

/// A radius within which half of the images have an adversarial one, as far from the next distances as
/// can be.
pub fn halfway(distances: &[f64]) -> f64 {
    let mut sorted = distances.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    0.5 * (sorted[half - 1] + sorted[half])
}
