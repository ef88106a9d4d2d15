//! Batches from a data set that lies on a GPU: gathered, cropped and flipped there.

use std::sync::Arc;

use super::augment::Augment;
use super::{Dataset, Pixels, shuffled};
use crate::error::{Error, Result};
use crate::gpu::kernels::data as kernels;
use crate::gpu::{Buffer, Gpu, Ptr, launch_blocks, launch_size};
use crate::ops::noise::{Row, Rows};
use crate::ops::step::Cursor;
use crate::tensor::{DType, Shape, Tensor};

/// Which image a row of a batch is, what happens to it, and the name of its noise.
pub use crate::gpu::kernels::Pick;

impl Pick {
    /// The image of this index as it is, its noise named by the index.
    pub fn unmoved(index: u32) -> Self {
        Pick {
            index,
            id: index,
            dy: 0,
            dx: 0,
            flip: 0,
        }
    }
}

/// A data set on a GPU: bytes stay bytes there too.
pub struct DeviceData {
    bytes: Option<Buffer<u8>>,
    floats: Option<Buffer<f32>>,
    labels: Buffer<u32>,
    shape: Shape,
}

/// The rows of an epoch's batches, on the device: batch `b` is the picks `b * rows` and following. It
/// keeps its place when it is set again, as graphs need.
pub struct Plan {
    picks: Buffer<Pick>,
    rows: usize,
}

/// A batch on the device.
pub struct Batch {
    /// `[n, h, w, c]` in `[0, 1]`.
    pub x: Tensor,
    /// `n` classes.
    pub labels: Buffer<u32>,
    /// The names of the rows' noise.
    pub rows: Rows,
}

impl DeviceData {
    /// Copies a data set to a GPU.
    ///
    /// Errors: no image, more than 2^32 of them, or more than 2^31 values an image; not enough device
    /// memory.
    pub fn new(data: &Dataset, gpu: &Gpu) -> Result<Self> {
        const OP: &str = "DeviceData::new";
        if data.is_empty() {
            return Err(Error::argument(OP, "data", "at least one image", "none"));
        }
        launch_size(OP, "data", data.len())?;
        // The kernel counts in 32 bits, a vector past the end of a row included.
        launch_size(OP, "data", data.shape.row_len().saturating_mul(2))?;
        let (bytes, floats) = match &data.pixels {
            Pixels::Bytes(v) => (Some(gpu.upload(v)?), None),
            Pixels::Floats(v) => (None, Some(gpu.upload(v)?)),
        };
        Ok(DeviceData {
            bytes,
            floats,
            labels: gpu.upload(&data.labels)?,
            shape: data.shape,
        })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.shape.n
    }

    /// Whether there is no image: never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of a training epoch in batches of `batch`: every image once in the epoch's order, moved as
    /// [`Dataset::augmented_batch`] does, its noise named by its place in the batch.
    ///
    /// Errors: padding that is not smaller than the images; no row in a batch.
    pub fn training_picks(
        &self,
        augment: Option<&Augment>,
        seed: u64,
        epoch: u32,
        batch: usize,
    ) -> Result<Vec<Pick>> {
        const OP: &str = "DeviceData::training_picks";
        let augment = augment.copied().unwrap_or_default();
        augment.check(OP, self.shape)?;
        if batch == 0 {
            return Err(Error::argument(OP, "batch", "at least 1 row", batch));
        }
        let order = shuffled(self.len(), seed, epoch).into_iter().enumerate();
        let pick = |(place, index): (usize, usize)| {
            let moved = augment.draw(seed, epoch, index);
            Pick {
                index: index as u32,
                id: (place % batch) as u32,
                dy: moved.dy as i32,
                dx: moved.dx as i32,
                flip: moved.flip.into(),
            }
        };
        Ok(order.map(pick).collect())
    }

    /// The plan of these rows, in batches of `rows`.
    ///
    /// Errors: no pick or no row in a batch; an image that is not there; not enough device memory.
    pub fn plan(&self, picks: &[Pick], rows: usize) -> Result<Plan> {
        const OP: &str = "DeviceData::plan";
        if picks.is_empty() {
            return Err(Error::argument(OP, "picks", "at least one", "none"));
        }
        if rows == 0 {
            return Err(Error::argument(OP, "rows", "at least 1", rows));
        }
        launch_size(OP, "rows", rows)?;
        let mut plan = Plan {
            picks: self.labels.gpu().alloc(picks.len())?,
            rows,
        };
        self.set_plan(&mut plan, picks)?;
        Ok(plan)
    }

    /// Other picks in the place of a plan's, as many.
    ///
    /// Errors: another number of picks; an image that is not there; a fault of the device.
    pub fn set_plan(&self, plan: &mut Plan, picks: &[Pick]) -> Result<()> {
        let bad = picks.iter().find(|pick| pick.index as usize >= self.len());
        if let Some(pick) = bad {
            let expected = format_args!("images below {}", self.len());
            return Err(Error::argument(
                "DeviceData::set_plan",
                "picks",
                expected,
                pick.index,
            ));
        }
        plan.picks.write(picks)
    }

    /// The first `n` rows of the batch at the cursor, read where the device has it: a graph replayed
    /// with [`step::end`](crate::ops::step::end) gives the next batch each time. The draw of the noise
    /// is the cursor's.
    ///
    /// Errors: no row, or more than a batch of the plan has; a plan or a cursor on another device; a
    /// type the device does not hold; not enough device memory.
    pub fn batch(&self, plan: &Plan, cursor: &Cursor, n: usize, dtype: DType) -> Result<Batch> {
        const OP: &str = "DeviceData::batch";
        if n == 0 || n > plan.rows {
            let expected = format_args!("1 to {} rows", plan.rows);
            return Err(Error::argument(OP, "n", expected, n));
        }
        let gpu = self.labels.gpu();
        plan.picks.expect(OP, "plan", plan.picks.len(), gpu)?;
        let shape = self.shape.with_n(n);
        let mut x = Tensor::uninit(gpu, shape, dtype)?;
        let mut labels = gpu.alloc(n)?;
        let mut rows = gpu.alloc::<Row>(n)?;
        let per_thread = 16 / dtype.size();
        let blocks = shape.row_len().div_ceil(256 * per_thread);
        let null = Ptr::null();
        kernels::data_gather(
            gpu,
            dtype,
            self.bytes.is_some(),
            shape.row_len().is_multiple_of(per_thread),
            [launch_blocks(OP, n.saturating_mul(blocks), 1)?, 1, 1],
            0,
            x.ptr_mut()?,
            labels.ptr_mut(),
            rows.ptr_mut(),
            self.bytes.as_ref().map_or(null, Buffer::ptr),
            self.floats.as_ref().map_or(null, Buffer::ptr),
            self.labels.ptr(),
            plan.picks.ptr(),
            plan.picks.len() as u64,
            cursor.ptr(OP, gpu)?,
            plan.rows as u32,
            shape.h as u32,
            shape.w as u32,
            shape.c as u32,
            blocks as u32,
        )?;
        Ok(Batch {
            x,
            labels,
            rows: Rows::on_device(Arc::new(rows)),
        })
    }
}
