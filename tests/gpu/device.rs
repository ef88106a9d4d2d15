//! Opening devices, memory, graphs, faults.

use noiseforge::gpu::{Gpu, Options, kernels};
use noiseforge::tensor::{DType, Shape};
use noiseforge::{Error, Tensor};
use noiseforge_emulator as emulator;

use crate::harness::{emulator, once, open_pooled, values};

/// What `check` says where the emulator shows such a device; nothing on a real GPU.
fn with<R>(device: emulator::Device, check: impl FnOnce() -> R) -> Option<R> {
    let emulator = emulator()?;
    Some(once(|_| {
        emulator.set_device(device);
        let result = check();
        emulator.set_device(emulator::Device::default());
        result
    }))
}

fn open_error(ordinal: usize) -> String {
    Gpu::open_with(
        ordinal,
        Options {
            code: |_| Some(&[0; 16]),
            ..Options::default()
        },
    )
    .unwrap_err()
    .to_string()
}

#[test]
fn every_way_not_to_open_a_device_has_its_words() {
    let usual = emulator::Device::default();
    let count = |count| emulator::Device { count, ..usual };
    let old_driver = emulator::Device {
        driver_version: 12_040,
        ..usual
    };
    let old_device = emulator::Device {
        compute_capability: (7, 5),
        ..usual
    };
    for (device, ordinal, expected) in [
        (usual, 7, "cuda:7: there is one device, cuda:0"),
        (count(3), 3, "cuda:3: there are 3 devices, cuda:0 to cuda:2"),
        (count(0), 0, "cuda:0: the NVIDIA driver finds no device"),
        (
            old_driver,
            0,
            "cuda:0: the NVIDIA driver supports CUDA 12.4, the kernels need 13.0; \
             install driver 580 or newer",
        ),
        (
            old_device,
            0,
            "cuda:0: compute capability 7.5, the kernels need 8.0 (Ampere) or newer",
        ),
    ] {
        let found = with(device, || open_error(ordinal));
        assert!(
            found.is_none_or(|found| found == format!("device {expected}")),
            "{expected}"
        );
    }
    once(|gpu| {
        let without = Options {
            code: |_| None,
            ..Options::default()
        };
        let text = Gpu::open_with(gpu.ordinal(), without)
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("device cuda:0: this build has no GPU kernels ("),
            "{text}"
        );
        assert!(
            text.ends_with("); run scripts/get-nvcc and build again"),
            "{text}"
        );
    });
}

#[test]
fn out_of_memory_says_how_much() {
    let Some(emulator) = emulator() else { return };
    once(|gpu| {
        emulator.set_memory_limit(8 << 20);
        let first = Tensor::full_on(
            &noiseforge::tensor::Device::Gpu(gpu.clone()),
            Shape::new(1, 1024, 1024, 1),
            DType::F32,
            0.0,
        )
        .unwrap();
        let error = gpu.alloc::<f32>(3 << 20).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, Error::OutOfMemory { asked, .. } if asked == 12 << 20),
            "{text}"
        );
        assert!(
            text.starts_with("device cuda:0: out of memory: asked for 12 MiB, "),
            "{text}"
        );
        assert!(
            text.ends_with(" of 8 MiB are free, this program holds 4 MiB"),
            "{text}"
        );
        drop(first);
        // What was given back can be had again.
        gpu.alloc::<f32>(1 << 20).unwrap();
        emulator.set_memory_limit(16 << 30);
    });
}

#[test]
fn freed_blocks_are_handed_out_again() {
    once(|_| {
        let gpu = open_pooled();
        let first = gpu.alloc::<f32>(1000).unwrap();
        let address = first.ptr().address;
        drop(first);
        let before = gpu.memory_use().driver_allocations;
        let second = gpu.alloc::<f32>(990).unwrap();
        assert_eq!(second.ptr().address, address);
        assert_eq!(gpu.memory_use().driver_allocations, before);
    });
}

#[test]
fn a_graph_repeats_its_work_and_keeps_its_memory() {
    once(|_| {
        let gpu = open_pooled();
        let x = values(Shape::vector(5000), 1).to_gpu(&gpu).unwrap();
        let mut sum = x.zeros_like().unwrap();
        // `sum = f16(x)` through a temporary of the graph's own.
        let step = |sum: &mut Tensor| {
            let rounded = x.to_dtype(DType::F16)?.to_dtype(DType::F32)?;
            sum.copy_from(&rounded)
        };
        step(&mut sum).unwrap();
        let expected = sum.to_cpu().unwrap();
        sum.clear().unwrap();
        let (graph, ()) = gpu.capture(|| step(&mut sum)).unwrap();
        // Recording does nothing.
        assert_eq!(sum.to_cpu().unwrap().data::<f32>(), [0.0; 5000]);
        // Memory taken now must not be the graph's.
        let other: Vec<_> = (0..8).map(|_| gpu.zeros::<f32>(5000).unwrap()).collect();
        for _ in 0..3 {
            sum.clear().unwrap();
            graph.launch().unwrap();
            assert_eq!(sum.to_cpu().unwrap().data::<f32>(), expected.data::<f32>());
        }
        for buffer in &other {
            assert_eq!(buffer.to_vec().unwrap(), [0.0; 5000]);
        }
        // After the graph its memory is everybody's again.
        let before = gpu.memory_use().driver_allocations;
        drop(graph);
        let _again = x.to_dtype(DType::F16).unwrap();
        assert_eq!(gpu.memory_use().driver_allocations, before);
    });
}

#[test]
fn a_failed_capture_leaves_the_stream_usable() {
    once(|_| {
        let gpu = open_pooled();
        let error = gpu.capture::<()>(|| Err(Error::Interrupted)).err().unwrap();
        assert!(matches!(error, Error::Interrupted));
        assert_eq!(
            gpu.upload(&[1u32, 2, 3]).unwrap().to_vec().unwrap(),
            [1, 2, 3]
        );
    });
}

#[test]
fn a_fault_names_its_kernel() {
    if emulator().is_none() {
        // A fault would end the process's context.
        return;
    }
    once(|gpu| {
        let x = values(Shape::new(2, 1, 1, 3), 1).to_gpu(gpu).unwrap();
        let mut y = gpu.alloc::<f32>(3).unwrap();
        let rows = gpu.upload(&[1_000_000_000u32]).unwrap();
        let mut source = gpu.upload(x.to_cpu().unwrap().data::<f32>()).unwrap();
        let launched = kernels::tensor::gather_rows(
            gpu,
            DType::F32,
            [1, 1, 1],
            0,
            y.ptr_mut(),
            source.ptr_mut(),
            rows.ptr(),
            3,
            3,
        );
        let text = launched.unwrap_err().to_string();
        assert!(text.contains("gather_rows_f32"), "{text}");
    });
}
