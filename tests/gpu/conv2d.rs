//! conv2d and linear against the CPU's f64 path.

use noiseforge::ops::conv2d::{self, Conv2d, Then};
use noiseforge::ops::{linear, relu};
use noiseforge::tensor::{DType, Shape};
use noiseforge::{Result, Tensor};

use crate::harness::{DTYPES, Reference, once, rounded, run, values};

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub x: Shape,
    pub w: Shape,
    pub y: Shape,
    pub conv: Conv2d,
    pub bias: bool,
}

impl Case {
    /// n, h, w, c_in, c_out, k, stride, pad, groups.
    pub fn new([n, h, w, c_in, c_out, k, stride, pad, groups]: [usize; 9]) -> Self {
        let conv = Conv2d {
            stride,
            pad,
            groups,
        };
        let x = Shape::new(n, h, w, c_in);
        let w = Shape::new(c_out, k, k, c_in / groups);
        let y = conv.output_shape("test", x, w).unwrap();
        Case {
            x,
            w,
            y,
            conv,
            bias: (n + h + k) % 2 == 0,
        }
    }

    pub fn inputs(&self, dtype: DType) -> Inputs {
        Inputs {
            x: rounded(&values(self.x, 1), dtype),
            // The tensor cores round the weights to the type of the activations.
            w: rounded(&values(self.w, 2), dtype),
            b: values(Shape::vector(self.w.n), 3),
            dy: rounded(&values(self.y, 4), dtype),
            dw: values(self.w, 5),
            db: values(Shape::vector(self.w.n), 6),
        }
    }
}

/// On the CPU in f32. Activations are exact in the dtype they were made for.
pub struct Inputs {
    pub x: Tensor,
    pub w: Tensor,
    pub b: Tensor,
    pub dy: Tensor,
    pub dw: Tensor,
    pub db: Tensor,
}

impl Inputs {
    /// y, dx, dw and db, of inputs that `activation` and `parameter` have moved.
    fn results(
        &self,
        case: &Case,
        activation: impl Fn(&Tensor) -> Result<Tensor>,
        parameter: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let (x, dy) = (activation(&self.x)?, activation(&self.dy)?);
        let (w, b) = (parameter(&self.w)?, parameter(&self.b)?);
        let (mut dw, mut db) = (parameter(&self.dw)?, parameter(&self.db)?);
        let y = conv2d::forward(&x, &w, case.bias.then_some(&b), case.conv)?;
        let dx = conv2d::input_grad(&dy, &w, case.x, case.conv)?;
        conv2d::weight_grad(&dy, &x, &mut dw, case.bias.then_some(&mut db), case.conv)?;
        Ok(vec![y, dx, dw, db])
    }
}

/// dx, where there is a bias with x added to it; the same where x is above 0, gated by its kernel and by a pass
/// behind it.
pub fn input_grads(case: &Case, dy: &Tensor, w: &Tensor, x: &Tensor) -> Result<[Tensor; 3]> {
    let (_, gate) = relu::forward_mask(x.clone(), None)?;
    let plus = case.bias.then_some(x);
    let grad = |gate| conv2d::input_grad_then(dy, w, case.x, case.conv, &Then { plus, gate });
    let dx = grad(None)?;
    let masked = relu::backward_mask(dx.clone(), &gate)?;
    Ok([dx, grad(Some(&gate))?, masked])
}

/// n, h, w, c_in, c_out, k, stride, pad, groups.
#[rustfmt::skip]
pub const CASES: &[[usize; 9]] = &[
    // One pixel, one channel; fewer than a vector, more than a block of them.
    [1, 1, 1, 1, 1, 1, 1, 0, 1],
    [2, 1, 1, 5, 3, 1, 1, 0, 1],
    [1, 1, 1, 3, 10, 3, 1, 1, 1],
    [3, 1, 1, 70, 130, 3, 1, 1, 1],
    // Kernels of 1 to 7, strides, paddings, ragged images.
    [2, 5, 7, 3, 10, 3, 1, 1, 1],
    [2, 7, 5, 8, 70, 3, 1, 1, 1],
    [1, 7, 5, 24, 16, 3, 2, 1, 1],
    [2, 9, 10, 5, 1, 3, 3, 0, 1],
    [1, 6, 5, 1, 24, 5, 1, 2, 1],
    [2, 11, 6, 8, 17, 5, 2, 3, 1],
    [1, 9, 8, 3, 20, 7, 2, 3, 1],
    [1, 8, 9, 8, 5, 7, 1, 3, 1],
    [1, 10, 9, 3, 10, 7, 3, 2, 1],
    [2, 6, 7, 8, 24, 2, 1, 0, 1],
    [1, 7, 6, 5, 10, 2, 3, 1, 1],
    [2, 5, 7, 24, 70, 1, 1, 0, 1],
    [2, 5, 7, 40, 65, 1, 2, 0, 1],
    [2, 7, 5, 8, 10, 1, 3, 2, 1],
    [1, 3, 3, 8, 12, 5, 1, 3, 1],
    // Small images: tiles of several; a large one: several tiles.
    [9, 4, 4, 16, 24, 3, 1, 1, 1],
    [40, 2, 2, 8, 10, 3, 1, 1, 1],
    [1, 19, 23, 8, 16, 3, 1, 1, 1],
    [1, 30, 11, 3, 8, 3, 2, 1, 1],
    // Sums long enough for the narrow kernel to be chosen.
    [2, 3, 4, 72, 20, 3, 1, 1, 1],
    // A kernel whose rows come a few at a time; strides beyond the kernel and the image.
    [1, 30, 28, 2, 3, 25, 1, 2, 1],
    [2, 9, 8, 8, 4, 2, 5, 0, 1],
    [2, 3, 4, 4, 9, 3, 7, 1, 1],
    // Groups: whole windows, less than one, windows that two groups share, depthwise.
    [2, 5, 4, 32, 48, 3, 1, 1, 2],
    [2, 6, 5, 12, 20, 3, 1, 1, 4],
    [3, 2, 3, 10, 15, 3, 2, 1, 5],
    [2, 5, 4, 12, 12, 3, 1, 1, 12],
    [1, 6, 4, 24, 8, 1, 2, 0, 2],
    [2, 4, 4, 18, 6, 2, 2, 1, 3],
    // Weight gradients on tensor cores. Images of one position together, taps on padding left out: whole
    // images, parts of them, images beyond the batch.
    [17, 4, 4, 16, 24, 3, 1, 1, 1],
    [33, 2, 2, 40, 72, 3, 1, 1, 1],
    [16, 3, 5, 8, 8, 3, 2, 1, 1],
    // Warps by output channels, by windows and by parts of the pixels.
    [1, 6, 9, 72, 136, 3, 1, 1, 1],
    [2, 5, 3, 88, 40, 1, 1, 0, 1],
    [1, 9, 20, 3, 64, 3, 1, 1, 1],
    // Groups of 8, 16 and 64 channels.
    [2, 3, 5, 16, 32, 3, 1, 1, 2],
    [1, 5, 6, 64, 64, 3, 2, 1, 4],
    [1, 4, 3, 128, 128, 3, 1, 1, 2],
];

#[test]
fn agrees_with_the_cpu() {
    for (at, case) in CASES.iter().copied().map(Case::new).enumerate() {
        // All in f32; the 16-bit types by turns.
        for dtype in [DType::F32, DTYPES[1 + at % 2]] {
            let inputs = case.inputs(dtype);
            let found = run(|gpu| {
                let activation = |t: &Tensor| t.to_gpu(gpu)?.to_dtype(dtype);
                inputs.results(&case, activation, |t| t.to_gpu(gpu))
            });
            let on_cpu = |dtype| {
                let convert = |t: &Tensor| t.to_dtype(dtype);
                inputs.results(&case, convert, convert).unwrap()
            };
            let (exact, single) = (on_cpu(DType::F64), on_cpu(DType::F32));
            let names = [
                ("y", dtype),
                ("dx", dtype),
                ("dw", DType::F32),
                ("db", DType::F32),
            ];
            for (i, (name, dtype)) in names.into_iter().enumerate() {
                let reference = Reference {
                    exact: &exact[i],
                    single: &single[i],
                };
                reference.assert_close(&format!("{case:?} {name}"), &found[i], dtype);
            }
        }
    }
}

fn conv(stride: usize, pad: usize, groups: usize) -> Conv2d {
    Conv2d {
        stride,
        pad,
        groups,
    }
}

fn tensor(shape: Shape, values: &[f32]) -> Tensor {
    Tensor::from_vec(shape, values.to_vec()).unwrap()
}

#[test]
fn known_answers() {
    // The middle tap of a kernel of ones sees 9, the border 6, the corners 4 pixels.
    let x = Tensor::full(Shape::new(1, 3, 3, 1), DType::F32, 1.0);
    let w = Tensor::full(Shape::new(1, 3, 3, 1), DType::F32, 1.0);
    let b = tensor(Shape::vector(1), &[0.5]);
    // Every output pixel reads one pixel, through tap (u, v) of weight 3 u + v.
    let taps = tensor(
        Shape::new(1, 3, 3, 1),
        &[0., 1., 2., 3., 4., 5., 6., 7., 8.],
    );
    let dot = |at: usize| {
        let mut x = Tensor::zeros(Shape::new(1, 3, 3, 1), DType::F32);
        x.data_mut::<f32>()[at] = 1.0;
        x
    };
    // 5 pixels, kernel 2, stride 2: the last row and column are never read.
    let ones = Tensor::full(Shape::new(3, 2, 2, 2), DType::F32, 1.0);
    let dy = Tensor::full(Shape::new(1, 2, 2, 3), DType::F32, 1.0);
    let found = run(|gpu| {
        let to = |t: &Tensor| t.to_gpu(gpu);
        let mut dw = to(&w)?;
        let mut db = to(&b)?;
        conv2d::weight_grad(&to(&x)?, &to(&x)?, &mut dw, Some(&mut db), conv(1, 1, 1))?;
        Ok(vec![
            conv2d::forward(&to(&x)?, &to(&w)?, Some(&to(&b)?), conv(1, 1, 1))?,
            conv2d::forward(&to(&dot(4))?, &to(&taps)?, None, conv(1, 1, 1))?,
            conv2d::input_grad(&to(&dot(0))?, &to(&taps)?, x.shape(), conv(1, 1, 1))?,
            conv2d::input_grad(
                &to(&dy)?,
                &to(&ones)?,
                Shape::new(1, 5, 5, 2),
                conv(2, 0, 1),
            )?,
            dw,
            db,
        ])
    });
    assert_eq!(
        found[0].data::<f32>(),
        [4.5, 6.5, 4.5, 6.5, 9.5, 6.5, 4.5, 6.5, 4.5]
    );
    assert_eq!(found[1].data::<f32>(), [8., 7., 6., 5., 4., 3., 2., 1., 0.]);
    assert_eq!(found[2].data::<f32>(), [4., 5., 0., 7., 8., 0., 0., 0., 0.]);
    for (at, &value) in found[3].data::<f32>().iter().enumerate() {
        let (row, col) = (at / 10, at / 2 % 5);
        assert_eq!(value, if row < 4 && col < 4 { 3.0 } else { 0.0 });
    }
    assert_eq!(
        found[4].data::<f32>(),
        [5., 7., 5., 7., 10., 7., 5., 7., 5.]
    );
    assert_eq!(found[5].data::<f32>(), [9.5]);
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for case in CASES
        .iter()
        .copied()
        .map(Case::new)
        .filter(|case| case.x.n > 1)
    {
        let i = case.inputs(DType::F32);
        let row = case.x.n - 1;
        let found = run(|gpu| {
            let (x, dy) = (i.x.to_gpu(gpu)?, i.dy.to_gpu(gpu)?);
            let (w, b) = (i.w.to_gpu(gpu)?, i.b.to_gpu(gpu)?);
            let only = |t: &Tensor| t.gather_rows(&[row]);
            let shape = case.x.with_n(1);
            Ok(vec![
                only(&conv2d::forward(&x, &w, Some(&b), case.conv)?)?,
                conv2d::forward(&only(&x)?, &w, Some(&b), case.conv)?,
                only(&conv2d::input_grad(&dy, &w, case.x, case.conv)?)?,
                conv2d::input_grad(&only(&dy)?, &w, shape, case.conv)?,
            ])
        });
        assert_eq!(
            found[0].data::<f32>(),
            found[1].data::<f32>(),
            "{case:?} y {row}"
        );
        assert_eq!(
            found[2].data::<f32>(),
            found[3].data::<f32>(),
            "{case:?} dx {row}"
        );
    }
}

#[test]
fn both_widths_of_a_block_give_the_same_bits() {
    // One row leaves a GPU idle and takes blocks of 8 output channels, many rows take blocks of 64.
    let case = Case::new([260, 4, 4, 64, 17, 3, 1, 1, 1]);
    let i = case.inputs(DType::F32);
    let (all, alone) = once(|gpu| -> Result<_> {
        let (x, w) = (i.x.to_gpu(gpu)?, i.w.to_gpu(gpu)?);
        let all = conv2d::forward(&x, &w, None, case.conv)?.gather_rows(&[259])?;
        let alone = conv2d::forward(&x.gather_rows(&[259])?, &w, None, case.conv)?;
        Ok((all.to_cpu()?, alone.to_cpu()?))
    })
    .unwrap();
    assert_eq!(all.data::<f32>(), alone.data::<f32>());
}

#[test]
fn a_nan_stays_where_it_is_read() {
    // Pixel (0, 0) of a stride of 2 without padding is read, pixel (1, 1) is not.
    for (at, is_read) in [(0, true), (5 * 8 + 8, false)] {
        let mut x = values(Shape::new(1, 5, 5, 8), 1);
        x.data_mut::<f32>()[at] = f32::NAN;
        let w = values(Shape::new(70, 1, 1, 8), 2);
        let dy = values(Shape::new(1, 3, 3, 70), 3);
        let found = run(|gpu| {
            let x = x.to_gpu(gpu)?;
            let mut dw = w.to_gpu(gpu)?;
            conv2d::weight_grad(&dy.to_gpu(gpu)?, &x, &mut dw, None, conv(2, 0, 1))?;
            Ok(vec![
                conv2d::forward(&x, &w.to_gpu(gpu)?, None, conv(2, 0, 1))?,
                dw,
            ])
        });
        // One pixel of y, one input channel of dw.
        let count = |t: &Tensor| t.count_not_finite().unwrap();
        assert_eq!(count(&found[0]), if is_read { 70 } else { 0 });
        assert_eq!(count(&found[1]), if is_read { 70 } else { 0 });
    }
    // Neighbouring groups share a window of eight channels, and no NaN.
    let mut x = values(Shape::new(1, 2, 2, 6), 1);
    x.data_mut::<f32>()[0] = f32::NAN;
    let w = values(Shape::new(6, 1, 1, 2), 2);
    let found = run(|gpu| {
        Ok(vec![conv2d::forward(
            &x.to_gpu(gpu)?,
            &w.to_gpu(gpu)?,
            None,
            conv(1, 0, 3),
        )?])
    });
    assert_eq!(found[0].count_not_finite().unwrap(), 2);
}

#[test]
fn linear_layers_are_convolutions_of_one_pixel() {
    for (n, c_in, c_out) in [(1, 1, 1), (7, 12, 10), (130, 20, 33), (3, 200, 70)] {
        for dtype in DTYPES {
            let (x_shape, y_shape) = (Shape::new(n, 1, 1, c_in), Shape::new(n, 1, 1, c_out));
            let x = rounded(&values(x_shape, 1), dtype);
            let dy = rounded(&values(y_shape, 2), dtype);
            let w = rounded(&values(Shape::new(c_out, 1, 1, c_in), 3), dtype);
            let b = values(Shape::vector(c_out), 4);
            let all = |activation: &dyn Fn(&Tensor) -> Result<Tensor>,
                       parameter: &dyn Fn(&Tensor) -> Result<Tensor>| {
                let (x, dy, w, b) = (
                    activation(&x)?,
                    activation(&dy)?,
                    parameter(&w)?,
                    parameter(&b)?,
                );
                let (mut dw, mut db) = (parameter(&w)?, parameter(&b)?);
                linear::weight_grad(&dy, &x, &mut dw, Some(&mut db))?;
                Ok(vec![
                    linear::forward(&x, &w, Some(&b))?,
                    linear::input_grad(&dy, &w)?,
                    dw,
                    db,
                ])
            };
            let found = run(|gpu| all(&|t| t.to_gpu(gpu)?.to_dtype(dtype), &|t| t.to_gpu(gpu)));
            let on_cpu = |dtype| all(&|t| t.to_dtype(dtype), &|t| t.to_dtype(dtype)).unwrap();
            let (exact, single) = (on_cpu(DType::F64), on_cpu(DType::F32));
            for (i, dtype) in [dtype, dtype, DType::F32, DType::F32]
                .into_iter()
                .enumerate()
            {
                let reference = Reference {
                    exact: &exact[i],
                    single: &single[i],
                };
                reference.assert_close(&format!("{n} {c_in} {c_out} {i}"), &found[i], dtype);
            }
        }
    }
}

#[test]
fn bad_arguments_are_named() {
    let x = values(Shape::new(2, 4, 5, 6), 1);
    let w = values(Shape::new(8, 3, 3, 6), 2);
    let b = values(Shape::vector(8), 3);
    let dy = values(Shape::new(2, 4, 5, 8), 4);
    let conv = conv(1, 1, 1);
    once(|gpu| {
        let to = |t: &Tensor| t.to_gpu(gpu).unwrap();
        let half = |t: &Tensor| to(t).to_dtype(DType::F16).unwrap();
        let forward = |x: &Tensor, w: &Tensor, b: Option<&Tensor>| {
            conv2d::forward(x, w, b, conv).unwrap_err().to_string()
        };
        let input_grad = |dy: &Tensor, w: &Tensor| {
            conv2d::input_grad(dy, w, x.shape(), conv)
                .unwrap_err()
                .to_string()
        };
        let weight_grad = |dy: &Tensor, x: &Tensor, mut dw: Tensor, mut db: Tensor| {
            let found = conv2d::weight_grad(dy, x, &mut dw, Some(&mut db), conv);
            found.unwrap_err().to_string()
        };
        let large = to(&values(Shape::new(1, 513, 513, 1), 5));
        let cases = [
            (
                forward(&to(&x), &w, None),
                "conv2d::forward: w: expected [8, 3, 3, 6] f32 on cuda:0, found [8, 3, 3, 6] f32 on the CPU",
            ),
            (
                forward(&x, &to(&w), None),
                "conv2d::forward: w: expected [8, 3, 3, 6] f32 on the CPU, found [8, 3, 3, 6] f32 on cuda:0",
            ),
            (
                forward(&half(&x), &half(&w), None),
                "conv2d::forward: w: expected [8, 3, 3, 6] f32 on cuda:0, found [8, 3, 3, 6] f16 on cuda:0",
            ),
            (
                forward(&half(&x), &to(&w), Some(&b)),
                "conv2d::forward: b: expected [1, 1, 1, 8] f32 on cuda:0, found [1, 1, 1, 8] f32 on the CPU",
            ),
            (
                input_grad(&dy, &to(&w)),
                "conv2d::input_grad: dy: expected [2, 4, 5, 8] f32 on cuda:0, found [2, 4, 5, 8] f32 on the CPU",
            ),
            (
                input_grad(&half(&dy), &half(&w)),
                "conv2d::input_grad: w: expected [8, 3, 3, 6] f32 on cuda:0, found [8, 3, 3, 6] f16 on cuda:0",
            ),
            (
                weight_grad(&to(&dy), &half(&x), to(&w), to(&b)),
                "conv2d::weight_grad: dy: expected [2, 4, 5, 8] f16 on cuda:0, found [2, 4, 5, 8] f32 on cuda:0",
            ),
            (
                weight_grad(&to(&dy), &to(&x), w.clone(), to(&b)),
                "conv2d::weight_grad: dw: expected [8, 3, 3, 6] f32 on cuda:0, found [8, 3, 3, 6] f32 on the CPU",
            ),
            (
                weight_grad(&half(&dy), &half(&x), half(&w), to(&b)),
                "conv2d::weight_grad: dw: expected [8, 3, 3, 6] f32 on cuda:0, found [8, 3, 3, 6] f16 on cuda:0",
            ),
            (
                weight_grad(&to(&dy), &to(&x), to(&w), b.clone()),
                "conv2d::weight_grad: db: expected [1, 1, 1, 8] f32 on cuda:0, found [1, 1, 1, 8] f32 on the CPU",
            ),
            (
                forward(&large, &large, None),
                "conv2d::forward: w: expected a kernel of at most 512 x 512 on a GPU, found [1, 513, 513, 1]",
            ),
        ];
        for (found, expected) in cases {
            assert_eq!(found, expected);
        }
    });
}
