//! ZOO against exact answers on linear models.

mod common;

use std::sync::Mutex;

use common::attacks::{black_of, many_rows, ratios, untargeted};
use noiseforge::attacks::zoo::{Draws, Grid, Solver, Space, Zoo};
use noiseforge::attacks::{
    BlackBoxAttack, Criterion, Found, Norm, Options, Targets, attack_black_box,
};
use noiseforge::ensemble::{Classifier, Ensemble};
use noiseforge::ops::noise::{Purpose, Rows};
use noiseforge::selftest::linear::{Case, Linear};
use noiseforge::tensor::Device;
use noiseforge::{Result, Shape, Tensor};

fn run(linear: &Linear, sigma: f32, attack: &Zoo, options: &Options) -> Vec<Found> {
    let ids: Vec<u32> = (0..linear.labels.len() as u32).collect();
    black_of(linear, sigma, attack, &untargeted(linear), options, &ids)
}

/// For images of 48 values: 600 iterations of all of them for each of 9 constants.
fn thorough(solver: Solver, space: Space) -> Zoo {
    Zoo {
        solver,
        space,
        iterations: 600,
        c: 1.0,
        early_stop: 0,
        // Newton's curvature divides the rounding of the scores by h squared.
        h: if solver == Solver::Newton { 1e-2 } else { 1e-3 },
        lr: if solver == Solver::Newton { 0.05 } else { 5e-3 },
        ..Zoo::search()
    }
}

#[test]
fn within_a_twentieth_of_the_smallest_distance() {
    for (case, space) in [
        (Case::Interior, Space::Tanh),
        (Case::Interior, Space::Clipped),
        (Case::ShiftedLogits, Space::Clipped),
        (Case::SparseImages, Space::Clipped),
    ] {
        for solver in [Solver::Adam, Solver::Newton] {
            // Of more classes the nearest in score need not be the nearest in distance, and the descent
            // may end at its boundary: with three, one image of five ends at 1.078 and four at 1.0001.
            let linear = Linear::sized(case, Shape::new(5, 4, 4, 3), 2, 3);
            let found = run(&linear, 0.0, &thorough(solver, space), &many_rows());
            let ratios = ratios(&linear, &found, Norm::L2);
            assert!(ratios[0] > 1.0 - 1e-5, "{ratios:?}");
            eprintln!("{case:?} {space:?} {solver:?} {ratios:.4?}");
            assert!(ratios[4] < 1.05, "{case:?} {space:?} {solver:?} {ratios:?}");
        }
    }
}

#[test]
fn every_image_is_attacked_and_pixels_fall_as_well_as_rise() {
    let linear = Linear::sized(Case::Interior, Shape::new(7, 4, 4, 3), 3, 4);
    let zoo = thorough(Solver::Adam, Space::Clipped);
    for (i, f) in run(&linear, 0.0, &zoo, &many_rows()).iter().enumerate() {
        assert!(f.success);
        let changes = f.pixels.iter().zip(linear.image(i)).map(|(a, b)| a - b);
        let (rises, falls): (Vec<f32>, Vec<f32>) = changes.partition(|&d| d > 0.0);
        // The weights are normal, so that half of the best changes go down: 24, standard deviation 3.5.
        assert!(rises.len() > 10 && falls.len() > 10, "{}", rises.len());
    }
}

#[test]
fn queries_are_the_closed_form() {
    let linear = Linear::sized(Case::Interior, Shape::new(3, 8, 8, 3), 3, 4);
    for (averages, draws) in [
        (1, Draws::Independent),
        (3, Draws::Common),
        (2, Draws::Pairs),
    ] {
        let zoo = Zoo {
            iterations: 7,
            search_steps: 2,
            c: 1e-6,
            averages,
            draws,
            early_stop: 0,
            ..Zoo::published()
        };
        for f in run(&linear, 0.0, &zoo, &many_rows()) {
            // one look at the image, then the iterate and two probes of each coordinate
            let expected = 1 + 2 * 7 * (2 * 128 + 1) * u64::from(averages);
            assert_eq!((f.counts.forward, f.counts.backward), (expected, 0));
            assert!(!f.success && f.l2 == 0.0);
            assert!((f.c.unwrap() / 1e-5 - 1.0).abs() < 1e-12);
        }
        let short = Options {
            budget: Some(1000),
            ..many_rows()
        };
        for f in run(&linear, 0.0, &zoo, &short) {
            let step = 257 * u64::from(averages);
            assert_eq!(f.counts.forward, 1 + 999 / step * step);
            assert!(f.out_of_queries);
        }
    }
    // With a constant that moves nothing the loss stands still: given up at the second look.
    let stuck = Zoo {
        c: 1e-12,
        space: Space::Clipped,
        early_stop: 2,
        ..Zoo::published()
    };
    let mut alike = linear.clone();
    alike.weights = vec![vec![0.0; 192]; 3];
    alike.biases = vec![1.0, 0.0, 0.0];
    alike.labels = vec![0; 3];
    for f in run(&alike, 0.0, &stuck, &many_rows()) {
        assert_eq!(f.counts.forward, 1 + 3 * 257);
    }
}

/// A classifier that notes what it is asked.
struct Spy<'a> {
    net: Ensemble<'a>,
    asked: &'a Mutex<Vec<(Vec<f32>, u32)>>,
}

impl Classifier for Spy<'_> {
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
        let len = x.shape().row_len();
        let mut asked = self.asked.lock().unwrap();
        for (i, pixels) in x.data::<f32>().chunks(len).enumerate() {
            asked.push((pixels.to_vec(), rows[i].draw));
        }
        self.net.logits(x, rows)
    }
}

/// What an attack asks about one image.
fn asked(linear: &Linear, sigma: f32, zoo: &Zoo) -> Vec<(Vec<f32>, u32)> {
    let mut model = linear.model(sigma).unwrap();
    let asked = Mutex::new(Vec::new());
    let mut net = Spy {
        net: Ensemble::new(&mut model, 7, Purpose::Attack, 1).unwrap(),
        asked: &asked,
    };
    let criterion = untargeted(linear);
    let targets = Targets {
        x: &linear.images,
        ids: &[0],
        criterion: &criterion,
    };
    attack_black_box(&mut net, targets, zoo, &many_rows(), &mut |_| Ok(())).unwrap();
    asked.into_inner().unwrap()
}

#[test]
fn the_first_update_is_lr_times_the_sign_of_the_slope() {
    let linear = Linear::sized(Case::Interior, Shape::new(1, 16, 16, 3), 2, 4);
    let zoo = Zoo {
        iterations: 2,
        space: Space::Clipped,
        h: 1e-2,
        c: 0.1,
        ..Zoo::published()
    };
    let asked = asked(&linear, 0.0, &zoo);
    let (x, next) = (linear.image(0), &asked[1 + 257].0);
    let y = linear.labels[0] as usize;
    let mut touched = 0;
    for i in 0..x.len() {
        let d = f64::from(next[i]) - f64::from(x[i]);
        // Raising the other class lowers the loss.
        let rise = f64::from(linear.weights[1 - y][i]) - f64::from(linear.weights[y][i]);
        if d != 0.0 {
            touched += 1;
            assert!((d - 0.01 * rise.signum()).abs() < 1e-6, "{d} {rise}");
        }
    }
    assert_eq!(touched, 128);
}

/// The slopes of a first step's coordinates, relative to the exact ones: root mean square error.
fn slope_error(sigma: f32, draws: Draws, averages: u32, h: f64) -> f64 {
    let linear = Linear::sized(Case::Interior, Shape::new(1, 16, 16, 3), 2, 4);
    let zoo = Zoo {
        iterations: 1,
        space: Space::Clipped,
        h,
        draws,
        averages,
        ..Zoo::published()
    };
    let asked = asked(&linear, sigma, &zoo);
    // The same questions again, now to see the answers.
    let mut model = linear.model(sigma).unwrap();
    let mut net = Ensemble::new(&mut model, 7, Purpose::Attack, 1).unwrap();
    let pixels: Vec<f32> = asked.iter().flat_map(|(p, _)| p.clone()).collect();
    let x = Tensor::from_vec(linear.input.with_n(asked.len()), pixels).unwrap();
    let rows: Vec<_> = asked
        .iter()
        .map(|&(_, draw)| noiseforge::ops::noise::Row { id: 0, draw })
        .collect();
    let z = net.logits(&x, &rows.into()).unwrap();
    let margin: Vec<f64> = z
        .data::<f32>()
        .chunks(2)
        .map(|z| f64::from(z[0]) - f64::from(z[1]))
        .collect();
    let a = averages as usize;
    let mean: Vec<f64> = margin[1..]
        .chunks(a)
        .map(|m| m.iter().sum::<f64>() / a as f64)
        .collect();
    let original = linear.image(0);
    let (mut wrong, mut all) = (0.0, 0.0);
    for (k, pair) in mean[1..].chunks(2).enumerate() {
        let probe = &asked[1 + (1 + 2 * k) * a].0;
        let i = (0..original.len())
            .find(|&i| probe[i] != original[i])
            .unwrap();
        let exact = f64::from(linear.weights[0][i]) - f64::from(linear.weights[1][i]);
        wrong += ((pair[0] - pair[1]) / (2.0 * h) - exact).powi(2);
        all += exact * exact;
    }
    (wrong / all).sqrt()
}

#[test]
fn common_draws_cancel_the_noise_and_independent_ones_do_not() {
    // A step of a power of two is exact in f32; what is left is the rounding of the scores.
    let h = 2f64.powi(-5);
    let none = slope_error(0.0, Draws::Independent, 1, h);
    assert!(none < 1e-4, "{none}");
    for draws in [Draws::Common, Draws::Pairs] {
        for averages in [1, 4] {
            let error = slope_error(0.2, draws, averages, h);
            assert!(error < 1e-4, "{draws:?} {averages} {error}");
        }
    }
    // A margin's noise has the standard deviation sigma ||w||, a slope's that by sqrt(2) / 2h; a slope is of
    // order ||w|| / sqrt(768): relative to it sigma sqrt(768 / 2) / h.
    for h in [1e-4, 1e-2] {
        for averages in [1, 10] {
            let error = slope_error(0.2, Draws::Independent, averages, h);
            let expected = 0.2 * 384f64.sqrt() / h / f64::from(averages).sqrt();
            let ratio = error / expected;
            // 128 slopes: a relative standard deviation of a sixteenth, and as much of the slopes'
            assert!(
                (0.7..1.3).contains(&ratio),
                "{h} {averages} {error} {expected}"
            );
        }
    }
}

#[test]
fn noise_hides_a_linear_model_from_independent_draws_alone() {
    let linear = Linear::sized(Case::Interior, Shape::new(6, 4, 4, 3), 2, 3);
    let confirmed = Options {
        confirmations: 51,
        ..many_rows()
    };
    let zoo = Zoo {
        draws: Draws::Common,
        iterations: 300,
        search_steps: 5,
        ..thorough(Solver::Adam, Space::Clipped)
    };
    let of = |draws| {
        let zoo = Zoo {
            draws,
            h: 1e-3,
            ..zoo.clone()
        };
        let found = run(&linear, 0.1, &zoo, &confirmed);
        let ratio = |(i, f): (usize, &Found)| match f.success {
            true => f.l2 / linear.distance(i, Norm::L2),
            false => f64::INFINITY,
        };
        let mut ratios: Vec<f64> = found.iter().enumerate().map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    };
    let (common, independent) = (of(Draws::Common), of(Draws::Independent));
    eprintln!("common {common:.3?} independent {independent:.3?}");
    assert!(
        common[5] < 1.3 && independent[0] > 1.5,
        "{common:?} {independent:?}"
    );
}

#[test]
fn no_result_depends_on_the_batch_or_the_order() {
    let linear = Linear::sized(Case::Interior, Shape::new(5, 6, 6, 3), 3, 3);
    let zoo = Zoo {
        iterations: 60,
        c: 10.0,
        h: 1e-2,
        draws: Draws::Common,
        importance: true,
        grids: vec![Grid { from: 0, side: 3 }, Grid { from: 30, side: 6 }],
        ..Zoo::published()
    };
    let criterion = untargeted(&linear);
    let of = |ids: &[u32], rows| {
        let options = Options {
            rows,
            confirmations: 3,
            ..Options::default()
        };
        black_of(&linear, 0.05, &zoo, &criterion, &options, ids)
    };
    let together = of(&[0, 1, 2, 3, 4], 2000);
    assert!(together.iter().any(|f| f.success));
    assert_eq!(together, of(&[0, 1, 2, 3, 4], 50));
    let order = [3, 0, 4, 2, 1];
    for (f, &i) in of(&order, 300).iter().zip(&order) {
        assert_eq!(*f, together[i as usize]);
    }
}

#[test]
fn targets_and_images_misclassified_already() {
    let linear = Linear::sized(Case::Interior, Shape::new(3, 4, 4, 3), 3, 3);
    let zoo = thorough(Solver::Adam, Space::Tanh);
    let targets: Vec<u32> = linear.labels.iter().map(|l| (l + 1) % 3).collect();
    let targeted = Criterion::Targeted {
        targets: targets.clone(),
    };
    let found = black_of(&linear, 0.0, &zoo, &targeted, &many_rows(), &[0, 1, 2]);
    for (i, f) in found.iter().enumerate() {
        assert!(f.success && f.l2 >= linear.distance(i, Norm::L2) * (1.0 - 1e-5));
    }
    let wrong = Criterion::Untargeted { labels: targets };
    let found = black_of(&linear, 0.0, &zoo, &wrong, &many_rows(), &[0, 1, 2]);
    for f in found {
        assert!(f.success && f.l2 == 0.0 && f.counts.forward == 1);
    }
}

#[test]
fn a_coarser_grid_perturbs_in_blocks() {
    let linear = Linear::sized(Case::Interior, Shape::new(2, 8, 8, 3), 2, 3);
    let zoo = Zoo {
        grids: vec![Grid { from: 0, side: 1 }],
        ..thorough(Solver::Adam, Space::Clipped)
    };
    // One value a channel: all pixels of a channel change alike.
    for (i, f) in run(&linear, 0.0, &zoo, &many_rows()).iter().enumerate() {
        assert!(f.success && f.counts.forward == 1 + 9 * 600 * 7);
        let d: Vec<f32> = f
            .pixels
            .iter()
            .zip(linear.image(i))
            .map(|(a, b)| a - b)
            .collect();
        let inside = |j: &usize| f.pixels[*j] > 0.0 && f.pixels[*j] < 1.0;
        for j in (3..d.len()).filter(inside) {
            assert!((d[j] - d[j % 3]).abs() < 1e-6 || !inside(&(j % 3)));
        }
    }
}

#[test]
fn bad_arguments_are_named() {
    let error = |zoo: Zoo| zoo.check(10).unwrap_err().to_string();
    let zoo = Zoo::published();
    assert_eq!(
        error(Zoo {
            h: 0.0,
            ..zoo.clone()
        }),
        "zoo: h: expected a finite number above 0, found 0"
    );
    assert_eq!(
        error(Zoo {
            averages: 0,
            ..zoo.clone()
        }),
        "zoo: averages: expected at least 1, found 0"
    );
    let grids = vec![Grid { from: 1, side: 4 }];
    assert_eq!(
        error(Zoo {
            grids,
            ..zoo.clone()
        }),
        "zoo: grids: expected sides of at least 1 from iteration 0 on, ascending, found \
         [Grid { from: 1, side: 4 }]"
    );
    assert!(zoo.check(2).is_ok() && zoo.clone().for_images_of(32, 32) == zoo);
    assert!(zoo.for_images_of(96, 96).check(2).is_ok());
}
