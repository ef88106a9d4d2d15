//! Tensor maps: what the copy engine (TMA, from compute capability 9.0) knows of a tensor.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::driver::sys;

use super::{Elem, Gpu, Ptr};
use crate::error::Result;

/// A tensor map, as kernels take it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// A tensor of 16-bit elements in boxes of `boxes`, innermost dimension first; `strides` in elements, of all
    /// dimensions but the first. In shared memory the 16-byte pieces of a box that is 64 or 128 bytes wide are
    /// exchanged by the swizzle of that width, of one 512 bytes wide they are not; what lies outside of the
    /// tensor is zero.
    ///
    /// Errors: the driver refuses sizes or strides.
    pub(crate) fn new(
        gpu: &Gpu,
        tensor: Ptr,
        sizes: [usize; 4],
        strides: [usize; 3],
        boxes: [u32; 4],
    ) -> Result<Self> {
        let kind = match tensor.elem {
            Elem::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Elem::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            other => panic!("a tensor map of {other:?}"),
        };
        let swizzle = match boxes[0] {
            32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            256 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            other => panic!("a box {other} elements wide"),
        };
        gpu.bind()?;
        let sizes = sizes.map(|size| size as u64);
        let strides = strides.map(|stride| 2 * stride as u64);
        let mut map = MaybeUninit::uninit();
        // SAFETY: arrays of rank 4, 4, 3, 4 and 4; the driver writes the map, or refuses.
        let made = unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                kind,
                4,
                tensor.address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                [1u32; 4].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
        };
        made.map_err(|e| gpu.fault("describing a tensor to the copy engine", e))?;
        // SAFETY: written, since the driver did not refuse.
        Ok(TensorMap(unsafe { map.assume_init() }))
    }
}
