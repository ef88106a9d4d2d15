//! The checks one by one.

use super::{Evaluation, Finding, Level};
use crate::attacks::gradient::Pgd;
use crate::attacks::random_noise::RandomNoise;
use crate::attacks::square::Square;
use crate::attacks::{Found, Goal, Norm, Objective};
use crate::ensemble::{Classifier, Differentiable};
use crate::error::Result;
use crate::ops::noise::{Row, Rows};
use crate::tensor::{Device, Shape, Tensor};

type OfClassifier = fn(&mut Evaluation<'_>, &Seen) -> Result<Finding>;
type OfAttack = fn(&mut Evaluation<'_>, &Seen, &[Found]) -> Result<Finding>;

/// What several checks look at.
pub(super) struct Seen {
    /// Each image's scores under draw 0.
    scores: Vec<Vec<f32>>,
    /// Whether another draw gives others.
    random: bool,
    /// Gradient of each image's cross-entropy under draw 0, on the CPU.
    gradients: Tensor,
}

pub(super) const OF_THE_CLASSIFIER: [OfClassifier; 5] = [
    scores_are_not_probabilities,
    rows_are_independent,
    gradients_are_there,
    gradients_are_right,
    randomness_is_judged_often,
];

pub(super) const OF_THE_ATTACK: [OfAttack; 8] = [
    the_budget_is_used,
    more_steps_change_nothing,
    iterations_beat_one_step,
    a_large_radius_breaks_all,
    gradients_beat_scores,
    the_attack_beats_noise,
    fixed_randomness_falls,
    more_draws_change_nothing,
];

fn finding(name: &'static str, level: Level, detail: String, images: Vec<u32>) -> Finding {
    Finding {
        name,
        level,
        detail,
        images,
    }
}

/// `Warn` from the first image on, `Fail` from this share of them: of two at least, since one on its boundary
/// may fall to either side.
fn by_share(objecting: usize, of: usize, fail: f64) -> Level {
    let share = objecting as f64 / of.max(1) as f64;
    match objecting {
        0 => Level::Pass,
        1 if of > 1 => Level::Warn,
        _ if share < fail => Level::Warn,
        _ => Level::Fail,
    }
}

impl Evaluation<'_> {
    fn rows(&self, draw: u32) -> Rows {
        self.ids.iter().map(|&id| Row { id, draw }).collect()
    }

    fn scores(&mut self, x: &Tensor, rows: &Rows) -> Result<Vec<Vec<f32>>> {
        let x = x.to(&self.net.device())?;
        let z = self.net.logits(&x, rows)?.to_cpu()?;
        let rows = z.data::<f32>().chunks(z.shape().c);
        Ok(rows.map(<[f32]>::to_vec).collect())
    }

    pub(super) fn look(&mut self) -> Result<Seen> {
        let x = self.x;
        let (zero, one) = (self.rows(0), self.rows(1));
        let scores = self.scores(x, &zero)?;
        let random = scores != self.scores(x, &one)?;
        let (device, labels) = (self.net.device(), self.labels);
        let (_, gradients) = self.net.input_grad(&x.to(&device)?, &zero, &mut |z| {
            let z = z.to_cpu()?;
            let mut gradient = vec![0f32; z.shape().len()];
            let classes = z.shape().c;
            let of_rows = z
                .data::<f32>()
                .chunks(classes)
                .zip(gradient.chunks_mut(classes));
            for ((z, g), &label) in of_rows.zip(labels) {
                Objective::cross_entropy(Goal::Away(label)).evaluate(z, g);
            }
            Tensor::from_vec(z.shape(), gradient)?.to(&device)
        })?;
        Ok(Seen {
            scores,
            random,
            gradients: gradients.to_cpu()?,
        })
    }

    /// Each image's cross-entropy under draw 0.
    fn losses(&mut self, x: &Tensor) -> Result<Vec<f64>> {
        let rows = self.rows(0);
        let scores = self.scores(x, &rows)?;
        let mut unused = vec![0f32; scores[0].len()];
        let losses = scores.iter().zip(self.labels);
        Ok(losses
            .map(|(z, &l)| Objective::cross_entropy(Goal::Away(l)).evaluate(z, &mut unused))
            .collect())
    }

    /// Images on which `a` succeeds and `b` does not.
    fn only_first(&self, a: &[Found], b: &[Found]) -> Vec<u32> {
        let pairs = a.iter().zip(b).zip(self.ids);
        let only = pairs.filter(|((a, b), _)| a.success && !b.success);
        only.map(|(_, &id)| id).collect()
    }
}

fn successes(found: &[Found]) -> usize {
    found.iter().filter(|f| f.success).count()
}

fn percent(part: usize, of: usize) -> String {
    format!("{:.1}%", 100.0 * part as f64 / of.max(1) as f64)
}

/// Losses are functions of logits: of probabilities, squeezed once more, their gradients vanish.
fn scores_are_not_probabilities(_: &mut Evaluation<'_>, seen: &Seen) -> Result<Finding> {
    let scores = &seen.scores;
    let is = |z: &Vec<f32>| {
        z.iter().all(|&v| (0.0..=1.0).contains(&v)) && (z.iter().sum::<f32>() - 1.0).abs() < 1e-3
    };
    let bad = scores.iter().filter(|z| is(z)).count();
    let level = if bad == scores.len() {
        Level::Fail
    } else {
        Level::Pass
    };
    let detail = format!("{bad} of {} rows of scores are probabilities", scores.len());
    Ok(finding("scores are logits", level, detail, Vec::new()))
}

/// Batch norm with the batch's statistics, or anything else that lets images see each other.
fn rows_are_independent(e: &mut Evaluation<'_>, seen: &Seen) -> Result<Finding> {
    let x = e.x;
    let mut bad = Vec::new();
    for (i, &id) in e.ids.iter().enumerate().take(8) {
        let alone = e.scores(&x.gather_rows(&[i])?, &[Row { id, draw: 0 }].into())?;
        let differs = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-4 * (1.0 + a.abs());
        if alone[0].iter().zip(&seen.scores[i]).any(differs) {
            bad.push(id);
        }
    }
    let tried = e.ids.len().min(8);
    let detail = format!(
        "{} of {tried} images have other scores alone than among {}",
        bad.len(),
        e.ids.len()
    );
    let level = by_share(bad.len(), tried, 0.01);
    Ok(finding("images do not see each other", level, detail, bad))
}

/// Without a gradient, an attack by gradients stands still.
fn gradients_are_there(e: &mut Evaluation<'_>, seen: &Seen) -> Result<Finding> {
    let dx = &seen.gradients;
    let zero = vec![0.0; dx.shape().row_len()];
    let length = |i: usize| Norm::L2.distance(dx.row(i), &zero);
    let lengths: Vec<f64> = (0..e.ids.len()).map(length).collect();
    let bad: Vec<u32> = (0..lengths.len())
        .filter(|&i| !lengths[i].is_finite() || lengths[i] < 1e-9)
        .map(|i| e.ids[i])
        .collect();
    let detail = format!(
        "{} of {} gradients of the cross-entropy are zero or not finite",
        bad.len(),
        lengths.len()
    );
    let level = by_share(bad.len(), lengths.len(), 0.1);
    Ok(finding("gradients are there", level, detail, bad))
}

/// Against differences of the loss under the same draw, along the gradient: a gradient of something else
/// (of other draws, of no noise, of a smoothed network) promises a rise that does not come.
fn gradients_are_right(e: &mut Evaluation<'_>, seen: &Seen) -> Result<Finding> {
    let dx = &seen.gradients;
    let n = e.ids.len();
    let len = dx.shape().row_len();
    let zero = vec![0.0; len];
    // Small enough for the loss to be nearly linear, large enough for f32.
    let step = 1e-2;
    let mut up = Vec::with_capacity(n * len);
    let mut down = Vec::with_capacity(n * len);
    for i in 0..n {
        let direction = Norm::L2.steepest(dx.row(i));
        for (x, d) in e.x.row::<f32>(i).iter().zip(direction) {
            up.push(x + step * d);
            down.push(x - step * d);
        }
    }
    let shape = e.x.shape();
    let up = e.losses(&Tensor::from_vec(shape, up)?)?;
    let down = e.losses(&Tensor::from_vec(shape, down)?)?;
    let mut bad = Vec::new();
    let mut worst = 0f64;
    for i in 0..n {
        let promised = Norm::L2.distance(dx.row(i), &zero);
        let rise = (up[i] - down[i]) / (2.0 * f64::from(step));
        if promised > 1e-6 {
            let error = (rise / promised - 1.0).abs();
            worst = worst.max(error);
            if error > 0.2 {
                bad.push(e.ids[i]);
            }
        }
    }
    let detail = format!(
        "the loss does not rise as the gradient says on {} of {n} images (largest relative error {worst:.2})",
        bad.len()
    );
    let level = by_share(bad.len(), n, 0.25);
    Ok(finding("gradients are right", level, detail, bad))
}

/// A random network that is judged by one draw is robust, or not, by luck.
fn randomness_is_judged_often(e: &mut Evaluation<'_>, seen: &Seen) -> Result<Finding> {
    const NAME: &str = "randomness is judged on fresh draws";
    if !seen.random {
        let detail = "the network is not random".to_string();
        return Ok(finding(NAME, Level::Pass, detail, Vec::new()));
    }
    let draws = e.options.passes * e.options.mean_of_objective;
    let verdicts = e.options.confirmations;
    let detail = format!("{verdicts} verdicts of {draws} draws each behind every success");
    let level = match (verdicts as usize) * draws {
        0 | 1 => Level::Fail,
        2..10 => Level::Warn,
        _ => Level::Pass,
    };
    Ok(finding(NAME, level, detail, Vec::new()))
}

/// Where the attack failed it has to have gone as far as it may.
fn the_budget_is_used(e: &mut Evaluation<'_>, _: &Seen, own: &[Found]) -> Result<Finding> {
    let used = |f: &Found| match e.norm {
        Norm::L2 => f.l2,
        Norm::Linf => f.linf,
    };
    let failures: Vec<(u32, f64)> = own
        .iter()
        .zip(e.ids)
        .filter(|(f, _)| !f.success)
        .map(|(f, &id)| (id, used(f) / e.eps))
        .collect();
    let bad: Vec<u32> = failures
        .iter()
        .filter(|(_, u)| *u < 0.9)
        .map(|(id, _)| *id)
        .collect();
    let detail = format!(
        "{} of {} failures stay within 90% of the radius",
        bad.len(),
        failures.len()
    );
    let level = by_share(bad.len(), failures.len(), 0.5);
    Ok(finding("the budget is used", level, detail, bad))
}

fn more_steps_change_nothing(e: &mut Evaluation<'_>, _: &Seen, own: &[Found]) -> Result<Finding> {
    let more = e.own(e.eps, 4)?;
    let bad = e.only_first(&more, own);
    let detail = format!(
        "four times the steps break {} more of {} images",
        bad.len(),
        own.len()
    );
    let level = by_share(bad.len(), own.len(), 0.03);
    Ok(finding("more steps change nothing", level, detail, bad))
}

fn iterations_beat_one_step(e: &mut Evaluation<'_>, _: &Seen, own: &[Found]) -> Result<Finding> {
    let options = e.options();
    let one = e.white(&Pgd::fgsm(e.norm, e.eps), &options)?;
    let bad = e.only_first(&one, own);
    let detail = format!(
        "one step breaks {}, the attack {}; {} images only by one step",
        percent(successes(&one), own.len()),
        percent(successes(own), own.len()),
        bad.len()
    );
    let level = by_share(bad.len(), own.len(), 0.03);
    Ok(finding("iterations beat one step", level, detail, bad))
}

/// Half of the box away lies grey, which has one class: a classifier that tells two classes apart falls.
fn a_large_radius_breaks_all(e: &mut Evaluation<'_>, _: &Seen, _: &[Found]) -> Result<Finding> {
    let far = match e.norm {
        Norm::Linf => 0.5,
        Norm::L2 => 0.5 * (e.x.shape().row_len() as f64).sqrt(),
    };
    let found = e.own(far, 1)?;
    let robust: Vec<u32> = found
        .iter()
        .zip(e.ids)
        .filter(|(f, _)| !f.success)
        .map(|(_, &id)| id)
        .collect();
    // All images of one class may be what grey is.
    let chance = 1.0 / e.net.classes() as f64;
    let share = robust.len() as f64 / found.len() as f64;
    let level = match share {
        s if s <= 0.02 => Level::Pass,
        s if s <= chance + 0.1 => Level::Warn,
        _ => Level::Fail,
    };
    let detail = format!(
        "{} survive a radius of {far:.2}",
        percent(robust.len(), found.len())
    );
    Ok(finding("a large radius breaks all", level, detail, robust))
}

fn gradients_beat_scores(e: &mut Evaluation<'_>, _: &Seen, own: &[Found]) -> Result<Finding> {
    let options = e.options();
    let square = Square {
        queries: 500,
        rescale: true,
        ..Square::new(e.norm, e.eps)
    };
    let found = e.black(&square, &options)?;
    let bad = e.only_first(&found, own);
    let detail = format!(
        "Square breaks {} with 500 queries; {} images only Square breaks",
        percent(successes(&found), own.len()),
        bad.len()
    );
    let level = by_share(bad.len(), own.len(), 0.03);
    Ok(finding("gradients beat scores", level, detail, bad))
}

fn the_attack_beats_noise(e: &mut Evaluation<'_>, _: &Seen, own: &[Found]) -> Result<Finding> {
    let options = e.options();
    let noise = RandomNoise {
        tries: 500,
        ..RandomNoise::new(e.norm, e.eps)
    };
    let found = e.black(&noise, &options)?;
    let bad = e.only_first(&found, own);
    let detail = format!(
        "noise breaks {} in 500 tries; {} images only noise breaks",
        percent(successes(&found), own.len()),
        bad.len()
    );
    let level = by_share(bad.len(), own.len(), 0.01);
    Ok(finding("the attack beats noise", level, detail, bad))
}

/// With the randomness fixed to one value a random network is an ordinary one, and no safer.
fn fixed_randomness_falls(e: &mut Evaluation<'_>, seen: &Seen, own: &[Found]) -> Result<Finding> {
    const NAME: &str = "fixed randomness falls";
    if !seen.random {
        let detail = "the network is not random".to_string();
        return Ok(finding(NAME, Level::Pass, detail, Vec::new()));
    }
    let mut fixed = Fixed(e.net);
    let mut inner = Evaluation {
        net: &mut fixed,
        x: e.x,
        ids: e.ids,
        labels: e.labels,
        norm: e.norm,
        eps: e.eps,
        attack: e.attack,
        options: e.options.clone(),
    };
    inner.options.confirmations = 0;
    inner.options.mean_of_objective = 1;
    let found = inner.own(inner.eps, 1)?;
    let bad = e.only_first(own, &found);
    let (fell, before) = (successes(&found), successes(own));
    let level = match fell + own.len().div_ceil(20) {
        enough if enough >= before => Level::Pass,
        _ => Level::Fail,
    };
    let detail = format!(
        "with one draw fixed the attack breaks {}, else {}",
        percent(fell, own.len()),
        percent(before, own.len())
    );
    Ok(finding(NAME, level, detail, bad))
}

/// The sweep over draws has to be flat where the evaluation stands.
fn more_draws_change_nothing(
    e: &mut Evaluation<'_>,
    seen: &Seen,
    own: &[Found],
) -> Result<Finding> {
    const NAME: &str = "more draws change nothing";
    if !seen.random {
        let detail = "the network is not random".to_string();
        return Ok(finding(NAME, Level::Pass, detail, Vec::new()));
    }
    let mut options = e.options();
    options.mean_of_objective *= 2;
    let attack = (e.attack)(e.eps, 1);
    let more = e.white(&*attack, &options)?;
    let bad = e.only_first(&more, own);
    let (with, without) = (successes(&more), successes(own));
    // Verdicts themselves are random: a change counts by its balance.
    let gained = with.saturating_sub(without);
    let detail = format!(
        "twice the draws break {}, the evaluation's {}",
        percent(with, own.len()),
        percent(without, own.len())
    );
    let level = by_share(gained, own.len(), 0.1);
    Ok(finding(NAME, level, detail, bad))
}

/// A classifier whose every draw is draw 0.
struct Fixed<'a>(&'a mut dyn Differentiable);

fn fix(rows: &Rows) -> Rows {
    rows.iter().map(|r| Row { id: r.id, draw: 0 }).collect()
}

impl Classifier for Fixed<'_> {
    fn classes(&self) -> usize {
        self.0.classes()
    }

    fn input(&self) -> Shape {
        self.0.input()
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn rows_are_independent(&self) -> bool {
        self.0.rows_are_independent()
    }

    fn logits(&mut self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        self.0.logits(x, &fix(rows))
    }
}

impl Differentiable for Fixed<'_> {
    fn input_grad(
        &mut self,
        x: &Tensor,
        rows: &Rows,
        gradient: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        self.0.input_grad(x, &fix(rows), gradient)
    }
}
