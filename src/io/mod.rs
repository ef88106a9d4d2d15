//! Files: `.npy`, safetensors, fingerprints, and writing that never leaves half a file.

pub mod atomic;
pub mod checkpoint;
pub mod fingerprint;
pub mod npy;
mod npy_header;
