//! Residual addition.

use noiseforge::ops::add::forward;
use noiseforge::{DType, Shape, Tensor};

#[test]
fn adds_every_element() {
    for len in [1, 5, 16_384, 16_385, 40_001] {
        let shape = Shape::new(1, len, 1, 1);
        let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
        let a = Tensor::from_vec(shape, a).unwrap();
        let b = Tensor::full(shape, DType::F32, 0.5);
        for dtype in [DType::F32, DType::F64] {
            let y = forward(a.to_dtype(dtype).unwrap(), &b.to_dtype(dtype).unwrap()).unwrap();
            assert!(
                y.to_f64_vec()
                    .iter()
                    .enumerate()
                    .all(|(i, &y)| y == i as f64 + 0.5)
            );
        }
        assert_eq!(a.data::<f32>()[0], 0.0, "the shared input is as it was");
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let a = Tensor::zeros(Shape::new(2, 3, 3, 4), DType::F32);
    let b = Tensor::zeros(Shape::new(2, 3, 3, 5), DType::F32);
    assert_eq!(
        forward(a.clone(), &b).unwrap_err().to_string(),
        "add::forward: b: expected [2, 3, 3, 4] f32, found [2, 3, 3, 5] f32"
    );
    assert_eq!(
        forward(a.clone(), &a.to_dtype(DType::F64).unwrap())
            .unwrap_err()
            .to_string(),
        "add::forward: b: expected [2, 3, 3, 4] f32, found [2, 3, 3, 4] f64"
    );
}
