//! Ensembles over noise draws: `draws` adjacent rows of a batch are one image.

mod gpu;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use rayon::prelude::*;

use super::loss::{argmax, check_logits, log_softmax, softmax};
use super::noise::{Row, Rows};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::tensor::{Real, Shape, Tensor};

/// How the draws of an ensemble are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Average {
    /// Mean of probabilities (the paper's rule); scores are its logarithm.
    #[default]
    Probabilities,
    /// Mean of logits.
    Logits,
    /// Majority vote; scores are `log((v + 1 / classes) / (draws + 1))` of `v` votes, which is finite. It has
    /// no gradient.
    Votes,
}

impl Average {
    const ALL: [Average; 3] = [Average::Probabilities, Average::Logits, Average::Votes];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Average::Probabilities => "probabilities",
            Average::Logits => "logits",
            Average::Votes => "votes",
        }
    }
}

impl fmt::Display for Average {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Average {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let found = Average::ALL.into_iter().find(|a| a.name() == s);
        let expected = "probabilities, logits or votes";
        found.ok_or_else(|| Error::argument("ensemble", "average", expected, s))
    }
}

/// Rows `range` of `x`, each `draws` times. Waits for nothing on a GPU, and uploads nothing.
///
/// Errors: rows that are not there; no draw; not enough device memory.
pub fn repeat(x: &Tensor, range: Range<usize>, draws: usize) -> Result<Tensor> {
    const OP: &str = "ensemble::repeat";
    check_range(OP, x.shape().n, &range, draws)?;
    if draws == 1 && range == (0..x.shape().n) {
        return Ok(x.clone());
    }
    if let Some(gpu) = x.gpu() {
        return gpu::repeat(OP, gpu, x, range, draws);
    }
    let rows: Vec<usize> = range.flat_map(|i| std::iter::repeat_n(i, draws)).collect();
    x.gather_rows(&rows)
}

fn check_range(op: &'static str, n: usize, range: &Range<usize>, draws: usize) -> Result<()> {
    if range.start > range.end || range.end > n {
        let (expected, found) = (
            format_args!("rows within 0..{n}"),
            format_args!("{range:?}"),
        );
        return Err(Error::argument(op, "range", expected, found));
    }
    if draws == 0 {
        return Err(Error::argument(op, "draws", "at least 1", draws));
    }
    Ok(())
}

fn check_fit(rows: Option<&[Row]>, draws: usize) -> Result<()> {
    let fits = |row: &&Row| (u64::from(row.draw) + 1) * draws as u64 <= 1 << 32;
    match rows.and_then(|rows| rows.iter().find(|row| !fits(row))) {
        None => Ok(()),
        Some(row) => {
            let expected = format_args!("draw * {draws} to fit in 32 bits");
            Err(Error::argument(
                "ensemble::repeat_rows",
                "rows",
                expected,
                row.draw,
            ))
        }
    }
}

/// What [`repeat_rows`] asks of rows that the host knows.
pub(crate) fn check_draws_fit(rows: &Rows, draws: usize) -> Result<()> {
    check_fit(rows.host(), draws)
}

/// The names of [`repeat`]ed rows: draw `j` of a row that says draw `d` is draw `d * draws + j`, so
/// successive steps of an attack never meet a draw twice. With a GPU the list is made there, without
/// waiting; uploaded it is only if it came from the host and was not there yet.
///
/// Errors: rows that are not there; no draw; a draw beyond 32 bits, as far as the host knows the list.
pub fn repeat_rows(
    rows: &Rows,
    range: Range<usize>,
    draws: usize,
    gpu: Option<&Gpu>,
) -> Result<Rows> {
    const OP: &str = "ensemble::repeat_rows";
    check_range(OP, rows.len(), &range, draws)?;
    let host = rows.host().map(|rows| &rows[range.clone()]);
    check_fit(host, draws)?;
    if draws == 1 && range == (0..rows.len()) {
        return Ok(rows.clone());
    }
    match (gpu, host) {
        (Some(gpu), _) => gpu::repeat_rows(OP, gpu, rows, range, draws),
        (None, Some(host)) => {
            let draw = |row: &Row, j: usize| Row {
                id: row.id,
                draw: row.draw * draws as u32 + j as u32,
            };
            let all = host
                .iter()
                .flat_map(|row| (0..draws).map(move |j| draw(row, j)));
            Ok(all.collect())
        }
        (None, None) => Err(Error::argument(
            OP,
            "rows",
            "a list of the host",
            "one of a device",
        )),
    }
}

/// Rows of several `[n_i, h, w, c]` one after the other.
///
/// Errors: no part; parts of different sizes, types or devices; not enough device memory.
pub fn concat_rows(parts: &[Tensor]) -> Result<Tensor> {
    const OP: &str = "ensemble::concat_rows";
    let Some(first) = parts.first() else {
        return Err(Error::argument(OP, "parts", "at least one", "none"));
    };
    for part in parts {
        part.expect(
            OP,
            "parts",
            first.shape().with_n(part.shape().n),
            first.kind(),
        )?;
    }
    if parts.len() == 1 {
        return Ok(first.clone());
    }
    let n = parts.iter().map(|t| t.shape().n).sum();
    let shape = first.shape().with_n(n);
    if let Some(gpu) = first.gpu() {
        return gpu::concat_rows(gpu, parts, shape);
    }
    dispatch!(first.dtype(), T => {
        let data: Vec<T> = parts.iter().flat_map(|t| t.data::<T>()).copied().collect();
        Tensor::from_vec(shape, data)
    })
}

/// Sizes of the scores of ensembles whose draws' scores are `z`.
fn check_draws(op: &'static str, z: &Tensor, draws: usize) -> Result<Shape> {
    let s = z.shape();
    if draws == 0 || !s.n.is_multiple_of(draws) {
        let expected = format_args!("a divisor of {} rows", s.n);
        return Err(Error::argument(op, "draws", expected, draws));
    }
    Ok(s.with_n(s.n / draws))
}

/// Scores of ensembles from the scores of their draws: groups of `draws` adjacent rows of `z`
/// become one row, the logarithm of the mean probability or the mean logit, and one draw stays as it is; or
/// the scores of a vote, for which it waits on a GPU.
///
/// Errors: `z` is not `[n * draws, 1, 1, classes]`.
pub fn combine(z: &Tensor, draws: usize, average: Average) -> Result<Tensor> {
    const OP: &str = "ensemble::combine";
    let s = check_logits(OP, z)?;
    let shape = check_draws(OP, z, draws)?;
    if average == Average::Votes {
        return vote_scores(z, draws, shape);
    }
    if draws == 1 {
        return Ok(z.clone());
    }
    if let Some(gpu) = z.gpu() {
        return gpu::combine(OP, gpu, z, draws, average);
    }
    let log_p = match average {
        Average::Probabilities => log_softmax(z)?,
        _ => z.clone(),
    };
    dispatch!(z.dtype(), T => {
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
                    Average::Votes => unreachable!("counted above"),
                };
                out.push(T::of(score));
            }
        }
        Tensor::from_vec(shape, out)
    })
}

fn vote_scores(z: &Tensor, draws: usize, shape: Shape) -> Result<Tensor> {
    let votes = votes(z, draws)?;
    let score = |v: &u32| {
        let smoothed = f64::from(*v) + 1.0 / shape.c as f64;
        (smoothed / (draws as f64 + 1.0)).ln()
    };
    let scores = Tensor::from_vec(shape, votes.iter().map(score).collect::<Vec<f64>>())?;
    let scores = scores.to_dtype(z.dtype().master())?;
    match z.gpu() {
        Some(gpu) => scores.to_gpu(gpu),
        None => Ok(scores),
    }
}

/// Gradient in the draws' scores `z` of a function whose gradient in the combined scores is `g`.
///
/// Mean of logits: `dz_j = g / n`. Mean of probabilities, `s_k = log(mean_j p_jk)`:
/// `a_jk = g_k p_jk / sum_i p_ik`, `dz_jk = a_jk - p_jk sum_l a_jl`.
///
/// Errors: `g` does not fit `z`; `draws` does not divide the rows; on a GPU more than 6144 classes.
pub fn combine_backward(z: &Tensor, g: &Tensor, draws: usize, average: Average) -> Result<Tensor> {
    const OP: &str = "ensemble::combine_backward";
    let s = check_logits(OP, z)?;
    g.expect(OP, "g", check_draws(OP, z, draws)?, z.kind())?;
    if average == Average::Votes {
        let expected = "probabilities or logits, which have a gradient";
        return Err(Error::argument(OP, "average", expected, average));
    }
    if draws == 1 {
        return Ok(g.clone());
    }
    if let Some(gpu) = z.gpu() {
        return gpu::combine_backward(OP, gpu, z, g, draws, average);
    }
    let p = softmax(z)?;
    dispatch!(z.dtype(), T => {
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
                Average::Votes => unreachable!("a vote has no gradient"),
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

/// Sums groups of `draws` adjacent rows, in their order.
///
/// Errors: `draws` does not divide the rows.
pub fn sum_draws(dx: &Tensor, draws: usize) -> Result<Tensor> {
    const OP: &str = "ensemble::sum_draws";
    let shape = check_draws(OP, dx, draws)?;
    if draws == 1 {
        return Ok(dx.clone());
    }
    if let Some(gpu) = dx.gpu() {
        return gpu::sum_draws(OP, gpu, dx, draws);
    }
    let len = shape.row_len();
    dispatch!(dx.dtype(), T => {
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

/// How many of each image's draws chose each class: `[n][classes]`, the majority vote's counts.
/// Waits for the device.
///
/// Errors: `z` is not `[n * draws, 1, 1, classes]`.
pub fn votes(z: &Tensor, draws: usize) -> Result<Vec<u32>> {
    const OP: &str = "ensemble::votes";
    let classes = check_logits(OP, z)?.c;
    let shape = check_draws(OP, z, draws)?;
    if let Some(gpu) = z.gpu() {
        return gpu::votes(OP, gpu, z, draws)?.to_vec();
    }
    let mut votes = vec![0; shape.len()];
    for (i, class) in argmax(z)?.into_iter().enumerate() {
        votes[i / draws * classes + class as usize] += 1;
    }
    Ok(votes)
}
