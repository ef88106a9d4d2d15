//! A CUDA driver that runs our kernels on the CPU: a `libcuda.so.1` of our own, for tests.
//!
//! [`install`] loads it under the driver's name, so that whatever opens `libcuda.so.1` later in
//! this process (cudarc does) gets it. Nothing in the product knows. What it shows and what it
//! cannot show is in `README.md` beside this crate.
//!
//! The settings are global, as a device is: tests that change them must not run at the same time
//! as others that rely on them; [`exclusive`] gives them a lock.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock};

/// In which order threads, blocks and background copies go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Lowest index first.
    Forward,
    /// Highest index first.
    Reverse,
    /// Drawn, from this seed.
    Random(u64),
}

/// How kernels run. A correct kernel gives the same bits in every mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Of threads, blocks and background copies.
    pub order: Order,
    /// Background work (`cp.async`, TMA, `wgmma`) is done only when a wait forces it, and what is
    /// in flight reads as NaN. `check` implies it.
    pub late: bool,
    /// The exact checker: races, bounds, uninitialised reads. Costs a multiple of the time.
    pub check: bool,
    /// Threads of the host that blocks are spread over; checked launches use one.
    pub threads: u32,
}

impl Mode {
    /// Plain forward order: the fastest.
    pub const PLAIN: Mode = mode(Order::Forward, false, false);

    /// The modes every kernel is tested in: three orders, early and late, and two with the checker.
    pub const ALL: [Mode; 8] = [
        Mode::PLAIN,
        mode(Order::Reverse, false, false),
        mode(Order::Random(7), false, false),
        mode(Order::Forward, true, false),
        mode(Order::Reverse, true, false),
        mode(Order::Random(11), true, false),
        mode(Order::Forward, true, true),
        mode(Order::Random(13), true, true),
    ];
}

const fn mode(order: Order, late: bool, check: bool) -> Mode {
    Mode {
        order,
        late,
        check,
        threads: 2,
    }
}

/// What was counted since the last call of [`Emulator::take_stats`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Kernels that ran, those of graphs included.
    pub launches: u64,
    /// Graphs that ran.
    pub graph_launches: u64,
    /// Allocations of device memory and of pinned memory.
    pub allocations: u64,
    /// Their counterpart.
    pub frees: u64,
    /// Calls that make the host wait for the device, blocking copies and frees included.
    pub synchronisations: u64,
    /// Copies, of any kind.
    pub copies: u64,
    /// Asynchronous copies from or to memory of the host that is not pinned: the driver has to
    /// stage them, and one from the device blocks.
    pub pageable_copies: u64,
    /// Switches from thread to thread.
    pub switches: u64,
    /// Arrivals at barriers.
    pub barriers: u64,
    /// Arrivals at warp collectives.
    pub collectives: u64,
    /// `mma` products of a 16x8 tile.
    pub products: u64,
    /// Eight-row phases of `ldmatrix` and `stmatrix` in which two rows share a bank.
    pub bank_conflicts: u64,
}

/// What a device says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// How many there are.
    pub count: i32,
    /// Compute capability, major and minor.
    pub compute_capability: (i32, i32),
    /// As `cuDriverGetVersion` gives it: 13000 is CUDA 13.0.
    pub driver_version: i32,
}

impl Default for Device {
    fn default() -> Device {
        Device {
            count: 1,
            compute_capability: (9, 0),
            driver_version: 13000,
        }
    }
}

/// The emulated driver, loaded.
#[derive(Clone, Copy)]
pub struct Emulator {
    set_mode: unsafe extern "C" fn(c_int, u64, c_int, c_int, c_uint),
    set_device: unsafe extern "C" fn(c_int, c_int, c_int, c_int),
    set_memory_limit: unsafe extern "C" fn(usize),
    memory_used: unsafe extern "C" fn() -> usize,
    take_stats: unsafe extern "C" fn(*mut Stats),
    last_report: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    clear_report: unsafe extern "C" fn(),
    parameter: unsafe extern "C" fn(*const c_char, c_uint) -> c_long,
}

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

fn open(path: &str) -> *mut c_void {
    const NOW_AND_GLOBAL: c_int = 0x102;
    let name = CString::new(path).expect("a path holds no zero byte");
    // SAFETY: a valid string; the library's initialisers only fill its table of kernels.
    let library = unsafe { dlopen(name.as_ptr(), NOW_AND_GLOBAL) };
    if library.is_null() {
        // SAFETY: dlopen has just failed, so there is a message.
        let message = unsafe { CStr::from_ptr(dlerror()) };
        panic!(
            "the emulator cannot be loaded: {}",
            message.to_string_lossy()
        );
    }
    library
}

/// Loads the emulator as `libcuda.so.1` (and `libcuda.so`), once for the process. To be called
/// before anything opens the driver.
#[expect(
    clippy::missing_transmute_annotations,
    reason = "the type is that of the field it goes to"
)]
pub fn install() -> Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    *EMULATOR.get_or_init(|| {
        let library = open(env!("NOISEFORGE_EMULATOR"));
        open(env!("NOISEFORGE_EMULATOR_ALIAS"));
        macro_rules! function {
            ($name:literal) => {{
                // SAFETY: a valid library and name; control.cpp defines the function so.
                let address = unsafe { dlsym(library, concat!($name, "\0").as_ptr().cast()) };
                assert!(!address.is_null(), "the emulator has no {}", $name);
                // SAFETY: the field's type is the function's in control.cpp.
                unsafe { std::mem::transmute(address) }
            }};
        }
        let emulator = Emulator {
            set_mode: function!("emu_set_mode"),
            set_device: function!("emu_set_device"),
            set_memory_limit: function!("emu_set_memory_limit"),
            memory_used: function!("emu_memory_used"),
            take_stats: function!("emu_take_stats"),
            last_report: function!("emu_last_report"),
            clear_report: function!("emu_clear_report"),
            parameter: function!("emu_parameter"),
        };
        emulator.set_mode(Mode::PLAIN);
        emulator
    })
}

/// Keeps other callers of this function out while the guard lives.
pub fn exclusive() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    // A test that failed while it held the lock left nothing behind that matters.
    LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

// SAFETY of the calls below: the functions are those of control.cpp, which take these arguments
// and lock what they share.
impl Emulator {
    /// From the next launch on; waits for kernels that run.
    pub fn set_mode(&self, mode: Mode) {
        let (order, seed) = match mode.order {
            Order::Forward => (0, 1),
            Order::Reverse => (1, 1),
            Order::Random(seed) => (2, seed),
        };
        // SAFETY: see above.
        unsafe {
            (self.set_mode)(
                order,
                seed,
                mode.late.into(),
                mode.check.into(),
                mode.threads,
            )
        };
    }

    /// What the next `cuInit` finds.
    pub fn set_device(&self, device: Device) {
        let (major, minor) = device.compute_capability;
        // SAFETY: see above.
        unsafe { (self.set_device)(device.count, major, minor, device.driver_version) };
    }

    /// Device memory in bytes; 16 GiB at first.
    pub fn set_memory_limit(&self, bytes: usize) {
        // SAFETY: see above.
        unsafe { (self.set_memory_limit)(bytes) };
    }

    /// Device memory allocated now, in bytes.
    pub fn memory_used(&self) -> usize {
        // SAFETY: see above.
        unsafe { (self.memory_used)() }
    }

    /// The counts since the last call.
    pub fn take_stats(&self) -> Stats {
        let mut stats = Stats::default();
        // SAFETY: see above; twelve u64 are written, and Stats is twelve u64.
        unsafe { (self.take_stats)(&mut stats) };
        stats
    }

    /// The text of the last call that failed: of a kernel's fault with the kernel, block, thread,
    /// file and line.
    pub fn last_report(&self) -> Option<String> {
        let mut text = vec![0u8; 4096];
        // SAFETY: see above; at most text.len() bytes are written, with a zero at the end.
        let length = unsafe { (self.last_report)(text.as_mut_ptr().cast(), text.len()) };
        if length == 0 {
            return None;
        }
        text.truncate(length.min(text.len() - 1));
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// Forgets it.
    pub fn clear_report(&self) {
        // SAFETY: see above.
        unsafe { (self.clear_report)() };
    }

    /// Size in bytes of each parameter of a kernel, and whether it is a pointer; `None` if there is
    /// no such kernel.
    pub fn parameters(&self, kernel: &str) -> Option<Vec<(usize, bool)>> {
        let name = CString::new(kernel).ok()?;
        let mut parameters = Vec::new();
        for index in 0.. {
            // SAFETY: see above; the string ends with a zero.
            match unsafe { (self.parameter)(name.as_ptr(), index) } {
                -2 => return None,
                -1 => break,
                p => parameters.push(((p & 0x7fff_ffff) as usize, p >> 31 & 1 == 1)),
            }
        }
        Some(parameters)
    }
}
