//! Whole networks under the check: the images and every parameter are inputs.

use std::cell::RefCell;

use super::{Check, Report};
use crate::error::Result;
use crate::models::Model;
use crate::nn::{Grads, Pass};
use crate::tensor::{DType, Device, Tensor};

/// Checks a network's gradients in the images `x` `[n, h, w, c]` and in every parameter, under a
/// pass's batch-norm mode and noise (whose draw is fixed by its key, so the network is a function).
///
/// The network is rounded to f64 for the check and has the same parameter values afterwards, in
/// f64; train-mode passes move its running statistics. `directions` random directions per input:
/// two see every element and cost `4 (parameters + 1)` forward passes.
///
/// The step is 1e-7, a tenth of the ops' own: a network has many kinks, and fewer are crossed by a
/// shorter step. Differences then carry seven digits less than f64, and deep networks amplify
/// rounding, so the tolerance is 1e-5.
pub fn check_network(
    name: &str,
    model: &mut Model,
    x: &Tensor,
    pass: &Pass,
    directions: usize,
) -> Result<Report> {
    model.to(&Device::Cpu, DType::F64)?;
    let pass = Pass {
        record: true,
        ..pass.clone()
    };
    let mut check = Check::new(name)
        .input("x", x)
        .directions(directions)
        .step(1e-7)
        .tolerance(1e-5);
    let mut values = Vec::new();
    model.visit_params(|name, p| values.push((name.to_string(), p.value.clone())));
    // As good as one op for each parameter.
    check = check.ops(values.len().max(1));
    for (name, value) in &values {
        check = check.input(name.clone(), value);
    }
    let model = RefCell::new(model);
    let forward = |inputs: &[Tensor]| -> Result<Tensor> {
        let model = &mut *model.borrow_mut();
        put(model, &inputs[1..]);
        model.forward(inputs[0].clone(), &pass)
    };
    let backward = |inputs: &[Tensor], dy: &Tensor| -> Result<Vec<Tensor>> {
        forward(inputs)?;
        let model = &mut *model.borrow_mut();
        let mut cleared = Ok(());
        model.visit_params(|_, p| {
            cleared = std::mem::replace(&mut cleared, Ok(())).and_then(|()| p.grad.clear())
        });
        cleared?;
        let mut grads = vec![model.backward(dy.clone(), Grads::Accumulate)?];
        model.visit_params(|_, p| grads.push(p.grad.clone()));
        Ok(grads)
    };
    let report = check.run(forward, backward);
    let values: Vec<Tensor> = values.into_iter().map(|(_, value)| value).collect();
    put(&mut model.borrow_mut(), &values);
    report
}

/// Gives the parameters these values, in the order they are visited.
fn put(model: &mut Model, values: &[Tensor]) {
    let mut values = values.iter();
    model.visit_params(|_, p| p.value = values.next().expect("one per parameter").clone());
}
