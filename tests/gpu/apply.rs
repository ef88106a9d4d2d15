//! The fused pass: the single ops' bits in f32, and the CPU's composition within its roundings.

use noiseforge::gpu::Gpu;
use noiseforge::ops::apply::{self, Norm, Then};
use noiseforge::ops::batch_norm::{self, Activation, Running};
use noiseforge::ops::conv2d::{self, Conv2d};
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose};
use noiseforge::ops::pool2d::{self, Pool2d};
use noiseforge::ops::{add, noisy_conv2d, relu};
use noiseforge::tensor::{DType, Device, Shape};
use noiseforge::{Result, Tensor};

use crate::batch_norm::check;
use crate::harness::{DTYPES, once, rounded, run, values};
use crate::noise::anew;

const TWO: Pool2d = Pool2d { k: 2, stride: 2 };
const THREE: Pool2d = Pool2d { k: 3, stride: 2 };

#[derive(Debug, Clone, Copy, PartialEq)]
enum Front {
    None,
    Train,
    Eval,
}

/// What one pass does.
#[derive(Debug, Clone, Copy)]
struct Plan {
    shape: Shape,
    front: Front,
    affine: bool,
    residual: bool,
    activation: Activation,
    pool: Option<Pool2d>,
    noise: Option<Normals>,
}

fn plans() -> Vec<Plan> {
    // A rest that no window covers, pooled or not; whole bytes of channels and a part of one.
    let shapes = [
        Shape::new(2, 5, 7, 3),
        Shape::new(3, 4, 4, 8),
        Shape::new(1, 6, 3, 20),
        Shape::new(2, 3, 5, 64),
    ];
    let activations = [
        Activation::Relu,
        Activation::BoundedRelu(0.5),
        Activation::Identity,
    ];
    let noises = [None, Some(Normals::Fast), Some(Normals::Precise)];
    let mut plans = Vec::new();
    let mut i = 0;
    for front in [Front::None, Front::Train, Front::Eval] {
        for residual in [false, true] {
            for pool in [None, Some(TWO), Some(THREE)] {
                for noise in noises {
                    // Shapes and activations go round with the rest.
                    for _ in 0..2 {
                        plans.push(Plan {
                            shape: shapes[i % 4],
                            front,
                            affine: i % 5 != 0,
                            residual,
                            activation: activations[i % 3],
                            pool,
                            noise,
                        });
                        i += 1;
                    }
                }
            }
        }
    }
    plans
}

/// What a pass sees, on the CPU in f32.
struct Values {
    x: Tensor,
    residual: Tensor,
    dy: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running: Running,
    noise: Option<Noise>,
}

impl Values {
    fn new(plan: &Plan, dtype: DType) -> Self {
        let shape = plan.shape;
        let vector = Shape::vector(shape.c);
        let shifted = |seed, by: f32| {
            let mut t = values(vector, seed);
            t.data_mut::<f32>().iter_mut().for_each(|v| *v += by);
            t
        };
        let out = plan
            .pool
            .map_or(shape, |p| p.output_shape("test", shape).unwrap());
        Values {
            x: rounded(&values(shape, 11), dtype),
            residual: rounded(&values(shape, 12), dtype),
            dy: rounded(&values(out, 13), dtype),
            gamma: shifted(14, 1.5),
            beta: values(vector, 15),
            running: Running {
                mean: values(vector, 16),
                var: shifted(17, 1.5),
            },
            noise: plan.noise.map(|normals| Noise {
                key: Key::consecutive(5, Purpose::Test, 9, shape.n, 2),
                layer: 7,
                sigma: 0.3,
                normals,
            }),
        }
    }

    fn on(&self, device: &Device, dtype: DType) -> Result<Self> {
        let to = |t: &Tensor, dtype| match device {
            Device::Cpu => t.to_dtype(dtype),
            Device::Gpu(gpu) => t.to_gpu(gpu)?.to_dtype(dtype),
        };
        let master = dtype.master();
        Ok(Values {
            x: to(&self.x, dtype)?,
            residual: to(&self.residual, dtype)?,
            dy: to(&self.dy, dtype)?,
            gamma: to(&self.gamma, master)?,
            beta: to(&self.beta, master)?,
            running: Running {
                mean: to(&self.running.mean, master)?,
                var: to(&self.running.var, master)?,
            },
            noise: self.noise.as_ref().map(anew),
        })
    }
}

/// y, dx, the residual's gradient, dgamma and dbeta, running estimates; by the fused op.
fn fused(plan: &Plan, mut v: Values, record: bool) -> Result<Vec<Tensor>> {
    let (mut dgamma, mut dbeta) = (v.gamma.clone(), v.beta.clone());
    let has_affine = plan.affine && plan.front != Front::None;
    let affine = has_affine.then_some((&v.gamma, &v.beta));
    let norm = match plan.front {
        Front::None => Norm::None,
        Front::Train => Norm::Train {
            affine,
            running: &mut v.running,
            partials: None,
        },
        Front::Eval => Norm::Eval {
            affine,
            running: &v.running,
        },
    };
    let then = Then {
        residual: plan.residual.then_some(&v.residual),
        activation: plan.activation,
        pool: plan.pool,
        noise: v.noise.as_ref(),
        record,
    };
    let (y, saved) = apply::forward(v.x, norm, &then)?;
    assert_eq!(saved.is_some(), record);
    let mut all = vec![y];
    if let Some(saved) = saved {
        let grads = affine.map(|_| (&mut dgamma, &mut dbeta));
        let gradients = apply::backward(v.dy, affine, saved, grads)?;
        all.push(gradients.dx);
        assert_eq!(gradients.dresidual.is_some(), plan.residual);
        all.extend(gradients.dresidual);
    }
    if affine.is_some() && record {
        all.extend([dgamma, dbeta]);
    }
    if plan.front == Front::Train {
        all.extend([v.running.mean, v.running.var]);
    }
    Ok(all)
}

/// The result by the single ops.
fn composed(plan: &Plan, mut v: Values) -> Result<Tensor> {
    let affine = plan.affine.then_some((&v.gamma, &v.beta));
    let identity = Activation::Identity;
    let mut y = match plan.front {
        Front::None => v.x,
        Front::Train => batch_norm::forward_train(&v.x, affine, &mut v.running, identity)?.0,
        Front::Eval => batch_norm::forward_eval(&v.x, affine, &v.running, identity)?.0,
    };
    if plan.residual {
        y = add::forward(y, &v.residual)?;
    }
    y = match plan.activation {
        Activation::Identity => y,
        Activation::Relu => relu::forward(y, None)?,
        Activation::BoundedRelu(cap) => relu::forward(y, Some(cap))?,
    };
    if let Some(pool) = plan.pool {
        y = pool2d::max_forward(&y, pool)?.0;
    }
    match &v.noise {
        Some(noise) => noise::forward(&y, noise),
        None => Ok(y),
    }
}

#[test]
fn is_the_single_ops_to_the_bit_in_f32() {
    for plan in plans() {
        let v = Values::new(&plan, DType::F32);
        run(|gpu| {
            let on = || v.on(&Device::Gpu(gpu.clone()), DType::F32);
            let one = composed(&plan, on()?)?;
            let recorded = fused(&plan, on()?, true)?.swap_remove(0);
            let alone = fused(&plan, on()?, false)?.swap_remove(0);
            for (what, y) in [("recorded", &recorded), ("alone", &alone)] {
                assert!(
                    y.device_bytes()? == one.device_bytes()?,
                    "{plan:?}: {what}: other bits than the single ops"
                );
            }
            Ok(vec![recorded])
        });
    }
}

#[test]
fn follows_the_cpu_in_f64() {
    for (i, plan) in plans().into_iter().enumerate() {
        // All types for some, one each for all.
        for dtype in DTYPES
            .into_iter()
            .cycle()
            .skip(i)
            .take(1 + usize::from(i % 4 == 0) * 2)
        {
            let v = Values::new(&plan, dtype);
            let found = run(|gpu| {
                let v = v.on(&Device::Gpu(gpu.clone()), dtype)?;
                fused(&plan, v, true)
            });
            let cpu = |dtype| fused(&plan, v.on(&Device::Cpu, dtype)?, true);
            let (single, exact) = (cpu(DType::F32).unwrap(), cpu(DType::F64).unwrap());
            // Fast normals are further from the CPU's than its f32 path is from f64: within 1e-5 for
            // the radii that these plans draw (tests/gpu/noise.rs), times sigma, over check's four.
            let mut cpu = single;
            if plan.noise == Some(Normals::Fast) {
                cpu[0].data_mut::<f32>()[0] += 0.3 * 1e-5 / 4.0;
            }
            // Rounded in front of the noise or of a pooling of its own, and at the end.
            let pooled_alone = plan.pool == Some(THREE) || plan.pool.is_some() && plan.residual;
            let steps = 1 + usize::from(pooled_alone || plan.noise.is_some());
            let what = format!("{plan:?} {dtype}");
            check(&found, &cpu, &exact, dtype, steps, &what);
        }
    }
}

/// Where noise is drawn is a matter of time alone: by the pass, or by the convolution that reads what it
/// wrote.
#[test]
fn noise_here_is_noise_in_the_next_convolution_to_the_bit() {
    let conv = Conv2d {
        stride: 1,
        pad: 1,
        groups: 1,
    };
    for (i, plan) in plans().into_iter().enumerate() {
        if plan.noise.is_none() {
            continue;
        }
        // Every type meets every kind of plan over the list.
        let dtype = DTYPES[i % 3];
        let v = Values::new(&plan, dtype);
        let w = values(Shape::new(9, 3, 3, plan.shape.c), 21);
        run(|gpu| {
            let on = || v.on(&Device::Gpu(gpu.clone()), dtype);
            let (w, noise) = (w.to_gpu(gpu)?, v.noise.as_ref().map(anew).unwrap());
            let here = fused(&plan, on()?, false)?.swap_remove(0);
            let here = conv2d::forward(&here, &w, None, conv)?;
            let mut quiet = on()?;
            quiet.noise = None;
            let there = fused(&plan, quiet, false)?.swap_remove(0);
            let there = noisy_conv2d::forward(&there, &noise, &w, None, conv)?;
            assert!(
                here.device_bytes()? == there.device_bytes()?,
                "{plan:?} {dtype}: the place of the noise shows"
            );
            Ok(vec![here])
        });
    }
}

#[test]
fn refuses_what_does_not_fit() {
    once(|gpu: &Gpu| {
        let plan = plans()[0];
        let v = Values::new(&plan, DType::F32);
        let v = v.on(&Device::Gpu(gpu.clone()), DType::F32).unwrap();
        let other = values(Shape::new(2, 5, 7, 4), 1).to_gpu(gpu).unwrap();
        let then = Then {
            residual: Some(&other),
            activation: Activation::Relu,
            pool: None,
            noise: None,
            record: false,
        };
        let error = |then: &Then<'_>| match apply::forward(v.x.clone(), Norm::None, then) {
            Ok(_) => panic!("not refused"),
            Err(e) => e.to_string(),
        };
        assert_eq!(
            error(&then),
            "apply::forward: residual: expected [2, 5, 7, 3] f32 on cuda:0, found [2, 5, 7, 4] f32 on cuda:0"
        );
        let then = Then {
            residual: None,
            activation: Activation::BoundedRelu(-1.0),
            ..then
        };
        assert_eq!(
            error(&then),
            "apply::forward: activation: expected a bound above 0, found -1"
        );
    });
}
