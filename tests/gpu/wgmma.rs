//! Convolutions by wgmma (compute capability 9.0) against the CPU's f64 path, and with noise against noise followed
//! by the convolution. On another device the same cases run on its own kernels.

use noiseforge::gpu::{Gpu, Options};
use noiseforge::ops::batch_norm::Activation;
use noiseforge::ops::fused_conv2d::{self, Epilogue};
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose};
use noiseforge::ops::pool2d::Pool2d;
use noiseforge::ops::{conv2d, noisy_conv2d};
use noiseforge::tensor::{DType, Shape};
use noiseforge::{Result, Tensor};

use crate::batch_norm::normalised;
use crate::conv2d::{Case, Inputs, input_grads};
use crate::harness::{Reference, open_as, rounded, run, run_with, values};

/// n, h, w, c_in, c_out, k, stride, pad, groups.
#[rustfmt::skip]
const CASES: &[[usize; 9]] = &[
    // Ragged in every dimension: images, rows, columns, chunks, columns of a tile.
    [2, 5, 7, 32, 32, 3, 1, 1, 1],
    [1, 9, 33, 40, 72, 3, 1, 1, 1],
    [3, 11, 6, 72, 200, 3, 1, 1, 1],
    // More than an image in a tile; one pixel; fewer images than a tile takes.
    [3, 8, 8, 32, 136, 3, 1, 1, 1],
    [17, 4, 4, 64, 64, 3, 1, 1, 1],
    [70, 2, 2, 32, 136, 3, 1, 1, 1],
    [40, 2, 2, 32, 40, 3, 1, 1, 1],
    [9, 1, 1, 32, 32, 3, 1, 1, 1],
    [130, 1, 2, 32, 32, 3, 1, 1, 1],
    // A large image; no padding, more of it.
    [1, 32, 32, 32, 64, 3, 1, 1, 1],
    [2, 6, 9, 32, 48, 3, 1, 0, 1],
    [2, 5, 6, 32, 48, 3, 1, 2, 1],
    // Groups; kernels of one pixel.
    [2, 5, 4, 64, 128, 3, 1, 1, 2],
    [2, 5, 7, 64, 136, 1, 1, 0, 1],
    [3, 4, 4, 64, 80, 1, 1, 0, 2],
    // Blocks with several tiles, whose weights stay.
    [9, 8, 8, 64, 136, 1, 1, 0, 1],
    [6, 16, 16, 32, 32, 3, 1, 1, 1],
    // Strides.
    [2, 9, 8, 40, 136, 3, 2, 1, 1],
    [3, 6, 5, 64, 64, 3, 2, 2, 2],
    [2, 7, 6, 40, 136, 1, 2, 0, 1],
    [3, 8, 5, 64, 64, 1, 3, 0, 2],
];

/// The kernel's instances, by their numbers; where one has no cut for a shape, another takes its place.
const BLOCKINGS: [Option<u32>; 3] = [Some(7), Some(8), Some(9)];

fn open_blocked(blocking: Option<u32>) -> Gpu {
    open_as(Options {
        blocking,
        ..Options::default()
    })
}

fn cases() -> impl Iterator<Item = (Case, DType)> {
    let types = [DType::BF16, DType::F16];
    let cases = CASES.iter().copied().map(Case::new);
    cases
        .enumerate()
        .map(move |(at, case)| (case, types[at % 2]))
}

/// The kernel multiplies weights rounded to the type of the activations: those round to themselves.
fn inputs(case: &Case, dtype: DType) -> Inputs {
    let mut inputs = case.inputs(dtype);
    inputs.w = rounded(&inputs.w, dtype);
    inputs
}

#[test]
fn agrees_with_the_cpu() {
    for (case, dtype) in cases() {
        let i = inputs(&case, dtype);
        let results = |activation: &dyn Fn(&Tensor) -> Result<Tensor>,
                       parameter: &dyn Fn(&Tensor) -> Result<Tensor>| {
            let (w, b) = (parameter(&i.w)?, parameter(&i.b)?);
            let (x, b) = (activation(&i.x)?, case.bias.then_some(&b));
            let y = conv2d::forward(&x, &w, b, case.conv)?;
            let [dx, gated, masked] = input_grads(&case, &activation(&i.dy)?, &w, &x)?;
            Ok(vec![y, dx, gated, masked])
        };
        let mut all = Vec::new();
        for blocking in BLOCKINGS {
            all.push(run_with(
                || open_blocked(blocking),
                |gpu| results(&|t| t.to_gpu(gpu)?.to_dtype(dtype), &|t| t.to_gpu(gpu)),
            ));
        }
        for other in &all[1..] {
            for (a, b) in all[0].iter().zip(other) {
                assert!(
                    bits(a) == bits(b),
                    "{case:?} {dtype}: other bits in other tiles"
                );
            }
        }
        let found = &all[0];
        assert!(bits(&found[2]) == bits(&found[3]), "{case:?}: the gate");
        let on_cpu = |dtype| {
            let convert = |t: &Tensor| t.to_dtype(dtype);
            results(&convert, &convert).unwrap()
        };
        let (exact, single) = (on_cpu(DType::F64), on_cpu(DType::F32));
        for (i, name) in ["y", "dx"].into_iter().enumerate() {
            let reference = Reference {
                exact: &exact[i],
                single: &single[i],
            };
            reference.assert_close(&format!("{case:?} {name}"), &found[i], dtype);
        }
    }
}

/// More tiles and channels than a block takes, added to what is there; noise in front gives the bits of noise drawn
/// before.
#[test]
fn weight_gradients_agree_with_the_cpu() {
    let more = [
        [9, 16, 16, 64, 136, 3, 1, 1, 1],
        [33, 4, 4, 136, 72, 3, 1, 1, 1],
        [5, 8, 8, 128, 64, 3, 1, 1, 2],
        // A ragged line, no padding, more of it; 3x3 kernels want eight images.
        [6, 7, 9, 40, 72, 3, 1, 1, 1],
        [7, 6, 9, 32, 48, 3, 1, 0, 1],
        [9, 5, 6, 64, 104, 3, 1, 2, 1],
        // Many tiles of a block.
        [40, 16, 8, 64, 32, 3, 1, 1, 1],
        [3, 16, 16, 136, 264, 1, 1, 0, 1],
        [6, 8, 8, 80, 40, 1, 1, 0, 1],
        [9, 9, 11, 40, 72, 3, 2, 1, 1],
        [17, 6, 6, 128, 64, 3, 2, 1, 2],
        [6, 9, 8, 80, 40, 1, 2, 0, 1],
    ];
    let more = more.map(|case| (Case::new(case), DType::BF16));
    for (at, (case, dtype)) in cases().chain(more).enumerate() {
        let i = inputs(&case, dtype);
        let (dw0, db0) = (values(case.w, 21), values(Shape::vector(case.y.c), 22));
        let noise = draw(case.x.n, Normals::Fast);
        let results = |noisy: bool,
                       activation: &dyn Fn(&Tensor) -> Result<Tensor>,
                       parameter: &dyn Fn(&Tensor) -> Result<Tensor>| {
            let (x, dy) = (activation(&i.x)?, activation(&i.dy)?);
            let (mut dw, mut db) = (parameter(&dw0)?, parameter(&db0)?);
            let db_wanted = at % 3 != 0;
            let bias = db_wanted.then_some(&mut db);
            match noisy {
                true => noisy_conv2d::weight_grad(&dy, &x, &noise, &mut dw, bias, case.conv)?,
                false => conv2d::weight_grad(&dy, &x, &mut dw, bias, case.conv)?,
            }
            Ok(vec![dw, db])
        };
        let found = run(|gpu| {
            let activation = |t: &Tensor| t.to_gpu(gpu)?.to_dtype(dtype);
            let parameter = |t: &Tensor| t.to_gpu(gpu);
            let mut all = results(false, &activation, &parameter)?;
            all.extend(results(true, &activation, &parameter)?);
            let drawn = |t: &Tensor| {
                let on_gpu = activation(t)?;
                match t.shape() == case.x && std::ptr::eq(t, &i.x) {
                    true => noise::forward(&on_gpu, &noise),
                    false => Ok(on_gpu),
                }
            };
            all.extend(results(false, &drawn, &parameter)?);
            Ok(all)
        });
        for j in 0..2 {
            let same = bits(&found[2 + j]) == bits(&found[4 + j]);
            assert!(same, "{case:?} {dtype}: other bits with noise in front");
        }
        let on_cpu = |dtype| {
            let convert = |t: &Tensor| t.to_dtype(dtype);
            results(false, &convert, &convert).unwrap()
        };
        let (exact, single) = (on_cpu(DType::F64), on_cpu(DType::F32));
        for (j, name) in ["dw", "db"].into_iter().enumerate() {
            let reference = Reference {
                exact: &exact[j],
                single: &single[j],
            };
            reference.assert_close(&format!("{case:?} {dtype} {name}"), &found[j], DType::F32);
        }
    }
}

fn draw(n: usize, normals: Normals) -> Noise {
    Noise {
        key: Key::consecutive(5, Purpose::Test, 100, n, 3),
        layer: 2,
        sigma: 0.7,
        normals,
    }
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.data::<f32>().iter().map(|v| v.to_bits()).collect()
}

/// In front of a convolution and behind it, over several tiles of a block: the bits of passes of their own.
#[test]
fn noise_on_either_side_is_noise_on_its_own() {
    let shapes = [
        [24, 8, 8, 64, 136, 3, 1, 1, 1],
        [5, 16, 10, 40, 72, 1, 1, 0, 1],
    ];
    let behinds = [
        (Normals::Fast, Normals::Precise, None),
        (
            Normals::Precise,
            Normals::Fast,
            Some(Pool2d { k: 2, stride: 2 }),
        ),
    ];
    for (at, case) in shapes.map(Case::new).into_iter().enumerate() {
        for (i, (before, behind, pool)) in behinds.into_iter().enumerate() {
            let dtype = [DType::BF16, DType::F16][(at + i) % 2];
            let inputs = inputs(&case, dtype);
            for blocking in BLOCKINGS {
                let open = || open_blocked(blocking);
                run_with(open, |gpu| {
                    let x = inputs.x.to_gpu(gpu)?.to_dtype(dtype)?;
                    let (w, b) = (inputs.w.to_gpu(gpu)?, inputs.b.to_gpu(gpu)?);
                    let (noise, next) = (draw(case.x.n, before), draw(case.x.n, behind));
                    let quiet = Epilogue {
                        activation: Activation::Relu,
                        pool,
                        ..Epilogue::default()
                    };
                    let noisy = Epilogue {
                        noise: Some(&next),
                        ..quiet
                    };
                    let input = conv2d::Input::noisy(&x, Some(&noise));
                    let (y, _) = fused_conv2d::forward(input, &w, Some(&b), case.conv, &noisy)?;
                    let x = noise::forward(&x, &noise)?;
                    let (clean, _) = fused_conv2d::forward(&x, &w, Some(&b), case.conv, &quiet)?;
                    let apart = noise::forward(&clean, &next)?;
                    assert!(
                        y.device_bytes()? == apart.device_bytes()?,
                        "{case:?} {dtype} {pool:?} {blocking:?}"
                    );
                    Ok(vec![y])
                });
            }
        }
    }
}

#[test]
fn noise_is_added_as_if_the_noisy_image_were_stored() {
    for (at, (case, dtype)) in cases().enumerate() {
        let i = inputs(&case, dtype);
        let noise = draw(case.x.n, [Normals::Fast, Normals::Precise][at % 3 / 2]);
        let found = run_with(
            || open_blocked(BLOCKINGS[at % 3]),
            |gpu| {
                let x = i.x.to_gpu(gpu)?.to_dtype(dtype)?;
                let (w, b) = (i.w.to_gpu(gpu)?, i.b.to_gpu(gpu)?);
                let b = case.bias.then_some(&b);
                let fused = noisy_conv2d::forward(&x, &noise, &w, b, case.conv)?;
                let noisy = noise::forward(&x, &noise)?;
                Ok(vec![fused, conv2d::forward(&noisy, &w, b, case.conv)?])
            },
        );
        assert!(bits(&found[0]) == bits(&found[1]), "{case:?} {dtype}");
    }
}

/// Alone or in a batch, in whatever tile: the same bits.
#[test]
fn rows_do_not_depend_on_the_batch() {
    for (case, dtype) in cases().filter(|(case, _)| case.x.n > 1) {
        let i = inputs(&case, dtype);
        let rows = [case.x.n - 1];
        let found = run(|gpu: &Gpu| {
            let all = draw(case.x.n, Normals::Fast);
            let mut alone = all.clone();
            alone.key.rows = [all.key.rows[rows[0]]].into();
            let x = i.x.to_gpu(gpu)?.to_dtype(dtype)?;
            let dy = i.dy.to_gpu(gpu)?.to_dtype(dtype)?;
            let w = i.w.to_gpu(gpu)?;
            let y = noisy_conv2d::forward(&x, &all, &w, None, case.conv)?;
            let one = x.gather_rows(&rows)?;
            let dx = conv2d::input_grad(&dy, &w, case.x, case.conv)?;
            let one_dy = dy.gather_rows(&rows)?;
            Ok(vec![
                y.gather_rows(&rows)?,
                noisy_conv2d::forward(&one, &alone, &w, None, case.conv)?,
                dx.gather_rows(&rows)?,
                conv2d::input_grad(&one_dy, &w, one.shape(), case.conv)?,
            ])
        });
        for pair in found.chunks(2) {
            assert!(bits(&pair[0]) == bits(&pair[1]), "{case:?} {dtype}");
        }
    }
}

/// Multiples of 1/4: sums of their products are exact, in whatever order.
fn quarters(shape: Shape, seed: u64) -> Tensor {
    let x = values(shape, seed);
    let data = x.data::<f32>().iter().map(|v| (4.0 * v).round() / 4.0);
    Tensor::from_vec::<f32>(shape, data.collect()).unwrap()
}

/// What stands behind a convolution.
#[derive(Debug, Clone, Copy)]
struct Behind {
    residual: bool,
    pool: bool,
    next: Option<Normals>,
}

/// y, the gradient of a given dy in front of what stands behind the convolution, and the running statistics.
fn fused(gpu: &Gpu, case: &Case, dtype: DType, behind: Behind) -> Result<Vec<Tensor>> {
    let x = quarters(case.x, 1).to_gpu(gpu)?.to_dtype(dtype)?;
    let (w, b) = (quarters(case.w, 2), quarters(Shape::vector(case.w.n), 3));
    let (w, b) = (w.to_gpu(gpu)?, b.to_gpu(gpu)?);
    let residual = quarters(case.y, 4).to_gpu(gpu)?.to_dtype(dtype)?;
    let next = behind.next.map(|normals| draw(case.x.n, normals));
    let epilogue = Epilogue {
        statistics: true,
        residual: behind.residual.then_some(&residual),
        activation: Activation::BoundedRelu(1.5),
        pool: behind.pool.then_some(Pool2d { k: 2, stride: 2 }),
        noise: next.as_ref(),
        record: true,
    };
    let (y, extras) = fused_conv2d::forward(&x, &w, Some(&b), case.conv, &epilogue)?;
    let dy = quarters(y.shape(), 8).to_gpu(gpu)?.to_dtype(dtype)?;
    let dv = fused_conv2d::output_grad(dy, case.y, epilogue.pool, &extras)?;
    // The result itself plays no part.
    let v = Tensor::zeros(case.y, DType::F32).to_gpu(gpu)?;
    let moved = normalised(v, extras.statistics)?.split_off(1);
    Ok([vec![y, dv], moved].concat())
}

/// Sums are exact here: mma.sync, which stands behind its own tests, gives the same bits.
#[test]
fn what_follows_is_what_follows_mma_sync() {
    let shapes = [
        [3, 8, 8, 32, 72, 3, 1, 1, 1],
        [2, 16, 16, 32, 40, 3, 1, 1, 1],
        [2, 7, 9, 32, 136, 3, 1, 1, 1],
        [11, 4, 6, 32, 40, 3, 1, 1, 1],
        [66, 2, 2, 32, 64, 3, 1, 1, 1],
        [3, 5, 4, 64, 96, 3, 1, 1, 2],
        [2, 5, 7, 32, 136, 1, 1, 0, 1],
    ];
    let nexts = [None, Some(Normals::Fast), Some(Normals::Precise)];
    for (at, case) in shapes.map(Case::new).into_iter().enumerate() {
        let dtype = [DType::BF16, DType::F16][at % 2];
        let on_cpu = |dtype: DType| {
            let to = |t: Tensor| t.to_dtype(dtype).unwrap();
            let (x, w) = (to(quarters(case.x, 1)), to(quarters(case.w, 2)));
            let b = to(quarters(Shape::vector(case.w.n), 3));
            let v = conv2d::forward(&x, &w, Some(&b), case.conv).unwrap();
            normalised(v, None).unwrap().split_off(1)
        };
        let (exact, single) = (on_cpu(DType::F64), on_cpu(DType::F32));
        for (residual, pool) in [(false, false), (true, false), (false, true)] {
            let behind = Behind {
                residual,
                pool,
                next: nexts[(at + usize::from(residual) + 2 * usize::from(pool)) % 3],
            };
            let with = |blocking| {
                run_with(
                    || open_blocked(blocking),
                    |gpu| fused(gpu, &case, dtype, behind),
                )
            };
            let number = at + usize::from(residual) + usize::from(pool);
            let (found, expected) = (with(BLOCKINGS[number % 3]), with(Some(0)));
            let what = format!("{case:?} {behind:?} {dtype}");
            assert!(bits(&found[0]) == bits(&expected[0]), "{what}: y");
            assert!(bits(&found[1]) == bits(&expected[1]), "{what}: gradient");
            for i in 0..2 {
                let reference = Reference {
                    exact: &exact[i],
                    single: &single[i],
                };
                let what = format!("{what} {}", ["mean", "variance"][i]);
                reference.assert_close(&what, &found[2 + i], DType::F32);
            }
        }
    }
}
