//! The register tile under every convolution and matrix product of the CPU path.
//!
//! One kernel computes `c[m][j] += sum_k a[m][k] b[k][j]` for a few rows `m` and a few vectors
//! of columns `j`, keeping `c` in registers over the whole sum. Rows of `a` lie at arbitrary
//! offsets and advance by a common step; columns of `b` are contiguous. The sum runs over a list
//! of [`Run`]s, so one tile walks over all taps of a convolution without touching memory twice.
//!
//! Every element of `c` is one chain of multiply-adds in the order of the runs, whatever the
//! tile's width and wherever the chain is cut, so that results do not depend on blocking.

mod lanes;
mod output;
mod scratch;

use crate::ops::isa::Isa;
use crate::tensor::Real;

pub(crate) use output::{Unset, collect};
pub(crate) use scratch::{Purpose, Scratch};

/// `len` consecutive terms of the sum: `a` moves on from offset `a` by the tile's `a_step`, `b`
/// from offset `b` by its `b_step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub a: usize,
    pub b: usize,
    pub len: usize,
}

/// Rows of the tallest tile.
pub(crate) const MAX_ROWS: usize = 12;

/// Columns of the widest tile.
pub(crate) const MAX_COLS: usize = 64;

/// Where a sum starts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start<'a, T> {
    /// From what `c` holds.
    Resume,
    /// From this row of at least `cols` values, the same for every row of the tile.
    From(&'a [T]),
}

/// Operands of one tile. Offsets and steps count elements.
pub(crate) struct Tile<'a, T> {
    pub a: &'a [T],
    /// Offsets of the rows in `a`; row `m`'s `k`-th value of a run lies at
    /// `a_rows[m] + run.a + k * a_step`.
    pub a_rows: [usize; MAX_ROWS],
    pub a_step: usize,
    pub b: &'a [T],
    pub b_step: usize,
    pub runs: &'a [Run],
    pub start: Start<'a, T>,
}

/// What the kernels see: [`Tile`] after its bounds are checked.
struct RawTile<T> {
    a: [*const T; MAX_ROWS],
    a_step: usize,
    b: *const T,
    b_step: usize,
    runs: *const Run,
    run_count: usize,
    /// Null: resume from `c`.
    start: *const T,
    c: [*mut T; MAX_ROWS],
}

/// A register tile of `rows x cols` for one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Kernel<T> {
    pub rows: usize,
    pub cols: usize,
    /// # Safety
    /// The processor has the instruction set; all of the tile's pointers are good for the reads
    /// and writes its runs, steps, `rows` and `cols` imply.
    body: unsafe fn(&RawTile<T>),
}

impl<T: Element> Kernel<T> {
    /// Computes the tile into `c`: row `m` at `c_rows[m]`, of which the first `lanes` columns
    /// are kept. Rows given twice are computed twice, to the same values: that is how a caller
    /// with too few rows fills the tile up.
    pub fn run(&self, tile: &Tile<'_, T>, c: &mut [T], c_rows: &[usize; MAX_ROWS], lanes: usize) {
        if lanes < self.cols {
            return self.run_narrow(tile, c, c_rows, lanes);
        }
        let highest = |rows: &[usize; MAX_ROWS]| rows[..self.rows].iter().copied().max();
        let a_row = highest(&tile.a_rows).unwrap_or(0);
        for run in tile.runs.iter().filter(|run| run.len > 0) {
            let last = run.len - 1;
            assert!(a_row + run.a + last * tile.a_step < tile.a.len());
            assert!(run.b + last * tile.b_step + self.cols <= tile.b.len());
        }
        assert!(highest(c_rows).unwrap_or(0) + self.cols <= c.len());
        let start = match tile.start {
            Start::Resume => std::ptr::null(),
            Start::From(row) => {
                assert!(self.cols <= row.len());
                row.as_ptr()
            }
        };
        let mut a = [tile.a.as_ptr(); MAX_ROWS];
        let mut rows = [c.as_mut_ptr(); MAX_ROWS];
        for m in 0..self.rows {
            a[m] = a[m].wrapping_add(tile.a_rows[m]);
            rows[m] = rows[m].wrapping_add(c_rows[m]);
        }
        let raw = RawTile {
            a,
            a_step: tile.a_step,
            b: tile.b.as_ptr(),
            b_step: tile.b_step,
            runs: tile.runs.as_ptr(),
            run_count: tile.runs.len(),
            start,
            c: rows,
        };
        // SAFETY: kernels are only handed out for instruction sets the processor has, and the
        // assertions above bound every read and write of the tile.
        unsafe { (self.body)(&raw) }
    }

    /// The same through a temporary, for fewer columns than the tile has.
    #[cold]
    fn run_narrow(
        &self,
        tile: &Tile<'_, T>,
        c: &mut [T],
        c_rows: &[usize; MAX_ROWS],
        lanes: usize,
    ) {
        let mut wide = [T::default(); MAX_ROWS * MAX_COLS];
        let mut wide_rows = [0; MAX_ROWS];
        for m in 0..self.rows {
            wide_rows[m] = m * self.cols;
            if let Start::Resume = tile.start {
                wide[wide_rows[m]..][..lanes].copy_from_slice(&c[c_rows[m]..][..lanes]);
            }
        }
        self.run(tile, &mut wide, &wide_rows, self.cols);
        for m in 0..self.rows {
            c[c_rows[m]..][..lanes].copy_from_slice(&wide[wide_rows[m]..][..lanes]);
        }
    }
}

/// Element types with register tiles.
pub(crate) trait Element: Real + bytemuck::Pod {
    /// The tiles of an instruction set, widest first.
    fn kernels(isa: Isa) -> &'static [Kernel<Self>];
}

impl Element for f32 {
    fn kernels(isa: Isa) -> &'static [Kernel<f32>] {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => lanes::AVX512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => lanes::AVX2,
            _ => lanes::PORTABLE_F32,
        }
    }
}

impl Element for f64 {
    fn kernels(_isa: Isa) -> &'static [Kernel<f64>] {
        lanes::PORTABLE_F64
    }
}

/// A range of columns and the tile that computes it.
#[derive(Clone, Copy)]
pub(crate) struct Block<T> {
    pub kernel: Kernel<T>,
    /// First column.
    pub first: usize,
    /// Columns, at most the kernel's.
    pub width: usize,
}

/// Cuts `cols` columns into blocks: the widest tile while it is filled, for the rest the one
/// tile that is well used, or the next narrower one and so on.
pub(crate) fn blocks<T: Element>(kernels: &[Kernel<T>], cols: usize) -> Vec<Block<T>> {
    let mut blocks = Vec::new();
    let mut first = 0;
    while first < cols {
        let left = cols - first;
        let narrowest = kernels.len() - 1;
        let used = |kernel: &&Kernel<T>| left >= kernel.cols || left * 8 >= kernel.cols * 5;
        let kernel = *kernels.iter().find(used).unwrap_or(&kernels[narrowest]);
        let width = left.min(kernel.cols);
        blocks.push(Block {
            kernel,
            first,
            width,
        });
        first += width;
    }
    blocks
}
