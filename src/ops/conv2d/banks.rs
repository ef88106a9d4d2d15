//! A simulation of shared memory's banks: how many passes the accesses of kernels/conv2d_mma.cu take, for the
//! plans of the networks' layers. Of an access of 16 bytes a thread, eight threads are one pass if they touch
//! different banks (or the same 16 bytes), of 8 bytes sixteen threads.

use super::mma::{Demands, Plan, plan};
use super::model::CARDS;
use super::predict::{Launch, Pass};
use crate::models::{Arch, Config};
use crate::tensor::{DType, Shape};

const BANKS: usize = 32;

/// Passes for one pass's worth of threads: the most different words that one bank has to give.
fn passes(addresses: impl IntoIterator<Item = usize>, bytes: usize) -> usize {
    let mut words: Vec<usize> = addresses
        .into_iter()
        .flat_map(|a| (0..bytes / 4).map(move |i| a / 4 + i))
        .collect();
    words.sort_unstable();
    words.dedup();
    let mut banks = [0; BANKS];
    words.into_iter().for_each(|word| banks[word % BANKS] += 1);
    banks.into_iter().max().unwrap_or(1).max(1)
}

/// Where the pixel of a tile's row lies in the patch, as `describe` of kernels/implicit_gemm.cuh has it.
fn patch_byte(plan: &Plan, m: usize) -> usize {
    let p = &plan.gemm;
    let [images, rows, cols] = [p.tile.images, p.tile.rows, p.tile.cols].map(|v| v as usize);
    let pitch = p.pitch as usize;
    if plan.blocking.by_position {
        let (position, image) = (m / images, m % images);
        let (square, across) = (position / 4, cols / 2);
        let row = square / across * 2 + position % 4 / 2;
        let col = square % across * 2 + position % 2;
        return ((row * cols + col) * images + image) * pitch;
    }
    let (line, col) = (m / cols, m % cols);
    let (image, row) = (line / rows, line % rows);
    if image >= images {
        return 0;
    }
    let step = p.step as usize;
    ((image * p.patch_rows as usize + row * step) * p.patch_cols as usize + col * step) * pitch
}

/// Passes of each kind of access, the worst of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Passes {
    /// ldmatrix on the patch, mean over the tile's fragments in hundredths, and on the slabs.
    patch: usize,
    slab: usize,
    /// Copies into the patch and noise in place: 16 bytes each.
    copy: usize,
    /// The epilogue: stores of two floats, loads of four.
    store: usize,
    load: usize,
}

fn simulate(plan: &Plan) -> Passes {
    let blocking = &plan.blocking;
    let eights = || (0..blocking.rows).step_by(8);
    let all: usize = eights()
        .map(|m| passes((m..m + 8).map(|m| patch_byte(plan, m)), 16))
        .sum();
    // Lanes 8q .. 8q + 8 bring rows of eight columns, for either half of a step.
    let slab = (0..blocking.cols)
        .step_by(8)
        .flat_map(|n| (0..4).map(move |piece| (n, piece)));
    let slab = slab.map(|(n, piece)| {
        passes(
            (n..n + 8).map(|row| row * 64 + (piece ^ (row >> 1 & 3)) * 16),
            16,
        )
    });
    let windows = 1usize << plan.gemm.log_windows;
    let pitch = plan.gemm.pitch as usize;
    let copy = passes((0..8).map(|t| t / windows * pitch + t % windows * 16), 16);
    let across = if blocking.tall { 4 } else { 8 };
    let floats = across * 8 + 8;
    let store = (0..32).step_by(16).map(|first| {
        passes(
            (first..first + 16).map(|lane| (lane / 4 * floats + lane % 4 * 2) * 4),
            8,
        )
    });
    let load = (0..2).map(|half| {
        passes(
            (0..8).map(|t| (t / across * floats + t % across * 8 + half * 4) * 4),
            16,
        )
    });
    Passes {
        patch: 100 * all / (blocking.rows / 8),
        slab: slab.max().unwrap(),
        copy,
        store: store.max().unwrap(),
        load: load.max().unwrap(),
    }
}

fn planned(launch: &Launch, blocking: Option<u32>) -> Option<Plan> {
    let demands = Demands {
        pool: launch.pool,
        noise: launch.noise,
        blocking,
        tuning: None,
        card: CARDS[1],
    };
    let grad = launch.pass == Pass::InputGrad;
    let y = launch.y().unwrap();
    plan(
        "test",
        grad,
        launch.dtype,
        launch.x,
        launch.w,
        y,
        launch.conv,
        demands,
    )
    .unwrap()
}

/// The layers of the networks, forward and backward, as they are planned for a batch.
#[test]
fn fragments_are_loaded_without_conflicts_but_for_strides_and_short_rows() {
    println!("patch (of 100), slab, copy, store, load; blocking, tile, pass and shape");
    for arch in [Arch::Vgg16, Arch::ResNeXt29] {
        let config = Config::new(arch, Shape::new(1, 32, 32, 3), 10);
        for (n, layer) in config
            .convolutions()
            .unwrap()
            .iter()
            .flat_map(|l| [(128, l), (1024, l)])
        {
            for pass in [Pass::Forward, Pass::InputGrad] {
                let launch = Launch {
                    pass,
                    dtype: DType::BF16,
                    x: layer.x.with_n(n),
                    draws: 1,
                    w: layer.w,
                    conv: layer.conv,
                    pool: false,
                    residual: false,
                    noise: pass == Pass::Forward,
                };
                let Some(plan) = planned(&launch, None) else {
                    continue;
                };
                let found = simulate(&plan);
                let tile = plan.gemm.tile;
                println!(
                    "{:>4} {} {} {} {}  blocking {} tile {}x{}x{} {pass:?} {} {} {} {n}",
                    found.patch,
                    found.slab,
                    found.copy,
                    found.store,
                    found.load,
                    plan.blocking.number,
                    tile.images,
                    tile.rows,
                    tile.cols,
                    layer.name,
                    launch.x,
                    launch.w
                );
                assert_eq!((found.slab, found.store), (1, 1), "{} {pass:?}", layer.name);
                // Pixels two apart share banks in pairs, and so do two short rows of a patch.
                let short = tile.cols < 8 && !plan.blocking.by_position;
                let most = if plan.gemm.step == 2 || short {
                    200
                } else {
                    100
                };
                assert!(found.patch <= most, "{} {pass:?}: {found:?}", layer.name);
                // What the model takes for it.
                assert!(found.copy <= 2 && found.load <= 2, "{found:?}");
            }
        }
    }
}

/// Small images in tiles that are not ordered by position, where the rows of a patch meet.
#[test]
fn conflicts_of_small_images_are_known() {
    for (side, blocking, expected) in [
        (8, 1, 100),
        (4, 1, 200),
        (4, 4, 100),
        (2, 2, 200),
        (2, 4, 100),
    ] {
        let launch = Launch {
            pass: Pass::Forward,
            dtype: DType::BF16,
            x: Shape::new(1024, side, side, 256),
            draws: 1,
            w: Shape::new(256, 3, 3, 256),
            conv: super::Conv2d {
                stride: 1,
                pad: 1,
                groups: 1,
            },
            pool: false,
            residual: false,
            noise: false,
        };
        let plan = planned(&launch, Some(blocking)).unwrap();
        assert_eq!(plan.blocking.number, blocking);
        let found = simulate(&plan);
        println!("{side}x{side} blocking {blocking}: {found:?}");
        assert_eq!(found.patch, expected, "{side}x{side} blocking {blocking}");
    }
}

#[test]
fn passes_are_counted() {
    assert_eq!(passes((0..8).map(|i| i * 16), 16), 1);
    assert_eq!(passes((0..8).map(|i| i * 128), 16), 8);
    assert_eq!(passes((0..8).map(|_| 64), 16), 1);
    assert_eq!(passes((0..8).map(|i| i * 32), 16), 2);
    assert_eq!(passes((0..16).map(|i| i * 8), 8), 1);
}
