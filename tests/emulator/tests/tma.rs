//! TMA and clusters against plain loops.

mod support;

use std::mem::MaybeUninit;

use cudarc::driver::sys;
use support::{Arg, Device, Random, Shape, TensorMap, shape};

/// A tensor of 2- or 4-byte elements in device memory, innermost dimension first.
struct Tensor {
    element: usize,
    dim: Vec<usize>,
    /// In bytes, of every dimension.
    stride: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    /// Random sizes up to `most`; rows are padded by up to 32 bytes.
    fn random(random: &mut Random, rank: usize, most: usize) -> Tensor {
        let element = [2, 4][random.below(2)];
        let dim: Vec<usize> = (0..rank).map(|_| 1 + random.below(most)).collect();
        let mut stride = vec![element];
        for d in 1..rank {
            let packed: usize = stride[d - 1] * dim[d - 1];
            stride.push(packed.next_multiple_of(16) + 16 * random.below(3));
        }
        let size = stride[rank - 1] * dim[rank - 1];
        let bytes = (0..size.next_multiple_of(16))
            .map(|_| random.next() as u8)
            .collect();
        Tensor {
            element,
            dim,
            stride,
            bytes,
        }
    }

    /// Where an element is; `None` outside the tensor.
    fn offset(&self, at: &[i64]) -> Option<usize> {
        let inside = at
            .iter()
            .zip(&self.dim)
            .all(|(&x, &n)| x >= 0 && x < n as i64);
        inside.then(|| {
            at.iter()
                .zip(&self.stride)
                .map(|(&x, &s)| x as usize * s)
                .sum()
        })
    }

    fn data_type(&self, float: bool) -> sys::CUtensorMapDataType {
        use sys::CUtensorMapDataType::*;
        match (self.element, float) {
            (2, false) => CU_TENSOR_MAP_DATA_TYPE_UINT16,
            (2, true) => CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            (4, false) => CU_TENSOR_MAP_DATA_TYPE_UINT32,
            _ => CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        }
    }
}

const SWIZZLES: [sys::CUtensorMapSwizzle; 4] = [
    sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
    sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
    sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
    sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
];
const NO_INTERLEAVE: sys::CUtensorMapInterleave =
    sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
const NO_PROMOTION: sys::CUtensorMapL2promotion =
    sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE;

fn fill(nan: bool) -> sys::CUtensorMapFloatOOBfill {
    if nan {
        sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA
    } else {
        sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE
    }
}

fn wide(values: &[usize]) -> Vec<u64> {
    values.iter().map(|&v| v as u64).collect()
}

/// `bounds`: elements of the tensor that a tile spans in each dimension.
fn tiled(
    t: &Tensor,
    address: u64,
    bounds: &[u32],
    step: &[u32],
    swizzle: usize,
    nan: bool,
) -> Result<TensorMap, sys::CUresult> {
    let mut map = MaybeUninit::<TensorMap>::zeroed();
    let (dim, stride) = (wide(&t.dim), wide(&t.stride[1..]));
    // SAFETY: every array has as many elements as the rank says.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            map.as_mut_ptr().cast(),
            t.data_type(nan),
            t.dim.len() as u32,
            address as *mut _,
            dim.as_ptr(),
            stride.as_ptr(),
            bounds.as_ptr(),
            step.as_ptr(),
            NO_INTERLEAVE,
            SWIZZLES[swizzle],
            NO_PROMOTION,
            fill(nan),
        )
    };
    match result {
        // SAFETY: the call has filled it in.
        sys::CUresult::CUDA_SUCCESS => Ok(unsafe { map.assume_init() }),
        error => Err(error),
    }
}

/// Where byte `at` of a tile lies in shared memory.
fn swizzled(at: usize, swizzle: usize) -> usize {
    at ^ ((at >> 7 & ((1 << swizzle) - 1)) << 4)
}

fn load_args(y: Arg, map: TensorMap, bytes: usize, at: &[i64], offset: &[u32]) -> Vec<Arg> {
    let mut args = vec![y, Arg::Map(map), Arg::U32(bytes as u32)];
    args.extend((0..5).map(|d| Arg::I32(at.get(d).map_or(0, |&x| x as i32))));
    args.extend((0..3).map(|d| Arg::U32(offset.get(d).copied().unwrap_or(0))));
    args
}

/// Runs a load in every mode and compares shared memory with `expected`.
fn check_load(
    d: &Device,
    kernel: &str,
    t: &Tensor,
    map: impl Fn(u64) -> TensorMap,
    at: &[i64],
    offset: &[u32],
    expected: &[u8],
) {
    let bytes = expected.len();
    let got = d.in_every_mode(kernel, || {
        let x = d.upload(&t.bytes);
        let Arg::Pointer(address) = d.pointer(&x) else {
            unreachable!()
        };
        let y = d.uninit::<u32>(bytes / 4);
        let shape = Shape {
            shared: bytes as u32,
            ..shape(1, 64)
        };
        d.launch(
            kernel,
            shape,
            &load_args(d.pointer(&y), map(address), bytes, at, offset),
        )
        .unwrap();
        d.read(&y)
    });
    let got: Vec<u8> = got.iter().flat_map(|w| w.to_le_bytes()).collect();
    assert!(
        got == expected,
        "{kernel} at {at:?} + {offset:?} of {:?}",
        t.dim
    );
}

#[test]
fn tiles() {
    let d = Device::new();
    let mut random = Random(5);
    for case in 0..60 {
        let rank = 1 + case % 5;
        let t = Tensor::random(&mut random, rank, [90, 60, 20, 9, 6][rank - 1]);
        // Rows of a tile are as wide as the swizzle.
        let swizzle = random.below(4);
        let row = if swizzle == 0 {
            16 * (1 + random.below(6))
        } else {
            16 << swizzle
        };
        let mut count = vec![row / t.element];
        let mut step = vec![1u32];
        for _ in 1..rank {
            count.push(1 + random.below(5));
            step.push(1 + random.below(3) as u32);
        }
        let bounds: Vec<u32> = count
            .iter()
            .zip(&step)
            .map(|(&n, &s)| n as u32 * s - (s - 1))
            .collect();
        let at: Vec<i64> = t
            .dim
            .iter()
            .map(|&n| random.below(n + 8) as i64 - 5)
            .collect();
        let nan = random.below(3) == 0;
        let total: usize = count.iter().product();
        let mut expected = vec![0u8; total * t.element];
        for i in 0..total {
            let mut rest = i;
            let mut x = Vec::new();
            for dim in 0..rank {
                x.push(at[dim] + (rest % count[dim]) as i64 * i64::from(step[dim]));
                rest /= count[dim];
            }
            let to = swizzled(i * t.element, swizzle);
            let piece = &mut expected[to..to + t.element];
            match t.offset(&x) {
                Some(from) => piece.copy_from_slice(&t.bytes[from..from + t.element]),
                None => piece.fill(if nan { 0xff } else { 0 }),
            }
        }
        let map = |address| tiled(&t, address, &bounds, &step, swizzle, nan).unwrap();
        check_load(
            &d,
            &format!("test_tma_{rank}d"),
            &t,
            map,
            &at,
            &[],
            &expected,
        );
    }
}

#[test]
fn columns_of_pixels() {
    let d = Device::new();
    let mut random = Random(6);
    for case in 0..45 {
        let rank = 3 + case % 3;
        let spatial = rank - 2;
        let mut t = Tensor::random(&mut random, rank, [0, 0, 0, 14, 9, 6][rank]);
        let swizzle = random.below(4);
        let row = if swizzle == 0 {
            16 * (1 + random.below(4))
        } else {
            16 << swizzle
        };
        let channels = row / t.element;
        // A filter of `size` taps `dilation` apart, padding `pad`, stride `step`: the box is where its first tap goes.
        let (mut lower, mut upper, mut offset, mut step) = (vec![], vec![], vec![], vec![1u32]);
        for dim in 0..spatial {
            let (size, dilation, pad) = (1 + random.below(3), 1 + random.below(2), random.below(2));
            t.dim[dim + 1] = t.dim[dim + 1].max((size - 1) * dilation + 1);
            lower.push(-(pad as i32));
            upper.push(pad as i32 - ((size - 1) * dilation) as i32);
            offset.push((random.below(size) * dilation) as u32);
            step.push(1 + random.below(2) as u32);
        }
        step.push(1);
        for dim in 1..rank {
            t.stride[dim] = (t.stride[dim - 1] * t.dim[dim - 1]).next_multiple_of(16);
        }
        let size = t.stride[rank - 1] * t.dim[rank - 1];
        t.bytes = (0..size.next_multiple_of(16))
            .map(|_| random.next() as u8)
            .collect();
        // All pixels of the box, in order.
        let mut pixels: Vec<Vec<i64>> = vec![vec![]];
        for dim in (1..rank).rev() {
            let (first, last) = if dim == rank - 1 {
                (0, t.dim[dim] as i64 - 1)
            } else {
                (
                    i64::from(lower[dim - 1]),
                    t.dim[dim] as i64 - 1 + i64::from(upper[dim - 1]),
                )
            };
            let along: Vec<i64> = (first..=last).step_by(step[dim] as usize).collect();
            let inner = |outer: &Vec<i64>| {
                let outer = outer.clone();
                along
                    .clone()
                    .into_iter()
                    .map(move |x| [vec![x], outer.clone()].concat())
            };
            pixels = pixels.iter().flat_map(inner).collect();
        }
        let start = random.below(pixels.len());
        let count = 1 + random.below(40);
        let c = random.below(t.dim[0] + 4) as i64 - 2;
        let mut expected = vec![0u8; count * row];
        for p in 0..count {
            // Behind the last pixel of the last image there are only zeros.
            let Some(pixel) = pixels.get(start + p) else {
                break;
            };
            for i in 0..channels {
                let mut x = vec![c + i as i64];
                x.extend(
                    pixel
                        .iter()
                        .enumerate()
                        .map(|(k, &v)| v + offset.get(k).map_or(0, |&o| i64::from(o))),
                );
                let to = swizzled(p * row + i * t.element, swizzle);
                if let Some(from) = t.offset(&x) {
                    expected[to..to + t.element].copy_from_slice(&t.bytes[from..from + t.element]);
                }
            }
        }
        let at = [vec![c], pixels[start].clone()].concat();
        let map = |address: u64| {
            let mut map = MaybeUninit::<TensorMap>::zeroed();
            let (dim, stride) = (wide(&t.dim), wide(&t.stride[1..]));
            // SAFETY: every array has as many elements as the rank says.
            let result = unsafe {
                sys::cuTensorMapEncodeIm2col(
                    map.as_mut_ptr().cast(),
                    t.data_type(false),
                    rank as u32,
                    address as *mut _,
                    dim.as_ptr(),
                    stride.as_ptr(),
                    lower.as_ptr(),
                    upper.as_ptr(),
                    channels as u32,
                    count as u32,
                    step.as_ptr(),
                    NO_INTERLEAVE,
                    SWIZZLES[swizzle],
                    NO_PROMOTION,
                    fill(false),
                )
            };
            result.result().unwrap();
            // SAFETY: the call has filled it in.
            unsafe { map.assume_init() }
        };
        check_load(
            &d,
            &format!("test_tma_im2col_{rank}d"),
            &t,
            map,
            &at,
            &offset,
            &expected,
        );
    }
}

#[test]
fn stores() {
    let d = Device::new();
    let mut random = Random(7);
    for _ in 0..20 {
        let from = Tensor::random(&mut random, 3, 20);
        let to = Tensor {
            bytes: from.bytes.iter().map(|b| b ^ 0x55).collect(),
            dim: from.dim.clone(),
            stride: from.stride.clone(),
            ..from
        };
        let swizzle = random.below(4);
        let row = if swizzle == 0 { 32 } else { 16 << swizzle };
        let count = [row / from.element, 1 + random.below(6), 1 + random.below(4)];
        let bounds: Vec<u32> = count.iter().map(|&n| n as u32).collect();
        let mut draw = || -> Vec<i64> {
            from.dim
                .iter()
                .map(|&n| random.below(n + 6) as i64 - 4)
                .collect()
        };
        let (source, target) = (draw(), draw());
        let mut expected = to.bytes.clone();
        for k in 0..count[2] as i64 {
            for j in 0..count[1] as i64 {
                for i in 0..count[0] as i64 {
                    // Outside the source there are zeros; outside the target nothing is written.
                    let read = from.offset(&[source[0] + i, source[1] + j, source[2] + k]);
                    let Some(write) = to.offset(&[target[0] + i, target[1] + j, target[2] + k])
                    else {
                        continue;
                    };
                    for b in 0..from.element {
                        expected[write + b] = read.map_or(0, |r| from.bytes[r + b]) ^ 1;
                    }
                }
            }
        }
        let bytes = row * count[1] * count[2];
        let got = d.in_every_mode("test_tma_store_3d", || {
            let (x, y) = (d.upload(&from.bytes), d.upload(&to.bytes));
            let maps = [&x, &y].map(|buffer| {
                let Arg::Pointer(address) = d.pointer(buffer) else {
                    unreachable!()
                };
                Arg::Map(tiled(&from, address, &bounds, &[1; 3], swizzle, false).unwrap())
            });
            let mut args = vec![maps[0], maps[1], Arg::U32(bytes as u32)];
            args.extend(source.iter().chain(&target).map(|&x| Arg::I32(x as i32)));
            let shape = Shape {
                shared: bytes as u32,
                ..shape(1, 64)
            };
            d.launch("test_tma_store_3d", shape, &args).unwrap();
            d.read(&y)
        });
        assert!(
            got == expected,
            "{source:?} to {target:?} of {:?}",
            from.dim
        );
    }
}

#[test]
fn multicast() {
    let d = Device::new();
    let mut random = Random(8);
    for blocks in [1usize, 2, 4, 8] {
        let rows = 3;
        let t = Tensor {
            element: 4,
            dim: vec![32, rows * blocks],
            stride: vec![4, 128],
            bytes: (0..128 * rows * blocks)
                .map(|_| random.next() as u8)
                .collect(),
        };
        let bytes = rows * 128;
        let got = d.in_every_mode("test_tma_multicast", || {
            let x = d.upload(&t.bytes);
            let Arg::Pointer(address) = d.pointer(&x) else {
                unreachable!()
            };
            let map = tiled(&t, address, &[32, rows as u32], &[1, 1], 0, false).unwrap();
            // Two clusters.
            let y = d.uninit::<u32>(2 * blocks * blocks * bytes / 4);
            let shape = Shape {
                shared: (blocks * bytes) as u32,
                cluster: blocks as u32,
                ..shape(2 * blocks as u32, 32)
            };
            let args = [
                d.pointer(&y),
                Arg::Map(map),
                Arg::U32(bytes as u32),
                Arg::I32(rows as i32),
            ];
            d.launch("test_tma_multicast", shape, &args).unwrap();
            d.read(&y)
        });
        let got: Vec<u8> = got.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert!(got == t.bytes.repeat(2 * blocks), "{blocks} blocks");
    }
}

#[test]
fn clusters() {
    let d = Device::new();
    for blocks in [1u32, 2, 8] {
        let x: Vec<f32> = (0..2 * blocks * 128).map(|i| (i % 61) as f32).collect();
        let dx = d.upload(&x);
        let shape = Shape {
            cluster: blocks,
            ..shape(2 * blocks, 128)
        };
        let sums = d.in_every_mode("test_cluster_sum", || {
            let y = d.uninit::<f32>(2 * blocks as usize);
            d.launch("test_cluster_sum", shape, &[d.pointer(&y), d.pointer(&dx)])
                .unwrap();
            d.read(&y)
        });
        for (b, &sum) in sums.iter().enumerate() {
            let first = b / blocks as usize * blocks as usize * 128;
            assert_eq!(
                sum,
                x[first..first + blocks as usize * 128].iter().sum::<f32>()
            );
        }
        let shape = Shape { block: 32, ..shape };
        let ring = d.in_every_mode("test_cluster_ring", || {
            let y = d.uninit::<u32>(2 * blocks as usize);
            d.launch("test_cluster_ring", shape, &[d.pointer(&y)])
                .unwrap();
            d.read(&y)
        });
        let expected: Vec<u32> = (0..2 * blocks)
            .map(|b| (0..b % blocks).map(|r| r + 1).sum())
            .collect();
        assert_eq!(ring, expected);
    }
}

#[test]
fn maps_that_no_device_takes() {
    let d = Device::new();
    let mut random = Random(9);
    let t = Tensor {
        element: 2,
        dim: vec![64, 8],
        stride: vec![2, 128],
        ..Tensor::random(&mut random, 2, 8)
    };
    let base = d.uninit::<u8>(4096);
    let Arg::Pointer(address) = d.pointer(&base) else {
        unreachable!()
    };
    assert!(tiled(&t, address, &[64, 8], &[1, 1], 3, false).is_ok());
    type Attempt<'a> = (&'a str, &'a dyn Fn() -> Result<TensorMap, sys::CUresult>);
    let attempts: [Attempt; 8] = [
        ("the address is not 16-byte aligned", &|| {
            tiled(&t, address + 8, &[64, 8], &[1, 1], 3, false)
        }),
        ("boxDim[1] = 257", &|| {
            tiled(&t, address, &[64, 257], &[1, 1], 3, false)
        }),
        ("boxDim[0] = 0", &|| {
            tiled(&t, address, &[0, 8], &[1, 1], 3, false)
        }),
        ("elementStrides[1] = 9", &|| {
            tiled(&t, address, &[64, 8], &[1, 9], 3, false)
        }),
        ("not a multiple of 16", &|| {
            tiled(&t, address, &[60, 8], &[1, 1], 0, false)
        }),
        ("as wide as the swizzle, 64", &|| {
            tiled(&t, address, &[64, 8], &[1, 1], 2, false)
        }),
        ("globalStrides[0] = 120", &|| {
            tiled(
                &Tensor {
                    stride: vec![2, 120],
                    dim: vec![60, 8],
                    bytes: vec![],
                    ..t
                },
                address,
                &[8, 8],
                &[1, 1],
                0,
                false,
            )
        }),
        ("globalStrides[0] = 112", &|| {
            tiled(
                &Tensor {
                    stride: vec![2, 112],
                    dim: vec![64, 8],
                    bytes: vec![],
                    ..t
                },
                address,
                &[8, 8],
                &[1, 1],
                0,
                false,
            )
        }),
    ];
    for (text, attempt) in attempts {
        assert_eq!(
            attempt().err(),
            Some(sys::CUresult::CUDA_ERROR_INVALID_VALUE),
            "{text}"
        );
        let report = d.emulator.last_report().unwrap();
        assert!(report.contains(text), "{report}");
    }
}

#[test]
fn runs_of_bytes() {
    let d = Device::new();
    let mut random = Random(9);
    for bytes in [16, 48, 4096] {
        let x: Vec<u32> = (0..bytes / 4).map(|_| random.next() as u32).collect();
        let dx = d.upload(&x);
        let kernel = "test_bulk_load";
        let with = Shape {
            shared: bytes as u32,
            ..shape(1, 64)
        };
        let got = d.in_every_mode(kernel, || {
            let y = d.uninit::<u32>(x.len());
            let args = [d.pointer(&y), d.pointer(&dx), Arg::U32(bytes as u32)];
            d.launch(kernel, with, &args).unwrap();
            d.read(&y)
        });
        assert_eq!(got, x);
    }
    let dx = d.upload(&[0u32; 16]);
    let y = d.uninit::<u32>(16);
    let with = Shape {
        shared: 64,
        ..shape(1, 64)
    };
    let failure = |bytes| {
        let args = [d.pointer(&y), d.pointer(&dx), Arg::U32(bytes)];
        d.failure("test_bulk_load", with, &args)
    };
    assert!(failure(40).contains("cp.async.bulk of 40 bytes, not a multiple of 16"));
    assert!(failure(80).contains("shared"), "{}", failure(80));
}
