//! `noiseforge bench --tune`: its measurements, what they change and what they do not.

use noiseforge::Tensor;
use noiseforge::gpu::tuning::{Measurement, Tuning};
use noiseforge::ops::conv2d::predict::{Launch, Pass};
use noiseforge::ops::conv2d::tune::{Effort, measure};
use noiseforge::ops::conv2d::{self, Conv2d};
use noiseforge::tensor::{DType, Shape};

use crate::harness::{emulator, once, values};

const ONCE: Effort = Effort {
    sample: 0.0,
    samples: 1,
    calls: 1,
};

fn launch(pass: Pass, noise: bool) -> Launch {
    Launch {
        pass,
        dtype: DType::BF16,
        x: Shape::new(17, 4, 4, 64),
        draws: 1,
        w: Shape::new(40, 3, 3, 64),
        conv: Conv2d {
            stride: 1,
            pad: 1,
            groups: 1,
        },
        pool: false,
        residual: false,
        noise,
    }
}

#[test]
fn every_blocking_that_fits_is_measured() {
    once(|gpu| {
        let cases = [
            (launch(Pass::Forward, false), "forward"),
            (launch(Pass::Forward, true), "forward"),
            (launch(Pass::InputGrad, false), "input grad"),
        ];
        let before = gpu.tuning().is_empty();
        for (launch, operation) in cases {
            let found = measure(gpu, &launch, ONCE).unwrap();
            let numbers: Vec<u32> = found.iter().map(|m| m.blocking).collect();
            // The last blocking of mma.sync takes images in sixteens of at most 4 pixels; wgmma's are others.
            let by_wgmma = found.iter().all(|m| m.kernel == "conv2d_wgmma");
            let expected = if by_wgmma { 7..10 } else { 0..6 };
            assert_eq!(numbers, expected.collect::<Vec<_>>(), "{operation}");
            for m in &found {
                assert_eq!((m.operation.as_str(), m.n), (operation, 17));
                assert_eq!(m.device, gpu.properties().name);
                assert!(m.microseconds > 0.0);
            }
        }
        assert_eq!(
            gpu.tuning().is_empty(),
            before,
            "what was chosen before comes back"
        );
        assert!(
            measure(gpu, &launch(Pass::WeightGrad, false), ONCE)
                .unwrap()
                .is_empty()
        );
    });
}

#[test]
fn a_table_of_any_content_changes_no_bit() {
    once(|gpu| {
        let l = launch(Pass::Forward, false);
        let x = values(l.x, 1)
            .to_gpu(gpu)
            .unwrap()
            .to_dtype(DType::BF16)
            .unwrap();
        let w = values(l.w, 2).to_gpu(gpu).unwrap();
        let y = || -> Vec<f32> {
            let y: Tensor = conv2d::forward(&x, &w, None, l.conv).unwrap();
            y.to_cpu().unwrap().data::<f32>().to_vec()
        };
        let expected = y();
        let device = gpu.properties().name.clone();
        let kernels = ["mma", "conv2d_wgmma", "none"];
        for (i, blocking) in [0, 3, 5, 6, 7, 9, 0, 10, u32::MAX].into_iter().enumerate() {
            let measurements = kernels.map(|kernel| Measurement {
                device: device.clone(),
                operation: "forward".to_string(),
                dtype: DType::BF16,
                n: l.x.n,
                sizes: l.sizes(),
                kernel: kernel.to_string(),
                blocking,
                microseconds: 1.0 + i as f64,
            });
            gpu.set_tuning(Tuning::new(&measurements, &device));
            assert!(y() == expected, "blocking {blocking}");
        }
    });
}

/// Plans are remembered, until other measurements come.
#[test]
fn a_new_table_is_heeded() {
    let Some(emulator) = emulator() else {
        return;
    };
    once(|gpu| {
        // A stride that mma.sync alone takes.
        let mut l = launch(Pass::Forward, false);
        l.conv.stride = 3;
        let x = values(l.x, 1).to_gpu(gpu).unwrap();
        let x = x.to_dtype(DType::BF16).unwrap();
        let w = values(l.w, 2).to_gpu(gpu).unwrap();
        let device = gpu.properties().name.clone();
        let switches = |blocking| {
            let measurement = Measurement {
                device: device.clone(),
                operation: "forward".to_string(),
                dtype: DType::BF16,
                n: l.x.n,
                sizes: l.sizes(),
                kernel: "mma".to_string(),
                blocking,
                microseconds: 1.0,
            };
            gpu.set_tuning(Tuning::new(&[measurement], &device));
            let run = || {
                emulator.take_stats();
                conv2d::forward(&x, &w, None, l.conv).unwrap();
                gpu.synchronize().unwrap();
                emulator.take_stats().switches
            };
            let (first, second) = (run(), run());
            assert_eq!(first, second, "blocking {blocking}");
            first
        };
        // Their blocks have other barriers.
        assert_ne!(switches(0), switches(3));
    });
}
