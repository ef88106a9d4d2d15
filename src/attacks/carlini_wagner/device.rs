//! One minimisation on a GPU: every row's state lives there, and a step is one graph, replayed. The
//! host waits only to tell how far the attack is and to let rows go that are done.

use std::time::Instant;

use super::search::Search;
use super::{CarliniWagner, Protocol, SHRINK};
use crate::attacks::{
    Counts, Criterion, Found, Options, Report, Targets, WhiteBoxAttack, schedule,
};
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
    /// Which minimisation each row is.
    rows: Vec<usize>,
    iterates: Iterates,
    classes: Buffer<u32>,
    margins: Buffer<Margin>,
    repeated: Repeated,
}

impl Running {
    fn new(gpu: &Gpu, rows: Vec<usize>, iterates: Iterates, classes: &[u32]) -> Result<Self> {
        let classes: Vec<u32> = rows.iter().map(|&r| classes[r]).collect();
        Ok(Running {
            margins: gpu.alloc(rows.len())?,
            classes: gpu.upload(&classes)?,
            rows,
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

    /// From now on with this step size: another one needs a graph of its own.
    fn set_adam(&mut self, adam: Adam) {
        if self.iterates.set_adam(adam) {
            self.repeated = Repeated::default();
        }
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
    fn finish(&self, rows: &[usize], state: &[Attacked], to: &mut [Descended]) -> Result<()> {
        let last = self.iterates.last()?.to_cpu()?;
        let best = self.iterates.best().to_cpu()?;
        for &r in rows {
            let s = &state[r];
            to[self.rows[r]] = Descended {
                last: last.row(r).to_vec(),
                success: s.success != 0,
                passes: s.steps,
                closest: s.best.is_finite().then(|| (s.best, best.row(r).to_vec())),
            };
        }
        Ok(())
    }
}

/// What became of one minimisation.
#[derive(Default)]
struct Descended {
    /// Iterate after the last step.
    last: Vec<f32>,
    /// Whether the iterate in front of the last step met the goal.
    success: bool,
    passes: u32,
    /// The closest success on the way, and its squared distance.
    closest: Option<(f64, Vec<f32>)>,
}

/// Minimisations, one a row.
struct Descents<'a> {
    /// Position of each row's image among the targets.
    images: Vec<usize>,
    c: Vec<f64>,
    /// Draw of the first step.
    first_draw: u32,
    shrink: f64,
    abort_early: bool,
    targets: Targets<'a>,
    params: &'a CarliniWagner,
}

impl Descents<'_> {
    fn run(
        &self,
        net: &mut dyn Differentiable,
        gpu: &Gpu,
        report: &mut Report<'_>,
    ) -> Result<Vec<Descended>> {
        let Targets { x, ids, criterion } = self.targets;
        let params = self.params;
        let x = x.gather_rows(&self.images)?.to_gpu(gpu)?;
        let names: Vec<Row> = self
            .images
            .iter()
            .map(|&i| Row {
                id: ids[i],
                draw: self.first_draw,
            })
            .collect();
        let classes: Vec<u32> = self
            .images
            .iter()
            .map(|&i| criterion.classes()[i])
            .collect();
        let check_every = (params.steps / 10).max(1);
        let checks = if self.abort_early { check_every } else { 0 };
        let iterates = Iterates::new(
            &x,
            DType::F32,
            self.shrink,
            &self.c,
            &names,
            params.adam(0),
            checks,
        )?;
        let mut results: Vec<Descended> = Vec::new();
        results.resize_with(self.c.len(), Descended::default);
        let mut running = Running::new(gpu, (0..self.c.len()).collect(), iterates, &classes)?;

        let mut looked = Instant::now();
        for step in 0..params.steps {
            running.set_adam(params.adam(step));
            running.advance(gpu, net, criterion, params.kappa)?;
            let checked = self.abort_early && step % check_every == 0;
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
                    running.finish(&done, &state, &mut results)?;
                    let rows = keep.iter().map(|&r| running.rows[r]).collect();
                    let iterates = running.iterates.gather(&keep)?;
                    running = Running::new(gpu, rows, iterates, &classes)?;
                }
            }
            report(None)?;
        }
        let state = running.iterates.read()?;
        check_finite(&state)?;
        let rows: Vec<usize> = (0..state.len()).collect();
        running.finish(&rows, &state, &mut results)?;
        Ok(results)
    }
}

/// What is known of one image while its constants are searched.
struct Searched {
    search: Search,
    found: Found,
    /// Squared distance of the success found, as the device sums it.
    closest: f64,
}

/// [`attack`](super::attack) with everything on the GPU.
pub(super) fn attack(
    net: &mut dyn Differentiable,
    gpu: &Gpu,
    targets: Targets<'_>,
    params: &CarliniWagner,
    options: &Options,
    report: &mut Report<'_>,
) -> Result<Vec<Found>> {
    params.check(net.classes())?;
    schedule::check(net.input(), net.classes(), targets, options)?;
    let n = targets.ids.len();
    let mut found = Vec::with_capacity(n);
    let mut rows = options.rows;
    while found.len() < n {
        let constants = match params.protocol {
            Protocol::Rse { .. } => 1,
            Protocol::Search { at_once, .. } => at_once as usize,
            Protocol::Adaptive => unreachable!("runs on the schedule"),
        };
        let at_once = (rows / options.passes / constants).max(1);
        let range = found.len()..(found.len() + at_once).min(n);
        let images: Vec<usize> = range.clone().collect();
        match attack_together(net, gpu, targets, &images, params, options, report) {
            // Fewer images at once give the same result.
            Err(Error::OutOfMemory { .. }) if images.len() > 1 && net.rows_are_independent() => {
                rows = images.len() / 2 * options.passes * constants;
            }
            results => {
                for (i, result) in range.zip(results?) {
                    report(Some((i, &result)))?;
                    found.push(result);
                }
            }
        }
    }
    Ok(found)
}

fn attack_together(
    net: &mut dyn Differentiable,
    gpu: &Gpu,
    targets: Targets<'_>,
    images: &[usize],
    params: &CarliniWagner,
    options: &Options,
    report: &mut Report<'_>,
) -> Result<Vec<Found>> {
    let original = |i: usize| targets.x.row(i);
    let counts = |passes: u64| Counts {
        forward: passes * options.passes as u64,
        backward: passes * options.passes as u64,
    };
    let descents = |images: Vec<usize>, c: Vec<f64>| Descents {
        images,
        c,
        first_draw: 0,
        shrink: 1.0,
        abort_early: false,
        targets,
        params,
    };
    let (search, abort_early) = match params.protocol {
        Protocol::Rse { c } => {
            let results = descents(images.to_vec(), vec![c; images.len()]).run(net, gpu, report)?;
            let found = results.into_iter().zip(images).map(|(d, &i)| Found {
                c: Some(c),
                broken_by: d.success.then_some(params.name()),
                ..Found::new(original(i), d.last, d.success, counts(d.passes.into()))
            });
            return Ok(found.collect());
        }
        Protocol::Search {
            first,
            search_steps,
            at_once,
            abort_early,
        } => (
            move || Search::new(first, search_steps, at_once),
            abort_early,
        ),
        Protocol::Adaptive => unreachable!("runs on the schedule"),
    };
    let mut draw = 0;
    let mut searched: Vec<Searched> = images
        .iter()
        .map(|&i| Searched {
            search: search(),
            found: Found::new(original(i), original(i).to_vec(), false, counts(0)),
            closest: f64::INFINITY,
        })
        .collect();
    loop {
        // Every image's next constants.
        let next: Vec<Vec<f64>> = searched.iter_mut().map(|s| s.search.next()).collect();
        let rows = next
            .iter()
            .zip(images)
            .flat_map(|(c, &i)| c.iter().map(move |_| i));
        let descents = Descents {
            first_draw: draw,
            shrink: SHRINK,
            abort_early,
            ..descents(rows.collect(), next.concat())
        };
        if descents.c.is_empty() {
            return Ok(searched.into_iter().map(|s| s.found).collect());
        }
        let mut results = descents.run(net, gpu, report)?.into_iter();
        draw += params.steps;
        for ((s, c), &i) in searched.iter_mut().zip(&next).zip(images) {
            let of_image: Vec<Descended> = results.by_ref().take(c.len()).collect();
            let success: Vec<bool> = of_image.iter().map(|d| d.closest.is_some()).collect();
            s.search.tell(c, &success);
            for (d, &c) in of_image.into_iter().zip(c) {
                let so_far = s.found.counts;
                s.found.counts = counts(u64::from(d.passes));
                s.found.counts.forward += so_far.forward;
                s.found.counts.backward += so_far.backward;
                if let Some((squared, pixels)) = d.closest
                    && squared < s.closest
                {
                    s.closest = squared;
                    let first = s.found.forward_at_success;
                    let new = Found::new(original(i), pixels, true, s.found.counts);
                    s.found = Found {
                        c: Some(c),
                        broken_by: Some(params.name()),
                        forward_at_success: first.or(new.forward_at_success),
                        ..new
                    };
                } else if !s.found.success {
                    s.found.c = Some(c);
                }
            }
        }
    }
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
