//! One minimisation on the CPU.

use super::{CarliniWagner, put_row, row};
use crate::attacks::Criterion;
use crate::ensemble::Differentiable;
use crate::error::{Error, Result};
use crate::ops::adam::{self, Adam};
use crate::ops::loss::argmax;
use crate::ops::margin;
use crate::ops::noise::{Row, Rows};
use crate::ops::tanh_space;
use crate::tensor::Tensor;

/// One minimisation at given constants.
pub(super) struct Descent<'a> {
    pub net: &'a mut dyn Differentiable,
    pub x: &'a Tensor,
    pub ids: &'a [u32],
    pub criterion: &'a Criterion,
    pub params: &'a CarliniWagner,
    /// See [`tanh_space::from_image`].
    pub shrink: f64,
    pub abort_early: bool,
    /// Draw of the first step.
    pub first_draw: u32,
}

pub(super) struct Last {
    /// Iterate after the last step, on the CPU.
    pub images: Tensor,
    /// Whether the iterate in front of the last step met the criterion.
    pub success: Vec<bool>,
    pub passes: Vec<u32>,
}

pub(super) struct Descended {
    pub last: Last,
    /// The closest success on the way and its squared distance.
    pub closest: Vec<Option<(f64, Vec<f32>)>>,
}

impl Descent<'_> {
    pub fn run(self, c: &[f64], progress: &mut dyn FnMut(u32) -> Result<()>) -> Result<Descended> {
        match self.x.gpu().cloned() {
            Some(gpu) => super::device::run(self, &gpu, c, progress),
            None => self.run_on_host(c, progress),
        }
    }

    fn run_on_host(
        self,
        c: &[f64],
        progress: &mut dyn FnMut(u32) -> Result<()>,
    ) -> Result<Descended> {
        let Descent {
            net,
            x,
            ids,
            criterion,
            params,
            ..
        } = self;
        let n = ids.len();
        let adam = Adam {
            lr: params.lr,
            ..Adam::default()
        };
        let mut last = Last {
            images: x.clone(),
            success: vec![false; n],
            passes: vec![0; n],
        };
        let mut closest = vec![None; n];
        let mut previous_loss = vec![f64::INFINITY; n];
        let mut stalled = vec![0; n];
        let check_every = (params.steps / 10).max(1);

        // Rows still running: `active[r]` is the image in row `r` of these tensors.
        let mut active: Vec<usize> = (0..n).collect();
        let mut original = x.clone();
        let mut w = tanh_space::from_image(x, self.shrink)?;
        let mut m = w.zeros_like()?;
        let mut v = m.clone();

        for step in 0..params.steps {
            let adversarial = tanh_space::to_image(&w)?;
            let rows: Rows = active
                .iter()
                .map(|&i| Row {
                    id: ids[i],
                    draw: self.first_draw + step,
                })
                .collect();
            let classes: Vec<u32> = active.iter().map(|&i| criterion.classes()[i]).collect();
            let weights: Vec<f64> = active.iter().map(|&i| c[i]).collect();
            let mut margins = Vec::new();
            let (scores, df) = net.input_grad(&adversarial, &rows, &mut |scores| {
                let bad = scores.count_not_finite()?;
                if bad > 0 {
                    return Err(Error::NotFinite {
                        what: format!("logits at attack step {step}"),
                        count: bad,
                        total: scores.shape().len(),
                    });
                }
                let (values, gradient) = margin::forward_backward(
                    scores,
                    &classes,
                    criterion.direction(),
                    params.kappa,
                    &weights,
                )?;
                margins = values;
                Ok(gradient)
            })?;
            let (squared, dw) = tanh_space::backward(&adversarial, &original, &df)?;

            let predictions = argmax(&scores)?;
            for (r, &i) in active.iter().enumerate() {
                last.passes[i] += 1;
                last.success[i] =
                    criterion.is_met(i, predictions[r]) && margins[r] <= -params.kappa;
                let closer =
                    |best: &Option<(f64, _)>| best.as_ref().is_none_or(|b| squared[r] < b.0);
                if last.success[i] && closer(&closest[i]) {
                    closest[i] = Some((squared[r], row(&adversarial, r).to_vec()));
                }
            }

            let t = vec![step + 1; active.len()];
            adam::step(&mut w, &dw, &mut m, &mut v, &t, adam)?;
            progress(step + 1)?;

            if self.abort_early && step % check_every == 0 {
                let mut keep = Vec::new();
                for (r, &i) in active.iter().enumerate() {
                    let loss = squared[r] + c[i] * margins[r];
                    let fell = loss <= 0.9999 * previous_loss[i];
                    stalled[i] = if fell { 0 } else { stalled[i] + 1 };
                    previous_loss[i] = loss;
                    if stalled[i] < 2 {
                        keep.push(r);
                    }
                }
                if keep.len() < active.len() {
                    let images = tanh_space::to_image(&w)?;
                    for (r, &i) in active.iter().enumerate() {
                        put_row(&mut last.images, i, row(&images, r));
                    }
                    active = keep.iter().map(|&r| active[r]).collect();
                    for tensor in [&mut original, &mut w, &mut m, &mut v] {
                        *tensor = tensor.gather_rows(&keep)?;
                    }
                }
                if active.is_empty() {
                    break;
                }
            }
        }
        let images = tanh_space::to_image(&w)?;
        for (r, &i) in active.iter().enumerate() {
            put_row(&mut last.images, i, row(&images, r));
        }
        Ok(Descended { last, closest })
    }
}
