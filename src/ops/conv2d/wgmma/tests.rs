use super::rings::MAX_STAGES;
use super::*;

const SAME: Conv2d = Conv2d {
    stride: 1,
    pad: 1,
    groups: 1,
};

fn problem(x: Shape, c_out: usize, k: usize, backward: bool, conv: Conv2d) -> Option<Problem> {
    let w = Shape::new(c_out, k, k, x.c / conv.groups);
    let y = conv.output_shape("test", x, w).unwrap();
    Problem::of_shapes(backward, x, w, y, conv)
}

#[test]
fn takes_what_its_loads_can_take() {
    let takes_back = |c_in, c_out, k, stride, pad, groups, backward| {
        let conv = Conv2d {
            stride,
            pad,
            groups,
        };
        problem(Shape::new(2, 9, 9, c_in), c_out, k, backward, conv).is_some()
    };
    let takes = |c_in, c_out, k, stride, pad, groups| {
        takes_back(c_in, c_out, k, stride, pad, groups, false)
    };
    assert!(takes(64, 64, 3, 1, 1, 1));
    assert!(takes(40, 72, 3, 1, 0, 1));
    assert!(takes(64, 64, 1, 1, 0, 2));
    // The stem, narrow groups, channels that are no multiple of 16 bytes, chunks of two groups.
    assert!(!takes(3, 64, 3, 1, 1, 1));
    assert!(!takes(64, 64, 3, 1, 1, 8));
    assert!(!takes(68, 64, 3, 1, 1, 1));
    assert!(!takes(64, 68, 3, 1, 1, 1));
    assert!(!takes(96, 64, 3, 1, 1, 2));
    // Strides of 3x3 kernels are for the way forward.
    for backward in [false, true] {
        assert!(takes_back(64, 64, 1, 3, 0, 1, backward));
        assert!(takes_back(64, 64, 3, 2, 1, 1, backward) != backward);
    }
    assert!(!takes(64, 64, 3, 3, 1, 1));
    // Other kernels, more padding than taps.
    assert!(!takes(64, 64, 5, 1, 2, 1));
    assert!(!takes(64, 64, 3, 1, 3, 1));
    assert!(!takes(64, 64, 1, 1, 1, 1));
}

/// Shapes that meet every kind of tile, forward and backward.
fn plans() -> Vec<Plan> {
    let mut plans = Vec::new();
    for [n, h, w, c_out] in [
        [3, 32, 32, 64],
        [40, 32, 32, 64],
        [5, 16, 16, 128],
        [9, 8, 8, 256],
        [30, 4, 4, 512],
        [200, 4, 4, 512],
        [70, 2, 2, 512],
        [1024, 2, 2, 512],
        [140, 1, 1, 64],
        [2, 5, 7, 64],
        [1, 9, 33, 72],
        [3, 11, 6, 200],
        [40, 3, 2, 96],
        [130, 1, 2, 32],
    ] {
        for pad in [0, 1, 2] {
            if h + 2 * pad < 3 || w + 2 * pad < 3 {
                continue;
            }
            for backward in [false, true] {
                let conv = Conv2d { pad, ..SAME };
                let found = problem(Shape::new(n, h, w, 64), c_out, 3, backward, conv);
                for blocking in [None, Some(7), Some(8), Some(9)] {
                    plans.extend(found.map(|p| p.plan(4, false, blocking).unwrap()));
                    plans.extend(found.map(|p| p.plan(132, false, blocking).unwrap()));
                    plans.extend(found.and_then(|p| p.plan(132, true, blocking)));
                }
            }
        }
        let x = Shape::new(n, h, w, 64);
        for stride in [1, 2, 3] {
            let point = Conv2d {
                stride,
                pad: 0,
                groups: 1,
            };
            for backward in [false, true] {
                let found = problem(x, c_out, 1, backward, point).unwrap();
                plans.push(found.plan(4, false, None).unwrap());
            }
        }
        for pad in [1, 2] {
            let strided = Conv2d {
                stride: 2,
                pad,
                groups: 1,
            };
            let found = problem(x, c_out, 3, false, strided).unwrap();
            plans.push(found.plan(132, false, None).unwrap());
        }
    }
    plans
}

/// `Pixels::find` of kernels/halo.cuh: of row m of both warpgroups the image, first row and column in the tile, and
/// the patch's pixel under tap (0, 0).
fn pixel(plan: &Plan, m: usize) -> Option<([usize; 3], isize)> {
    let (line, image) = (m / plan.images, m % plan.images);
    let (band, col) = (line / plan.cols, line % plan.cols);
    let row = band * plan.instance.mt;
    let Problem { step, pad, .. } = plan.problem;
    let under = |at: usize, before: usize| (step * at + before) as isize - pad as isize;
    let (down, across) = (under(row, plan.rows_before), under(col, plan.cols_before));
    let under = (down * plan.patch_cols as isize + across) * plan.images as isize + image as isize;
    (band < plan.bands).then_some(([image, row, col], under))
}

/// First and last rows, columns of a warpgroup.
fn span(plan: &Plan, group: usize) -> Option<([usize; 2], [usize; 2])> {
    let of = |m| pixel(plan, m).map(|(at, _)| at);
    let used = (0..2 * GROUP_ROWS).filter(|&m| of(m).is_some()).count();
    let first = of(group * GROUP_ROWS)?;
    let last = of((group * GROUP_ROWS + GROUP_ROWS - 1).min(used - 1))?;
    let cols = match first[1] == last[1] {
        true => [first[2], last[2]],
        false => [0, plan.cols - 1],
    };
    Some(([first[1], last[1]], cols))
}

/// Every product reads what the convolution asks for, or is passed over because it is zero for the whole warpgroup;
/// every pixel of the output is written once.
#[test]
fn every_tap_finds_its_pixel_in_the_patch() {
    for plan in plans() {
        let Problem { k, step, pad, .. } = plan.problem;
        let (from, to) = (plan.problem.from.seen, plan.problem.to.seen);
        let mt = plan.instance.mt;
        let fragments = step * (mt - 1) + k;
        let [images, down, across, _] = plan.tiles();
        let mut written = vec![0u8; to.pixels()];
        let tiles = (0..images).flat_map(|n| (0..down * across).map(move |at| (n, at)));
        // The first and last images' tiles say all.
        for (n, at) in tiles.filter(|&(n, _)| n == 0 || n + 1 == images) {
            let (n0, r0, c0) = (
                n * plan.images,
                at / across * plan.rows(),
                at % across * plan.cols,
            );
            for group in 0..2 {
                let Some((rows, cols)) = span(&plan, group) else {
                    continue;
                };
                let meets = |span: [usize; 2], origin: usize, f: usize, size: usize| {
                    origin + span[1] + f >= pad && origin + span[0] + f < pad + size
                };
                for m in group * GROUP_ROWS..(group + 1) * GROUP_ROWS {
                    let Some(([image, row, col], under)) = pixel(&plan, m) else {
                        continue;
                    };
                    for (f, v) in (0..fragments).flat_map(|f| (0..k).map(move |v| (f, v))) {
                        let (r, c) = (step * (r0 + row) + f, step * (c0 + col) + v);
                        let inside = (r.wrapping_sub(pad) < from.h)
                            && c.wrapping_sub(pad) < from.w
                            && n0 + image < from.n;
                        let edge = f == 0 || f + 1 == fragments;
                        let skipped = k > 1
                            && step == 1
                            && (!meets(cols, c0, v, from.w) || edge && !meets(rows, r0, f, from.h));
                        if skipped {
                            assert!(!inside, "{plan:?}: a tap that matters is passed over");
                            continue;
                        }
                        let line = (plan.patch_cols * plan.images) as isize;
                        let at = under + v as isize * plan.images as isize + f as isize * line;
                        let at = usize::try_from(at).expect("before the patch");
                        assert!(at < plan.patch_pixels(), "{plan:?}: behind the patch");
                        // What TMA brings there: boxes run through images, columns, rows.
                        let (at_line, at_image) = (at / plan.images, at % plan.images);
                        let (at_row, at_col) =
                            (at_line / plan.patch_cols, at_line % plan.patch_cols);
                        assert_eq!(at_image, image);
                        assert_eq!(step * r0 + at_row + pad, r + plan.rows_before);
                        assert_eq!(step * c0 + at_col + pad, c + plan.cols_before);
                    }
                    for r in r0 + row..r0 + row + mt {
                        if n0 + image < to.n && r < to.h && c0 + col < to.w {
                            written[((n0 + image) * to.h + r) * to.w + c0 + col] += 1;
                        }
                    }
                }
            }
        }
        let middle = |pixel: usize| {
            let tile = pixel / (to.h * to.w) / plan.images;
            tile != 0 && tile + 1 != images
        };
        let once = (0..to.pixels()).all(|at| middle(at) || written[at] == 1);
        assert!(once, "{plan:?}: not every pixel is written once");
    }
}

/// Where a 16-byte piece lies in a patch: kernels/halo.cuh, and TMA's 64-byte swizzle.
fn place(pixel: usize, piece: usize) -> usize {
    let straight = pixel * SLAB_ROW + piece * 16;
    let swizzled = straight ^ (straight >> 7 & 3) << 4;
    assert_eq!(
        swizzled,
        pixel * SLAB_ROW + ((piece ^ (pixel >> 1 & 3)) << 4)
    );
    swizzled
}

/// Most of eight 16-byte accesses that meet in the same banks.
fn conflicts(places: impl Iterator<Item = usize>) -> usize {
    let mut banks = [0; 8];
    places.for_each(|place| banks[place / 16 % 8] += 1);
    banks.into_iter().max().unwrap()
}

#[test]
fn shared_memory_has_no_bank_conflicts() {
    // Any eight pixels one behind the other.
    for first in 0..64 {
        for piece in 0..4 {
            assert_eq!(
                conflicts((first..first + 8).map(|pixel| place(pixel, piece))),
                1
            );
        }
    }
    for plan in plans()
        .iter()
        .filter(|plan| (plan.images * plan.cols).is_multiple_of(8))
    {
        // ldmatrix: eight rows of a fragment.
        for m in (0..2 * GROUP_ROWS).step_by(8) {
            let rows: Vec<isize> = (m..m + 8)
                .filter_map(|m| pixel(plan, m).map(|(_, under)| under))
                .collect();
            if rows.len() < 8 {
                continue;
            }
            let first = rows[0];
            let straight = rows
                .iter()
                .enumerate()
                .all(|(i, &at)| at == first + i as isize);
            let strided = plan.problem.step > 1 && plan.images % 8 != 0;
            assert!(straight != strided, "{plan:?}");
            // Every other column, unless eight images lie between them.
            if strided {
                let places = rows.iter().map(|&at| place((at - first) as usize, 0));
                assert_eq!(conflicts(places), 2, "{plan:?}");
            }
        }
    }
    // Noise: lane l takes piece l % 4 of pixel l / 4; a phase is eight lanes.
    for lane in (0..32).step_by(8) {
        assert_eq!(conflicts((lane..lane + 8).map(|l| place(l / 4, l % 4))), 1);
    }
    // A warp's output: stmatrix by rows of 128 bytes, read back eight lanes a row.
    let staged = |row: usize, piece: usize| row * 128 + ((piece ^ (row & 7)) << 4);
    for piece in 0..8 {
        assert_eq!(conflicts((0..8).map(|row| staged(row, piece))), 1);
        assert_eq!(conflicts((0..8).map(|l| staged(piece, l))), 1);
    }
}

#[test]
fn a_block_has_the_space() {
    for plan in plans() {
        let noise = [0, plan.noise_bytes(false), plan.noise_bytes(true)];
        for (other, multiprocessors) in noise.into_iter().flat_map(|n| [(n, 4), (n, 132)]) {
            let rings = plan.rings(multiprocessors, other).unwrap();
            let Rings {
                patches,
                stages,
                blocks,
                stay,
            } = rings;
            assert!(plan.shared(&rings) + other <= SHARED, "{plan:?} {rings:?}");
            assert!(patches >= 2 && (stay || stages >= patches), "{rings:?}");
            let tiles = plan.tile_count();
            let turns = tiles.div_ceil(multiprocessors);
            assert_eq!(tiles.div_ceil(blocks), turns, "{plan:?} {rings:?}");
            if stay {
                // As the kernel walks: a block's tiles are its number and so many more.
                let columns = plan.tiles()[3];
                assert!(stages == plan.steps() && blocks % columns == 0);
                assert!(stages <= MAX_STAGES && patches <= plan.problem.most_patches());
            }
        }
        assert!(plan.pieces() * DISTURBERS >= 4 * plan.patch_pixels());
        // As the kernel packs a pixel's image, row and column.
        assert!(plan.images < 256 && plan.rows() <= 4096 && plan.cols <= 4096);
        assert!(
            plan.images * plan.bands * plan.cols <= CONSUMERS / 2,
            "{plan:?}"
        );
        let boxes = [CHUNK, plan.images, plan.patch_cols, plan.patch_rows];
        assert!(boxes.iter().all(|&size| size <= MAX_BOX), "{plan:?}");
    }
}

/// Weights stay where a block has space for them: of 512 channels beside four patches, of more not.
#[test]
fn weights_stay_where_they_fit() {
    let point = Conv2d { pad: 0, ..SAME };
    let rings = |c_in, c_out, k, conv| {
        let x = Shape::new(1024, 8, 8, c_in);
        let problem = problem(x, c_out, k, false, conv).unwrap();
        let plan = problem.plan(132, false, None).unwrap();
        plan.rings(132, 0).unwrap()
    };
    let Rings {
        patches,
        stages,
        blocks,
        stay,
    } = rings(512, 1024, 1, point);
    assert_eq!((patches, stages, blocks, stay), (4, 16, 128, true));
    assert!(rings(256, 512, 1, point).stay);
    assert!(!rings(1024, 512, 1, point).stay);
    assert!(!rings(256, 256, 3, SAME).stay);
}

/// The tile may depend on the batch, the instances' order of sums may not: whether the kernel is chosen does not.
#[test]
fn the_choice_does_not_see_the_batch() {
    for n in [1, 7, 1024] {
        assert!(problem(Shape::new(n, 8, 8, 256), 256, 3, false, SAME).is_some());
        assert!(problem(Shape::new(n, 8, 8, 24), 256, 3, false, SAME).is_none());
    }
}

/// VGG16's layers but the stem, predicted from counts: `cargo test wgmma::tests::prediction -- --nocapture`.
#[test]
fn prediction() {
    const GIGAHERTZ: f64 = 1.75;
    let layers = [
        (32, 64, 64),
        (16, 64, 128),
        (16, 128, 128),
        (8, 128, 256),
        (8, 256, 256),
        (8, 256, 256),
        (4, 256, 512),
        (4, 512, 512),
        (4, 512, 512),
        (2, 512, 512),
        (2, 512, 512),
        (2, 512, 512),
    ];
    for n in [128, 1024] {
        println!(
            "\nbatch {n}: clocks of a tile by what it needs (noise: MUFU), tiles, us, TFLOP/s of the counted work"
        );
        let mut sum = 0.0;
        for (size, c_in, c_out) in layers {
            let problem = problem(Shape::new(n, size, size, c_in), c_out, 3, false, SAME).unwrap();
            let plan = problem.plan(132, false, None).unwrap();
            let Limits {
                tensor,
                shared,
                l2,
                mufu,
                overhead,
                ..
            } = plan.limits(132);
            let rings = plan.rings(132, 0).unwrap();
            let microseconds = plan.clocks(132, false) as f64 / GIGAHERTZ / 1e3;
            let flops = (2 * n * size * size * c_in * c_out * 9) as f64;
            let [images, down, across, blocks] = plan.tiles();
            println!(
                "{size:>2}x{size:<2} {c_in:>3}>{c_out:<3} mt {} n {:<3} {:>2}x{:>2}x{:<2} stages {} patches {} | tensor {tensor:>6.0} \
                 shared {shared:>6.0} L2 {l2:>6.0} noise {mufu:>6.0} alone {overhead:>5.0} | {:>4} tiles {microseconds:>6.1} us {:>4.0}",
                plan.instance.mt,
                plan.instance.n,
                plan.images,
                plan.rows(),
                plan.cols,
                rings.stages,
                rings.patches,
                images * down * across * blocks,
                flops / microseconds / 1e6,
            );
            sum += microseconds;
            // The noise of a tile has to fit beside its products.
            assert!(mufu < 1.1 * tensor.max(shared), "{plan:?}");
        }
        println!("all {sum:.0} us");
    }
}
