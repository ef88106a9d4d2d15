//! What kernels see of a tensor.

use crate::error::Result;
use crate::gpu::{Gpu, Ptr, TensorMap};
use crate::ops::conv2d::Conv2d;
use crate::tensor::Shape;

/// Every so many of a tensor's rows and columns.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops::conv2d) struct View {
    /// Of what is seen.
    pub seen: Shape,
    /// Of the tensor.
    pub whole: Shape,
    pub every: usize,
}

impl View {
    pub fn whole(tensor: Shape) -> View {
        View {
            seen: tensor,
            whole: tensor,
            every: 1,
        }
    }

    /// What a kernel of `k x k` sees of a convolution's `x` to make `y`, and how many of those pixels it goes on for each
    /// of `y`: a 1x1 kernel (without padding) sees no others than it meets.
    pub fn under(x: Shape, y: Shape, k: usize, conv: Conv2d) -> (View, usize) {
        match k {
            1 => {
                let seen = View {
                    seen: y.with_c(x.c),
                    whole: x,
                    every: conv.stride,
                };
                (seen, 1)
            }
            _ => (View::whole(x), conv.stride),
        }
    }

    /// Pixels of the tensor to the next one seen below, and beside.
    pub fn pitch(&self) -> [usize; 2] {
        [self.every * self.whole.w, self.every]
    }

    /// As (channels, images, columns, rows), images inside of columns and rows, in boxes of so many.
    pub fn map(&self, gpu: &Gpu, tensor: Ptr, boxes: [usize; 4]) -> Result<TensorMap> {
        let Shape { n, h, w, c } = self.seen;
        let [down, across] = self.pitch();
        let boxes = boxes.map(|size| size as u32);
        let strides = [self.whole.row_len(), across * c, down * c];
        TensorMap::new(gpu, tensor, [c, n, w, h], strides, boxes)
    }
}
