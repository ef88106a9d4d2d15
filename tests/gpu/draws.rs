//! Images that convolutions read once for all draws of an ensemble, against the same images repeated.

use noiseforge::gpu::{Gpu, Options};
use noiseforge::models::{Arch, Model};
use noiseforge::nn::{Mode, Pass};
use noiseforge::ops::batch_norm::Activation;
use noiseforge::ops::conv2d::Input;
use noiseforge::ops::ensemble::repeat;
use noiseforge::ops::fused_conv2d::{self, Epilogue};
use noiseforge::ops::noise::{Key, Noise, Normals, Purpose};
use noiseforge::ops::pool2d::Pool2d;
use noiseforge::tensor::{DType, Device};
use noiseforge::{Result, Tensor};

use crate::conv2d::Case;
use crate::harness::{emulator, once, open_as, open_pooled, run_with};
use crate::networks::{images, network};

/// Images, height, width, c_in, c_out, k, stride, pad, groups; and the draws of an image.
#[rustfmt::skip]
const CASES: &[([usize; 9], usize)] = &[
    // Colours; grey; other few channels, with a stride.
    ([2, 5, 7, 3, 10, 3, 1, 1, 1], 3),
    ([3, 4, 6, 1, 24, 3, 1, 1, 1], 5),
    ([1, 9, 9, 5, 8, 3, 2, 0, 1], 4),
    // Whole vectors, several chunks, one tap of a stride, groups.
    ([2, 5, 4, 40, 16, 3, 1, 1, 1], 2),
    ([2, 7, 6, 24, 20, 1, 2, 0, 1], 3),
    ([2, 6, 5, 12, 20, 3, 1, 1, 2], 3),
    // Images of other draws in one tile: small ones, by position where there are enough.
    ([3, 4, 4, 16, 24, 3, 1, 1, 1], 7),
    ([5, 2, 2, 64, 40, 3, 1, 1, 1], 13),
    // What wgmma takes where there is one.
    ([2, 4, 5, 32, 32, 3, 1, 1, 1], 3),
];

/// y, and the gradient that its mask and its pooling let pass.
fn results(gpu: &Gpu, input: Input<'_>, case: &Case, noisy: bool) -> Result<Vec<Tensor>> {
    let i = case.inputs(input.x.dtype());
    let (w, b) = (i.w.to_gpu(gpu)?, i.b.to_gpu(gpu)?);
    let rows = input.x.shape().n * input.draws;
    let next = draw(rows, 3, Normals::Fast);
    let epilogue = Epilogue {
        activation: Activation::Relu,
        pool: (noisy && case.y.h > 1 && case.y.w > 1).then_some(Pool2d { k: 2, stride: 2 }),
        noise: noisy.then_some(&next),
        record: true,
        ..Epilogue::default()
    };
    let (y, extras) = fused_conv2d::forward(input, &w, Some(&b), case.conv, &epilogue)?;
    let dy = Tensor::full_on(&Device::Gpu(gpu.clone()), y.shape(), y.dtype(), 1.0)?;
    let v_shape = case.y.with_n(rows);
    let dv = fused_conv2d::output_grad(dy, v_shape, epilogue.pool, &extras)?;
    Ok(vec![y, dv])
}

fn draw(rows: usize, layer: u16, normals: Normals) -> Noise {
    Noise {
        key: Key::consecutive(5, Purpose::Test, 100, rows, 3),
        layer,
        sigma: 0.7,
        normals,
    }
}

/// The image read once and the repeated one give the same bits.
#[track_caller]
fn check(case: &Case, draws: usize, dtype: DType, normals: Option<Normals>, options: Options) {
    let i = case.inputs(dtype);
    run_with(
        || open_as(options),
        |gpu| {
            let x = i.x.to_gpu(gpu)?.to_dtype(dtype)?;
            let noise = normals.map(|normals| draw(case.x.n * draws, 2, normals));
            let noise = noise.as_ref();
            let repeated = repeat(&x, 0..case.x.n, draws)?;
            let once = Input {
                x: &x,
                draws,
                noise,
            };
            let noisy = normals.is_some();
            let found = results(gpu, once, case, noisy)?;
            let expected = results(gpu, Input::noisy(&repeated, noise), case, noisy)?;
            for (found, expected) in found.iter().zip(&expected) {
                assert!(
                    found.device_bytes()? == expected.device_bytes()?,
                    "{case:?} {draws} {dtype} {normals:?} {:?}",
                    options.blocking
                );
            }
            Ok(found)
        },
    );
}

#[test]
fn an_image_read_once_is_the_image_repeated() {
    for (at, &(sizes, draws)) in CASES.iter().enumerate() {
        let case = Case::new(sizes);
        let plain = Options::default();
        let normals = [None, Some(Normals::Fast), Some(Normals::Precise)];
        for (which, normals) in normals.into_iter().enumerate() {
            check(&case, draws, DType::F32, normals, plain);
            let sixteen = [DType::BF16, DType::F16][(at + which) % 2];
            check(&case, draws, sixteen, normals, plain);
        }
        let tf32 = Options {
            tf32: true,
            ..plain
        };
        check(&case, draws, DType::F32, normals[1], tf32);
    }
}

#[test]
fn in_every_blocking() {
    for (at, &(sizes, draws)) in CASES.iter().enumerate() {
        let case = Case::new(sizes);
        for blocking in if case.x.h <= 4 { 0..7 } else { 0..4 } {
            let options = Options {
                blocking: Some(blocking),
                ..Options::default()
            };
            let dtype = [DType::F16, DType::BF16][at % 2];
            check(&case, draws, dtype, Some(Normals::Fast), options);
        }
    }
}

/// Launches of a frozen network's pass over images and draws, its logits and the rows' gradients.
fn pass(
    gpu: &Gpu,
    model: &Model,
    x: Tensor,
    draws: usize,
    rows: usize,
) -> Result<(u64, Vec<Tensor>)> {
    let pass = Pass {
        mode: Mode::Eval,
        noise: Some(Key::consecutive(1, Purpose::Eval, 5, rows, 2)),
        record: true,
    };
    let mut frozen = model.freeze()?;
    gpu.synchronize()?;
    emulator().map(|e| e.take_stats());
    let z = frozen.forward(x, draws, &pass)?;
    gpu.synchronize()?;
    let launches = emulator().map_or(0, |e| e.take_stats().launches);
    let dx = frozen.backward(z.clone())?;
    Ok((launches, vec![z, dx]))
}

/// Whole networks, and one that begins with no convolution: there the images are repeated.
#[test]
fn networks_read_images_once() {
    let config = |arch, size, width| network(arch, size, width).config().clone();
    let configs = [
        config(Arch::Small, 8, 4),
        config(Arch::ResNeXt29, 8, 8),
        config(Arch::Linear, 4, 1),
    ];
    let (n, draws) = (2, 3);
    for dtype in [DType::F32, DType::BF16] {
        for config in &configs {
            let linear = config.arch == Arch::Linear;
            let x = images(config.input, n, 9);
            run_with(open_pooled, |gpu| {
                let mut model = Model::new(config.clone(), 3)?;
                model.to(&Device::Gpu(gpu.clone()), dtype)?;
                let x = x.to_gpu(gpu)?;
                let repeated = repeat(&x, 0..n, draws)?;
                let (launches, found) = pass(gpu, &model, x, draws, n * draws)?;
                let (least, expected) = pass(gpu, &model, repeated, 1, n * draws)?;
                // Counted by the emulator alone.
                let repeats = u64::from(linear && least > 0);
                assert_eq!(launches, least + repeats, "{} {dtype}", config.arch);
                for (a, b) in found.iter().zip(&expected) {
                    assert!(
                        a.device_bytes()? == b.device_bytes()?,
                        "{} {dtype}",
                        config.arch
                    );
                }
                Ok(found)
            });
        }
    }
}

/// Backward through a frozen network is its input gradients, each gated by the activation in front of it: the last
/// activation alone, behind which stands no convolution, has a pass of its own.
#[test]
fn gates_have_no_passes_of_their_own() {
    let Some(emulator) = emulator() else { return };
    once(|_| {
        let gpu = open_pooled();
        let mut model = network(Arch::ResNeXt29, 8, 16);
        model.to(&Device::Gpu(gpu.clone()), DType::BF16).unwrap();
        let x = images(model.config().input, 2, 9).to_gpu(&gpu).unwrap();
        let pass = Pass {
            mode: Mode::Eval,
            noise: None,
            record: true,
        };
        let mut frozen = model.freeze().unwrap();
        // The first pass packs the weights.
        let mut backward = || {
            let z = frozen.forward(x.clone(), 1, &pass).unwrap();
            gpu.synchronize().unwrap();
            emulator.take_stats();
            frozen.backward(z).unwrap();
            gpu.synchronize().unwrap();
            emulator.take_stats().launches as usize
        };
        backward();
        let launches = backward();
        let input_grads = model.config().convolutions().unwrap().len();
        // Beside them two conversions, the average and the last activation.
        assert_eq!(launches, input_grads + 4);
    });
}
