//! The paper's statements about noise, against exact answers on linear classifiers.

use noiseforge::ensemble::Ensemble;
use noiseforge::error::Error;
use noiseforge::models::Model;
use noiseforge::ops::noise::Purpose;
use noiseforge::selftest::linear::{Case, Linear};
use noiseforge::tensor::Shape;
use noiseforge::theory::{Images, added_loss, hessian_trace, local_slope, losses};

const IMAGES: usize = 6;

fn problem() -> Linear {
    let mut linear = Linear::sized(Case::Interior, Shape::new(IMAGES, 4, 4, 3), 5, 3);
    // Steep enough for probabilities to differ.
    linear.weights.iter_mut().flatten().for_each(|w| *w *= 10.0);
    linear.biases.iter_mut().for_each(|b| *b *= 10.0);
    linear
}

/// Under the classifier's own labels.
fn images(linear: &Linear) -> Images<'_> {
    Images {
        x: &linear.images,
        labels: &linear.labels,
    }
}

fn ensemble(model: &mut Model) -> Ensemble<'_> {
    Ensemble::new(model, 1, Purpose::Test, 1).unwrap()
}

/// `p` and, in f64, the exact trace of the Hessian and length of the gradient at image `i`:
/// `H = W' (diag p - p p') W`, `g = W' (p - e_y)`.
fn exact(linear: &Linear, i: usize) -> (Vec<f64>, f64, f64) {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let x = linear.image(i);
    let z: Vec<f64> = linear
        .weights
        .iter()
        .zip(&linear.biases)
        .map(|(w, b)| dot(w, x) + f64::from(*b))
        .collect();
    let most = z.iter().fold(f64::NEG_INFINITY, |m, &z| m.max(z));
    let total: f64 = z.iter().map(|z| (z - most).exp()).sum();
    let p: Vec<f64> = z.iter().map(|z| (z - most).exp() / total).collect();
    let combined = |weights: &[f64]| -> Vec<f64> {
        (0..x.len())
            .map(|j| {
                (0..weights.len())
                    .map(|k| weights[k] * f64::from(linear.weights[k][j]))
                    .sum()
            })
            .collect()
    };
    let squared = |v: &[f64]| -> f64 { v.iter().map(|v| v * v).sum() };
    let own: f64 = (0..p.len())
        .map(|k| p[k] * dot(&linear.weights[k], &linear.weights[k]))
        .sum();
    let trace = own - squared(&combined(&p));
    let mut towards = p.clone();
    towards[linear.labels[i] as usize] -= 1.0;
    let slope = squared(&combined(&towards)).sqrt();
    (p, trace, slope)
}

#[test]
fn curvature_and_slope_are_the_exact_ones() {
    let linear = problem();
    let mut model = linear.model(0.0).unwrap();
    let mut net = ensemble(&mut model);
    let images = images(&linear);
    let mean = |of: &dyn Fn(usize) -> f64| (0..IMAGES).map(of).sum::<f64>() / IMAGES as f64;
    let trace = mean(&|i| exact(&linear, i).1);
    assert!(trace > 0.1, "{trace}");
    // Hutchinson's estimate scatters: its error over 6 images of 400 probes each is a few percent.
    let found = hessian_trace(&mut net, images, 400, 1e-3, 5).unwrap();
    assert!(
        (found.mean / trace - 1.0).abs() < 0.1,
        "{found:?}, exactly {trace}"
    );

    let slope = mean(&|i| exact(&linear, i).2);
    let here = local_slope(&mut net, images, 1.0, 0, 5).unwrap();
    assert!(
        (here.mean / slope - 1.0).abs() < 1e-4,
        "{here:?}, exactly {slope}"
    );
    let around = local_slope(&mut net, images, 1.0, 20, 5).unwrap();
    assert!(around.mean > here.mean);
    // A point in the ball may be far: a larger ball finds steeper places, or as steep.
    let tiny = local_slope(&mut net, images, 1e-6, 20, 5).unwrap();
    assert!(
        (tiny.mean / here.mean - 1.0).abs() < 1e-3,
        "{tiny:?} {here:?}"
    );
}

#[test]
fn little_noise_adds_what_the_curvature_says() {
    let linear = problem();
    let mut model = linear.model(0.0).unwrap();
    let mut net = ensemble(&mut model);
    let images = images(&linear);
    let trace = (0..IMAGES).map(|i| exact(&linear, i).1).sum::<f64>() / IMAGES as f64;
    let sigma = 0.02;
    let added = added_loss(&mut net, images, sigma, 2000, 7).unwrap();
    let predicted = sigma * sigma / 2.0 * trace;
    assert!(
        (added.mean / predicted - 1.0).abs() < 0.1,
        "{added:?}, predicted {predicted}"
    );
}

#[test]
fn the_three_losses_are_in_order() {
    let linear = problem();
    // Some labels wrong: there the loss at the predicted class is smaller than the ensemble's.
    let labels: Vec<u32> = linear.labels.iter().map(|l| l / 2).collect();
    let images = Images {
        x: &linear.images,
        labels: &labels,
    };
    let mut model = linear.model(0.0).unwrap();
    let still = losses(&mut ensemble(&mut model), images, 3).unwrap();
    let exact_loss = |i: usize, class: usize| -exact(&linear, i).0[class].ln();
    let own = |i: usize| exact_loss(i, labels[i] as usize);
    let best = |i: usize| exact_loss(i, linear.labels[i] as usize);
    let mean = |of: &dyn Fn(usize) -> f64| (0..IMAGES).map(of).sum::<f64>() / IMAGES as f64;
    assert!((still.expected.mean - mean(&own)).abs() < 1e-4, "{still:?}");
    assert!((still.ensemble.mean - mean(&own)).abs() < 1e-4, "{still:?}");
    assert!(
        (still.predicted.mean - mean(&best)).abs() < 1e-4,
        "{still:?}"
    );

    let mut noisy = linear.model(0.2).unwrap();
    let found = losses(&mut ensemble(&mut noisy), images, 300).unwrap();
    assert!(
        found.expected.mean > found.ensemble.mean + 1e-3,
        "{found:?}"
    );
    assert!(
        found.ensemble.mean > found.predicted.mean + 1e-3,
        "{found:?}"
    );
}

#[test]
fn nonsense_is_refused() {
    let linear = problem();
    let mut model = linear.model(0.0).unwrap();
    let mut net = ensemble(&mut model);
    let images = images(&linear);
    let few = Images {
        labels: &linear.labels[..2],
        ..images
    };
    let other = vec![5; IMAGES];
    let unknown = Images {
        labels: &other,
        ..images
    };
    let argument = |error: Error| matches!(error, Error::Argument { .. });
    assert!(argument(losses(&mut net, few, 3).unwrap_err()));
    assert!(argument(losses(&mut net, unknown, 3).unwrap_err()));
    assert!(argument(losses(&mut net, images, 0).unwrap_err()));
    assert!(argument(
        added_loss(&mut net, images, 0.0, 3, 0).unwrap_err()
    ));
    assert!(argument(
        hessian_trace(&mut net, images, 0, 1e-3, 0).unwrap_err()
    ));
    assert!(argument(
        hessian_trace(&mut net, images, 3, f64::NAN, 0).unwrap_err()
    ));
    assert!(argument(
        local_slope(&mut net, images, -1.0, 3, 0).unwrap_err()
    ));
}
