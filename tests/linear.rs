//! linear against plain loops in f64.

mod common;

use common::values;
use noiseforge::ops::isa::Isa;
use noiseforge::ops::linear;
use noiseforge::{DType, Shape, Tensor};

/// n, inputs, outputs.
const CASES: &[[usize; 3]] = &[
    [1, 1, 1],
    [2, 3, 10],
    [7, 65, 24],
    [33, 512, 10],
    [1, 300, 70],
    [50, 64, 128],
    [300, 70, 65],
];

fn tensor(n: usize, c: usize, values: &[f64], dtype: DType) -> Tensor {
    Tensor::from_vec(Shape::new(n, 1, 1, c), values.to_vec())
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

/// `start + sum over k of a(k) b(k)` and the error bound of a sum of these terms in any order.
fn sum(start: f64, terms: usize, eps: f64, term: impl Fn(usize) -> f64) -> (f64, f64) {
    let value = start + (0..terms).map(&term).sum::<f64>();
    let abs = start.abs() + (0..terms).map(|k| term(k).abs()).sum::<f64>();
    (value, (terms as f64 + 2.0) * eps * abs)
}

#[track_caller]
fn assert_close(what: &str, found: &Tensor, expected: impl Fn(usize, usize) -> (f64, f64)) {
    let c = found.shape().c;
    for (at, found) in found.to_f64_vec().into_iter().enumerate() {
        let (value, bound) = expected(at / c, at % c);
        assert!(
            (found - value).abs() <= bound,
            "{what}[{at}]: {found} for {value}"
        );
    }
}

#[test]
fn agrees_with_plain_loops() {
    for &[n, inputs, outputs] in CASES {
        let (x, w, b) = (
            values(n * inputs, 1),
            values(outputs * inputs, 2),
            values(outputs, 3),
        );
        let (dy, dw0, db0) = (
            values(n * outputs, 4),
            values(w.len(), 5),
            values(outputs, 6),
        );
        for dtype in [DType::F32, DType::F64] {
            let eps = match dtype {
                DType::F32 => f64::from(f32::EPSILON),
                _ => 2.0 * f64::EPSILON,
            };
            for &isa in Isa::available() {
                let (tx, tw) = (
                    tensor(n, inputs, &x, dtype),
                    tensor(outputs, inputs, &w, dtype),
                );
                let (tb, tdy) = (
                    tensor(1, outputs, &b, dtype),
                    tensor(n, outputs, &dy, dtype),
                );
                let mut dw = tensor(outputs, inputs, &dw0, dtype);
                let mut db = tensor(1, outputs, &db0, dtype);
                let (y, bare, dx) = isa.scope(|| {
                    linear::weight_grad(&tdy, &tx, &mut dw, Some(&mut db)).unwrap();
                    (
                        linear::forward(&tx, &tw, Some(&tb)).unwrap(),
                        linear::forward(&tx, &tw, None).unwrap(),
                        linear::input_grad(&tdy, &tw).unwrap(),
                    )
                });
                let what = |name: &str| format!("{n} {inputs} {outputs} {dtype} {isa} {name}");
                let product = |r: usize, o: usize| move |k: usize| (r * inputs + k, o * inputs + k);
                assert_close(&what("y"), &y, |r, o| {
                    sum(b[o], inputs, eps, |k| {
                        let (at, from) = product(r, o)(k);
                        x[at] * w[from]
                    })
                });
                assert_close(&what("y without b"), &bare, |r, o| {
                    sum(0.0, inputs, eps, |k| x[r * inputs + k] * w[o * inputs + k])
                });
                assert_close(&what("dx"), &dx, |r, i| {
                    sum(0.0, outputs, eps, |k| {
                        dy[r * outputs + k] * w[k * inputs + i]
                    })
                });
                assert_close(&what("dw"), &dw, |o, i| {
                    let start = dw0[o * inputs + i];
                    sum(start, n, eps, |k| dy[k * outputs + o] * x[k * inputs + i])
                });
                assert_close(&what("db"), &db, |_, o| {
                    sum(db0[o], n, eps, |k| dy[k * outputs + o])
                });
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for &[n, inputs, outputs] in CASES {
        let x = tensor(n, inputs, &values(n * inputs, 1), DType::F32);
        let w = tensor(outputs, inputs, &values(outputs * inputs, 2), DType::F32);
        let dy = tensor(n, outputs, &values(n * outputs, 4), DType::F32);
        let only = |t: &Tensor| t.gather_rows(&[n - 1]).unwrap();
        let y = linear::forward(&x, &w, None).unwrap();
        let alone = linear::forward(&only(&x), &w, None).unwrap();
        assert_eq!(only(&y).data::<f32>(), alone.data::<f32>());
        let dx = linear::input_grad(&dy, &w).unwrap();
        let alone = linear::input_grad(&only(&dy), &w).unwrap();
        assert_eq!(only(&dx).data::<f32>(), alone.data::<f32>());
    }
}

#[test]
fn bad_arguments_are_named() {
    let f32s = |n, h, c| Tensor::zeros(Shape::new(n, h, 1, c), DType::F32);
    let (x, w, dy) = (f32s(2, 1, 6), f32s(8, 1, 6), f32s(2, 1, 8));
    let cases = [
        (
            linear::forward(&f32s(2, 2, 3), &w, None).unwrap_err(),
            "linear::forward: x: expected a shape [n, 1, 1, c], n and c at least 1, \
             found [2, 2, 1, 3]",
        ),
        (
            linear::forward(&f32s(0, 1, 6), &w, None).unwrap_err(),
            "linear::forward: x: expected a shape [n, 1, 1, c], n and c at least 1, \
             found [0, 1, 1, 6]",
        ),
        (
            linear::forward(&x, &f32s(8, 1, 5), None).unwrap_err(),
            "linear::forward: w: expected [8, 1, 1, 6] f32, found [8, 1, 1, 5] f32",
        ),
        (
            linear::forward(&x, &w, Some(&f32s(1, 1, 6))).unwrap_err(),
            "linear::forward: b: expected [1, 1, 1, 8] f32, found [1, 1, 1, 6] f32",
        ),
        (
            linear::input_grad(&f32s(2, 1, 7), &w).unwrap_err(),
            "linear::input_grad: dy: expected [2, 1, 1, 8] f32, found [2, 1, 1, 7] f32",
        ),
        (
            linear::weight_grad(&dy, &x, &mut f32s(8, 1, 5), None).unwrap_err(),
            "linear::weight_grad: dw: expected [8, 1, 1, 6] f32, found [8, 1, 1, 5] f32",
        ),
        (
            linear::weight_grad(&f32s(3, 1, 8), &x, &mut w.clone(), None).unwrap_err(),
            "linear::weight_grad: dy: expected [2, 1, 1, 8] f32, found [3, 1, 1, 8] f32",
        ),
        (
            linear::weight_grad(&dy, &x, &mut w.clone(), Some(&mut f32s(1, 1, 9))).unwrap_err(),
            "linear::weight_grad: db: expected [1, 1, 1, 8] f32, found [1, 1, 1, 9] f32",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found.to_string(), expected);
    }
}
