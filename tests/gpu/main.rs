//! Every op on its GPU path: the real host code and the real kernels, on a GPU or on the emulator.

mod device;
mod harness;
mod tensor;
