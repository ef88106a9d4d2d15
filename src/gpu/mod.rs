//! The one place that meets the CUDA driver: devices, memory, launches, graphs.
//!
//! A [`Gpu`] is one device with one stream: everything asked of it happens in the order in which it
//! was asked, and nothing waits for it but reading results back ([`Buffer::to_vec`],
//! [`Gpu::synchronize`]). Memory comes from a pool that hands a freed block out again at once, which
//! is safe because its next user stands behind its last one in the stream.
//!
//! Kernels are compiled by `build.rs`; [`kernels`] holds one typed launcher for each, generated from
//! its signature in `kernels/*.cu`.

mod device;
mod graph;
mod launch;
mod memory;
mod tensor_map;
mod timer;
pub mod tuning;

pub use device::{Gpu, Options, Properties, count, kernels_missing};
pub use graph::Graph;
pub(crate) use graph::{LOOK_EVERY, Repeated};
pub use launch::{Kernel, launch};
pub(crate) use launch::{blocks as launch_blocks, size as launch_size};
pub use memory::{Buffer, Elem, Element, MemoryUse, Ptr};
pub use tensor_map::TensorMap;
pub use timer::Timer;

pub(crate) use memory::Memory;

/// The launchers, one module for every file of `kernels/`.
#[allow(
    missing_docs,
    clippy::too_many_arguments,
    clippy::missing_errors_doc,
    clippy::all,
    rustdoc::all
)]
pub mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// Fatbins by the name of their kernel file, and why there are none.
mod fatbins {
    include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));
}
