//! conv2d and linear against the CPU's f64 path.

use noiseforge::ops::conv2d::{self, Conv2d};
use noiseforge::ops::linear;
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
            w: values(self.w, 2),
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
    // Groups: whole windows, less than one, windows that two groups share, depthwise.
    [2, 5, 4, 32, 48, 3, 1, 1, 2],
    [2, 6, 5, 12, 20, 3, 1, 1, 4],
    [3, 2, 3, 10, 15, 3, 2, 1, 5],
    [2, 5, 4, 12, 12, 3, 1, 1, 12],
    [1, 6, 4, 24, 8, 1, 2, 0, 2],
    [2, 4, 4, 18, 6, 2, 2, 1, 3],
];

#[test]
fn agrees_with_the_cpu() {
    for case in CASES.iter().copied().map(Case::new) {
        for dtype in DTYPES {
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
            let names = [("y", dtype), ("dx", dtype), ("dw", DType::F32), ("db", DType::F32)];
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
