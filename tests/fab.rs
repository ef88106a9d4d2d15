//! FAB.

mod common;

use common::attacks::{distances, halfway, untargeted, white};
use noiseforge::attacks::fab::{Fab, to_boundary};
use noiseforge::attacks::{Criterion, Norm, Options, WhiteBoxAttack};
use noiseforge::selftest::linear::{Case, Linear};
use noiseforge::{Shape, Tensor};

#[test]
fn projections_by_hand() {
    // 1.2 x + 1.6 y rises by 0.7 from (0.95, 0.1): without the box (0.21, 0.28), with it (0.05, 0.4)
    for norm in [Norm::L2, Norm::Linf] {
        let d = to_boundary(&[0.95, 0.1], -0.7, &[1.2, 1.6], norm);
        assert!(
            (d[0] - 0.05).abs() < 1e-6 && (d[1] - 0.4).abs() < 1e-6,
            "{d:?}"
        );
    }
    // the other way round, in Linf: 0.7 / 2.8 each
    let d = to_boundary(&[0.95, 0.5], 0.7, &[1.2, 1.6], Norm::Linf);
    assert!(
        (d[0] + 0.25).abs() < 1e-6 && (d[1] + 0.25).abs() < 1e-6,
        "{d:?}"
    );
    // in L2: 0.7 / 4 times the gradient
    let d = to_boundary(&[0.95, 0.5], 0.7, &[1.2, -1.6], Norm::L2);
    assert!(
        (d[0] + 0.21).abs() < 1e-6 && (d[1] - 0.28).abs() < 1e-6,
        "{d:?}"
    );
    // out of reach: the corner; no gradient: nowhere
    assert_eq!(
        to_boundary(&[0.25, 0.5], -9.0, &[1.0, -1.0], Norm::L2),
        [0.75, -0.5]
    );
    assert_eq!(
        to_boundary(&[0.25, 0.5], -9.0, &[0.0, 0.0], Norm::Linf),
        [0.0, 0.0]
    );
}

#[test]
fn distances_are_nearly_exact_on_linear_models() {
    for case in Case::ALL {
        let linear = Linear::case(case, 12, 3);
        let mut model = linear.model(0.0).unwrap();
        for norm in [Norm::L2, Norm::Linf] {
            let exact = distances(&linear, norm);
            for attack in [Fab::untargeted(norm), Fab::targeted(norm)] {
                let options = Options::default();
                let goal = untargeted(&linear);
                let found = white(&linear, &mut model, &goal, &attack, 1, options).unwrap();
                let of = |i: usize| {
                    if norm == Norm::L2 {
                        found[i].l2
                    } else {
                        found[i].linf
                    }
                };
                assert!(found.iter().all(|f| f.success), "{case:?} {norm}");
                let mut ratios: Vec<f64> = (0..12).map(|i| of(i) / exact[i]).collect();
                ratios.sort_by(f64::total_cmp);
                println!(
                    "{case:?} {norm} {}: {:.5} {:.5}",
                    attack.name, ratios[6], ratios[11]
                );
                assert!(ratios[0] >= 1.0 - 1e-5, "{}", ratios[0]);
                // The last search stops a thousandth beyond the boundary; the rest is f32's.
                assert!(
                    ratios[11] <= 1.002,
                    "{case:?} {norm} {}: {}",
                    attack.name,
                    ratios[11]
                );
            }
        }
    }
}

#[test]
fn within_a_bound_robust_accuracy_is_exact_on_linear_models() {
    for case in Case::ALL {
        let linear = Linear::sized(case, Shape::new(20, 8, 8, 3), 10, 3);
        let mut model = linear.model(0.0).unwrap();
        for norm in [Norm::L2, Norm::Linf] {
            let exact = distances(&linear, norm);
            let eps = halfway(&exact);
            let attack = Fab::targeted(norm).within(eps);
            let goal = untargeted(&linear);
            let options = Options::default();
            let found = white(&linear, &mut model, &goal, &attack, 1, options).unwrap();
            for (i, (f, exact)) in found.iter().zip(&exact).enumerate() {
                assert_eq!(f.success, *exact < eps, "{case:?} {norm} {i} {exact} {eps}");
                assert!(if norm == Norm::L2 { f.l2 } else { f.linf } <= eps);
            }
        }
    }
}

#[test]
fn counts_are_the_methods() {
    let linear = Linear::sized(Case::Interior, Shape::new(4, 4, 4, 3), 6, 3);
    let mut model = linear.model(0.0).unwrap();
    let mut counts = |attack: Fab, criterion: &Criterion| {
        let attack = Fab {
            steps: 10,
            restarts: 2,
            ..attack
        };
        let options = Options::default();
        let found = white(&linear, &mut model, criterion, &attack, 1, options).unwrap();
        assert!(
            found
                .iter()
                .all(|f| f.counts == found[0].counts && f.success)
        );
        (found[0].counts.forward, found[0].counts.backward)
    };
    let away = untargeted(&linear);
    // a look, 5 gradients and a look a step, the search
    let untargeted = Fab::untargeted(Norm::L2);
    assert_eq!(counts(untargeted, &away), (1 + 20 * 6 + 3, 20 * 5));
    let targeted = Fab::targeted(Norm::Linf);
    assert_eq!(counts(targeted, &away), (1 + 5 * (20 * 2 + 3), 20 * 5));
    let towards = Criterion::Targeted {
        targets: linear.labels.iter().map(|l| (l + 1) % 6).collect(),
    };
    assert_eq!(counts(untargeted, &towards), (1 + 20 * 2 + 3, 20));
    // An image that is misclassified as it is: one look.
    let wrong = Criterion::Untargeted {
        labels: towards.classes().to_vec(),
    };
    let found = white(
        &linear,
        &mut model,
        &wrong,
        &targeted,
        1,
        Options::default(),
    )
    .unwrap();
    for f in found {
        assert_eq!((f.l2, f.counts.forward, f.counts.backward), (0.0, 1, 0));
        assert!(f.success);
    }
}

#[test]
fn flat_networks_and_bad_arguments_are_no_panic() {
    let x = Tensor::from_vec(Shape::new(1, 1, 1, 1), vec![0.5f32]).unwrap();
    let linear = Linear::new(x, vec![vec![0.0], vec![0.0]], vec![1.0, 0.0]);
    let mut model = linear.model(0.0).unwrap();
    let goal = untargeted(&linear);
    for attack in [
        Fab::untargeted(Norm::L2),
        Fab::targeted(Norm::Linf).within(0.1),
    ] {
        let found = white(&linear, &mut model, &goal, &attack, 1, Options::default()).unwrap();
        assert!(!found[0].success && found[0].broken_by.is_none());
    }
    let error = |attack: Fab| attack.check(2).unwrap_err().to_string();
    let fab = Fab::untargeted(Norm::L2);
    assert_eq!(
        error(Fab { eta: 0.5, ..fab }),
        "fab: eta: expected at least 1, found 0.5"
    );
    assert_eq!(
        error(fab.within(0.0)),
        "fab: bound: expected a finite number above 0, found 0"
    );
}
