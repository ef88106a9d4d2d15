//! Noiseforge on the work that its CPU peers are measured on: one JSON line per measurement, in
//! the form that `benches/peers/README.md` describes. `scripts/compare-cpu` runs it beside them.
//!
//! `cargo bench --bench peer_shapes -- [--list] [--only TEXT]... [--reps N] [--patience SECONDS]`

mod work;

use std::fs::File;
use std::io::{Read, Seek};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use noiseforge::ops::conv2d::{self, Conv2d};
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose};
use noiseforge::ops::noisy_conv2d;
use noiseforge::tensor::{DType, Shape, Tensor};
use work::{BATCH, Call, carlini_wagner, values, vgg_infer, vgg_train};

/// Channels in, channels out, height and width of the 3x3 convolutions of VGG16, one per size.
const SHAPES: [(usize, usize, usize); 5] = [
    (3, 64, 32),
    (64, 64, 32),
    (128, 128, 16),
    (256, 256, 8),
    (512, 512, 4),
];
const SIGMA: f32 = 0.1;
const CONV: Conv2d = Conv2d {
    stride: 1,
    pad: 1,
    groups: 1,
};

type Prepare = Box<dyn Fn() -> Result<Call>>;

fn works() -> Vec<(String, Prepare)> {
    let mut works: Vec<(String, Prepare)> = Vec::new();
    for shape in SHAPES {
        let name = format!("{},{},{}", shape.0, shape.1, shape.2);
        for backward in [false, true] {
            let what = if backward { "fwdbwd" } else { "fwd" };
            works.push((
                format!("w1 {name} {what}"),
                Box::new(move || conv(shape, backward)),
            ));
            works.push((
                format!("w1n {name} {what}"),
                Box::new(move || noisy_conv(shape, backward)),
            ));
        }
    }
    // The op reads x as well, which the peers' generator alone does not: the ratio is to our
    // disadvantage in the first line and like for like in the second.
    works.push(("noise 2097152 randn".into(), Box::new(add_noise)));
    works.push(("noise 2097152 add".into(), Box::new(add_noise)));
    for (noisy, name) in [(true, "noisy"), (false, "plain")] {
        works.push((
            format!("w2 train {name}"),
            Box::new(move || vgg_train(noisy)),
        ));
        works.push((
            format!("w2 infer {name}"),
            Box::new(move || vgg_infer(noisy)),
        ));
    }
    works.push(("w3 cw50".into(), Box::new(carlini_wagner)));
    works
}

fn draw(n: usize) -> Noise {
    Noise {
        key: Key::consecutive(0, Purpose::Train, 0, n, 0),
        layer: 1,
        sigma: SIGMA,
        normals: Normals::Fast,
    }
}

/// x, w and dy of a convolution.
fn operands((c_in, c_out, size): (usize, usize, usize)) -> Result<[Tensor; 3]> {
    Ok([
        values(Shape::new(BATCH, size, size, c_in), 1.0)?,
        values(Shape::new(c_out, 3, 3, c_in), 0.05)?,
        values(Shape::new(BATCH, size, size, c_out), 1.0)?,
    ])
}

fn conv(shape: (usize, usize, usize), backward: bool) -> Result<Call> {
    let [x, w, dy] = operands(shape)?;
    Ok(Box::new(move || {
        conv2d::forward(&x, &w, None, CONV)?;
        if backward {
            conv2d::input_grad(&dy, &w, x.shape(), CONV)?;
            let mut dw = Tensor::zeros(w.shape(), DType::F32);
            conv2d::weight_grad(&dy, &x, &mut dw, None, CONV)?;
        }
        Ok(())
    }))
}

fn noisy_conv(shape: (usize, usize, usize), backward: bool) -> Result<Call> {
    let [x, w, dy] = operands(shape)?;
    let noise = draw(BATCH);
    Ok(Box::new(move || {
        noisy_conv2d::forward(&x, &noise, &w, None, CONV)?;
        if backward {
            conv2d::input_grad(&dy, &w, x.shape(), CONV)?;
            let mut dw = Tensor::zeros(w.shape(), DType::F32);
            noisy_conv2d::weight_grad(&dy, &x, &noise, &mut dw, None, CONV)?;
        }
        Ok(())
    }))
}

fn add_noise() -> Result<Call> {
    let x = values(Shape::new(BATCH, 32, 32, 64), 1.0)?;
    let noise = draw(BATCH);
    Ok(Box::new(move || {
        noise::forward(&x, &noise)?;
        Ok(())
    }))
}

// ---- timing on a machine that others use too: the rules of benches/peers/quiet.py ------------

/// Share of the time of the computing threads that may be spent waiting in a quiet repetition.
const WAITED: f64 = 0.02;
/// How long reading those files takes at most, if nothing comes between.
const READING: Duration = Duration::from_micros(200);
const WARM_UP: usize = 3;

/// The time for which threads were ready to run and were not running.
struct Waiting {
    // Kept open: looking the threads up takes longer than some of what is measured.
    files: Vec<File>,
}

impl Waiting {
    /// Of the calling thread.
    fn of_this_thread() -> Self {
        Waiting {
            files: File::open("/proc/thread-self/schedstat")
                .into_iter()
                .collect(),
        }
    }

    /// Of all threads that exist now. Two may wait at the same time: the sum may exceed the clock.
    fn of_all_threads() -> Self {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten();
        Waiting {
            files: tasks
                .flatten()
                .filter_map(|task| File::open(task.path().join("schedstat")).ok())
                .collect(),
        }
    }

    fn seconds(&self) -> f64 {
        let waited = |mut file: &File| {
            let mut line = [0; 64];
            file.rewind().ok()?;
            let len = file.read(&mut line).ok()?;
            let line = std::str::from_utf8(&line[..len]).ok()?;
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        };
        self.files.iter().filter_map(waited).sum::<f64>() * 1e-9
    }
}

/// Ticks of all cores since the start: all of them, and those in which a core stood idle.
fn cpu_ticks() -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<f64> = stat
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .take(8)
        .map(|t| t.parse().ok())
        .collect::<Option<_>>()?;
    Some((ticks.iter().sum(), ticks.get(3)? + ticks.get(4)?))
}

/// Returns as soon as the machine is nearly idle, at the latest at the deadline.
fn await_calm(deadline: Instant) {
    while Instant::now() < deadline {
        let before = cpu_ticks();
        std::thread::sleep(Duration::from_millis(100));
        let (Some(before), Some(after)) = (before, cpu_ticks()) else {
            return;
        };
        if after.1 - before.1 >= 0.9 * (after.0 - before.0) {
            return;
        }
    }
}

struct Times {
    chosen: Vec<f64>,
    reps: usize,
    quiet: usize,
}

/// Calls until `reps` quiet repetitions are there, waiting at most `patience` in all.
/// Short calls are repeated up to 20 times as often, within a third of a second. With one thread
/// the time spent waiting for a core is taken off instead, and no repetition counts as disturbed;
/// that thread must be the one that computes, so this is to be called on rayon's.
fn measure(call: &mut dyn FnMut() -> Result<()>, reps: usize, patience: Duration) -> Result<Times> {
    let threads = rayon::current_num_threads() as f64;
    for _ in 0..WARM_UP {
        call()?;
    }
    let deadline = Instant::now() + patience;
    let waiting = if threads == 1.0 {
        Waiting::of_this_thread()
    } else {
        Waiting::of_all_threads()
    };
    let (mut all, mut quiet) = (Vec::new(), Vec::new());
    loop {
        let before = Instant::now();
        let waited = waiting.seconds();
        let start = Instant::now();
        call()?;
        let end = Instant::now();
        let mut waited = waiting.seconds() - waited;
        let after = Instant::now();
        let mut seconds = (end - start).as_secs_f64();
        if threads == 1.0 {
            if (start - before).max(after - end) > READING {
                continue; // it may have waited outside the call, by the same account
            }
            seconds -= waited;
            waited = 0.0;
        }
        all.push(seconds);
        if waited <= WAITED * seconds * threads {
            quiet.push(seconds);
        } else if Instant::now() < deadline {
            await_calm(deadline);
            call()?; // the caches belong to somebody else now
        }
        let patient = Instant::now() < deadline;
        let enough = if patient { &quiet } else { &all };
        let short = enough.iter().sum::<f64>() < 0.3 && enough.len() < 20 * reps;
        if enough.len() >= reps && !short {
            break;
        }
    }
    let (reps, quiet_reps) = (all.len(), quiet.len());
    let mut chosen = if quiet_reps >= 3 { quiet } else { all };
    chosen.sort_by(f64::total_cmp);
    Ok(Times {
        chosen,
        reps,
        quiet: quiet_reps,
    })
}

/// Peak resident memory of this process so far, in MB of 10^6 bytes.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1.024e-3)
}

struct Options {
    list: bool,
    only: Vec<String>,
    reps: usize,
    patience: Duration,
}

fn options() -> Result<Options> {
    let mut options = Options {
        list: false,
        only: Vec::new(),
        reps: 10,
        patience: Duration::ZERO,
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        if name == "--bench" {
            continue; // what cargo itself says to every bench
        }
        if name == "--list" {
            options.list = true;
            continue;
        }
        let value = args
            .next()
            .with_context(|| format!("{name} without a value"))?;
        match name.as_str() {
            "--only" => options.only.push(value),
            "--reps" => options.reps = value.parse().context("--reps takes a whole number")?,
            "--patience" => {
                let seconds = value.parse().context("--patience takes seconds")?;
                options.patience =
                    Duration::try_from_secs_f64(seconds).context("--patience takes seconds")?;
            }
            _ => anyhow::bail!(
                "unknown option {name}: there are --list, --only, --reps and --patience"
            ),
        }
    }
    ensure!(options.reps > 0, "--reps must be at least 1");
    Ok(options)
}

fn main() -> Result<()> {
    let options = options()?;
    if options.list {
        for (work, _) in works() {
            println!("{work}");
        }
        return Ok(());
    }
    let wanted: Vec<_> = works()
        .into_iter()
        .filter(|(name, _)| {
            options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()))
        })
        .collect();
    ensure!(!wanted.is_empty(), "no work has such a name");
    let alone = wanted.len() == 1;
    for (work, prepare) in wanted {
        let times = prepare()
            .and_then(|mut call| {
                if rayon::current_num_threads() == 1 {
                    return rayon::scope(|_| measure(&mut *call, options.reps, options.patience));
                }
                measure(&mut *call, options.reps, options.patience)
            })
            .with_context(|| format!("measuring {work}"))?;
        let chosen = &times.chosen;
        let median = (chosen[chosen.len() / 2] + chosen[(chosen.len() - 1) / 2]) / 2.0;
        let round = |ms: f64| (ms * 1e4).round() / 1e4;
        let line = serde_json::json!({
            "peer": "noiseforge",
            "work": work,
            "layout": "channels_last",
            "form": "fused",
            "ms_min": round(chosen[0] * 1e3),
            "ms_median": round(median * 1e3),
            "reps": times.reps,
            "quiet": times.quiet,
            // Memory only grows: a peak belongs to one work only if nothing else was measured.
            "peak_mb": peak_mb().filter(|_| alone).map(f64::round),
        });
        println!("{line}");
    }
    Ok(())
}
