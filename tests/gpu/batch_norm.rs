//! Batch norm: the GPU path against the CPU's in f64, with the CPU's own f32 error as the measure.

use noiseforge::gpu::Gpu;
use noiseforge::ops::apply::{self, Norm, Then};
use noiseforge::ops::batch_norm::{self, Activation, Partials, Running};
use noiseforge::tensor::{DType, Device, Shape};
use noiseforge::{Result, Tensor};

use crate::harness::{DTYPES, epsilon, once, rounded, run, values};

/// Few pixels and many, channels that fill no byte, no lane, several groups of lanes.
const SHAPES: [Shape; 7] = [
    Shape::new(2, 1, 1, 1),
    Shape::new(1, 1, 2, 3),
    Shape::new(3, 5, 7, 11),
    Shape::new(2, 3, 3, 8),
    Shape::new(5, 9, 11, 40),
    Shape::new(2, 2, 3, 267),
    Shape::new(1, 3, 3, 512),
];

const ACTIVATIONS: [Activation; 3] = [
    Activation::Identity,
    Activation::Relu,
    Activation::BoundedRelu(0.9),
];

/// Everything a layer holds and sees, on the CPU in f32.
struct Case {
    x: Tensor,
    dy: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
}

impl Case {
    fn new(shape: Shape, dtype: DType) -> Self {
        let vector = Shape::vector(shape.c);
        let shifted = |seed, by: f32| {
            let mut t = values(vector, seed);
            t.data_mut::<f32>().iter_mut().for_each(|v| *v += by);
            t
        };
        Case {
            x: rounded(&values(shape, 1), dtype),
            dy: rounded(&values(shape, 2), dtype),
            gamma: shifted(3, 1.5),
            beta: values(vector, 4),
            mean: values(vector, 5),
            var: shifted(6, 1.5),
        }
    }

    /// On a device in a type; parameters in its master type.
    fn on(&self, device: &Device, dtype: DType) -> Result<Self> {
        let to = |t: &Tensor, dtype| match device {
            Device::Cpu => t.to_dtype(dtype),
            Device::Gpu(gpu) => t.to_gpu(gpu)?.to_dtype(dtype),
        };
        let master = dtype.master();
        Ok(Case {
            x: to(&self.x, dtype)?,
            dy: to(&self.dy, dtype)?,
            gamma: to(&self.gamma, master)?,
            beta: to(&self.beta, master)?,
            mean: to(&self.mean, master)?,
            var: to(&self.var, master)?,
        })
    }

    /// y, dx, dgamma, dbeta and, when training, the running estimates.
    fn pass(self, train: bool, affine: bool, activation: Activation) -> Result<Vec<Tensor>> {
        let mut running = Running {
            mean: self.mean,
            var: self.var,
        };
        let (mut dgamma, mut dbeta) = (self.gamma.clone(), self.beta.clone());
        let affine = affine.then_some((&self.gamma, &self.beta));
        let (y, saved) = match train {
            true => batch_norm::forward_train(&self.x, affine, &mut running, activation)?,
            false => batch_norm::forward_eval(&self.x, affine, &running, activation)?,
        };
        let grads = affine.map(|_| (&mut dgamma, &mut dbeta));
        let dx = batch_norm::backward(self.dy, &self.x, affine, &saved, activation, grads)?;
        let mut all = vec![y, dx, saved.mean, saved.inv_std];
        if affine.is_some() {
            all.extend([dgamma, dbeta]);
        }
        if train {
            all.extend([running.mean, running.var]);
        }
        Ok(all)
    }
}

/// `v` normalised with its own statistics or those in `partials`, and the running ones that they moved from a mean
/// of 0 and a variance of 1.
pub fn normalised(v: Tensor, partials: Option<Partials>) -> Result<Vec<Tensor>> {
    let (device, vector, dtype) = (v.device(), Shape::vector(v.shape().c), v.dtype().master());
    let mut running = Running {
        mean: Tensor::full_on(&device, vector, dtype, 0.0)?,
        var: Tensor::full_on(&device, vector, dtype, 1.0)?,
    };
    let norm = Norm::Train {
        affine: None,
        running: &mut running,
        partials,
    };
    let y = apply::forward(v, norm, &Then::default())?.0;
    Ok(vec![y, running.mean, running.var])
}

/// Every value within four times the error that the CPU's f32 path shows against the exact result, and
/// eight units in the last place of the largest value. 16-bit results may be off by their rounding,
/// too, and where steps in between were rounded (`steps` roundings in all) by those of values up to
/// twice the largest; sums over such steps are left to f32.
#[track_caller]
pub fn check(
    found: &[Tensor],
    cpu: &[Tensor],
    exact: &[Tensor],
    dtype: DType,
    steps: usize,
    what: &str,
) {
    assert_eq!(found.len(), exact.len());
    for (i, ((found, cpu), exact)) in found.iter().zip(cpu).zip(exact).enumerate() {
        assert_eq!(found.shape(), exact.shape(), "{what}: output {i}");
        let vector = found.shape().pixels() == 1;
        if vector && dtype != DType::F32 && steps > 1 {
            continue;
        }
        let exact = exact.to_f64_vec();
        let errors = |t: &Tensor| -> Vec<f64> {
            let pairs = t.to_f64_vec().into_iter().zip(&exact);
            pairs.map(|(t, e)| (t - e).abs()).collect()
        };
        let largest = exact.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        let own = errors(cpu).into_iter().fold(0.0, f64::max);
        let mut slack = 4.0 * own + 8.0 * epsilon(DType::F32) * largest;
        // Parameters, statistics and their gradients stay in f32.
        let mut relative = 0.0;
        if !vector && dtype != DType::F32 {
            relative = 1.01 * epsilon(dtype);
            slack += (steps - 1) as f64 * relative * 2.0 * largest;
        }
        for (at, (error, exact)) in errors(found).into_iter().zip(&exact).enumerate() {
            let allowed = slack + relative * exact.abs();
            assert!(
                error <= allowed,
                "{what}: output {i} [{at}] is {error:.2e} off {exact}, allowed {allowed:.2e}, CPU {own:.2e}"
            );
        }
    }
}

#[test]
fn follows_the_cpu_in_f64() {
    for shape in SHAPES {
        for (k, activation) in ACTIVATIONS.into_iter().enumerate() {
            for train in [true, false] {
                // Both with and without gamma and beta, but not with every activation.
                let affine = k != 1 || shape.c != 8;
                for dtype in DTYPES {
                    let what = format!("{shape} {activation:?} train {train} {dtype}");
                    let case = Case::new(shape, dtype);
                    let pass = |device: &Device, dtype| {
                        case.on(device, dtype)?.pass(train, affine, activation)
                    };
                    let found = run(|gpu| pass(&Device::Gpu(gpu.clone()), dtype));
                    let cpu = pass(&Device::Cpu, DType::F32).unwrap();
                    let exact = pass(&Device::Cpu, DType::F64).unwrap();
                    check(&found, &cpu, &exact, dtype, 1, &what);
                }
            }
        }
    }
}

/// Threads with several pixels each, some with none, in several blocks: the sums of one channel pass
/// through every stage.
#[test]
fn long_sums_follow_the_cpu() {
    let shape = Shape::new(3, 23, 31, 1024);
    let case = Case::new(shape, DType::F32);
    let pass = |device: &Device, dtype| {
        let case = case.on(device, dtype)?;
        case.pass(true, true, Activation::Relu)
    };
    let found = once(|gpu| {
        let outputs = pass(&Device::Gpu(gpu.clone()), DType::F32)?;
        outputs
            .iter()
            .map(Tensor::to_cpu)
            .collect::<Result<Vec<_>>>()
    });
    let cpu = pass(&Device::Cpu, DType::F32).unwrap();
    let exact = pass(&Device::Cpu, DType::F64).unwrap();
    check(&found.unwrap(), &cpu, &exact, DType::F32, 1, "long sums");
}

/// A mean of a thousand deviations, and one value far from all others: what a sum of squares loses.
#[test]
fn statistics_are_stable() {
    let shape = Shape::new(4, 9, 9, 10);
    let mut x = values(shape, 9);
    for (i, x) in x.data_mut::<f32>().iter_mut().enumerate() {
        *x += 1000.0;
        if i % shape.c == 3 && i / shape.c == 100 {
            *x = -1e5;
        }
        // The first pixel is the outlier of channel 4.
        if i == 4 {
            *x = 3e6;
        }
    }
    let statistics = |x: &Tensor, device: &Device, dtype: DType| -> Result<Vec<Tensor>> {
        let master = dtype.master();
        let vector = Shape::vector(shape.c);
        let mut running = Running {
            mean: Tensor::full_on(device, vector, master, 0.0)?,
            var: Tensor::full_on(device, vector, master, 1.0)?,
        };
        let (_, saved) = batch_norm::forward_train(x, None, &mut running, Activation::Identity)?;
        Ok(vec![saved.mean, saved.inv_std, running.mean, running.var])
    };
    let found = run(|gpu| statistics(&x.to_gpu(gpu)?, &Device::Gpu(gpu.clone()), DType::F32));
    let doubles = x.to_dtype(DType::F64).unwrap();
    let exact = statistics(&doubles, &Device::Cpu, DType::F64).unwrap();
    for (i, (found, exact)) in found.iter().zip(exact).enumerate() {
        for (c, (f, e)) in found
            .to_f64_vec()
            .iter()
            .zip(exact.to_f64_vec())
            .enumerate()
        {
            let error = (f - e).abs() / e.abs();
            assert!(error < 3e-6, "statistic {i} of channel {c}: {f} for {e}");
        }
    }
}

#[test]
fn a_row_in_evaluation_does_not_depend_on_its_batch() {
    let case = Case::new(Shape::new(4, 3, 5, 24), DType::F32);
    let eval = |gpu: &Gpu, rows: &[usize]| {
        let some = Case {
            x: case.x.gather_rows(rows)?,
            dy: case.dy.gather_rows(rows)?,
            gamma: case.gamma.clone(),
            beta: case.beta.clone(),
            mean: case.mean.clone(),
            var: case.var.clone(),
        };
        let device = Device::Gpu(gpu.clone());
        let mut outputs = some
            .on(&device, DType::F32)?
            .pass(false, true, Activation::Relu)?;
        outputs.truncate(2);
        Ok(outputs)
    };
    let all = run(|gpu| eval(gpu, &[0, 1, 2, 3]));
    let some = run(|gpu| eval(gpu, &[2, 0]));
    for (all, some) in all.iter().zip(&some) {
        let expected = all.gather_rows(&[2, 0]).unwrap();
        assert_eq!(some.data::<f32>(), expected.data::<f32>());
    }
}

#[test]
fn refuses_what_does_not_fit() {
    once(|gpu| {
        let on = |t: &Tensor| t.to_gpu(gpu).unwrap();
        let case = Case::new(Shape::new(2, 2, 2, 3), DType::F32);
        let x = on(&case.x).to_dtype(DType::BF16).unwrap();
        let mut running = Running {
            mean: on(&case.mean),
            var: on(&case.var).to_dtype(DType::BF16).unwrap(),
        };
        let error = batch_norm::forward_train(&x, None, &mut running, Activation::Relu);
        assert_eq!(
            error.unwrap_err().to_string(),
            "batch_norm::forward_train: running.var: expected [1, 1, 1, 3] f32 on cuda:0, found [1, 1, 1, 3] bf16 on cuda:0"
        );
        running.var = case.var.clone();
        let error = batch_norm::forward_eval(&x, None, &running, Activation::Relu);
        assert_eq!(
            error.unwrap_err().to_string(),
            "batch_norm::forward_eval: running.var: expected [1, 1, 1, 3] f32 on cuda:0, found [1, 1, 1, 3] f32 on the CPU"
        );
    });
}
