//! The loss of distillation: how far a student's softened probabilities are from a teacher's.

use super::{check_logits, max_and_rest};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{Real, Tensor};

/// What the divergence of a row is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// `T^2` (Hinton et al. 2015): the gradient keeps its size whatever the temperature.
    #[default]
    Hinton,
    /// `1 / classes`, as the RSE paper's code had it: the mean over rows **and** classes, no `T^2`.
    Authors,
}

impl Scaling {
    fn factor(self, temperature: f64, classes: usize) -> f64 {
        match self {
            Scaling::Hinton => temperature * temperature,
            Scaling::Authors => 1.0 / classes as f64,
        }
    }
}

/// Loss per row, in nats (f64), and the gradient of the **mean** over rows in the student's logits:
///
/// `a KL(softmax(z_t / T) || softmax(z_s / T))` with `a` as `scaling` says.
///
/// student, teacher and gradient `[n, 1, 1, classes]`, of one dtype and device. The loss of a row that holds
/// a NaN or plus infinity is not finite. Logits on a GPU are few: they are waited for, and the host computes.
///
/// Errors: other shapes, dtypes or devices; a temperature that is not a finite number above 0; a fault of
/// the device.
pub fn distillation(
    student: &Tensor,
    teacher: &Tensor,
    temperature: f64,
    scaling: Scaling,
) -> Result<(Vec<f64>, Tensor)> {
    const OP: &str = "loss::distillation";
    let shape = check_logits(OP, student)?;
    teacher.expect(OP, "teacher", shape, student.kind())?;
    Error::unless_positive(OP, "temperature", temperature)?;
    if let Some(gpu) = student.gpu() {
        let (z, taught) = (student.to_cpu()?, teacher.to_cpu()?);
        let (loss, grad) = distillation(&z, &taught, temperature, scaling)?;
        return Ok((loss, grad.to_gpu(gpu)?.to_dtype(student.dtype())?));
    }
    let factor = scaling.factor(temperature, shape.c);
    dispatch!(student.dtype(), T => {
        let mut loss = Vec::with_capacity(shape.n);
        let mut grad = Vec::with_capacity(shape.len());
        let rows = student.data::<T>().chunks(shape.c).zip(teacher.data::<T>().chunks(shape.c));
        for (student, teacher) in rows {
            let log_q = soft_log_probabilities(student, temperature);
            let log_p = soft_log_probabilities(teacher, temperature);
            // KL(p || q) = sum_k p_k (log p_k - log q_k)
            let pairs = || log_p.iter().zip(&log_q);
            let divergence: f64 = pairs().map(|(p, q)| p.exp() * (p - q)).sum();
            loss.push(factor * divergence);
            // d KL / d z_s = (q - p) / T
            let scale = factor / (temperature * shape.n as f64);
            grad.extend(pairs().map(|(p, q)| T::of(scale * (q.exp() - p.exp()))));
        }
        Ok((loss, Tensor::from_vec(shape, grad)?))
    })
}

/// `log softmax(z / T)` of a row.
fn soft_log_probabilities<T: Real>(row: &[T], temperature: f64) -> Vec<f64> {
    let soft: Vec<f64> = row.iter().map(|z| z.f64() / temperature).collect();
    let (m, rest) = max_and_rest(&soft);
    soft.iter().map(|z| (z - m) - rest.ln_1p()).collect()
}
