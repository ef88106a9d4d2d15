//! The gradient check finds planted mistakes, respects kinks, and passes every op.

use noiseforge::gradcheck::{Check, Report, catalog, normal};
use noiseforge::ops::relu;
use noiseforge::{DType, Result, Shape, Tensor};

const X: Shape = Shape::new(2, 3, 4, 5);

/// `y = x^3 + x w` over elements; the right gradients in x and w.
fn forward(i: &[Tensor]) -> Result<Tensor> {
    let (x, w) = (i[0].data::<f64>(), i[1].data::<f64>());
    Tensor::from_vec(X, x.iter().zip(w).map(|(x, w)| x * x * x + x * w).collect())
}

fn backward(i: &[Tensor], dy: &Tensor) -> Result<Vec<Tensor>> {
    let (x, w, dy) = (i[0].data::<f64>(), i[1].data::<f64>(), dy.data::<f64>());
    let at = 0..x.len();
    let dx = at
        .clone()
        .map(|i| dy[i] * (3.0 * x[i] * x[i] + w[i]))
        .collect();
    let dw = at.map(|i| dy[i] * x[i]).collect();
    Ok(vec![Tensor::from_vec(X, dx)?, Tensor::from_vec(X, dw)?])
}

/// Checks `forward` against `backward` with `plant` done to its results.
fn with(plant: impl Fn(&[Tensor], &Tensor, &mut [f64], &mut [f64])) -> Report {
    let (x, w) = (normal(1, X), normal(2, X));
    Check::new("cubic")
        .input("x", &x)
        .input("w", &w)
        .run(forward, |i, dy| {
            let mut grads = backward(i, dy)?;
            let (dx, dw) = grads.split_at_mut(1);
            plant(i, dy, dx[0].data_mut(), dw[0].data_mut());
            Ok(grads)
        })
        .unwrap()
}

#[test]
fn a_right_gradient_passes() {
    let report = with(|_, _, _, _| {});
    assert!(report.passed(), "{report}");
    // A central difference of step 1e-6 leaves about 1e-10 of rounding.
    assert!(report.worst_error() < 1e-8, "{report}");
    assert_eq!(report.worst_element, None);
    assert!(
        report
            .inputs
            .iter()
            .all(|i| i.directions == 8 && i.skipped == 0)
    );
}

#[test]
fn planted_mistakes_are_found() {
    let sign = with(|_, _, _, dw| dw.iter_mut().for_each(|g| *g = -*g));
    assert!(!sign.passed());
    assert!(
        sign.inputs[0].passed(1e-6) && !sign.inputs[1].passed(1e-6),
        "{sign}"
    );
    let element = sign.worst_element.unwrap();
    assert_eq!(element.input, "w");
    assert!((element.analytic / element.numeric + 1.0).abs() < 1e-6);

    let double = with(|_, _, dx, _| dx.iter_mut().for_each(|g| *g *= 2.0));
    let element = double.worst_element.as_ref().unwrap();
    assert_eq!(element.input, "x");
    assert!((element.analytic / element.numeric - 2.0).abs() < 1e-6);
    assert!(
        double.to_string().contains("x [2, 3, 4, 5]: 8 directions"),
        "{double}"
    );
    assert!(double.to_string().contains("WRONG"), "{double}");

    let missing = with(|i, dy, dx, _| {
        let (w, dy) = (i[1].data::<f64>(), dy.data::<f64>());
        (0..dx.len()).for_each(|i| dx[i] -= dy[i] * w[i]);
    });
    assert!(!missing.passed());

    let zero = with(|_, _, _, dw| dw.fill(0.0));
    assert!(!zero.passed());

    let nan = with(|_, _, dx, _| dx[7] = f64::NAN);
    assert!(!nan.passed());
    assert_eq!(nan.worst_element.unwrap().index, [0, 0, 1, 2]);
}

#[test]
fn one_wrong_element_is_named() {
    // [1, 2, 0, 3] of [2, 3, 4, 5].
    let at = ((3 + 2) * 4) * 5 + 3;
    let report = with(|_, _, dx, _| dx[at] *= 1.01);
    assert!(!report.passed());
    let element = report.worst_element.as_ref().unwrap();
    assert_eq!((element.input.as_str(), element.index), ("x", [1, 2, 0, 3]));
    assert!((element.analytic / element.numeric - 1.01).abs() < 1e-6);
    assert!(
        report.to_string().contains("worst element x[1, 2, 0, 3]"),
        "{report}"
    );
}

#[test]
fn one_wrong_element_of_many_is_named() {
    let shape = Shape::new(3, 20, 25, 7);
    let report = Check::new("identity")
        .input("x", &normal(1, shape))
        .run(
            |i| Ok(i[0].clone()),
            |_, dy| {
                let mut dx = dy.clone();
                dx.data_mut::<f64>()[((2 * 20 + 11) * 25 + 3) * 7 + 6] += 0.1;
                Ok(vec![dx])
            },
        )
        .unwrap();
    assert!(!report.passed());
    assert_eq!(report.worst_element.unwrap().index, [2, 11, 3, 6]);
}

fn relu_check(x: Vec<f64>, declared: bool) -> Report {
    let x = Tensor::from_vec(Shape::vector(x.len()), x).unwrap();
    let mut check = Check::new("relu").input("x", &x);
    if declared {
        check = check.kinks(|i| Ok(i[0].to_f64_vec()));
    }
    let forward = |i: &[Tensor]| relu::forward(i[0].clone(), None);
    check
        .run(forward, |i, dy| {
            Ok(vec![relu::backward(dy.clone(), &forward(i)?, None)?])
        })
        .unwrap()
}

#[test]
fn kinks_are_stepped_around_or_left_out() {
    for declared in [true, false] {
        // A step of 1e-6 v crosses 0 at 2e-7, an eighth of it seldom does.
        let near = relu_check(vec![0.5, 2e-7, -1.0, -2e-7], declared);
        assert!(near.passed(), "declared {declared}: {near}");
        // Exactly at the kink no step helps, and a check of nothing is no pass.
        let on = relu_check(vec![0.5, 0.0, -1.0], declared);
        assert_eq!(on.inputs[0].skipped, 8, "declared {declared}: {on}");
        assert!(!on.passed());
        assert!(on.to_string().contains("NOTHING COMPARED"), "{on}");
    }
}

#[test]
fn curvature_is_no_kink() {
    // Second derivative 1e4 times the first: one-sided differences disagree by 1e-2.
    let check = |factor: f64| {
        Check::new("bowl")
            .input("x", &Tensor::full(X, DType::F64, 1e-4))
            .run(
                |i| Tensor::from_vec(X, i[0].to_f64_vec().iter().map(|x| x * x).collect()),
                |i, dy| {
                    let (x, dy) = (i[0].data::<f64>(), dy.data::<f64>());
                    let dx = x.iter().zip(dy).map(|(x, dy)| factor * x * dy).collect();
                    Ok(vec![Tensor::from_vec(X, dx)?])
                },
            )
            .unwrap()
    };
    let right = check(2.0);
    assert!(right.passed() && right.inputs[0].skipped == 0, "{right}");
    assert!(!check(2.001).passed());
}

#[test]
fn a_gradient_of_zero_is_no_relative_error_of_one() {
    // The sum over a centred row does not depend on what is added to the row.
    let report = Check::new("centre")
        .input("shift", &normal(1, Shape::vector(1)))
        .run(
            |i| {
                let shift = i[0].data::<f64>()[0];
                let row: Vec<f64> = (0..40).map(|k| (k as f64).sin() + shift).collect();
                let mean = row.iter().sum::<f64>() / 40.0;
                Tensor::from_vec(Shape::vector(40), row.iter().map(|v| v - mean).collect())
            },
            |_, _| Ok(vec![Tensor::full(Shape::vector(1), DType::F64, 3e-17)]),
        )
        .unwrap();
    assert!(report.passed(), "{report}");
}

#[test]
fn refuses_what_it_cannot_check() {
    let x = normal(1, X);
    let identity = |i: &[Tensor]| -> Result<Tensor> { Ok(i[0].clone()) };
    let error = |check: Check<'_>, grads: fn(&Tensor) -> Vec<Tensor>| {
        check
            .run(identity, |_, dy| Ok(grads(dy)))
            .unwrap_err()
            .to_string()
    };
    let same = |dy: &Tensor| vec![dy.clone()];
    let on = || Check::new("identity").input("x", &x);
    assert_eq!(
        error(Check::new("identity"), same),
        "gradcheck::run: input: expected at least one input, found none"
    );
    assert_eq!(
        error(on().directions(0), same),
        "gradcheck::run: directions: expected at least 1, found 0"
    );
    assert_eq!(
        error(on().step(f64::NAN), same),
        "gradcheck::run: step: expected a finite number above 0, found NaN"
    );
    assert_eq!(
        error(on(), |_| vec![]),
        "gradcheck::run: backward: expected 1 gradients, one per input, found 0"
    );
    assert_eq!(
        error(on(), |dy| vec![dy.to_dtype(DType::F32).unwrap()]),
        "gradcheck::run: backward: expected [2, 3, 4, 5] f64 for x, found [2, 3, 4, 5] f32"
    );
    assert_eq!(
        on().run(
            |i| Ok(i[0].to_dtype(DType::F32).unwrap()),
            |_, dy| Ok(vec![dy.clone()])
        )
        .unwrap_err()
        .to_string(),
        "gradcheck::run: forward: expected an f64 output, found [2, 3, 4, 5] f32"
    );
}

#[test]
fn every_op_of_the_catalog_passes() {
    for (name, check) in catalog::all() {
        let reports = check().unwrap();
        assert!(!reports.is_empty(), "{name}");
        for report in reports {
            assert!(report.passed(), "{report}");
            // Points are random: none lies at a kink, except among a network's many activations.
            let skipped = report.inputs.iter().any(|i| i.skipped > 0);
            assert!(name == "network" || !skipped, "{report}");
        }
    }
}
