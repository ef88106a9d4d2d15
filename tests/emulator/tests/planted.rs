//! Tests of the checker: each planted mistake is found, by a message that names its line.

mod support;

use noiseforge_emulator::{Mode, Order};
use support::{Arg, Device, Shape, shape};

const CHECKED: Mode = Mode {
    order: Order::Forward,
    late: true,
    check: true,
    threads: 1,
};

/// The lines that carry the marker of a mistake.
fn lines(mistake: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for file in ["mistakes.cu", "hopper.cu"] {
        let path = format!("{}/planted/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        for (number, line) in text.lines().enumerate() {
            if line.ends_with(&format!("// MISTAKE: {mistake}")) {
                lines.push(format!("planted/{file}:{}", number + 1));
            }
        }
    }
    assert!(!lines.is_empty(), "no line is marked {mistake}");
    lines
}

/// Checks that the launch fails with a report that holds `expected`, the kernel, and the line.
fn found(device: &Device, kernel: &str, shape: Shape, args: &[Arg], expected: &str) {
    let report = device.failure(kernel, shape, args);
    assert!(
        report.contains(expected),
        "{kernel}: {expected:?} is not in: {report}"
    );
    assert!(
        report.contains(&format!("[kernel {kernel}, block (")),
        "{report}"
    );
    assert!(report.contains("), thread ("), "{report}");
    let lines = lines(kernel);
    // A number must not be the start of a longer one.
    let named = |line: &String| {
        report
            .split(line.as_str())
            .skip(1)
            .any(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    assert!(
        lines.iter().any(named),
        "{kernel}: none of {lines:?} is in: {report}"
    );
}

#[test]
fn missing_synchronisation() {
    let d = Device::new();
    d.emulator.set_mode(CHECKED);
    let y = d.uninit::<f32>(64);
    let y = [d.pointer(&y)];
    found(
        &d,
        "missing_barrier",
        shape(1, 64),
        &y,
        "read of uninitialised shared memory",
    );
    found(
        &d,
        "missing_barrier_in_loop",
        shape(1, 64),
        &y,
        "race on shared memory: ",
    );
    found(
        &d,
        "missing_syncwarp",
        shape(1, 32),
        &y,
        "no barrier between",
    );
    found(
        &d,
        "uninitialised_shared",
        shape(1, 64),
        &y,
        "read of uninitialised shared memory",
    );
}

#[test]
fn orders_alone_show_missing_synchronisation() {
    let d = Device::new();
    for (kernel, block) in [
        ("missing_barrier", 64),
        ("missing_barrier_in_loop", 64),
        ("missing_syncwarp", 32),
    ] {
        let mut results = Vec::new();
        for mode in &Mode::ALL[..3] {
            d.emulator.set_mode(*mode);
            let y = d.uninit::<f32>(64);
            d.launch(kernel, shape(1, block), &[d.pointer(&y)]).unwrap();
            results.push(d.read(&y).iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        }
        assert!(
            results.iter().any(|r| *r != results[0]),
            "{kernel}: the same bits in every order"
        );
    }
}

#[test]
fn memory() {
    let d = Device::new();
    d.emulator.set_mode(CHECKED);
    let y = d.uninit::<f32>(64);
    let x = d.upload(&[1.0f32; 64]);
    let (py, px) = (d.pointer(&y), d.pointer(&x));
    found(
        &d,
        "read_past_end",
        shape(1, 64),
        &[py, px],
        "out-of-bounds read of 4 bytes: ",
    );
    let text = "bytes past the end of a device buffer of 256 bytes";
    assert!(
        d.failure("read_past_end", shape(1, 64), &[py, px])
            .contains(text)
    );
    let dynamic = Shape {
        shared: 192,
        ..shape(1, 64)
    };
    found(
        &d,
        "past_dynamic_shared",
        dynamic,
        &[py],
        "out-of-bounds write of 4 bytes in shared memory",
    );
    let fresh = d.uninit::<f32>(64);
    let fresh = d.pointer(&fresh);
    found(
        &d,
        "uninitialised_global",
        shape(1, 64),
        &[py, fresh],
        "read of uninitialised global memory",
    );
    let stale = d.pointer(&d.upload(&[1.0f32; 64]));
    found(
        &d,
        "use_after_free",
        shape(1, 64),
        &[py, stale],
        "FREED device buffer of 256 bytes",
    );
    found(&d, "misaligned_float", shape(1, 32), &[py], "misaligned");
}

#[test]
fn memory_without_the_checker() {
    let d = Device::new();
    let y = d.uninit::<f32>(64);
    let x = d.upload(&[1.0f32; 64]);
    let (py, px) = (d.pointer(&y), d.pointer(&x));
    found(&d, "wild_write", shape(1, 64), &[py], "illegal address 0x");
    let stale = d.pointer(&d.upload(&[1.0f32; 64]));
    found(
        &d,
        "use_after_free",
        shape(1, 64),
        &[py, stale],
        "FREED device buffer of 256 bytes",
    );
    let report = d.failure(
        "past_dynamic_shared",
        Shape {
            shared: 192,
            ..shape(1, 64)
        },
        &[py],
    );
    assert!(
        report.contains("write past the end of dynamic shared memory: byte 192 of 192"),
        "{report}"
    );
    // What is written just behind a buffer is found when it is freed.
    let short = d.upload(&[1.0f32; 60]);
    d.launch(
        "three_arguments",
        shape(1, 64),
        &[d.pointer(&short), px, Arg::U32(64)],
    )
    .unwrap();
    d.emulator.clear_report();
    drop(short);
    let report = d.emulator.last_report().unwrap();
    assert!(
        report.starts_with("write past the end of a device buffer of 240 bytes"),
        "{report}"
    );
}

#[test]
fn arithmetic_and_alignment_in_every_mode() {
    let d = Device::new();
    let y = d.upload(&[0.0f32; 64]);
    let x = d.upload(&[1.0f32; 64]);
    let (py, px) = (d.pointer(&y), d.pointer(&x));
    for mode in Mode::ALL {
        d.emulator.set_mode(mode);
        found(&d, "misaligned_float", shape(1, 32), &[py], "misaligned");
        found(
            &d,
            "misaligned_vector",
            shape(1, 32),
            &[py, px],
            "the access needs 16 bytes of alignment",
        );
        found(
            &d,
            "misaligned_float4",
            shape(1, 32),
            &[py, px],
            "the access needs 16 bytes of alignment",
        );
        found(
            &d,
            "past_a_row",
            shape(1, 64),
            &[py],
            "index 16 is outside the array",
        );
        found(
            &d,
            "divide_by_zero",
            shape(1, 32),
            &[py, Arg::I32(0)],
            "division of an integer by zero",
        );
        found(
            &d,
            "shift_too_far",
            shape(1, 32),
            &[py, Arg::U32(32)],
            "shift by 32 bits",
        );
    }
}

#[test]
fn deadlocks_in_every_mode() {
    let d = Device::new();
    let y = d.uninit::<f32>(64);
    let y = [d.pointer(&y)];
    for mode in Mode::ALL {
        d.emulator.set_mode(mode);
        found(
            &d,
            "barrier_in_branch",
            shape(1, 64),
            &y,
            "waits in __syncthreads",
        );
        let report = d.failure("barrier_in_branch", shape(1, 64), &y);
        assert!(report.contains("deadlock: no thread can go on"), "{report}");
        assert!(report.contains("threads exited: 32 of 64"), "{report}");
        found(
            &d,
            "half_a_shuffle",
            shape(1, 32),
            &y,
            "waits in __shfl_xor_sync",
        );
        found(
            &d,
            "divergent_collectives",
            shape(1, 32),
            &y,
            "divergent warp",
        );
    }
}

#[test]
fn copies_in_flight() {
    let d = Device::new();
    let y = d.uninit::<f32>(256);
    let x = d.upload(&(0..256).map(|i| i as f32).collect::<Vec<_>>());
    let args = [d.pointer(&y), d.pointer(&x)];
    let kernels = [
        ("cp_async_without_wait", 64),
        ("cp_async_wait_off_by_one", 32),
    ];
    for (kernel, block) in kernels {
        // Late, what is in flight is NaN; early, the mistake does not show.
        d.emulator.set_mode(Mode {
            late: true,
            ..Mode::PLAIN
        });
        d.launch(kernel, shape(1, block), &args).unwrap();
        assert!(
            d.read(&y)[..block as usize].iter().any(|v| v.is_nan()),
            "{kernel}"
        );
        d.emulator.set_mode(CHECKED);
        found(
            &d,
            kernel,
            shape(1, block),
            &args,
            "write by the copy engine, no wait between",
        );
    }
}

#[test]
fn races_between_blocks() {
    let d = Device::new();
    d.emulator.set_mode(CHECKED);
    let y = d.upload(&[0.0f32; 1]);
    let partial = d.uninit::<f32>(4);
    let count = d.upload(&[0u32]);
    let py = d.pointer(&y);
    found(
        &d,
        "blocks_race",
        shape(2, 32),
        &[py],
        "race between blocks on global memory",
    );
    let args = [py, d.pointer(&partial), d.pointer(&count)];
    found(
        &d,
        "last_block_without_fence",
        shape(4, 32),
        &args,
        "race between blocks on global memory",
    );
    for mode in Mode::ALL {
        d.emulator.set_mode(mode);
        let count = d.upload(&[0u32]);
        let args = [py, d.pointer(&partial), d.pointer(&count)];
        d.launch("last_block_with_fence", shape(4, 32), &args)
            .unwrap();
        assert_eq!(d.read(&y), [4.0]);
    }
}

#[test]
fn wrong_argument_list() {
    let d = Device::new();
    let y = d.uninit::<f32>(64);
    let x = d.upload(&[1.0f32; 64]);
    let args = [d.pointer(&y), Arg::U32(64), d.pointer(&x)];
    let report = d.failure("three_arguments", shape(1, 64), &args);
    assert!(
        report.starts_with("three_arguments: argument 1 (of 3) is not a pointer to device memory"),
        "{report}"
    );
    let missing = d.failure("three_arguments", shape(1, 64), &args[..1]);
    assert_eq!(
        missing,
        "three_arguments: takes 3 arguments, argument 1 is missing"
    );
    assert!(
        d.failure("no_such_kernel", shape(1, 64), &args)
            .contains("no_such_kernel: no such kernel")
    );
    let parameters = d.emulator.parameters("three_arguments").unwrap();
    assert_eq!(parameters, [(8, true), (8, true), (4, false)]);
    assert_eq!(d.emulator.parameters("no_such_kernel"), None);
}

/// 64 rows of 32 floats, and the map of tiles of 8 rows.
fn tensor(d: &Device) -> (cudarc::driver::CudaSlice<f32>, Arg) {
    let x = d.upload(&(0..64 * 32).map(|i| i as f32).collect::<Vec<_>>());
    let Arg::Pointer(address) = d.pointer(&x) else {
        unreachable!()
    };
    let map = support::tiled_f32(address, &[32, 64], &[32, 8]);
    (x, Arg::Map(map))
}

#[test]
fn mbarriers() {
    let d = Device::new();
    let (_x, map) = tensor(&d);
    let y = d.uninit::<f32>(128);
    let args = [d.pointer(&y), map];
    let with = Shape {
        shared: 2048,
        ..shape(1, 64)
    };
    for mode in Mode::ALL {
        d.emulator.set_mode(mode);
        found(
            &d,
            "wrong_parity",
            with,
            &args,
            "waits in an mbarrier (for parity 1: 1 of 1 arrivals and 0 bytes are missing)",
        );
        found(
            &d,
            "expects_too_much",
            with,
            &args,
            "(for parity 0: 0 of 1 arrivals and 1024 bytes are missing)",
        );
        found(
            &d,
            "mbarrier_without_init",
            with,
            &args[..1],
            "mbarrier used before mbarrier.init",
        );
    }
    d.emulator.set_mode(CHECKED);
    found(
        &d,
        "missing_mbarrier_wait",
        with,
        &args,
        "write by the copy engine, no wait between",
    );
    found(
        &d,
        "expects_too_little",
        with,
        &args,
        "write by the copy engine, no wait between",
    );
    found(
        &d,
        "load_into_stage_in_use",
        with,
        &args,
        "race on shared memory: ",
    );
    // Without the checker: what is in flight is NaN.
    d.emulator.set_mode(Mode {
        late: true,
        ..Mode::PLAIN
    });
    d.launch("missing_mbarrier_wait", with, &args).unwrap();
    assert!(d.read(&y)[..64].iter().all(|v| v.is_nan()));
}

#[test]
fn stores_of_tiles() {
    let d = Device::new();
    let (_x, map) = tensor(&d);
    let with = Shape {
        shared: 1024,
        ..shape(1, 64)
    };
    for mode in Mode::ALL {
        d.emulator.set_mode(mode);
        found(
            &d,
            "store_without_wait",
            with,
            &[map],
            "no cp.async.bulk.wait_group",
        );
    }
    d.emulator.set_mode(CHECKED);
    found(
        &d,
        "store_without_proxy_fence",
        with,
        &[map],
        "with no fence.proxy.async after it",
    );
    d.emulator.set_mode(CHECKED);
    found(
        &d,
        "write_under_store",
        with,
        &[map],
        "the copy engine or tensor core",
    );
}

#[test]
fn clusters() {
    let d = Device::new();
    let y = d.uninit::<f32>(2);
    let args = [d.pointer(&y)];
    let two = Shape {
        cluster: 2,
        ..shape(2, 32)
    };
    d.emulator.set_mode(CHECKED);
    found(&d, "cluster_without_barrier", two, &args, "shared memory");
    found(
        &d,
        "cluster_exits_early",
        two,
        &args,
        "shared memory of block 0 of the cluster, which has exited",
    );
    let report = d.failure(
        "cluster_exits_early",
        Shape {
            cluster: 2,
            ..shape(3, 32)
        },
        &args,
    );
    assert!(
        report.contains("clusters of 2 x 1 x 1 blocks in a grid of 3 x 1 x 1"),
        "{report}"
    );
    assert!(
        d.failure(
            "cluster_exits_early",
            Shape {
                cluster: 9,
                ..shape(9, 32)
            },
            &args
        )
        .contains("clusters of 9")
    );
}

#[test]
fn products_in_flight() {
    let d = Device::new();
    let y = d.uninit::<f32>(128);
    let args = [d.pointer(&y)];
    let with = Shape {
        shared: 4096,
        ..shape(1, 128)
    };
    d.emulator.set_mode(Mode {
        late: true,
        ..Mode::PLAIN
    });
    d.launch("missing_wgmma_wait", with, &args).unwrap();
    assert!(d.read(&y).iter().all(|v| v.is_nan()));
    d.emulator.set_mode(CHECKED);
    found(
        &d,
        "write_under_wgmma",
        with,
        &args,
        "race on shared memory: ",
    );
    found(
        &d,
        "wgmma_without_proxy_fence",
        with,
        &args,
        "with no fence.proxy.async after it",
    );
    let report = d.failure("missing_wgmma_wait", Shape { block: 64, ..with }, &args);
    assert!(
        report.contains("wgmma outside a full warpgroup"),
        "{report}"
    );
}
