//! HopSkipJump against the exact answers on linear models.

mod common;

use common::attacks::{black_of, many_rows, three_ratios, untargeted};
use noiseforge::Shape;
use noiseforge::attacks::hopskipjump::HopSkipJump;
use noiseforge::attacks::{BlackBoxAttack, Criterion, Norm, Options};
use noiseforge::selftest::linear::{Case, Linear};

#[test]
fn near_the_smallest_distance_on_linear_models() {
    // Measured medians of six images: in L2 1.09, 1.10, 1.03 and 1.27, in Linf 1.13, 1.13, 1.09 and below
    // 1.5. Where every pixel is at its border, half of a step along the normal is cut off by the box, and
    // the attack ends at the wrong face more often. Without its steps the median is above 2 (see below).
    for case in Case::ALL {
        let linear = Linear::sized(case, Shape::new(6, 8, 8, 3), 3, 3);
        let median = match case {
            Case::BinaryImages => 1.5,
            _ => 1.2,
        };
        for norm in [Norm::L2, Norm::Linf] {
            let attack = HopSkipJump::published(norm);
            let ids = [0, 1, 2, 3, 4, 5];
            let found = black_of(
                &linear,
                0.0,
                &attack,
                &untargeted(&linear),
                &many_rows(),
                &ids,
            );
            let r = three_ratios(&linear, &found, norm);
            eprintln!("{case:?} {norm} {r:.4?} {}", found[0].counts.forward);
            assert!(r[0] > 1.0 - 1e-5, "{case:?} {norm} {r:?}");
            assert!(r[1] < median, "{case:?} {norm} {r:?}");
        }
    }
}

#[test]
fn the_start_alone_is_much_farther() {
    // What the steps are worth: the boundary on the way to a noise image, without a step of use.
    let linear = Linear::sized(Case::Interior, Shape::new(6, 8, 8, 3), 3, 3);
    let attack = HopSkipJump {
        iterations: 1,
        init_evals: 1,
        ..HopSkipJump::published(Norm::L2)
    };
    let ids = [0, 1, 2, 3, 4, 5];
    let found = black_of(
        &linear,
        0.0,
        &attack,
        &untargeted(&linear),
        &many_rows(),
        &ids,
    );
    let r = three_ratios(&linear, &found, Norm::L2);
    assert!(r[1] > 2.0, "{r:?}");
}

#[test]
fn targets_starts_and_images_misclassified_already() {
    let linear = Linear::sized(Case::Interior, Shape::new(6, 8, 8, 3), 3, 3);
    let others: Vec<u32> = linear.labels.iter().map(|l| (l + 1) % 3).collect();
    let targeted = Criterion::Targeted {
        targets: others.clone(),
    };
    // No noise: images of the target's class are the only start.
    let attack = HopSkipJump {
        init_trials: 0,
        starts: (0..6).map(|i| linear.image(i).to_vec()).collect(),
        iterations: 20,
        ..HopSkipJump::published(Norm::L2)
    };
    let ids = [0, 1, 2, 3, 4, 5];
    let found = black_of(&linear, 0.0, &attack, &targeted, &many_rows(), &ids);
    let r = three_ratios(&linear, &found, Norm::L2);
    // Distances to the nearest class, not to the target: a lower bound.
    assert!(r[0] > 1.0 - 1e-5 && r[1] < 2.0, "{r:?}");
    let none = HopSkipJump {
        starts: Vec::new().into(),
        ..attack.clone()
    };
    for f in black_of(&linear, 0.0, &none, &targeted, &many_rows(), &ids) {
        assert!(!f.success && f.l2 == 0.0 && f.counts.forward == 1);
    }
    let wrong = Criterion::Untargeted { labels: others };
    for f in black_of(&linear, 0.0, &attack, &wrong, &many_rows(), &ids) {
        assert!(f.success && f.l2 == 0.0 && f.counts.forward == 1);
    }
}

#[test]
fn a_budget_holds_and_neither_batch_nor_order_matter() {
    let linear = Linear::sized(Case::Interior, Shape::new(4, 6, 6, 3), 3, 3);
    let attack = HopSkipJump {
        iterations: 5,
        ..HopSkipJump::published(Norm::L2)
    };
    let of = |ids: &[u32], rows, budget| {
        let options = Options {
            rows,
            budget,
            confirmations: 3,
            ..Options::default()
        };
        black_of(&linear, 0.05, &attack, &untargeted(&linear), &options, ids)
    };
    let together = of(&[0, 1, 2, 3], 1000, None);
    assert!(together.iter().any(|f| f.success));
    assert_eq!(together, of(&[0, 1, 2, 3], 7, None));
    for (f, i) in of(&[2, 0, 3, 1], 64, None).iter().zip([2, 0, 3, 1]) {
        assert_eq!(*f, together[i]);
    }
    for f in of(&[0, 1, 2, 3], 64, Some(100)) {
        assert!(f.out_of_queries && f.counts.forward <= 100);
    }
}

#[test]
fn the_class_is_all_it_sees() {
    // Scores on another scale, with the same classes: the same queries and the same images.
    let linear = Linear::sized(Case::SparseImages, Shape::new(3, 6, 6, 3), 3, 3);
    let mut scaled = linear.clone();
    for w in scaled
        .weights
        .iter_mut()
        .flatten()
        .chain(&mut scaled.biases)
    {
        *w *= 1024.0;
    }
    let attack = HopSkipJump {
        iterations: 10,
        ..HopSkipJump::published(Norm::Linf)
    };
    let of = |l: &Linear| black_of(l, 0.0, &attack, &untargeted(l), &many_rows(), &[0, 1, 2]);
    assert_eq!(of(&linear), of(&scaled));
}

#[test]
fn bad_arguments_are_named() {
    let error = |attack: HopSkipJump| attack.check(10).unwrap_err().to_string();
    let fine = HopSkipJump::published(Norm::L2);
    assert_eq!(
        error(HopSkipJump {
            points: 0,
            ..fine.clone()
        }),
        "hopskipjump: points: expected at least 1, found 0"
    );
    let starts = vec![vec![0.5, 1.5]].into();
    assert_eq!(
        error(HopSkipJump { starts, ..fine }),
        "hopskipjump: starts: expected values in [0, 1], found 1.5"
    );
}
