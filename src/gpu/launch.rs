//! Launching a kernel.

use std::ffi::{CString, c_void};

use cudarc::driver::{result, sys};

use super::Gpu;
use crate::error::{Error, Result};

/// A kernel's place: the file it stands in and its exported name.
#[derive(Debug)]
pub struct Kernel {
    /// Stem of the kernel file.
    pub module: &'static str,
    /// Exported symbol.
    pub name: &'static str,
}

/// A loaded kernel.
#[derive(Clone, Copy)]
pub(super) struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory it may be launched with.
    shared: u32,
    /// It begins by waiting for what stands in front of it (`gpu::begin` in the kernels), so that its
    /// launch may overlap the end of that.
    waits: bool,
}

// SAFETY: a function handle may be used from any thread whose current context is its module's.
unsafe impl Send for Function {}

/// Shared memory that needs no permission, static and dynamic together.
const PLAIN_SHARED: u32 = 48 * 1024;

fn function(gpu: &Gpu, kernel: &Kernel, shared: u32) -> Result<Function> {
    let mut functions = gpu.0.functions.lock().unwrap_or_else(|e| e.into_inner());
    let mut function = match functions.get(kernel.name) {
        Some(&function) => function,
        None => {
            let module = gpu.module(kernel.module)?;
            let name = CString::new(kernel.name).expect("a C identifier");
            // SAFETY: the module is loaded and stays so.
            let handle = unsafe { result::module::get_function(module, name) }
                .map_err(|e| gpu.fault(format_args!("finding kernel {}", kernel.name), e))?;
            use sys::CUfunction_attribute as A;
            let attribute = |a| {
                // SAFETY: reads one attribute of a loaded function.
                unsafe { result::function::get_function_attribute(handle, a) }
                    .map_err(|e| gpu.fault(format_args!("asking what {} needs", kernel.name), e))
            };
            let fixed = attribute(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
            // Code that the driver made of older PTX does not wait, whatever the device is.
            let compiled_for = attribute(A::CU_FUNC_ATTRIBUTE_PTX_VERSION)?;
            Function {
                handle,
                shared: PLAIN_SHARED.saturating_sub(fixed as u32),
                waits: compiled_for >= 90,
            }
        }
    };
    if shared > function.shared {
        // SAFETY: sets one attribute of a loaded function.
        unsafe {
            result::function::set_function_attribute(
                function.handle,
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared as i32,
            )
        }
        .map_err(|e| {
            let doing = format!(
                "asking for {shared} bytes of shared memory for {}",
                kernel.name
            );
            gpu.fault(doing, e)
        })?;
        function.shared = shared;
    }
    functions.insert(kernel.name, function);
    Ok(function)
}

/// Launches a kernel; what the generated launchers call. `args` point at the kernel's parameters.
/// A grid with a size of 0 launches nothing.
///
/// Errors: the driver refuses the launch; with [`Options::synchronous`](super::Options), the kernel
/// faulted.
pub fn launch(
    gpu: &Gpu,
    kernel: &'static Kernel,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    args: &mut [*mut c_void],
) -> Result<()> {
    if grid.contains(&0) {
        return Ok(());
    }
    gpu.bind()?;
    let function = function(gpu, kernel, shared)?;
    let mut overlapping = sys::CUlaunchAttribute_st {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue_union {
            programmaticStreamSerializationAllowed: 1,
        },
    };
    let config = sys::CUlaunchConfig_st {
        gridDimX: grid[0],
        gridDimY: grid[1],
        gridDimZ: grid[2],
        blockDimX: block[0],
        blockDimY: block[1],
        blockDimZ: block[2],
        sharedMemBytes: shared,
        hStream: gpu.stream(),
        attrs: &raw mut overlapping,
        numAttrs: function.waits.into(),
    };
    // SAFETY: the launcher was generated from the kernel's signature, so number, order and types of
    // the arguments are its own, and the driver copies them before it returns. That pointers hold as
    // many elements as the kernel touches is the op's duty.
    let launched = unsafe {
        sys::cuLaunchKernelEx(
            &raw const config,
            function.handle,
            args.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    }
    .result();
    launched.map_err(|e| {
        gpu.fault(
            format_args!("launching {} on a grid of {grid:?}", kernel.name),
            e,
        )
    })?;
    if gpu.0.options.synchronous && !gpu.is_capturing() {
        let done = gpu.0.stream.synchronize();
        done.map_err(|e| gpu.fault(format_args!("kernel {}", kernel.name), e))?;
    }
    Ok(())
}

/// `count` in blocks of `per_block`, as a grid size.
///
/// Errors: more blocks than a grid has.
pub(crate) fn blocks(op: &'static str, count: usize, per_block: usize) -> Result<u32> {
    let blocks = count.div_ceil(per_block);
    u32::try_from(blocks)
        .ok()
        .filter(|&b| b <= i32::MAX as u32)
        .ok_or_else(|| {
            let most = per_block.saturating_mul(i32::MAX as usize);
            Error::argument(op, "x", format_args!("at most {most} elements"), count)
        })
}

/// A size as kernels take it.
///
/// Errors: it does not fit in 32 bits.
pub(crate) fn size(op: &'static str, arg: &'static str, size: usize) -> Result<u32> {
    u32::try_from(size).map_err(|_| Error::argument(op, arg, "a size below 2^32", size))
}
