//! Minimisations of one image, side by side at several constants.

use super::CarliniWagner;
use crate::attacks::query::Offer;
use crate::attacks::{Goal, Image, Objective, OutOfQueries, Query, WhiteBox};
use crate::ops::adam;
use crate::ops::tanh_space;
use crate::tensor::{Shape, Tensor};

/// `min(margin, kappa)`: the hinge to be raised, whose gradient is 0 from `kappa` on.
pub(super) fn hinge(goal: Goal, kappa: f64) -> Objective {
    let margin = Objective::margin(goal);
    Objective::new(move |scores, gradient| {
        let value = margin.evaluate(scores, gradient);
        if value >= kappa {
            gradient.fill(0.0);
            return kappa;
        }
        value
    })
}

/// How a minimisation ends.
pub(super) struct Ends {
    /// See [`tanh_space::from_image`].
    pub shrink: f64,
    pub abort_early: bool,
    /// Whether successes on the way are offered.
    pub offers: bool,
}

pub(super) struct Descended {
    /// Iterates after the last step, one for each constant.
    pub last: Vec<Vec<f32>>,
    /// Whether the iterate in front of the last step met the goal, or, where successes are offered, any.
    pub success: Vec<bool>,
}

/// Adam's state at the constants still running.
struct Running {
    /// Which constant each row is.
    constants: Vec<usize>,
    original: Tensor,
    w: Tensor,
    m: Tensor,
    v: Tensor,
}

impl Running {
    fn keep(&mut self, rows: &[usize]) {
        self.constants = rows.iter().map(|&r| self.constants[r]).collect();
        for tensor in [&mut self.original, &mut self.w, &mut self.m, &mut self.v] {
            *tensor = tensor.gather_rows(rows).expect("rows that are there");
        }
    }
}

/// Each row of images of this shape.
fn rows(images: &Tensor) -> impl Iterator<Item = &[f32]> {
    images.data::<f32>().chunks(images.shape().row_len())
}

/// The constants share the draws of each step.
pub(super) async fn descend(
    net: &mut WhiteBox,
    image: &Image,
    params: &CarliniWagner,
    c: &[f64],
    ends: Ends,
) -> Result<Descended, OutOfQueries> {
    const FITS: &str = "an image as the classifier takes it";
    let n = c.len();
    let shape: Shape = image.shape.with_n(n);
    let objective = hinge(image.goal, params.kappa);
    let original = Tensor::from_vec(shape, image.pixels.repeat(n)).expect(FITS);
    let w = tanh_space::from_image(&original, ends.shrink).expect(FITS);
    let mut running = Running {
        constants: (0..n).collect(),
        m: Tensor::zeros(shape, w.dtype()),
        v: Tensor::zeros(shape, w.dtype()),
        original,
        w,
    };
    let mut result = Descended {
        last: vec![Vec::new(); n],
        success: vec![false; n],
    };
    let first_draw = net.fresh_draws(params.steps);
    let mut previous_loss = vec![f64::INFINITY; n];
    let mut stalled = vec![0; n];
    let check_every = (params.steps / 10).max(1);

    for step in 0..params.steps {
        let adversarial = tanh_space::to_image(&running.w).expect(FITS);
        let draw = first_draw + step;
        let queries = rows(&adversarial).map(|row| {
            let pixels = row.to_vec();
            (Query { pixels, draw }, objective.clone())
        });
        let slopes = net.slopes(queries.collect()).await?;
        let mut df = Vec::with_capacity(adversarial.shape().len());
        for (slope, &k) in slopes.iter().zip(&running.constants) {
            df.extend(slope.gradient.iter().map(|g| -(c[k] as f32) * g));
        }
        let df = Tensor::from_vec(adversarial.shape(), df).expect(FITS);
        let (squared, dw) = tanh_space::backward(&adversarial, &running.original, &df).expect(FITS);

        for ((pixels, slope), &k) in rows(&adversarial).zip(&slopes).zip(&running.constants) {
            let met = image.goal.is_met(&slope.scores)
                && image.goal.margin(&slope.scores) >= params.kappa;
            net.c = Some(c[k]);
            if !ends.offers {
                result.success[k] = met;
            } else if met {
                let success = match net.try_offer(pixels, &slope.scores).await? {
                    Offer::Refuted => false,
                    Offer::Success | Offer::Sure => true,
                    Offer::NotBetter => result.success[k] || net.confirm(pixels).await?,
                };
                result.success[k] |= success;
            }
        }

        let t = vec![step + 1; running.constants.len()];
        let Running { w, m, v, .. } = &mut running;
        adam::step(w, &dw, m, v, &t, params.adam(step)).expect(FITS);

        if ends.abort_early && step % check_every == 0 {
            let mut keep = Vec::new();
            for (r, &k) in running.constants.iter().enumerate() {
                let loss = squared[r] - c[k] * slopes[r].value;
                let fell = loss <= 0.9999 * previous_loss[k];
                stalled[k] = if fell { 0 } else { stalled[k] + 1 };
                previous_loss[k] = loss;
                if stalled[k] < 2 {
                    keep.push(r);
                }
            }
            if keep.len() < running.constants.len() {
                take_last(&running, &mut result);
                running.keep(&keep);
            }
            if keep.is_empty() {
                return Ok(result);
            }
        }
    }
    take_last(&running, &mut result);
    Ok(result)
}

fn take_last(running: &Running, result: &mut Descended) {
    let images = tanh_space::to_image(&running.w).expect("w has no more than f32");
    for (row, &k) in rows(&images).zip(&running.constants) {
        result.last[k] = row.to_vec();
    }
}
