//! A training step's weights, packed for the tensor cores by one launch. By itself each convolution packs
//! its own, in front of every pass: launches of a few microseconds that do little.

use std::sync::{Arc, Mutex};

use bytemuck::bytes_of;

use crate::error::Result;
use crate::gpu::kernels::{PackEntry, Packing, pack as kernels};
use crate::gpu::{Buffer, Gpu, launch_blocks};
use crate::tensor::DType;

/// Weights in a form that a kernel reads.
#[derive(Clone)]
struct Form {
    /// Where the weights lie.
    w: u64,
    packing: Packing,
    dtype: DType,
    data: Arc<Buffer<u8>>,
}

/// The forms of the step that runs now; of one device.
#[derive(Default)]
pub(super) struct Running(Mutex<Option<Step>>);

#[derive(Default)]
struct Step {
    /// Packed at the step's beginning.
    ready: Vec<Form>,
    /// Found on the way.
    found: Vec<Form>,
}

/// Packs the weights of a step that is repeated. Which forms its convolutions read it learns from the first
/// one; from the second on they are made at its beginning.
pub struct Packs {
    gpu: Gpu,
    forms: Vec<Form>,
    table: Option<Table>,
    /// Graphs may read what was replaced.
    before: Vec<Table>,
}

/// On the device.
struct Table {
    entries: Buffer<PackEntry>,
    dtype: DType,
    /// Of `forms`, those that it has.
    forms: usize,
    blocks: u32,
}

impl Packs {
    /// Of a step on this device.
    pub fn new(gpu: &Gpu) -> Self {
        Packs {
            gpu: gpu.clone(),
            forms: Vec::new(),
            table: None,
            before: Vec::new(),
        }
    }

    /// Brings the table up to date, before a step that may be recorded.
    ///
    /// Errors: not enough device memory.
    pub fn prepare(&mut self) -> Result<()> {
        let known = self.table.as_ref().map_or(0, |table| table.forms);
        let Some(first) = self.forms.first().filter(|_| known < self.forms.len()) else {
            return Ok(());
        };
        let dtype = first.dtype;
        let mut blocks = 0;
        let mut entries = Vec::new();
        // Another type's are left to their convolutions.
        self.forms.retain(|form| form.dtype == dtype);
        for form in &self.forms {
            entries.push(PackEntry {
                w: form.w,
                packed: form.data.ptr().address,
                first_block: blocks,
                padding: 0,
                p: form.packing,
            });
            blocks += launch_blocks("conv2d", pieces(&form.packing), 256)?;
        }
        let table = Table {
            entries: self.gpu.upload(&entries)?,
            dtype,
            forms: self.forms.len(),
            blocks,
        };
        self.before.extend(self.table.replace(table));
        Ok(())
    }

    /// Runs a step. Nobody may move its weights to another place from one step to the next, nor write them
    /// before its last convolution.
    ///
    /// Errors: those of the step.
    pub fn during<R>(&mut self, step: impl FnOnce() -> Result<R>) -> Result<R> {
        let ready = self.table.as_ref().map_or(0, |table| table.forms);
        if let Some(table) = &self.table {
            let count = table.entries.len() as u32;
            let grid = [table.blocks, 1, 1];
            kernels::pack_all(&self.gpu, table.dtype, grid, 0, table.entries.ptr(), count)?;
        }
        let running = self.gpu.remembered::<Running>();
        let lock = || running.0.lock().unwrap_or_else(|e| e.into_inner());
        *lock() = Some(Step {
            ready: self.forms[..ready].to_vec(),
            found: Vec::new(),
        });
        let result = step();
        let found = lock().take().map(|step| step.found);
        // What a graph packs lies in the graph's own memory.
        if !self.gpu.is_capturing() {
            self.forms.extend(found.unwrap_or_default());
        }
        result
    }
}

/// Pieces of 16 bytes of a form.
pub(super) fn pieces(p: &Packing) -> usize {
    p.supergroups as usize * p.slabs as usize * p.rows as usize * 4
}

impl Running {
    /// The weights at `w` packed in this way, from the step's beginning or by `pack`.
    pub fn form(
        &self,
        w: u64,
        packing: &Packing,
        dtype: DType,
        pack: impl FnOnce() -> Result<Buffer<u8>>,
    ) -> Result<Arc<Buffer<u8>>> {
        let lock = || self.0.lock().unwrap_or_else(|e| e.into_inner());
        let same = |form: &&Form| {
            (form.w, form.dtype) == (w, dtype) && bytes_of(&form.packing) == bytes_of(packing)
        };
        if let Some(form) = lock()
            .as_ref()
            .and_then(|step| step.ready.iter().find(same))
        {
            return Ok(form.data.clone());
        }
        let data = Arc::new(pack()?);
        if let Some(step) = lock().as_mut() {
            step.found.push(Form {
                w,
                packing: *packing,
                dtype,
                data: data.clone(),
            });
        }
        Ok(data)
    }
}
