//! Files: `.npy`, safetensors, and writing that never leaves half a file.

pub mod checkpoint;
