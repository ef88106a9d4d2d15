//! Pooling: known answers, an independent reference on ragged shapes, ties, NaN.

use noiseforge::ops::pool2d::*;
use noiseforge::{DType, Shape, Tensor};

/// Whole numbers in -50..=50 with many ties.
fn values(len: usize) -> Vec<f32> {
    (0..len as u64)
        .map(|i| (i * i * 7 + i * 13) as f32 % 101.0 - 50.0)
        .collect()
}

const WINDOWS: [Pool2d; 6] = [
    Pool2d { k: 1, stride: 1 },
    Pool2d { k: 2, stride: 2 },
    Pool2d { k: 3, stride: 2 },
    Pool2d { k: 2, stride: 3 },
    Pool2d { k: 3, stride: 1 },
    Pool2d { k: 5, stride: 5 },
];

const SHAPES: [Shape; 5] = [
    Shape::new(1, 5, 5, 1),
    Shape::new(2, 7, 6, 3),
    Shape::new(3, 5, 9, 17),
    Shape::new(1, 8, 8, 64),
    // More than one thread's block.
    Shape::new(4, 12, 11, 65),
];

/// Positions in `x` of the window of each output, in order.
fn windows(x: Shape, pool: Pool2d) -> Vec<Vec<usize>> {
    let (oh, ow) = (
        (x.h - pool.k) / pool.stride + 1,
        (x.w - pool.k) / pool.stride + 1,
    );
    let mut all = Vec::new();
    for n in 0..x.n {
        for y in 0..oh {
            for z in 0..ow {
                for c in 0..x.c {
                    let at = |i, j| {
                        ((n * x.h + y * pool.stride + i) * x.w + z * pool.stride + j) * x.c + c
                    };
                    all.push(
                        (0..pool.k)
                            .flat_map(|i| (0..pool.k).map(move |j| (i, j)))
                            .map(|(i, j)| at(i, j))
                            .collect(),
                    );
                }
            }
        }
    }
    all
}

#[test]
fn agrees_with_windows_written_out() {
    for shape in SHAPES {
        for pool in WINDOWS {
            let what = format!("{shape} {pool:?}");
            let x = values(shape.len());
            let tensor = Tensor::from_vec(shape, x.clone()).unwrap();
            let (y, taken) = max_forward(&tensor, pool).unwrap();
            let argmax = taken.to_vec().unwrap();
            let mean = average_forward(&tensor, pool).unwrap();
            let dy: Vec<f32> = (0..y.shape().len())
                .map(|i| (i % 23) as f32 + 1.0)
                .collect();
            let (mut dx, mut dmean) = (vec![0.0; x.len()], vec![0.0f64; x.len()]);
            let area = (pool.k * pool.k) as f64;
            for (i, window) in windows(shape, pool).into_iter().enumerate() {
                // The first of the largest.
                let largest = window.iter().map(|&at| x[at]).fold(f32::MIN, f32::max);
                let first = window.iter().position(|&at| x[at] == largest).unwrap();
                assert_eq!(y.data::<f32>()[i], largest, "{what}");
                assert_eq!(usize::from(argmax[i]), first, "{what}");
                dx[window[first]] += dy[i];
                let sum: f64 = window.iter().map(|&at| f64::from(x[at])).sum();
                // Whole numbers: the sum is exact, the mean is rounded twice.
                let error = (f64::from(mean.data::<f32>()[i]) - sum / area).abs();
                assert!(
                    error <= f64::from(f32::EPSILON) * (sum / area).abs(),
                    "{what}"
                );
                for at in window {
                    dmean[at] += f64::from(dy[i]) / area;
                }
            }
            let dy = Tensor::from_vec(y.shape(), dy).unwrap();
            let found = max_backward(&dy, &taken, shape, pool).unwrap();
            assert_eq!(found.data::<f32>(), dx, "{what}");
            let found = average_backward(&dy, shape, pool).unwrap().to_f64_vec();
            for (found, expected) in found.iter().zip(&dmean) {
                let windows = (area + 2.0) * f64::from(f32::EPSILON);
                assert!((found - expected).abs() <= windows * expected, "{what}");
            }
        }
    }
}

#[test]
fn global_average_is_the_mean_of_all_pixels() {
    for shape in SHAPES {
        let x = Tensor::from_vec(shape, values(shape.len())).unwrap();
        let y = global_average_forward(&x).unwrap();
        assert_eq!(y.shape(), Shape::new(shape.n, 1, 1, shape.c));
        let pixels = (shape.h * shape.w) as f32;
        for n in 0..shape.n {
            for c in 0..shape.c {
                let row = &x.data::<f32>()[n * shape.row_len()..(n + 1) * shape.row_len()];
                let sum: f32 = row.iter().skip(c).step_by(shape.c).sum();
                assert_eq!(y.data::<f32>()[n * shape.c + c], sum / pixels);
            }
        }
        let dx = global_average_backward(&y, shape).unwrap();
        let last = y.data::<f32>()[shape.n * shape.c - 1] * (1.0 / pixels);
        assert_eq!(dx.data::<f32>()[shape.len() - 1], last);
    }
}

#[test]
fn nan_wins_and_equals_keep_the_first() {
    let nan = f32::NAN;
    let x = Tensor::from_vec(
        Shape::new(1, 2, 2, 4),
        vec![
            1.0, nan, 5.0, -0.0, 2.0, 3.0, 5.0, 0.0, nan, 4.0, 5.0, 0.0, 9.0, 9.0, 5.0, 0.0,
        ],
    )
    .unwrap();
    let (y, argmax) = max_forward(&x, Pool2d { k: 2, stride: 2 }).unwrap();
    let y = y.data::<f32>();
    assert!(y[0].is_nan() && y[1].is_nan());
    assert_eq!(y[2], 5.0);
    assert_eq!(argmax.to_vec().unwrap(), [2, 0, 0, 0]);
}

#[test]
fn refuses_what_does_not_fit() {
    let x = Tensor::zeros(Shape::new(1, 4, 3, 2), DType::F32);
    let two = Pool2d { k: 2, stride: 2 };
    let max = |pool| max_forward(&x, pool).unwrap_err().to_string();
    assert_eq!(
        max(Pool2d { k: 4, stride: 1 }),
        "pool2d::max_forward: x: expected at least one image of 4 x 4 pixels, found [1, 4, 3, 2]"
    );
    assert_eq!(
        max(Pool2d { k: 0, stride: 1 }),
        "pool2d::max_forward: pool.k: expected at least 1, found 0"
    );
    assert_eq!(
        max(Pool2d { k: 2, stride: 0 }),
        "pool2d::max_forward: pool.stride: expected at least 1, found 0"
    );
    assert_eq!(
        max(Pool2d { k: 17, stride: 1 }),
        "pool2d::max_forward: pool.k: expected at most 16, found 17"
    );
    let dy = Tensor::zeros(Shape::new(1, 2, 1, 2), DType::F32);
    let back = |dy: &Tensor, argmax: &[u8]| {
        max_backward(dy, &argmax.to_vec().into(), x.shape(), two)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        back(&x, &[0; 4]),
        "pool2d::max_backward: dy: expected [1, 2, 1, 2] f32, found [1, 4, 3, 2] f32"
    );
    assert_eq!(
        back(&dy, &[0; 3]),
        "pool2d::max_backward: argmax: expected 4 entries, one per output, found 3"
    );
    assert_eq!(
        back(&dy, &[0, 1, 2, 4]),
        "pool2d::max_backward: argmax: expected positions below 4, found 4"
    );
    assert_eq!(
        average_backward(&x, x.shape(), two)
            .unwrap_err()
            .to_string(),
        "pool2d::average_backward: dy: expected [1, 2, 1, 2] f32, found [1, 4, 3, 2] f32"
    );
    assert_eq!(
        global_average_backward(&x, x.shape())
            .unwrap_err()
            .to_string(),
        "pool2d::global_average_backward: dy: expected [1, 1, 1, 2] f32, found [1, 4, 3, 2] f32"
    );
}
