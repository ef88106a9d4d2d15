//! ReLU and bounded ReLU.

use noiseforge::ops::relu::{backward, backward_mask, forward, forward_mask};
use noiseforge::{DType, Shape, Tensor};

fn row(values: &[f32]) -> Tensor {
    Tensor::from_vec(Shape::vector(values.len()), values.to_vec()).unwrap()
}

#[test]
fn clips_and_gates() {
    let x = row(&[
        -1.0,
        -0.0,
        0.0,
        0.25,
        1.0,
        1.5,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ]);
    let y = forward(x.clone(), None).unwrap();
    assert_eq!(
        y.data::<f32>(),
        [0.0, 0.0, 0.0, 0.25, 1.0, 1.5, f32::INFINITY, 0.0]
    );
    let y = forward(x.clone(), Some(1.0)).unwrap();
    assert_eq!(y.data::<f32>(), [0.0, 0.0, 0.0, 0.25, 1.0, 1.0, 1.0, 0.0]);
    // The input was shared and is as it was.
    assert_eq!(x.data::<f32>()[0], -1.0);
    // Both kinks, 0 and the cap, have derivative 0.
    let dy = row(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let dx = backward(dy, &y, Some(1.0)).unwrap();
    assert_eq!(dx.data::<f32>(), [0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn nan_stays_nan() {
    let x = row(&[f32::NAN, 1.0]);
    for cap in [None, Some(0.5)] {
        assert!(forward(x.clone(), cap).unwrap().data::<f32>()[0].is_nan());
    }
}

#[test]
fn every_length_and_type() {
    for len in [1, 7, 16, 33, 16_385, 50_000] {
        let x: Vec<f64> = (0..len)
            .map(|i| (i * 37 % 101) as f64 / 50.0 - 1.0)
            .collect();
        let x = Tensor::from_vec(Shape::vector(len), x).unwrap();
        for dtype in [DType::F32, DType::F64] {
            let x = x.to_dtype(dtype).unwrap();
            let y = forward(x.clone(), Some(0.75)).unwrap();
            let dx = backward(x.clone(), &y, Some(0.75)).unwrap();
            let all = x
                .to_f64_vec()
                .into_iter()
                .zip(y.to_f64_vec())
                .zip(dx.to_f64_vec());
            for ((x, y), dx) in all {
                assert_eq!(y, x.clamp(0.0, 0.75));
                assert_eq!(dx, if 0.0 < x && x < 0.75 { x } else { 0.0 });
            }
        }
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let x = row(&[1.0, 2.0]);
    assert_eq!(
        forward(x.clone(), Some(0.0)).unwrap_err().to_string(),
        "relu::forward: cap: expected a number above 0, found 0"
    );
    assert_eq!(
        backward(x.clone(), &row(&[1.0]), None)
            .unwrap_err()
            .to_string(),
        "relu::backward: y: expected [1, 1, 1, 2] f32, found [1, 1, 1, 1] f32"
    );
    assert_eq!(
        backward(x.clone(), &x.to_dtype(DType::F64).unwrap(), None)
            .unwrap_err()
            .to_string(),
        "relu::backward: y: expected [1, 1, 1, 2] f32, found [1, 1, 1, 2] f64"
    );
}

/// A byte is eight channels of a pixel, and a pixel starts a new one.
#[test]
fn masks_say_where_the_gradient_passes() {
    let mut data = vec![-1.0f32; 2 * 9];
    for (at, v) in [(0, 0.5), (3, 1.0), (8, 0.25), (9, 0.0), (17, f32::NAN)] {
        data[at] = v;
    }
    data[10] = 0.75;
    let shape = Shape::new(1, 1, 2, 9);
    let x = Tensor::from_vec(shape, data).unwrap();
    let (y, mask) = forward_mask(x.clone(), Some(1.0)).unwrap();
    assert_eq!(mask.shape(), shape);
    assert_eq!(mask.to_vec().unwrap(), [1, 1, 2, 0]);
    let expected = forward(x.clone(), Some(1.0)).unwrap();
    assert_eq!(y.data::<f32>()[..17], expected.data::<f32>()[..17]);
    let dy = Tensor::full(shape, DType::F32, 3.0);
    let dx = backward_mask(dy.clone(), &mask).unwrap();
    let expected = backward(dy, &y, Some(1.0)).unwrap();
    assert_eq!(dx.data::<f32>(), expected.data::<f32>());
    assert_eq!(
        backward_mask(row(&[1.0]), &mask).unwrap_err().to_string(),
        "relu::backward_mask: mask: expected one of [1, 1, 1, 1], found one of [1, 1, 2, 9]"
    );
}
