//! ZOO against a random classifier: what its finite differences say of the gradient, for h from 1e-4 to 1e-1,
//! independent and common draws and 1, 10 and 50 averages, and what the attack achieves with as many queries.
//!
//! `cargo run --release --example zoo_noise -- WEIGHTS DATA [IMAGES [QUERIES [H [AVERAGES]]]]`, H instead of all four,
//! AVERAGES instead of all three

use std::path::Path;
use std::time::Instant;

use noiseforge::attacks::zoo::{Draws, Zoo};
use noiseforge::attacks::{Criterion, Goal, Objective, Options, Targets, attack_black_box};
use noiseforge::data::{Spec, Split};
use noiseforge::ensemble::{Classifier, Differentiable, Ensemble};
use noiseforge::models::Model;
use noiseforge::ops::noise::{Purpose, Row, Rows};
use noiseforge::rng::Stream;
use noiseforge::tensor::Tensor;

/// As in the program: it keeps the memory of large tensors.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Draws of the gradient that differences are compared with.
const EXACT: u32 = 1000;
/// Coordinates whose differences are taken in each image.
const COORDINATES: usize = 48;
const ROWS: usize = 256;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |s| s.parse());
    anyhow::ensure!(
        args.len() >= 2,
        "WEIGHTS DATA [IMAGES [QUERIES [H [AVERAGES]]]]"
    );
    let data = args[1].parse::<Spec>()?.load(Split::Test, 0)?;
    let mut model = Model::read(Path::new(&args[0]), |config| {
        config
            .ok_or_else(|| noiseforge::Error::argument("zoo_noise", "weights", "metadata", "none"))
    })?;
    let (count, queries) = (number(2, 10)?, number(3, 50_000)?);
    let differences = match args.get(4) {
        Some(h) => vec![h.parse()?],
        None => vec![1e-4, 1e-3, 1e-2, 1e-1],
    };
    let config = model.config();
    let random = config.noise_at_test && (config.init_noise > 0.0 || config.inner_noise > 0.0);

    // The first images that the mean of 50 draws classifies correctly.
    let first: Vec<usize> = (0..data.len().min(8 * count)).collect();
    let (x, labels) = data.batch(&first)?;
    let draws = if random { 50 } else { 1 };
    let rows: Rows = first
        .iter()
        .map(|&i| Row {
            id: i as u32,
            draw: 0,
        })
        .collect();
    let z = Ensemble::new(&mut model, 1, Purpose::Eval, draws)?.logits(&x, &rows)?;
    let correct: Vec<usize> = z
        .data::<f32>()
        .chunks(z.shape().c)
        .zip(&labels)
        .enumerate()
        .filter(|(_, (z, y))| !Goal::Away(**y).is_met(z))
        .map(|(i, _)| i)
        .take(count)
        .collect();
    let (x, labels) = data.batch(&correct)?;
    let ids: Vec<u32> = correct.iter().map(|&i| i as u32).collect();

    let averages = match args.get(5) {
        Some(averages) => vec![averages.parse()?],
        None => vec![1, 10, 50],
    };
    let settings: Vec<(Draws, u32)> = match random {
        true => [Draws::Independent, Draws::Common]
            .into_iter()
            .flat_map(|draws| averages.iter().map(move |&averages| (draws, averages)))
            .collect(),
        false => vec![(Draws::Independent, 1)],
    };
    let exact = exact(&mut model, &x, &labels, random)?;
    println!(
        "draws        averages  h       cosine  right signs  success  median l2  queries/image  seconds"
    );
    for (draws, averages) in settings {
        for &h in &differences {
            let (cosine, signs) = quality(&mut model, &x, &labels, &exact, h, draws, averages)?;
            let zoo = Zoo {
                iterations: u32::MAX,
                h,
                c: 10.0,
                draws,
                averages,
                early_stop: 0,
                ..Zoo::published()
            };
            let options = Options {
                rows: ROWS,
                confirmations: if random { 11 } else { 0 },
                budget: Some(queries as u64),
                ..Options::default()
            };
            let criterion = Criterion::Untargeted {
                labels: labels.clone(),
            };
            let targets = Targets {
                x: &x,
                ids: &ids,
                criterion: &criterion,
            };
            let start = Instant::now();
            let mut net = Ensemble::new(&mut model, 7, Purpose::Attack, 1)?;
            let found = attack_black_box(&mut net, targets, &zoo, &options, &mut |_| Ok(()))?;
            let seconds = start.elapsed().as_secs_f64();
            let distance = |f: &noiseforge::attacks::Found| match f.success {
                true => f.l2,
                false => f64::INFINITY,
            };
            let mut l2: Vec<f64> = found.iter().map(distance).collect();
            l2.sort_by(f64::total_cmp);
            let asked: u64 = found.iter().map(|f| f.counts.forward).sum();
            println!(
                "{:<12} {averages:<9} {h:<7} {cosine:<7.3} {signs:<12.3} {:<8} {:<10.4} {:<14} {seconds:.0}",
                format!("{draws:?}"),
                found.iter().filter(|f| f.success).count(),
                l2[l2.len() / 2],
                asked / count as u64,
            );
        }
    }
    Ok(())
}

/// The gradient of the mean margin of each image, `[n, h, w, c]`.
fn exact(
    model: &mut Model,
    x: &Tensor,
    labels: &[u32],
    random: bool,
) -> anyhow::Result<Vec<Vec<f64>>> {
    let draws = if random { EXACT } else { 1 };
    let mut net = Ensemble::new(model, 3, Purpose::Attack, 1)?;
    let mut sums = Vec::new();
    for (i, &label) in labels.iter().enumerate() {
        let mut sum = vec![0f64; x.shape().row_len()];
        let all: Vec<u32> = (0..draws).collect();
        for some in all.chunks(ROWS) {
            let rows: Rows = some
                .iter()
                .map(|&draw| Row { id: i as u32, draw })
                .collect();
            let images = x.gather_rows(&vec![i; some.len()])?;
            let (_, dx) = net.input_grad(&images, &rows, &mut |z| {
                let mut gradient = vec![0f32; z.shape().len()];
                let classes = z.shape().c;
                let margin = Objective::margin(Goal::Away(label));
                for (z, g) in z
                    .data::<f32>()
                    .chunks(classes)
                    .zip(gradient.chunks_mut(classes))
                {
                    margin.evaluate(z, g);
                }
                Tensor::from_vec(z.shape(), gradient)
            })?;
            for row in dx.data::<f32>().chunks(sum.len()) {
                sum.iter_mut()
                    .zip(row)
                    .for_each(|(s, &g)| *s += f64::from(g));
            }
        }
        sums.push(sum);
    }
    Ok(sums)
}

/// The cosine of the differences with the gradient over some coordinates of all images, each image weighted alike,
/// and the share of right signs.
fn quality(
    model: &mut Model,
    x: &Tensor,
    labels: &[u32],
    exact: &[Vec<f64>],
    h: f64,
    draws: Draws,
    averages: u32,
) -> anyhow::Result<(f64, f64)> {
    let mut net = Ensemble::new(model, 5, Purpose::Attack, 1)?;
    let mut random = Stream::new(11, 0x300, 0);
    let (mut cosine, mut right) = (0.0, 0);
    for (i, &label) in labels.iter().enumerate() {
        let len = x.shape().row_len();
        let chosen: Vec<usize> = (0..COORDINATES)
            .map(|_| (random.uniform() * len as f64) as usize)
            .collect();
        // [coordinate][+h, -h][average]
        let (mut pixels, mut rows) = (Vec::new(), Vec::new());
        let mut fresh = 0;
        for &at in &chosen {
            for (side, step) in [h, -h].into_iter().enumerate() {
                for a in 0..averages {
                    let mut image: Vec<f32> = x.row(i).to_vec();
                    image[at] += step as f32;
                    pixels.extend(image);
                    let common = draws == Draws::Common;
                    let draw = if common {
                        a
                    } else {
                        fresh + side as u32 * averages + a
                    };
                    rows.push(Row { id: i as u32, draw });
                }
            }
            fresh += 2 * averages;
        }
        let mut margins = Vec::new();
        let goal = Goal::Away(label);
        for (pixels, rows) in pixels.chunks(ROWS * len).zip(rows.chunks(ROWS)) {
            let images = Tensor::from_vec(x.shape().with_n(rows.len()), pixels.to_vec())?;
            let z = net.logits(&images, &rows.to_vec().into())?;
            let of_rows = z.data::<f32>().chunks(z.shape().c);
            margins.extend(of_rows.map(|z| goal.margin(z)));
        }
        let mean = |m: &[f64]| m.iter().sum::<f64>() / m.len() as f64;
        let slopes = margins.chunks(2 * averages as usize).map(|m| {
            let (up, down) = m.split_at(averages as usize);
            (mean(up) - mean(down)) / (2.0 * h)
        });
        let (mut products, mut squares, mut exact_squares) = (0.0, 0.0, 0.0);
        for (slope, &at) in slopes.zip(&chosen) {
            let g = exact[i][at];
            products += slope * g;
            squares += slope * slope;
            exact_squares += g * g;
            right += usize::from(slope * g > 0.0);
        }
        cosine += products / (squares * exact_squares).sqrt().max(f64::MIN_POSITIVE);
    }
    let n = labels.len();
    Ok((cosine / n as f64, right as f64 / (n * COORDINATES) as f64))
}
