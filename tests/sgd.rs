//! Stochastic gradient descent.

use noiseforge::ops::sgd::{Sgd, step};
use noiseforge::{DType, Shape, Tensor};

fn row(values: &[f64]) -> Tensor {
    Tensor::from_vec(Shape::vector(values.len()), values.to_vec()).unwrap()
}

const SGD: Sgd = Sgd {
    lr: 0.1,
    momentum: 0.9,
    weight_decay: 0.01,
    nesterov: false,
};

#[test]
fn gives_pytorchs_numbers() {
    // w = torch.tensor([1., -2., 3.], dtype=torch.float64, requires_grad=True)
    // o = torch.optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=NESTEROV)
    // for g in ([0.5, -1., 0.], [1., 2., -3.]):
    //     w.grad = torch.tensor(g, dtype=torch.float64); o.step()
    // print(w, o.state[w]['momentum_buffer'])
    for (nesterov, weights, velocities) in [
        (
            false,
            [0.802151, -2.004302, 3.291303],
            [1.46849, 1.06302, -2.94303],
        ),
        (
            true,
            [0.67007411, -2.10014822, 3.55618083],
            [1.468031, 1.063938, -2.943057],
        ),
    ] {
        let (mut w, mut v) = (row(&[1.0, -2.0, 3.0]), row(&[0.0; 3]));
        for grad in [[0.5, -1.0, 0.0], [1.0, 2.0, -3.0]] {
            step(&mut w, &row(&grad), &mut v, Sgd { nesterov, ..SGD }).unwrap();
        }
        for (found, expected) in [(w, weights), (v, velocities)] {
            for (f, e) in found.data::<f64>().iter().zip(expected) {
                assert!((f - e).abs() < 1e-12, "nesterov {nesterov}: {f} for {e}");
            }
        }
    }
}

#[test]
fn every_element_of_a_large_tensor_moves() {
    let len = 3 * 16_384 + 5;
    let mut w = Tensor::full(Shape::new(1, 1, len, 1), DType::F32, 1.0);
    let grad = Tensor::full(w.shape(), DType::F32, 0.5);
    let mut v = Tensor::zeros(w.shape(), DType::F32);
    let plain = Sgd {
        lr: 0.5,
        momentum: 0.0,
        weight_decay: 0.0,
        nesterov: false,
    };
    step(&mut w, &grad, &mut v, plain).unwrap();
    assert!(w.data::<f32>().iter().all(|&w| w == 0.75));
}

#[test]
fn refuses_what_does_not_fit() {
    let mut w = row(&[1.0, 2.0]);
    let mut v = w.clone();
    let mut error = |grad: &Tensor, sgd| step(&mut w, grad, &mut v, sgd).unwrap_err().to_string();
    assert_eq!(
        error(&row(&[1.0]), SGD),
        "sgd::step: grad: expected [1, 1, 1, 2] f64, found [1, 1, 1, 1] f64"
    );
    assert_eq!(
        error(
            &row(&[1.0, 1.0]),
            Sgd {
                lr: f64::NAN,
                ..SGD
            }
        ),
        "sgd::step: sgd.lr: expected a finite number, at least 0, found NaN"
    );
    assert_eq!(
        error(
            &row(&[1.0, 1.0]),
            Sgd {
                momentum: -0.9,
                ..SGD
            }
        ),
        "sgd::step: sgd.momentum: expected a finite number, at least 0, found -0.9"
    );
    assert_eq!(
        step(&mut w, &row(&[1.0, 1.0]), &mut row(&[0.0]), SGD)
            .unwrap_err()
            .to_string(),
        "sgd::step: velocity: expected [1, 1, 1, 2] f64, found [1, 1, 1, 1] f64"
    );
}
