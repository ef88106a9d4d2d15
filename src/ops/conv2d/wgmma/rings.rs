//! The buffers of a launch in shared memory, and how its blocks share the tiles.

use super::{Plan, Problem, SHARED, STAGING};

/// Stages of weights in a ring, and of weights that stay.
const RING_STAGES: usize = 8;
pub const MAX_STAGES: usize = 16;

/// What a launch's blocks keep in shared memory, and how many blocks there are.
#[derive(Debug, Clone, Copy)]
pub struct Rings {
    pub patches: usize,
    pub stages: usize,
    pub blocks: usize,
    /// Whether weights stay: all tiles of a block have the same, and there is a stage for every step.
    pub stay: bool,
}

impl Problem {
    /// Patches on their way or in use, at most. Two are in use: one warpgroup is a chunk ahead of the other, which in 1x1
    /// kernels takes no longer than a fraction of a load.
    pub fn most_patches(&self) -> usize {
        if self.k == 1 { 8 } else { 3 }
    }
}

impl Plan {
    /// What a launch's blocks keep beside so many bytes of shared memory. `None`: a patch does not fit twice.
    pub fn rings(&self, multiprocessors: usize, other: usize) -> Option<Rings> {
        let left = |patches| (SHARED - STAGING - other).checked_sub(patches * self.patch_bytes());
        let most = self.problem.most_patches();
        if let Some(blocks) = self.blocks_with_own_columns(multiprocessors) {
            // Two patches are in use, two on their way.
            const FEW: usize = 4;
            let stages = self.steps();
            let all = stages * self.stage_bytes();
            let fits = |&patches: &usize| left(patches).is_some_and(|left| left >= all);
            if let Some(patches) = (FEW.min(most)..=most).rev().find(fits) {
                return Some(Rings {
                    patches,
                    stages,
                    blocks,
                    stay: true,
                });
            }
        }
        (2..=most).rev().find_map(|patches| {
            let stages = (left(patches)? / self.stage_bytes()).min(RING_STAGES);
            (stages >= patches).then_some(Rings {
                patches,
                stages,
                blocks: self.tile_count().min(multiprocessors),
                stay: false,
            })
        })
    }

    /// How many blocks can share the tiles such that each has tiles of the same output channels, whose weights are
    /// then brought once, a stage for every step. `None`: none, more steps than stages, or more turns than without.
    fn blocks_with_own_columns(&self, multiprocessors: usize) -> Option<usize> {
        let ([.., columns], tiles) = (self.tiles(), self.tile_count());
        let most = tiles.min(multiprocessors);
        let blocks = most - most % columns;
        let same = blocks > 0 && tiles.div_ceil(blocks) == tiles.div_ceil(most);
        (same && self.steps() <= MAX_STAGES).then_some(blocks)
    }

    /// Steps of a tile's sum, a stage of weights each.
    pub fn steps(&self) -> usize {
        self.problem.k * self.problem.chunks()
    }
}
