//! Gradient validation by directional differences in double precision.
