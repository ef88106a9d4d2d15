//! Tensors on a GPU: moving, casting, filling, gathering. Shapes and arguments are checked by the
//! callers.

use std::sync::Arc;

use super::{DType, Device, Real, Shape, Storage, Tensor};
use crate::error::{Error, Result};
use crate::gpu::kernels::tensor as kernels;
use crate::gpu::{Element, Gpu, Ptr, launch_blocks};

/// Elements of a block of the kernels here.
const BLOCK: usize = 256 * 8;

impl Tensor {
    /// An uninitialised tensor on a GPU.
    ///
    /// Errors: f64; not enough device memory.
    pub(crate) fn uninit(gpu: &Gpu, shape: Shape, dtype: DType) -> Result<Self> {
        if dtype == DType::F64 {
            let expected = "f32, bf16 or f16 on a GPU";
            return Err(Error::argument("Tensor", "dtype", expected, dtype));
        }
        let bytes = shape.len() * dtype.size();
        Ok(Tensor {
            storage: Storage::Gpu(Arc::new(gpu.memory(bytes)?), dtype),
            shape,
        })
    }

    /// All elements `value`, where `device` is.
    ///
    /// Errors: a type the device does not hold; not enough device memory.
    pub fn full_on(device: &Device, shape: Shape, dtype: DType, value: f64) -> Result<Self> {
        let cpu = Tensor::full(shape, dtype.master(), value);
        match device {
            Device::Cpu => cpu.to_dtype(dtype),
            Device::Gpu(gpu) if value == 0.0 => {
                let mut t = Tensor::uninit(gpu, shape, dtype)?;
                clear(&mut t)?;
                Ok(t)
            }
            Device::Gpu(gpu) => cpu.to_gpu(gpu)?.to_dtype(dtype),
        }
    }

    /// All elements 0, beside this tensor: the same shape, dtype and device.
    ///
    /// Errors: not enough device memory.
    pub fn zeros_like(&self) -> Result<Self> {
        match self.gpu() {
            None => Ok(Tensor::zeros(self.shape, self.dtype())),
            Some(gpu) => {
                let mut t = Tensor::uninit(gpu, self.shape, self.dtype())?;
                clear(&mut t)?;
                Ok(t)
            }
        }
    }

    /// The same elements, which no writing in place reaches: on a GPU, where optimisers and graphs do
    /// that, in memory of its own.
    ///
    /// Errors: not enough device memory.
    pub(crate) fn duplicate(&self) -> Result<Self> {
        let Some(gpu) = self.gpu() else {
            return Ok(self.clone());
        };
        let mut t = Tensor::uninit(gpu, self.shape, self.dtype())?;
        t.copy_from(self)?;
        Ok(t)
    }

    /// The GPU it lies on.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.storage {
            Storage::Gpu(memory, _) => Some(memory.gpu()),
            _ => None,
        }
    }

    /// The GPU it lies on; an error naming `op` and `arg` if that is none.
    pub(crate) fn expect_gpu(&self, op: &'static str, arg: &'static str) -> Result<&Gpu> {
        let found = || format!("{} {} on the CPU", self.shape, self.dtype());
        self.gpu()
            .ok_or_else(|| Error::argument(op, arg, "a tensor on a GPU", found()))
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        self.gpu().cloned().map_or(Device::Cpu, Device::Gpu)
    }

    /// The same elements on this device; shares them if they are there.
    ///
    /// Errors: [`Tensor::to_gpu`]'s and [`Tensor::to_cpu`]'s.
    pub fn to(&self, device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => self.to_cpu(),
            Device::Gpu(gpu) => self.to_gpu(gpu),
        }
    }

    /// The same elements on a GPU.
    ///
    /// Errors: an f64 tensor; not enough device memory.
    pub fn to_gpu(&self, gpu: &Gpu) -> Result<Self> {
        match self.gpu() {
            Some(own) if own == gpu => return Ok(self.clone()),
            Some(_) => {
                let dtype = self.dtype();
                return self.to_cpu()?.to_gpu(gpu)?.to_dtype(dtype);
            }
            None => {}
        }
        let t = Tensor::uninit(gpu, self.shape, self.dtype())?;
        gpu.copy_in(t.address(), bytemuck::cast_slice(self.data::<f32>()))?;
        Ok(t)
    }

    /// The same elements on the CPU, 16-bit floats as f32 (which holds them exactly). Waits for the
    /// device.
    ///
    /// Errors: a fault of the device.
    pub fn to_cpu(&self) -> Result<Self> {
        match self.gpu() {
            None => Ok(self.clone()),
            Some(_) => Tensor::from_vec(self.shape, self.read::<f32>()?),
        }
    }

    /// The elements of a tensor on a GPU, widened.
    fn read<T: Real>(&self) -> Result<Vec<T>> {
        let gpu = self.gpu().expect("on a GPU");
        fn widened<S: Element, T: Real>(
            gpu: &Gpu,
            t: &Tensor,
            f: impl Fn(S) -> f32,
        ) -> Result<Vec<T>> {
            let mut data = vec![S::zeroed(); t.shape.len()];
            gpu.copy_out(t.address(), bytemuck::cast_slice_mut(&mut data))?;
            Ok(data.into_iter().map(|v| T::of(f64::from(f(v)))).collect())
        }
        match self.dtype() {
            DType::BF16 => widened::<half::bf16, T>(gpu, self, half::bf16::to_f32),
            DType::F16 => widened::<half::f16, T>(gpu, self, half::f16::to_f32),
            _ => widened::<f32, T>(gpu, self, |v| v),
        }
    }

    /// The bytes of a tensor on a GPU, for bit comparisons.
    #[doc(hidden)]
    pub fn device_bytes(&self) -> Result<Vec<u8>> {
        let gpu = self.gpu().expect("on a GPU");
        let mut bytes = vec![0; self.shape.len() * self.dtype().size()];
        gpu.copy_out(self.address(), &mut bytes)?;
        Ok(bytes)
    }

    fn address(&self) -> u64 {
        match &self.storage {
            Storage::Gpu(memory, _) => memory.address(),
            _ => panic!("a tensor on the CPU has no device address: the op checks first"),
        }
    }

    /// Where it lies on its GPU, to be read. Panics on the CPU: the op checks first.
    pub(crate) fn ptr(&self) -> Ptr {
        Ptr {
            address: self.address(),
            elem: self.dtype().elem(),
        }
    }

    /// Whether nobody else shares the elements, so that they can be overwritten in place.
    pub(crate) fn is_unique(&self) -> bool {
        match &self.storage {
            Storage::F32(v) => Arc::strong_count(v) == 1,
            Storage::F64(v) => Arc::strong_count(v) == 1,
            Storage::Gpu(memory, _) => Arc::strong_count(memory) == 1,
        }
    }

    /// Where it lies on its GPU, to be written: copies the elements first if they are shared.
    pub(crate) fn ptr_mut(&mut self) -> Result<Ptr> {
        if !self.is_unique() {
            let gpu = self.gpu().expect("the op checks first").clone();
            let copy = Tensor::uninit(&gpu, self.shape, self.dtype())?;
            let bytes = self.shape.len() * self.dtype().size();
            gpu.copy_within(copy.address(), self.address(), bytes)?;
            *self = copy;
        }
        Ok(self.ptr())
    }

    /// Overwrites the elements in place by `from`'s, wherever they lie: the address stays, which
    /// graphs rely on.
    ///
    /// Errors: another shape or type; a fault of the device.
    pub fn copy_from(&mut self, from: &Tensor) -> Result<()> {
        from.expect(
            "Tensor::copy_from",
            "from",
            self.shape,
            from.kind().with(self.dtype()),
        )?;
        let Some(gpu) = self.gpu().cloned() else {
            *self = from.to_cpu()?;
            return Ok(());
        };
        let from = from.to_gpu(&gpu)?;
        let bytes = self.shape.len() * self.dtype().size();
        gpu.copy_within(self.address(), from.address(), bytes)
    }
}

pub(super) fn clear(t: &mut Tensor) -> Result<()> {
    let gpu = t.gpu().expect("on a GPU").clone();
    let bytes = t.shape.len() * t.dtype().size();
    let to = t.ptr_mut()?;
    gpu.fill_bytes(to.address, 0, bytes)
}

pub(super) fn cast(gpu: &Gpu, x: &Tensor, dtype: DType) -> Result<Tensor> {
    let mut y = Tensor::uninit(gpu, x.shape, dtype)?;
    let n = x.shape.len();
    let grid = [launch_blocks("Tensor::to_dtype", n, BLOCK)?, 1, 1];
    kernels::cast(
        gpu,
        dtype,
        x.dtype(),
        grid,
        0,
        y.ptr_mut()?,
        x.ptr(),
        n as u64,
    )?;
    Ok(y)
}

pub(super) fn gather_rows(gpu: &Gpu, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let indices: Vec<u32> = rows.iter().map(|&r| r as u32).collect();
    let indices = gpu.upload(&indices)?;
    let mut y = Tensor::uninit(gpu, x.shape.with_n(rows.len()), x.dtype())?;
    let (n, row) = (y.shape.len(), x.shape.row_len());
    let grid = [launch_blocks("Tensor::gather_rows", n, BLOCK)?, 1, 1];
    let (to, dtype) = (y.ptr_mut()?, x.dtype());
    kernels::gather_rows(
        gpu,
        dtype,
        grid,
        0,
        to,
        x.ptr(),
        indices.ptr(),
        row as u64,
        n as u64,
    )?;
    Ok(y)
}

pub(super) fn count_not_finite(gpu: &Gpu, x: &Tensor) -> Result<usize> {
    let mut count = gpu.zeros::<u64>(1)?;
    let n = x.shape.len();
    let grid = [launch_blocks("Tensor::count_not_finite", n, BLOCK)?, 1, 1];
    kernels::count_not_finite(gpu, x.dtype(), grid, 0, count.ptr_mut(), x.ptr(), n as u64)?;
    Ok(count.to_vec()?[0] as usize)
}
