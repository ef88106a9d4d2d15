//! wgmma against plain loops: every swizzle, both directions of the operands, A from registers.

mod support;

use half::{bf16, f16};
use support::{Arg, Device, Random, Shape, shape};

#[derive(Clone, Copy, PartialEq, Debug)]
enum Type {
    Bf16,
    F16,
    Tf32,
}

impl Type {
    fn bytes(self) -> usize {
        if self == Type::Tf32 { 4 } else { 2 }
    }

    /// The bits in memory and the value that they stand for.
    fn round(self, x: f32) -> (u32, f64) {
        match self {
            Type::Bf16 => (
                bf16::from_f32(x).to_bits().into(),
                bf16::from_f32(x).to_f64(),
            ),
            Type::F16 => (f16::from_f32(x).to_bits().into(), f16::from_f32(x).to_f64()),
            Type::Tf32 => {
                let bits = (x.to_bits() + 0x1000) & !0x1fff;
                (bits, f32::from_bits(bits).into())
            }
        }
    }
}

/// How a matrix lies in shared memory. Numbered as the descriptors do: width of the swizzle in bytes.
const WIDTHS: [usize; 4] = [16, 128, 64, 32];

/// One operand: `rows` (of M or N) by `depth`.
struct Operand {
    rows: usize,
    depth: usize,
    values: Vec<f64>,
    bits: Vec<u32>,
}

impl Operand {
    fn random(random: &mut Random, kind: Type, rows: usize, depth: usize) -> Operand {
        let drawn: Vec<(u32, f64)> = (0..rows * depth)
            .map(|_| kind.round(random.unit()))
            .collect();
        Operand {
            rows,
            depth,
            values: drawn.iter().map(|d| d.1).collect(),
            bits: drawn.iter().map(|d| d.0).collect(),
        }
    }
}

/// Where an operand's bytes go, and what its descriptor says.
struct Placement {
    swizzle: usize,
    transposed: bool,
    leading: usize,
    stride: usize,
    /// From one wgmma of a chain to the next.
    step: usize,
    size: usize,
}

impl Placement {
    /// For a chain over the whole depth. Distances are a little larger than they need be.
    fn new(o: &Operand, kind: Type, swizzle: usize, transposed: bool) -> Placement {
        let (width, groups) = (WIDTHS[swizzle], o.rows / 8);
        if !transposed && swizzle == 0 {
            // Core matrices of 8 rows by 16 bytes, those along the depth next to each other.
            let along = o.depth * kind.bytes() / 16;
            let stride = along * 128 + 128;
            return Placement {
                swizzle,
                transposed,
                leading: 128,
                stride,
                step: 256,
                size: groups * stride,
            };
        }
        if !transposed {
            // Rows as wide as the swizzle.
            assert!(o.depth * kind.bytes() <= width);
            let stride = 8 * width;
            return Placement {
                swizzle,
                transposed,
                leading: 0,
                stride,
                step: 32,
                size: groups * stride,
            };
        }
        let deep = o.depth / 8;
        if swizzle == 0 {
            // Core matrices of 8 steps of depth by 8 rows.
            let leading = groups * 128;
            return Placement {
                swizzle,
                transposed,
                leading,
                stride: 128,
                step: 2 * leading,
                size: deep * leading,
            };
        }
        // Atoms of 8 steps of depth, `width` bytes of rows each; along the depth, then along the rows.
        let atom = 8 * width;
        let across = (o.rows * 2).div_ceil(width);
        let leading = deep * atom;
        Placement {
            swizzle,
            transposed,
            leading,
            stride: atom,
            step: 2 * atom,
            size: across * leading,
        }
    }

    /// The byte offset of an element from the operand's start, which is a multiple of 1024.
    fn offset(&self, kind: Type, row: usize, k: usize) -> usize {
        let width = WIDTHS[self.swizzle];
        let at = match (self.transposed, self.swizzle) {
            (false, 0) => {
                let byte = k * kind.bytes();
                row / 8 * self.stride + byte / 16 * self.leading + row % 8 * 16 + byte % 16
            }
            (false, _) => row / 8 * self.stride + row % 8 * width + k * kind.bytes(),
            (true, 0) => row / 8 * self.stride + k / 8 * self.leading + k % 8 * 16 + row % 8 * 2,
            (true, _) => {
                let byte = row * 2;
                byte / width * self.leading + k / 8 * self.stride + k % 8 * width + byte % width
            }
        };
        let mask = [0, 7, 3, 1][self.swizzle];
        at ^ ((at >> 7 & mask) << 4)
    }

    fn write(&self, image: &mut [u8], start: usize, o: &Operand, kind: Type) {
        for row in 0..o.rows {
            for k in 0..o.depth {
                let at = start + self.offset(kind, row, k);
                let bytes = o.bits[row * o.depth + k].to_le_bytes();
                image[at..at + kind.bytes()].copy_from_slice(&bytes[..kind.bytes()]);
            }
        }
    }
}

/// A's registers as wgmma takes them: for each step of the chain, thread and register.
fn fragments(a: &Operand, kind: Type, steps: usize) -> Vec<u32> {
    let mut out = Vec::new();
    for step in 0..steps {
        for thread in 0..128 {
            let (warp, lane) = (thread / 32, thread % 32);
            for r in 0..4 {
                let row = warp * 16 + lane / 4 + 8 * (r & 1);
                let at = |k: usize| a.bits[row * a.depth + k];
                out.push(if kind == Type::Tf32 {
                    at(step * 8 + lane % 4 + 4 * (r >> 1))
                } else {
                    let k = step * 16 + lane % 4 * 2 + 8 * (r >> 1);
                    at(k) | at(k + 1) << 16
                });
            }
        }
    }
    out
}

struct Case {
    kernel: String,
    kind: Type,
    n: usize,
    /// Transposed A and B.
    turned: (bool, bool),
    a_in_registers: bool,
}

fn check(d: &Device, random: &mut Random, case: &Case, swizzle: usize) {
    let Case {
        kernel, kind, n, ..
    } = case;
    let (kind, n) = (*kind, *n);
    let along = 32 / kind.bytes();
    // Along K, a chain stays within the width of a swizzle.
    let steps = if swizzle == 0 {
        3
    } else {
        WIDTHS[swizzle] / 32
    };
    let a = Operand::random(random, kind, 64, along * steps);
    let b = Operand::random(random, kind, n, along * steps);
    let place_a = Placement::new(&a, kind, swizzle, case.turned.0);
    let place_b = Placement::new(&b, kind, swizzle, case.turned.1);
    let start_b = place_a.size.next_multiple_of(1024);
    let size = start_b + place_b.size.next_multiple_of(1024);
    let mut image = vec![0u8; size];
    if !case.a_in_registers {
        place_a.write(&mut image, 0, &a, kind);
    }
    place_b.write(&mut image, start_b, &b, kind);
    let words: Vec<u32> = image
        .chunks(4)
        .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
        .collect();
    let fragments = fragments(&a, kind, steps);
    let (image, fragments) = (d.upload(&words), d.upload(&fragments));
    let layout = [
        size,
        0,
        start_b,
        place_a.leading,
        place_a.stride,
        place_b.leading,
        place_b.stride,
        swizzle,
        place_a.step,
        place_b.step,
        steps,
    ]
    .map(|v| v as u32);
    let y = d.in_every_mode(kernel, || {
        let y = d.uninit::<f32>(64 * n);
        let args = [
            d.pointer(&y),
            d.pointer(&image),
            d.pointer(&fragments),
            Arg::Words(layout),
        ];
        d.launch(
            kernel,
            Shape {
                shared: size as u32,
                ..shape(1, 128)
            },
            &args,
        )
        .unwrap();
        d.read(&y).iter().map(|v| v.to_bits()).collect()
    });
    for i in 0..64 {
        for j in 0..n {
            let at = |k: usize| a.values[i * a.depth + k] * b.values[j * b.depth + k];
            let exact: f64 = (0..a.depth).map(at).sum();
            let got = f64::from(f32::from_bits(y[i * n + j]));
            // Rounded once for each step, from at most `depth`.
            let tolerance = (steps * a.depth) as f64 * 2f64.powi(-24);
            assert!(
                (got - exact).abs() <= tolerance,
                "{kernel} {swizzle} ({i}, {j}): {got} {exact}"
            );
        }
    }
}

#[test]
fn every_size() {
    let d = Device::new();
    let mut random = Random(11);
    for n in [8, 16, 24, 32, 64, 96, 128, 136, 192, 248, 256] {
        let case = Case {
            kernel: format!("test_wgmma_bf16_{n}"),
            kind: Type::Bf16,
            n,
            turned: (false, false),
            a_in_registers: false,
        };
        for swizzle in 0..4 {
            check(&d, &mut random, &case, swizzle);
        }
    }
}

#[test]
fn types_directions_and_registers() {
    let d = Device::new();
    let mut random = Random(12);
    for (kernel, kind, n, turned, a_in_registers) in [
        ("test_wgmma_f16_64", Type::F16, 64, (false, false), false),
        ("test_wgmma_tf32_64", Type::Tf32, 64, (false, false), false),
        (
            "test_wgmma_bf16_64_ta",
            Type::Bf16,
            64,
            (true, false),
            false,
        ),
        (
            "test_wgmma_bf16_64_tb",
            Type::Bf16,
            64,
            (false, true),
            false,
        ),
        (
            "test_wgmma_f16_64_ta_tb",
            Type::F16,
            64,
            (true, true),
            false,
        ),
        (
            "test_wgmma_bf16_64_ra",
            Type::Bf16,
            64,
            (false, false),
            true,
        ),
        (
            "test_wgmma_f16_32_ra_tb",
            Type::F16,
            32,
            (false, true),
            true,
        ),
        (
            "test_wgmma_tf32_64_ra",
            Type::Tf32,
            64,
            (false, false),
            true,
        ),
    ] {
        let case = Case {
            kernel: kernel.into(),
            kind,
            n,
            turned,
            a_in_registers,
        };
        for swizzle in 0..4 {
            check(&d, &mut random, &case, swizzle);
        }
    }
}
