//! The tensor cores' and the copy instructions of one SM against plain loops in f64.

mod support;

use half::{bf16, f16};
use support::{Device, Random, shape};

/// f32 to a type of the tensor cores and back.
#[derive(Clone, Copy)]
enum Type {
    Bf16,
    F16,
    Tf32,
}

impl Type {
    fn round(self, x: f32) -> f64 {
        match self {
            Type::Bf16 => bf16::from_f32(x).to_f64(),
            Type::F16 => f16::from_f32(x).to_f64(),
            // To nearest in 10 bits of mantissa; the numbers drawn here have no ties.
            Type::Tf32 => f64::from(f32::from_bits((x.to_bits() + 0x1000) & !0x1fff)),
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn mma() {
    let d = Device::new();
    let mut random = Random(1);
    for (kernel, kind, depth) in [
        ("test_mma_bf16", Type::Bf16, 16),
        ("test_mma_f16", Type::F16, 16),
        ("test_mma_tf32", Type::Tf32, 8),
    ] {
        for _ in 0..10 {
            let a: Vec<f32> = (0..16 * depth).map(|_| random.unit()).collect();
            let b: Vec<f32> = (0..depth * 8).map(|_| random.unit()).collect();
            let c: Vec<f32> = (0..16 * 8).map(|_| random.unit()).collect();
            let (da, db, dc) = (d.upload(&a), d.upload(&b), d.upload(&c));
            let y = d.in_every_mode(kernel, || {
                let y = d.uninit::<f32>(16 * 8);
                let args = [
                    d.pointer(&y),
                    d.pointer(&da),
                    d.pointer(&db),
                    d.pointer(&dc),
                ];
                d.launch(kernel, shape(1, 32), &args).unwrap();
                bits(&d.read(&y))
            });
            for i in 0..16 {
                for j in 0..8 {
                    let products =
                        (0..depth).map(|k| kind.round(a[i * depth + k]) * kind.round(b[k * 8 + j]));
                    let exact = f64::from(c[i * 8 + j]) + products.sum::<f64>();
                    let got = f64::from(f32::from_bits(y[i * 8 + j]));
                    // Rounded once, from a sum of at most 17.
                    assert!(
                        (got - exact).abs() <= 17.0 * 2f64.powi(-24),
                        "{kernel} ({i}, {j}): {got} {exact}"
                    );
                }
            }
        }
    }
}

#[test]
fn matrices_of_lanes() {
    let d = Device::new();
    let mut random = Random(2);
    for count in [1usize, 2, 4] {
        for trans in [false, true] {
            let suffix = if trans { "_trans" } else { "" };
            let x: Vec<u16> = (0..count * 64).map(|_| random.next() as u16).collect();
            // Register q of lane l holds elements (l / 4, l % 4 * 2) and the next of matrix q.
            let mut registers = vec![0u32; count * 32];
            for q in 0..count {
                for l in 0..32 {
                    let at = |j: usize| {
                        let (i, j) = (l / 4, l % 4 * 2 + j);
                        u32::from(x[q * 64 + if trans { j * 8 + i } else { i * 8 + j }])
                    };
                    registers[q * 32 + l] = at(0) | at(1) << 16;
                }
            }
            let (dx, dr) = (d.upload(&x), d.upload(&registers));
            let name = format!("test_ldmatrix_{count}{suffix}");
            let loaded = d.in_every_mode(&name, || {
                let y = d.uninit::<u32>(count * 32);
                d.launch(&name, shape(1, 32), &[d.pointer(&y), d.pointer(&dx)])
                    .unwrap();
                d.read(&y)
            });
            assert_eq!(loaded, registers, "{name}");
            let name = format!("test_stmatrix_{count}{suffix}");
            let stored = d.in_every_mode(&name, || {
                let y = d.uninit::<u16>(count * 64);
                d.launch(&name, shape(1, 32), &[d.pointer(&y), d.pointer(&dr)])
                    .unwrap();
                d.read(&y)
            });
            assert_eq!(stored, x, "{name}");
        }
    }
}

#[test]
fn cp_async() {
    let d = Device::new();
    let mut random = Random(3);
    for words in [1usize, 2, 4] {
        let blocks = 3;
        let x: Vec<u32> = (0..blocks * 256 * words)
            .map(|_| random.next() as u32)
            .collect();
        let dx = d.upload(&x);
        let name = format!("test_cp_async_{}", words * 4);
        let y = d.in_every_mode(&name, || {
            let y = d.uninit::<u32>(x.len());
            d.launch(
                &name,
                shape(blocks as u32, 128),
                &[d.pointer(&y), d.pointer(&dx)],
            )
            .unwrap();
            d.read(&y)
        });
        for (i, &got) in y.iter().enumerate() {
            // The kernel turns each stage of 128 pieces round.
            let stage = 128 * words;
            let source = i / stage * stage + stage - 1 - i % stage;
            let expected = if source / words % 3 == 0 {
                0
            } else {
                x[source]
            };
            assert_eq!(got, expected, "{name} {i}");
        }
    }
}

#[test]
fn bank_conflicts_are_counted() {
    let d = Device::new();
    d.emulator.take_stats();
    let x = d.upload(&vec![0u16; 256]);
    let y = d.uninit::<u32>(128);
    d.launch(
        "test_ldmatrix_4",
        shape(1, 32),
        &[d.pointer(&y), d.pointer(&x)],
    )
    .unwrap();
    let stats = d.emulator.take_stats();
    // Rows of 32 bytes: the eight of a matrix fall on 4 of the 8 groups of banks.
    assert_eq!((stats.launches, stats.bank_conflicts), (1, 4));
}
