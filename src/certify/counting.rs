//! Drawing: rows of many images share a batch.

use crate::data::Dataset;
use crate::ensemble::Ensemble;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::ops::ensemble::{concat_rows, repeat};
use crate::ops::loss::argmax;
use crate::ops::noise::{self, Key, Noise, Row, Rows};
use crate::tensor::Tensor;

use super::{Counts, NORMALS, OWN_PURPOSE, Outcome, PURPOSE, Settings};

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// So many draws were made, or are not needed any more.
    Draws(u64),
    /// The image at this position is done.
    Done(usize, Outcome),
}

/// An image whose draws are not all made.
struct Open {
    position: usize,
    /// Its index in the data set, which names its noise.
    id: u32,
    /// `[1, h, w, c]`, where the network is.
    image: Tensor,
    counts: Counts,
    /// The next draw.
    next: u32,
    /// The draw before which somebody looks at the counts.
    stop: u32,
    /// The looks after that one, last first.
    later: Vec<u32>,
}

/// Consecutive draws of one image in a batch.
struct Span {
    open: usize,
    first: u32,
    draws: u32,
}

impl Settings {
    /// Certifies the images of `data`, or predicts them; `ids[i]` names the noise of image `i` (its
    /// index in the data set it comes from). `event` is told what happens, and may stop all by an error.
    /// Images fill the batches in order, so they are done nearly in order.
    ///
    /// # Errors
    /// What [`Settings::check`] refuses; images that do not fit the network; scores that are NaN; not
    /// enough device memory; those of `event`.
    pub fn run(
        &self,
        model: &mut Model,
        data: &Dataset,
        ids: &[u32],
        event: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        self.check()?;
        if ids.len() != data.len() {
            return Err(Error::argument("certify", "ids", data.len(), ids.len()));
        }
        let (input, classes) = (model.config().input, model.config().classes);
        if data.image_shape() != input {
            let found = data.image_shape();
            return Err(Error::argument("certify", "images", input, found));
        }
        // One draw an image: the rows say which.
        let mut net = Ensemble::new(model, self.seed, OWN_PURPOSE, 1)?;
        let batch = self.batch.unwrap_or(net.chunk);
        if let Some(batch) = self.batch {
            net.chunk = batch;
        }
        let last = self.n0() + self.n;
        let mut stops: Vec<u32> = self.looks().iter().map(|m| self.n0() + m).collect();
        stops.push(last);
        stops.reverse();

        let mut open: Vec<Open> = Vec::new();
        let mut coming = 0..data.len();
        loop {
            let (mut spans, mut room) = (Vec::new(), batch);
            let mut i = 0;
            while room > 0 {
                if i == open.len() {
                    let Some(position) = coming.next() else { break };
                    let (image, _) = data.batch(&[position])?;
                    let mut later = stops.clone();
                    open.push(Open {
                        position,
                        id: ids[position],
                        image: net.place(image)?,
                        counts: Counts::new(classes),
                        next: 0,
                        stop: later.pop().expect("the last draw at least"),
                        later,
                    });
                }
                let image = &mut open[i];
                let draws = image.stop - image.next;
                let draws = draws.min(u32::try_from(room).unwrap_or(u32::MAX));
                spans.push(Span {
                    open: i,
                    first: image.next,
                    draws,
                });
                image.next += draws;
                room -= draws as usize;
                i += 1;
            }
            if spans.is_empty() {
                return Ok(());
            }
            self.count(&mut net, &mut open, &spans)?;
            event(Event::Draws((batch - room) as u64))?;

            let mut still = Vec::with_capacity(open.len());
            for mut image in open {
                if image.next < image.stop {
                    still.push(image);
                } else if image.stop < last && !self.is_hopeless(&image.counts)? {
                    image.stop = image.later.pop().expect("the last draw is the last look");
                    still.push(image);
                } else {
                    if image.next < last {
                        event(Event::Draws(u64::from(last - image.next)))?;
                    }
                    let outcome = self.judge(image.counts)?;
                    event(Event::Done(image.position, outcome))?;
                }
            }
            open = still;
        }
    }

    /// Runs one batch and counts its votes.
    fn count(&self, net: &mut Ensemble<'_>, open: &mut [Open], spans: &[Span]) -> Result<()> {
        let parts: Vec<Tensor> = spans
            .iter()
            .map(|s| repeat(&open[s.open].image, 0..1, s.draws as usize))
            .collect::<Result<_>>()?;
        let x = concat_rows(&parts)?;
        drop(parts);
        let named = |s: &Span| (open[s.open].id, s.first..s.first + s.draws);
        let rows: Rows = spans
            .iter()
            .map(named)
            .flat_map(|(id, draws)| draws.map(move |draw| Row { id, draw }))
            .collect();
        let noise = Noise {
            key: Key {
                seed: self.seed,
                purpose: PURPOSE,
                rows: rows.clone(),
            },
            layer: 0,
            sigma: self.sigma,
            normals: NORMALS,
        };
        let z = net
            .logits_of_draws(&noise::forward(&x, &noise)?, &rows)?
            .to_cpu()?;
        let votes = argmax(&z)?;
        let wrong = z.to_f64_vec().iter().filter(|v| v.is_nan()).count();
        if wrong > 0 {
            return Err(Error::NotFinite {
                what: "the network's scores".to_string(),
                count: wrong,
                total: z.shape().len(),
            });
        }
        let mut votes = votes.into_iter();
        for span in spans {
            let counts = &mut open[span.open].counts;
            for draw in span.first..span.first + span.draws {
                let class = votes.next().expect("a vote for every row") as usize;
                let part = match draw < self.n0() {
                    true => &mut counts.selection,
                    false => &mut counts.estimation,
                };
                part[class] += 1;
            }
        }
        Ok(())
    }
}
