//! Softmax and cross-entropy.

use noiseforge::ops::loss::{Scaling, argmax, cross_entropy, distillation, log_softmax, softmax};
use noiseforge::{DType, Shape, Tensor};

fn logits(rows: &[&[f64]]) -> Tensor {
    Tensor::from_vec(Shape::new(rows.len(), 1, 1, rows[0].len()), rows.concat()).unwrap()
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!(
            (f - e).abs() <= tolerance,
            "expected {expected:?}, found {found:?}"
        );
    }
}

#[test]
fn gives_pytorchs_numbers() {
    // z = torch.tensor([[1., 2., 3.], [0., -1., 1000.]], dtype=torch.float64, requires_grad=True)
    // l = torch.nn.functional.cross_entropy(z, torch.tensor([0, 2]), reduction='none')
    // l.mean().backward(); print(l, z.grad, torch.log_softmax(z, 1))
    let z = logits(&[&[1.0, 2.0, 3.0], &[0.0, -1.0, 1000.0]]);
    let (loss, grad) = cross_entropy(&z, &[0, 2]).unwrap();
    assert_close(&loss, &[2.4076059644, 0.0], 1e-10);
    let expected = [-0.4549847134, 0.1223642355, 0.3326204779, 0.0, 0.0, 0.0];
    assert_close(&grad.to_f64_vec(), &expected, 1e-10);
    let expected = [
        -2.4076059644,
        -1.4076059644,
        -0.4076059644,
        -1000.0,
        -1001.0,
        0.0,
    ];
    assert_close(&log_softmax(&z).unwrap().to_f64_vec(), &expected, 1e-10);
    let p = softmax(&z).unwrap().to_f64_vec();
    assert_close(
        &p[..3].iter().map(|p| p.ln()).collect::<Vec<_>>(),
        &expected[..3],
        1e-10,
    );
    assert_close(&p[3..], &[0.0, 0.0, 1.0], 0.0);
    assert_eq!(argmax(&z).unwrap(), [2, 2]);
}

#[test]
fn keeps_digits_where_one_logit_dominates_and_does_not_overflow() {
    // ln(1 + e^-50): all of it would be lost in 1 + e^-50.
    let (loss, grad) = cross_entropy(&logits(&[&[50.0, 0.0]]), &[0]).unwrap();
    assert!((loss[0] / (-50.0f64).exp() - 1.0).abs() < 1e-12);
    assert!((grad.to_f64_vec()[1] / (-50.0f64).exp() - 1.0).abs() < 1e-12);
    for z in [1e300, -1e300] {
        let (loss, _) = cross_entropy(&logits(&[&[z, z]]), &[1]).unwrap();
        assert!((loss[0] - 2.0f64.ln()).abs() < 1e-15);
    }
    let z = Tensor::from_vec(Shape::new(1, 1, 1, 2), vec![3e38f32, -3e38]).unwrap();
    let (loss, grad) = cross_entropy(&z, &[1]).unwrap();
    assert!((loss[0] - 6e38).abs() < 1e32);
    assert_eq!(grad.data::<f32>(), [1.0, -1.0]);
}

#[test]
fn one_class_many_classes_many_rows() {
    let (loss, grad) = cross_entropy(&logits(&[&[3.0], &[-7.0]]), &[0, 0]).unwrap();
    assert_eq!((loss, grad.to_f64_vec()), (vec![0.0, 0.0], vec![0.0, 0.0]));
    let z = Tensor::full(Shape::new(40, 1, 1, 1000), DType::F32, 2.5);
    let p = softmax(&z).unwrap();
    assert!(p.data::<f32>().iter().all(|&p| p == 1e-3));
    let (loss, grad) = cross_entropy(&z, &[999; 40]).unwrap();
    assert!(loss.iter().all(|l| (l - 1000f64.ln()).abs() < 1e-12));
    // Rounded once, from f64.
    assert_eq!(grad.data::<f32>()[0], (1e-3f64 / 40.0) as f32);
}

/// KL(softmax(t / T) || softmax(s / T)) in plain f64 arithmetic, and its gradient in `s`.
fn divergence(s: &[f64], t: &[f64], temperature: f64) -> (f64, Vec<f64>) {
    let soft = |z: &[f64]| -> Vec<f64> {
        let e: Vec<f64> = z.iter().map(|z| (z / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|e| e / sum).collect()
    };
    let (q, p) = (soft(s), soft(t));
    let pairs = || p.iter().zip(&q);
    let kl = pairs().map(|(p, q)| p * (p / q).ln()).sum();
    (kl, pairs().map(|(p, q)| (q - p) / temperature).collect())
}

#[test]
fn distillation_is_the_divergence_of_softened_probabilities() {
    let (s, t) = (
        [[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]],
        [[0.0, 0.3, 2.0], [-4.0, 1.0, 1.0]],
    );
    let student = logits(&[&s[0], &s[1]]);
    let teacher = logits(&[&t[0], &t[1]]);
    for temperature in [0.5, 1.0, 40.0] {
        for (scaling, factor) in [
            (Scaling::Hinton, temperature * temperature),
            (Scaling::Authors, 1.0 / 3.0),
        ] {
            let (loss, grad) = distillation(&student, &teacher, temperature, scaling).unwrap();
            let expected: Vec<_> = (0..2)
                .map(|i| divergence(&s[i], &t[i], temperature))
                .collect();
            let losses: Vec<f64> = expected.iter().map(|e| factor * e.0).collect();
            assert_close(&loss, &losses, 1e-13 * factor.max(1.0));
            // of the mean over two rows
            let grads: Vec<f64> = expected
                .iter()
                .flat_map(|e| &e.1)
                .map(|g| factor * g / 2.0)
                .collect();
            assert_close(&grad.to_f64_vec(), &grads, 1e-14 * factor.max(1.0));
        }
    }
}

#[test]
fn a_student_that_equals_its_teacher_has_nothing_to_learn() {
    let z = logits(&[&[1.0, 2.0, -3.0], &[0.0, -1.0, 1000.0]]);
    for scaling in [Scaling::Hinton, Scaling::Authors] {
        let (loss, grad) = distillation(&z, &z, 40.0, scaling).unwrap();
        assert_eq!((loss, grad.to_f64_vec()), (vec![0.0; 2], vec![0.0; 6]));
    }
}

/// At high temperature the gradient is that of `|z_s - z_t|^2 / 2C` with centred logits (Hinton et al.
/// 2015, eq. 4), times `1 / n`, and `1 / (C T^2)` of that without their `T^2`.
#[test]
fn hot_distillation_matches_centred_logits() {
    let (s, t) = ([1.0, -2.0, 0.5, 2.5], [0.0, 0.3, 2.0, -1.1]);
    let temperature = 1e5;
    let centred = |z: [f64; 4]| z.map(|v| v - z.iter().sum::<f64>() / 4.0);
    let (cs, ct) = (centred(s), centred(t));
    let expected: Vec<f64> = (0..8)
        .map(|i| (cs[i % 4] - ct[i % 4]) / (2.0 * 4.0))
        .collect();
    let (student, teacher) = (logits(&[&s, &s]), logits(&[&t, &t]));
    let gradient = |scaling| -> Vec<f64> {
        let (_, grad) = distillation(&student, &teacher, temperature, scaling).unwrap();
        grad.to_f64_vec()
    };
    // The next term is smaller by z / T; rounding is eps * T.
    assert_close(&gradient(Scaling::Hinton), &expected, 1e-4);
    let without: Vec<f64> = gradient(Scaling::Authors)
        .iter()
        .map(|g| g * 4.0 * temperature.powi(2))
        .collect();
    assert_close(&without, &expected, 1e-4);
}

#[test]
fn distillation_neither_overflows_nor_hides_what_is_not_finite() {
    let far = logits(&[&[1e300, -1e300]]);
    let (loss, grad) =
        distillation(&logits(&[&[-1e300, 1e300]]), &far, 1.0, Scaling::Hinton).unwrap();
    assert_eq!((loss[0], grad.to_f64_vec()), (2e300, vec![-1.0, 1.0]));
    let nan = logits(&[&[f64::NAN, 0.0]]);
    for (s, t) in [(&nan, &far), (&far, &nan)] {
        assert!(!distillation(s, t, 2.0, Scaling::Authors).unwrap().0[0].is_finite());
    }
    let z = logits(&[&[1.0, 2.0]]);
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = distillation(&z, &z, temperature, Scaling::Hinton).unwrap_err();
        let expected = "loss::distillation: temperature: expected a finite number above 0, found ";
        assert_eq!(error.to_string(), format!("{expected}{temperature}"));
    }
    let other = logits(&[&[1.0, 2.0, 3.0]]);
    assert_eq!(
        distillation(&z, &other, 1.0, Scaling::Hinton)
            .unwrap_err()
            .to_string(),
        "loss::distillation: teacher: expected [1, 1, 1, 2] f64, found [1, 1, 1, 3] f64"
    );
}

#[test]
fn argmax_takes_the_first_of_equals_and_a_nan() {
    let z = logits(&[&[1.0, 4.0, 4.0], &[0.0, 0.0, 0.0], &[9.0, f64::NAN, 99.0]]);
    assert_eq!(argmax(&z).unwrap(), [1, 0, 1]);
    assert!(cross_entropy(&z, &[0, 0, 0]).unwrap().0[2].is_nan());
}

#[test]
fn refuses_what_does_not_fit() {
    let z = logits(&[&[1.0, 2.0, 3.0], &[0.0, -1.0, 1.0]]);
    assert_eq!(
        cross_entropy(&z, &[2, 3]).unwrap_err().to_string(),
        "loss::cross_entropy: labels: expected classes below 3, found 3 in row 1"
    );
    assert_eq!(
        cross_entropy(&z, &[2]).unwrap_err().to_string(),
        "loss::cross_entropy: labels: expected 2 entries, one per row, found 1"
    );
    let image = Tensor::zeros(Shape::new(1, 2, 2, 3), DType::F32);
    assert_eq!(
        softmax(&image).unwrap_err().to_string(),
        "loss::softmax: logits: expected [n, 1, 1, classes], found [1, 2, 2, 3]"
    );
    let empty = Tensor::zeros(Shape::new(0, 1, 1, 3), DType::F32);
    assert_eq!(
        argmax(&empty).unwrap_err().to_string(),
        "loss::argmax: logits: expected [n, 1, 1, classes], found [0, 1, 1, 3]"
    );
}
