//! Sums over a network: passes and steps, by the model and by the floor.
//!
//! What is not a convolution is counted by the bytes that it moves: in training a pass behind every
//! convolution (batch norm, activation, pool) and one in front of every gradient; in an attack one in front
//! of every input gradient. Weight gradients that are not modelled count with their floor.

use anyhow::Result;
use noiseforge::models::Convolution;
use noiseforge::ops::conv2d::model::Card;
use noiseforge::ops::conv2d::predict::{Launch, Pass};
use noiseforge::report::Table;
use noiseforge::tensor::DType;
use serde_json::{Value, json};

use super::launch;

/// Noise draws of an ensemble.
const DRAWS: usize = 50;
/// Bytes that SGD with momentum moves for a parameter: weight, velocity and gradient in f32.
const SGD: usize = 20;

/// Seconds of a whole.
#[derive(Debug, Clone, Copy)]
pub struct Total {
    pub what: &'static str,
    pub images: usize,
    pub seconds: f64,
    pub floor: f64,
    pub launches: usize,
    /// Part of `seconds` that is a floor, for want of a model.
    pub unmodelled: f64,
}

impl Total {
    pub fn json(&self) -> Value {
        json!({
            "what": self.what,
            "microseconds": self.seconds * 1e6,
            "floor": self.floor * 1e6,
            "launches": self.launches,
            "unmodelled": self.unmodelled * 1e6,
        })
    }
}

struct Sum<'a> {
    card: &'a Card,
    total: Total,
}

impl Sum<'_> {
    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let floor = self.card.floor(launch.operations()?, launch.bytes()?);
        self.total.launches += 1;
        self.total.floor += floor;
        let prediction = launch.predict(self.card, None, None)?;
        let seconds = prediction.map(|p| p.times.seconds());
        if seconds.is_none() {
            self.total.unmodelled += floor;
        }
        self.total.seconds += seconds.unwrap_or(floor);
        Ok(())
    }

    fn pass(&mut self, bytes: usize) {
        let seconds = bytes as f64 / self.card.memory;
        self.total.launches += 1;
        self.total.floor += seconds;
        self.total.seconds += seconds;
    }
}

pub fn all(card: &Card, layers: &[Convolution], batch: usize, dtype: DType) -> Result<Vec<Total>> {
    let new = |what, images| Sum {
        card,
        total: Total {
            what,
            images,
            seconds: 0.0,
            floor: 0.0,
            launches: 0,
            unmodelled: 0.0,
        },
    };
    let forward = |sum: &mut Sum<'_>, draws: usize, folded: bool| -> Result<()> {
        for (i, layer) in layers.iter().enumerate() {
            let mut l = launch(layer, Pass::Forward, batch * draws, dtype);
            // The first one reads an image once for all of its draws.
            l.draws = if i == 0 { draws } else { 1 };
            if !folded && layer.norm {
                (l.pool, l.residual) = (false, false);
            }
            sum.launch(&l)?;
        }
        Ok(())
    };
    let size = dtype.size();
    let y_of = |layer: &Convolution| launch(layer, Pass::Forward, batch, dtype).y();

    let mut once = new("forward", batch);
    forward(&mut once, 1, true)?;

    let mut attack = new("attack iteration", batch);
    forward(&mut attack, 1, true)?;
    for layer in layers {
        let y = y_of(layer)?.len();
        if layer.norm {
            let kept = if layer.pool { y / 4 } else { y };
            attack.pass(size * (kept + y) + y / 8);
        }
        attack.launch(&launch(layer, Pass::InputGrad, batch, dtype))?;
    }

    let mut training = new("training step", batch);
    forward(&mut training, 1, false)?;
    let mut parameters = 0;
    for (i, layer) in layers.iter().enumerate() {
        let y = y_of(layer)?.len();
        let kept = if layer.pool { y / 4 } else { y };
        let residual = if layer.residual { y } else { 0 };
        if layer.norm {
            training.pass(size * (y + kept + residual));
            training.pass(size * (kept + 2 * y + residual));
        }
        if i > 0 {
            training.launch(&launch(layer, Pass::InputGrad, batch, dtype))?;
        }
        training.launch(&launch(layer, Pass::WeightGrad, batch, dtype))?;
        parameters += layer.w.len();
    }
    training.pass(parameters * SGD);

    let mut ensemble = new("ensemble of 50 draws", batch);
    forward(&mut ensemble, DRAWS, true)?;

    let finish = |sum: Sum<'_>| {
        // What a graph's nodes take where they are shorter than that is hidden by no other.
        let mut total = sum.total;
        total.seconds += total.launches as f64 * card.node;
        total
    };
    Ok([once, attack, training, ensemble].map(finish).into())
}

pub fn table(totals: &[Total]) -> Table {
    let header = [
        "whole",
        "launches",
        "us",
        "floor us",
        "floor/us",
        "images/s",
        "of it unmodelled",
    ];
    let mut table = Table::new("", header);
    for t in totals {
        table.row([
            t.what.to_string(),
            t.launches.to_string(),
            format!("{:.0}", t.seconds * 1e6),
            format!("{:.0}", t.floor * 1e6),
            format!("{:.2}", t.floor / t.seconds),
            format!("{:.0}", t.images as f64 / t.seconds),
            format!("{:.0}", t.unmodelled * 1e6),
        ]);
    }
    table
}
