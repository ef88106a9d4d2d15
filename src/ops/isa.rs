//! The instruction sets that loops and kernels are compiled for, and which one is used.

use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;

/// Instruction sets with code of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, DQ and VL: 16 lanes of f32 with fused multiply-add.
    Avx512,
    /// AVX2 and FMA: 8 lanes of f32 with fused multiply-add.
    Avx2,
    /// Plain Rust, for every processor; also the tile's f64 path.
    Portable,
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        })
    }
}

thread_local! {
    static CHOSEN: Cell<Option<Isa>> = const { Cell::new(None) };
}

impl Isa {
    /// The instruction sets this processor has, best first.
    pub fn available() -> &'static [Isa] {
        static AVAILABLE: OnceLock<Vec<Isa>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            let mut list = Vec::new();
            #[cfg(target_arch = "x86_64")]
            {
                let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
                if avx2
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    list.push(Isa::Avx512);
                }
                if avx2 {
                    list.push(Isa::Avx2);
                }
            }
            list.push(Isa::Portable);
            list
        })
    }

    /// Runs `f` with the ops called on this thread using this instruction set, for tests and
    /// benches. An instruction set the processor lacks leaves the choice to the best one.
    pub fn scope<R>(self, f: impl FnOnce() -> R) -> R {
        struct Restore(Option<Isa>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CHOSEN.set(self.0);
            }
        }
        let available = Isa::available().contains(&self);
        let _restore = Restore(CHOSEN.replace(available.then_some(self)));
        f()
    }

    /// What ops called on this thread use.
    pub fn current() -> Isa {
        CHOSEN.get().unwrap_or(Isa::available()[0])
    }
}
