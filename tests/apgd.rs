//! Auto-PGD and its losses.

mod common;

use common::attacks::{distances, halfway, untargeted, white};
use noiseforge::Shape;
use noiseforge::attacks::apgd::{Apgd, Loss, checkpoints};
use noiseforge::attacks::{Criterion, Goal, Norm, Objective, Options, Targets, attack_white_box};
use noiseforge::ensemble::Ensemble;
use noiseforge::ops::noise::Purpose;
use noiseforge::selftest::linear::{Case, Linear};

#[test]
fn checkpoints_are_the_papers() {
    assert_eq!(checkpoints(100), [22, 41, 57, 70, 80, 87, 93, 99]);
    assert_eq!(checkpoints(10), [3, 5, 6, 7, 8, 9, 10]);
    for steps in 1..300 {
        let all = checkpoints(steps);
        assert!(all.is_sorted_by(|a, b| a < b), "{steps} {all:?}");
        assert!(
            all[0] >= 1 && all[all.len() - 1] <= steps,
            "{steps} {all:?}"
        );
    }
}

#[test]
fn losses_by_hand() {
    // sorted: 5, 3, 2, 1; label 2 (score 3)
    let z = [2.0f32, 5.0, 3.0, 1.0];
    let mut gradient = [0.0; 4];
    let away = Objective::dlr(Goal::Away(2));
    assert!((away.evaluate(&z, &mut gradient) - 2.0 / 3.0).abs() < 1e-9);
    let towards = Objective::dlr(Goal::Towards(2));
    assert!((towards.evaluate(&z, &mut gradient) + 2.0 / 3.0).abs() < 1e-9);
    // (z_0 - z_2) / (5 - (2 + 1) / 2)
    let targeted = Objective::targeted_dlr(Some(2), 0);
    assert!((targeted.evaluate(&z, &mut gradient) + 1.0 / 3.5).abs() < 1e-9);
    // from the largest but the target
    let any = Objective::targeted_dlr(None, 0);
    assert!((any.evaluate(&z, &mut gradient) + 3.0 / 3.5).abs() < 1e-9);
    for objective in [away, towards, targeted, any] {
        let mut g = [0.0; 4];
        let value = objective.evaluate(&z, &mut g);
        // neither shift nor scale changes it: sum g = 0 and g z = 0
        let sum: f32 = g.iter().sum();
        let along: f32 = g.iter().zip(z).map(|(g, z)| g * z).sum();
        assert!(sum.abs() < 1e-6 && along.abs() < 1e-6);
        for k in 0..4 {
            // 2^-6 is exact in f32, and the order of the scores stays
            let h = 1.0 / 64.0;
            let at = |sign: f32| {
                let mut moved = z;
                moved[k] += sign * h;
                objective.evaluate(&moved, &mut [0.0; 4])
            };
            let difference = (at(1.0) - at(-1.0)) / f64::from(2.0 * h);
            // The third derivative is at most 6 |r| / s^3 + 6 / s^3 with s >= 3 and |r| < 1: 0.5.
            let error = (difference - f64::from(g[k])).abs();
            assert!(
                error < 0.5 / 6.0 * f64::from(h * h) + 1e-6,
                "{k} {difference} {}",
                g[k]
            );
        }
        assert!(value.is_finite());
    }
    // All scores equal: finite.
    let mut g = [0.0; 4];
    let value = Objective::dlr(Goal::Away(0)).evaluate(&[1.0; 4], &mut g);
    assert!(value == 0.0 && g.iter().all(|g| g.is_finite()));
}

#[test]
fn robust_accuracy_is_exact_on_linear_models() {
    for (classes, n) in [(2, 40), (10, 40)] {
        for case in Case::ALL {
            let linear = Linear::sized(case, Shape::new(n, 8, 8, 3), classes, 3);
            let mut model = linear.model(0.0).unwrap();
            for norm in [Norm::Linf, Norm::L2] {
                // Where the box cuts the ball off, projecting on one after the other is no projection on
                // both: in L2 the exact answer is one for the interior alone.
                let exact_in_l2 = matches!(case, Case::Interior | Case::ShiftedLogits);
                let exact = distances(&linear, norm);
                let eps = halfway(&exact);
                let attack = match classes {
                    2 => Apgd::cross_entropy(norm, eps),
                    _ => Apgd::targeted_dlr(norm, eps),
                };
                let options = Options::default();
                let goal = untargeted(&linear);
                let found = white(&linear, &mut model, &goal, &attack, 1, options).unwrap();
                for (i, f) in found.iter().enumerate() {
                    let distance = if norm == Norm::L2 { f.l2 } else { f.linf };
                    assert!(distance <= eps + 1e-7);
                    let tag = format!("{case:?} {classes} {norm} {i}: {} {eps}", exact[i]);
                    if norm == Norm::Linf || exact_in_l2 {
                        assert_eq!(f.success, exact[i] < eps, "{tag}");
                    } else {
                        assert!(!f.success || exact[i] < eps, "{tag}");
                    }
                }
                let broken = found.iter().filter(|f| f.success).count();
                println!("{case:?} {classes} classes, {norm}: {broken} of {n}");
            }
        }
    }
}

#[test]
fn counts_are_the_methods_and_the_target_is_the_goal() {
    let linear = Linear::sized(Case::Interior, Shape::new(5, 4, 4, 3), 6, 3);
    let mut model = linear.model(0.0).unwrap();
    let mut counts = |loss, criterion: &Criterion| {
        let attack = Apgd {
            loss,
            steps: 12,
            restarts: 2,
            ..Apgd::cross_entropy(Norm::Linf, 1e-4)
        };
        let options = Options::default();
        let found = white(&linear, &mut model, criterion, &attack, 1, options).unwrap();
        let all: Vec<_> = found
            .iter()
            .map(|f| (f.counts.forward, f.counts.backward))
            .collect();
        assert!(all.iter().all(|c| *c == all[0]));
        all[0]
    };
    let away = untargeted(&linear);
    let towards = Criterion::Targeted {
        targets: linear.labels.iter().map(|l| (l + 1) % 6).collect(),
    };
    assert_eq!(counts(Loss::CrossEntropy, &away), (2 * 13, 2 * 12));
    assert_eq!(counts(Loss::Dlr, &away), (2 * 13, 2 * 12));
    let three = Loss::TargetedDlr { targets: 3 };
    assert_eq!(counts(three, &away), (1 + 3 * 2 * 13, 3 * 2 * 12));
    // five wrong classes are all there are
    let nine = Loss::TargetedDlr { targets: 9 };
    assert_eq!(counts(nine, &away), (1 + 5 * 2 * 13, 5 * 2 * 12));
    assert_eq!(counts(nine, &towards), (2 * 13, 2 * 12));

    for attack in [
        Apgd::cross_entropy(Norm::Linf, 0.4),
        Apgd::dlr(Norm::Linf, 0.4),
        Apgd::targeted_dlr(Norm::Linf, 0.4),
    ] {
        let options = Options::default();
        let found = white(&linear, &mut model, &towards, &attack, 1, options).unwrap();
        for (i, f) in found.iter().enumerate() {
            let z: Vec<f32> = (0..6)
                .map(|k| {
                    let products = linear.weights[k].iter().zip(&f.pixels).map(|(w, x)| w * x);
                    products.sum::<f32>() + linear.biases[k]
                })
                .collect();
            let reached = towards.goal(i).is_met(&z);
            assert!(f.success && reached, "{} {i}", attack.name);
            assert_eq!(f.broken_by, Some(attack.name));
        }
    }
}

#[test]
fn no_result_depends_on_the_batch_or_the_order() {
    let linear = Linear::sized(Case::SparseImages, Shape::new(9, 4, 4, 3), 5, 3);
    let mut model = linear.model(0.1).unwrap();
    let attack = Apgd {
        steps: 20,
        loss: Loss::TargetedDlr { targets: 3 },
        ..Apgd::targeted_dlr(Norm::L2, halfway(&distances(&linear, Norm::L2)))
    };
    let mut of = |ids: &[u32], rows| {
        let indices: Vec<usize> = ids.iter().map(|&i| i as usize).collect();
        let labels = indices.iter().map(|&i| linear.labels[i]).collect();
        let targets = Targets {
            x: &linear.images.gather_rows(&indices).unwrap(),
            ids,
            criterion: &Criterion::Untargeted { labels },
        };
        let options = Options {
            rows,
            passes: 2,
            confirmations: 3,
            ..Options::default()
        };
        let mut net = Ensemble::new(&mut model, 7, Purpose::Attack, 2).unwrap();
        attack_white_box(&mut net, targets, &attack, &options, &mut |_| Ok(())).unwrap()
    };
    let together = of(&[0, 1, 2, 3, 4, 5, 6, 7, 8], 256);
    let order = [7, 2, 8, 0, 1, 6, 5, 4, 3];
    for rows in [1, 7, 256] {
        for (found, &i) in of(&order, rows).iter().zip(&order) {
            assert_eq!(*found, together[i as usize]);
        }
    }
    assert!(together.iter().any(|f| f.success) && together.iter().any(|f| !f.success));
}

#[test]
fn bad_arguments_are_named() {
    let linear = Linear::sized(Case::Interior, Shape::new(2, 4, 4, 3), 3, 3);
    let mut model = linear.model(0.0).unwrap();
    let mut error = |attack: Apgd| {
        let goal = untargeted(&linear);
        let result = white(&linear, &mut model, &goal, &attack, 1, Options::default());
        result.unwrap_err().to_string()
    };
    assert_eq!(
        error(Apgd::targeted_dlr(Norm::Linf, 0.1)),
        "apgd-t: classes: expected at least 4 for the targeted difference of logits ratio, found 3"
    );
    let attack = Apgd::cross_entropy(Norm::Linf, 0.1);
    assert_eq!(
        error(Apgd { rho: 1.5, ..attack }),
        "apgd-ce: rho: expected 0 to 1, found 1.5"
    );
    assert_eq!(
        error(Apgd { steps: 0, ..attack }),
        "apgd-ce: steps: expected at least 1, found 0"
    );
    assert_eq!(
        error(Apgd {
            eps: f64::NAN,
            ..attack
        }),
        "apgd-ce: eps: expected a finite number above 0, found NaN"
    );
    let two = Linear::sized(Case::Interior, Shape::new(2, 4, 4, 3), 2, 3);
    let mut model = two.model(0.0).unwrap();
    let goal = untargeted(&two);
    let attack = Apgd::dlr(Norm::Linf, 0.1);
    let result = white(&two, &mut model, &goal, &attack, 1, Options::default());
    assert_eq!(
        result.unwrap_err().to_string(),
        "apgd-dlr: classes: expected at least 3 for the difference of logits ratio, found 2"
    );
}
