//! The C&W attack's state on a GPU: images under attack, and their step.

use std::sync::Arc;

use super::{from_image, to_image_as};
use crate::error::{Error, Result};
use crate::gpu::kernels::tanh_space as kernels;
use crate::gpu::{Buffer, Ptr, launch_blocks, launch_size};
use crate::ops::adam::Adam;
use crate::ops::margin::Margin;
use crate::ops::noise::{Row, Rows};
use crate::tensor::{DType, Tensor};

/// What the attack knows of a row.
pub use crate::gpu::kernels::Attacked;

/// Images under attack on a GPU, one a row, each with its own constant, optimiser state and noise. A
/// [`step`](Iterates::step) neither waits nor uploads: it can be captured once and replayed.
pub struct Iterates {
    state: Buffer<Attacked>,
    rows: Arc<Buffer<Row>>,
    x: Tensor,
    w: Tensor,
    m: Tensor,
    v: Tensor,
    image: Tensor,
    best: Tensor,
    adam: Adam,
    check_every: u32,
}

impl Iterates {
    /// Rows at the images `x` `[n, h, w, c]` (f32 in `[0, 1]`), `w` shrunk as
    /// [`from_image`] does, with constants `c` and names `rows` of their first draws. The iterates are
    /// handed out as `dtype`. Every `check_every` steps (0: never) a row has to have come closer; see
    /// [`Iterates::step`].
    ///
    /// Errors: `x` is not f32, not on a GPU or no image; another number of constants or names than
    /// rows; a constant that is negative or not finite; what [`Adam`] must not be.
    pub fn new(
        x: &Tensor,
        dtype: DType,
        shrink: f64,
        c: &[f64],
        rows: &[Row],
        adam: Adam,
        check_every: u32,
    ) -> Result<Self> {
        const OP: &str = "Iterates::new";
        let gpu = x.expect_gpu(OP, "x")?.clone();
        let shape = x.shape();
        x.expect(OP, "x", shape, x.kind().with(DType::F32))?;
        for (arg, len) in [("c", c.len()), ("rows", rows.len())] {
            if len != shape.n {
                let expected = format!("{} entries, one per row", shape.n);
                return Err(Error::argument(OP, arg, expected, len));
            }
        }
        for &c in c {
            Error::unless_not_negative(OP, "c", c)?;
        }
        adam.check(OP)?;
        launch_size(OP, "x", shape.row_len())?;
        let w = from_image(x, shrink)?;
        let state: Vec<Attacked> = c
            .iter()
            .map(|&c| Attacked {
                c,
                best: f64::INFINITY,
                squared: 0.0,
                previous: f64::INFINITY,
                steps: 0,
                success: 0,
                stalled: 0,
                active: 1,
                not_finite: 0,
                first_bad: 0,
            })
            .collect();
        let mut best = x.zeros_like()?;
        best.copy_from(x)?;
        Ok(Iterates {
            state: gpu.upload(&state)?,
            rows: Arc::new(gpu.upload(rows)?),
            image: to_image_as(&w, dtype)?,
            m: w.zeros_like()?,
            v: w.zeros_like()?,
            x: x.clone(),
            best,
            w,
            adam,
            check_every,
        })
    }

    /// Takes other constants of the optimiser from the next step on; a step that was captured keeps those
    /// it was captured with. True if they are others.
    ///
    /// Panics for what [`Adam`] must not be.
    pub fn set_adam(&mut self, adam: Adam) -> bool {
        adam.check("Iterates::set_adam")
            .expect("an optimiser's constants");
        std::mem::replace(&mut self.adam, adam) != adam
    }

    /// The iterates `x'`, as the network is to see them; a step changes them in place, clones included.
    pub fn image(&self) -> &Tensor {
        &self.image
    }

    /// The names of the next step's noise, on the device.
    pub fn rows(&self) -> Rows {
        Rows::on_device(self.rows.clone())
    }

    /// The iterates as f32.
    ///
    /// Errors: not enough device memory.
    pub fn last(&self) -> Result<Tensor> {
        to_image_as(&self.w, DType::F32)
    }

    /// The closest success of every row; the original image where there was none ([`Attacked::best`]
    /// is infinite).
    pub fn best(&self) -> &Tensor {
        &self.best
    }

    /// What is known of every row. Waits for the device.
    ///
    /// Errors: a fault of the device.
    pub fn read(&self) -> Result<Vec<Attacked>> {
        self.state.to_vec()
    }

    /// One step of every row that is still active: keeps the image if it is the closest success so
    /// far, descends by Adam along `(2 (x' - x) + c df) dx'/dw`, and counts. `margins` and `df` are what
    /// the network said of [`Iterates::image`] ([`attack_step`](crate::ops::margin::attack_step)); `df` is
    /// the gradient of the margins times `scale`.
    ///
    /// At the first step and every `check_every` steps after it, the loss
    /// `||x' - x||^2 + c margin` has to have fallen by 0.01% since the last such check; after two checks in
    /// a row without, the row stays where it is.
    ///
    /// Errors: `margins` or `df` does not fit; `scale` is not finite and above 0.
    pub fn step(&mut self, df: &Tensor, margins: &Buffer<Margin>, scale: f32) -> Result<()> {
        const OP: &str = "Iterates::step";
        let (shape, dtype) = (self.x.shape(), self.image.dtype());
        df.expect(OP, "df", shape, self.image.kind())?;
        let gpu = self.state.gpu().clone();
        margins.expect(OP, "margins", shape.n, &gpu)?;
        Error::unless_positive(OP, "scale", f64::from(scale))?;
        if shape.is_empty() {
            return Ok(());
        }
        let len = shape.row_len();
        let vectors = len.is_multiple_of(16 / dtype.size());
        let rows: Ptr = self.rows.ptr();
        let (w, m, v) = (self.w.ptr_mut()?, self.m.ptr_mut()?, self.v.ptr_mut()?);
        // In place even where the caller holds a clone: a graph's addresses stay.
        let (image, best) = (self.image.ptr(), self.best.ptr());
        kernels::tanh_space_step(
            &gpu,
            dtype,
            vectors,
            [launch_blocks(OP, shape.n, 1)?, 1, 1],
            0,
            self.state.ptr_mut(),
            rows,
            w,
            m,
            v,
            image,
            best,
            self.x.ptr(),
            df.ptr(),
            margins.ptr(),
            launch_size(OP, "x", len)?,
            self.check_every,
            1.0 / scale,
            self.adam.into(),
        )
    }

    /// Rows `keep` alone, as they stand: what is left when the others are done. Waits for the device.
    ///
    /// Errors: a row that is not there; not enough device memory.
    pub fn gather(&self, keep: &[usize]) -> Result<Self> {
        let gpu = self.state.gpu();
        let w = self.w.gather_rows(keep)?;
        fn pick<T: Copy>(all: &[T], keep: &[usize]) -> Vec<T> {
            keep.iter().map(|&r| all[r]).collect()
        }
        Ok(Iterates {
            state: gpu.upload(&pick(&self.state.to_vec()?, keep))?,
            rows: Arc::new(gpu.upload(&pick(&self.rows.to_vec()?, keep))?),
            x: self.x.gather_rows(keep)?,
            m: self.m.gather_rows(keep)?,
            v: self.v.gather_rows(keep)?,
            image: self.image.gather_rows(keep)?,
            best: self.best.gather_rows(keep)?,
            w,
            adam: self.adam,
            check_every: self.check_every,
        })
    }
}
