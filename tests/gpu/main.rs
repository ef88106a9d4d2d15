//! Every op on its GPU path: the real host code and the real kernels, on a GPU or on the emulator.

mod adam;
mod data;
mod device;
mod ensemble;
mod harness;
mod networks;
mod loss;
mod margin;
mod numbers;
mod sgd;
mod tanh_space;
mod tensor;
