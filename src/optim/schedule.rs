//! Learning rates over a training run.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schedule {
    /// The paper's: 40, 30, 20 and 10% of the epochs at 1, 0.1, 0.01 and 0.001 times the base rate
    /// (80, 60, 40, 20 of its 200), with a new optimiser at each phase's start.
    #[default]
    Phases,
    /// Each phase half as long as the one before, as the paper's authors trained against FGSM (160, 80, 40, 20 of
    /// 300 epochs), at the same rates as [`Schedule::Phases`] and with a new optimiser at each phase's start.
    Halving,
    /// `base / 2 (1 + cos(pi t))`, `t` the share of all steps done.
    Cosine,
    /// The base rate throughout.
    Constant,
}

impl Schedule {
    /// Phase of an epoch, counted from 0; only [`Schedule::Phases`] and [`Schedule::Halving`] have more than one.
    pub fn phase(self, epoch: u32, epochs: u32) -> u32 {
        // Where phases end, in parts of all epochs.
        let (ends, parts) = match self {
            Schedule::Phases => ([4, 7, 9], 10),
            Schedule::Halving => ([8, 12, 14], 15),
            Schedule::Cosine | Schedule::Constant => return 0,
        };
        let ends = ends.map(|end| (epochs * end + parts / 2) / parts);
        ends.iter().filter(|&&end| epoch >= end).count() as u32
    }

    /// Learning rate of step `step` (from 0) of `steps`, in epoch `epoch` of `epochs`.
    pub fn rate(self, base: f64, epoch: u32, epochs: u32, step: u64, steps: u64) -> f64 {
        match self {
            Schedule::Phases | Schedule::Halving => {
                base * 0.1f64.powi(self.phase(epoch, epochs) as i32)
            }
            Schedule::Cosine => {
                let t = step as f64 / steps.max(1) as f64;
                0.5 * base * (1.0 + (std::f64::consts::PI * t).cos())
            }
            Schedule::Constant => base,
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Schedule::Phases => "phases",
            Schedule::Halving => "halving",
            Schedule::Cosine => "cosine",
            Schedule::Constant => "constant",
        })
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "phases" => Ok(Schedule::Phases),
            "halving" => Ok(Schedule::Halving),
            "cosine" => Ok(Schedule::Cosine),
            "constant" => Ok(Schedule::Constant),
            _ => Err(Error::argument(
                "optim",
                "schedule",
                "phases, halving, cosine or constant",
                s,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_the_papers() {
        let starts = |schedule: Schedule, epochs: u32| -> Vec<u32> {
            let phase = |epoch| schedule.phase(epoch, epochs);
            (1..epochs).filter(|&e| phase(e) != phase(e - 1)).collect()
        };
        assert_eq!(starts(Schedule::Phases, 200), [80, 140, 180]);
        assert_eq!(starts(Schedule::Halving, 300), [160, 240, 280]);
        let rates = [0, 80, 140, 180].map(|e| Schedule::Phases.rate(0.1, e, 200, 0, 1));
        for (rate, expected) in rates.iter().zip([0.1, 0.01, 0.001, 0.0001]) {
            assert!((rate - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn cosine_falls_from_the_base_rate_to_zero() {
        let rate = |step| Schedule::Cosine.rate(0.4, 0, 1, step, 100);
        assert_eq!(rate(0), 0.4);
        assert!((rate(50) - 0.2).abs() < 1e-15);
        assert!(rate(100).abs() < 1e-15);
    }
}
