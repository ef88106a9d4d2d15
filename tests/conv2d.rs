//! conv2d against plain loops in f64, on every instruction set the machine has.

mod common;

use common::values;
use noiseforge::ops::conv2d::{self, Conv2d, Then};
use noiseforge::ops::isa::Isa;
use noiseforge::ops::relu;
use noiseforge::{DType, Shape, Tensor};

#[derive(Debug, Clone, Copy)]
struct Case {
    x: Shape,
    c_out: usize,
    k: usize,
    conv: Conv2d,
    bias: bool,
}

/// n, h, w, c_in, c_out, k, stride, pad, groups.
#[rustfmt::skip]
const CASES: &[[usize; 9]] = &[
    [1, 1, 1, 1, 1, 1, 1, 0, 1],
    [2, 1, 1, 5, 3, 1, 1, 0, 1],
    [1, 1, 1, 3, 10, 3, 1, 1, 1],
    [2, 5, 4, 3, 10, 3, 1, 1, 1],
    [1, 7, 9, 3, 64, 3, 1, 1, 1],
    [2, 6, 5, 1, 24, 5, 1, 2, 1],
    [1, 9, 8, 3, 70, 7, 2, 3, 1],
    [2, 8, 8, 8, 64, 3, 1, 1, 1],
    [7, 4, 4, 24, 70, 3, 1, 1, 1],
    [33, 2, 2, 24, 10, 3, 1, 1, 1],
    [33, 3, 2, 65, 24, 3, 1, 1, 1],
    [7, 1, 1, 65, 64, 3, 1, 1, 1],
    [2, 4, 3, 200, 70, 3, 1, 1, 1],
    [33, 1, 1, 130, 64, 1, 1, 0, 1],
    [7, 5, 6, 65, 70, 1, 1, 0, 1],
    [2, 5, 7, 24, 64, 1, 2, 0, 1],
    [2, 7, 5, 8, 10, 1, 3, 0, 1],
    [2, 5, 5, 5, 24, 1, 1, 2, 1],
    [2, 6, 7, 5, 24, 2, 1, 0, 1],
    [2, 6, 7, 8, 10, 2, 2, 0, 1],
    [1, 7, 6, 8, 24, 2, 3, 1, 1],
    [2, 8, 7, 24, 24, 3, 2, 1, 1],
    [7, 9, 10, 5, 10, 3, 3, 0, 1],
    [2, 10, 8, 3, 24, 3, 3, 2, 1],
    [1, 4, 5, 8, 8, 3, 1, 3, 1],
    [1, 3, 3, 8, 64, 5, 1, 3, 1],
    [2, 11, 6, 5, 10, 5, 2, 2, 1],
    [1, 9, 9, 24, 10, 5, 3, 1, 1],
    [1, 8, 9, 5, 64, 7, 1, 3, 1],
    [1, 10, 9, 3, 10, 7, 3, 2, 1],
    [2, 6, 6, 8, 24, 3, 1, 1, 2],
    [7, 5, 4, 24, 24, 3, 1, 1, 24],
    [2, 7, 8, 24, 72, 3, 2, 1, 3],
    [2, 5, 6, 130, 140, 3, 1, 1, 2],
    [33, 2, 3, 10, 20, 3, 1, 1, 5],
    [2, 9, 7, 6, 10, 2, 2, 1, 2],
    [2, 6, 4, 16, 32, 1, 1, 0, 4],
    [1, 64, 33, 3, 8, 3, 1, 1, 1],
    [1, 3, 40, 65, 64, 3, 1, 1, 1],
];

fn cases() -> impl Iterator<Item = Case> {
    CASES.iter().enumerate().map(
        |(i, &[n, h, w, c_in, c_out, k, stride, pad, groups])| Case {
            x: Shape::new(n, h, w, c_in),
            c_out,
            k,
            conv: Conv2d {
                stride,
                pad,
                groups,
            },
            bias: i % 2 == 0,
        },
    )
}

fn tensor(shape: Shape, values: &[f64], dtype: DType) -> Tensor {
    Tensor::from_vec(shape, values.to_vec())
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

/// A sum, the sum of the absolute values of its terms, and the number of terms.
#[derive(Clone, Copy, Default)]
struct Sum {
    value: f64,
    abs: f64,
    terms: f64,
}

impl Sum {
    fn add(&mut self, term: f64) {
        self.value += term;
        self.abs += term.abs();
        self.terms += 1.0;
    }
}

struct Reference {
    y_shape: Shape,
    y: Vec<Sum>,
    dx: Vec<Sum>,
    dw: Vec<Sum>,
    db: Vec<Sum>,
}

struct Inputs {
    x: Vec<f64>,
    w_shape: Shape,
    w: Vec<f64>,
    b: Vec<f64>,
    dy: Vec<f64>,
    dw: Vec<f64>,
    db: Vec<f64>,
}

impl Case {
    fn y_shape(&self) -> Shape {
        let out = |size: usize| (size + 2 * self.conv.pad - self.k) / self.conv.stride + 1;
        Shape::new(self.x.n, out(self.x.h), out(self.x.w), self.c_out)
    }

    fn inputs(&self) -> Inputs {
        let w_shape = Shape::new(self.c_out, self.k, self.k, self.x.c / self.conv.groups);
        Inputs {
            x: values(self.x.len(), 1),
            w_shape,
            w: values(w_shape.len(), 2),
            b: values(self.c_out, 3),
            dy: values(self.y_shape().len(), 4),
            dw: values(w_shape.len(), 5),
            db: values(self.c_out, 6),
        }
    }

    /// The definition, in f64: every product once, added wherever it belongs.
    fn reference(&self, inputs: &Inputs) -> Reference {
        let (x, y, k) = (self.x, self.y_shape(), self.k);
        let c_in = inputs.w_shape.c;
        let per_group = self.c_out / self.conv.groups;
        let mut r = Reference {
            y_shape: y,
            y: vec![Sum::default(); y.len()],
            dx: vec![Sum::default(); x.len()],
            dw: vec![Sum::default(); inputs.w.len()],
            db: vec![Sum::default(); self.c_out],
        };
        for (at, &value) in inputs.dw.iter().enumerate() {
            r.dw[at].add(value);
        }
        for (at, &value) in inputs.db.iter().enumerate() {
            r.db[at].add(value);
        }
        for n in 0..x.n {
            for i in 0..y.h {
                for j in 0..y.w {
                    for o in 0..self.c_out {
                        let y_at = ((n * y.h + i) * y.w + j) * y.c + o;
                        let dy = inputs.dy[y_at];
                        r.db[o].add(dy);
                        if self.bias {
                            r.y[y_at].add(inputs.b[o]);
                        }
                        for u in 0..k {
                            for v in 0..k {
                                let row = (i * self.conv.stride + u).wrapping_sub(self.conv.pad);
                                let col = (j * self.conv.stride + v).wrapping_sub(self.conv.pad);
                                if row >= x.h || col >= x.w {
                                    continue;
                                }
                                for c in 0..c_in {
                                    let channel = o / per_group * c_in + c;
                                    let x_at = ((n * x.h + row) * x.w + col) * x.c + channel;
                                    let w_at = ((o * k + u) * k + v) * c_in + c;
                                    r.y[y_at].add(inputs.x[x_at] * inputs.w[w_at]);
                                    r.dx[x_at].add(dy * inputs.w[w_at]);
                                    r.dw[w_at].add(dy * inputs.x[x_at]);
                                }
                            }
                        }
                    }
                }
            }
        }
        r
    }
}

/// Each element within the bound of a sum of `terms` products in any order:
/// `(terms + 1) eps` of the sum of absolute values, for the reference as well.
#[track_caller]
fn assert_close(what: &str, found: &Tensor, expected: &[Sum]) {
    let eps = match found.dtype() {
        DType::F32 => f64::from(f32::EPSILON),
        _ => 2.0 * f64::EPSILON,
    };
    assert_eq!(found.shape().len(), expected.len(), "{what}");
    for (at, (found, sum)) in found.to_f64_vec().into_iter().zip(expected).enumerate() {
        let bound = (sum.terms + 1.0) * eps * sum.abs;
        let error = (found - sum.value).abs();
        assert!(
            error <= bound,
            "{what}[{at}]: {found} for {}, bound {bound:e}",
            sum.value
        );
    }
}

fn check(case: Case, inputs: &Inputs, r: &Reference, isa: Isa, dtype: DType) {
    let what = |name: &str| format!("{case:?} {isa} {dtype} {name}");
    let x = tensor(case.x, &inputs.x, dtype);
    let w = tensor(inputs.w_shape, &inputs.w, dtype);
    let b = tensor(Shape::vector(case.c_out), &inputs.b, dtype);
    let dy = tensor(r.y_shape, &inputs.dy, dtype);
    let mut dw = tensor(inputs.w_shape, &inputs.dw, dtype);
    let mut db = tensor(Shape::vector(case.c_out), &inputs.db, dtype);
    let (y, dx) = isa.scope(|| {
        let y = conv2d::forward(&x, &w, case.bias.then_some(&b), case.conv).unwrap();
        let db = case.bias.then_some(&mut db);
        conv2d::weight_grad(&dy, &x, &mut dw, db, case.conv).unwrap();
        (y, conv2d::input_grad(&dy, &w, case.x, case.conv).unwrap())
    });
    assert_eq!(y.shape(), r.y_shape);
    assert_close(&what("y"), &y, &r.y);
    assert_eq!(dx.shape(), case.x);
    assert_close(&what("dx"), &dx, &r.dx);
    assert_close(&what("dw"), &dw, &r.dw);
    if case.bias {
        assert_close(&what("db"), &db, &r.db);
    }
}

#[test]
fn agrees_with_plain_loops() {
    for case in cases() {
        let inputs = case.inputs();
        let reference = case.reference(&inputs);
        for &isa in Isa::available() {
            check(case, &inputs, &reference, isa, DType::F32);
        }
        check(case, &inputs, &reference, Isa::Portable, DType::F64);
    }
}

#[test]
fn input_gradient_is_the_adjoint() {
    for case in cases() {
        let inputs = case.inputs();
        let x = tensor(case.x, &inputs.x, DType::F64);
        let w = tensor(inputs.w_shape, &inputs.w, DType::F64);
        let dy = tensor(case.y_shape(), &inputs.dy, DType::F64);
        let y = conv2d::forward(&x, &w, None, case.conv).unwrap();
        let dx = conv2d::input_grad(&dy, &w, case.x, case.conv).unwrap();
        let dot = |a: &Tensor, b: &Tensor| -> f64 {
            a.data::<f64>()
                .iter()
                .zip(b.data::<f64>())
                .map(|(a, b)| a * b)
                .sum()
        };
        let terms = (case.y_shape().len() * inputs.w_shape.row_len()) as f64;
        let (left, right) = (dot(&dy, &y), dot(&dx, &x));
        // Every product of three values is at most 1.
        assert!(
            (left - right).abs() <= terms.powf(1.5) * f64::EPSILON,
            "{case:?}: {left} {right}"
        );
    }
}

#[test]
fn a_nan_stays_visible() {
    for case in cases() {
        let inputs = case.inputs();
        for &isa in Isa::available() {
            isa.scope(|| {
                let mut x = tensor(case.x, &inputs.x, DType::F32);
                let w = tensor(inputs.w_shape, &inputs.w, DType::F32);
                x.data_mut::<f32>()[0] = f32::NAN;
                let y = conv2d::forward(&x, &w, None, case.conv).unwrap();
                // Output pixel i = (pad - u) / stride reads pixel 0 through kernel pixel u.
                let reads_it = case.conv.pad % case.conv.stride < case.k;
                assert_eq!(y.count_not_finite().unwrap() > 0, reads_it, "{case:?}");
                let mut dw = Tensor::zeros(inputs.w_shape, DType::F32);
                let dy = tensor(case.y_shape(), &inputs.dy, DType::F32);
                conv2d::weight_grad(&dy, &x, &mut dw, None, case.conv).unwrap();
                assert_eq!(dw.count_not_finite().unwrap() > 0, reads_it, "{case:?}");
            });
        }
    }
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.data::<f32>().iter().map(|v| v.to_bits()).collect()
}

/// Larger shapes than the table's, beyond every limit at which the work is cut differently.
#[rustfmt::skip]
const LARGE: &[[usize; 9]] = &[
    [33, 4, 4, 160, 70, 3, 1, 1, 1],
    [5, 17, 15, 64, 65, 3, 1, 1, 1],
    [2, 100, 70, 64, 24, 3, 1, 1, 1],
    [1, 90, 96, 64, 16, 3, 2, 1, 2],
    [9, 12, 12, 3, 64, 3, 1, 1, 1],
];

fn large() -> impl Iterator<Item = Case> {
    LARGE
        .iter()
        .map(|&[n, h, w, c_in, c_out, k, stride, pad, groups]| Case {
            x: Shape::new(n, h, w, c_in),
            c_out,
            k,
            conv: Conv2d {
                stride,
                pad,
                groups,
            },
            bias: true,
        })
}

#[test]
fn number_of_threads_changes_nothing() {
    for case in large() {
        let inputs = case.inputs();
        let x = tensor(case.x, &inputs.x, DType::F32);
        let w = tensor(inputs.w_shape, &inputs.w, DType::F32);
        let b = tensor(Shape::vector(case.c_out), &inputs.b, DType::F32);
        let dy = tensor(case.y_shape(), &inputs.dy, DType::F32);
        let results = [1, 2, 5].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let mut dw = Tensor::zeros(inputs.w_shape, DType::F32);
                let mut db = Tensor::zeros(b.shape(), DType::F32);
                let y = conv2d::forward(&x, &w, Some(&b), case.conv).unwrap();
                let dx = conv2d::input_grad(&dy, &w, case.x, case.conv).unwrap();
                conv2d::weight_grad(&dy, &x, &mut dw, Some(&mut db), case.conv).unwrap();
                [bits(&y), bits(&dx), bits(&dw), bits(&db)]
            })
        });
        assert!(
            results[0] == results[1] && results[0] == results[2],
            "{case:?}"
        );
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for case in large().chain(cases().filter(|case| case.x.n > 1)) {
        let inputs = case.inputs();
        let x = tensor(case.x, &inputs.x, DType::F32);
        let w = tensor(inputs.w_shape, &inputs.w, DType::F32);
        let b = tensor(Shape::vector(case.c_out), &inputs.b, DType::F32);
        let dy = tensor(case.y_shape(), &inputs.dy, DType::F32);
        for &isa in Isa::available() {
            isa.scope(|| {
                let y = conv2d::forward(&x, &w, Some(&b), case.conv).unwrap();
                let dx = conv2d::input_grad(&dy, &w, case.x, case.conv).unwrap();
                for row in [0, case.x.n / 2, case.x.n - 1] {
                    let only = |t: &Tensor| t.gather_rows(&[row]).unwrap();
                    let alone = conv2d::forward(&only(&x), &w, Some(&b), case.conv).unwrap();
                    assert_eq!(bits(&alone), bits(&only(&y)), "{case:?} {isa} y {row}");
                    let shape = case.x.with_n(1);
                    let alone = conv2d::input_grad(&only(&dy), &w, shape, case.conv).unwrap();
                    assert_eq!(bits(&alone), bits(&only(&dx)), "{case:?} {isa} dx {row}");
                }
            });
        }
    }
}

#[test]
fn unread_border_pixels_have_no_gradient() {
    // 5 pixels, kernel 2, stride 2: the last row and column are never read.
    let conv = Conv2d {
        stride: 2,
        pad: 0,
        groups: 1,
    };
    let w = Tensor::full(Shape::new(3, 2, 2, 2), DType::F32, 1.0);
    let dy = Tensor::full(Shape::new(1, 2, 2, 3), DType::F32, 1.0);
    let dx = conv2d::input_grad(&dy, &w, Shape::new(1, 5, 5, 2), conv).unwrap();
    for (at, &value) in dx.data::<f32>().iter().enumerate() {
        let (row, col) = (at / 10, at / 2 % 5);
        assert_eq!(value, if row < 4 && col < 4 { 3.0 } else { 0.0 });
    }
}

#[test]
fn what_follows_an_input_gradient_is_added_and_gated() {
    for case in cases() {
        let inputs = case.inputs();
        let y_shape = case.reference(&inputs).y_shape;
        let dy = tensor(y_shape, &inputs.dy, DType::F64);
        let w = tensor(inputs.w_shape, &inputs.w, DType::F64);
        let plus = tensor(case.x, &inputs.x, DType::F64);
        let dx = conv2d::input_grad(&dy, &w, case.x, case.conv).unwrap();
        // Where x is above 0.
        let (_, gate) = relu::forward_mask(plus.clone(), None).unwrap();
        for (plus, gate) in [
            (Some(&plus), None),
            (None, Some(&gate)),
            (Some(&plus), Some(&gate)),
        ] {
            let then = Then { plus, gate };
            let found = conv2d::input_grad_then(&dy, &w, case.x, case.conv, &then).unwrap();
            let parts = dx.data::<f64>().iter().zip(&inputs.x);
            let expected: Vec<f64> = parts
                .map(|(&dx, &x)| match (gate.is_some() && x <= 0.0, plus) {
                    (true, _) => 0.0,
                    (false, Some(_)) => dx + x,
                    (false, None) => dx,
                })
                .collect();
            assert_eq!(found.data::<f64>(), expected, "{case:?} {then:?}");
        }
    }
}

#[test]
fn bad_arguments_are_named() {
    let f32s = |n, h, w, c| Tensor::zeros(Shape::new(n, h, w, c), DType::F32);
    let x = f32s(2, 4, 5, 6);
    let w = f32s(8, 3, 3, 6);
    let conv = Conv2d {
        stride: 1,
        pad: 1,
        groups: 1,
    };
    let refused = |x: &Tensor, w: &Tensor, conv: Conv2d| {
        conv2d::forward(x, w, None, conv).unwrap_err().to_string()
    };
    let then = |then: Then<'_>| {
        conv2d::input_grad_then(&f32s(2, 4, 5, 8), &w, x.shape(), conv, &then)
            .unwrap_err()
            .to_string()
    };
    let cases = [
        (
            refused(&x, &w, Conv2d { stride: 0, ..conv }),
            "conv2d::forward: conv.stride: expected at least 1, found 0",
        ),
        (
            refused(&x, &w, Conv2d { groups: 0, ..conv }),
            "conv2d::forward: conv.groups: expected a divisor of 6 and 8 channels, found 0",
        ),
        (
            refused(&x, &w, Conv2d { groups: 3, ..conv }),
            "conv2d::forward: conv.groups: expected a divisor of 6 and 8 channels, found 3",
        ),
        (
            refused(&x, &w, Conv2d { groups: 2, ..conv }),
            "conv2d::forward: w: expected 3 input channels per group, found [8, 3, 3, 6]",
        ),
        (
            refused(&f32s(0, 4, 5, 6), &w, conv),
            "conv2d::forward: x: expected sizes of at least 1, found [0, 4, 5, 6]",
        ),
        (
            refused(&x, &f32s(8, 0, 0, 6), conv),
            "conv2d::forward: w: expected sizes of at least 1, found [8, 0, 0, 6]",
        ),
        (
            refused(&x, &f32s(8, 3, 1, 6), conv),
            "conv2d::forward: w: expected a square kernel, found [8, 3, 1, 6]",
        ),
        (
            refused(&x, &f32s(8, 7, 7, 6), conv),
            "conv2d::forward: w: expected a kernel no larger than the padded input, 6 x 7, \
             found [8, 7, 7, 6]",
        ),
        (
            refused(
                &x,
                &w,
                Conv2d {
                    pad: usize::MAX,
                    ..conv
                },
            ),
            "conv2d::forward: conv.pad: expected a smaller padding, found 18446744073709551615",
        ),
        (
            refused(&x, &w.to_dtype(DType::F64).unwrap(), conv),
            "conv2d::forward: w: expected [8, 3, 3, 6] f32, found [8, 3, 3, 6] f64",
        ),
        (
            conv2d::forward(&x, &w, Some(&f32s(1, 1, 1, 7)), conv)
                .unwrap_err()
                .to_string(),
            "conv2d::forward: b: expected [1, 1, 1, 8] f32, found [1, 1, 1, 7] f32",
        ),
        (
            conv2d::input_grad(&f32s(2, 4, 5, 7), &w, x.shape(), conv)
                .unwrap_err()
                .to_string(),
            "conv2d::input_grad: dy: expected [2, 4, 5, 8] f32, found [2, 4, 5, 7] f32",
        ),
        (
            then(Then {
                plus: Some(&f32s(2, 4, 5, 8)),
                gate: None,
            }),
            "conv2d::input_grad: plus: expected [2, 4, 5, 6] f32, found [2, 4, 5, 8] f32",
        ),
        (
            then(Then {
                plus: None,
                gate: Some(&relu::forward_mask(f32s(2, 4, 5, 8), None).unwrap().1),
            }),
            "conv2d::input_grad: gate: expected one of [2, 4, 5, 6], found one of [2, 4, 5, 8]",
        ),
        (
            conv2d::weight_grad(&f32s(2, 4, 4, 8), &x, &mut w.clone(), None, conv)
                .unwrap_err()
                .to_string(),
            "conv2d::weight_grad: dy: expected [2, 4, 5, 8] f32, found [2, 4, 4, 8] f32",
        ),
        (
            conv2d::weight_grad(
                &f32s(2, 4, 5, 8),
                &x,
                &mut w.clone(),
                Some(&mut f32s(1, 1, 1, 9)),
                conv,
            )
            .unwrap_err()
            .to_string(),
            "conv2d::weight_grad: db: expected [1, 1, 1, 8] f32, found [1, 1, 1, 9] f32",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
}
