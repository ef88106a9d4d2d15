//! The operations: shapes and checks once, forward and backward side by side.
//!
//! `x w b y` are values, `dx dw db dy` their gradients. What backward needs is passed to it; ops
//! remember nothing. Functions that take `&mut` parameter gradients add to them; activation
//! gradients are returned, so overwritten.

pub mod adam;
pub mod add;
pub mod apply;
pub mod batch_norm;
mod bytes;
pub mod conv2d;
pub mod ensemble;
pub mod fused_conv2d;
pub mod isa;
pub mod linear;
pub mod loss;
pub mod margin;
pub mod noise;
pub mod noisy_conv2d;
pub mod pool2d;
pub mod relu;
pub mod sgd;
mod simd;
mod spans;
pub mod step;
pub mod tanh_space;
mod tile;
