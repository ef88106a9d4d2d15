//! The Carlini-Wagner margin.

use noiseforge::ops::margin::{Direction, forward_backward};
use noiseforge::{DType, Shape, Tensor};

fn logits(rows: &[[f32; 3]]) -> Tensor {
    Tensor::from_vec(Shape::new(rows.len(), 1, 1, 3), rows.concat()).unwrap()
}

#[test]
fn known_answers() {
    let z = logits(&[
        [3.0, 1.0, 2.5],
        [1.0, 4.0, 0.0],
        [2.0, 2.0, 2.0],
        [0.0, 1.0, 1.0],
    ]);
    let weight = [2.0, 3.0, 5.0, 7.0];
    // Away from class 0: Z_0 minus the best other.
    let (margin, grad) = forward_backward(&z, &[0; 4], Direction::Away, 0.0, &weight).unwrap();
    assert_eq!(margin, [0.5, 0.0, 0.0, 0.0]);
    // At the hinge (row 2, margin 0) the gradient is 0.
    let expected = [2.0, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(grad.data::<f32>(), expected);
    // A kappa of 10 keeps every row in front of the hinge; of equals the first takes the gradient.
    let (margin, grad) = forward_backward(&z, &[0; 4], Direction::Away, 10.0, &weight).unwrap();
    assert_eq!(margin, [0.5, -3.0, 0.0, -1.0]);
    let expected = [
        2.0, 0.0, -2.0, 3.0, -3.0, 0.0, 5.0, -5.0, 0.0, 7.0, -7.0, 0.0,
    ];
    assert_eq!(grad.data::<f32>(), expected);
    // Towards class 1.
    let (margin, grad) = forward_backward(&z, &[1; 4], Direction::Towards, 2.0, &weight).unwrap();
    assert_eq!(margin, [2.0, -2.0, 0.0, 0.0]);
    let expected = [
        2.0, -2.0, 0.0, 0.0, 0.0, 0.0, 5.0, -5.0, 0.0, 0.0, -7.0, 7.0,
    ];
    assert_eq!(grad.data::<f32>(), expected);
}

#[test]
fn a_nan_is_not_hidden() {
    let z = logits(&[[1.0, f32::NAN, 0.0], [f32::NAN, 1.0, 0.0]]);
    let (margin, _) = forward_backward(&z, &[0, 0], Direction::Away, 0.0, &[1.0; 2]).unwrap();
    assert!(margin.iter().all(|m| m.is_nan()));
}

#[test]
fn refuses_what_does_not_fit() {
    let z = logits(&[[3.0, 1.0, 2.5], [1.0, 4.0, 0.0]]);
    let error = |z: &Tensor, classes: &[u32], kappa, weight: &[f64]| {
        forward_backward(z, classes, Direction::Away, kappa, weight)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(
            &Tensor::zeros(Shape::new(2, 1, 1, 1), DType::F32),
            &[0, 0],
            0.0,
            &[1.0; 2]
        ),
        "margin::forward_backward: logits: expected at least 2 classes, found [2, 1, 1, 1]"
    );
    assert_eq!(
        error(&z, &[0, 7], 0.0, &[1.0; 2]),
        "margin::forward_backward: classes: expected classes below 3, found 7 in row 1"
    );
    assert_eq!(
        error(&z, &[0, 1], -1.0, &[1.0; 2]),
        "margin::forward_backward: kappa: expected a finite number, at least 0, found -1"
    );
    assert_eq!(
        error(&z, &[0, 1], 0.0, &[1.0]),
        "margin::forward_backward: weight: expected 2 entries, one per row, found 1"
    );
    assert_eq!(
        error(&z, &[0, 1], 0.0, &[1.0, f64::NAN]),
        "margin::forward_backward: weight: expected finite numbers, found NaN in row 1"
    );
}
