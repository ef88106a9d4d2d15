//! Device memory: a pool, typed buffers, typed addresses.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard};

use bytemuck::Pod;
use cudarc::driver::{result, sys};

use super::Gpu;
use crate::error::{Error, Result};

/// Type of what an address points at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elem {
    /// `float`.
    F32,
    /// `double`.
    F64,
    /// `__nv_bfloat16`.
    Bf16,
    /// `__half`.
    F16,
    /// `uint8_t`.
    U8,
    /// `int32_t`.
    I32,
    /// `uint32_t`.
    U32,
    /// `uint64_t`.
    U64,
    /// A struct of ours, by its name.
    Struct(&'static str),
    /// Nothing: a null pointer.
    Null,
}

/// Types that buffers hold.
pub trait Element: Pod + Send + Sync {
    /// Their tag.
    const ELEM: Elem;
}

macro_rules! elements {
    ($($t:ty => $elem:ident),*) => {$(
        impl Element for $t {
            const ELEM: Elem = Elem::$elem;
        }
    )*};
}
elements!(f32 => F32, f64 => F64, half::bf16 => Bf16, half::f16 => F16, u8 => U8, i32 => I32, u32 => U32, u64 => U64);

/// A device address and the type of what stands there: what launchers take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ptr {
    /// The address; 0 is null.
    pub address: u64,
    /// The type.
    pub elem: Elem,
}

impl Ptr {
    /// An optional argument that is not given.
    pub const fn null() -> Self {
        Ptr {
            address: 0,
            elem: Elem::Null,
        }
    }

    /// The same address, where elements of another type stand.
    pub(crate) const fn with_elem(self, elem: Elem) -> Self {
        Ptr { elem, ..self }
    }

    /// The address `bytes` further on.
    pub(crate) const fn offset(self, bytes: usize) -> Self {
        Ptr {
            address: self.address + bytes as u64,
            elem: self.elem,
        }
    }
}

/// What the pool holds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// In buffers that exist.
    pub in_use: usize,
    /// The most that ever was.
    pub peak: usize,
    /// In use or free, but taken from the driver.
    pub held: usize,
    /// How often the driver was asked for memory.
    pub driver_allocations: u64,
}

type FreeList = BTreeMap<usize, Vec<u64>>;

/// Free blocks by size. The stream orders their users.
pub(super) struct Pool {
    free: FreeList,
    reuse: bool,
    usage: MemoryUse,
    /// Blocks of the graph that is being captured.
    capture: Option<Arc<Arena>>,
}

/// The blocks a graph works in. Its launches write to them, so no one else may have them while the
/// graph exists, whenever its tensors were dropped.
pub(super) struct Arena {
    gpu: Gpu,
    free: Mutex<FreeList>,
}

impl Drop for Arena {
    fn drop(&mut self) {
        let free = std::mem::take(self.free.get_mut().unwrap_or_else(|e| e.into_inner()));
        let mut pool = self.gpu.pool();
        for (bytes, blocks) in free {
            for address in blocks {
                pool.give_back(&self.gpu, address, bytes);
            }
        }
    }
}

/// Blocks are multiples of this; larger ones of [`LARGE_STEP`].
const SMALL_STEP: usize = 512;
const LARGE_STEP: usize = 2 << 20;
const LARGE: usize = 1 << 20;

fn block_size(bytes: usize) -> Option<usize> {
    let step = if bytes > LARGE {
        LARGE_STEP
    } else {
        SMALL_STEP
    };
    bytes.max(1).checked_next_multiple_of(step)
}

/// Takes a free block of at least `bytes`, and not much more.
fn take(free: &mut FreeList, bytes: usize) -> Option<(u64, usize)> {
    let (&size, blocks) = free.range_mut(bytes..=bytes + bytes / 8).next()?;
    let address = blocks.pop().expect("empty lists are removed");
    if blocks.is_empty() {
        free.remove(&size);
    }
    Some((address, size))
}

impl Pool {
    pub fn new(reuse: bool) -> Self {
        Pool {
            free: FreeList::new(),
            reuse,
            usage: MemoryUse::default(),
            capture: None,
        }
    }

    /// Returns every free block to the driver. The context must be current.
    pub fn release_free(&mut self) {
        for (size, blocks) in std::mem::take(&mut self.free) {
            for address in blocks {
                self.usage.held -= size;
                // SAFETY: the block came from the driver and nobody holds it. Freeing waits for the
                // device, so what is still to run has run. An error here means that the context is
                // already lost, which the next call reports.
                let _ = unsafe { result::free_sync(address) };
            }
        }
    }

    fn give_back(&mut self, gpu: &Gpu, address: u64, size: usize) {
        self.free.entry(size).or_default().push(address);
        if !self.reuse && gpu.bind().is_ok() {
            self.release_free();
        }
    }
}

/// A block of device memory, returned to the pool when dropped.
pub struct Memory {
    gpu: Gpu,
    address: u64,
    /// Size of the block.
    size: usize,
    /// The graph it was allocated for.
    arena: Option<Arc<Arena>>,
}

impl Memory {
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut pool = self.gpu.pool();
        pool.usage.in_use -= self.size;
        // What was allocated for a graph stays with it; so does what is dropped while one is
        // captured, for its launches still use it.
        match self.arena.take().or_else(|| pool.capture.clone()) {
            Some(arena) => {
                // Outside the pool's lock: the arena may end here and take the lock itself.
                drop(pool);
                let mut free = arena.free.lock().unwrap_or_else(|e| e.into_inner());
                free.entry(self.size).or_default().push(self.address);
            }
            None => pool.give_back(&self.gpu, self.address, self.size),
        }
    }
}

impl Gpu {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.0.pool.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What the pool holds.
    pub fn memory_use(&self) -> MemoryUse {
        self.pool().usage
    }

    /// Lets [`MemoryUse::peak`] start again from what is in use now.
    pub fn reset_peak(&self) {
        let mut pool = self.pool();
        pool.usage.peak = pool.usage.in_use;
    }

    /// Whether launches are being recorded, and nothing runs.
    pub(crate) fn is_capturing(&self) -> bool {
        self.pool().capture.is_some()
    }

    /// From here on blocks belong to the arena returned.
    pub(super) fn begin_arena(&self) -> Arc<Arena> {
        let arena = Arc::new(Arena {
            gpu: self.clone(),
            free: Mutex::new(FreeList::new()),
        });
        self.pool().capture = Some(arena.clone());
        arena
    }

    pub(super) fn end_arena(&self) {
        let arena = self.pool().capture.take();
        drop(arena);
    }

    /// Uninitialised memory.
    pub(crate) fn memory(&self, bytes: usize) -> Result<Memory> {
        let size = block_size(bytes).ok_or_else(|| self.out_of_memory(bytes))?;
        let mut pool = self.pool();
        let arena = pool.capture.clone();
        let reused = arena
            .as_ref()
            .and_then(|a| take(&mut a.free.lock().unwrap_or_else(|e| e.into_inner()), size))
            .or_else(|| take(&mut pool.free, size));
        let (address, size) = match reused {
            Some(block) => block,
            None => {
                self.bind()?;
                pool.usage.driver_allocations += 1;
                // SAFETY: allocates; the block is initialised by whoever uses it.
                let mut block = unsafe { result::malloc_sync(size) };
                if block.is_err() && !pool.free.is_empty() && arena.is_none() {
                    pool.release_free();
                    // SAFETY: as above.
                    block = unsafe { result::malloc_sync(size) };
                }
                match block {
                    Ok(address) => {
                        pool.usage.held += size;
                        (address, size)
                    }
                    Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                        drop(pool);
                        return Err(self.out_of_memory(bytes));
                    }
                    Err(e) => {
                        drop(pool);
                        return Err(self.fault(format_args!("allocating {bytes} bytes"), e));
                    }
                }
            }
        };
        pool.usage.in_use += size;
        pool.usage.peak = pool.usage.peak.max(pool.usage.in_use);
        drop(pool);
        Ok(Memory {
            gpu: self.clone(),
            address,
            size,
            arena,
        })
    }

    fn out_of_memory(&self, asked: usize) -> Error {
        let (free, total) = result::mem_get_info().unwrap_or((0, self.0.properties.memory));
        Error::OutOfMemory {
            device: format!("cuda:{}", self.ordinal()),
            asked,
            free,
            total,
            in_use: self.memory_use().in_use,
            batch_that_fits: None,
        }
    }

    /// An uninitialised buffer of `len` elements.
    ///
    /// Errors: not enough device memory.
    pub fn alloc<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let bytes = len.checked_mul(size_of::<T>());
        let bytes = bytes.ok_or_else(|| self.out_of_memory(usize::MAX))?;
        Ok(Buffer {
            memory: self.memory(bytes)?,
            len,
            elements: PhantomData,
        })
    }

    /// A buffer whose bytes are all 0.
    ///
    /// Errors: as [`Gpu::alloc`].
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let mut buffer = self.alloc(len)?;
        buffer.clear()?;
        Ok(buffer)
    }

    /// A buffer with these elements.
    ///
    /// Errors: as [`Gpu::alloc`].
    pub fn upload<T: Element>(&self, elements: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.alloc(elements.len())?;
        buffer.write(elements)?;
        Ok(buffer)
    }

    /// Copies bytes to the device. The source may be changed when this returns.
    pub(crate) fn copy_in(&self, to: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        assert!(!self.is_capturing(), "a graph must not read host memory");
        self.bind()?;
        // SAFETY: callers pass the address of a block of at least this many bytes. From pageable
        // memory the driver has copied the source when the call returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream()) }
            .map_err(|e| self.fault("copying to the device", e))
    }

    /// Copies bytes from the device, and waits for them.
    pub(crate) fn copy_out(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        assert!(!self.is_capturing(), "a graph must not write host memory");
        self.bind()?;
        // SAFETY: callers pass the address of a block of at least this many bytes, and the copy is
        // waited for before the destination is seen.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream()) }
            .map_err(|e| self.fault("copying from the device", e))?;
        self.synchronize()
    }

    /// Copies `bytes` bytes within the device.
    pub(crate) fn copy_within(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: callers pass addresses of blocks of at least this many bytes.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream()) }
            .map_err(|e| self.fault("copying on the device", e))
    }

    /// Sets `bytes` bytes to `value`.
    pub(crate) fn fill_bytes(&self, to: u64, value: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: callers pass the address of a block of at least this many bytes.
        unsafe { result::memset_d8_async(to, value, bytes, self.stream()) }
            .map_err(|e| self.fault("filling device memory", e))
    }
}

/// A typed block of device memory.
pub struct Buffer<T> {
    memory: Memory,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Element> Buffer<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device it lies on.
    pub fn gpu(&self) -> &Gpu {
        &self.memory.gpu
    }

    /// Its address, to be read by a kernel.
    pub fn ptr(&self) -> Ptr {
        Ptr {
            address: self.memory.address,
            elem: T::ELEM,
        }
    }

    /// Its address, to be written by a kernel.
    pub fn ptr_mut(&mut self) -> Ptr {
        self.ptr()
    }

    /// An error naming `op` and `arg` unless the buffer holds `len` elements on this GPU.
    pub(crate) fn expect(
        &self,
        op: &'static str,
        arg: &'static str,
        len: usize,
        gpu: &Gpu,
    ) -> Result<()> {
        if self.len == len && self.gpu() == gpu {
            return Ok(());
        }
        let text = |len, gpu: &Gpu| format!("{len} elements on cuda:{}", gpu.ordinal());
        Err(Error::argument(
            op,
            arg,
            text(len, gpu),
            text(self.len, self.gpu()),
        ))
    }

    /// Overwrites the elements; there must be as many as the buffer holds.
    ///
    /// Errors: another number of elements; a fault of the device.
    pub fn write(&mut self, elements: &[T]) -> Result<()> {
        if elements.len() != self.len {
            let expected = format_args!("{} elements", self.len);
            return Err(Error::argument(
                "Buffer::write",
                "elements",
                expected,
                elements.len(),
            ));
        }
        self.gpu()
            .copy_in(self.memory.address, bytemuck::cast_slice(elements))
    }

    /// Sets every byte to 0.
    ///
    /// Errors: a fault of the device.
    pub fn clear(&mut self) -> Result<()> {
        self.gpu()
            .fill_bytes(self.memory.address, 0, self.len * size_of::<T>())
    }

    /// The elements. Waits for everything asked of the device before.
    ///
    /// Errors: a kernel faulted.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut elements = vec![T::zeroed(); self.len];
        self.gpu()
            .copy_out(self.memory.address, bytemuck::cast_slice_mut(&mut elements))?;
        Ok(elements)
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer of {} on {:?}", self.len, self.memory.gpu)
    }
}
