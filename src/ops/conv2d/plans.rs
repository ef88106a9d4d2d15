//! Plans that a GPU was given before. Finding one takes as long as the kernel that it launches.

use std::collections::HashMap;
use std::sync::Mutex;

use super::{Conv2d, mma, mma_weight_grad, wgmma_weight_grad};
use crate::error::Result;
use crate::tensor::{DType, Shape};

/// What a plan depends on, beside the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The input gradient, not the forward pass.
    pub grad: bool,
    pub dtype: DType,
    pub x: Shape,
    pub w: Shape,
    pub conv: Conv2d,
    /// Whether a max pool is part of the launch.
    pub pool: bool,
    /// Whether the bias's gradient is.
    pub bias: bool,
}

/// Of one device; see [`Gpu::remembered`](crate::gpu::Gpu::remembered).
#[derive(Default)]
pub(super) struct Plans {
    pub tensor_cores: Memo<mma::Plan>,
    pub weight_grad: Memo<mma_weight_grad::Plan>,
    pub wgmma_weight_grad: Memo<wgmma_weight_grad::Plan>,
}

/// Plans by what they depend on; `None` where there is none.
pub(super) struct Memo<P>(Mutex<HashMap<Key, Option<P>>>);

impl<P> Default for Memo<P> {
    fn default() -> Self {
        Memo(Mutex::default())
    }
}

impl<P: Copy> Memo<P> {
    /// The plan, made now if it is new. Errors are not kept.
    pub fn get(&self, key: Key, make: impl FnOnce() -> Result<Option<P>>) -> Result<Option<P>> {
        let lock = || self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(&plan) = lock().get(&key) {
            return Ok(plan);
        }
        let plan = make()?;
        lock().insert(key, plan);
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_plan_is_made_once_and_an_error_is_not_kept() {
        let conv = Conv2d {
            stride: 1,
            pad: 1,
            groups: 1,
        };
        let key = Key {
            grad: false,
            dtype: DType::BF16,
            x: Shape::new(2, 4, 4, 8),
            w: Shape::new(8, 3, 3, 8),
            conv,
            pool: false,
            bias: false,
        };
        let memo = Memo::<u32>::default();
        let refused = || Err(Error::argument("op", "x", "another", "one"));
        assert!(memo.get(key, refused).is_err());
        assert_eq!(memo.get(key, || Ok(Some(7))).unwrap(), Some(7));
        assert_eq!(memo.get(key, || panic!("made again")).unwrap(), Some(7));
        let other = Key { pool: true, ..key };
        assert_eq!(memo.get(other, || Ok(None)).unwrap(), None);
        assert_eq!(memo.get(other, || panic!("made again")).unwrap(), None);
    }
}
