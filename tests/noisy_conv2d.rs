//! noisy_conv2d against noise followed by conv2d, and its own properties.

mod common;

use noiseforge::ops::conv2d::{self, Conv2d};
use noiseforge::ops::isa::Isa;
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose};
use noiseforge::ops::noisy_conv2d;
use noiseforge::{DType, Shape, Tensor};

/// n, h, w, c_in, c_out, k, stride, pad, groups.
#[rustfmt::skip]
const CASES: &[[usize; 9]] = &[
    [1, 1, 1, 1, 1, 1, 1, 0, 1],
    [2, 5, 4, 3, 10, 3, 1, 1, 1],
    [7, 4, 4, 24, 70, 3, 1, 1, 1],
    [33, 2, 3, 65, 24, 3, 1, 1, 1],
    [2, 9, 8, 3, 70, 7, 2, 3, 1],
    [2, 5, 7, 24, 64, 1, 2, 0, 1],
    [2, 7, 6, 8, 24, 2, 3, 1, 1],
    [3, 5, 6, 140, 130, 3, 1, 1, 2],
    [4, 5, 6, 12, 20, 3, 1, 1, 4],
    [5, 17, 15, 70, 65, 3, 1, 1, 1],
    [1, 100, 70, 64, 24, 3, 1, 1, 1],
];

struct Inputs {
    x: Tensor,
    w: Tensor,
    b: Tensor,
    dy: Tensor,
    conv: Conv2d,
    noise: Noise,
}

fn values(shape: Shape, seed: u64, dtype: DType) -> Tensor {
    let data = common::values(shape.len(), seed);
    Tensor::from_vec(shape, data)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

fn inputs(sigma: f32, normals: Normals, dtype: DType) -> impl Iterator<Item = Inputs> {
    CASES
        .iter()
        .map(move |&[n, h, w, c_in, c_out, k, stride, pad, groups]| {
            let conv = Conv2d {
                stride,
                pad,
                groups,
            };
            let x = values(Shape::new(n, h, w, c_in), 1, dtype);
            let w = values(Shape::new(c_out, k, k, c_in / groups), 2, dtype);
            let y = conv.output_shape("test", x.shape(), w.shape()).unwrap();
            let key = Key::consecutive(5, Purpose::Test, 100, n, 3);
            Inputs {
                b: values(Shape::vector(c_out), 3, dtype),
                dy: values(y, 4, dtype),
                x,
                w,
                conv,
                noise: Noise {
                    key,
                    layer: 2,
                    sigma,
                    normals,
                },
            }
        })
}

fn bits(t: &Tensor) -> Vec<u64> {
    t.to_f64_vec().into_iter().map(f64::to_bits).collect()
}

/// Results of noisy_conv2d and of conv2d on `x`, which are to be the same bits.
fn assert_same(i: &Inputs, x: &Tensor) {
    let Inputs {
        w,
        b,
        dy,
        conv,
        noise,
        ..
    } = i;
    let fused = noisy_conv2d::forward(&i.x, noise, w, Some(b), *conv).unwrap();
    let plain = conv2d::forward(x, w, Some(b), *conv).unwrap();
    assert!(
        bits(&fused) == bits(&plain),
        "y {:?} {:?} {conv:?}",
        x.shape(),
        w.shape()
    );
    let zeros = |t: &Tensor| Tensor::zeros(t.shape(), t.dtype());
    let (mut dw, mut db) = (zeros(w), zeros(b));
    noisy_conv2d::weight_grad(dy, &i.x, noise, &mut dw, Some(&mut db), *conv).unwrap();
    let (mut plain_dw, mut plain_db) = (zeros(w), zeros(b));
    conv2d::weight_grad(dy, x, &mut plain_dw, Some(&mut plain_db), *conv).unwrap();
    assert!(
        bits(&dw) == bits(&plain_dw),
        "dw {:?} {:?} {conv:?}",
        x.shape(),
        w.shape()
    );
    assert!(
        bits(&db) == bits(&plain_db),
        "db {:?} {:?} {conv:?}",
        x.shape(),
        w.shape()
    );
}

#[test]
fn is_noise_then_convolution_to_the_bit() {
    for &isa in Isa::available() {
        for normals in [Normals::Fast, Normals::Precise] {
            for dtype in [DType::F32, DType::F64] {
                for i in inputs(0.7, normals, dtype) {
                    let noisy = noise::forward(&i.x, &i.noise).unwrap();
                    assert!(bits(&noisy) != bits(&i.x));
                    isa.scope(|| assert_same(&i, &noisy));
                }
            }
        }
    }
}

#[test]
fn without_deviation_is_the_convolution_to_the_bit() {
    for mut i in inputs(0.0, Normals::Fast, DType::F32) {
        // Adding +0 would lose the sign of -0.
        i.x.data_mut::<f32>()[0] = -0.0;
        assert_same(&i, &i.x);
    }
}

#[test]
fn weight_gradient_draws_the_noise_of_the_forward_pass() {
    for i in inputs(0.7, Normals::Fast, DType::F64) {
        // y is linear in w: <dw, w> = <y - b, dy>.
        let y = noisy_conv2d::forward(&i.x, &i.noise, &i.w, None, i.conv).unwrap();
        let mut dw = Tensor::zeros(i.w.shape(), DType::F64);
        noisy_conv2d::weight_grad(&i.dy, &i.x, &i.noise, &mut dw, None, i.conv).unwrap();
        let dot = |a: &Tensor, b: &Tensor| -> f64 {
            a.data::<f64>()
                .iter()
                .zip(b.data::<f64>())
                .map(|(a, b)| a * b)
                .sum()
        };
        let (left, right) = (dot(&dw, &i.w), dot(&y, &i.dy));
        // Terms below 10 in size; their rounding errors have random signs.
        let terms = (i.dy.shape().len() * i.w.shape().row_len()) as f64;
        let bound = 10.0 * terms.powf(1.5) * f64::EPSILON;
        assert!(
            (left - right).abs() <= bound,
            "{:?}: {left} {right}",
            i.x.shape()
        );
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_and_threads_change_nothing() {
    for i in inputs(0.7, Normals::Fast, DType::F32) {
        let all = noisy_conv2d::forward(&i.x, &i.noise, &i.w, Some(&i.b), i.conv).unwrap();
        let row = i.x.shape().n - 1;
        let mut noise = i.noise.clone();
        noise.key.rows = [noise.key.rows[row]].into();
        let x = i.x.gather_rows(&[row]).unwrap();
        let alone = noisy_conv2d::forward(&x, &noise, &i.w, Some(&i.b), i.conv).unwrap();
        assert!(
            bits(&alone) == bits(&all.gather_rows(&[row]).unwrap()),
            "{:?}",
            i.x.shape()
        );
        let results = [1, 2, 5].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let mut dw = Tensor::zeros(i.w.shape(), DType::F32);
                noisy_conv2d::weight_grad(&i.dy, &i.x, &i.noise, &mut dw, None, i.conv).unwrap();
                let y = noisy_conv2d::forward(&i.x, &i.noise, &i.w, Some(&i.b), i.conv).unwrap();
                [bits(&y), bits(&dw)]
            })
        });
        assert!(
            results[0] == results[1] && results[0] == results[2],
            "{:?}",
            i.x.shape()
        );
    }
}

#[test]
fn bad_arguments_are_named() {
    let i = inputs(0.7, Normals::Fast, DType::F32).nth(1).unwrap();
    for sigma in [f32::NAN, -1.0, f32::INFINITY] {
        let noise = Noise {
            sigma,
            ..i.noise.clone()
        };
        let error = noisy_conv2d::forward(&i.x, &noise, &i.w, None, i.conv).unwrap_err();
        assert!(
            error.to_string().starts_with("noisy_conv2d::forward: "),
            "{error}"
        );
        let mut dw = i.w.clone();
        let error =
            noisy_conv2d::weight_grad(&i.dy, &i.x, &noise, &mut dw, None, i.conv).unwrap_err();
        assert!(
            error.to_string().starts_with("noisy_conv2d::weight_grad: "),
            "{error}"
        );
    }
    let mut noise = i.noise.clone();
    noise.key.rows = noise.key.rows[1..].into();
    assert!(noisy_conv2d::forward(&i.x, &noise, &i.w, None, i.conv).is_err());
    let w = Tensor::zeros(Shape::new(10, 3, 3, 4), DType::F32);
    let error = noisy_conv2d::forward(&i.x, &i.noise, &w, None, i.conv).unwrap_err();
    assert_eq!(
        error.to_string(),
        "noisy_conv2d::forward: w: expected 3 input channels per group, found [10, 3, 3, 4]"
    );
}
