//! One minimisation on a GPU: every row's state lives there, and a step is one graph, replayed. The
//! host waits only to tell how far the attack is and to let rows go that are done.

use std::time::Instant;

use super::descent::{Descended, Descent, Last};
use super::{put_row, row};
use crate::attacks::Criterion;
use crate::ensemble::Differentiable;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, LOOK_EVERY, Repeated};
use crate::ops::adam::Adam;
use crate::ops::margin::{self, Direction, Margin};
use crate::ops::noise::Row;
use crate::ops::tanh_space::{Attacked, Iterates};
use crate::tensor::DType;

/// Factor on the margins' gradient, so that it survives 16-bit activations; a power of two, so that
/// it changes no bit of the others'.
const SCALE: f32 = 64.0;

/// The rows of one batch that still run.
struct Running {
    /// Which image each row is.
    images: Vec<usize>,
    iterates: Iterates,
    classes: Buffer<u32>,
    margins: Buffer<Margin>,
    repeated: Repeated,
}

impl Running {
    fn new(gpu: &Gpu, images: Vec<usize>, iterates: Iterates, classes: &[u32]) -> Result<Self> {
        let classes: Vec<u32> = images.iter().map(|&i| classes[i]).collect();
        Ok(Running {
            margins: gpu.alloc(images.len())?,
            classes: gpu.upload(&classes)?,
            images,
            iterates,
            repeated: Repeated::default(),
        })
    }

    /// One step of every row: forward, gradient of the margin in the images, Adam in `w`.
    fn step(
        &mut self,
        net: &mut dyn Differentiable,
        direction: Direction,
        kappa: f64,
    ) -> Result<()> {
        let Running {
            iterates,
            classes,
            margins,
            ..
        } = self;
        let (_, df) = net.input_grad(iterates.image(), &iterates.rows(), &mut |scores| {
            margin::attack_step(scores, classes, direction, kappa, SCALE, margins)
        })?;
        iterates.step(&df, margins, SCALE)
    }

    /// The next step, replayed once it is recorded.
    fn advance(
        &mut self,
        gpu: &Gpu,
        net: &mut dyn Differentiable,
        criterion: &Criterion,
        kappa: f64,
    ) -> Result<()> {
        let mut repeated = std::mem::take(&mut self.repeated);
        let result = repeated.run(gpu, || self.step(net, criterion.direction(), kappa));
        self.repeated = repeated;
        result.map(drop)
    }

    /// Takes the results of `rows` over.
    fn finish(&self, rows: &[usize], state: &[Attacked], to: &mut Descended) -> Result<()> {
        let last = self.iterates.last()?.to_cpu()?;
        let best = self.iterates.best().to_cpu()?;
        for &r in rows {
            let (i, s) = (self.images[r], &state[r]);
            put_row(&mut to.last.images, i, row(&last, r));
            to.last.success[i] = s.success != 0;
            to.last.passes[i] = s.steps;
            to.closest[i] = s.best.is_finite().then(|| (s.best, row(&best, r).to_vec()));
        }
        Ok(())
    }
}

pub(super) fn run(
    descent: Descent<'_>,
    gpu: &Gpu,
    c: &[f64],
    progress: &mut dyn FnMut(u32) -> Result<()>,
) -> Result<Descended> {
    let Descent {
        net,
        x,
        ids,
        criterion,
        params,
        shrink,
        abort_early,
        first_draw,
    } = descent;
    let n = ids.len();
    let check_every = (params.steps / 10).max(1);
    let names: Vec<Row> = ids
        .iter()
        .map(|&id| Row {
            id,
            draw: first_draw,
        })
        .collect();
    let adam = Adam {
        lr: params.lr,
        ..Adam::default()
    };
    let checks = if abort_early { check_every } else { 0 };
    let iterates = Iterates::new(x, DType::F32, shrink, c, &names, adam, checks)?;
    let mut running = Running::new(gpu, (0..n).collect(), iterates, criterion.classes())?;
    let mut result = Descended {
        last: Last {
            images: x.to_cpu()?,
            success: vec![false; n],
            passes: vec![0; n],
        },
        closest: vec![None; n],
    };

    let mut looked = Instant::now();
    for step in 0..params.steps {
        running.advance(gpu, net, criterion, params.kappa)?;
        let checked = abort_early && step % check_every == 0;
        if checked || looked.elapsed() > LOOK_EVERY {
            let state = running.iterates.read()?;
            looked = Instant::now();
            check_finite(&state)?;
            let (keep, done): (Vec<usize>, Vec<usize>) =
                (0..state.len()).partition(|&r| state[r].active != 0);
            if keep.is_empty() {
                break;
            }
            // A row that is done stands still; it is worth a new graph to be rid of half of them.
            if keep.len() <= done.len() {
                running.finish(&done, &state, &mut result)?;
                let images = keep.iter().map(|&r| running.images[r]).collect();
                let iterates = running.iterates.gather(&keep)?;
                running = Running::new(gpu, images, iterates, criterion.classes())?;
            }
        }
        progress(step + 1)?;
    }
    let state = running.iterates.read()?;
    check_finite(&state)?;
    let rows: Vec<usize> = (0..state.len()).collect();
    running.finish(&rows, &state, &mut result)?;
    Ok(result)
}

/// An error where a row has met logits that are not finite.
fn check_finite(state: &[Attacked]) -> Result<()> {
    let bad = state.iter().filter(|s| s.first_bad != 0);
    match bad.clone().map(|s| s.first_bad).min() {
        None => Ok(()),
        Some(first) => Err(Error::NotFinite {
            what: format!("logits at attack step {}, by row", first - 1),
            count: bad.filter(|s| s.first_bad == first).count(),
            total: state.len(),
        }),
    }
}
