//! Classifiers: what attacks and evaluation see of a network. The ensemble over noise draws is
//! itself one.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, Repeated};
use crate::models::{Frozen, Model, Sizes};
use crate::nn::{Grads, Mode, Pass};
use crate::ops::ensemble::{
    check_draws_fit, combine_backward, concat_rows, repeat, repeat_rows, sum_draws,
};
use crate::ops::loss::argmax;
use crate::ops::noise::{Key, Purpose, Row, Rows};
use crate::tensor::{Device, Shape, Tensor};

pub use crate::ops::ensemble::{Average, combine};

/// Scores images. All a black-box attack may ask.
pub trait Classifier {
    /// Number of classes.
    fn classes(&self) -> usize;

    /// `[1, h, w, c]` of the images it takes.
    fn input(&self) -> Shape;

    /// Where it wants its images.
    fn device(&self) -> Device {
        Device::Cpu
    }

    /// Whether a row's scores are the same whatever rows stand beside it.
    fn rows_are_independent(&self) -> bool {
        true
    }

    /// Scores `[n, 1, 1, classes]`, the largest wins; differences of scores are differences of
    /// log-probabilities. `rows[i]` names the random variables that image `i` meets.
    fn logits(&mut self, x: &Tensor, rows: &Rows) -> Result<Tensor>;

    /// The winning class of each image.
    fn predict(&mut self, x: &Tensor, rows: &Rows) -> Result<Vec<u32>> {
        argmax(&self.logits(x, rows)?)
    }
}

/// A classifier that shows its gradients: what a white-box attack needs.
pub trait Differentiable: Classifier {
    /// Scores, and the gradient in the images of any function of them: `gradient` is given the
    /// scores and returns that function's gradient in them.
    fn input_grad(
        &mut self,
        x: &Tensor,
        rows: &Rows,
        gradient: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)>;
}

/// Random self-ensemble: `n` draws of the network's noise are `n` rows of one batch.
///
/// Draw `j` of an image whose [`Row`] says draw `d` is the network's draw
/// `d * n + j`, so successive steps of an attack never meet a draw twice. With one draw, or in a
/// network without noise, this is the network itself.
///
/// On a GPU the network is frozen ([`Model::freeze`]) for as long as the ensemble holds it: nobody can
/// change its weights meanwhile.
pub struct Ensemble<'m> {
    model: &'m mut Model,
    frozen: Option<Frozen>,
    /// The user's seed.
    pub seed: u64,
    /// What the draws are for.
    pub purpose: Purpose,
    /// Draws per image, at least 1.
    pub draws: usize,
    /// How they are put together.
    pub average: Average,
    /// Batch norm's statistics; [`Mode::Train`] makes rows depend on each other.
    pub mode: Mode,
    /// Largest number of rows run at once: results do not depend on it. On the CPU 256 unless set
    /// otherwise; on a GPU as many as keep the input and output of every layer in the second-level cache,
    /// and at least as many as give every multiprocessor something to do in every layer.
    pub chunk: usize,
    /// On a GPU the pass over a chunk, by what is fixed in it.
    passes: HashMap<PassKey, ChunkPass>,
}

/// What the launches of a recorded pass have been told.
#[derive(PartialEq, Eq, Hash)]
struct PassKey {
    images: usize,
    draws: usize,
    seed: u64,
    purpose: Purpose,
}

/// A pass over one chunk, replayed from its third time on.
struct ChunkPass {
    images: Tensor,
    names: Arc<Buffer<Row>>,
    scores: Option<Tensor>,
    repeated: Repeated,
}

/// Rows run at once on the CPU unless asked otherwise: at 32x32 and 64 channels 64 MiB an activation.
const CHUNK: usize = 256;

/// Rows run at once on a GPU.
fn chunk(gpu: &Gpu, model: &Model) -> usize {
    let Sizes { most, least } = model.sizes();
    let properties = gpu.properties();
    // Weights and what the next layer needs want room in the cache, too.
    let cached = properties.l2 * 3 / 5 / (most.max(1) * model.dtype().size());
    // A tile of a convolution is at most 128 pixels of 128 channels.
    let filling = (properties.multiprocessors * 128 * 128).div_ceil(least);
    cached.max(filling).min(MOST_ROWS)
}

/// Enough for launches not to matter.
const MOST_ROWS: usize = 4096;

impl<'m> Ensemble<'m> {
    /// `draws` draws of `model`, mean of probabilities, batch norm by running statistics.
    ///
    /// Errors: no draw; not enough device memory.
    pub fn new(model: &'m mut Model, seed: u64, purpose: Purpose, draws: usize) -> Result<Self> {
        if draws == 0 {
            return Err(Error::argument(
                "Ensemble::new",
                "draws",
                "at least 1",
                draws,
            ));
        }
        // Here, not at the first pass: that may be recorded as part of a graph.
        let frozen = model.device().gpu().map(|_| model.freeze()).transpose()?;
        let chunk = match model.device().gpu() {
            Some(gpu) => chunk(gpu, model),
            None => CHUNK,
        };
        Ok(Ensemble {
            model,
            frozen,
            seed,
            purpose,
            draws,
            average: Average::default(),
            mode: Mode::Eval,
            chunk,
            passes: HashMap::new(),
        })
    }

    /// Images in the network's own master type, where it is.
    pub(crate) fn place(&self, images: Tensor) -> Result<Tensor> {
        let images = images.to_dtype(self.model.dtype().master())?;
        images.to(self.model.device())
    }

    /// Images run at once.
    fn images_at_once(&self, n: usize) -> usize {
        match self.mode {
            // batch statistics are the whole batch's
            Mode::Train => n.max(1),
            Mode::Eval => (self.chunk / self.draws).max(1),
        }
    }

    /// The network's noise for rows `range`, each repeated over the draws.
    fn pass(&self, rows: &Rows, range: Range<usize>, record: bool) -> Result<Pass> {
        let noise = match self.model.config().noise_at_test {
            false => None,
            true => Some(Key {
                seed: self.seed,
                purpose: self.purpose,
                rows: repeat_rows(rows, range, self.draws, self.model.device().gpu())?,
            }),
        };
        Ok(Pass {
            mode: self.mode,
            noise,
            record,
        })
    }

    fn check(&self, op: &'static str, x: &Tensor, rows: &Rows) -> Result<()> {
        let kind = self.model.kind().master();
        x.expect(op, "x", self.input().with_n(rows.len()), kind)?;
        check_draws_fit(rows, self.draws)
    }

    /// Scores of every single draw: `[n * draws, 1, 1, classes]`, the draws of an image adjacent.
    ///
    /// Where a GPU has too little memory for [`Ensemble::chunk`] rows, it goes on with half as many.
    ///
    /// Errors: images that do not fit the network; not even the draws of one image fit into memory.
    pub fn logits_of_draws(&mut self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        self.check("Ensemble::logits", x, rows)?;
        let mut all = Vec::new();
        let mut start = 0;
        while start < rows.len() {
            let step = self.images_at_once(rows.len());
            let range = start..(start + step).min(rows.len());
            match self.logits_at_once(x, rows, range.clone()) {
                // Fewer rows at once give the same bits.
                Err(Error::OutOfMemory { .. }) if self.mode == Mode::Eval && range.len() > 1 => {
                    self.passes.clear();
                    self.chunk = range.len() / 2 * self.draws;
                }
                z => {
                    all.push(z?);
                    start = range.end;
                }
            }
        }
        concat_rows(&all)
    }

    fn logits_at_once(&mut self, x: &Tensor, rows: &Rows, range: Range<usize>) -> Result<Tensor> {
        if let Some(gpu) = x.gpu().cloned()
            && self.mode == Mode::Eval
            && !gpu.is_capturing()
        {
            return self.logits_of_chunk(&gpu, x, rows, range);
        }
        let pass = self.pass(rows, range.clone(), false)?;
        self.forward(repeat(x, range, 1)?, &pass)
    }

    /// [`Ensemble::logits_at_once`] as a graph: images and rows go where it reads them.
    fn logits_of_chunk(
        &mut self,
        gpu: &Gpu,
        x: &Tensor,
        rows: &Rows,
        range: Range<usize>,
    ) -> Result<Tensor> {
        let key = PassKey {
            images: range.len(),
            draws: self.draws,
            seed: self.seed,
            purpose: self.purpose,
        };
        let mut chunk = match self.passes.remove(&key) {
            Some(chunk) => chunk,
            None => ChunkPass {
                images: Tensor::uninit(gpu, x.shape().with_n(range.len()), x.dtype())?,
                names: Arc::new(gpu.alloc(range.len())?),
                scores: None,
                repeated: Repeated::default(),
            },
        };
        let row = x.shape().row_len() * x.dtype().size();
        let from = x.ptr().offset(range.start * row).address;
        gpu.copy_within(chunk.images.ptr().address, from, range.len() * row)?;
        let row = size_of::<Row>();
        let from = rows.ptr(gpu)?.offset(range.start * row).address;
        gpu.copy_within(chunk.names.ptr().address, from, range.len() * row)?;

        let (images, all) = (&chunk.images, 0..range.len());
        let names = Rows::on_device(chunk.names.clone());
        let scores = &mut chunk.scores;
        chunk.repeated.run(gpu, || {
            let pass = self.pass(&names, all.clone(), false)?;
            let z = self.forward(images.clone(), &pass)?;
            *scores = Some(z);
            Ok(())
        })?;
        // The next replay overwrites the graph's own.
        let scores = chunk.scores.as_ref().expect("computed above");
        let z = scores.duplicate()?;
        self.passes.insert(key, chunk);
        Ok(z)
    }

    /// Scores of every draw of images; `pass` names the draws.
    fn forward(&mut self, x: Tensor, pass: &Pass) -> Result<Tensor> {
        match &mut self.frozen {
            Some(frozen) if pass.mode == Mode::Eval => frozen.forward(x, self.draws, pass),
            _ => {
                let rows = repeat(&x, 0..x.shape().n, self.draws)?;
                self.model.forward(rows, pass)
            }
        }
    }

    fn backward(&mut self, dz: Tensor) -> Result<Tensor> {
        match &mut self.frozen {
            Some(frozen) if self.mode == Mode::Eval => frozen.backward(dz),
            _ => self.model.backward(dz, Grads::InputOnly),
        }
    }

    /// Puts the draws of each image together: `[n * draws, ...]` to `[n, ...]`.
    fn combine(&self, z: &Tensor) -> Result<Tensor> {
        combine(z, self.draws, self.average)
    }
}

impl Classifier for Ensemble<'_> {
    fn classes(&self) -> usize {
        self.model.config().classes
    }

    fn input(&self) -> Shape {
        self.model.config().input
    }

    fn device(&self) -> Device {
        self.model.device().clone()
    }

    fn rows_are_independent(&self) -> bool {
        // batch statistics are the whole batch's
        self.mode == Mode::Eval
    }

    fn logits(&mut self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        let z = self.logits_of_draws(x, rows)?;
        self.combine(&z)
    }
}

impl Differentiable for Ensemble<'_> {
    fn input_grad(
        &mut self,
        x: &Tensor,
        rows: &Rows,
        gradient: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        self.check("Ensemble::input_grad", x, rows)?;
        // `gradient` may look at all rows at once, so one forward pass takes them all.
        let all = 0..rows.len();
        let pass = self.pass(rows, all.clone(), true)?;
        let z = self.forward(x.clone(), &pass)?;
        let scores = self.combine(&z)?;
        let g = gradient(&scores)?;
        g.expect(
            "Ensemble::input_grad",
            "gradient",
            scores.shape(),
            scores.kind(),
        )?;
        let dz = combine_backward(&z, &g, self.draws, self.average)?;
        let dx = self.backward(dz)?;
        Ok((scores, sum_draws(&dx, self.draws)?))
    }
}
