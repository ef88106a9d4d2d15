//! Every kernel on the GPU, timed by the device's own clock: time, GB/s or TFLOP/s, and the share of
//! what this device was measured to do; the fused ops beside the unfused ones in the same run.
//!
//! `cargo bench --bench gpu -- TEXT` runs the cases whose name contains TEXT, `'A|B'` those with A or B;
//! `NOISEFORGE_BENCH_CSV=FILE` also writes the table as CSV. Without a GPU it says so and ends.

mod layers;
mod ops;
mod steps;

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use criterion::{Criterion, Throughput};
use noiseforge::gpu::{Gpu, Timer};
use noiseforge::ops::batch_norm::{self, Activation, Running};
use noiseforge::ops::conv2d::model::Card;
use noiseforge::ops::conv2d::{self, Conv2d};
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose};
use noiseforge::ops::pool2d::{self, Pool2d};
use noiseforge::ops::{add, noisy_conv2d, relu};
use noiseforge::tensor::{DType, Device};
use noiseforge::{Shape, Tensor};

/// Images of a batch.
const BATCH: usize = 128;
/// What memory-bound ops work on: 67 million values, several times the second-level cache.
const LARGE: Shape = Shape::new(1024, 32, 32, 64);

/// What bounds an op.
#[derive(Clone, Copy)]
enum Work {
    /// Bytes that must move: each input read once, each output written once.
    Bytes(usize),
    /// Floating-point operations, a multiply-add counted as two.
    Flops(usize),
}

struct Line {
    name: String,
    work: Work,
    seconds: f64,
    /// What the model says it takes, and what the tensor cores could do at most, in operations a second.
    model: Option<f64>,
    peak: Option<f64>,
}

/// Runs cases through criterion and keeps the medians.
struct Bench {
    criterion: RefCell<Criterion>,
    gpu: Gpu,
    timer: Timer,
    lines: RefCell<Vec<Line>>,
    csv: Option<RefCell<File>>,
    /// Cases whose names contain nothing of this, texts between bars, are left out.
    filter: Option<String>,
}

impl Bench {
    /// Whether a case of this name is to run: what it needs can take longer to make than to time.
    fn wanted(&self, name: &str) -> bool {
        let named = |filter: &String| filter.split('|').any(|text| name.contains(text));
        self.filter.as_ref().is_none_or(named)
    }

    /// `call` must not wait for the device. Criterion chooses how often it is repeated between two
    /// events, so that launches overlap as they do in a network.
    fn case(&self, name: &str, work: Work, call: impl FnMut() -> Result<()>) -> Result<()> {
        self.timed(name, work, (None, None), call)
    }

    /// The same for what runs on tensor cores, beside the model's seconds.
    fn modelled(
        &self,
        name: &str,
        work: Work,
        model: Option<f64>,
        call: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let peak = Card::of(self.gpu.properties()).peak();
        self.timed(name, work, (model, Some(peak)), call)
    }

    fn timed(
        &self,
        name: &str,
        work: Work,
        (model, peak): (Option<f64>, Option<f64>),
        mut call: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        if !self.wanted(name) {
            return Ok(());
        }
        // Loads the kernels, fills the pool, and shows an error once.
        call().with_context(|| name.to_string())?;
        self.gpu.synchronize()?;
        let samples = RefCell::new(Vec::new());
        let mut criterion = self.criterion.borrow_mut();
        let mut group = criterion.benchmark_group("gpu");
        group.throughput(match work {
            Work::Bytes(n) => Throughput::Bytes(n as u64),
            Work::Flops(n) => Throughput::Elements(n as u64),
        });
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let run = || (0..iterations).try_for_each(|_| call().map_err(to_library));
                let seconds = self.timer.time(run).expect("a case that ran before");
                samples.borrow_mut().push(seconds / iterations as f64);
                Duration::from_secs_f64(seconds)
            });
        });
        group.finish();
        let mut samples = samples.into_inner();
        samples.sort_by(f64::total_cmp);
        if let Some(&seconds) = samples.get(samples.len() / 2) {
            self.lines.borrow_mut().push(Line {
                name: name.to_string(),
                work,
                seconds,
                model,
                peak,
            });
            self.save()?;
        }
        Ok(())
    }

    /// The rate of the copy, once it is measured.
    fn copy(&self) -> Option<f64> {
        let lines = self.lines.borrow();
        let copy = lines.iter().find(|line| line.name.starts_with("copy"))?;
        Some(copy.rate())
    }

    /// Adds the last line to the CSV at once: a run that is cut short leaves what it measured.
    fn save(&self) -> Result<()> {
        let (Some(csv), lines) = (&self.csv, self.lines.borrow()) else {
            return Ok(());
        };
        let line = lines.last().expect("a line was measured");
        let (unit, share) = line.unit_and_share(self.copy());
        let (us, rate) = (line.seconds * 1e6, line.rate());
        let mut csv = csv.borrow_mut();
        let (peak, model) = (line.share_of_peak(), line.model_us());
        writeln!(
            csv,
            "\"{}\",{us:.3},{rate:.4},{unit},{share},{peak},{model}",
            line.name
        )?;
        Ok(())
    }

    /// Normals, drawn where they are used: the host would take longer than all that is measured.
    fn values(&self, shape: Shape, dtype: DType, seed: u64) -> Result<Tensor> {
        let zeros = Tensor::full_on(&Device::Gpu(self.gpu.clone()), shape, dtype, 0.0)?;
        let noise = Noise {
            key: Key::consecutive(seed, Purpose::Test, 0, shape.n, 0),
            layer: 0,
            sigma: 1.0,
            normals: Normals::Fast,
        };
        Ok(noise::forward(&zeros, &noise)?)
    }
}

fn to_library(e: anyhow::Error) -> noiseforge::Error {
    e.downcast().expect("the library's error")
}

fn noise_of(rows: usize, normals: Normals) -> Noise {
    Noise {
        key: Key::consecutive(7, Purpose::Train, 0, rows, 3),
        layer: 1,
        sigma: 0.1,
        normals,
    }
}

/// Copying is what memory-bound kernels are measured against.
fn ceilings(b: &Bench) -> Result<()> {
    let name = "copy 256 MiB";
    if !b.wanted(name) {
        return Ok(());
    }
    let x = b.values(LARGE, DType::F32, 1)?;
    let mut y = x.zeros_like()?;
    b.case(name, Work::Bytes(2 * 4 * x.shape().len()), || {
        Ok(y.copy_from(&x)?)
    })
}

fn memory_bound(b: &Bench) -> Result<()> {
    let shape = LARGE;
    let n = shape.len();
    for dtype in [DType::F32, DType::BF16] {
        let size = dtype.size();
        let x = b.values(shape, dtype, 1)?;
        let z = b.values(shape, dtype, 2)?;
        let c = Shape::vector(shape.c);
        let gamma = b.values(c, DType::F32, 3)?;
        let beta = b.values(c, DType::F32, 4)?;
        for normals in [Normals::Fast, Normals::Precise] {
            let noise = noise_of(shape.n, normals);
            let name = format!("noise {normals:?} {dtype}").to_lowercase();
            b.case(&name, Work::Bytes(2 * size * n), || {
                noise::forward(&x, &noise)?;
                Ok(())
            })?;
        }
        b.case(&format!("relu {dtype}"), Work::Bytes(2 * size * n), || {
            relu::forward(x.clone(), None)?;
            Ok(())
        })?;
        b.case(&format!("add {dtype}"), Work::Bytes(3 * size * n), || {
            add::forward(x.clone(), &z)?;
            Ok(())
        })?;
        let pool = Pool2d { k: 2, stride: 2 };
        let bytes = size * (n + n / 4) + n / 4;
        b.case(&format!("max pool 2x2 {dtype}"), Work::Bytes(bytes), || {
            pool2d::max_forward(&x, pool)?;
            Ok(())
        })?;
        let device = Device::Gpu(b.gpu.clone());
        let mut running = Running {
            mean: Tensor::full_on(&device, c, DType::F32, 0.0)?,
            var: Tensor::full_on(&device, c, DType::F32, 1.0)?,
        };
        let affine = Some((&gamma, &beta));
        b.case(
            &format!("batch norm + relu, train {dtype}"),
            Work::Bytes(3 * size * n),
            || {
                batch_norm::forward_train(&x, affine, &mut running, Activation::Relu)?;
                Ok(())
            },
        )?;
        b.case(
            &format!("batch norm + relu, eval {dtype}"),
            Work::Bytes(2 * size * n),
            || {
                batch_norm::forward_eval(&x, affine, &running, Activation::Relu)?;
                Ok(())
            },
        )?;
        let (_, saved) = batch_norm::forward_train(&x, affine, &mut running, Activation::Relu)?;
        let mut dgamma = gamma.zeros_like()?;
        let mut dbeta = beta.zeros_like()?;
        b.case(
            &format!("batch norm + relu, backward {dtype}"),
            Work::Bytes(5 * size * n),
            || {
                let grads = Some((&mut dgamma, &mut dbeta));
                batch_norm::backward(z.clone(), &x, affine, &saved, Activation::Relu, grads)?;
                Ok(())
            },
        )?;
    }
    Ok(())
}

fn convolutions(b: &Bench) -> Result<()> {
    let conv = Conv2d {
        stride: 1,
        pad: 1,
        groups: 1,
    };
    // 16-bit types are in layers.rs.
    let dtype = DType::F32;
    for (c_in, c_out, size) in [
        (3, 64, 32),
        (64, 64, 32),
        (128, 128, 16),
        (256, 256, 8),
        (512, 512, 4),
        (512, 512, 2),
    ] {
        let x_shape = Shape::new(BATCH, size, size, c_in);
        let x = b.values(x_shape, dtype, 1)?;
        let w = b.values(Shape::new(c_out, 3, 3, c_in), DType::F32, 2)?;
        let dy = b.values(x_shape.with_c(c_out), dtype, 3)?;
        let mut dw = w.zeros_like()?;
        let noise = noise_of(BATCH, Normals::Fast);
        let flops = Work::Flops(2 * dy.shape().len() * 9 * c_in);
        let name = |what: &str| format!("{what} {c_in}>{c_out} {size}x{size} {dtype}");
        b.case(&name("conv"), flops, || {
            conv2d::forward(&x, &w, None, conv)?;
            Ok(())
        })?;
        b.case(&name("noise then conv"), flops, || {
            conv2d::forward(&noise::forward(&x, &noise)?, &w, None, conv)?;
            Ok(())
        })?;
        b.case(&name("noisy conv"), flops, || {
            noisy_conv2d::forward(&x, &noise, &w, None, conv)?;
            Ok(())
        })?;
        b.case(&name("conv input grad"), flops, || {
            conv2d::input_grad(&dy, &w, x_shape, conv)?;
            Ok(())
        })?;
        b.case(&name("conv weight grad"), flops, || {
            Ok(conv2d::weight_grad(&dy, &x, &mut dw, None, conv)?)
        })?;
        b.case(&name("noisy conv weight grad"), flops, || {
            Ok(noisy_conv2d::weight_grad(
                &dy, &x, &noise, &mut dw, None, conv,
            )?)
        })?;
    }
    Ok(())
}

impl Line {
    /// GB/s or TFLOP/s.
    fn rate(&self) -> f64 {
        match self.work {
            Work::Bytes(n) => n as f64 / self.seconds / 1e9,
            Work::Flops(n) => n as f64 / self.seconds / 1e12,
        }
    }

    /// Of what `mma.sync` does at most; nothing for what does not run on tensor cores.
    fn share_of_peak(&self) -> String {
        match (self.work, self.peak) {
            (Work::Flops(n), Some(peak)) => format!("{:.2}", n as f64 / self.seconds / peak),
            _ => String::new(),
        }
    }

    fn model_us(&self) -> String {
        self.model
            .map_or(String::new(), |s| format!("{:.1}", s * 1e6))
    }

    /// The unit of the rate, and the share of the copy's where bytes bound both.
    fn unit_and_share(&self, copy: Option<f64>) -> (&'static str, String) {
        match (self.work, copy) {
            (Work::Bytes(_), Some(copy)) => ("GB/s", format!("{:.2}", self.rate() / copy)),
            (Work::Bytes(_), None) => ("GB/s", String::new()),
            (Work::Flops(_), _) => ("TFLOP/s", String::new()),
        }
    }
}

fn report(b: &Bench) {
    println!(
        "\n{:<52} {:>12} {:>10} {:>8} {:>9} {:>8} {:>10}",
        "case", "us", "rate", "", "of copy", "of mma", "model us"
    );
    for line in b.lines.borrow().iter() {
        let (unit, share) = line.unit_and_share(b.copy());
        let (us, rate) = (line.seconds * 1e6, line.rate());
        println!(
            "{:<52} {us:>12.2} {rate:>10.2} {unit:>8} {share:>9} {:>8} {:>10}",
            line.name,
            line.share_of_peak(),
            line.model_us()
        );
    }
}

fn main() -> Result<()> {
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(e) => {
            println!("skipped: {e}");
            return Ok(());
        }
    };
    println!("{gpu:?}");
    let criterion = Criterion::default()
        .configure_from_args()
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .sample_size(10)
        .without_plots();
    let csv = match std::env::var_os("NOISEFORGE_BENCH_CSV") {
        Some(path) => {
            let mut file =
                File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            writeln!(
                file,
                "case,microseconds,rate,unit,share_of_copy,share_of_mma,model_microseconds"
            )?;
            Some(RefCell::new(file))
        }
        None => None,
    };
    let bench = Bench {
        criterion: RefCell::new(criterion),
        timer: Timer::new(&gpu)?,
        gpu,
        lines: RefCell::new(Vec::new()),
        csv,
        filter: std::env::args().skip(1).find(|arg| !arg.starts_with('-')),
    };
    // What matters most first: a visit to a GPU may cut it short.
    ceilings(&bench)?;
    memory_bound(&bench)?;
    steps::all(&bench)?;
    ops::all(&bench, LARGE)?;
    layers::all(&bench)?;
    steps::single(&bench)?;
    convolutions(&bench)?;
    report(&bench);
    Ok(())
}
