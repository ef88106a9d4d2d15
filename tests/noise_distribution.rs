//! The distribution of the noise. Seeds are fixed, so every test gives the same verdict each time:
//! the bounds say how rarely a sound generator would have failed when the seed was chosen, five
//! standard errors (1 in 1.7 million) or a level of 0.001.

use noiseforge::ops::noise::{Key, Noise, Normals, Purpose, RowNoise};
use rayon::prelude::*;

const DRAWS: usize = 10_000_000;

fn noise(seed: u64, purpose: Purpose, row: u32, draw: u32, layer: u16) -> Noise {
    Noise {
        key: Key::consecutive(seed, purpose, row, 1, draw),
        layer,
        sigma: 1.0,
        normals: Normals::Fast,
    }
}

fn draw(noise: &Noise, c: usize, len: usize) -> Vec<f32> {
    let mut z = vec![0.0; len];
    RowNoise::new(noise, 0, c).add(0, &vec![0f32; len], &mut z);
    z
}

fn ten_million(normals: Normals) -> Vec<f32> {
    let noise = Noise {
        normals,
        ..noise(2024, Purpose::Test, 0, 0, 0)
    };
    draw(&noise, 80, DRAWS)
}

/// Standard normal distribution function, by the series about 0 or, further out, the continued
/// fraction of Mills' ratio; accurate to 1e-14 relative in the lower tail.
fn cdf(x: f64) -> f64 {
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    if x.abs() < 2.5 {
        let (mut term, mut sum, mut k) = (x, x, 1.0);
        while term.abs() > 1e-17 {
            k += 2.0;
            term *= x * x / k;
            sum += term;
        }
        return 0.5 + density * sum;
    }
    let mut fraction = x.abs();
    for k in (1..60).rev() {
        fraction = x.abs() + f64::from(k) / fraction;
    }
    let tail = density / fraction;
    if x < 0.0 { tail } else { 1.0 - tail }
}

#[test]
fn the_reference_distribution_is_right() {
    // Tabulated values; the last two meet where the two expansions do.
    for (x, p) in [
        (0.0, 0.5),
        (1.0, 0.841_344_746_068_542_9),
        (-2.0, 0.022_750_131_948_179_21),
        (-5.0, 2.866_515_718_791_94e-7),
    ] {
        assert!((cdf(x) / p - 1.0).abs() < 1e-12, "{x}");
    }
    assert!((cdf(-2.5) / cdf(-2.499_999_999_999) - 1.0).abs() < 1e-10);
}

#[test]
fn kolmogorov_smirnov_and_anderson_darling() {
    // Critical values at level 0.001 for a fully given distribution: sqrt(n) D 1.9495, A^2 6.0.
    for normals in [Normals::Fast, Normals::Precise] {
        let mut z = ten_million(normals);
        z.par_sort_unstable_by(f32::total_cmp);
        let n = z.len() as f64;
        let below: Vec<f64> = z.par_iter().map(|&z| cdf(f64::from(z))).collect();
        let above: Vec<f64> = z.par_iter().map(|&z| cdf(-f64::from(z))).collect();
        let distance = below
            .par_iter()
            .enumerate()
            .map(|(i, p)| (p - i as f64 / n).max((i + 1) as f64 / n - p))
            .reduce(|| 0.0, f64::max);
        let sum: f64 = (0..z.len())
            .into_par_iter()
            .with_min_len(1 << 16)
            .map(|i| (2 * i + 1) as f64 / n * (below[i].ln() + above[z.len() - 1 - i].ln()))
            .sum();
        let squared = -n - sum;
        println!(
            "{normals:?}: sqrt(n) D {:.3}, A^2 {squared:.3}",
            n.sqrt() * distance
        );
        assert!(n.sqrt() * distance < 1.9495);
        assert!(squared < 6.0);
    }
}

/// `E r^2` and `E r^4` of the radius of fast normals, `r^2 = -2 ln u`, over its 2^20 values. The
/// angle's 4096 values have the moments of the circle exactly: `E cos^2 = 1/2`, `E cos^4 = 3/8`.
fn fast_moments() -> [f64; 2] {
    let values = f64::from(1 << 20);
    let mut sums = [0.0; 2];
    for a in 0..1 << 20 {
        let squared = -2.0 * ((f64::from(a) + 0.5) / values).ln();
        sums[0] += squared / values;
        sums[1] += squared * squared / values;
    }
    [sums[0] / 2.0, sums[1] * 3.0 / 8.0]
}

#[test]
fn moments_to_the_fourth() {
    for normals in [Normals::Fast, Normals::Precise] {
        let [second, fourth] = match normals {
            Normals::Fast => fast_moments(),
            Normals::Precise => [1.0, 3.0],
        };
        let z = ten_million(normals);
        let moment = |k: i32| {
            let sum: f64 = z.iter().map(|&z| f64::from(z).powi(k)).sum();
            sum / z.len() as f64
        };
        // Variances of the powers of a normal: E z^2k - (E z^k)^2.
        for (k, expected, variance) in [
            (1, 0.0, 1.0),
            (2, second, 2.0),
            (3, 0.0, 15.0),
            (4, fourth, 96.0),
        ] {
            let errors = (moment(k) - expected) / (variance / z.len() as f64).sqrt();
            println!("{normals:?}: moment {k} is off by {errors:.2} standard errors");
            assert!(errors.abs() < 5.0);
        }
    }
}

/// How likely `|z| > k` is. Fast normals: for each of the 4096 angles, the share of the 2^20 radii
/// that reach beyond `k / |cos t|`.
fn beyond(normals: Normals, k: f64) -> f64 {
    if normals == Normals::Precise {
        return 2.0 * cdf(-k);
    }
    let radii = f64::from(1 << 20);
    let share = (0..4096).map(|b| {
        let cos = (std::f64::consts::TAU * (f64::from(b) + 0.5) / 4096.0).cos();
        // (a + 0.5) 2^-20 < exp(-R^2 / 2)
        let below = (-0.5 * (k / cos).powi(2)).exp() * radii - 0.5;
        below.ceil().max(0.0) / radii
    });
    share.sum::<f64>() / 4096.0
}

#[test]
fn tails() {
    for (normals, largest) in [(Normals::Fast, 5.40), (Normals::Precise, 6.77)] {
        let z = ten_million(normals);
        for k in [3.0, 4.0, 5.0] {
            let expected = beyond(normals, k) * z.len() as f64;
            let found = z.iter().filter(|z| f64::from(z.abs()) > k).count() as f64;
            println!("{normals:?}: {found} beyond {k}, {expected:.1} expected");
            assert!((found - expected).abs() < 5.0 * expected.sqrt());
        }
        assert!(z.iter().all(|z| z.abs() < largest));
    }
}

/// The correlation of two samples in standard errors.
fn correlation(a: &[f32], b: &[f32]) -> f64 {
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f(f64::from(a), f64::from(b)))
            .sum()
    };
    sum(&|a, b| a * b) / (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt() * (a.len() as f64).sqrt()
}

#[test]
fn draws_of_different_names_are_uncorrelated() {
    let len = 1 << 18;
    let base = || noise(7, Purpose::Train, 10, 20, 30);
    let mut others = vec![
        ("seed", noise(8, Purpose::Train, 10, 20, 30)),
        (
            "seed's high half",
            noise(7 | 1 << 32, Purpose::Train, 10, 20, 30),
        ),
        ("row", noise(7, Purpose::Train, 11, 20, 30)),
        ("draw", noise(7, Purpose::Train, 10, 21, 30)),
        ("row and draw swapped", noise(7, Purpose::Train, 20, 10, 30)),
        ("layer", noise(7, Purpose::Train, 10, 20, 31)),
    ];
    for purpose in [
        Purpose::Eval,
        Purpose::Attack,
        Purpose::Certify,
        Purpose::Test,
        Purpose::Auxiliary,
    ] {
        others.push(("purpose", noise(7, purpose, 10, 20, 30)));
    }
    for normals in [Normals::Fast, Normals::Precise] {
        let with = |noise: Noise| draw(&Noise { normals, ..noise }, 64, len);
        let z = with(base());
        assert!(z == with(base()));
        for (what, other) in &others {
            let r = correlation(&z, &with(other.clone()));
            println!("{normals:?} {what}: {r:.2} standard errors");
            assert!(r.abs() < 5.0);
        }
    }
}

#[test]
fn channels_and_pixels_are_uncorrelated() {
    let c = 20;
    for normals in [Normals::Fast, Normals::Precise] {
        let noise = Noise {
            normals,
            ..noise(3, Purpose::Test, 0, 0, 0)
        };
        let z = draw(&noise, c, c * (1 << 17));
        let channel = |k: usize| -> Vec<f32> { z.iter().skip(k).step_by(c).copied().collect() };
        let columns: Vec<Vec<f32>> = (0..c).map(channel).collect();
        let mut worst = 0f64;
        for i in 0..c {
            for j in 0..i {
                worst = worst.max(correlation(&columns[i], &columns[j]).abs());
                // Squares: cosine and sine of one pair share their radius.
                let squares = |column: &[f32]| -> Vec<f32> {
                    column.iter().map(|z| (z * z - 1.0) / 2f32.sqrt()).collect()
                };
                let r = correlation(&squares(&columns[i]), &squares(&columns[j]));
                worst = worst.max(r.abs());
            }
            let (now, next) = (&columns[i][1..], &columns[i][..(1 << 17) - 1]);
            worst = worst.max(correlation(now, next).abs());
        }
        println!("{normals:?}: largest of 400 correlations {worst:.2} standard errors");
        assert!(worst < 5.0);
    }
}
