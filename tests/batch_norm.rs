//! Batch normalisation: PyTorch's answers, an f64 reference, stability, independence of rows.

use noiseforge::ops::batch_norm::{
    Activation, Running, Saved, backward, forward_eval, forward_train,
};
use noiseforge::{DType, Shape, Tensor};

/// Values in (-1, 1) from a linear congruential generator.
fn values(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

fn tensor(shape: Shape, dtype: DType, data: &[f64]) -> Tensor {
    Tensor::from_vec(shape, data.to_vec())
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

fn running(c: usize, dtype: DType) -> Running {
    Running {
        mean: Tensor::zeros(Shape::vector(c), dtype),
        var: Tensor::full(Shape::vector(c), dtype, 1.0),
    }
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f - e).abs() <= tolerance,
            "{what}[{i}]: expected {e}, found {f}"
        );
    }
}

// x = torch.tensor(X, dtype=torch.float64).reshape(2, 1, 2, 2).permute(0, 3, 1, 2).requires_grad_()
// bn = torch.nn.BatchNorm2d(2).double(); bn.weight.data = torch.tensor([0.5, 2.0]).double()
// bn.bias.data = torch.tensor([0.25, -1.0]).double()
// y = torch.clamp(bn(x), 0, 1); y.backward(dy)      # dy = 1, ..., 8 in NHWC
// bn.eval(); x.grad = None; bn.zero_grad(); y = torch.relu(bn(x)); y.backward(dy)
const X: [f64; 8] = [1.0, -2.0, 3.0, 0.5, 0.0, 4.0, -1.0, 2.5];
const DY: [f64; 8] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];

#[test]
fn gives_pytorchs_numbers() {
    let shape = Shape::new(2, 1, 2, 2);
    let x = tensor(shape, DType::F64, &X);
    let dy = tensor(shape, DType::F64, &DY);
    let gamma = tensor(Shape::vector(2), DType::F64, &[0.5, 2.0]);
    let beta = tensor(Shape::vector(2), DType::F64, &[0.25, -1.0]);
    let affine = Some((&gamma, &beta));
    let mut estimates = running(2, DType::F64);
    let (mut dgamma, mut dbeta) = (
        Tensor::zeros(Shape::vector(2), DType::F64),
        Tensor::full(Shape::vector(2), DType::F64, 10.0),
    );

    let bounded = Activation::BoundedRelu(1.0);
    let (y, saved) = forward_train(&x, affine, &mut estimates, bounded).unwrap();
    assert!(saved.batch);
    let expected = [0.3345152323, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.1111100137];
    assert_close(&y.to_f64_vec(), &expected, 1e-9, "y");
    assert_close(
        &estimates.mean.to_f64_vec(),
        &[0.075, 0.125],
        1e-9,
        "running mean",
    );
    assert_close(
        &estimates.var.to_f64_vec(),
        &[1.1916666667, 1.575],
        1e-9,
        "running var",
    );
    let grads = Some((&mut dgamma, &mut dbeta));
    let dx = backward(dy.clone(), &x, affine, &saved, bounded, grads).unwrap();
    let expected = [
        0.251130987,
        -0.351168452,
        -0.1062476213,
        -1.4485588904,
        -0.0772711026,
        -2.9849055043,
        -0.0676122631,
        4.7846328466,
    ];
    assert_close(&dx.to_f64_vec(), &expected, 1e-9, "dx");
    assert_close(
        &dgamma.to_f64_vec(),
        &[0.1690304646, 4.4444400549],
        1e-9,
        "dgamma",
    );
    // It adds: the 10 it started from is still there.
    assert_close(&dbeta.to_f64_vec(), &[11.0, 18.0], 1e-9, "dbeta");

    let (y, saved) = forward_eval(&x, affine, &estimates, Activation::Relu).unwrap();
    assert!(!saved.batch);
    let expected = [
        0.6736746888,
        0.0,
        1.5897280701,
        0.0,
        0.2156479982,
        5.1753282107,
        0.0,
        2.7848785808,
    ];
    assert_close(&y.to_f64_vec(), &expected, 1e-9, "eval y");
    let mut dgamma = Tensor::zeros(Shape::vector(2), DType::F64);
    let mut dbeta = dgamma.clone();
    let grads = Some((&mut dgamma, &mut dbeta));
    let dx = backward(dy, &x, affine, &saved, Activation::Relu, grads).unwrap();
    let expected = [
        0.4580266906,
        0.0,
        1.3740800719,
        0.0,
        2.2901334531,
        9.5617985198,
        0.0,
        12.7490646931,
    ];
    assert_close(&dx.to_f64_vec(), &expected, 1e-9, "eval dx");
    assert_close(
        &dgamma.to_f64_vec(),
        &[8.5421977802, 33.6654989552],
        1e-9,
        "eval dgamma",
    );
    assert_close(&dbeta.to_f64_vec(), &[9.0, 14.0], 1e-9, "eval dbeta");
}

/// y, dx, dgamma, dbeta of training without an activation, straight from the formulas.
fn reference(x: &[f64], dy: &[f64], gamma: &[f64], beta: &[f64]) -> [Vec<f64>; 4] {
    let c = gamma.len();
    let n = (x.len() / c) as f64;
    let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
    for ch in 0..c {
        let at = || (ch..x.len()).step_by(c);
        let mean = at().map(|i| x[i]).sum::<f64>() / n;
        let var = at().map(|i| (x[i] - mean).powi(2)).sum::<f64>() / n;
        let inv_std = 1.0 / (var + 1e-5).sqrt();
        dbeta[ch] = at().map(|i| dy[i]).sum();
        dgamma[ch] = at().map(|i| dy[i] * (x[i] - mean) * inv_std).sum();
        for i in at() {
            let xhat = (x[i] - mean) * inv_std;
            y[i] = gamma[ch] * xhat + beta[ch];
            dx[i] = gamma[ch] * inv_std * (dy[i] - dbeta[ch] / n - xhat * dgamma[ch] / n);
        }
    }
    [y, dx, dgamma, dbeta]
}

#[test]
fn f32_stays_within_rounding_of_f64() {
    // One pixel more or less than blocks, four-pixel groups and vectors; few and many channels.
    let shapes = [
        (1, 1, 2, 1),
        (2, 3, 5, 3),
        (3, 7, 5, 17),
        (5, 11, 5, 64),
        (4, 13, 11, 33),
        (2, 1, 1, 20_000),
    ];
    for (n, h, w, c) in shapes {
        let shape = Shape::new(n, h, w, c);
        let round = |v: Vec<f64>| {
            v.into_iter()
                .map(|v| f64::from(v as f32))
                .collect::<Vec<_>>()
        };
        let x = round(values(1, shape.len()));
        let dy = round(values(2, shape.len()));
        let (gamma, beta) = (round(values(3, c)), round(values(4, c)));
        let vector = |v: &[f64]| tensor(Shape::vector(c), DType::F32, v);
        let (g, b) = (vector(&gamma), vector(&beta));
        let affine = Some((&g, &b));
        let input = tensor(shape, DType::F32, &x);
        let mut estimates = running(c, DType::F32);
        let (y, saved) =
            forward_train(&input, affine, &mut estimates, Activation::Identity).unwrap();
        let (mut dgamma, mut dbeta) = (vector(&vec![0.0; c]), vector(&vec![0.0; c]));
        let grads = Some((&mut dgamma, &mut dbeta));
        let dy32 = tensor(shape, DType::F32, &dy);
        let dx = backward(dy32, &input, affine, &saved, Activation::Identity, grads).unwrap();
        let expected = reference(&x, &dy, &gamma, &beta);
        let [ey, edx, edgamma, edbeta] = &expected;
        // A handful of roundings, each of at most eps/2 of a number of this size; for n = 2 the
        // difference x - mean may have lost what makes inv_std large.
        let eps = f64::from(f32::EPSILON);
        let inv_std = saved.inv_std.to_f64_vec().into_iter().fold(1.0, f64::max);
        let pixels = shape.pixels() as f64;
        assert_close(
            &y.to_f64_vec(),
            ey,
            8.0 * eps * inv_std,
            &format!("{shape} y"),
        );
        assert_close(
            &dx.to_f64_vec(),
            edx,
            32.0 * eps * inv_std * inv_std,
            &format!("{shape} dx"),
        );
        let sums = 8.0 * eps * pixels.min(256.0).sqrt() * pixels.sqrt() * inv_std;
        assert_close(
            &dgamma.to_f64_vec(),
            edgamma,
            sums,
            &format!("{shape} dgamma"),
        );
        assert_close(&dbeta.to_f64_vec(), edbeta, sums, &format!("{shape} dbeta"));
    }
}

#[test]
fn a_large_mean_does_not_cancel_the_variance() {
    let shape = Shape::new(8, 32, 32, 5);
    // Sum of twelve uniforms: standard deviation exactly 2 for uniforms on (-1, 1).
    let x: Vec<f64> = values(9, shape.len() * 12)
        .chunks(12)
        .map(|v| f64::from((1e4 + v.iter().sum::<f64>() / 2.0) as f32))
        .collect();
    let input = tensor(shape, DType::F32, &x);
    let mut estimates = running(5, DType::F32);
    let (y, saved) = forward_train(&input, None, &mut estimates, Activation::Identity).unwrap();
    let pixels = shape.pixels() as f64;
    for ch in 0..5 {
        let at = || (ch..x.len()).step_by(5);
        let mean = at().map(|i| x[i]).sum::<f64>() / pixels;
        let var = at().map(|i| (x[i] - mean).powi(2)).sum::<f64>() / pixels;
        let inv_std = saved.inv_std.to_f64_vec()[ch];
        assert!(
            (inv_std * (var + 1e-5).sqrt() - 1.0).abs() < 1e-5,
            "inv_std {inv_std}, var {var}"
        );
        assert!((saved.mean.to_f64_vec()[ch] - mean).abs() <= 1e4 * f64::from(f32::EPSILON));
        // The mean itself is rounded to a multiple of 2^-10.
        let y = y.to_f64_vec();
        for i in at() {
            assert!((y[i] - (x[i] - mean) * inv_std).abs() < 1e-3);
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let shape = Shape::new(7, 19, 17, 24);
    let x = tensor(shape, DType::F32, &values(1, shape.len()));
    let dy = tensor(shape, DType::F32, &values(2, shape.len()));
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let mut estimates = running(24, DType::F32);
            let (y, saved) = forward_train(&x, None, &mut estimates, Activation::Relu).unwrap();
            let dx = backward(dy.clone(), &x, None, &saved, Activation::Relu, None).unwrap();
            let all = [
                y,
                saved.mean,
                saved.inv_std,
                estimates.mean,
                estimates.var,
                dx,
            ];
            all.map(|t| {
                t.data::<f32>()
                    .iter()
                    .map(|v| v.to_bits())
                    .collect::<Vec<_>>()
            })
        })
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn evaluation_of_a_row_ignores_the_other_rows() {
    let shape = Shape::new(5, 9, 11, 40);
    let x = tensor(shape, DType::F32, &values(1, shape.len()));
    let dy = tensor(shape, DType::F32, &values(2, shape.len()));
    let estimates = Running {
        mean: tensor(Shape::vector(40), DType::F32, &values(3, 40)),
        var: tensor(
            Shape::vector(40),
            DType::F32,
            &values(4, 40).iter().map(|v| v + 1.5).collect::<Vec<_>>(),
        ),
    };
    let pass = |x: &Tensor, dy: Tensor| {
        let (y, saved) = forward_eval(x, None, &estimates, Activation::Relu).unwrap();
        let dx = backward(dy, x, None, &saved, Activation::Relu, None).unwrap();
        (y, dx)
    };
    let (y, dx) = pass(&x, dy.clone());
    for rows in [vec![3], vec![4, 0, 3]] {
        let (y_some, dx_some) = pass(
            &x.gather_rows(&rows).unwrap(),
            dy.gather_rows(&rows).unwrap(),
        );
        assert_eq!(
            y.gather_rows(&rows).unwrap().data::<f32>(),
            y_some.data::<f32>()
        );
        assert_eq!(
            dx.gather_rows(&rows).unwrap().data::<f32>(),
            dx_some.data::<f32>()
        );
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let x = Tensor::zeros(Shape::new(2, 3, 3, 4), DType::F32);
    let vector = |c, dtype| Tensor::zeros(Shape::vector(c), dtype);
    let train = |x: &Tensor, affine, c, activation| {
        let mut estimates = running(c, DType::F32);
        forward_train(x, affine, &mut estimates, activation)
            .unwrap_err()
            .to_string()
    };
    let (four, five, double) = (
        vector(4, DType::F32),
        vector(5, DType::F32),
        vector(4, DType::F64),
    );
    assert_eq!(
        train(&x, Some((&four, &five)), 4, Activation::Relu),
        "batch_norm::forward_train: beta: expected [1, 1, 1, 4] f32, found [1, 1, 1, 5] f32"
    );
    assert_eq!(
        train(&x, Some((&double, &four)), 4, Activation::Relu),
        "batch_norm::forward_train: gamma: expected [1, 1, 1, 4] f32, found [1, 1, 1, 4] f64"
    );
    assert_eq!(
        train(&x, None, 3, Activation::Relu),
        "batch_norm::forward_train: running.mean: expected [1, 1, 1, 4] f32, found [1, 1, 1, 3] f32"
    );
    assert_eq!(
        train(&x, None, 4, Activation::BoundedRelu(f64::NAN)),
        "batch_norm::forward_train: activation: expected a bound above 0, found NaN"
    );
    assert_eq!(
        train(
            &Tensor::zeros(Shape::vector(4), DType::F32),
            None,
            4,
            Activation::Relu
        ),
        "batch_norm::forward_train: x: expected more than one value per channel (n h w > 1), found [1, 1, 1, 4]"
    );
    let negative = Running {
        mean: four.clone(),
        var: Tensor::full(Shape::vector(4), DType::F32, -0.5),
    };
    assert_eq!(
        forward_eval(&x, None, &negative, Activation::Relu)
            .unwrap_err()
            .to_string(),
        "batch_norm::forward_eval: running.var: expected at least 0, found -0.5 in channel 0"
    );
    let saved = Saved {
        mean: four.clone(),
        inv_std: four.clone(),
        batch: true,
    };
    let (mut a, mut b) = (four.clone(), four.clone());
    let grads = Some((&mut a, &mut b));
    assert_eq!(
        backward(x.clone(), &x, None, &saved, Activation::Relu, grads)
            .unwrap_err()
            .to_string(),
        "batch_norm::backward: affine_grads: expected none without affine, found some"
    );
    let dy = Tensor::zeros(Shape::new(2, 3, 3, 5), DType::F32);
    assert_eq!(
        backward(dy, &x, None, &saved, Activation::Relu, None)
            .unwrap_err()
            .to_string(),
        "batch_norm::backward: dy: expected [2, 3, 3, 4] f32, found [2, 3, 3, 5] f32"
    );
}
