//! Runs one attack on many images at once: the questions of all of them make one batch.
//!
//! Every image's attack is a future that waits for its questions' answers. The schedule collects the
//! questions of the images under attack, asks the classifier in batches of at most
//! [`Options::rows`] rows, and lets all of them go on. An image that is done makes room for one that
//! waits. Since an image's questions name their own random variables, and a row of a batch never
//! sees another, no result depends on the batch, the order or the other images.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use rayon::prelude::*;

use super::found::Found;
use super::image::Image;
use super::net::ScoresOnly;
use super::query::{
    Acceptance, BlackBox, Counts, Keep, Kept, Mailbox, OutOfQueries, Query, Question, Slope,
    WhiteBox, lock,
};
use super::{Criterion, Objective};
use crate::ensemble::{Average, Classifier, Differentiable, combine};
use crate::error::{Error, Result};
use crate::ops::noise::{Row, Rows};
use crate::tensor::{DType, Device, Kind, Shape, Tensor};

/// An attack's work on one image.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<(), OutOfQueries>> + Send + 'a>>;

/// An attack that needs scores alone.
pub trait BlackBoxAttack: Sync {
    /// The name on the command line and in files.
    fn name(&self) -> &'static str;

    /// Which adversarial image it looks for.
    fn keep(&self) -> Keep;

    /// An error naming the first parameter out of range, or one that does not fit a classifier with so many
    /// classes.
    fn check(&self, classes: usize) -> Result<()>;

    /// Attacks one image, and offers what it finds.
    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut BlackBox) -> Running<'a>;
}

/// An attack that needs gradients.
pub trait WhiteBoxAttack: Sync {
    /// The name on the command line and in files.
    fn name(&self) -> &'static str;

    /// Which adversarial image it looks for.
    fn keep(&self) -> Keep;

    /// An error naming the first parameter out of range, or one that does not fit a classifier with so many
    /// classes.
    fn check(&self, classes: usize) -> Result<()>;

    /// Attacks one image, and offers what it finds.
    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut WhiteBox) -> Running<'a>;
}

/// How an attack is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seed of the attack's own random numbers.
    pub seed: u64,
    /// Most images in one pass of the classifier, at least 1; no result depends on it.
    pub rows: usize,
    /// Draws of the classifier over which objective and gradient are averaged, each by itself (the
    /// mean of the objective), at least 1. An average over scores is the classifier's own
    /// ([`Ensemble::draws`](crate::ensemble::Ensemble)), and then this is 1.
    pub mean_of_objective: usize,
    /// Passes that the classifier itself makes for a row: draws of an ensemble.
    pub passes: usize,
    /// Verdicts on fresh draws that an adversarial image has to pass by majority. 0 says that nothing
    /// is random.
    pub confirmations: u32,
    /// Margin by which a success has to be one; at least 0.
    pub confidence: f64,
    /// Forward passes allowed for each image.
    pub budget: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            seed: 0,
            rows: 256,
            mean_of_objective: 1,
            passes: 1,
            confirmations: 0,
            confidence: 0.0,
            budget: None,
        }
    }
}

/// The images, their names and goals.
#[derive(Clone, Copy)]
pub struct Targets<'a> {
    /// `[n, h, w, c]` in `[0, 1]`, f32 on the CPU.
    pub x: &'a Tensor,
    /// Their indices in the data set.
    pub ids: &'a [u32],
    /// What counts as success.
    pub criterion: &'a Criterion,
}

/// Told when an image is done (its position and result), and asked after every batch whether to go
/// on (by `None`): an error stops everything.
pub type Report<'a> = dyn FnMut(Option<(usize, &Found)>) -> Result<()> + 'a;

/// Attacks images with scores alone. Results are in the images' order.
///
/// Errors: parameters out of range; images that are not `n` images of the classifier's in `[0, 1]`;
/// scores that are not finite; whatever the classifier says.
pub fn attack_black_box(
    net: &mut dyn Classifier,
    targets: Targets<'_>,
    attack: &dyn BlackBoxAttack,
    options: &Options,
    report: &mut Report<'_>,
) -> Result<Vec<Found>> {
    attack.check(net.classes())?;
    let start = |image: Image, mut asked: BlackBox| -> Task<'_> {
        asked.credit(attack.name());
        Box::pin(async move {
            let result = attack.run(&image, &mut asked).await;
            finish(asked, result)
        })
    };
    let keep = attack.keep();
    Schedule::new(&mut ScoresOnly(net), targets, keep, options)?.run(&start, report)
}

/// Attacks images with gradients. Results are in the images' order.
///
/// Errors: as [`attack_black_box`].
pub fn attack_white_box(
    net: &mut dyn Differentiable,
    targets: Targets<'_>,
    attack: &dyn WhiteBoxAttack,
    options: &Options,
    report: &mut Report<'_>,
) -> Result<Vec<Found>> {
    attack.check(net.classes())?;
    let start = |image: Image, mut asked: BlackBox| -> Task<'_> {
        asked.credit(attack.name());
        Box::pin(async move {
            let mut asked = WhiteBox(asked);
            let result = attack.run(&image, &mut asked).await;
            finish(asked.0, result)
        })
    };
    let keep = attack.keep();
    Schedule::new(net, targets, keep, options)?.run(&start, report)
}

type Task<'a> = Pin<Box<dyn Future<Output = Found> + Send + 'a>>;
type Start<'a, 's> = dyn Fn(Image, BlackBox) -> Task<'a> + 's;

fn finish(asked: BlackBox, result: Result<(), OutOfQueries>) -> Found {
    let original = asked.image.pixels;
    // The smallest distance of no success is none: the original stands for it.
    let closest = matches!(asked.acceptance.keep, Keep::Closest(_));
    let failed = |k: &Kept| closest && !k.success && !k.handed_in;
    let kept = asked.kept.as_ref().filter(|k| k.success);
    let success = kept.is_some();
    let broken_by = kept.map(|k| k.by);
    let c = kept.map_or(asked.c, |k| k.c);
    let pixels = match asked.kept {
        Some(kept) if !failed(&kept) => kept.pixels,
        _ => original.to_vec(),
    };
    Found {
        c,
        broken_by,
        forward_at_success: asked
            .forward_at_success
            .or(success.then_some(asked.counts.forward)),
        out_of_queries: result.is_err(),
        ..Found::new(&original, pixels, success, asked.counts)
    }
}

/// An image whose attack runs.
struct Active<'a> {
    /// Its position among the targets.
    index: usize,
    id: u32,
    mailbox: Arc<Mutex<Mailbox>>,
    task: Task<'a>,
    question: Option<Question>,
    found: Option<Found>,
}

impl Active<'_> {
    /// Lets the attack go on to its next question, or to its end.
    fn advance(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        match self.task.as_mut().poll(&mut context) {
            Poll::Ready(found) => self.found = Some(found),
            Poll::Pending => self.question = lock(&self.mailbox).question.take(),
        }
    }
}

/// An error naming what does not fit the classifier, or an option out of range.
pub(super) fn check(
    input: Shape,
    classes: usize,
    targets: Targets<'_>,
    options: &Options,
) -> Result<()> {
    const OP: &str = "attacks";
    let n = targets.ids.len();
    let input = input.with_n(n);
    targets.x.expect(OP, "x", input, Kind::from(DType::F32))?;
    let inside = |v: &f32| (0.0..=1.0).contains(v);
    if let Some(v) = targets.x.data::<f32>().iter().find(|v| !inside(v)) {
        return Err(Error::argument(OP, "x", "values in [0, 1]", v));
    }
    targets.criterion.check(OP, n, classes)?;
    for (arg, value) in [
        ("rows", options.rows),
        ("draws", options.mean_of_objective),
        ("passes", options.passes),
    ] {
        Error::unless_counted(OP, arg, value)?;
    }
    if options.budget == Some(0) {
        return Err(Error::argument(OP, "budget", "at least 1 query", 0));
    }
    Error::unless_not_negative(OP, "confidence", options.confidence)
}

struct Schedule<'n, 't> {
    net: &'n mut dyn Differentiable,
    targets: Targets<'t>,
    keep: Keep,
    options: &'t Options,
    /// Rows in one pass now: fewer than asked for where memory is short.
    rows: usize,
}

impl<'n, 't> Schedule<'n, 't> {
    fn new(
        net: &'n mut dyn Differentiable,
        targets: Targets<'t>,
        keep: Keep,
        options: &'t Options,
    ) -> Result<Self> {
        check(net.input(), net.classes(), targets, options)?;
        Ok(Schedule {
            net,
            targets,
            keep,
            rows: options.rows,
            options,
        })
    }

    fn run<'a>(mut self, start: &Start<'a, '_>, report: &mut Report<'_>) -> Result<Vec<Found>> {
        let n = self.targets.ids.len();
        let mut results: Vec<Option<Found>> = (0..n).map(|_| None).collect();
        let mut waiting = 0..n;
        let mut active: Vec<Active<'a>> = Vec::new();
        loop {
            let mut asked: usize = active.iter().map(rows_of).sum();
            while asked < self.rows_at_once()
                && let Some(index) = waiting.next()
            {
                let mut new = self.begin(index, start);
                new.advance();
                asked += rows_of(&new);
                active.push(new);
            }
            for done in active.extract_if(.., |a| a.found.is_some()) {
                let found = done.found.expect("just looked at");
                report(Some((done.index, &found)))?;
                results[done.index] = Some(found);
            }
            if active.is_empty() {
                if waiting.is_empty() {
                    break;
                }
                continue;
            }
            self.answer_all(&mut active, report)?;
            active.par_iter_mut().for_each(Active::advance);
        }
        Ok(results
            .into_iter()
            .map(|r| r.expect("every image is done"))
            .collect())
    }

    fn begin<'a>(&self, index: usize, start: &Start<'a, '_>) -> Active<'a> {
        let Targets { x, ids, criterion } = self.targets;
        let options = self.options;
        let image = Image::of_batch(
            x,
            index,
            ids[index],
            criterion,
            self.net.classes(),
            options.seed,
        );
        let mailbox = Arc::new(Mutex::new(Mailbox::default()));
        let asked = BlackBox {
            mailbox: mailbox.clone(),
            image: image.clone(),
            acceptance: Acceptance {
                keep: self.keep,
                confirmations: options.confirmations,
                confidence: options.confidence,
            },
            draws: (options.mean_of_objective * options.passes) as u64,
            budget: options.budget.unwrap_or(u64::MAX),
            counts: Counts::default(),
            next_draw: 0,
            kept: None,
            forward_at_success: None,
            c: None,
            by: "",
        };
        Active {
            index,
            id: ids[index],
            mailbox,
            task: start(image, asked),
            question: None,
            found: None,
        }
    }

    /// Answers the question of every active image.
    fn answer_all(&mut self, active: &mut [Active<'_>], report: &mut Report<'_>) -> Result<()> {
        // Every row asked for, by its image, in order.
        let mut scores: Vec<(usize, u32, Query)> = Vec::new();
        let mut slopes: Vec<(usize, u32, (Query, Objective))> = Vec::new();
        for (a, image) in active.iter_mut().enumerate() {
            match image.question.take() {
                Some(Question::Scores(queries)) => {
                    scores.extend(queries.into_iter().map(|q| (a, image.id, q)));
                }
                Some(Question::Slopes(queries)) => {
                    slopes.extend(queries.into_iter().map(|q| (a, image.id, q)));
                }
                None => unreachable!("an attack that waits has asked"),
            }
        }
        self.answer(active, &scores, Self::score, |m| &mut m.scores, report)?;
        self.answer(active, &slopes, Self::slope, |m| &mut m.slopes, report)
    }

    /// Asks for rows of one kind, as many at once as may be, and puts the answers where `place` says.
    fn answer<Q, A>(
        &mut self,
        active: &[Active<'_>],
        queries: &[(usize, u32, Q)],
        ask: impl Fn(&mut Self, &[(usize, u32, Q)]) -> Result<Vec<A>>,
        place: impl Fn(&mut Mailbox) -> &mut Option<Vec<A>>,
        report: &mut Report<'_>,
    ) -> Result<()> {
        let mut start = 0;
        while start < queries.len() {
            let end = (start + self.rows_at_once()).min(queries.len());
            let answers = match ask(self, &queries[start..end]) {
                // From now on fewer rows at once: they give the same result.
                Err(Error::OutOfMemory { .. })
                    if end - start > 1 && self.net.rows_are_independent() =>
                {
                    self.rows = (end - start) / 2 * self.draws_per_row();
                    continue;
                }
                answers => answers?,
            };
            for ((a, ..), answer) in queries[start..end].iter().zip(answers) {
                let mut mailbox = lock(&active[*a].mailbox);
                place(&mut mailbox).get_or_insert_default().push(answer);
            }
            start = end;
            report(None)?;
        }
        Ok(())
    }

    fn rows_at_once(&self) -> usize {
        (self.rows / self.draws_per_row()).max(1)
    }

    fn draws_per_row(&self) -> usize {
        self.options.mean_of_objective * self.options.passes
    }

    /// The queries as a batch: every one `mean_of_objective` times, under draws of its own.
    fn batch<'q>(
        &self,
        queries: impl ExactSizeIterator<Item = (u32, &'q Query)>,
    ) -> Result<(Tensor, Rows)> {
        let draws = self.options.mean_of_objective;
        let shape = self.targets.x.shape().with_n(queries.len() * draws);
        let mut pixels = Vec::with_capacity(shape.len());
        let mut rows = Vec::with_capacity(shape.n);
        for (id, query) in queries {
            for j in 0..draws {
                pixels.extend_from_slice(&query.pixels);
                let draw = query.draw * draws as u32 + j as u32;
                rows.push(Row { id, draw });
            }
        }
        let x = Tensor::from_vec(shape, pixels)?.to(&self.net.device())?;
        Ok((x, rows.into()))
    }

    /// The scores of each query, the draws put together.
    fn put_together(&self, z: &Tensor) -> Result<Vec<Vec<f32>>> {
        let together = combine(z, self.options.mean_of_objective, Average::Probabilities);
        let z = match self.options.mean_of_objective {
            1 => z,
            _ => &together?,
        };
        Ok(z.data::<f32>()
            .chunks(z.shape().c)
            .map(<[f32]>::to_vec)
            .collect())
    }

    fn score(&mut self, queries: &[(usize, u32, Query)]) -> Result<Vec<Vec<f32>>> {
        let (x, rows) = self.batch(queries.iter().map(|(_, id, q)| (*id, q)))?;
        let z = self.net.logits(&x, &rows)?.to_cpu()?;
        check_finite(&z, &rows)?;
        self.put_together(&z)
    }

    fn slope(&mut self, queries: &[(usize, u32, (Query, Objective))]) -> Result<Vec<Slope>> {
        let draws = self.options.mean_of_objective;
        let (x, rows) = self.batch(queries.iter().map(|(_, id, (q, _))| (*id, q)))?;
        let mut z = None;
        let mut values = vec![0.0; queries.len()];
        let (_, dx) = self.net.input_grad(&x, &rows, &mut |scores| {
            let host = scores.to_cpu()?;
            check_finite(&host, &rows)?;
            let classes = host.shape().c;
            let mut gradient = vec![0f32; host.shape().len()];
            let of_draws = host
                .data::<f32>()
                .chunks(classes)
                .zip(gradient.chunks_mut(classes));
            for (r, (scores, gradient)) in of_draws.enumerate() {
                let objective = &queries[r / draws].2.1;
                values[r / draws] += objective.evaluate(scores, gradient) / draws as f64;
            }
            let gradient = Tensor::from_vec(host.shape(), gradient)?;
            z = Some(host);
            match scores.gpu() {
                Some(gpu) => gradient.to(&Device::Gpu(gpu.clone())),
                None => Ok(gradient),
            }
        })?;
        let dx = dx.to_cpu()?;
        let scores = self.put_together(&z.expect("the classifier asks for the gradient"))?;
        let len = dx.shape().row_len();
        let gradients = dx.data::<f32>().par_chunks(len * draws).map(|of_draws| {
            // Mean over the draws, in their order.
            let mut mean = of_draws[..len].to_vec();
            for draw in of_draws[len..].chunks(len) {
                mean.iter_mut().zip(draw).for_each(|(m, d)| *m += d);
            }
            if draws > 1 {
                mean.iter_mut().for_each(|m| *m /= draws as f32);
            }
            mean
        });
        let gradients: Vec<Vec<f32>> = gradients.collect();
        let slopes = scores.into_iter().zip(values).zip(gradients);
        Ok(slopes
            .map(|((scores, value), gradient)| Slope {
                scores,
                value,
                gradient,
            })
            .collect())
    }
}

fn rows_of(image: &Active<'_>) -> usize {
    image.question.as_ref().map_or(0, Question::rows)
}

/// An error where scores are not finite, naming the first image.
fn check_finite(z: &Tensor, rows: &Rows) -> Result<()> {
    let classes = z.shape().c;
    let bad = |scores: &[f32]| scores.iter().any(|v| !v.is_finite());
    let all = z.data::<f32>();
    match all.chunks(classes).position(bad) {
        None => Ok(()),
        Some(row) => Err(Error::NotFinite {
            what: format!("scores of image {}", rows[row].id),
            count: all.iter().filter(|v| !v.is_finite()).count(),
            total: all.len(),
        }),
    }
}
