//! Opening a device: every way in which it can fail is one error, never cudarc's panic.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, RwLock};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::memory::Pool;
use super::{fatbins, launch::Function, tuning::Tuning};
use crate::error::{Error, Result};

/// What the driver must support: the kernels come from nvcc 13.0.
const MIN_DRIVER: i32 = 13_000;
/// The oldest compute capability the kernels are compiled for.
const MIN_CAPABILITY: (i32, i32) = (8, 0);

/// How a device is used; the default is what programs want.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Hand freed blocks out again. Without it every allocation is the driver's own, so that a
    /// checking tool sees each buffer's bounds and life.
    pub reuse_memory: bool,
    /// Wait after every launch, so that a fault names its kernel. The default is whether
    /// `NOISEFORGE_SYNC` is set to something other than 0.
    pub synchronous: bool,
    /// Convolutions of f32 tensors may round their operands to tf32, for the tensor cores: 10 bits
    /// of mantissa, f32 sums.
    pub tf32: bool,
    /// How tensor cores' convolutions are cut, where a choice fits: a number of
    /// `ops::conv2d`'s. `None`: the cheapest.
    pub blocking: Option<u32>,
    /// Machine code of a kernel file by its name; by default this build's.
    pub code: fn(&str) -> Option<&'static [u8]>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            reuse_memory: true,
            synchronous: std::env::var_os("NOISEFORGE_SYNC").is_some_and(|v| v != "0"),
            tf32: false,
            blocking: None,
            code: |stem| {
                let found = fatbins::FATBINS.iter().find(|(name, _)| *name == stem);
                found.map(|(_, code)| *code)
            },
        }
    }
}

/// Why this build holds no kernels; `None` where it does.
pub fn kernels_missing() -> Option<&'static str> {
    fatbins::FATBINS
        .is_empty()
        .then_some(fatbins::NO_FATBINS_BECAUSE)
}

/// What is known of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Its name, e.g. `NVIDIA H200`.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Device memory in bytes.
    pub memory: usize,
    /// Second-level cache in bytes.
    pub l2: usize,
    /// Most shared memory of a block in bytes.
    pub shared: usize,
    /// The newest CUDA version the driver supports, e.g. 13000.
    pub driver: i32,
}

/// One NVIDIA device with one stream. A clone is the same device.
#[derive(Clone)]
pub struct Gpu(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub properties: Properties,
    pub options: Options,
    pub pool: Mutex<Pool>,
    pub modules: Mutex<HashMap<&'static str, Module>>,
    pub functions: Mutex<HashMap<&'static str, Function>>,
    pub tuning: RwLock<Arc<Tuning>>,
    pub remembered: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

/// A loaded kernel file.
pub(super) struct Module(pub sys::CUmodule);

// SAFETY: a module handle may be used from any thread whose current context is the module's.
unsafe impl Send for Module {}

impl Drop for Inner {
    fn drop(&mut self) {
        let pool = self.pool.get_mut().unwrap_or_else(|e| e.into_inner());
        if self.context.bind_to_thread().is_ok() {
            pool.release_free();
        }
    }
}

fn no(device: impl fmt::Display, reason: impl fmt::Display) -> Error {
    Error::Device {
        device: device.to_string(),
        reason: reason.to_string(),
    }
}

/// Asks for the driver without cudarc's panics: it panics where libcuda or a function is missing.
fn driver(device: &str) -> Result<i32> {
    // SAFETY: looks for the library, nothing else.
    if !unsafe { sys::is_culib_present() } {
        return Err(no(
            device,
            "no NVIDIA driver: libcuda.so.1 cannot be loaded; use --device cpu, or install the driver",
        ));
    }
    // SAFETY: the first call of every CUDA program; its argument must be 0.
    let code = unsafe { sys::cuInit(0) };
    if code == sys::CUresult::CUDA_ERROR_NO_DEVICE {
        return Err(no(device, "the NVIDIA driver finds no device"));
    }
    if code != sys::CUresult::CUDA_SUCCESS {
        return Err(no(
            device,
            format_args!("the NVIDIA driver cannot start: {code:?}"),
        ));
    }
    let mut version = 0;
    // SAFETY: writes one integer.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    if code != sys::CUresult::CUDA_SUCCESS {
        return Err(no(
            device,
            format_args!("the NVIDIA driver does not tell its version: {code:?}"),
        ));
    }
    if version < MIN_DRIVER {
        let dotted = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        return Err(no(
            device,
            format_args!(
                "the NVIDIA driver supports CUDA {}, the kernels need {}; install driver 580 or newer",
                dotted(version),
                dotted(MIN_DRIVER)
            ),
        ));
    }
    Ok(version)
}

/// Number of devices.
///
/// Errors: no driver, or one that is too old.
pub fn count() -> Result<usize> {
    driver("cuda")?;
    let count = result::device::get_count().map_err(|e| no("cuda", describe(e)))?;
    Ok(count.max(0) as usize)
}

/// The driver's words for an error.
pub(super) fn describe(error: DriverError) -> String {
    let text = |s: std::result::Result<&std::ffi::CStr, DriverError>| {
        s.map_or_else(
            |_| format!("{:?}", error.0),
            |s| s.to_string_lossy().into_owned(),
        )
    };
    format!("{} ({:?})", text(error.error_string()), error.0)
}

impl Gpu {
    /// Opens device number `ordinal`.
    ///
    /// Errors: no driver, a driver too old, no such device, a compute capability the kernels are
    /// not compiled for, or a build without kernels.
    pub fn open(ordinal: usize) -> Result<Self> {
        Gpu::open_with(ordinal, Options::default())
    }

    /// [`Gpu::open`] with other options.
    pub fn open_with(ordinal: usize, options: Options) -> Result<Self> {
        let device = format!("cuda:{ordinal}");
        let driver = driver(&device)?;
        let count = count()?;
        if ordinal >= count {
            let found = match count {
                0 => "there is no NVIDIA device".to_string(),
                1 => "there is one device, cuda:0".to_string(),
                n => format!("there are {n} devices, cuda:0 to cuda:{}", n - 1),
            };
            return Err(no(device, found));
        }
        let failed = |e: DriverError| no(&device, describe(e));
        let context = CudaContext::new(ordinal).map_err(failed)?;
        let capability = context.compute_capability().map_err(failed)?;
        if capability < MIN_CAPABILITY {
            return Err(no(
                &device,
                format_args!(
                    "compute capability {}.{}, the kernels need {}.{} (Ampere) or newer",
                    capability.0, capability.1, MIN_CAPABILITY.0, MIN_CAPABILITY.1
                ),
            ));
        }
        // Any kernel file tells whether there is code at all.
        if (options.code)("tensor").is_none() {
            return Err(no(
                &device,
                format_args!(
                    "this build has no GPU kernels ({}); run scripts/get-nvcc and build again",
                    fatbins::NO_FATBINS_BECAUSE
                ),
            ));
        }
        // SAFETY: there is one stream, so nothing has to be ordered by events.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed)?;
        let attribute = |a| context.attribute(a).map_err(failed);
        use sys::CUdevice_attribute as A;
        let properties = Properties {
            name: context.name().map_err(failed)?,
            capability,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1)
                as usize,
            memory: context.total_mem().map_err(failed)?,
            l2: attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.max(0) as usize,
            shared: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                .max(48 << 10) as usize,
            driver,
        };
        Ok(Gpu(Arc::new(Inner {
            context,
            stream,
            remembered: Mutex::default(),
            tuning: RwLock::new(Arc::new(Tuning::embedded(&properties.name))),
            properties,
            pool: Mutex::new(Pool::new(options.reuse_memory)),
            options,
            modules: Mutex::new(HashMap::new()),
            functions: Mutex::new(HashMap::new()),
        })))
    }

    /// Its number, as in `cuda:0`.
    pub fn ordinal(&self) -> usize {
        self.0.context.ordinal()
    }

    /// What an op remembers of this device, empty at first. It is forgotten when measurements change
    /// ([`Gpu::set_tuning`]); take it before what was measured is read.
    pub(crate) fn remembered<T: Any + Send + Sync + Default>(&self) -> Arc<T> {
        let mut remembered = self.0.remembered.lock().unwrap_or_else(|e| e.into_inner());
        let found = remembered
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Arc::new(T::default()))
            .clone();
        found.downcast().expect("stored by its type")
    }

    /// How it was opened.
    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    /// How ops cut their work here, as far as it was measured; the embedded table at first.
    pub fn tuning(&self) -> Arc<Tuning> {
        let tuning = self.0.tuning.read().unwrap_or_else(|e| e.into_inner());
        tuning.clone()
    }

    /// Other measurements, for all clones of this device. They change no result.
    pub fn set_tuning(&self, tuning: Tuning) {
        let mut place = self.0.tuning.write().unwrap_or_else(|e| e.into_inner());
        *place = Arc::new(tuning);
        drop(place);
        let mut remembered = self.0.remembered.lock().unwrap_or_else(|e| e.into_inner());
        remembered.clear();
    }

    /// What is known of it.
    pub fn properties(&self) -> &Properties {
        &self.0.properties
    }

    /// Waits until everything asked of the device is done.
    ///
    /// Errors: a kernel faulted; `NOISEFORGE_SYNC=1` finds out which.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        let done = self.0.stream.synchronize();
        done.map_err(|e| self.fault("an earlier kernel or copy", e))
    }

    /// Makes the device's context the calling thread's.
    pub(super) fn bind(&self) -> Result<()> {
        let bound = self.0.context.bind_to_thread();
        bound.map_err(|e| self.fault("making the context current", e))
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.0.stream.cu_stream()
    }

    /// An error of the driver while doing something.
    pub(super) fn fault(&self, doing: impl fmt::Display, error: DriverError) -> Error {
        no(
            format_args!("cuda:{}", self.ordinal()),
            format_args!("{doing}: {}", describe(error)),
        )
    }

    /// Loads a kernel file once.
    pub(super) fn module(&self, stem: &'static str) -> Result<sys::CUmodule> {
        let mut modules = self.0.modules.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(module) = modules.get(stem) {
            return Ok(module.0);
        }
        let device = format!("cuda:{}", self.ordinal());
        let code = (self.0.options.code)(stem).ok_or_else(|| {
            no(
                &device,
                format_args!("this build has no kernel file '{stem}'"),
            )
        })?;
        self.bind()?;
        // SAFETY: `code` is a whole fatbin, which says its own length.
        let module = unsafe { result::module::load_data(code.as_ptr().cast::<c_void>()) };
        let module = module.map_err(|e| {
            let (major, minor) = self.0.properties.capability;
            let doing = format!("loading '{stem}' for compute capability {major}.{minor}");
            self.fault(doing, e)
        })?;
        modules.insert(stem, Module(module));
        Ok(module)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{} ({})", self.ordinal(), self.0.properties.name)
    }
}

impl PartialEq for Gpu {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Gpu {}
