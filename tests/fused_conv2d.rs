//! fused_conv2d against the single ops, and batch norm folded into a convolution.

mod common;

use noiseforge::ops::batch_norm::{self, Activation, Running};
use noiseforge::ops::conv2d::{self, Conv2d, Input};
use noiseforge::ops::ensemble::repeat;
use noiseforge::ops::fused_conv2d::{self, Epilogue};
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose};
use noiseforge::ops::pool2d::{self, Pool2d};
use noiseforge::ops::{add, relu};
use noiseforge::{DType, Shape, Tensor};

const SAME: Conv2d = Conv2d {
    stride: 1,
    pad: 1,
    groups: 1,
};
const TWO: Pool2d = Pool2d { k: 2, stride: 2 };
const X: Shape = Shape::new(3, 5, 7, 6);
const W: Shape = Shape::new(11, 3, 3, 6);

fn values(shape: Shape, seed: u64, dtype: DType) -> Tensor {
    let data = common::values(shape.len(), seed);
    Tensor::from_vec(shape, data)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

fn draw(layer: u16) -> Noise {
    Noise {
        key: Key::consecutive(5, Purpose::Test, 100, X.n, 3),
        layer,
        sigma: 0.7,
        normals: Normals::Fast,
    }
}

fn bits(t: &Tensor) -> Vec<u64> {
    t.to_f64_vec().into_iter().map(f64::to_bits).collect()
}

#[test]
fn is_the_single_ops_to_the_bit() {
    let (before, behind) = (draw(1), draw(2));
    for dtype in [DType::F32, DType::F64] {
        let (x, w) = (values(X, 1, dtype), values(W, 2, dtype));
        let b = values(Shape::vector(W.n), 3, dtype);
        let v_shape = SAME.output_shape("test", X, W).unwrap();
        let residual = values(v_shape, 4, dtype);
        let activations = [
            (Activation::Identity, None),
            (Activation::Relu, Some(None)),
            (Activation::BoundedRelu(1.5), Some(Some(1.5))),
        ];
        for (i, (activation, cap)) in activations.into_iter().enumerate() {
            for pool in [None, Some(TWO)] {
                for parts in 0..8 {
                    let noise = (parts & 1 != 0).then_some(&before);
                    let epilogue = Epilogue {
                        statistics: i == 0,
                        residual: (parts & 2 != 0).then_some(&residual),
                        activation,
                        pool,
                        noise: (parts & 4 != 0).then_some(&behind),
                        record: true,
                    };
                    let what = format!("{dtype} {parts} {activation:?} {pool:?}");
                    let input = Input::noisy(&x, noise);
                    let (y, extras) =
                        fused_conv2d::forward(input, &w, Some(&b), SAME, &epilogue).unwrap();
                    let noisy = noise.map_or(x.clone(), |n| noise::forward(&x, n).unwrap());
                    let v = conv2d::forward(&noisy, &w, Some(&b), SAME).unwrap();
                    let u = match epilogue.residual {
                        Some(r) => add::forward(v, r).unwrap(),
                        None => v,
                    };
                    let u = match cap {
                        Some(cap) => relu::forward(u, cap).unwrap(),
                        None => u,
                    };
                    let (clean, argmax) = match pool {
                        Some(pool) => {
                            let (y, argmax) = pool2d::max_forward(&u, pool).unwrap();
                            (y, Some(argmax))
                        }
                        None => (u.clone(), None),
                    };
                    let expected = match epilogue.noise {
                        Some(noise) => noise::forward(&clean, noise).unwrap(),
                        None => clean,
                    };
                    assert!(bits(&y) == bits(&expected), "{what}");
                    assert_eq!(extras.statistics.is_some(), epilogue.statistics);

                    let dy = values(y.shape(), 5, dtype);
                    let found =
                        fused_conv2d::output_grad(dy.clone(), v_shape, pool, &extras).unwrap();
                    let du = match (pool, &argmax) {
                        (Some(pool), Some(argmax)) => {
                            pool2d::max_backward(&dy, argmax, v_shape, pool).unwrap()
                        }
                        _ => dy,
                    };
                    let dv = match cap {
                        Some(cap) => relu::backward(du, &u, cap).unwrap(),
                        None => du,
                    };
                    assert!(bits(&found) == bits(&dv), "{what}: gradient");
                }
            }
        }
    }
}

/// An image read for all of its draws is the image repeated.
#[test]
fn draws_are_repeated_images_to_the_bit() {
    let draws = 3;
    for dtype in [DType::F32, DType::F64] {
        let (x, w) = (values(X, 1, dtype), values(W, 2, dtype));
        let rows = repeat(&x, 0..X.n, draws).unwrap();
        let noise = Noise {
            key: Key::consecutive(5, Purpose::Test, 100, X.n * draws, 3),
            ..draw(1)
        };
        for noise in [None, Some(&noise)] {
            let y = |input| {
                let (y, _) =
                    fused_conv2d::forward(input, &w, None, SAME, &Epilogue::default()).unwrap();
                bits(&y)
            };
            let read_once = Input {
                x: &x,
                draws,
                noise,
            };
            assert!(y(read_once) == y(Input::noisy(&rows, noise)), "{dtype}");
        }
    }
}

/// A folded network is the same function; in f64 hardly a digit is lost.
#[test]
fn folded_batch_norm_is_batch_norm() {
    let dtype = DType::F64;
    let (x, w) = (values(X, 1, dtype), values(W, 2, dtype));
    let vector = Shape::vector(W.n);
    let [b, gamma, beta, mean] = [3, 4, 5, 6].map(|seed| values(vector, seed, dtype));
    let mut var = values(vector, 7, dtype);
    var.data_mut::<f64>().iter_mut().for_each(|v| *v += 1.5);
    let running = Running { mean, var };
    for b in [None, Some(&b)] {
        for affine in [None, Some((&gamma, &beta))] {
            let v = conv2d::forward(&x, &w, b, SAME).unwrap();
            let (y, _) =
                batch_norm::forward_eval(&v, affine, &running, Activation::Identity).unwrap();
            let (w, b) = batch_norm::fold(&w, b, affine, &running).unwrap();
            let folded = conv2d::forward(&x, &w, Some(&b), SAME).unwrap();
            for (a, b) in y.to_f64_vec().iter().zip(folded.to_f64_vec()) {
                assert!((a - b).abs() < 1e-13, "{a} {b}");
            }
        }
    }
}

#[test]
fn bad_arguments_are_named() {
    let dtype = DType::F32;
    let (x, w) = (values(X, 1, dtype), values(W, 2, dtype));
    let error = |noise: Option<&Noise>, epilogue: &Epilogue<'_>| {
        let input = Input::noisy(&x, noise);
        let found = fused_conv2d::forward(input, &w, None, SAME, epilogue);
        found.err().unwrap().to_string()
    };
    let mut few = draw(1);
    few.key.rows = few.key.rows[1..].into();
    let rows = "fused_conv2d::forward: noise.key.rows: expected 3 entries, one per row of the batch, found 2";
    assert_eq!(error(Some(&few), &Epilogue::default()), rows);
    let behind = Epilogue {
        noise: Some(&few),
        ..Epilogue::default()
    };
    assert_eq!(error(None, &behind), rows);
    let residual = Epilogue {
        residual: Some(&x),
        ..Epilogue::default()
    };
    assert_eq!(
        error(None, &residual),
        "fused_conv2d::forward: residual: expected [3, 5, 7, 11] f32, found [3, 5, 7, 6] f32"
    );
    let activation = Epilogue {
        activation: Activation::BoundedRelu(0.0),
        ..Epilogue::default()
    };
    assert_eq!(
        error(None, &activation),
        "fused_conv2d::forward: activation: expected a bound above 0, found 0"
    );
    let draws = |draws: usize, noise: Option<&Noise>| {
        let input = Input {
            x: &x,
            draws,
            noise,
        };
        let found = fused_conv2d::forward(input, &w, None, SAME, &Epilogue::default());
        found.err().unwrap().to_string()
    };
    for count in [0, usize::MAX] {
        let expected = "expected at least 1, and few enough for 3 images";
        assert_eq!(
            draws(count, None),
            format!("fused_conv2d::forward: draws: {expected}, found {count}")
        );
    }
    assert_eq!(
        draws(2, Some(&draw(1))),
        "fused_conv2d::forward: noise.key.rows: expected 6 entries, one per row of the batch, found 3"
    );
    let pooled = Epilogue {
        pool: Some(TWO),
        ..Epilogue::default()
    };
    let (y, extras) = fused_conv2d::forward(&x, &w, None, SAME, &pooled).unwrap();
    let v_shape = SAME.output_shape("test", X, W).unwrap();
    let found = fused_conv2d::output_grad(y, v_shape, Some(TWO), &extras);
    assert_eq!(
        found.err().unwrap().to_string(),
        "fused_conv2d::output_grad: extras: expected those of a recorded pass, found none"
    );
    let vector = Shape::vector(W.n);
    let running = Running {
        mean: Tensor::zeros(vector, dtype),
        var: Tensor::full(vector, dtype, -1.0),
    };
    assert_eq!(
        batch_norm::fold(&w, None, None, &running)
            .err()
            .unwrap()
            .to_string(),
        "batch_norm::fold: running.var: expected at least 0, found -1 in channel 0"
    );
}
