//! Pooling: values and choices to the bit, means within their roundings.

use noiseforge::Tensor;
use noiseforge::ops::pool2d::{self, Pool2d};
use noiseforge::tensor::{DType, Shape};

use crate::harness::{DTYPES, epsilon, once, rounded, run, values};

const WINDOWS: [Pool2d; 5] = [
    Pool2d { k: 1, stride: 1 },
    Pool2d { k: 2, stride: 2 },
    Pool2d { k: 3, stride: 2 },
    Pool2d { k: 2, stride: 3 },
    Pool2d { k: 3, stride: 1 },
];

const SHAPES: [Shape; 4] = [
    Shape::new(1, 5, 3, 1),
    Shape::new(2, 7, 6, 3),
    Shape::new(1, 4, 5, 24),
    Shape::new(1, 3, 3, 272),
];

/// Few different values, so that many are equal, and some NaN.
fn tied(shape: Shape) -> Tensor {
    let mut x = values(shape, 3);
    for (i, x) in x.data_mut::<f32>().iter_mut().enumerate() {
        *x = (*x * 3.0).round();
        if i % 31 == 7 {
            *x = f32::NAN;
        }
    }
    x
}

fn bits(t: &Tensor) -> Vec<u32> {
    let bits = |v: &f32| if v.is_nan() { !0 } else { v.to_bits() };
    t.data::<f32>().iter().map(bits).collect()
}

/// Elements within `relative` of the magnitude plus `absolute`.
#[track_caller]
fn close(found: &Tensor, exact: &Tensor, relative: f64, absolute: f64, what: &str) {
    for (i, (f, e)) in found
        .to_f64_vec()
        .iter()
        .zip(exact.to_f64_vec())
        .enumerate()
    {
        let allowed = relative * e.abs() + absolute;
        assert!((f - e).abs() <= allowed, "{what} [{i}]: {f} for {e}");
    }
}

#[test]
fn max_pooling_takes_what_the_cpu_takes() {
    for shape in SHAPES {
        for pool in WINDOWS {
            for dtype in DTYPES {
                let what = format!("{shape} {pool:?} {dtype}");
                let x = tied(shape);
                let (y, argmax) = pool2d::max_forward(&x, pool).unwrap();
                let expected = argmax.to_vec().unwrap();
                let dy = rounded(&values(y.shape(), 4), dtype);
                let dx = pool2d::max_backward(&dy, &argmax, shape, pool).unwrap();
                let found = run(|gpu| {
                    let x = x.to_gpu(gpu)?.to_dtype(dtype)?;
                    let dy = dy.to_gpu(gpu)?.to_dtype(dtype)?;
                    let (y, argmax) = pool2d::max_forward(&x, pool)?;
                    assert_eq!(argmax.to_vec()?, expected, "{what}");
                    let dx = pool2d::max_backward(&dy, &argmax, shape, pool)?;
                    Ok(vec![y, dx])
                });
                assert_eq!(bits(&found[0]), bits(&y), "{what}");
                assert_eq!(bits(&found[1]), bits(&rounded(&dx, dtype)), "{what}");
            }
        }
    }
}

#[test]
fn means_are_within_their_roundings() {
    for shape in SHAPES {
        for pool in WINDOWS {
            for dtype in DTYPES {
                let what = format!("{shape} {pool:?} {dtype}");
                let x = rounded(&values(shape, 5), dtype);
                let out = pool.output_shape("test", shape).unwrap();
                let dy = rounded(&values(out, 6), dtype);
                let found = run(|gpu| {
                    let x = x.to_gpu(gpu)?.to_dtype(dtype)?;
                    let dy = dy.to_gpu(gpu)?.to_dtype(dtype)?;
                    let y = pool2d::average_forward(&x, pool)?;
                    Ok(vec![y, pool2d::average_backward(&dy, shape, pool)?])
                });
                let exact = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
                let y = pool2d::average_forward(&exact(&x), pool).unwrap();
                let dx = pool2d::average_backward(&exact(&dy), shape, pool).unwrap();
                // A window's sum of values up to 1 in f32, and one rounding of the mean.
                let sums = 10.0 * epsilon(DType::F32);
                close(&found[0], &y, 1.01 * epsilon(dtype), sums, &what);
                close(&found[1], &dx, 1.01 * epsilon(dtype), sums, &what);
            }
        }
    }
}

#[test]
fn global_means_are_within_their_roundings() {
    let large = Shape::new(2, 17, 31, 5);
    for shape in SHAPES.into_iter().chain([large, Shape::new(3, 1, 1, 9)]) {
        for dtype in DTYPES {
            let what = format!("{shape} {dtype}");
            let x = rounded(&values(shape, 7), dtype);
            let dy = rounded(&values(Shape::new(shape.n, 1, 1, shape.c), 8), dtype);
            let found = run(|gpu| {
                let x = x.to_gpu(gpu)?.to_dtype(dtype)?;
                let dy = dy.to_gpu(gpu)?.to_dtype(dtype)?;
                let y = pool2d::global_average_forward(&x)?;
                Ok(vec![y, pool2d::global_average_backward(&dy, shape)?])
            });
            let exact = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
            let y = pool2d::global_average_forward(&exact(&x)).unwrap();
            let dx = pool2d::global_average_backward(&exact(&dy), shape).unwrap();
            // A thread's sum of up to 9 pixels and the tree over up to 256 threads.
            let sums = 16.0 * epsilon(DType::F32);
            close(&found[0], &y, 1.01 * epsilon(dtype), sums, &what);
            close(&found[1], &dx, 1.01 * epsilon(dtype), sums, &what);
        }
    }
}

#[test]
fn refuses_what_does_not_fit() {
    once(|gpu| {
        let (two, three) = (Pool2d { k: 2, stride: 2 }, Pool2d { k: 3, stride: 2 });
        let x = values(Shape::new(1, 5, 5, 2), 1).to_gpu(gpu).unwrap();
        let (dy, argmax) = pool2d::max_forward(&x, three).unwrap();
        let error = |dy: &Tensor, argmax: &pool2d::Argmax| {
            let x = Shape::new(1, 5, 5, 2);
            pool2d::max_backward(dy, argmax, x, two)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            error(&dy, &argmax),
            "pool2d::max_backward: argmax: expected positions below 4, found 8"
        );
        assert_eq!(
            error(&dy, &vec![0; 8].into()),
            "pool2d::max_backward: argmax: expected 8 entries on cuda:0, one per output, found 8"
        );
    });
}
