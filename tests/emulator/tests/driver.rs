//! The driver API as cudarc and the engine use it.

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
