//! The self-test passes, and its problems are what they say.

use noiseforge::attacks::apgd::Apgd;
use noiseforge::attacks::{Norm, Options, Targets, attack_white_box};
use noiseforge::ensemble::{Classifier, Ensemble};
use noiseforge::models::{Arch, Config, Model};
use noiseforge::ops::noise::{Purpose, Row, Rows};
use noiseforge::selftest;
use noiseforge::selftest::binarisation::{Binarisation, Binary};
use noiseforge::selftest::linear::{Case, Linear};
use noiseforge::{Shape, Tensor};

#[test]
fn every_answer_is_right() {
    let mut told = 0;
    let checks = selftest::run(3, &mut |_| {
        told += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!((checks.len(), told), (13, 13));
    for check in checks {
        assert!(check.passed, "{check:?}");
    }
}

#[test]
fn a_binarised_network_has_the_image_it_promises() {
    let input = Shape::new(1, 8, 8, 3);
    let mut config = Config::new(Arch::Small, input, 5);
    config.width = 4;
    let mut model = Model::new(config, 5).unwrap();
    let x = Linear::sized(Case::Interior, input.with_n(6), 5, 7).images;
    let ids: Vec<u32> = (0..6).collect();
    for norm in [Norm::Linf, Norm::L2] {
        let eps = 0.3;
        let mut net = Ensemble::new(&mut model, 1, Purpose::Attack, 1).unwrap();
        let problem = Binarisation::new(norm, eps, 3);
        let readouts = problem.readouts(&mut net, &x, &ids).unwrap();
        let readouts: Vec<_> = readouts.into_iter().map(Option::unwrap).collect();
        let planted: Vec<f32> = readouts
            .iter()
            .flat_map(|r| r.adversarial.clone())
            .collect();
        let mut binary = Binary::new(&mut net, ids.iter().copied().zip(readouts.clone()));
        let rows: Rows = ids.iter().map(|&id| Row { id, draw: 0 }).collect();
        assert_eq!(binary.predict(&x, &rows).unwrap(), [0; 6]);
        let planted = Tensor::from_vec(x.shape(), planted).unwrap();
        assert_eq!(binary.predict(&planted, &rows).unwrap(), [1; 6]);
        for (i, r) in readouts.iter().enumerate() {
            let original = &x.data::<f32>()[i * 192..][..192];
            let distance = norm.distance(&r.adversarial, original);
            assert!(
                distance <= eps * (1.0 + 1e-5) && distance > 0.9 * eps,
                "{distance}"
            );
        }
        // An attack that hardly moves does not find it: the test can fail.
        let criterion = Binary::criterion(6);
        let targets = Targets {
            x: &x,
            ids: &ids,
            criterion: &criterion,
        };
        let mut found = |eps| {
            let attack = Apgd::cross_entropy(norm, eps);
            let options = Options::default();
            attack_white_box(&mut binary, targets, &attack, &options, &mut |_| Ok(())).unwrap()
        };
        assert!(found(1e-3 * eps).iter().all(|f| !f.success));
        assert!(found(eps).iter().filter(|f| f.success).count() >= 5);
    }
}
