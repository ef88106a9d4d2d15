//! Classifiers: what attacks and evaluation see of a network. The ensemble over noise draws is
//! itself one.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Grads, Mode, Pass};
use crate::ops::loss::{argmax, log_softmax, softmax};
use crate::ops::noise::{Key, Purpose, Row, Rows};
use crate::tensor::{DType, Real, Shape, Tensor};

/// Scores images. All a black-box attack may ask.
pub trait Classifier {
    /// Number of classes.
    fn classes(&self) -> usize;

    /// `[1, h, w, c]` of the images it takes.
    fn input(&self) -> Shape;

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

/// How the draws of an ensemble are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Average {
    /// Mean of probabilities (the paper's rule); scores are its logarithm.
    #[default]
    Probabilities,
    /// Mean of logits.
    Logits,
}

/// Random self-ensemble: `n` draws of the network's noise are `n` rows of one batch.
///
/// Draw `j` of an image whose [`Row`] says draw `d` is the network's draw `d * n + j`, so successive
/// steps of an attack never meet a draw twice. With one draw, or in a network without noise, this is
/// the network itself.
pub struct Ensemble<'m> {
    model: &'m mut Model,
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
    /// Largest number of rows run at once, a limit on memory alone: results do not depend on it.
    pub chunk: usize,
}

/// Rows run at once unless asked otherwise: at 32x32 and 64 channels 64 MiB an activation.
const CHUNK: usize = 256;

impl<'m> Ensemble<'m> {
    /// `draws` draws of `model`, mean of probabilities, batch norm by running statistics.
    pub fn new(model: &'m mut Model, seed: u64, purpose: Purpose, draws: usize) -> Result<Self> {
        if draws == 0 {
            return Err(Error::argument(
                "Ensemble::new",
                "draws",
                "at least 1",
                draws,
            ));
        }
        Ok(Ensemble {
            model,
            seed,
            purpose,
            draws,
            average: Average::default(),
            mode: Mode::Eval,
            chunk: CHUNK,
        })
    }

    /// Images run at once.
    fn images_at_once(&self, n: usize) -> usize {
        match self.mode {
            // batch statistics are the whole batch's
            Mode::Train => n.max(1),
            Mode::Eval => (self.chunk / self.draws).max(1),
        }
    }

    /// The network's noise for these rows, each repeated over the draws.
    fn pass(&self, rows: &Rows, record: bool) -> Result<Pass> {
        let n = self.draws as u32;
        let overflow = |row: &Row| {
            let expected = format!("draw * {n} to fit in 32 bits");
            Error::argument("Ensemble", "rows", expected, row.draw)
        };
        let mut expanded = Vec::with_capacity(rows.len() * self.draws);
        for row in rows.iter() {
            let first = row.draw.checked_mul(n).ok_or_else(|| overflow(row))?;
            first.checked_add(n).ok_or_else(|| overflow(row))?;
            expanded.extend((0..n).map(|j| Row {
                id: row.id,
                draw: first + j,
            }));
        }
        Ok(Pass {
            mode: self.mode,
            noise: self.model.config().noise_at_test.then(|| Key {
                seed: self.seed,
                purpose: self.purpose,
                rows: expanded.into(),
            }),
            record,
        })
    }

    /// Images `range` of `x`, each repeated over the draws.
    fn repeat(&self, x: &Tensor, range: std::ops::Range<usize>) -> Result<Tensor> {
        let rows: Vec<usize> = range
            .flat_map(|i| std::iter::repeat_n(i, self.draws))
            .collect();
        x.gather_rows(&rows)
    }

    fn check(&self, op: &'static str, x: &Tensor, rows: &Rows) -> Result<()> {
        let kind = self.model.kind().master();
        x.expect(op, "x", self.input().with_n(rows.len()), kind)
    }

    /// Scores of every single draw: `[n * draws, 1, 1, classes]`, the draws of an image adjacent.
    pub fn logits_of_draws(&mut self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        self.check("Ensemble::logits", x, rows)?;
        let step = self.images_at_once(rows.len());
        let mut all = Vec::new();
        for start in (0..rows.len()).step_by(step) {
            let range = start..(start + step).min(rows.len());
            let pass = self.pass(&rows[range.clone()].into(), false)?;
            let z = self.model.forward(self.repeat(x, range)?, &pass)?;
            all.push(z);
        }
        concat_rows(&all, self.classes(), self.model.dtype().master())
    }

    /// Puts the draws of each image together: `[n * draws, ...]` to `[n, ...]`.
    fn combine(&self, z: &Tensor) -> Result<Tensor> {
        combine(z, self.draws, self.average)
    }
}

/// Rows of several `[n_i, 1, 1, classes]` one after the other.
fn concat_rows(parts: &[Tensor], classes: usize, dtype: DType) -> Result<Tensor> {
    crate::dispatch!(dtype, T => {
        let data: Vec<T> = parts.iter().flat_map(|t| t.data::<T>()).copied().collect();
        Tensor::from_vec(Shape::new(data.len() / classes, 1, 1, classes), data)
    })
}

/// Scores of ensembles from the scores of their draws: groups of `draws` adjacent rows of `z`
/// become one row, the logarithm of the mean probability or the mean logit. One draw stays as it is.
pub fn combine(z: &Tensor, draws: usize, average: Average) -> Result<Tensor> {
    if draws == 1 {
        return Ok(z.clone());
    }
    let s = z.shape();
    if draws == 0 || !s.n.is_multiple_of(draws) {
        let expected = format_args!("a divisor of {} rows", s.n);
        return Err(Error::argument(
            "ensemble::combine",
            "draws",
            expected,
            draws,
        ));
    }
    let log_p = match average {
        Average::Probabilities => log_softmax(z)?,
        Average::Logits => z.clone(),
    };
    let shape = s.with_n(s.n / draws);
    crate::dispatch!(z.dtype(), T => {
        let src = log_p.data::<T>();
        let mut out = Vec::<T>::with_capacity(shape.len());
        for i in 0..shape.n {
            let group = &src[i * draws * s.c..(i + 1) * draws * s.c];
            for k in 0..s.c {
                let column = || group.iter().skip(k).step_by(s.c).map(|v| v.f64());
                let score = match average {
                    // log mean_j p_jk, by log-sum-exp: probabilities may underflow
                    Average::Probabilities => {
                        let top = column().fold(f64::NEG_INFINITY, f64::max);
                        if top == f64::NEG_INFINITY {
                            column().sum::<f64>()
                        } else {
                            top + (column().map(|v| (v - top).exp()).sum::<f64>() / draws as f64).ln()
                        }
                    }
                    Average::Logits => column().sum::<f64>() / draws as f64,
                };
                out.push(T::of(score));
            }
        }
        Tensor::from_vec(shape, out)
    })
}

/// Gradient in the draws' scores `z` of a function whose gradient in the combined scores is `g`.
///
/// Mean of logits: `dz_j = g / n`. Mean of probabilities, `s_k = log(mean_j p_jk)`:
/// `a_jk = g_k p_jk / sum_i p_ik`, `dz_jk = a_jk - p_jk sum_l a_jl`.
fn combine_backward(z: &Tensor, g: &Tensor, draws: usize, average: Average) -> Result<Tensor> {
    if draws == 1 {
        return Ok(g.clone());
    }
    let s = z.shape();
    let p = softmax(z)?;
    crate::dispatch!(z.dtype(), T => {
        let (p, g) = (p.data::<T>(), g.data::<T>());
        let mut out = vec![T::of(0.0); s.len()];
        for (i, g) in g.chunks_exact(s.c).enumerate() {
            let range = i * draws * s.c..(i + 1) * draws * s.c;
            let (p, out) = (&p[range.clone()], &mut out[range]);
            match average {
                Average::Logits => {
                    for out in out.chunks_exact_mut(s.c) {
                        for (o, g) in out.iter_mut().zip(g) {
                            *o = T::of(g.f64() / draws as f64);
                        }
                    }
                }
                Average::Probabilities => {
                    let total: Vec<f64> = (0..s.c)
                        .map(|k| p.iter().skip(k).step_by(s.c).map(|v| v.f64()).sum())
                        .collect();
                    for (p, out) in p.chunks_exact(s.c).zip(out.chunks_exact_mut(s.c)) {
                        let a: Vec<f64> = (0..s.c)
                            .map(|k| match total[k] > 0.0 {
                                true => g[k].f64() * p[k].f64() / total[k],
                                false => 0.0,
                            })
                            .collect();
                        let sum: f64 = a.iter().sum();
                        for k in 0..s.c {
                            out[k] = T::of(a[k] - p[k].f64() * sum);
                        }
                    }
                }
            }
        }
        Tensor::from_vec(s, out)
    })
}

/// Sums groups of `draws` adjacent rows.
fn sum_draws(dx: &Tensor, draws: usize) -> Result<Tensor> {
    if draws == 1 {
        return Ok(dx.clone());
    }
    let s = dx.shape();
    let shape = s.with_n(s.n / draws);
    let len = s.row_len();
    crate::dispatch!(dx.dtype(), T => {
        let src = dx.data::<T>();
        let mut out = vec![<T as Default>::default(); shape.len()];
        out.par_chunks_mut(len).enumerate().for_each(|(i, out)| {
            for j in 0..draws {
                let row = &src[(i * draws + j) * len..][..len];
                for (o, v) in out.iter_mut().zip(row) {
                    *o += *v;
                }
            }
        });
        Tensor::from_vec(shape, out)
    })
}

impl Classifier for Ensemble<'_> {
    fn classes(&self) -> usize {
        self.model.config().classes
    }

    fn input(&self) -> Shape {
        self.model.config().input
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
        let pass = self.pass(rows, true)?;
        let z = self.model.forward(self.repeat(x, 0..rows.len())?, &pass)?;
        let scores = self.combine(&z)?;
        let g = gradient(&scores)?;
        g.expect(
            "Ensemble::input_grad",
            "gradient",
            scores.shape(),
            scores.dtype(),
        )?;
        let dz = combine_backward(&z, &g, self.draws, self.average)?;
        let dx = self.model.backward(dz, Grads::InputOnly)?;
        Ok((scores, sum_draws(&dx, self.draws)?))
    }
}
