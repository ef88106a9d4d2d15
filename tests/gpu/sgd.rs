//! Stochastic gradient descent, tensor by tensor and all at once, and what a training step keeps on
//! the device.

use noiseforge::gpu::Gpu;
use noiseforge::ops::sgd::{Sgd, step, step_all};
use noiseforge::ops::step::{Cursor, LearningRates, LossScale, MultiTensor, Scale, Slots, end};
use noiseforge::tensor::{DType, Shape};
use noiseforge::{Result, Tensor};

use crate::harness::{once, run, values};
use crate::numbers::{get_u32, put_u32};

const SGD: Sgd = Sgd {
    lr: 0.1,
    momentum: 0.9,
    weight_decay: 0.01,
    nesterov: false,
};

/// Less than a vector, whole vectors, less and more than a block's piece.
const LENGTHS: [usize; 7] = [1, 3, 4, 1023, 4096, 4099, 9001];

fn tensors(len: usize) -> [Tensor; 3] {
    let shape = Shape::new(1, 1, len, 1);
    [values(shape, 1), values(shape, 2), values(shape, 3)]
}

/// Three fused multiply-adds or six roundings: the GPU may do either.
pub fn assert_close(found: &Tensor, exact: &Tensor, cpu: &Tensor) {
    let exact = exact.to_f64_vec();
    let worst = |t: &Tensor| {
        let pairs = t.to_f64_vec().into_iter().zip(&exact);
        pairs.fold(0.0, |worst: f64, (a, e)| {
            assert!(a.is_finite());
            worst.max((a - e).abs())
        })
    };
    let (found, own) = (worst(found), worst(cpu));
    assert!(
        found <= 2.0 * own + f64::from(f32::EPSILON),
        "error {found}, the CPU's {own}"
    );
}

#[test]
fn a_tensor_matches_the_cpu() {
    for len in LENGTHS {
        for nesterov in [false, true] {
            let sgd = Sgd { nesterov, ..SGD };
            let [w, grad, v] = tensors(len);
            let found = run(|gpu| {
                let (mut w, grad, mut v) = (w.to_gpu(gpu)?, grad.to_gpu(gpu)?, v.to_gpu(gpu)?);
                step(&mut w, &grad, &mut v, sgd)?;
                Ok(vec![w, v])
            });
            let on_cpu = |dtype| {
                let [mut w, grad, mut v] = [&w, &grad, &v].map(|t| t.to_dtype(dtype).unwrap());
                step(&mut w, &grad, &mut v, sgd).unwrap();
                [w, v]
            };
            let (exact, cpu) = (on_cpu(DType::F64), on_cpu(DType::F32));
            for i in 0..2 {
                assert_close(&found[i], &exact[i], &cpu[i]);
            }
        }
    }
}

struct Network {
    w: Vec<Tensor>,
    grad: Vec<Tensor>,
    v: Vec<Tensor>,
}

impl Network {
    fn new(gpu: &Gpu) -> Result<Self> {
        let mut n = Network {
            w: vec![],
            grad: vec![],
            v: vec![],
        };
        for len in LENGTHS {
            let [w, grad, v] = tensors(len);
            n.w.push(w.to_gpu(gpu)?);
            n.grad.push(grad.to_gpu(gpu)?);
            n.v.push(v.to_gpu(gpu)?);
        }
        Ok(n)
    }

    fn slots(&mut self) -> Result<Slots> {
        let mut slots = Slots::default();
        for ((w, grad), v) in self.w.iter_mut().zip(&mut self.grad).zip(&mut self.v) {
            slots.push(w, grad, v, None)?;
        }
        Ok(slots)
    }
}

/// One launch is the tensors one by one; rates follow the cursor and end with the last; gradients are
/// unscaled and end as 0; a replayed graph goes on where the cursor stands.
#[test]
fn all_tensors_in_one_launch() {
    let rates = [0.1, 0.02, 0.5];
    let used = [0.02, 0.5, 0.5];
    let found = run(|gpu| {
        let mut n = Network::new(gpu)?;
        let all = MultiTensor::new(n.slots()?)?;
        assert!(all.is_for(&n.slots()?));
        let mut lr = LearningRates::new(gpu, rates.len())?;
        lr.set(&rates)?;
        let (mut cursor, mut scale) = (Cursor::new(gpu)?, LossScale::new(gpu, DType::BF16)?);
        cursor.set(1, 7)?;
        let from = Network::new(gpu)?;
        let (graph, ()) = gpu.capture(|| {
            step_all(&all, &lr, &cursor, &mut scale, SGD)?;
            end(Some(&mut scale), &mut cursor)
        })?;
        for turn in 0..used.len() {
            if turn > 0 {
                assert_eq!(n.grad[5].to_cpu()?.data::<f32>(), [0.0; 4099]);
                for (to, from) in n.grad.iter_mut().zip(&from.grad) {
                    add(to, from)?;
                }
            }
            graph.launch()?;
        }
        let (batch, draw) = cursor.read()?;
        let state = scale.read()?;
        assert_eq!(
            state,
            Scale {
                scale: 1.0,
                good: 3,
                skipped: 0,
                steps: 3
            }
        );
        let mut out = vec![put_u32(gpu, &[batch, draw])?];
        out.extend(n.w);
        out.extend(n.v);
        out.extend(n.grad);
        Ok(out)
    });
    assert_eq!(get_u32(&found[0]), [4, 10]);
    for (i, len) in LENGTHS.into_iter().enumerate() {
        let on_cpu = |dtype| {
            let [mut w, grad, mut v] = tensors(len).map(|t| t.to_dtype(dtype).unwrap());
            for lr in used {
                step(&mut w, &grad, &mut v, Sgd { lr, ..SGD }).unwrap();
            }
            [w, v]
        };
        let (exact, cpu) = (on_cpu(DType::F64), on_cpu(DType::F32));
        for k in 0..2 {
            assert_close(&found[1 + k * LENGTHS.len() + i], &exact[k], &cpu[k]);
        }
        let grad = &found[1 + 2 * LENGTHS.len() + i];
        assert!(grad.data::<f32>().iter().all(|g| g.to_bits() == 0));
    }
}

/// `to += from` in place, for `to` = 0: a step of SGD with rate -1.
fn add(to: &mut Tensor, from: &Tensor) -> Result<()> {
    let plain = Sgd {
        lr: 1.0,
        momentum: 0.0,
        weight_decay: 0.0,
        nesterov: false,
    };
    let mut minus = from.zeros_like()?;
    let mut v = from.zeros_like()?;
    // minus = -from, then to = -minus
    step(&mut minus, from, &mut v, plain)?;
    step(to, &minus, &mut v, plain)
}

/// A gradient that is not finite leaves weights and velocities alone, clears the gradients and halves
/// the scale; the 2000th good step doubles it.
#[test]
fn a_step_that_overflows_is_left_out() -> Result<()> {
    for (tensor, at, bad) in [
        (0, 0, f32::NAN),
        (5, 4098, f32::INFINITY),
        (6, 4096, f32::NEG_INFINITY),
    ] {
        let found = run(|gpu| {
            let mut n = Network::new(gpu)?;
            let mut grad = n.grad[tensor].to_cpu()?;
            grad.data_mut::<f32>()[at] = bad;
            n.grad[tensor] = grad.to_gpu(gpu)?;
            let all = MultiTensor::new(n.slots()?)?;
            let mut lr = LearningRates::new(gpu, 1)?;
            lr.set(&[0.1])?;
            let (mut cursor, mut scale) = (Cursor::new(gpu)?, LossScale::new(gpu, DType::F16)?);
            scale.set(Scale {
                good: 1999,
                ..scale.read()?
            })?;
            let mut states = Vec::new();
            for _ in 0..2 {
                step_all(&all, &lr, &cursor, &mut scale, SGD)?;
                end(Some(&mut scale), &mut cursor)?;
                let s = scale.read()?;
                states.extend([s.scale as u32, s.good, s.skipped, s.steps]);
                if states.len() == 4 {
                    scale.set(Scale { good: 1999, ..s })?;
                    // The second step has gradients 0 and must move the weights by their decay.
                    for (w, now) in Network::new(gpu)?.w.iter().zip(&n.w) {
                        assert_eq!(w.to_cpu()?.data::<f32>(), now.to_cpu()?.data::<f32>());
                    }
                }
            }
            let mut out = vec![put_u32(gpu, &states)?];
            out.extend(n.grad);
            out.extend(n.w);
            Ok(out)
        });
        assert_eq!(get_u32(&found[0]), [32_768, 0, 1, 0, 65_536, 0, 1, 1]);
        for grad in &found[1..=LENGTHS.len()] {
            assert!(grad.data::<f32>().iter().all(|g| g.to_bits() == 0));
        }
        let moved = &found[1 + LENGTHS.len()];
        assert_ne!(moved.data::<f32>(), tensors(1)[0].data::<f32>());
    }
    Ok(())
}

/// The scale divides the gradients: a loss times 1024 gives the same step.
#[test]
fn gradients_are_unscaled() {
    let found = run(|gpu| {
        let mut out = Vec::new();
        for factor in [1.0, 1024.0] {
            let mut n = Network::new(gpu)?;
            for grad in &mut n.grad {
                let mut cpu = grad.to_cpu()?;
                cpu.data_mut::<f32>().iter_mut().for_each(|g| *g *= factor);
                *grad = cpu.to_gpu(gpu)?;
            }
            let all = MultiTensor::new(n.slots()?)?;
            let mut lr = LearningRates::new(gpu, 1)?;
            lr.set(&[0.1])?;
            let (cursor, mut scale) = (Cursor::new(gpu)?, LossScale::new(gpu, DType::F16)?);
            scale.set(Scale {
                scale: factor,
                ..scale.read()?
            })?;
            step_all(&all, &lr, &cursor, &mut scale, SGD)?;
            out.extend(n.w);
        }
        Ok(out)
    });
    let (plain, scaled) = found.split_at(LENGTHS.len());
    for (a, b) in plain.iter().zip(scaled) {
        assert_eq!(a.data::<f32>(), b.data::<f32>());
    }
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    once(|gpu| {
        let x = values(Shape::vector(4), 1).to_gpu(gpu)?;
        let half = x.to_dtype(DType::F16)?;
        let error = step(&mut half.clone(), &half, &mut half.clone(), SGD).unwrap_err();
        assert_eq!(
            error.to_string(),
            "sgd::step: w: expected [1, 1, 1, 4] f32 on cuda:0, found [1, 1, 1, 4] f16 on cuda:0"
        );
        let cpu = values(Shape::vector(4), 1);
        let error = step(&mut x.clone(), &cpu, &mut x.clone(), SGD).unwrap_err();
        assert_eq!(
            error.to_string(),
            "sgd::step: grad: expected [1, 1, 1, 4] f32 on cuda:0, found [1, 1, 1, 4] f32 on the CPU"
        );
        let mut slots = Slots::default();
        let [mut a, mut b, mut c, mut d] = std::array::from_fn(|_| x.clone());
        slots.push(&mut a, &mut b, &mut c, None)?;
        let error = slots
            .push(&mut a, &mut b, &mut c, Some(&mut d))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "Slots::push: second: expected one, found two moments"
        );
        let error = slots
            .push(&mut cpu.clone(), &mut b, &mut c, None)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "Slots::push: w: expected a tensor on a GPU, found [1, 1, 1, 4] f32 on the CPU"
        );
        let error = MultiTensor::new(Slots::default()).err().unwrap();
        assert_eq!(
            error.to_string(),
            "MultiTensor::new: slots: expected 1 to 2^31 - 1 pieces of 4096 elements, found 0"
        );
        let error = LearningRates::new(gpu, 0).err().unwrap();
        assert_eq!(
            error.to_string(),
            "LearningRates::new: steps: expected at least 1, found 0"
        );
        let error = LearningRates::new(gpu, 1)?.set(&[f64::NAN]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "LearningRates::set: rates: expected a finite number, at least 0, found NaN"
        );
        Ok(())
    })
}
