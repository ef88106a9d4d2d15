//! The change of variables of the C&W attack.

use noiseforge::gradcheck::{Check, normal};
use noiseforge::ops::tanh_space::{backward, from_image, squared_distances, to_image};
use noiseforge::{Shape, Tensor};

fn tensor(shape: Shape, data: Vec<f64>) -> Tensor {
    Tensor::from_vec(shape, data).unwrap()
}

#[test]
fn known_values() {
    let shape = Shape::new(1, 1, 4, 1);
    let x = tensor(shape, vec![0.5, 0.75, 0.0, 1.0]);
    let w = from_image(&x, 1.0).unwrap();
    // atanh(1/2) = ln(3) / 2
    let w_data = w.data::<f64>();
    assert_eq!(w_data[0], 0.0);
    assert!((w_data[1] - 3f64.ln() / 2.0).abs() < 1e-15);
    assert_eq!(w_data[2..], [f64::NEG_INFINITY, f64::INFINITY]);
    let back = to_image(&w).unwrap();
    for (a, b) in back.data::<f64>().iter().zip(x.data::<f64>()) {
        assert!((a - b).abs() < 1e-15);
    }
    // shrunk, saturated pixels are finite and come back within half of what was shrunk away
    let w = from_image(&x, 0.999_999).unwrap();
    assert!(w.data::<f64>().iter().all(|v| v.is_finite()));
    let back = to_image(&w).unwrap();
    assert!((back.data::<f64>()[3] - (1.0 - 0.5e-6)).abs() < 1e-12);
}

/// The gradient of `sum ||x' - x||^2 + <f, x'>`, whose part in x' is `df = f`.
#[test]
fn gradient_matches_differences() {
    let shape = Shape::new(3, 2, 5, 3);
    let x = to_image(&normal(1, shape)).unwrap();
    let f = normal(2, shape);
    let report = Check::new("tanh_space")
        .input("w", &normal(3, shape))
        .run(
            |inputs| {
                let adversarial = to_image(&inputs[0])?;
                let linear: f64 = adversarial
                    .data::<f64>()
                    .iter()
                    .zip(f.data::<f64>())
                    .map(|(a, b)| a * b)
                    .sum();
                let squared: f64 = squared_distances(&adversarial, &x)?.iter().sum();
                Tensor::from_vec(Shape::vector(1), vec![squared + linear])
            },
            |inputs, dy| {
                let adversarial = to_image(&inputs[0])?;
                let (_, dw) = backward(&adversarial, &x, &f)?;
                let scale = dy.data::<f64>()[0];
                let scaled = dw.data::<f64>().iter().map(|v| v * scale).collect();
                Ok(vec![Tensor::from_vec(shape, scaled)?])
            },
        )
        .unwrap();
    assert!(report.passed(), "{report}");
}

#[test]
fn distances_are_per_row() {
    let shape = Shape::new(2, 1, 2, 1);
    let a = tensor(shape, vec![0.0, 0.5, 1.0, 1.0]);
    let b = tensor(shape, vec![0.5, 0.5, 0.0, 0.5]);
    assert_eq!(squared_distances(&a, &b).unwrap(), [0.25, 1.25]);
    assert_eq!(backward(&a, &b, &b).unwrap().0, [0.25, 1.25]);
    // a saturated pixel has no gradient
    assert_eq!(backward(&a, &b, &b).unwrap().1.data::<f64>()[0], 0.0);
}

#[test]
fn bad_arguments_are_named() {
    let shape = Shape::new(1, 1, 2, 1);
    for (bad, shown) in [(1.5, "1.5"), (-0.1, "-0.1"), (f64::NAN, "NaN")] {
        let x = tensor(shape, vec![0.5, bad]);
        assert_eq!(
            from_image(&x, 1.0).unwrap_err().to_string(),
            format!("tanh_space::from_image: x: expected pixels in [0, 1], found {shown}")
        );
    }
    let (a, b) = (
        tensor(shape, vec![0.5, 0.5]),
        tensor(Shape::vector(2), vec![0.5, 0.5]),
    );
    assert_eq!(
        squared_distances(&a, &b).unwrap_err().to_string(),
        "tanh_space::squared_distances: b: expected [1, 1, 2, 1] f64, found [1, 1, 1, 2] f64"
    );
    assert_eq!(
        backward(&a, &a, &b).unwrap_err().to_string(),
        "tanh_space::backward: df: expected [1, 1, 2, 1] f64, found [1, 1, 1, 2] f64"
    );
}
