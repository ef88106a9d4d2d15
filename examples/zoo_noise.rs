//! ZOO against a random classifier: finite differences h from 1e-4 to 1e-1, independent and common draws,
//! 1, 10 and 50 averages.
//!
//! `cargo run --release --example zoo_noise -- WEIGHTS DATA [IMAGES [ITERATIONS [AVERAGES,...]]]`

use std::path::Path;
use std::time::Instant;

use noiseforge::attacks::zoo::{Draws, Zoo};
use noiseforge::attacks::{Criterion, Goal, Options, Targets, attack_black_box};
use noiseforge::data::{Spec, Split};
use noiseforge::ensemble::{Classifier, Ensemble};
use noiseforge::models::Model;
use noiseforge::ops::noise::{Purpose, Row};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |s| s.parse());
    anyhow::ensure!(
        args.len() >= 2,
        "WEIGHTS DATA [IMAGES [ITERATIONS [AVERAGES,...]]]"
    );
    let data = args[1].parse::<Spec>()?.load(Split::Test, 0)?;
    let mut model = Model::read(Path::new(&args[0]), |config| {
        config
            .ok_or_else(|| noiseforge::Error::argument("zoo_noise", "weights", "metadata", "none"))
    })?;
    let (count, iterations) = (number(2, 10)?, number(3, 100)?);
    let averages: Vec<u32> = match args.get(4) {
        Some(list) => list.split(',').map(str::parse).collect::<Result<_, _>>()?,
        None => vec![1, 10, 50],
    };
    let random = !model.config().init_noise.eq(&0.0) || !model.config().inner_noise.eq(&0.0);

    // The first images that the mean of 50 draws classifies correctly.
    let first: Vec<usize> = (0..data.len().min(8 * count)).collect();
    let (x, labels) = data.batch(&first)?;
    let draws = if random { 50 } else { 1 };
    let rows: Vec<Row> = first
        .iter()
        .map(|&i| Row {
            id: i as u32,
            draw: 0,
        })
        .collect();
    let z = Ensemble::new(&mut model, 1, Purpose::Eval, draws)?.logits(&x, &rows.into())?;
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
    let criterion = Criterion::Untargeted { labels };

    println!("draws        averages  h       success  median l2  queries     seconds  queries/s");
    for averages in averages {
        for draws in [Draws::Independent, Draws::Common] {
            for h in [1e-4, 1e-3, 1e-2, 1e-1] {
                let zoo = Zoo {
                    iterations: iterations as u32,
                    h,
                    c: 10.0,
                    draws,
                    averages,
                    ..Zoo::published()
                };
                let options = Options {
                    confirmations: if random { 11 } else { 0 },
                    ..Options::default()
                };
                let mut net = Ensemble::new(&mut model, 7, Purpose::Attack, 1)?;
                let targets = Targets {
                    x: &x,
                    ids: &ids,
                    criterion: &criterion,
                };
                let start = Instant::now();
                let found = attack_black_box(&mut net, targets, &zoo, &options, &mut |_| Ok(()))?;
                let seconds = start.elapsed().as_secs_f64();
                let distance = |f: &noiseforge::attacks::Found| match f.success {
                    true => f.l2,
                    false => f64::INFINITY,
                };
                let mut l2: Vec<f64> = found.iter().map(distance).collect();
                l2.sort_by(f64::total_cmp);
                let queries: u64 = found.iter().map(|f| f.counts.forward).sum();
                println!(
                    "{:<12} {averages:<9} {h:<7} {:<8} {:<10.4} {queries:<11} {seconds:<8.1} {:.0}",
                    format!("{draws:?}"),
                    found.iter().filter(|f| f.success).count(),
                    l2[l2.len() / 2],
                    queries as f64 / seconds,
                );
            }
        }
    }
    Ok(())
}
