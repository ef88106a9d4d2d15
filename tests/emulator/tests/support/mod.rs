//! A device to run kernels on by name, and numbers to fill it with.
#![allow(dead_code)] // each test binary uses a part

use std::ffi::{CString, c_void};
use std::mem::MaybeUninit;
use std::sync::{Arc, MutexGuard};

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, result, sys,
};
use noiseforge_emulator::{Emulator, Mode, exclusive, install};

/// The emulated device, for one test at a time.
pub struct Device {
    pub emulator: Emulator,
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    module: sys::CUmodule,
    _guard: MutexGuard<'static, ()>,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.emulator.set_mode(Mode::PLAIN);
    }
}

/// A kernel's argument.
#[derive(Clone, Copy)]
pub enum Arg {
    Pointer(u64),
    U32(u32),
    I32(i32),
    F32(f32),
    Map(TensorMap),
    /// A struct of eleven words.
    Words([u32; 11]),
}

/// The 128 bytes that describe a tensor to TMA.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
pub struct TensorMap(pub [u64; 16]);

/// A launch; the fields that are rarely set have defaults.
#[derive(Clone, Copy)]
pub struct Shape {
    pub grid: u32,
    pub block: u32,
    pub shared: u32,
    pub cluster: u32,
}

pub fn shape(grid: u32, block: u32) -> Shape {
    Shape {
        grid,
        block,
        shared: 0,
        cluster: 1,
    }
}

impl Device {
    pub fn new() -> Device {
        let guard = exclusive();
        let emulator = install();
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        // SAFETY: the emulator does not look at the image.
        let module = unsafe { result::module::load_data([0u8; 64].as_ptr().cast()) }.unwrap();
        Device {
            emulator,
            context,
            stream,
            module,
            _guard: guard,
        }
    }

    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> CudaSlice<T> {
        self.stream.clone_htod(values).unwrap()
    }

    pub fn uninit<T: DeviceRepr>(&self, len: usize) -> CudaSlice<T> {
        // SAFETY: that nobody has written it is what the emulator watches.
        unsafe { self.stream.alloc(len) }.unwrap()
    }

    pub fn pointer<T>(&self, slice: &CudaSlice<T>) -> Arg {
        Arg::Pointer(slice.device_ptr(&self.stream).0)
    }

    pub fn read<T: DeviceRepr + Clone>(&self, slice: &CudaSlice<T>) -> Vec<T> {
        self.stream.clone_dtoh(slice).unwrap()
    }

    pub fn launch(&self, kernel: &str, shape: Shape, args: &[Arg]) -> Result<(), DriverError> {
        let name = CString::new(kernel).unwrap();
        let mut pointers: Vec<*mut c_void> = args
            .iter()
            .map(|arg| match arg {
                Arg::Pointer(v) => std::ptr::from_ref(v) as *mut c_void,
                Arg::U32(v) => std::ptr::from_ref(v) as *mut c_void,
                Arg::I32(v) => std::ptr::from_ref(v) as *mut c_void,
                Arg::F32(v) => std::ptr::from_ref(v) as *mut c_void,
                Arg::Map(v) => std::ptr::from_ref(v) as *mut c_void,
                Arg::Words(v) => std::ptr::from_ref(v) as *mut c_void,
            })
            .collect();
        // The emulator reads as many as the kernel has.
        pointers.resize(16, std::ptr::null_mut());
        // SAFETY: valid handles; whether the arguments fit is what the emulator checks.
        unsafe {
            let function = result::module::get_function(self.module, name)?;
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            result::function::set_function_attribute(function, most, shape.shared as i32)?;
            let mut attribute: sys::CUlaunchAttribute = MaybeUninit::zeroed().assume_init();
            attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attribute.value.clusterDim.x = shape.cluster;
            attribute.value.clusterDim.y = 1;
            attribute.value.clusterDim.z = 1;
            let config = sys::CUlaunchConfig {
                gridDimX: shape.grid,
                gridDimY: 1,
                gridDimZ: 1,
                blockDimX: shape.block,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: shape.shared,
                hStream: self.stream.cu_stream(),
                attrs: &mut attribute,
                numAttrs: 1,
            };
            sys::cuLaunchKernelEx(
                &config,
                function,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
            .result()
        }
    }

    /// The report of a launch that must fail.
    pub fn failure(&self, kernel: &str, shape: Shape, args: &[Arg]) -> String {
        self.emulator.clear_report();
        let result = self.launch(kernel, shape, args);
        let report = self.emulator.last_report().unwrap_or_default();
        assert!(result.is_err(), "{kernel}: the mistake was not found");
        report
    }

    /// Runs `case` in every mode and returns what it gives, which must be the same bits in each.
    pub fn in_every_mode<T: PartialEq + Clone>(
        &self,
        what: &str,
        case: impl Fn() -> Vec<T>,
    ) -> Vec<T> {
        let mut first: Option<Vec<T>> = None;
        for mode in Mode::ALL {
            self.emulator.set_mode(mode);
            let result = case();
            let expected = first.get_or_insert_with(|| result.clone());
            assert!(*expected == result, "{what}: other bits in {mode:?}");
        }
        self.emulator.set_mode(Mode::PLAIN);
        first.unwrap()
    }
}

/// xorshift64: numbers to fill tensors with.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In [0, n).
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// In [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// A map of f32 tiles, innermost dimension first, without swizzle; rows are packed.
pub fn tiled_f32(address: u64, dim: &[u64], tile: &[u32]) -> TensorMap {
    let mut map = MaybeUninit::<TensorMap>::zeroed();
    let stride: Vec<u64> = (1..dim.len())
        .map(|d| 4 * dim[..d].iter().product::<u64>())
        .collect();
    // SAFETY: every array has as many elements as the rank says.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            map.as_mut_ptr().cast(),
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            dim.len() as u32,
            address as *mut _,
            dim.as_ptr(),
            stride.as_ptr(),
            tile.as_ptr(),
            [1u32; 5].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()
        .unwrap();
        map.assume_init()
    }
}
