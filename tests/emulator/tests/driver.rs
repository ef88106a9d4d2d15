//! The driver API as cudarc and the engine use it.

mod support;

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;
use noiseforge_emulator::{Mode, exclusive, install};

#[test]
fn kernels_give_the_same_bits_in_every_mode() {
    let emulator = install();
    let _guard = exclusive();
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let module = context.load_module(Ptx::from_binary(vec![0; 64])).unwrap();
    let saxpy = module.load_function("saxpy").unwrap();
    let sum = module.load_function("block_sum").unwrap();
    let x: Vec<f32> = (0..1000).map(|i| (i as f32).sin()).collect();
    let mut first: Option<Vec<u32>> = None;
    for mode in Mode::ALL {
        emulator.set_mode(mode);
        let dx = stream.clone_htod(&x).unwrap();
        let mut dy = stream.clone_htod(&x).unwrap();
        // SAFETY: the kernel writes all four before anything reads them.
        let mut sums = unsafe { stream.alloc::<f32>(4) }.unwrap();
        let config = LaunchConfig {
            grid_dim: (4, 1, 1),
            block_dim: (256, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut launch = stream.launch_builder(&saxpy);
        launch.arg(&mut dy).arg(&dx).arg(&0.5f32).arg(&1000u32);
        // SAFETY: the arguments are the kernel's.
        unsafe { launch.launch(config) }.unwrap();
        let mut launch = stream.launch_builder(&sum);
        launch.arg(&mut sums).arg(&dy).arg(&1000u32);
        // SAFETY: the arguments are the kernel's.
        unsafe { launch.launch(config) }.unwrap();
        let y = stream.clone_dtoh(&sums).unwrap();
        let expected: f64 = x.iter().map(|&v| 1.5 * f64::from(v)).sum();
        let total: f64 = y.iter().map(|&v| f64::from(v)).sum();
        assert!((total - expected).abs() < 1e-4, "{total} {expected}");
        let bits: Vec<u32> = y.iter().map(|v| v.to_bits()).collect();
        assert_eq!(first.get_or_insert(bits.clone()), &bits, "{mode:?}");
    }
    emulator.set_mode(Mode::PLAIN);
    assert_eq!(context.compute_capability().unwrap(), (9, 0));
    let name = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE;
    assert_eq!(context.attribute(name).unwrap(), 32);
}

/// What the engine asks of streams, graphs, memory and devices, at the level of the driver API.
mod api {
    use std::mem::MaybeUninit;
    use std::ptr::null_mut;

    use cudarc::driver::{result, sys};
    use noiseforge_emulator::{Device as Description, Mode, Stats};

    use super::support::{Arg, Device, shape};

    type Status = sys::cudaError_enum;

    fn pinned(len: usize) -> *mut f32 {
        // SAFETY: a size in bytes; the memory is plain numbers.
        unsafe { result::malloc_host(len * 4, 0) }.unwrap().cast()
    }

    #[test]
    fn a_step_is_captured_and_replayed() {
        let d = Device::new();
        let x = d.upload(&[1.0f32; 256]);
        let y = d.upload(&[0.0f32; 256]);
        let args = |a: f32| [d.pointer(&y), d.pointer(&x), Arg::F32(a), Arg::U32(256)];
        let stream = d.stream.cu_stream();
        let capture = |a: f32, launches: usize| {
            let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            // Before the capture: cudarc waits for what was last written there.
            let args = args(a);
            // SAFETY: a live stream.
            unsafe { result::stream::begin_capture(stream, mode) }.unwrap();
            for _ in 0..launches {
                d.launch("saxpy", shape(1, 256), &args).unwrap();
            }
            // SAFETY: capture began above.
            unsafe { result::stream::end_capture(stream) }.unwrap()
        };
        let graph = capture(1.0, 2);
        d.emulator.take_stats();
        assert_eq!(d.read(&y)[0], 0.0, "nothing runs while it is captured");
        let mut executable = null_mut();
        let mut parameters: sys::CUDA_GRAPH_INSTANTIATE_PARAMS = unsafe_zero();
        // SAFETY: live handles throughout; the graph's arguments were copied.
        unsafe {
            sys::cuGraphInstantiateWithParams(&mut executable, graph, &mut parameters)
                .result()
                .unwrap();
            sys::cuGraphUpload(executable, stream).result().unwrap();
            for _ in 0..3 {
                sys::cuGraphLaunch(executable, stream).result().unwrap();
            }
        }
        let stats = d.emulator.take_stats();
        assert_eq!(
            (stats.launches, stats.graph_launches, stats.allocations),
            (6, 3, 0)
        );
        assert_eq!(d.read(&y)[255], 6.0);

        // The same list of launches with another argument replaces it; another list does not.
        let other = capture(10.0, 2);
        let longer = capture(1.0, 3);
        let mut info: sys::CUgraphExecUpdateResultInfo = unsafe_zero();
        // SAFETY: live handles.
        unsafe {
            sys::cuGraphExecUpdate_v2(executable, other, &mut info)
                .result()
                .unwrap();
            assert_eq!(
                sys::cuGraphExecUpdate_v2(executable, longer, &mut info),
                Status::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE
            );
            sys::cuGraphLaunch(executable, stream).result().unwrap();
            for graph in [graph, other, longer] {
                sys::cuGraphDestroy(graph).result().unwrap();
            }
            sys::cuGraphExecDestroy(executable).result().unwrap();
        }
        assert_eq!(d.read(&y)[0], 26.0);
    }

    fn unsafe_zero<T>() -> T {
        // SAFETY: used for structures of the C API that are numbers and pointers only.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }

    #[test]
    fn what_a_capture_forbids() {
        let d = Device::new();
        let x = d.upload(&[1.0f32; 4]);
        let stream = d.stream.cu_stream();
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_GLOBAL;
        let (mut address, mut later) = (0, 0);
        let mut host = [0f32; 4];
        let forbidden: [(&str, &mut dyn FnMut() -> Status); 4] = [
            // SAFETY: live handles and memory throughout.
            ("synchronise", &mut || unsafe {
                sys::cuStreamSynchronize(stream)
            }),
            // SAFETY: live handles and memory.
            ("allocate", &mut || unsafe {
                sys::cuMemAllocAsync(&mut later, 64, stream)
            }),
            // SAFETY: live handles and memory.
            ("allocate now", &mut || unsafe {
                sys::cuMemAlloc_v2(&mut address, 64)
            }),
            // SAFETY: live handles and memory.
            ("copy now", &mut || unsafe {
                let Arg::Pointer(from) = d.pointer(&x) else {
                    unreachable!()
                };
                sys::cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), from, 16)
            }),
        ];
        for (name, call) in forbidden {
            // SAFETY: a live stream.
            unsafe { result::stream::begin_capture(stream, mode) }.unwrap();
            assert_eq!(
                call(),
                Status::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                "{name}"
            );
            let mut graph = null_mut();
            // SAFETY: capture began above.
            let end = unsafe { sys::cuStreamEndCapture(stream, &mut graph) };
            assert_eq!(end, Status::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "{name}");
            assert!(graph.is_null());
        }
        // SAFETY: the default stream's handle is null.
        let default = unsafe { result::stream::begin_capture(null_mut(), mode) };
        assert_eq!(
            default.unwrap_err().0,
            Status::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        );
    }

    #[test]
    fn memory_runs_out_at_the_limit() {
        let d = Device::new();
        let used = d.emulator.memory_used();
        d.emulator.set_memory_limit(used + 1000);
        let buffer = d.uninit::<u8>(600);
        let mut address = 0;
        // SAFETY: an out parameter; a live stream.
        let more = unsafe { sys::cuMemAllocAsync(&mut address, 401, d.stream.cu_stream()) };
        assert_eq!(more, Status::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(result::mem_get_info().unwrap(), (400, used + 1000));
        drop(buffer);
        assert_eq!(result::mem_get_info().unwrap().0, 1000);
        // SAFETY: as above.
        let nothing = unsafe { sys::cuMemAlloc_v2(&mut address, 0) };
        assert_eq!(nothing, Status::CUDA_ERROR_INVALID_VALUE);
        d.emulator.set_memory_limit(16 << 30);
    }

    #[test]
    fn waits_allocations_and_staged_copies_are_counted() {
        let d = Device::new();
        let x = d.upload(&[1.0f32; 64]);
        let Arg::Pointer(address) = d.pointer(&x) else {
            unreachable!()
        };
        let stream = d.stream.cu_stream();
        let page = pinned(64);
        let mut plain = [0f32; 64];
        d.emulator.take_stats();
        // SAFETY: live handles; the sizes are the buffers'.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(page.cast(), address, 256, stream)
                .result()
                .unwrap();
            let quiet = d.emulator.take_stats();
            assert_eq!(
                quiet,
                Stats {
                    copies: 1,
                    ..Stats::default()
                }
            );
            sys::cuMemcpyDtoHAsync_v2(plain.as_mut_ptr().cast(), address, 256, stream)
                .result()
                .unwrap();
            sys::cuMemcpyHtoD_v2(address, page.cast(), 256)
                .result()
                .unwrap();
            sys::cuStreamSynchronize(stream).result().unwrap();
            sys::cuCtxSynchronize().result().unwrap();
            let mut more = 0;
            sys::cuMemAllocAsync(&mut more, 64, stream)
                .result()
                .unwrap();
            sys::cuMemFreeAsync(more, stream).result().unwrap();
            sys::cuMemsetD32Async(address, 7, 64, stream)
                .result()
                .unwrap();
            let loud = d.emulator.take_stats();
            let expected = Stats {
                copies: 2,
                pageable_copies: 1,
                synchronisations: 3,
                allocations: 1,
                frees: 1,
                ..Stats::default()
            };
            assert_eq!(loud, expected);
            sys::cuMemFreeHost(page.cast()).result().unwrap();
            assert_eq!(
                sys::cuMemFreeHost(page.cast()),
                Status::CUDA_ERROR_INVALID_VALUE
            );
            // Copies are checked against the buffers.
            assert_eq!(
                sys::cuMemcpyHtoD_v2(address, plain.as_ptr().cast(), 257),
                Status::CUDA_ERROR_INVALID_VALUE
            );
        }
        let report = d.emulator.last_report().unwrap();
        assert!(
            report.starts_with("copy to the device of 257 bytes: 0 bytes past the end"),
            "{report}"
        );
        assert!(d.read(&x).iter().all(|v| v.to_bits() == 7));
    }

    #[test]
    fn launches_that_no_device_takes() {
        let d = Device::new();
        let y = d.upload(&[0.0f32; 64]);
        let args = [d.pointer(&y), d.pointer(&y), Arg::F32(0.0), Arg::U32(64)];
        for (shape, text) in [
            (shape(1, 1025), "blocks of 1025 x 1 x 1 threads"),
            (shape(1, 0), "blocks of 0 x 1 x 1 threads"),
            (shape(0, 32), "a grid of 0 x 1 x 1 blocks"),
            (
                super::support::Shape {
                    shared: 228 << 10,
                    ..shape(1, 32)
                },
                "at most 232448 can be had",
            ),
        ] {
            let report = d.failure("saxpy", shape, &args);
            assert!(
                report.starts_with("saxpy: ") && report.contains(text),
                "{report}"
            );
        }
    }

    #[test]
    fn events_measure_and_streams_join() {
        let d = Device::new();
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let events = [0, 1].map(|_| d.context.new_event(Some(flags)).unwrap());
        events[0].record(&d.stream).unwrap();
        let x = d.upload(&[1.0f32; 64]);
        events[1].record(&d.stream).unwrap();
        assert!(events[0].elapsed_ms(&events[1]).unwrap() >= 0.0);
        let other = d.context.new_stream().unwrap();
        other.wait(&events[1]).unwrap();
        assert_eq!(other.clone_dtoh(&x).unwrap(), [1.0; 64]);
        let untimed = d.context.new_event(None).unwrap();
        untimed.record(&d.stream).unwrap();
        assert!(untimed.elapsed_ms(&events[1]).is_err());
    }

    #[test]
    fn devices_as_described() {
        let d = Device::new();
        d.emulator.set_device(Description {
            count: 2,
            compute_capability: (8, 0),
            driver_version: 12020,
        });
        assert_eq!(result::device::get_count().unwrap(), 2);
        let second = result::device::get(1).unwrap();
        assert!(result::device::get(2).is_err());
        let name = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        // SAFETY: a device's handle.
        assert_eq!(
            // SAFETY: a device that is there.
            unsafe { result::device::get_attribute(second, name) }.unwrap(),
            8
        );
        let mut version = 0;
        // SAFETY: an out parameter.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .unwrap();
        assert_eq!(version, 12020);
        d.emulator.set_device(Description {
            count: 0,
            ..Description::default()
        });
        // SAFETY: no arguments.
        assert_eq!(unsafe { sys::cuInit(0) }, Status::CUDA_ERROR_NO_DEVICE);
        d.emulator.set_device(Description::default());
    }

    #[test]
    fn what_ran_unchecked_counts_as_initialised() {
        let d = Device::new();
        let y = d.uninit::<f32>(64);
        let x = d.upload(&[2.0f32; 64]);
        // Written by a kernel that leaves no records, read by one that is checked.
        d.launch(
            "three_arguments",
            shape(1, 64),
            &[d.pointer(&y), d.pointer(&x), Arg::U32(64)],
        )
        .unwrap();
        d.emulator.set_mode(Mode {
            check: true,
            ..Mode::PLAIN
        });
        let args = [d.pointer(&x), d.pointer(&y), Arg::F32(1.0), Arg::U32(64)];
        d.launch("saxpy", shape(1, 64), &args).unwrap();
        assert_eq!(d.read(&x), [4.0; 64]);
    }
}
