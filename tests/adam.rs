//! Adam, with a step counter per row.

use noiseforge::ops::adam::{Adam, step};
use noiseforge::{DType, Shape, Tensor};

fn tensor(shape: Shape, values: &[f64]) -> Tensor {
    Tensor::from_vec(shape, values.to_vec()).unwrap()
}

const ADAM: Adam = Adam {
    lr: 0.1,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
};

#[test]
fn gives_pytorchs_numbers() {
    // w = torch.tensor([1., -2., 3.], dtype=torch.float64, requires_grad=True)
    // o = torch.optim.Adam([w], lr=0.1)
    // for g in ([0.5, -1., 0.], [1., 2., -3.]):
    //     w.grad = torch.tensor(g, dtype=torch.float64); o.step()
    // print(w, o.state[w]['exp_avg'], o.state[w]['exp_avg_sq'])
    let shape = Shape::vector(3);
    let mut w = tensor(shape, &[1.0, -2.0, 3.0]);
    let (mut m, mut v) = (
        Tensor::zeros(shape, DType::F64),
        Tensor::zeros(shape, DType::F64),
    );
    for (t, grad) in [(1, [0.5, -1.0, 0.0]), (2, [1.0, 2.0, -3.0])] {
        step(&mut w, &tensor(shape, &grad), &mut m, &mut v, &[t], ADAM).unwrap();
    }
    for (found, expected) in [
        (w, [0.8034818006, -1.9366103535, 3.074413682]),
        (m, [0.145, 0.11, -0.3]),
        (v, [0.00124975, 0.004999, 0.009]),
    ] {
        for (f, e) in found.data::<f64>().iter().zip(expected) {
            assert!((f - e).abs() < 1e-9, "{f} for {e}");
        }
    }
}

#[test]
fn rows_have_their_own_clocks() {
    // Rows short and long, one thread's block and more.
    for (rows, len) in [(4, 3), (4, 20_000), (3000, 7)] {
        let shape = Shape::new(rows, 1, len, 1);
        let start = Tensor::full(shape, DType::F32, 1.0);
        let grad = Tensor::full(shape, DType::F32, 0.25);
        let zeros = Tensor::zeros(shape, DType::F32);
        let clock = |row: usize| (row % 4) as u32;
        let t: Vec<u32> = (0..rows).map(clock).collect();
        let (mut w, mut m, mut v) = (start.clone(), zeros.clone(), zeros.clone());
        step(&mut w, &grad, &mut m, &mut v, &t, ADAM).unwrap();
        for row in [0, 1, 2, 3, rows - 1] {
            // The same row in a batch of its own.
            let one = |t: &Tensor| t.gather_rows(&[row]).unwrap();
            let (mut w1, mut m1, mut v1) = (one(&start), one(&zeros), one(&zeros));
            step(&mut w1, &one(&grad), &mut m1, &mut v1, &[clock(row)], ADAM).unwrap();
            for (batch, alone) in [(&w, &w1), (&m, &m1), (&v, &v1)] {
                assert_eq!(one(batch).data::<f32>(), alone.data::<f32>());
            }
            let moved = w1.data::<f32>().iter().all(|&w| w != 1.0);
            let touched = m1.data::<f32>().iter().any(|&m| m != 0.0);
            assert_eq!((moved, touched), (clock(row) > 0, clock(row) > 0));
        }
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let shape = Shape::new(2, 1, 1, 3);
    let x = Tensor::zeros(shape, DType::F32);
    let error = |grad: &Tensor, t: &[u32], adam| {
        let (mut w, mut m, mut v) = (x.clone(), x.clone(), x.clone());
        step(&mut w, grad, &mut m, &mut v, t, adam)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(&x, &[1], ADAM),
        "adam::step: t: expected 2 entries, one per row, found 1"
    );
    assert_eq!(
        error(&x.to_dtype(DType::F64).unwrap(), &[1, 1], ADAM),
        "adam::step: grad: expected [2, 1, 1, 3] f32, found [2, 1, 1, 3] f64"
    );
    assert_eq!(
        error(&x, &[1, 1], Adam { beta2: 1.0, ..ADAM }),
        "adam::step: adam.beta2: expected a number in [0, 1), found 1"
    );
    assert_eq!(
        error(&x, &[1, 1], Adam { eps: -1.0, ..ADAM }),
        "adam::step: adam.eps: expected a finite number, at least 0, found -1"
    );
}
