//! Attacks on linear models, whose exact answers are known.

use noiseforge::attacks::{
    BlackBoxAttack, Criterion, Found, Norm, Options, Targets, WhiteBoxAttack, attack_black_box,
    attack_white_box,
};
use noiseforge::ensemble::Ensemble;
use noiseforge::models::Model;
use noiseforge::ops::noise::Purpose;
use noiseforge::selftest::linear::Linear;
use noiseforge::{Result, Tensor};

/// The linear classifier's own labels, away from which an attack goes.
pub fn untargeted(linear: &Linear) -> Criterion {
    Criterion::Untargeted {
        labels: linear.labels.clone(),
    }
}

/// The images `ids` of a linear problem, and their goals.
fn select(linear: &Linear, criterion: &Criterion, ids: &[u32]) -> (Tensor, Criterion) {
    let indices: Vec<usize> = ids.iter().map(|&i| i as usize).collect();
    let x = linear.images.gather_rows(&indices).unwrap();
    (x, criterion.select(&indices))
}

/// Shows the images `ids` of a linear problem, with this noise on the image, to an attack.
fn on_images(
    linear: &Linear,
    sigma: f32,
    criterion: &Criterion,
    options: &Options,
    ids: &[u32],
    attack: impl FnOnce(&mut Ensemble<'_>, Targets<'_>) -> Result<Vec<Found>>,
) -> Vec<Found> {
    let mut model = linear.model(sigma).unwrap();
    let mut net = Ensemble::new(&mut model, 7, Purpose::Attack, options.passes).unwrap();
    let (x, criterion) = select(linear, criterion, ids);
    let targets = Targets {
        x: &x,
        ids,
        criterion: &criterion,
    };
    attack(&mut net, targets).unwrap()
}

/// Attacks the images `ids` of a linear problem with this noise on the image.
pub fn white_of(
    linear: &Linear,
    sigma: f32,
    attack: &dyn WhiteBoxAttack,
    criterion: &Criterion,
    options: &Options,
    ids: &[u32],
) -> Vec<Found> {
    on_images(linear, sigma, criterion, options, ids, |net, targets| {
        attack_white_box(net, targets, attack, options, &mut |_| Ok(()))
    })
}

/// [`white_of`] with scores alone.
pub fn black_of(
    linear: &Linear,
    sigma: f32,
    attack: &dyn BlackBoxAttack,
    criterion: &Criterion,
    options: &Options,
    ids: &[u32],
) -> Vec<Found> {
    on_images(linear, sigma, criterion, options, ids, |net, targets| {
        attack_black_box(net, targets, attack, options, &mut |_| Ok(()))
    })
}

/// Many rows at once, for attacks that ask for many.
pub fn many_rows() -> Options {
    Options {
        rows: 1024,
        ..Options::default()
    }
}

/// Found distances over the exact ones, ascending. Panics for a failure.
pub fn ratios(linear: &Linear, found: &[Found], norm: Norm) -> Vec<f64> {
    let ratio = |(i, f): (usize, &Found)| {
        assert!(f.success, "image {i}");
        let distance = match norm {
            Norm::L2 => f.l2,
            Norm::Linf => f.linf,
        };
        distance / linear.distance(i, norm)
    };
    let mut ratios: Vec<f64> = found.iter().enumerate().map(ratio).collect();
    ratios.sort_by(f64::total_cmp);
    ratios
}

/// Smallest, median and largest of [`ratios`].
pub fn three_ratios(linear: &Linear, found: &[Found], norm: Norm) -> [f64; 3] {
    let all = ratios(linear, found, norm);
    [all[0], all[all.len() / 2], all[all.len() - 1]]
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
