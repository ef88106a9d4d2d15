//! Square attack and the control of random noise.

mod common;

use common::attacks::{black, distances, halfway};
use noiseforge::Shape;
use noiseforge::attacks::random_noise::RandomNoise;
use noiseforge::attacks::square::Square;
use noiseforge::attacks::{BlackBoxAttack, Norm, Options};
use noiseforge::selftest::linear::{Case, Linear};

#[test]
fn the_schedule_is_the_papers() {
    let square = Square::new(Norm::Linf, 0.1);
    for (query, halvings) in [
        (0, 0),
        (10, 0),
        (11, 1),
        (50, 1),
        (51, 2),
        (201, 3),
        (501, 4),
        (1001, 5),
        (2001, 6),
        (4001, 7),
        (4999, 7),
    ] {
        assert_eq!(
            square.share(query),
            0.8 / f64::from(1 << halvings),
            "{query}"
        );
    }
    let rescaled = Square {
        rescale: true,
        queries: 1000,
        ..square
    };
    assert_eq!(rescaled.share(1), 0.8);
    assert_eq!(rescaled.share(2), 0.4);
    assert_eq!(rescaled.share(999), 0.8 / 512.0);
}

/// Runs the attack, holds it to the exact answers, and counts images broken and images that can be.
fn broken(linear: &Linear, norm: Norm, share_of_halfway: f64) -> (usize, usize) {
    let mut model = linear.model(0.0).unwrap();
    let exact = distances(linear, norm);
    let eps = share_of_halfway * halfway(&exact);
    let attack = Square::new(norm, eps);
    let found = black(linear, &mut model, &attack, Options::default()).unwrap();
    for (f, exact) in found.iter().zip(&exact) {
        assert!(!f.success || *exact < eps, "{norm} {exact} {eps}");
        let distance = if norm == Norm::L2 { f.l2 } else { f.linf };
        assert!(
            norm == Norm::Linf && distance <= eps + 1e-7 || distance <= eps,
            "{distance} {eps}"
        );
        assert!(f.pixels.iter().all(|x| (0.0..=1.0).contains(x)));
        assert!(f.success || f.counts.forward == 5000);
    }
    let there = exact.iter().filter(|d| **d < eps).count();
    (found.iter().filter(|f| f.success).count(), there)
}

#[test]
fn finds_what_there_is_in_linf_and_never_more() {
    for classes in [2, 10] {
        for case in Case::ALL {
            let linear = Linear::sized(case, Shape::new(20, 8, 8, 3), classes, 3);
            // The last squares are single pixels, so only some of 5000 steps can change each of them.
            let (found, there) = broken(&linear, Norm::Linf, 1.0);
            println!("{case:?} {classes} classes, at the exact radius: {found} of {there}");
            assert!(2 * found >= there, "{case:?} {classes} {found} {there}");
            let (found, there) = broken(&linear, Norm::Linf, 1.25);
            assert_eq!(found, there, "{case:?} {classes}");
        }
    }
}

/// A network whose weights change slowly over the image: in L2 the attack's bumps are at least three
/// pixels wide, and of a network without any structure 5000 queries find next to nothing.
#[test]
fn finds_what_there_is_in_l2_where_weights_are_smooth() {
    let shape = Shape::new(20, 8, 8, 3);
    let mut linear = Linear::sized(Case::Interior, shape, 2, 3);
    let smooth = |column: usize| (std::f32::consts::TAU * column as f32 / 8.0).sin();
    linear.weights = vec![
        (0..shape.row_len())
            .map(|i| 0.1 * smooth(i / 3 % 8))
            .collect(),
        vec![0.0; shape.row_len()],
    ];
    linear.biases = vec![0.0; 2];
    let linear = Linear::new(linear.images, linear.weights, linear.biases);
    // The smallest bump is a good part of so small an image: no more than most of what there is.
    let (found, there) = broken(&linear, Norm::L2, 2.0);
    println!("smooth, at twice the exact radius: {found} of {there}");
    assert!(4 * found >= 3 * there, "{found} {there}");
}

#[test]
fn small_images_and_counts() {
    for shape in [(1, 1, 1), (1, 2, 1), (2, 3, 3), (7, 4, 2)] {
        let linear = Linear::sized(
            Case::Interior,
            Shape::new(3, shape.0, shape.1, shape.2),
            2,
            1,
        );
        let mut model = linear.model(0.1).unwrap();
        for norm in [Norm::L2, Norm::Linf] {
            let attack = Square {
                queries: 40,
                ..Square::new(norm, 1e-5)
            };
            let found = black(&linear, &mut model, &attack, Options::default()).unwrap();
            // 0 confirmations say that nothing is random
            assert!(found.iter().all(|f| f.success || f.counts.forward == 40));
            // Two queries a step; every confirmation takes 101 more.
            let options = Options {
                confirmations: 101,
                ..Options::default()
            };
            for f in black(&linear, &mut model, &attack, options).unwrap() {
                assert_eq!(f.counts.forward % 101, 39, "{}", f.counts.forward);
                assert_eq!(f.counts.backward, 0);
            }
        }
    }
}

#[test]
fn noise_is_weaker_than_an_attack_and_stops_with_the_budget() {
    let linear = Linear::sized(Case::Interior, Shape::new(10, 8, 8, 3), 3, 3);
    let mut model = linear.model(0.0).unwrap();
    for norm in [Norm::Linf, Norm::L2] {
        let exact = distances(&linear, norm);
        let near = RandomNoise {
            tries: 500,
            ..RandomNoise::new(norm, halfway(&exact))
        };
        let found = black(&linear, &mut model, &near, Options::default()).unwrap();
        assert!(found.iter().all(|f| !f.success && f.counts.forward == 500));
        // Nearly every point lies far out.
        for f in &found {
            assert!(if norm == Norm::L2 { f.l2 } else { f.linf } >= 0.98 * near.eps);
        }
        let options = Options {
            budget: Some(100),
            ..Options::default()
        };
        let found = black(&linear, &mut model, &near, options).unwrap();
        assert!(
            found
                .iter()
                .all(|f| f.out_of_queries && f.counts.forward == 100)
        );
        // In a ball that is the whole box any class can win.
        let far = RandomNoise::new(norm, 15.0);
        let found = black(&linear, &mut model, &far, Options::default()).unwrap();
        assert!(found.iter().all(|f| f.success));
    }
}

#[test]
fn bad_arguments_are_named() {
    let error = |attack: &dyn BlackBoxAttack| attack.check(2).unwrap_err().to_string();
    let square = Square::new(Norm::L2, 0.5);
    assert_eq!(
        error(&Square { p: 0.0, ..square }),
        "square: p: expected above 0, at most 1, found 0"
    );
    assert_eq!(
        error(&Square {
            queries: 0,
            ..square
        }),
        "square: queries: expected at least 1, found 0"
    );
    let noise = RandomNoise::new(Norm::L2, -1.0);
    assert_eq!(
        error(&noise),
        "noise: eps: expected a finite number above 0, found -1"
    );
}
