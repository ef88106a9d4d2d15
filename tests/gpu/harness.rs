//! Runs a case on the GPU path: on a real GPU where there is one, else on the emulator in all its
//! modes. A real GPU runs the same cases a few times over, for equal bits.
//!
//! `REQUIRE_CUDA=1` turns the absence of a real GPU into a failure; `NOISEFORGE_TEST_GPU=emulator` or
//! `=cuda` chooses.

use std::path::Path;
use std::sync::OnceLock;

use noiseforge::gpu::{Gpu, Options};
use noiseforge::tensor::{DType, Shape};
use noiseforge::{Result, Tensor};
use noiseforge_emulator::{Emulator, Mode, exclusive};

/// The emulator, where the cases run on it.
pub fn emulator() -> Option<Emulator> {
    static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
    *EMULATOR.get_or_init(|| {
        let required = std::env::var("REQUIRE_CUDA").is_ok_and(|v| v == "1");
        let real = match std::env::var("NOISEFORGE_TEST_GPU").as_deref() {
            Ok("emulator") => false,
            Ok("cuda") => true,
            Ok(other) => panic!("NOISEFORGE_TEST_GPU={other}: expected emulator or cuda"),
            // What NVIDIA's kernel driver (on WSL, Microsoft's) puts there.
            Err(_) => {
                required
                    || ["/dev/nvidiactl", "/dev/dxg"]
                        .iter()
                        .any(|p| Path::new(p).exists())
            }
        };
        assert!(
            real || !required,
            "REQUIRE_CUDA=1, but NOISEFORGE_TEST_GPU=emulator"
        );
        if real {
            return None;
        }
        println!("skipped: no NVIDIA GPU, the kernels run on the emulator");
        Some(noiseforge_emulator::install())
    })
}

/// Whether the cases run on the emulator.
pub fn emulated() -> bool {
    emulator().is_some()
}

fn open_with(reuse_memory: bool) -> Gpu {
    if !emulated() {
        // Opening a GPU and loading the kernels takes a good part of a second: once is enough.
        static GPU: OnceLock<Gpu> = OnceLock::new();
        return GPU.get_or_init(|| Gpu::open(0).unwrap()).clone();
    }
    let options = Options {
        reuse_memory,
        // The emulator finds kernels by name and ignores the code.
        code: |_| Some(&[0; 16]),
        ..Options::default()
    };
    Gpu::open_with(0, options).unwrap()
}

/// A device. On the emulator its buffers are never handed out twice: each has bounds and a life of
/// its own, and starts as NaN.
pub fn open() -> Gpu {
    open_with(false)
}

/// The same device with other options.
pub fn open_as(options: Options) -> Gpu {
    let code = match emulated() {
        true => |_: &str| Some(&[0u8; 16][..]),
        false => Options::default().code,
    };
    let reuse_memory = !emulated();
    let options = Options {
        reuse_memory,
        code,
        ..options
    };
    Gpu::open_with(0, options).unwrap()
}

/// The same device with the pool that programs have.
pub fn open_pooled() -> Gpu {
    open_with(true)
}

/// Runs `case` in every mode, asserts that all give the same bits, and returns what it gave, on the
/// CPU.
#[track_caller]
pub fn run(case: impl Fn(&Gpu) -> Result<Vec<Tensor>>) -> Vec<Tensor> {
    run_with(open, case)
}

/// [`run`] on devices that `open` opens.
#[track_caller]
pub fn run_with(open: impl Fn() -> Gpu, case: impl Fn(&Gpu) -> Result<Vec<Tensor>>) -> Vec<Tensor> {
    let _one = exclusive();
    let modes: Vec<Option<Mode>> = match emulated() {
        true => Mode::ALL.iter().copied().map(Some).collect(),
        false => vec![None; 3],
    };
    let mut first: Option<(Vec<Vec<u8>>, Vec<Tensor>)> = None;
    for mode in modes {
        if let Some(mode) = mode {
            emulator().expect("modes are the emulator's").set_mode(mode);
        }
        let gpu = open();
        let outputs = case(&gpu).unwrap_or_else(|e| panic!("in mode {mode:?}: {e}"));
        let bytes: Vec<Vec<u8>> = outputs
            .iter()
            .map(|t| {
                t.device_bytes()
                    .unwrap_or_else(|e| panic!("in mode {mode:?}: {e}"))
            })
            .collect();
        match &first {
            None => {
                let cpu = outputs.iter().map(|t| t.to_cpu().unwrap()).collect();
                first = Some((bytes, cpu));
            }
            Some((expected, _)) => {
                for (i, (a, b)) in expected.iter().zip(&bytes).enumerate() {
                    assert!(a == b, "output {i} has other bits in mode {mode:?}");
                }
            }
        }
    }
    first.expect("at least one mode").1
}

/// Runs `case` once in the plainest mode: for errors, and for what a mode cannot change.
#[track_caller]
pub fn once<R>(case: impl FnOnce(&Gpu) -> R) -> R {
    let _one = exclusive();
    if let Some(emulator) = emulator() {
        emulator.set_mode(Mode::PLAIN);
    }
    case(&open())
}

/// Values of a shape, uniform in about [-1, 1], the same for the same seed.
pub fn values(shape: Shape, seed: u64) -> Tensor {
    let mut stream = noiseforge::rng::Stream::new(seed, 77, 0);
    let data = (0..shape.len())
        .map(|_| (2.0 * stream.uniform() - 1.0) as f32)
        .collect();
    Tensor::from_vec::<f32>(shape, data).unwrap()
}

/// The values that survive rounding to a dtype, still on the CPU in f32.
pub fn rounded(x: &Tensor, dtype: DType) -> Tensor {
    let round = |v: f32| match dtype {
        DType::BF16 => half::bf16::from_f32(v).to_f32(),
        DType::F16 => half::f16::from_f32(v).to_f32(),
        _ => v,
    };
    let data = x.data::<f32>().iter().map(|&v| round(v)).collect();
    Tensor::from_vec::<f32>(x.shape(), data).unwrap()
}

/// The element types of activations on a GPU.
pub const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Half a unit in the last place of 1: the relative rounding error of a dtype.
pub fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => (-24f64).exp2(),
        DType::F16 => (-11f64).exp2(),
        DType::BF16 => (-8f64).exp2(),
        DType::F64 => (-53f64).exp2(),
    }
}

/// Largest distance between two tensors of one shape.
#[track_caller]
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let pairs = a.to_f64_vec().into_iter().zip(b.to_f64_vec());
    pairs.fold(0.0, |worst: f64, (a, b)| {
        let d = (a - b).abs();
        // NaN must not pass.
        if d.is_nan() {
            f64::INFINITY
        } else {
            worst.max(d)
        }
    })
}

/// What a GPU's result is held against: the CPU's in f64, and in f32 for the size of rounding errors.
pub struct Reference<'a> {
    pub exact: &'a Tensor,
    pub single: &'a Tensor,
}

impl Reference<'_> {
    /// Each element of `found` is as exact as sums in f32 are, up to their order, and one rounding to
    /// `dtype`: within four times the largest error of the CPU's f32 path, four units in the last
    /// place of the largest element, and half a unit in the last place of its own in `dtype`.
    #[track_caller]
    pub fn assert_close(&self, what: &str, found: &Tensor, dtype: DType) {
        self.assert_within(what, found, dtype, 0.0);
    }

    /// The same with `relative` of the largest element on top.
    #[track_caller]
    pub fn assert_within(&self, what: &str, found: &Tensor, dtype: DType, relative: f64) {
        let exact = self.exact.to_f64_vec();
        let largest = exact.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let sum = 4.0 * distance(self.single, self.exact)
            + (8.0 * epsilon(DType::F32) + relative) * largest;
        for (i, (&exact, found)) in exact.iter().zip(found.to_f64_vec()).enumerate() {
            let rounding = match dtype {
                DType::BF16 => epsilon(dtype) * (exact.abs() + sum),
                // f16 is subnormal below 2^-14.
                DType::F16 => (epsilon(dtype) * (exact.abs() + sum)).max((-25f64).exp2()),
                _ => 0.0,
            };
            let error = (found - exact).abs();
            assert!(
                error <= sum + rounding,
                "{what}[{i}]: {found} for {exact}, off by {error:e}, bound {:e}",
                sum + rounding
            );
        }
    }
}
