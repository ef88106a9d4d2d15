//! Problems with exact answers, on which attacks and verdicts are tested: by the tests, and by
//! `noiseforge selftest` on the user's machine.

pub mod binarisation;
mod checks;
pub mod linear;

pub use checks::{Check, run};
