//! Philox4x32-10, a counter-based generator (Salmon et al. 2011).
