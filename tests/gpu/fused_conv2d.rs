//! The fused convolution: the places of the noise against each other, the CPU's composition, statistics
//! gathered in front of a batch norm, batch norm folded.

use noiseforge::gpu::{Gpu, Options};
use noiseforge::ops::apply::{self, Norm, Then};
use noiseforge::ops::batch_norm::{self, Activation, Partials, Running};
use noiseforge::ops::conv2d::{self, Input};
use noiseforge::ops::fused_conv2d::{self, Epilogue};
use noiseforge::ops::noise::{Key, Noise, Normals, Purpose};
use noiseforge::ops::noisy_conv2d;
use noiseforge::ops::pool2d::Pool2d;
use noiseforge::tensor::{DType, Device, Shape};
use noiseforge::{Result, Tensor};

use crate::batch_norm::{check, normalised};
use crate::conv2d::{Case, Inputs};
use crate::harness::{DTYPES, open_as, run, run_with, values};
use crate::noise::anew;

const TWO: Pool2d = Pool2d { k: 2, stride: 2 };

/// n, h, w, c_in, c_out, k, stride, pad, groups.
#[rustfmt::skip]
const CASES: &[[usize; 9]] = &[
    [2, 5, 7, 3, 10, 3, 1, 1, 1],
    [1, 7, 5, 24, 16, 3, 2, 1, 1],
    [2, 5, 7, 24, 70, 1, 1, 0, 1],
    [5, 4, 4, 16, 24, 3, 1, 1, 1],
    [2, 6, 5, 12, 20, 3, 1, 1, 2],
    [3, 2, 2, 72, 32, 3, 1, 1, 1],
];

/// What stands behind the convolution of a case.
#[derive(Debug, Clone, Copy)]
struct Behind {
    residual: bool,
    activation: Activation,
    pool: Option<Pool2d>,
    /// Precise normals are the CPU's to the bit.
    normals: Option<Normals>,
}

fn behinds() -> Vec<Behind> {
    let activations = [
        Activation::Relu,
        Activation::BoundedRelu(0.9),
        Activation::Identity,
    ];
    let mut all = Vec::new();
    for residual in [false, true] {
        for pool in [None, Some(TWO)] {
            for normals in [None, Some(Normals::Precise)] {
                all.push(Behind {
                    residual,
                    activation: activations[all.len() % 3],
                    pool,
                    normals,
                });
            }
        }
    }
    all
}

fn draw(n: usize, layer: u16, normals: Normals) -> Noise {
    Noise {
        key: Key::consecutive(5, Purpose::Test, 100, n, 3),
        layer,
        sigma: 0.3,
        normals,
    }
}

/// y, the gradients in x and in the residual.
fn pass(
    case: &Case,
    behind: &Behind,
    inputs: &Inputs,
    on: impl Fn(&Tensor, bool) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let (x, w, b) = (
        on(&inputs.x, true)?,
        on(&inputs.w, false)?,
        on(&inputs.b, false)?,
    );
    let residual = on(&inputs.dy, true)?;
    let noise = draw(case.x.n, 1, Normals::Precise);
    let next = behind.normals.map(|normals| draw(case.x.n, 2, normals));
    let epilogue = Epilogue {
        residual: behind.residual.then_some(&residual),
        activation: behind.activation,
        pool: behind.pool,
        noise: next.as_ref(),
        record: true,
        ..Epilogue::default()
    };
    let input = Input::noisy(&x, Some(&noise));
    let (y, extras) = fused_conv2d::forward(input, &w, Some(&b), case.conv, &epilogue)?;
    let dy = on(&values(y.shape(), 8), true)?;
    let dv = fused_conv2d::output_grad(dy, case.y, behind.pool, &extras)?;
    let dx = conv2d::input_grad(&dv, &w, case.x, case.conv)?;
    Ok(vec![y, dx, dv])
}

/// The cases and what follows them, every dtype in turn.
fn all() -> impl Iterator<Item = (Case, Behind, DType)> {
    let cases = CASES.iter().copied().map(Case::new);
    let pairs = cases.flat_map(|case| behinds().into_iter().map(move |b| (case, b)));
    let fits = |(case, b): &(Case, Behind)| b.pool.is_none() || case.y.h >= 2 && case.y.w >= 2;
    let dtypes = DTYPES.into_iter().cycle();
    pairs.filter(fits).zip(dtypes).map(|((c, b), t)| (c, b, t))
}

/// Without a kink between them: 16-bit results may lie on the other side of one.
#[test]
fn follows_the_cpu_in_f64() {
    for (case, mut behind, dtype) in all() {
        if dtype != DType::F32 {
            behind.activation = Activation::Identity;
        }
        let smooth = dtype == DType::F32 || behind.pool.is_none();
        let inputs = case.inputs(dtype);
        let found = run(|gpu| {
            pass(&case, &behind, &inputs, |t, activation| {
                let t = t.to_gpu(gpu)?;
                if activation { t.to_dtype(dtype) } else { Ok(t) }
            })
        });
        let cpu = |to| pass(&case, &behind, &inputs, |t, _| t.to_dtype(to)).unwrap();
        let (single, exact) = (cpu(DType::F32), cpu(DType::F64));
        let what = format!("{case:?} {behind:?} {dtype}");
        // Of a pooled 16-bit result the gradient may go to a neighbour as large.
        let count = if smooth { 3 } else { 1 };
        // The input is rounded behind its noise, the convolution's result, the result in front of its
        // noise and behind it.
        check(
            &found[..count],
            &single[..count],
            &exact[..count],
            dtype,
            5,
            &what,
        );
    }
}

/// In the epilogue, in a pass of its own or in the next convolution's load: the same bits.
#[test]
fn the_place_of_the_noise_does_not_show() {
    for (case, behind, dtype) in all().filter(|(_, b, _)| b.normals.is_some()) {
        let inputs = case.inputs(dtype);
        run(|gpu: &Gpu| {
            let activation = |t: &Tensor| t.to_gpu(gpu)?.to_dtype(dtype);
            let (x, w, b) = (
                activation(&inputs.x)?,
                inputs.w.to_gpu(gpu)?,
                inputs.b.to_gpu(gpu)?,
            );
            let residual = activation(&inputs.dy)?;
            let next = anew(&draw(case.x.n, 2, Normals::Fast));
            let quiet = Epilogue {
                residual: behind.residual.then_some(&residual),
                activation: behind.activation,
                pool: behind.pool,
                ..Epilogue::default()
            };
            let noisy = Epilogue {
                noise: Some(&next),
                ..quiet
            };
            let y = |epilogue| fused_conv2d::forward(&x, &w, Some(&b), case.conv, epilogue);
            let (here, clean) = (y(&noisy)?.0, y(&quiet)?.0);
            let k = if clean.shape().h > 1 { 3 } else { 1 };
            let w = values(Shape::new(12, k, k, clean.shape().c), 9).to_gpu(gpu)?;
            let conv = conv2d::Conv2d {
                stride: 1,
                pad: k / 2,
                groups: 1,
            };
            let then = Then {
                noise: Some(&next),
                ..Then::default()
            };
            let between = apply::forward(clean.clone(), Norm::None, &then)?.0;
            assert!(
                here.device_bytes()? == between.device_bytes()?,
                "{case:?} {behind:?} {dtype}"
            );
            let here = conv2d::forward(&here, &w, None, conv)?;
            let there = noisy_conv2d::forward(&clean, &next, &w, None, conv)?;
            assert!(
                here.device_bytes()? == there.device_bytes()?,
                "{case:?} {behind:?} {dtype}"
            );
            Ok(vec![here])
        });
    }
}

/// A pool takes the first of the largest rounded values, in the convolution's kernel as in the pass behind it: which of
/// them pools may depend on the batch.
#[test]
fn where_a_pool_stands_does_not_show() {
    let cases = [
        [3, 4, 4, 16, 24, 3, 1, 1, 1],
        [2, 6, 5, 12, 20, 3, 1, 1, 2],
        [3, 8, 8, 32, 40, 3, 1, 1, 1],
        [9, 2, 2, 32, 32, 3, 1, 1, 1],
    ];
    for (at, case) in cases.map(Case::new).into_iter().enumerate() {
        let dtype = [DType::BF16, DType::F16][at % 2];
        let mut inputs = case.inputs(dtype);
        // Large enough that many values of a window round to one.
        for b in inputs.b.data_mut::<f32>() {
            *b += 60.0;
        }
        let activation = [Activation::Relu, Activation::BoundedRelu(60.1)][at / 2];
        for blocking in [Some(0), Some(7), None] {
            let options = Options {
                blocking,
                ..Options::default()
            };
            run_with(
                || open_as(options),
                |gpu| {
                    let to = |t: &Tensor| t.to_gpu(gpu)?.to_dtype(dtype);
                    let (x, w, b) = (to(&inputs.x)?, inputs.w.to_gpu(gpu)?, inputs.b.to_gpu(gpu)?);
                    let epilogue = Epilogue {
                        activation,
                        pool: Some(TWO),
                        record: true,
                        ..Epilogue::default()
                    };
                    let (y, extras) =
                        fused_conv2d::forward(&x, &w, Some(&b), case.conv, &epilogue)?;
                    let dy = to(&values(y.shape(), 8))?;
                    let dv = fused_conv2d::output_grad(dy.clone(), case.y, Some(TWO), &extras)?;
                    let v = conv2d::forward(&x, &w, Some(&b), case.conv)?;
                    let then = Then {
                        activation,
                        pool: Some(TWO),
                        record: true,
                        ..Then::default()
                    };
                    let (apart, saved) = apply::forward(v, Norm::None, &then)?;
                    let saved = saved.expect("it was recorded");
                    let same = apply::backward(dy, None, saved, None)?.dx;
                    assert!(
                        y.device_bytes()? == apart.device_bytes()?,
                        "{case:?} {dtype}: y"
                    );
                    assert!(
                        dv.device_bytes()? == same.device_bytes()?,
                        "{case:?} {dtype}: dv"
                    );
                    Ok(vec![y, dv])
                },
            );
        }
    }
}

/// A batch norm behind the convolution with the statistics it gathered, and with its own.
#[test]
fn statistics_are_the_batch_norms() {
    for case in CASES.iter().copied().map(Case::new) {
        let inputs = case.inputs(DType::F32);
        let train = |device: &Device, dtype: DType, gathered: bool| -> Result<Vec<Tensor>> {
            let on = |t: &Tensor| t.to_dtype(dtype)?.to(device);
            let (x, w, b) = (on(&inputs.x)?, on(&inputs.w)?, on(&inputs.b)?);
            let epilogue = Epilogue {
                statistics: true,
                ..Epilogue::default()
            };
            let (v, extras) = fused_conv2d::forward(&x, &w, Some(&b), case.conv, &epilogue)?;
            normalised(v, extras.statistics.filter(|_| gathered))
        };
        let exact = train(&Device::Cpu, DType::F64, true).unwrap();
        let single = train(&Device::Cpu, DType::F32, true).unwrap();
        for gathered in [true, false] {
            let found = run(|gpu| train(&Device::Gpu(gpu.clone()), DType::F32, gathered));
            check(
                &found,
                &single,
                &exact,
                DType::F32,
                1,
                &format!("{case:?} {gathered}"),
            );
        }
    }
}

/// Parts of any size, one of them empty.
#[test]
fn parts_are_merged_by_their_counts() {
    let shape = Shape::new(2, 3, 5, 7);
    let x = values(shape, 1);
    let data = x.data::<f32>();
    let (mut partial, mut counts) = (Vec::new(), Vec::new());
    let mut from = 0;
    for count in [3, 0, 11, 1, 15] {
        let pixels: Vec<&[f32]> = data.chunks(shape.c).skip(from).take(count).collect();
        from += count;
        let first = |c: usize| pixels.first().map_or(f32::NAN, |p| p[c]);
        let mean = |c: usize| {
            pixels
                .iter()
                .map(|p| f64::from(p[c] - first(c)))
                .sum::<f64>()
                / count as f64
        };
        let m2 = |c: usize| -> f64 {
            let away = |p: &&[f32]| f64::from(p[c] - first(c)) - mean(c);
            pixels.iter().map(away).map(|d| d * d).sum()
        };
        partial.extend((0..shape.c).map(first));
        partial.extend((0..shape.c).map(|c| mean(c) as f32));
        partial.extend((0..shape.c).map(|c| m2(c) as f32));
        counts.push(count as u32);
    }
    assert_eq!(from, shape.pixels());
    let found = run(|gpu| {
        let (partial, counts) = (gpu.upload(&partial)?, gpu.upload(&counts)?);
        let partials = Partials::on_device(shape, partial, counts)?;
        normalised(x.to_gpu(gpu)?, Some(partials))
    });
    let single = normalised(x.clone(), None).unwrap();
    let exact = normalised(x.to_dtype(DType::F64).unwrap(), None).unwrap();
    check(&found, &single, &exact, DType::F32, 1, "parts");
}

#[test]
fn folding_is_the_cpus() {
    for case in CASES.iter().copied().map(Case::new) {
        let inputs = case.inputs(DType::F32);
        let vector = Shape::vector(case.w.n);
        let mut var = values(vector, 31);
        var.data_mut::<f32>().iter_mut().for_each(|v| *v += 1.5);
        let (gamma, mean) = (values(vector, 32), values(vector, 33));
        let folded = |to: &dyn Fn(&Tensor) -> Result<Tensor>, all: bool| -> Result<Vec<Tensor>> {
            let running = Running {
                mean: to(&mean)?,
                var: to(&var)?,
            };
            let (b, gamma) = (to(&inputs.b)?, to(&gamma)?);
            let affine = all.then_some((&gamma, &b));
            let (w, b) = batch_norm::fold(&to(&inputs.w)?, all.then_some(&b), affine, &running)?;
            Ok(vec![w, b])
        };
        for all in [true, false] {
            let found = run(|gpu| folded(&|t| t.to_gpu(gpu), all));
            let cpu = folded(&|t| Ok(t.clone()), all).unwrap();
            for (a, b) in found.iter().zip(&cpu) {
                // Both round the same f64 arithmetic.
                assert_eq!(a.data::<f32>(), b.data::<f32>(), "{case:?}");
            }
        }
    }
}
