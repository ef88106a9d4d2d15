//! Residual addition, `y = a + b`; the gradient of both is `dy`.

mod gpu;

use super::simd::{BLOCK, for_blocks, multiversion};
use crate::dispatch;
use crate::error::Result;
use crate::tensor::Tensor;

multiversion! {
    fn add_into<T>(a: &mut [T], b: &[T]) {
        for (a, &b) in a.iter_mut().zip(b) {
            *a += b;
        }
    }
}

/// `a + b`, both `[n, h, w, c]`. Writes into `a`'s storage if it is not shared.
///
/// Errors: `b` has another shape, dtype or device than `a`.
pub fn forward(mut a: Tensor, b: &Tensor) -> Result<Tensor> {
    b.expect("add::forward", "b", a.shape(), a.kind())?;
    if let Some(gpu) = b.gpu() {
        return gpu::forward(gpu, a, b);
    }
    dispatch!(a.dtype(), T => {
        let b = b.data::<T>();
        for_blocks(b.len(), a.data_mut::<T>(), BLOCK, |start, a| {
            add_into(a, &b[start..start + a.len()]);
        });
    });
    Ok(a)
}
