//! Problems with exact answers, on which attacks and verdicts are tested.

pub mod linear;
