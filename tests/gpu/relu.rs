//! ReLU and bounded ReLU, from the output and from a mask.

use noiseforge::Tensor;
use noiseforge::ops::relu;
use noiseforge::tensor::{DType, Shape};

use crate::harness::{DTYPES, once, rounded, run, values};

const SHAPES: [Shape; 6] = [
    Shape::new(1, 1, 1, 1),
    Shape::new(2, 3, 5, 3),
    Shape::new(1, 2, 3, 8),
    Shape::new(3, 5, 5, 20),
    Shape::new(2, 3, 3, 64),
    Shape::new(1, 1, 3, 267),
];

/// With both kinks, infinities and NaN among them. 0.75 is a number of every type.
fn kinked(shape: Shape) -> Tensor {
    let mut x = values(shape, 1);
    let special = [0.0, -0.0, 0.75, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for (x, special) in x
        .data_mut::<f32>()
        .iter_mut()
        .skip(1)
        .step_by(3)
        .zip(special)
    {
        *x = special;
    }
    x
}

fn bits(t: &Tensor) -> Vec<u32> {
    // One NaN is as good as another.
    let bits = |v: &f32| if v.is_nan() { !0 } else { v.to_bits() };
    t.data::<f32>().iter().map(bits).collect()
}

#[test]
fn is_the_cpus_to_the_bit() {
    for shape in SHAPES {
        for cap in [None, Some(0.75)] {
            for dtype in DTYPES {
                let what = format!("{shape} {cap:?} {dtype}");
                let x = rounded(&kinked(shape), dtype);
                let dy = rounded(&values(shape, 2), dtype);
                let outputs = run(|gpu| {
                    let x = x.to_gpu(gpu)?.to_dtype(dtype)?;
                    let dy = dy.to_gpu(gpu)?.to_dtype(dtype)?;
                    let y = relu::forward(x.clone(), cap)?;
                    let dx = relu::backward(dy.clone(), &y, cap)?;
                    let (masked, mask) = relu::forward_mask(x.clone(), cap)?;
                    let dx_masked = relu::backward_mask(dy.clone(), &mask)?;
                    // In place.
                    drop(x);
                    let x = kinked(shape).to_gpu(gpu)?.to_dtype(dtype)?;
                    let in_place = relu::forward(x, cap)?;
                    Ok(vec![y, dx, masked, dx_masked, in_place])
                });
                let y = relu::forward(x.clone(), cap).unwrap();
                let dx = relu::backward(dy.clone(), &y, cap).unwrap();
                let (_, mask) = relu::forward_mask(x, cap).unwrap();
                let dx_masked = relu::backward_mask(dy, &mask).unwrap();
                for (found, expected) in outputs.iter().zip([&y, &dx, &y, &dx_masked, &y]) {
                    assert_eq!(bits(found), bits(expected), "{what}");
                }
                assert_eq!(bits(&dx), bits(&dx_masked), "{what}");
            }
        }
    }
}

#[test]
fn masks_are_the_cpus() {
    for shape in SHAPES {
        let x = kinked(shape);
        let (_, expected) = relu::forward_mask(x.clone(), Some(0.75)).unwrap();
        let expected = expected.to_vec().unwrap();
        run(|gpu| {
            let (_, mask) = relu::forward_mask(x.to_gpu(gpu)?, Some(0.75))?;
            assert_eq!(mask.to_vec()?, expected, "{shape}");
            Ok(vec![])
        });
    }
}

/// A cap that the type rounds down: outputs that were cut lie on it, not below it.
#[test]
fn a_cap_is_rounded_as_outputs_are() {
    let x = Tensor::from_vec(Shape::vector(2), vec![0.5f32, 2.0]).unwrap();
    let cap = Some(0.7001);
    for dtype in [DType::BF16, DType::F16] {
        let dx = run(|gpu| {
            let x = x.to_gpu(gpu)?.to_dtype(dtype)?;
            let y = relu::forward(x.clone(), cap)?;
            Ok(vec![relu::backward(x, &y, cap)?])
        });
        assert_eq!(dx[0].data::<f32>(), [0.5, 0.0], "{dtype}");
    }
}

#[test]
fn refuses_what_does_not_fit() {
    once(|gpu| {
        let x = values(Shape::vector(3), 1);
        let on_gpu = x.to_gpu(gpu).unwrap();
        assert_eq!(
            relu::backward(on_gpu.clone(), &x, None)
                .unwrap_err()
                .to_string(),
            "relu::backward: y: expected [1, 1, 1, 3] f32 on cuda:0, found [1, 1, 1, 3] f32 on the CPU"
        );
        let (_, mask) = relu::forward_mask(x.clone(), None).unwrap();
        assert_eq!(
            relu::backward_mask(on_gpu, &mask).unwrap_err().to_string(),
            "relu::backward_mask: mask: expected one of [1, 1, 1, 3] on cuda:0, found one of [1, 1, 1, 3]"
        );
    });
}
