//! Results that are no tensors, carried bit for bit in tensors, so that the harness compares them
//! between modes.

use noiseforge::gpu::Gpu;
use noiseforge::tensor::Shape;
use noiseforge::{Result, Tensor};

/// 16 bits an element: every such number is an f32.
fn pack(gpu: &Gpu, words: impl Iterator<Item = u16>) -> Result<Tensor> {
    let data: Vec<f32> = words.map(f32::from).collect();
    Tensor::from_vec(Shape::vector(data.len()), data)?.to_gpu(gpu)
}

fn unpack<const N: usize>(t: &Tensor) -> impl Iterator<Item = u64> {
    let join = |words: &[f32; N]| words.iter().rev().fold(0, |all, &w| all << 16 | w as u64);
    t.data::<f32>().as_chunks::<N>().0.iter().map(join)
}

fn words<const N: usize>(v: u64) -> [u16; N] {
    std::array::from_fn(|i| (v >> (16 * i)) as u16)
}

/// Doubles to be compared.
pub fn put_f64(gpu: &Gpu, values: &[f64]) -> Result<Tensor> {
    pack(gpu, values.iter().flat_map(|v| words::<4>(v.to_bits())))
}

/// What [`put_f64`] was given.
pub fn get_f64(t: &Tensor) -> Vec<f64> {
    unpack::<4>(t).map(f64::from_bits).collect()
}

/// Integers to be compared.
pub fn put_u32(gpu: &Gpu, values: &[u32]) -> Result<Tensor> {
    pack(gpu, values.iter().flat_map(|&v| words::<2>(v.into())))
}

/// What [`put_u32`] was given.
pub fn get_u32(t: &Tensor) -> Vec<u32> {
    unpack::<2>(t).map(|v| v as u32).collect()
}
