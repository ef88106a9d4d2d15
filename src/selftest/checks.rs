//! The checks of `noiseforge selftest`.

use super::binarisation::{Binarisation, Binary};
use super::linear::{Case, Linear};
use crate::attacks::apgd::{Apgd, checkpoints};
use crate::attacks::carlini_wagner::{CarliniWagner, Protocol};
use crate::attacks::gradient::Pgd;
use crate::attacks::square::Square;
use crate::attacks::zoo::{Space, Zoo};
use crate::attacks::{
    Criterion, Found, Norm, Options, Targets, WhiteBoxAttack, attack_black_box, attack_white_box,
    found_images,
};
use crate::data::Dataset;
use crate::ensemble::{Average, Ensemble};
use crate::error::Result;
use crate::models::{Arch, Config, Model};
use crate::ops::noise::{Purpose, philox4x32_10};
use crate::statistics::{
    Interval, binomial_tail, clopper_pearson_lower, normal_cdf, wilson_of_shares,
};
use crate::tensor::{Shape, Tensor};
use crate::verdict::Jury;

/// What one check found.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Whether the answer is right.
    pub passed: bool,
    /// What was found, beside what it has to be.
    pub detail: String,
}

impl Check {
    fn new(name: impl Into<String>, passed: bool, detail: impl Into<String>) -> Self {
        Check {
            name: name.into(),
            passed,
            detail: detail.into(),
        }
    }
}

/// Runs all checks, on `images` images where one of them is about images. `report` is told each as it ends and
/// may stop by an error.
///
/// Errors: what `report` says; what an attack says, which is a fault.
pub fn run(images: usize, report: &mut dyn FnMut(&Check) -> Result<()>) -> Result<Vec<Check>> {
    let mut all = Vec::new();
    let mut add = |check: Check| {
        report(&check)?;
        all.push(check);
        Ok(())
    };
    add(philox())?;
    add(bounds()?)?;
    add(votes()?)?;
    add(schedules()?)?;
    for case in Case::ALL {
        add(closest(case, images)?)?;
    }
    add(by_differences(images)?)?;
    add(within_a_bound(images)?)?;
    add(judged_within_its_interval()?)?;
    add(nothing_is_robust(images)?)?;
    add(binarised(images)?)?;
    Ok(all)
}

/// Known answers of Random123's Philox4x32-10.
fn philox() -> Check {
    let answers = [
        (
            [0; 4],
            [0; 2],
            [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
        ),
        (
            [u32::MAX; 4],
            [u32::MAX; 2],
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
        ),
        (
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xa4093822, 0x299f31d0],
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
        ),
    ];
    let right = answers
        .iter()
        .filter(|(counter, key, words)| philox4x32_10(*counter, *key) == *words);
    let right = right.count();
    Check::new(
        "Philox4x32-10",
        right == answers.len(),
        format!("{right} of {} known answers", answers.len()),
    )
}

/// Lower bounds of Clopper and Pearson at alpha 0.001.
fn bounds() -> Result<Check> {
    let answers = [
        (100, 100, 0.9332543008),
        (1000, 990, 0.9760361872),
        (100_000, 99_000, 0.9889893404),
        (1000, 550, 0.5006759601),
    ];
    let mut worst = 0f64;
    for (n, k, bound) in answers {
        worst = worst.max((clopper_pearson_lower(k, n, 0.001)? - bound).abs());
    }
    Ok(Check::new(
        "Clopper-Pearson bounds",
        worst < 1e-9,
        format!("largest error {worst:.1e}, at most 1e-9"),
    ))
}

/// One draw of a linear classifier one standard deviation from the boundary, and the majority of several.
fn votes() -> Result<Check> {
    let one = normal_cdf(1.0);
    let (five, eleven) = (binomial_tail(3, 5, one)?, binomial_tail(6, 11, one)?);
    let answers = [(one, 0.8413447461), (five, 0.9689650), (eleven, 0.9964333)];
    let worst = answers
        .iter()
        .map(|(a, b): &(f64, f64)| (a - b).abs())
        .fold(0.0, f64::max);
    Ok(Check::new(
        "votes of 1, 5, 11 draws",
        worst < 1e-7,
        format!("{one:.7}, {five:.7}, {eleven:.7}; largest error {worst:.1e}"),
    ))
}

/// A network whose scores do not depend on the image: class 1 wins.
fn constant() -> Result<(Model, Tensor)> {
    let x = Tensor::from_vec(Shape::new(1, 1, 2, 1), vec![0.5f32, 0.5])?;
    let linear = Linear::new(x.clone(), vec![vec![0.0; 2]; 2], vec![0.0, 1.0]);
    Ok((linear.model(0.0)?, x))
}

/// Which constants, checkpoints and squares come in which order.
fn schedules() -> Result<Check> {
    let (mut model, x) = constant()?;
    let ladder = CarliniWagner {
        protocol: Protocol::Search {
            first: 1e-3,
            search_steps: 5,
            at_once: 1,
            abort_early: false,
        },
        steps: 1,
        ..CarliniWagner::search()
    };
    let criterion = Criterion::Untargeted { labels: vec![1] };
    let found = attacked(&mut model, &x, &criterion, &ladder, 1, 0)?;
    let c = found[0].c.unwrap_or(f64::NAN);
    let halves = |(query, halvings): (u32, i32)| {
        Square::new(Norm::Linf, 0.1).share(query) == 0.8 * 0.5f64.powi(halvings)
    };
    let squares = [
        (0, 0),
        (10, 0),
        (11, 1),
        (51, 2),
        (201, 3),
        (501, 4),
        (1001, 5),
        (2001, 6),
        (4001, 7),
    ];
    let right = [
        (c / 10.0 - 1.0).abs() < 1e-12 && !found[0].success,
        checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99],
        squares.into_iter().all(halves),
    ];
    let says = |right| if right { "right" } else { "wrong" };
    Ok(Check::new(
        "schedules",
        right == [true; 3],
        format!(
            "C&W's constants {}, APGD's checkpoints {}, Square's sizes {}",
            says(right[0]),
            says(right[1]),
            says(right[2])
        ),
    ))
}

fn attacked(
    model: &mut Model,
    x: &Tensor,
    criterion: &Criterion,
    attack: &dyn WhiteBoxAttack,
    draws: usize,
    confirmations: u32,
) -> Result<Vec<Found>> {
    let ids: Vec<u32> = (0..x.shape().n as u32).collect();
    let mut net = Ensemble::new(model, 1, Purpose::Attack, draws)?;
    net.average = Average::Logits;
    let targets = Targets {
        x,
        ids: &ids,
        criterion,
    };
    let options = Options {
        passes: draws,
        confirmations,
        ..Options::default()
    };
    attack_white_box(&mut net, targets, attack, &options, &mut |_| Ok(()))
}

/// Away from the classifier's own labels.
fn away(linear: &Linear) -> Criterion {
    Criterion::Untargeted {
        labels: linear.labels.clone(),
    }
}

/// Found distances over the exact ones, ascending; infinite for failures.
fn ratios(linear: &Linear, found: &[Found]) -> Vec<f64> {
    let ratio = |(i, f): (usize, &Found)| match f.success {
        true => f.l2 / linear.distance(i, Norm::L2),
        false => f64::INFINITY,
    };
    let mut ratios: Vec<f64> = found.iter().enumerate().map(ratio).collect();
    ratios.sort_by(f64::total_cmp);
    ratios
}

/// C&W against the smallest distance there is.
fn closest(case: Case, images: usize) -> Result<Check> {
    let linear = Linear::case(case, images, 1);
    let mut model = linear.model(0.0)?;
    let params = CarliniWagner::adaptive(1000);
    let found = attacked(&mut model, &linear.images, &away(&linear), &params, 1, 0)?;
    let too_close = |(i, f): (usize, &Found)| {
        f.l2 < linear.distance(i, Norm::L2) * (1.0 - 1e-5) - linear.rounding(i)
    };
    let too_close = found.iter().enumerate().any(too_close);
    let ratios = ratios(&linear, &found);
    let (least, median, most) = (ratios[0], ratios[images / 2], ratios[images - 1]);
    Ok(Check::new(
        format!("C&W, {}", case.name()),
        !too_close && median <= 1.005 && most <= 1.05,
        format!(
            "L2 over the exact minimum: least {least:.6}, median {median:.6}, most {most:.6} \
             (no closer than f32 tells apart, 1.005, 1.05)"
        ),
    ))
}

/// ZOO against the smallest distance there is.
fn by_differences(images: usize) -> Result<Check> {
    let linear = Linear::sized(Case::Interior, Shape::new(images, 4, 4, 3), 2, 3);
    let mut model = linear.model(0.0)?;
    let ids: Vec<u32> = (0..images as u32).collect();
    let mut net = Ensemble::new(&mut model, 1, Purpose::Attack, 1)?;
    let targets = Targets {
        x: &linear.images,
        ids: &ids,
        criterion: &away(&linear),
    };
    let zoo = Zoo {
        space: Space::Clipped,
        iterations: 600,
        c: 1.0,
        h: 1e-3,
        search_steps: 9,
        ..Zoo::published()
    };
    let options = Options {
        rows: 1024,
        ..Options::default()
    };
    let found = attack_black_box(&mut net, targets, &zoo, &options, &mut |_| Ok(()))?;
    let ratios = ratios(&linear, &found);
    let (least, most) = (ratios[0], ratios[images - 1]);
    Ok(Check::new(
        "ZOO",
        least >= 1.0 - 1e-5 && most <= 1.05,
        format!("L2 over the exact minimum: least {least:.5}, most {most:.5} (at most 1.05)"),
    ))
}

/// Attacks within a bound succeed where there is an image within it, and nowhere else.
fn within_a_bound(images: usize) -> Result<Check> {
    let (mut wrong, mut tried) = (0, 0);
    for case in Case::ALL {
        let linear = Linear::sized(case, Shape::new(images, 16, 16, 3), 2, 3);
        let mut model = linear.model(0.0)?;
        let exact: Vec<f64> = (0..images)
            .map(|i| linear.distance(i, Norm::Linf))
            .collect();
        let mut sorted = exact.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = images / 2;
        let eps = 0.5 * (sorted[middle.saturating_sub(1)] + sorted[middle]);
        let attacks: [&dyn WhiteBoxAttack; 4] = [
            &Pgd::fgsm(Norm::Linf, eps),
            &Pgd::projected(Norm::Linf, eps),
            &Apgd::cross_entropy(Norm::Linf, eps),
            &Pgd::iterated_fgsm(Norm::Linf, eps, 5),
        ];
        for attack in attacks {
            let found = attacked(&mut model, &linear.images, &away(&linear), attack, 1, 0)?;
            tried += images;
            wrong += found
                .iter()
                .zip(&exact)
                .filter(|(f, d)| f.success != (**d < eps))
                .count();
        }
    }
    Ok(Check::new(
        "FGSM, I-FGSM, PGD, APGD",
        wrong == 0,
        format!("{wrong} of {tried} verdicts within a Linf radius differ from the exact ones"),
    ))
}

/// Two classes whose boundary every image is `distance` away from.
fn at_distance(images: usize, distance: f64) -> Result<Linear> {
    let shape = Shape::new(images, 2, 2, 2);
    let w: Vec<f32> = (0..8)
        .map(|j| if j % 2 == 0 { 0.5 } else { -0.25 })
        .collect();
    let norm = w.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
    // Greys off the boundary, which goes through 0.5, along its normal.
    let one = w
        .iter()
        .map(|&w| (0.5 + distance * f64::from(w) / norm) as f32);
    let pixels: Vec<f32> = std::iter::repeat_n(one.collect::<Vec<f32>>(), images)
        .flatten()
        .collect();
    let bias = -0.5 * w.iter().sum::<f32>();
    let x = Tensor::from_vec(shape, pixels)?;
    Ok(Linear::new(x, vec![w, vec![0.0; 8]], vec![bias, 0.0]))
}

/// The rule "most of five draws" after an attack that halves a distance of two standard deviations: each
/// verdict is right with the probability that three of five normals are below one.
fn judged_within_its_interval() -> Result<Check> {
    const IMAGES: usize = 50;
    const RUNS: u64 = 100;
    let (sigma, distance) = (0.1, 0.2);
    let linear = at_distance(IMAGES, distance)?;
    let mut model = linear.model(sigma as f32)?;
    let attack = Pgd::fgsm(Norm::L2, distance / 2.0);
    // 200 draws: the attack cannot mistake the image for its result.
    let found = attacked(&mut model, &linear.images, &away(&linear), &attack, 200, 0)?;
    let adversarial = found_images(&found, linear.input)?;
    let names = vec!["0".to_string(), "1".to_string()];
    let data = Dataset::from_tensor(&adversarial, linear.labels.clone(), names)?;
    let ids: Vec<u32> = (0..IMAGES as u32).collect();
    let exact = binomial_tail(3, 5, normal_cdf(distance / 2.0 / sigma))?;
    let mut inside = 0;
    for seed in 0..RUNS {
        let jury = Jury {
            seed,
            rule: Average::Votes,
            draws: 5,
            verdicts: 10,
        };
        let verdicts = jury.judge(&mut model, &data, &ids, &mut |_| Ok(()))?;
        let right: usize = verdicts
            .iter()
            .zip(&linear.labels)
            .map(|(v, &l)| v.count(l))
            .sum();
        let mean = right as f64 / (10 * IMAGES) as f64;
        let Interval { low, high } = wilson_of_shares(mean, IMAGES as u64, 0.05)?;
        inside += usize::from(low <= exact && exact <= high);
    }
    Ok(Check::new(
        "verdicts on a noisy linear network",
        inside >= 94,
        format!(
            "{inside} of {RUNS} runs hold the exact accuracy {exact:.4} in their 95% interval (at least 94)"
        ),
    ))
}

/// Noise that is small beside an attack's radius protects nobody.
fn nothing_is_robust(images: usize) -> Result<Check> {
    let linear = at_distance(images, 0.05)?;
    let mut model = linear.model(0.02)?;
    let attack = Apgd::cross_entropy(Norm::L2, 0.3);
    let found = attacked(&mut model, &linear.images, &away(&linear), &attack, 20, 5)?;
    let survivors = found.iter().filter(|f| !f.success).count();
    Ok(Check::new(
        "a network that is 0% robust",
        survivors == 0,
        format!("{survivors} of {images} images survive APGD over 20 draws"),
    ))
}

/// The binarisation test on a network with random weights.
fn binarised(images: usize) -> Result<Check> {
    let input = Shape::new(1, 16, 16, 3);
    let mut config = Config::new(Arch::Small, input, 10);
    config.width = 4;
    let mut model = Model::new(config, 5)?;
    // Weights N(0, 2 / fan_in), so that scores depend on the image.
    model.visit_params(|_, p| {
        let shape = p.value.shape();
        if shape.n > 1 {
            let factor = (2.0 / shape.row_len() as f64).sqrt() / 0.02;
            p.value
                .data_mut::<f32>()
                .iter_mut()
                .for_each(|w| *w *= factor as f32);
        }
    });
    let x = Linear::sized(Case::Interior, input.with_n(images), 10, 7).images;
    let ids: Vec<u32> = (0..images as u32).collect();
    let eps = 8.0 / 255.0;
    let mut net = Ensemble::new(&mut model, 1, Purpose::Attack, 1)?;
    let problem = Binarisation::new(Norm::Linf, eps, 3);
    let readouts = problem.readouts(&mut net, &x, &ids)?;
    let posed: Vec<usize> = (0..images).filter(|&i| readouts[i].is_some()).collect();
    let ids: Vec<u32> = posed.iter().map(|&i| i as u32).collect();
    let readouts = ids.iter().copied().zip(readouts.into_iter().flatten());
    let mut binary = Binary::new(&mut net, readouts);
    let criterion = Binary::criterion(ids.len());
    let x = x.gather_rows(&posed)?;
    let targets = Targets {
        x: &x,
        ids: &ids,
        criterion: &criterion,
    };
    let attack = Apgd::cross_entropy(Norm::Linf, eps);
    let options = Options::default();
    let found = attack_white_box(&mut binary, targets, &attack, &options, &mut |_| Ok(()))?;
    let solved = found.iter().filter(|f| f.success).count();
    Ok(Check::new(
        "binarisation test",
        !posed.is_empty() && 20 * solved >= 19 * posed.len(),
        format!(
            "APGD finds {solved} of {} planted adversarial images (at least 95%)",
            posed.len()
        ),
    ))
}
