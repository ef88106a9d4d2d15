//! Files: `.npy`, safetensors, and writing that never leaves half a file.

pub mod atomic;
pub mod npy;
mod npy_header;
