//! Weights as convolutions take them: a tensor, or one that nobody changes.

use std::ops::Deref;
use std::sync::{Arc, Mutex};

use bytemuck::bytes_of;

use super::packs::Running;
use crate::error::Result;
use crate::gpu::kernels::Packing;
use crate::gpu::{Buffer, Gpu};
use crate::tensor::{DType, Tensor};

/// Weights that stay what they are. The forms that kernels read them in are made once and kept.
pub struct Constant {
    w: Tensor,
    forms: Mutex<Vec<Form>>,
}

/// One such form.
struct Form {
    packing: Packing,
    dtype: DType,
    data: Arc<Buffer<u8>>,
}

impl Constant {
    /// Whoever holds `w`, too, must not overwrite it.
    pub fn new(w: Tensor) -> Self {
        Constant {
            w,
            forms: Mutex::new(Vec::new()),
        }
    }

    /// The weights, `[c_out, k, k, c_in / groups]`.
    pub fn tensor(&self) -> &Tensor {
        &self.w
    }
}

impl Clone for Constant {
    fn clone(&self) -> Self {
        Constant::new(self.w.clone())
    }
}

/// A convolution's weights: `&Tensor` or [`&Constant`](Constant).
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    w: &'a Tensor,
    constant: Option<&'a Constant>,
}

impl<'a> From<&'a Tensor> for Weights<'a> {
    fn from(w: &'a Tensor) -> Self {
        Weights { w, constant: None }
    }
}

impl<'a> From<&'a Constant> for Weights<'a> {
    fn from(constant: &'a Constant) -> Self {
        Weights {
            w: &constant.w,
            constant: Some(constant),
        }
    }
}

impl Deref for Weights<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        self.w
    }
}

impl Weights<'_> {
    /// The weights packed in this way: by `pack`, unless that was done before.
    pub(in crate::ops) fn form(
        &self,
        gpu: &Gpu,
        packing: &Packing,
        dtype: DType,
        pack: impl FnOnce() -> Result<Buffer<u8>>,
    ) -> Result<Arc<Buffer<u8>>> {
        let Some(constant) = self.constant else {
            let running = gpu.remembered::<Running>();
            return running.form(self.w.ptr().address, packing, dtype, pack);
        };
        let mut forms = constant.forms.lock().unwrap_or_else(|e| e.into_inner());
        let same = |f: &&Form| f.dtype == dtype && bytes_of(&f.packing) == bytes_of(packing);
        if let Some(form) = forms.iter().find(same) {
            return Ok(form.data.clone());
        }
        let data = Arc::new(pack()?);
        // What a graph packs is there only once it has run.
        if !gpu.is_capturing() {
            forms.push(Form {
                packing: *packing,
                dtype,
                data: data.clone(),
            });
        }
        Ok(data)
    }
}
