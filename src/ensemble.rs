//! Ensemble inference.
