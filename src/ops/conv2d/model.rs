//! A model of what a tensor cores' launch takes: the time of every pipe of a multiprocessor, from the
//! instructions that stand in the kernel (`kernels/loops.csv`) and the launch's plan, and of the memories.
//! It chooses between ways of cutting where nothing was measured, and `noiseforge bench --model` prints it.
//!
//! It is a bound with a little on top: pipes overlap, and a launch takes what its busiest pipe takes, unless
//! too few blocks run at a time to hide that a stage waits. It knows no caches but that everything a block
//! reads comes from the second level, and every tensor from memory once.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::mma::Blocking;
use crate::gpu::Properties;
use crate::tensor::DType;

/// What a device can do. Rates are of one multiprocessor and clock where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Card {
    /// What it is called.
    pub name: &'static str,
    /// The architecture whose machine code it runs, as in `kernels/loops.csv`.
    pub arch: &'static str,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Clocks a second under tensor cores' load.
    pub clock: f64,
    /// Operations of `mma.sync` on 16-bit types with f32 sums, a multiply-add counted as two.
    pub mma: f64,
    /// Operations a second, of the whole device, that cuBLAS reaches on a large matrix product.
    pub gemm: f64,
    /// Bytes a second from the second-level cache.
    pub l2: f64,
    /// Bytes a second of a copy in memory, read and written.
    pub memory: f64,
    /// Shared memory of a multiprocessor.
    pub shared: usize,
    /// Seconds from one launch in a stream to the next.
    pub launch: f64,
    /// Seconds from one node of a graph to the next.
    pub node: f64,
}

/// Warps' instructions a clock: a scheduler for each quarter.
const ISSUE: f64 = 4.0;
/// Special functions a clock.
const MUFU: f64 = 16.0;
/// Bytes of shared memory a clock.
const SHARED: f64 = 128.0;

/// Measured on an H100 SXM (benches/record/2026-11-26-h100/probes.csv); the clock is what its power allows.
const H100: Card = Card {
    name: "H100",
    arch: "sm_90a",
    multiprocessors: 132,
    clock: 1.755e9,
    mma: 2676.0,
    gemm: 790e12,
    l2: 7.1e12,
    memory: 2.95e12,
    shared: 228 << 10,
    launch: 2.9e-6,
    node: 0.79e-6,
};

/// The cards that `noiseforge bench --model` knows.
pub const CARDS: [Card; 4] = [
    // The same chip; its copy rate and cuBLAS's rate were measured.
    Card {
        name: "H200",
        memory: 4.3e12,
        ..H100
    },
    H100,
    // From data sheets: 312 TFLOP/s at 1.41 GHz, 2.04 TB/s, of which 85% are taken for both; the rates of the
    // second-level cache and of launches are assumed.
    Card {
        name: "A100",
        arch: "sm_80",
        multiprocessors: 108,
        clock: 1.41e9,
        mma: 2048.0,
        gemm: 265e12,
        l2: 4.5e12,
        memory: 1.73e12,
        shared: 164 << 10,
        ..H100
    },
    // 165 TFLOP/s at 2.52 GHz with f32 sums, 1.008 TB/s, of which 92% are taken; the rest as above.
    Card {
        name: "RTX 4090",
        arch: "sm_89",
        multiprocessors: 128,
        clock: 2.52e9,
        mma: 512.0,
        gemm: 152e12,
        l2: 5.0e12,
        memory: 0.93e12,
        shared: 100 << 10,
        ..H100
    },
];

impl Card {
    /// The one whose rates a device most likely has: by its name, else by its compute capability.
    pub fn of(properties: &Properties) -> Card {
        let named = CARDS
            .iter()
            .find(|card| properties.name.contains(card.name));
        let like = |name| CARDS.iter().find(|card| card.name == name);
        let card = named.or(match properties.capability {
            (9, _) => like("H100"),
            (8, 0) => like("A100"),
            // Consumers' cards; those of 10.0 have other tensor instructions, which nothing here uses.
            _ => like("RTX 4090"),
        });
        Card {
            multiprocessors: properties.multiprocessors,
            ..*card.expect("every name is a card's")
        }
    }

    /// Operations a second of `mma.sync`.
    pub fn peak(&self) -> f64 {
        self.mma * self.clock * self.multiprocessors as f64
    }

    /// The seconds that no kernel can undercut: arithmetic at cuBLAS's rate, or memory's traffic.
    pub fn floor(&self, operations: f64, bytes: f64) -> f64 {
        (operations / self.gemm).max(bytes / self.memory)
    }
}

/// What stands in a kernel's main loop.
#[derive(Debug, Clone, Copy)]
struct Loop {
    stage: f64,
    hmma: f64,
    /// Instructions for a window of 8 channels that is copied, and that gets its noise.
    copy: f64,
    noise: f64,
    /// Blocks of a multiprocessor that registers allow.
    resident: usize,
}

/// Of architecture, f32 or 16 bits, with noise or not, number of the blocking.
type Key = (&'static str, bool, bool, u32);

/// Main loops by kernel, as `scripts/kernel-table` counts them.
fn loops() -> &'static HashMap<Key, Loop> {
    static LOOPS: OnceLock<HashMap<Key, Loop>> = OnceLock::new();
    LOOPS.get_or_init(|| read(include_str!("../../../kernels/loops.csv")))
}

fn read(text: &'static str) -> HashMap<Key, Loop> {
    let mut lines = text.lines();
    let header: Vec<_> = lines.next().unwrap_or_default().split(',').collect();
    let mut found = HashMap::new();
    for line in lines {
        let fields: Vec<&'static str> = line.split(',').collect();
        let column = |name: &str| {
            let at = header.iter().position(|column| *column == name);
            let field = at.and_then(|at| fields.get(at)?.parse::<f64>().ok());
            field.unwrap_or(0.0)
        };
        let (tf32, rest) = match (
            fields[0].strip_prefix("conv2d_mma_bf16"),
            fields[0].strip_prefix("conv2d_tf32"),
        ) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => continue,
        };
        let noisy = rest.strip_prefix("_noise");
        let Ok(number) = noisy.unwrap_or(rest).trim_start_matches('_').parse() else {
            continue;
        };
        let pieces = if tf32 { 2.0 } else { 1.0 };
        // Registers are given to warps by the 256.
        let registers = (column("registers") / 8.0).ceil() * 8.0 * 128.0;
        let kernel = Loop {
            stage: column("stage"),
            hmma: column("hmma"),
            copy: column("patch_vectors") / column("patch_ldgsts").max(1.0) * pieces,
            noise: column("noise"),
            resident: (65536.0 / registers.max(1024.0)) as usize,
        };
        found.insert((fields[1], tf32, noisy.is_some(), number), kernel);
    }
    found
}

/// A block of a launch, as the model sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<'a> {
    pub blocking: &'a Blocking,
    pub dtype: DType,
    pub noise: bool,
    /// Slabs that it multiplies by, and the share of its products that is not left out.
    pub stages: usize,
    pub share: f64,
    pub chunks: usize,
    /// Windows of 8 channels that it copies for each chunk, and bytes of one.
    pub windows: usize,
    pub window: usize,
    /// How many clocks a pass of ldmatrix over a patch takes, of 8 rows.
    pub conflicts: usize,
    /// Of its dynamic shared memory.
    pub shared: usize,
    /// Bytes of a result that it writes.
    pub result: f64,
}

/// Seconds of a whole launch in each pipe and memory.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Times {
    /// Tensor cores.
    pub tensor: f64,
    /// Issue slots.
    pub issue: f64,
    /// Special functions: the noise.
    pub mufu: f64,
    /// Shared memory.
    pub shared: f64,
    /// Second-level cache.
    pub l2: f64,
    /// Device memory.
    pub memory: f64,
    /// What the multiprocessor with the most blocks takes: its busiest pipe, or what one block's stages wait.
    pub blocks: f64,
    /// Blocks of a multiprocessor at a time.
    pub resident: usize,
    /// Blocks for each that can run at a time.
    pub waves: f64,
}

impl Times {
    /// What it takes, without the launch.
    pub fn seconds(&self) -> f64 {
        self.blocks.max(self.l2).max(self.memory)
    }

    /// The part of [`Times::seconds`] that the way of cutting bears on.
    pub(super) fn chip(&self) -> f64 {
        // Of two that take equally long the one that loads less.
        self.blocks.max(self.l2) + 0.03 * (self.blocks + self.l2 + self.shared)
    }

    /// What bounds it: the pipe or memory that is busy longest, `waves` where the last blocks leave most
    /// multiprocessors idle, or `latency` where stages wait.
    pub fn bound(&self) -> &'static str {
        let pipes = [
            (self.tensor, "tensor"),
            (self.issue, "issue"),
            (self.mufu, "MUFU"),
            (self.shared, "shared"),
        ];
        let all = [(self.l2, "L2"), (self.memory, "HBM")];
        let by_time = |a: &&(f64, &'static str), b: &&(f64, &'static str)| a.0.total_cmp(&b.0);
        let pipe = pipes.iter().max_by(by_time).expect("there are some");
        let memory = all.iter().max_by(by_time).expect("there are some");
        if memory.0 >= self.blocks {
            return memory.1;
        }
        let even = self.waves / self.waves.ceil();
        match self.blocks {
            // The model's own overheads are below a fifth of the pipe's time.
            t if t <= 1.2 * pipe.0 => pipe.1,
            t if t * even <= 1.2 * pipe.0 => "waves",
            _ => "latency",
        }
    }
}

/// Clocks that a block's stage waits for its barrier, its loads from shared memory and the first products,
/// where no other block fills them.
const STAGE_LATENCY: f64 = 180.0;
/// Clocks of a block's beginning (tables, the first copies' way from memory) and end, and instructions for
/// 8 results. Counted in the machine code of conv2d_mma: 4 STS, 2 LDS, 16 for the activation, 4 F2FP, the
/// store, addresses; and for each row and patch pixel of the tables.
const ENDS_LATENCY: f64 = 1500.0;
const RESULT_INSTRUCTIONS: f64 = 50.0;
const TABLE_INSTRUCTIONS: f64 = 50.0;

/// What a block takes: clocks of a multiprocessor's pipes, bytes from the second level.
struct Pipes {
    tensor: f64,
    issue: f64,
    mufu: f64,
    shared: f64,
    l2: f64,
    /// Instructions of its main loop alone.
    stages: f64,
}

impl Block<'_> {
    fn main_loop(&self, card: &Card) -> Loop {
        let key = (
            card.arch,
            self.dtype == DType::F32,
            self.noise,
            self.blocking.number,
        );
        let kernel = loops().get(&key).copied();
        // A kernel that was not counted yet: about what others have.
        kernel.unwrap_or_else(|| {
            let products = (self.blocking.rows * self.blocking.cols) as f64 / 256.0;
            Loop {
                stage: 120.0 + 2.0 * products,
                hmma: products,
                copy: 20.0,
                noise: 204.0,
                resident: 2,
            }
        })
    }

    fn pipes(&self, card: &Card, kernel: &Loop) -> Pipes {
        let (rows, cols) = (self.blocking.rows as f64, self.blocking.cols as f64);
        let (stages, chunks) = (self.stages as f64, self.chunks as f64);
        let windows = chunks * self.windows as f64;
        // A step of 64 bytes is as long for tf32 as for 16 bits: half the elements at half the rate.
        let operations = 2.0 * rows * cols * 32.0 * stages * self.share;
        // Four warps on four schedulers: an instruction of each is a clock.
        let products = stages * (kernel.stage - (1.0 - self.share) * kernel.hmma);
        let turns = (self.windows as f64 / 128.0).ceil() * chunks;
        let noise = if self.noise { kernel.noise } else { 0.0 };
        let main = products + turns * (kernel.copy + noise);
        let results = rows * cols / 8.0;
        let ends = results / 128.0 * RESULT_INSTRUCTIONS
            + (rows + self.windows as f64) / 128.0 * TABLE_INSTRUCTIONS
            + 200.0;
        let mufu = if self.noise {
            16.0 * windows / MUFU
        } else {
            0.0
        };
        // Fragments as ldmatrix brings them: rows for each warp across, columns for each warp down.
        let (down, across) = if self.blocking.tall {
            (4.0, 1.0)
        } else {
            (2.0, 2.0)
        };
        let fragments =
            stages * 64.0 * (rows * across * self.share * self.conflicts as f64 + cols * down);
        let bytes = windows * self.window as f64;
        let slabs = stages * cols * 64.0;
        // Copies and noise meet two pixels in one bank, and so do the results' loads (banks.rs).
        let copies = if self.noise { 3.0 } else { 1.0 } * 2.0 * bytes;
        let shared = fragments + slabs + copies + 3.0 * 4.0 * rows * cols;
        Pipes {
            tensor: operations / card.mma,
            issue: (main + ends) * 4.0 / ISSUE,
            mufu,
            shared: shared / SHARED,
            l2: slabs + bytes + self.result,
            stages: main,
        }
    }

    /// Of a launch of so many blocks that reads and writes so many bytes of memory.
    pub fn times(&self, card: &Card, blocks: usize, bytes: f64) -> Times {
        let kernel = self.main_loop(card);
        let pipes = self.pipes(card, &kernel);
        // Static tables and what the system keeps.
        let shared = self.shared + self.blocking.rows * 8 + 1280 + 1024;
        let resident = (card.shared / shared).min(kernel.resident).max(1);
        let busiest = pipes
            .tensor
            .max(pipes.issue)
            .max(pipes.mufu)
            .max(pipes.shared);
        let alone =
            pipes.tensor.max(pipes.stages) + self.stages as f64 * STAGE_LATENCY + ENDS_LATENCY;
        // Blocks that run together take what the busiest pipe takes for all of them, or what one takes alone.
        let round = |together: usize| match together {
            0 => 0.0,
            n => (n as f64 * busiest).max(alone),
        };
        let share = blocks.div_ceil(card.multiprocessors);
        let clocks = (share / resident) as f64 * round(resident) + round(share % resident);
        let each = blocks as f64 / (card.multiprocessors as f64 * card.clock);
        Times {
            tensor: pipes.tensor * each,
            issue: pipes.issue * each,
            mufu: pipes.mufu * each,
            shared: pipes.shared * each,
            l2: pipes.l2 * blocks as f64 / card.l2,
            memory: bytes / card.memory,
            blocks: clocks / card.clock,
            resident,
            waves: blocks as f64 / (card.multiprocessors * resident) as f64,
        }
    }
}

#[cfg(test)]
mod tests;
