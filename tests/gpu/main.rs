//! Every op on its GPU path: the real host code and the real kernels, on a GPU or on the emulator.

mod adam;
mod add;
mod apply;
mod batch_norm;
mod conv2d;
mod data;
mod device;
mod draws;
mod ensemble;
mod fused_conv2d;
mod harness;
mod loss;
mod margin;
mod networks;
mod noise;
mod noise_plans;
mod noisy_conv2d;
mod numbers;
mod pool2d;
mod relu;
mod sgd;
mod tanh_space;
mod tensor;
mod tensor_cores;
mod tuning;
mod wgmma;
