use super::super::Conv2d;
use super::super::predict::{Launch, Pass};
use super::*;
use crate::tensor::Shape;

/// Takes everything by mma.sync.
const A100: Card = CARDS[2];
const PROBES: &str = include_str!("../../../../benches/record/2026-11-26-h100/probes.csv");

fn near(what: &str, a: f64, b: f64, share: f64) {
    assert!((a / b - 1.0).abs() <= share, "{what}: {a} for {b}");
}

/// 128 > 128 channels, 16x16 pixels, 1024 images.
fn launch(noise: bool) -> Launch {
    Launch {
        pass: Pass::Forward,
        dtype: DType::BF16,
        x: Shape::new(1024, 16, 16, 128),
        draws: 1,
        w: Shape::new(128, 3, 3, 128),
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
fn an_h100_is_what_was_measured() {
    let measured = |probe: &str| -> f64 {
        let mut lines = PROBES.lines().filter(|line| line.starts_with(probe));
        let line = lines.next().expect(probe);
        line[probe.len()..]
            .split(',')
            .find_map(|f| f.parse().ok())
            .expect(probe)
    };
    near("mma.sync", H100.peak() / 1e12, measured("mma.sync"), 0.03);
    near(
        "copy",
        H100.memory / 1e9,
        measured("copy by a kernel"),
        0.03,
    );
    near("L2", H100.l2 / 1e9, measured("L2 read"), 0.03);
    near("MUFU", MUFU, measured("MUFU (ex2)"), 0.01);
    near("graph node", H100.node * 1e6, measured("graph node"), 0.03);
    // Launches took 2.9 and 3.8 us in two visits.
    near("launch", H100.launch * 1e6, measured("launch"), 0.3);
    // Four schedulers: an FFMA of 32 lanes each.
    near("issue", 32.0 * ISSUE, measured("FFMA") / 2.0, 0.1);
}

#[test]
fn every_kernel_was_counted() {
    for card in CARDS {
        for noise in [false, true] {
            for number in 0..7 {
                let kernel = loops()[&(card.arch, false, noise, number)];
                let tensor = [64.0, 32.0, 16.0, 16.0, 64.0, 32.0, 16.0][number as usize];
                assert_eq!(kernel.hmma, tensor, "{} {number}", card.arch);
                assert!(
                    kernel.stage > kernel.hmma && kernel.copy > 0.0,
                    "{kernel:?}"
                );
                assert_eq!(kernel.noise > 0.0, noise);
                assert!((2..=8).contains(&kernel.resident), "{kernel:?}");
            }
            for number in [1, 3] {
                assert!(loops().contains_key(&(card.arch, true, noise, number)));
            }
        }
    }
}

#[test]
fn a_layer_has_the_times_that_one_computes_by_hand() {
    let plan = launch(true).predict(&H100, None, Some(0)).unwrap().unwrap();
    // 8 x 16 pixels, 128 channels: two tiles an image, 36 stages of 64 bytes.
    assert_eq!((plan.blocks, plan.tile), (2048, [1, 8, 16]));
    let each = 2048.0 / 132.0 / 1.755e9;
    let t = plan.times;
    // 38.65 GFLOP; no position of a tile is idle.
    near(
        "tensor",
        t.tensor,
        2.0 * 1024.0 * 256.0 * 128.0 * 1152.0 / (2676.0 * 132.0 * 1.755e9),
        1e-6,
    );
    // A patch of 10 x 18 pixels, 16 windows each, 16 MUFU a window, 16 a clock.
    near("MUFU", t.mufu, 180.0 * 16.0 * each, 1e-6);
    let kernel = loops()[&("sm_90a", false, true, 0)];
    // 720 windows of a chunk on 128 threads: 6 turns; 4 chunks; 16 windows of results a thread.
    let main = 36.0 * kernel.stage + 24.0 * (kernel.copy + kernel.noise);
    let ends = 16.0 * 50.0 + (128.0 + 720.0) / 128.0 * 50.0 + 200.0;
    near("issue", t.issue, (main + ends) * each, 1e-6);
    // Fragments of A by two warps across, of B by two down; slabs and patches written, noise in place;
    // results written and read as floats. Two passes where pixels share banks.
    let fragments = 36.0 * 64.0 * (128.0 * 2.0 + 128.0 * 2.0);
    let patches = 4.0 * 720.0 * 16.0;
    let shared = fragments + 36.0 * 128.0 * 64.0 + 6.0 * patches + 12.0 * 128.0 * 128.0;
    near("shared", t.shared, shared / 128.0 * each, 1e-6);
    let l2 = 36.0 * 128.0 * 64.0 + patches + 128.0 * 128.0 * 2.0;
    near("L2", t.l2, 2048.0 * l2 / 7.1e12, 1e-6);
    let bytes = 2.0 * (2.0 * 1024.0 * 256.0 * 128.0 + 128.0 * 1152.0);
    near("HBM", t.memory, bytes / 2.95e12, 1e-6);
    assert_eq!(t.resident, 2);
    near("waves", t.waves, 2048.0 / 264.0, 1e-6);
    // floor.py's for an H200, which it takes for 790 TFLOP/s and 4.3 TB/s: 0.098 ms.
    let launch = launch(true);
    let floor = CARDS[0].floor(launch.operations().unwrap(), launch.bytes().unwrap());
    near("floor", floor * 1e3, 0.098, 0.005);
}

#[test]
fn waves_and_latency_are_told_from_pipes() {
    let small = Launch {
        x: launch(false).x.with_n(1),
        ..launch(false)
    };
    let times = small.predict(&A100, None, None).unwrap().unwrap().times;
    assert!(["waves", "latency"].contains(&times.bound()), "{times:?}");
    let times = launch(true)
        .predict(&A100, None, None)
        .unwrap()
        .unwrap()
        .times;
    assert_eq!(times.bound(), "tensor", "{times:?}");
    // What is asked for twice takes about twice as long.
    let twice = Launch {
        x: launch(true).x.with_n(2048),
        ..launch(true)
    };
    let double = twice.predict(&A100, None, None).unwrap().unwrap().times;
    near("twice", double.seconds(), 2.0 * times.seconds(), 0.1);
}

#[test]
fn measured_choices_win_and_wrong_ones_do_not_matter() {
    use crate::gpu::tuning::{Measurement, Tuning};
    let launch = launch(false);
    let free = launch.predict(&A100, None, None).unwrap().unwrap();
    let measured = |blocking| Measurement {
        device: "H".to_string(),
        operation: "forward".to_string(),
        dtype: DType::BF16,
        n: 1024,
        sizes: launch.sizes(),
        kernel: super::super::mma::KERNEL.to_string(),
        blocking,
        microseconds: 1.0,
    };
    let chosen = |blocking, asked| {
        let tuning = Tuning::new(&[measured(blocking)], "H");
        let plan = launch
            .predict(&A100, Some(&tuning), asked)
            .unwrap()
            .unwrap();
        plan.blocking
    };
    for blocking in launch.blockings(&A100).unwrap() {
        assert_eq!(chosen(blocking, None), blocking);
        assert_eq!(chosen(blocking, Some(1)), 1);
    }
    // By position needs small images; no kernel has the other number.
    assert_eq!(chosen(4, None), free.blocking);
    assert_eq!(chosen(4_000_000_000, None), free.blocking);
}
