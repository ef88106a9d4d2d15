//! Noiseforge: neural networks that carry Gaussian noise, and the laboratory that attacks them.
//!
//! Data flows one way; a lower module never knows a higher one:
//! [`tensor`] → [`ops`] → [`nn`], [`models`], [`optim`] → [`ensemble`], [`attacks`] → the command line.

pub mod attacks;
pub mod audit;
pub mod certify;
pub mod data;
pub mod ensemble;
pub mod error;
pub mod evaluate;
pub mod gpu;
pub mod gradcheck;
pub mod io;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod report;
pub mod rng;
pub mod selftest;
pub mod statistics;
pub mod tensor;
pub mod theory;
pub mod train;
pub mod verdict;

pub use error::{Error, Result};
pub use tensor::{DType, Shape, Tensor};
