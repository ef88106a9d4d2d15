//! A plan's launch: its tensor maps, and the plan as the kernel takes it.

use super::{CHUNK, LINE, Plan, Problem, Rings, SLAB_ROW, dims};
use crate::error::Result;
use crate::gpu::kernels::conv2d_wgmma as kernels;
use crate::gpu::kernels::{Epilogue, Halo};
use crate::gpu::{Gpu, Ptr, TensorMap};
use crate::ops::conv2d::mma::Operands;
use crate::ops::noise::gpu::Fused;
use crate::ops::spans::divisor;
use crate::tensor::DType;

impl Plan {
    /// See [`crate::ops::conv2d::mma::Plan::launch`].
    #[allow(clippy::too_many_arguments)]
    pub fn launch(
        &self,
        gpu: &Gpu,
        dtype: DType,
        packed: Ptr,
        o: &Operands,
        epilogue: Epilogue,
        noise: &Fused,
        next: &Fused,
    ) -> Result<()> {
        let for_noise = match (noise.mode, next.mode) {
            (0, 0) => 0,
            (input, _) => self.noise_bytes(input != 0),
        };
        let rings = self.rings(gpu.properties().multiprocessors, for_noise);
        let rings = rings.expect("planned with the most there can be");
        let mut halo = self.halo(&rings, epilogue.pool != 0);
        let patch = [CHUNK, self.images, self.patch_cols, self.patch_rows];
        let map = self.problem.from.map(gpu, o.x, patch)?;
        let weights = self.weights_map(gpu, packed)?;
        let whole = epilogue.pool == 0 && epilogue.noise == 0;
        let boxes = match self.fragment_box().filter(|_| whole) {
            Some(size) => {
                halo.boxes = 1;
                self.problem.to.map(gpu, o.y, size)?
            }
            // Not read.
            None => map,
        };
        kernels::conv2d_wgmma(
            gpu,
            dtype,
            self.problem.k as u32,
            self.problem.step as u32,
            self.instance.mt as u32,
            self.instance.n as u32,
            [halo.blocks, 1, 1],
            (self.shared(&rings) + for_noise) as u32,
            o.y,
            o.bias,
            o.residual,
            o.mask,
            o.argmax,
            o.partial,
            o.counts,
            map,
            weights,
            boxes,
            halo,
            epilogue,
            noise.rows,
            noise.mode,
            noise.draw,
            next.rows,
            next.draw,
        )
    }

    /// The box that a fragment's 16 pixels, by 64 channels, are in the result; `None` where they are not one, or would
    /// reach into the next group.
    fn fragment_box(&self) -> Option<[usize; 4]> {
        const PIXELS: usize = 16;
        let (images, cols) = (self.images.min(PIXELS), PIXELS / self.images.min(PIXELS));
        let is_box = self.images.is_multiple_of(images)
            && images * cols == PIXELS
            && self.cols.is_multiple_of(cols);
        let channels = self.problem.columns();
        let inside = channels.is_multiple_of(64) || self.problem.groups == 1 && channels > 64;
        (is_box && inside).then_some([64, images, cols, 1])
    }

    /// Packed weights as (512 bytes, the rest of a slab, kernel columns, kernel rows of all chunks), in boxes of a stage.
    fn weights_map(&self, gpu: &Gpu, packed: Ptr) -> Result<TensorMap> {
        let Problem { k, groups, .. } = self.problem;
        let slab = self.problem.slab_rows() * SLAB_ROW / 2;
        let lines = groups * self.problem.chunks() * k;
        let (sizes, strides) = ([LINE, slab / LINE, k, lines], [LINE, slab, k * slab]);
        let rows = self.instance.n * SLAB_ROW / 2 / LINE;
        TensorMap::new(
            gpu,
            packed,
            sizes,
            strides,
            [LINE as u32, rows as u32, 1, k as u32],
        )
    }

    /// Whether every pixel of the result is written.
    pub fn covers(&self) -> bool {
        self.problem.to.every == 1
    }

    /// Whether a mask can gate the result: it is read by 32 channels at a time.
    pub fn gates(&self) -> bool {
        self.problem.columns().is_multiple_of(32)
    }

    /// As the kernel takes it; with a pool behind it, whose results are a quarter.
    fn halo(&self, rings: &Rings, pool: bool) -> Halo {
        let problem = self.problem;
        let [images, down, across, blocks] = self.tiles();
        let (from, to) = (problem.from, problem.to);
        let [from_row, from_col] = from.pitch();
        let [to_row, to_col] = to.pitch();
        let half = u32::from(pool);
        Halo {
            from: dims(from.seen),
            to: dims(to.seen),
            from_row: from_row as u32,
            from_col: from_col as u32,
            to_image: (to.whole.h as u32 >> half) * (to.whole.w as u32 >> half),
            to_row: to_row as u32 >> half,
            to_col: to_col as u32,
            pad: problem.pad as u32,
            flip: problem.backward.into(),
            group_from: (from.seen.c / problem.groups) as u32,
            group_to: problem.columns() as u32,
            chunks: problem.chunks() as u32,
            images: self.images as u32,
            rows: self.rows() as u32,
            cols: self.cols as u32,
            patch_rows: self.patch_rows as u32,
            patch_cols: self.patch_cols as u32,
            rows_before: self.rows_before as u32,
            cols_before: self.cols_before as u32,
            by_images: divisor(self.images),
            by_cols: divisor(self.cols),
            by_patch_cols: divisor(self.patch_cols),
            tiles: (images * down * across * blocks) as u32,
            by_down: divisor(down),
            by_across: divisor(across),
            by_blocks: divisor(blocks),
            by_group_blocks: divisor(self.group_blocks()),
            patch_bytes: self.patch_bytes() as u32,
            patches: rings.patches as u32,
            stages: rings.stages as u32,
            stay: rings.stay.into(),
            pieces: self.pieces() as u32,
            boxes: 0,
            blocks: rings.blocks as u32,
        }
    }
}
