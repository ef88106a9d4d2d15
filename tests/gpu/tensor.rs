//! Moving, casting, gathering, counting.

use noiseforge::tensor::{DType, Device, Shape};
use noiseforge::{Result, Tensor};

use crate::harness::{DTYPES, once, rounded, run, values};

#[test]
fn tensors_come_back_as_they_went() {
    for shape in [
        Shape::new(1, 1, 1, 1),
        Shape::new(3, 5, 7, 11),
        Shape::vector(4097),
    ] {
        let x = values(shape, 1);
        let y = run(|gpu| Ok(vec![x.to_gpu(gpu)?]));
        assert_eq!(y[0].data::<f32>(), x.data::<f32>());
    }
}

#[test]
fn casts_round_to_nearest_even() {
    // Halfway cases, values that overflow f16, subnormals, infinities.
    let special = [
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        65519.9,
        65520.0,
        6e-8,
        -1e-40,
        f32::INFINITY,
        0.0,
    ];
    let mut data: Vec<f32> = values(Shape::vector(5000), 2).data::<f32>().to_vec();
    data[..special.len()].copy_from_slice(&special);
    let x = Tensor::from_vec::<f32>(Shape::vector(5000), data).unwrap();
    for dtype in DTYPES {
        let y = run(|gpu| Ok(vec![x.to_gpu(gpu)?.to_dtype(dtype)?]));
        assert_eq!(
            y[0].data::<f32>(),
            rounded(&x, dtype).data::<f32>(),
            "{dtype}"
        );
        let back = run(|gpu| Ok(vec![x.to_gpu(gpu)?.to_dtype(dtype)?.to_dtype(DType::F32)?]));
        assert_eq!(back[0].data::<f32>(), y[0].data::<f32>(), "{dtype}");
    }
}

#[test]
fn rows_are_gathered() {
    let x = values(Shape::new(5, 3, 3, 7), 3);
    let rows = [4, 0, 0, 3, 2, 4, 1];
    for dtype in DTYPES {
        let y = run(|gpu| Ok(vec![x.to_gpu(gpu)?.to_dtype(dtype)?.gather_rows(&rows)?]));
        let expected = rounded(&x, dtype).gather_rows(&rows).unwrap();
        assert_eq!(y[0].data::<f32>(), expected.data::<f32>(), "{dtype}");
    }
}

#[test]
fn values_that_are_not_finite_are_counted() -> Result<()> {
    let mut x = values(Shape::vector(3001), 4);
    for (i, bad) in [
        (0, f32::NAN),
        (1500, f32::INFINITY),
        (3000, f32::NEG_INFINITY),
    ] {
        x.data_mut::<f32>()[i] = bad;
    }
    for dtype in DTYPES {
        let count = once(|gpu| x.to_gpu(gpu)?.to_dtype(dtype)?.count_not_finite())?;
        assert_eq!(count, 3, "{dtype}");
    }
    Ok(())
}

#[test]
fn writing_to_a_shared_tensor_copies_it() -> Result<()> {
    let x = values(Shape::vector(10), 5);
    once(|gpu| {
        let a = x.to_gpu(gpu)?;
        let mut b = a.clone();
        b.clear()?;
        assert_eq!(a.to_cpu()?.data::<f32>(), x.data::<f32>());
        assert_eq!(b.to_cpu()?.data::<f32>(), [0.0; 10]);
        Ok(())
    })
}

#[test]
fn what_a_gpu_does_not_hold_is_refused() {
    let x = values(Shape::vector(3), 6);
    let doubles = x.to_dtype(DType::F64).unwrap();
    once(|gpu| {
        let error = doubles.to_gpu(gpu).unwrap_err().to_string();
        assert_eq!(
            error,
            "Tensor: dtype: expected f32, bf16 or f16 on a GPU, found f64"
        );
        let on_gpu = x.to_gpu(gpu).unwrap();
        let error = on_gpu.expect("op", "x", x.shape(), x.kind()).unwrap_err();
        let text = "op: x: expected [1, 1, 1, 3] f32 on the CPU, found [1, 1, 1, 3] f32 on cuda:0";
        assert_eq!(error.to_string(), text);
        assert_eq!(on_gpu.device(), Device::Gpu(gpu.clone()));
    });
    let error = x.to_dtype(DType::BF16).unwrap_err().to_string();
    assert_eq!(
        error,
        "Tensor::to_dtype: dtype: expected f32 or f64 for a tensor on the CPU, found bf16"
    );
}
