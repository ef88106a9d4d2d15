//! What one image's attack may ask of the classifier.
//!
//! An attack is written for one image, as the sequence of questions it asks; each `.await` is a
//! question. [`schedule`](super::schedule) puts the questions of many images into one batch.

use std::future::poll_fn;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;

use super::image::{Image, Norm};
use super::objective::Objective;

/// The image's query budget does not allow the next question. Attacks hand it on by `?`: what they
/// offered before stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfQueries;

/// An image to look at, and the random variables it meets.
#[derive(Debug, Clone)]
pub struct Query {
    /// `h * w * c` values.
    pub pixels: Vec<f32>,
    /// Index of the draw: two queries with the same draw see the same noise. A draw is all the
    /// classifier averages over.
    pub draw: u32,
}

/// Answer to a query for a gradient.
#[derive(Debug, Clone)]
pub struct Slope {
    /// The classifier's scores.
    pub scores: Vec<f32>,
    /// The objective.
    pub value: f64,
    /// Its gradient in the pixels.
    pub gradient: Vec<f32>,
}

/// What was asked of the classifier for one image. A pass is one draw of one image through the
/// network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Forward passes.
    pub forward: u64,
    /// Backward passes.
    pub backward: u64,
}

/// Which of several adversarial images is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The one closest to the original.
    Closest(Norm),
    /// The one that fools most surely: in the most confirmations, then by the larger margin.
    Surest,
}

/// The best an attack has offered.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub pixels: Vec<f32>,
    pub distance: f64,
    /// Confirmations that met the goal, of how many; both 0 where nothing is random.
    pub met: u32,
    /// Mean margin of the confirmations, or of the offer itself where there were none.
    pub margin: f64,
    /// Margin of the offer itself.
    pub seen: f64,
    pub success: bool,
    pub c: Option<f64>,
    /// The attack that offered it.
    pub by: &'static str,
    /// The attack's own choice, to be kept whatever it is.
    pub handed_in: bool,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// No better than what is kept; it was not looked at.
    NotBetter,
    /// No success, or one only by luck.
    Refuted,
    /// A success in more than half of the verdicts.
    Success,
    /// A success in all of them.
    Sure,
}

/// How offers are judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Acceptance {
    pub keep: Keep,
    /// Verdicts on fresh draws that an offer has to pass; 0 where nothing is random.
    pub confirmations: u32,
    /// Margin by which the goal has to be met.
    pub confidence: f64,
}

/// The letter box between an attack and the schedule.
#[derive(Default)]
pub(super) struct Mailbox {
    pub question: Option<Question>,
    pub scores: Option<Vec<Vec<f32>>>,
    pub slopes: Option<Vec<Slope>>,
}

pub(super) enum Question {
    Scores(Vec<Query>),
    Slopes(Vec<(Query, Objective)>),
}

impl Question {
    pub fn rows(&self) -> usize {
        match self {
            Question::Scores(queries) => queries.len(),
            Question::Slopes(queries) => queries.len(),
        }
    }
}

/// A classifier that answers with scores: all a black-box attack may ask.
pub struct BlackBox {
    pub(super) mailbox: Arc<Mutex<Mailbox>>,
    pub(super) image: Image,
    pub(super) acceptance: Acceptance,
    /// Passes that one query takes.
    pub(super) draws: u64,
    pub(super) budget: u64,
    pub(super) counts: Counts,
    pub(super) next_draw: u32,
    pub(super) kept: Option<Kept>,
    pub(super) forward_at_success: Option<u64>,
    /// Weight of the margin now, for attacks that have one: noted beside every offer.
    pub c: Option<f64>,
    /// The attack that offers.
    pub(super) by: &'static str,
}

pub(super) fn lock(mailbox: &Mutex<Mailbox>) -> MutexGuard<'_, Mailbox> {
    mailbox.lock().unwrap_or_else(|e| e.into_inner())
}

impl BlackBox {
    /// A draw nobody has seen yet. Where nothing is random all draws are the same one.
    pub fn fresh_draw(&mut self) -> u32 {
        self.fresh_draws(1)
    }

    /// The first of so many draws in a row that nobody has seen yet: which ones an attack sees then does
    /// not depend on how many of them it uses.
    pub fn fresh_draws(&mut self, count: u32) -> u32 {
        self.next_draw += count;
        self.next_draw - count
    }

    /// Whether the classifier answers the same query differently under another draw.
    pub fn is_random(&self) -> bool {
        self.acceptance.confirmations > 0
    }

    /// Forward passes the budget still allows.
    pub fn forwards_left(&self) -> u64 {
        self.budget - self.counts.forward
    }

    /// Queries the budget still allows: each takes a pass for every draw averaged over.
    pub fn queries_left(&self) -> u64 {
        self.forwards_left() / self.draws
    }

    fn pay(&mut self, rows: usize) -> Result<(), OutOfQueries> {
        let passes = rows as u64 * self.draws;
        if passes > self.forwards_left() {
            return Err(OutOfQueries);
        }
        self.counts.forward += passes;
        Ok(())
    }

    /// Scores of each image.
    pub async fn scores(&mut self, queries: Vec<Query>) -> Result<Vec<Vec<f32>>, OutOfQueries> {
        self.pay(queries.len())?;
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        lock(&self.mailbox).question = Some(Question::Scores(queries));
        let mailbox = &self.mailbox;
        let answer = poll_fn(|_| match lock(mailbox).scores.take() {
            Some(scores) => Poll::Ready(scores),
            None => Poll::Pending,
        });
        Ok(answer.await)
    }

    /// Scores of one image under a fresh draw.
    pub async fn look(&mut self, pixels: &[f32]) -> Result<Vec<f32>, OutOfQueries> {
        let draw = self.fresh_draw();
        let pixels = pixels.to_vec();
        let mut scores = self.scores(vec![Query { pixels, draw }]).await?;
        Ok(scores.remove(0))
    }

    /// Offers an image whose scores were seen: it is kept if it is better than what was kept before.
    /// Where the classifier is random, an image that seems to be a success is first looked at under
    /// fresh draws, and is one if it meets the goal in more than half of those verdicts.
    ///
    /// True if the image is a success beyond doubt, so that an attack within a bound need not go on.
    pub async fn offer(&mut self, pixels: &[f32], scores: &[f32]) -> Result<bool, OutOfQueries> {
        Ok(self.try_offer(pixels, scores).await? == Offer::Sure)
    }

    /// [`BlackBox::offer`], and what became of it.
    pub async fn try_offer(
        &mut self,
        pixels: &[f32],
        scores: &[f32],
    ) -> Result<Offer, OutOfQueries> {
        let margin = self.image.goal.margin(scores);
        let mut new = Kept {
            distance: match self.acceptance.keep {
                Keep::Closest(norm) => norm.distance(pixels, &self.image.pixels),
                Keep::Surest => 0.0,
            },
            met: 0,
            margin,
            seen: margin,
            success: self.holds(scores),
            c: self.c,
            handed_in: false,
            pixels: Vec::new(),
            by: self.by,
        };
        if !self.would_keep(&new) {
            return Ok(Offer::NotBetter);
        }
        let confirmations = self.acceptance.confirmations;
        let seemed = new.success;
        if seemed && confirmations > 0 {
            (new.met, new.margin) = self.verdicts(pixels).await?;
            new.success = 2 * new.met > confirmations;
        }
        let offer = match new.success {
            true if new.met == confirmations => Offer::Sure,
            true => Offer::Success,
            false => Offer::Refuted,
        };
        if self.would_keep(&new) {
            if new.success {
                self.forward_at_success.get_or_insert(self.counts.forward);
            }
            new.pixels = pixels.to_vec();
            self.kept = Some(new);
        }
        Ok(offer)
    }

    /// Whether an image is a success under fresh draws, by majority. Always, where nothing is random:
    /// it is asked of images that seem to be one.
    pub async fn confirm(&mut self, pixels: &[f32]) -> Result<bool, OutOfQueries> {
        let confirmations = self.acceptance.confirmations;
        Ok(confirmations == 0 || 2 * self.verdicts(pixels).await?.0 > confirmations)
    }

    /// Verdicts on fresh draws: how many meet the goal, and their mean margin.
    async fn verdicts(&mut self, pixels: &[f32]) -> Result<(u32, f64), OutOfQueries> {
        let confirmations = self.acceptance.confirmations;
        let mut queries = Vec::new();
        for _ in 0..confirmations {
            queries.push(Query {
                pixels: pixels.to_vec(),
                draw: self.fresh_draw(),
            });
        }
        let verdicts = self.scores(queries).await?;
        let met = verdicts.iter().filter(|s| self.holds(s)).count() as u32;
        let goal = self.image.goal;
        let margins = verdicts.iter().map(|s| goal.margin(s)).sum::<f64>();
        Ok((met, margins / f64::from(confirmations)))
    }

    /// Whether scores meet the goal by the confidence asked for.
    fn holds(&self, scores: &[f32]) -> bool {
        let goal = self.image.goal;
        goal.is_met(scores) && goal.margin(scores) >= self.acceptance.confidence
    }

    /// Hands in the attack's result as it is, for procedures that do not choose: success or not, it
    /// replaces what was offered.
    pub fn hand_in(&mut self, pixels: Vec<f32>, success: bool) {
        self.kept = Some(Kept {
            pixels,
            success,
            c: self.c,
            by: self.by,
            handed_in: true,
            distance: 0.0,
            met: 0,
            margin: 0.0,
            seen: 0.0,
        });
    }

    /// Offers from now on are this attack's.
    pub(super) fn credit(&mut self, attack: &'static str) {
        self.by = attack;
    }

    /// Whether an offer is better than what is kept.
    fn would_keep(&self, new: &Kept) -> bool {
        let Some(old) = &self.kept else { return true };
        match self.acceptance.keep {
            _ if new.success != old.success => new.success,
            Keep::Closest(_) if new.success => new.distance < old.distance,
            Keep::Closest(_) => new.margin > old.margin,
            // Not confirmed yet: worth it where it looks better than the kept one looked.
            Keep::Surest if new.met == 0 => new.seen > old.seen,
            Keep::Surest => (new.met, new.margin) > (old.met, old.margin),
        }
    }

    /// Distance of the closest success kept so far.
    pub fn closest(&self) -> Option<f64> {
        let kept = self.kept.as_ref().filter(|k| k.success)?;
        Some(kept.distance)
    }

    /// The success kept so far.
    pub fn success(&self) -> Option<&[f32]> {
        let kept = self.kept.as_ref().filter(|k| k.success)?;
        Some(&kept.pixels)
    }

    /// Whether an attack within a bound can stop: the success kept was never seen to fail.
    pub fn is_sure(&self) -> bool {
        let sure = |k: &Kept| k.success && k.met == self.acceptance.confirmations;
        self.kept.as_ref().is_some_and(sure)
    }
}

/// A classifier that also shows gradients.
pub struct WhiteBox(pub(super) BlackBox);

impl Deref for WhiteBox {
    type Target = BlackBox;

    fn deref(&self) -> &BlackBox {
        &self.0
    }
}

impl DerefMut for WhiteBox {
    fn deref_mut(&mut self) -> &mut BlackBox {
        &mut self.0
    }
}

impl WhiteBox {
    /// Scores, and value and gradient of each query's objective.
    pub async fn slopes(
        &mut self,
        queries: Vec<(Query, Objective)>,
    ) -> Result<Vec<Slope>, OutOfQueries> {
        self.pay(queries.len())?;
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        self.counts.backward += queries.len() as u64 * self.draws;
        lock(&self.mailbox).question = Some(Question::Slopes(queries));
        let mailbox = &self.0.mailbox;
        let answer = poll_fn(|_| match lock(mailbox).slopes.take() {
            Some(slopes) => Poll::Ready(slopes),
            None => Poll::Pending,
        });
        Ok(answer.await)
    }

    /// [`WhiteBox::slopes`] of one image under a fresh draw.
    pub async fn slope(
        &mut self,
        pixels: &[f32],
        objective: &Objective,
    ) -> Result<Slope, OutOfQueries> {
        let query = Query {
            pixels: pixels.to_vec(),
            draw: self.fresh_draw(),
        };
        let mut slopes = self.slopes(vec![(query, objective.clone())]).await?;
        Ok(slopes.remove(0))
    }
}
