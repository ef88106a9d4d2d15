//! Optimisers over whole networks, and learning-rate schedules.

mod schedule;

pub use schedule::Schedule;

use crate::error::Result;
use crate::models::Model;
use crate::ops::sgd;
use crate::tensor::Tensor;

/// Stochastic gradient descent with momentum over all parameters of a network.
pub struct Sgd {
    /// Hyper-parameters; the learning rate may change between steps.
    pub settings: sgd::Sgd,
    /// One velocity per parameter, in the order [`Model::visit_params`] visits.
    pub velocity: Vec<Tensor>,
}

impl Sgd {
    /// Velocities 0.
    ///
    /// Errors: not enough device memory.
    pub fn new(model: &mut Model, settings: sgd::Sgd) -> Result<Self> {
        let mut velocity = Vec::new();
        model.visit_params(|_, p| velocity.push(p.value.zeros_like()));
        let velocity = velocity.into_iter().collect::<Result<_>>()?;
        Ok(Sgd { settings, velocity })
    }

    /// Updates every parameter by its accumulated gradient, which becomes 0.
    pub fn step(&mut self, model: &mut Model) -> Result<()> {
        let mut result = Ok(());
        let mut velocity = self.velocity.iter_mut();
        model.visit_params(|_, p| {
            let v = velocity.next().expect("one velocity per parameter");
            if result.is_ok() {
                result = sgd::step(&mut p.value, &p.grad, v, self.settings)
                    .and_then(|()| p.grad.clear());
            }
        });
        result
    }

    /// Velocities back to 0, as a new optimiser has them.
    ///
    /// Errors: a fault of the device.
    pub fn reset(&mut self) -> Result<()> {
        self.velocity.iter_mut().try_for_each(Tensor::clear)
    }
}
