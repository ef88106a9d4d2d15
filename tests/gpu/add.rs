//! Residual addition.

use noiseforge::ops::add;
use noiseforge::tensor::Shape;

use crate::harness::{DTYPES, once, rounded, run, values};

#[test]
fn adds_every_element() {
    for len in [1, 3, 8, 1000, 4097] {
        let shape = Shape::vector(len);
        for dtype in DTYPES {
            let a = rounded(&values(shape, 1), dtype);
            let b = rounded(&values(shape, 2), dtype);
            let y = run(|gpu| {
                let (a, b) = (
                    a.to_gpu(gpu)?.to_dtype(dtype)?,
                    b.to_gpu(gpu)?.to_dtype(dtype)?,
                );
                // Once beside a, which is shared, and once in its place.
                let beside = add::forward(a.clone(), &b)?;
                Ok(vec![beside, add::forward(a, &b)?])
            });
            let exact = rounded(&add::forward(a, &b).unwrap(), dtype);
            for y in y {
                assert_eq!(y.data::<f32>(), exact.data::<f32>(), "{len} {dtype}");
            }
        }
    }
}

#[test]
fn refuses_another_device() {
    once(|gpu| {
        let a = values(Shape::vector(3), 1);
        let b = a.to_gpu(gpu).unwrap();
        assert_eq!(
            add::forward(b, &a).unwrap_err().to_string(),
            "add::forward: b: expected [1, 1, 1, 3] f32 on cuda:0, found [1, 1, 1, 3] f32 on the CPU"
        );
    });
}
