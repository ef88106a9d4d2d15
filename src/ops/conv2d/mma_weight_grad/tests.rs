//! Plans hold what the kernel relies on, and the GPU tests' cases reach every way through it.

use super::*;

const H100: Device = Device {
    multiprocessors: 132,
    shared: 227 << 10,
};
/// Compute capability 8.6.
const SMALL: Device = Device {
    multiprocessors: 28,
    shared: 99 << 10,
};

/// Of n, h, w, c_in, c_out, k, stride, pad, groups.
fn of([n, h, w, c_in, c_out, k, stride, pad, groups]: [usize; 9], device: Device) -> Plan {
    let conv = Conv2d {
        stride,
        pad,
        groups,
    };
    let x = Shape::new(n, h, w, c_in);
    let w = Shape::new(c_out, k, k, c_in / groups);
    let y = conv.output_shape("test", x, w).unwrap();
    let plan = plan("test", DType::BF16, x, w, y, true, conv, device).unwrap();
    let plan = plan.expect("it fits");
    check(&plan, &device);
    plan
}

/// What the kernel relies on.
fn check(plan: &Plan, device: &Device) {
    let p = &plan.p;
    assert_eq!(p.log_rows + p.log_cols + p.log_parts, 3);
    assert!(p.taps * p.warp_windows <= SLOTS as u32);
    assert!(p.taps * p.tap_blocks >= p.k * p.k);
    assert!(p.windows <= p.warp_windows << p.log_cols && p.windows <= 1 << p.log_windows);
    assert!(p.pixels.is_multiple_of(16) && p.images * p.rows * p.cols <= p.pixels);
    assert!(p.shared as usize <= device.shared && p.stages >= 3 * p.stage);
    for pitch in [p.pitch, p.image_pitch, p.dy_pitch] {
        assert!(
            pitch % 32 == 16,
            "{pitch} bytes: rows of ldmatrix meet in a bank"
        );
    }
    assert!(p.pitch >= p.windows * 16 && p.dy_pitch >= 128 << p.log_rows);
    assert!(p.image_pitch >= p.patch_rows * p.row_pitch);
    assert_eq!(p.stage, p.dy_at + p.pixels * p.dy_pitch);
    // Fields of a place have 9 bits.
    let most = (p.patch_rows.max(p.patch_cols) - 1) * p.gap;
    assert!(p.images.max(most) <= 510);
    let splits = plan.work.splits as u32;
    assert!(splits * p.split_tiles >= p.tiles && (splits - 1) * p.split_tiles < p.tiles);
    assert_eq!(plan.skip as u32 * (p.images % 16), 0);
}

#[test]
fn every_shape_has_a_plan() {
    for device in [H100, SMALL] {
        for (i, h) in [1, 2, 3, 5, 7, 13, 32, 67, 224, 600]
            .into_iter()
            .enumerate()
        {
            for (k, c_in, c_out, groups) in [
                (1, 3, 64, 1),
                (1, 512, 10, 1),
                (2, 40, 24, 8),
                (3, 3, 64, 1),
                (3, 512, 512, 1),
                (3, 30, 30, 30),
                (3, 128, 128, 32),
                (5, 20, 20, 2),
                (7, 3, 64, 1),
            ] {
                for stride in [1, 2, 3, 50, 1000] {
                    let (n, w) = ([1, 7, 300][i % 3], [1, 13, 67, 300][i % 4]);
                    let pad = if h.min(w) < k { k } else { k / 2 };
                    of([n, h, w, c_in, c_out, k, stride, pad, groups], device);
                }
            }
        }
    }
}

/// VGG16 at a batch of 128: size, channels.
const VGG: [(usize, usize, usize); 9] = [
    (32, 3, 64),
    (32, 64, 64),
    (16, 64, 128),
    (16, 128, 128),
    (8, 128, 256),
    (8, 256, 256),
    (4, 256, 512),
    (4, 512, 512),
    (2, 512, 512),
];

#[test]
fn usual_layers_fill_a_large_gpu() {
    for (size, c_in, c_out) in VGG {
        let plan = of([128, size, size, c_in, c_out, 3, 1, 1, 1], H100);
        let blocks = plan.grid[0] as usize;
        assert!((112..=132).contains(&blocks), "{size}: {blocks} blocks");
        assert_eq!(plan.skip, size <= 4, "{size}");
        // Every warp has steps, and no step is without pixels.
        let p = &plan.p;
        assert_eq!(p.images * p.rows * p.cols, p.pixels);
        assert_eq!(p.pixels / 16 % (1 << p.log_parts), 0);
    }
}

#[test]
fn taps_on_padding_are_counted() {
    let kept = |size| of([128, size, size, 512, 512, 3, 1, 1, 1], H100).work.kept;
    assert_eq!((kept(2) * 36.0).round(), 16.0);
    assert_eq!((kept(4) * 144.0).round(), 100.0);
    assert_eq!(kept(8), 1.0);
}

/// The GPU tests' cases reach what they are for.
#[test]
fn cases_of_the_tests_reach_every_way() {
    let emulator = Device {
        multiprocessors: 4,
        shared: 227 << 10,
    };
    let plan = |case| of(case, emulator);
    assert!(plan([17, 4, 4, 16, 24, 3, 1, 1, 1]).skip);
    assert!(plan([33, 2, 2, 40, 72, 3, 1, 1, 1]).skip);
    assert!(!plan([9, 4, 4, 16, 24, 3, 1, 1, 1]).skip);
    assert!(plan([1, 6, 9, 72, 136, 3, 1, 1, 1]).p.log_cols > 0);
    assert_eq!(plan([1, 9, 20, 3, 64, 3, 1, 1, 1]).p.log_parts, 3);
    assert!(plan([2, 5, 3, 88, 40, 1, 1, 0, 1]).p.warp_windows > 1);
    assert!(plan([1, 9, 8, 3, 20, 7, 2, 3, 1]).p.tap_blocks > 1);
    assert_eq!(plan([1, 5, 6, 64, 64, 3, 2, 1, 4]).p.merged, 4);
    assert!(plan([2, 30, 30, 8, 8, 3, 1, 1, 1]).work.splits > 1);
}
