//! What a block of the weight gradient does, and how long the model says that takes.

use super::WARPS;
use crate::ops::conv2d::model::{Card, Times};

/// What one block does, for models of its time.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "the launch needs only the splits and tiles")]
pub(in crate::ops) struct Work {
    /// Blocks: pieces of dw by splits of the pixels.
    pub pieces: usize,
    pub splits: usize,
    /// Tiles of one block.
    pub tiles: usize,
    /// Of one tile: products of 16 x 8 x 16 of all warps, as issued; the share that is not left out
    /// for lying on padding.
    pub products: usize,
    pub kept: f64,
    /// Of one tile: instructions a warp issues, most of all warps.
    pub instructions: usize,
    /// Of one tile: bytes read from L2 and normals drawn.
    pub l2_bytes: usize,
    pub normals: usize,
    /// Bytes written and read again for sums of splits, by all blocks.
    pub partial_bytes: usize,
    /// Clocks of the launch by the plan's own estimate.
    pub clocks: f64,
}

impl Work {
    /// What the model says of it on a card; `bytes` of memory are the tensors'.
    pub fn times(&self, card: &Card, bytes: f64) -> Times {
        let blocks = (self.pieces * self.splits) as f64;
        let tiles = blocks * self.tiles as f64;
        let each = tiles / (card.multiprocessors as f64 * card.clock);
        let products = self.products as f64 * self.kept;
        // A fragment of dy is read for nine products, one of x for four.
        let fragments = products * 512.0 * (1.0 / 9.0 + 0.25 / 2.0);
        let mut times = Times {
            tensor: products * 4096.0 / card.mma * each,
            issue: (self.instructions * WARPS) as f64 / 4.0 * each,
            mufu: self.normals as f64 / 8.0 * each,
            shared: (fragments + 2.0 * self.l2_bytes as f64) / 128.0 * each,
            l2: (tiles * self.l2_bytes as f64 + self.partial_bytes as f64) / card.l2,
            memory: bytes / card.memory,
            blocks: self.clocks / card.clock,
            resident: 1,
            waves: blocks / card.multiprocessors as f64,
        };
        // The plan's estimate knows an H100's pipes; another card's may be slower.
        let pipes = [times.tensor, times.issue, times.mufu, times.shared];
        times.blocks = pipes.into_iter().fold(times.blocks, f64::max);
        times
    }
}
