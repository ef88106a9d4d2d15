//! The reader of the kernels' interface has its tests beside it.

#[path = "../kernels/interface.rs"]
mod interface;
