//! Adam, by rows and all tensors at once.

use noiseforge::ops::adam::{Adam, step, step_all};
use noiseforge::ops::step::{Cursor, LearningRates, LossScale, MultiTensor, Scale, Slots, end};
use noiseforge::tensor::{DType, Shape};
use noiseforge::{Result, Tensor};

use crate::harness::{once, run, values};
use crate::sgd::assert_close;

const ADAM: Adam = Adam {
    lr: 0.1,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
};

/// w, grad, m, v; second moments are not negative.
fn tensors(shape: Shape) -> [Tensor; 4] {
    let mut all = [1, 2, 3, 4].map(|seed| values(shape, seed));
    all[3]
        .data_mut::<f32>()
        .iter_mut()
        .for_each(|v| *v = v.abs());
    all
}

#[test]
fn rows_have_their_own_clocks() {
    for (n, len) in [(1, 1), (4, 3), (5, 300), (2, 4097)] {
        let shape = Shape::new(n, 1, len, 1);
        let t: Vec<u32> = (0..n as u32)
            .map(|row| [3, 0, 1, 1000][row as usize % 4])
            .collect();
        let [w, grad, m, v] = tensors(shape);
        let found = run(|gpu| {
            let [mut w, grad, mut m, mut v] = [&w, &grad, &m, &v].map(|t| t.to_gpu(gpu).unwrap());
            step(&mut w, &grad, &mut m, &mut v, &t, ADAM)?;
            Ok(vec![w, m, v])
        });
        let on_cpu = |dtype| {
            let cast = |t: &Tensor| t.to_dtype(dtype).unwrap();
            let [mut w, grad, mut m, mut v] = [&w, &grad, &m, &v].map(cast);
            step(&mut w, &grad, &mut m, &mut v, &t, ADAM).unwrap();
            [w, m, v]
        };
        let (exact, cpu) = (on_cpu(DType::F64), on_cpu(DType::F32));
        for i in 0..3 {
            assert_close(&found[i], &exact[i], &cpu[i]);
        }
    }
}

#[test]
fn all_tensors_in_one_launch() {
    let lengths = [1, 6, 4096, 5001];
    let found = run(|gpu| {
        let mut all: Vec<Vec<Tensor>> = Vec::new();
        for len in lengths {
            let tensors = tensors(Shape::vector(len));
            all.push(
                tensors
                    .iter()
                    .map(|t| t.to_gpu(gpu))
                    .collect::<Result<_>>()?,
            );
        }
        let mut slots = Slots::default();
        for tensors in &mut all {
            let [w, grad, m, v] = &mut tensors[..] else {
                unreachable!()
            };
            slots.push(w, grad, m, Some(v))?;
        }
        let table = MultiTensor::new(slots)?;
        let mut lr = LearningRates::new(gpu, 2)?;
        lr.set(&[0.1, 0.03])?;
        let (mut cursor, mut scale) = (Cursor::new(gpu)?, LossScale::new(gpu, DType::F32)?);
        scale.set(Scale {
            steps: 4,
            ..scale.read()?
        })?;
        let (graph, ()) = gpu.capture(|| {
            step_all(&table, &lr, &cursor, &mut scale, ADAM)?;
            end(Some(&mut scale), &mut cursor)
        })?;
        graph.launch()?;
        graph.launch()?;
        Ok(all.into_iter().flatten().collect())
    });
    for (len, found) in lengths.into_iter().zip(found.chunks(4)) {
        let on_cpu = |dtype| {
            let [mut w, mut grad, mut m, mut v] =
                tensors(Shape::vector(len)).map(|t| t.to_dtype(dtype).unwrap());
            for (t, lr) in [(5, 0.1), (6, 0.03)] {
                step(&mut w, &grad, &mut m, &mut v, &[t], Adam { lr, ..ADAM }).unwrap();
                grad.clear().unwrap();
            }
            [w, grad, m, v]
        };
        let (exact, cpu) = (on_cpu(DType::F64), on_cpu(DType::F32));
        for i in 0..4 {
            assert_close(&found[i], &exact[i], &cpu[i]);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    once(|gpu| {
        let shape = Shape::new(2, 1, 1, 3);
        let x = values(shape, 1).to_gpu(gpu)?;
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
            error(&x.to_dtype(DType::BF16)?, &[1, 1], ADAM),
            "adam::step: grad: expected [2, 1, 1, 3] f32 on cuda:0, found [2, 1, 1, 3] bf16 on cuda:0"
        );
        let mut slots = Slots::default();
        let [mut a, mut b, mut c] = std::array::from_fn(|_| x.clone());
        slots.push(&mut a, &mut b, &mut c, None)?;
        let table = MultiTensor::new(slots)?;
        let (lr, cursor) = (LearningRates::new(gpu, 1)?, Cursor::new(gpu)?);
        let mut scale = LossScale::new(gpu, DType::F32)?;
        let mut error = |adam| {
            let result = step_all(&table, &lr, &cursor, &mut scale, adam);
            result.unwrap_err().to_string()
        };
        assert_eq!(
            error(ADAM),
            "adam::step_all: tensors: expected two tensors of state, found one tensor of state"
        );
        Ok(())
    })
}
