//! Bounds, tests and the normal distribution against published values and closed forms.

use noiseforge::statistics::{
    Interval, binomial_tail, clopper_pearson, clopper_pearson_lower, clopper_pearson_upper,
    fair_coin_p_value, normal_cdf, normal_quantile, wilson,
};
use statrs::function::beta::beta_reg;

/// `(n, k, alpha, pA, R/sigma, R at sigma 0.25)`, as SciPy's `beta.ppf` and statsmodels give them,
/// rounded to the digits shown.
const BOUNDS: [(u64, u64, f64, f64, Option<f64>, f64); 15] = [
    (100, 100, 0.001, 0.9332543008, Some(1.5004750), 0.375119),
    (100, 99, 0.001, 0.9113731113, Some(1.3492590), 0.337315),
    (1000, 1000, 0.001, 0.9931160484, Some(2.4632626), 0.615816),
    (1000, 999, 0.001, 0.9908045024, Some(2.3576506), 0.589413),
    (1000, 990, 0.001, 0.9760361872, Some(1.9780096), 0.494502),
    (1000, 900, 0.001, 0.8674640180, Some(1.1144832), 0.278621),
    (1000, 600, 0.001, 0.5510754739, Some(0.1283790), 0.032095),
    (1000, 550, 0.001, 0.5006759601, Some(0.0016944), 0.000424),
    (1000, 549, 0.001, 0.4996730641, None, 0.0),
    (
        10_000,
        9_900,
        0.001,
        0.9865311593,
        Some(2.2124197),
        0.553105,
    ),
    (
        100_000,
        100_000,
        0.001,
        0.9999309248,
        Some(3.8114566),
        0.952864,
    ),
    (
        100_000,
        99_999,
        0.001,
        0.9999076697,
        Some(3.7391267),
        0.934782,
    ),
    (
        100_000,
        99_000,
        0.001,
        0.9889893404,
        Some(2.2899999),
        0.572500,
    ),
    (
        100_000,
        90_000,
        0.001,
        0.8970364962,
        Some(1.2648447),
        0.316211,
    ),
    (1000, 990, 0.01, 0.9799573941, Some(2.0528697), 0.513217),
];

#[test]
fn lower_bounds_and_radii_are_the_published_ones() {
    for (n, k, alpha, bound, quantile, radius) in BOUNDS {
        let p = clopper_pearson_lower(k, n, alpha).unwrap();
        assert!((p - bound).abs() < 1e-9, "{k}/{n} at {alpha}: {p}");
        match quantile {
            None => assert!(p < 0.5),
            Some(quantile) => {
                let z = normal_quantile(p).unwrap();
                // a unit of the last digit printed: some rows are cut off, not rounded
                assert!((z - quantile).abs() < 1e-7, "{k}/{n}: {z}");
                assert!((0.25 * z - radius).abs() < 1e-6, "{k}/{n}: {z}");
            }
        }
    }
}

#[test]
fn smallest_count_that_certifies() {
    for (n, smallest) in [(100, 66), (1000, 550), (10_000, 5156), (100_000, 50_490)] {
        let bound = |k| clopper_pearson_lower(k, n, 0.001).unwrap();
        assert!(bound(smallest) > 0.5, "{n}");
        assert!(bound(smallest - 1) < 0.5, "{n}");
    }
}

#[test]
fn p_values_of_a_fair_coin() {
    for (k, n, p) in [
        (66, 100, 0.00178993),
        (67, 100, 0.00087372),
        (552, 1000, 0.00111505),
        (553, 1000, 0.00088999),
    ] {
        for k in [k, n - k] {
            let found = fair_coin_p_value(k, n).unwrap();
            assert!((found - p).abs() <= 0.51e-8, "{k}/{n}: {found}");
        }
    }
    assert_eq!(fair_coin_p_value(50, 100).unwrap(), 1.0);
    assert_eq!(fair_coin_p_value(1, 1).unwrap(), 1.0);
    assert!((fair_coin_p_value(0, 20).unwrap() / (-19f64).exp2() - 1.0).abs() < 1e-13);
}

/// Sums of exact integers, for every p that is a fraction of 2^6 and few trials. Logarithms up to
/// 12 ln 12 = 30 lose about 30 eps each, of which there are six; a complement loses eps.
#[test]
fn tails_are_exact_sums() {
    for n in [1u64, 2, 7, 12] {
        for numerator in 0..=64u128 {
            let p = numerator as f64 / 64.0;
            let choose =
                |k: u64| (0..k).fold(1u128, |c, i| c * u128::from(n - i) / u128::from(i + 1));
            let term =
                |j: u64| choose(j) * numerator.pow(j as u32) * (64 - numerator).pow((n - j) as u32);
            for k in 0..=n {
                let exact = (k..=n).map(term).sum::<u128>() as f64 / 64f64.powi(n as i32);
                let found = binomial_tail(k, n, p).unwrap();
                assert!(
                    (found - exact).abs() <= 1e-13 * exact + 2e-16,
                    "{k}/{n} at {p}: {found} for {exact}"
                );
            }
        }
    }
}

/// `P(X >= k) = I_p(k, n - k + 1)`, by another crate's continued fraction where that converges.
#[test]
fn tails_are_incomplete_beta_functions() {
    for n in [50u64, 500] {
        for k in (1..n).step_by(7) {
            for p in [0.01, 0.2, 0.5, 0.77, 0.99] {
                let expected = beta_reg(k as f64, (n - k + 1) as f64, p);
                let found = binomial_tail(k, n, p).unwrap();
                let error = (found - expected).abs();
                assert!(
                    error < 1e-11 * expected + 1e-14,
                    "{k}/{n} at {p}: {found}, {expected}"
                );
            }
        }
    }
}

/// The bound is where the tail meets alpha, from below, for any size.
#[test]
fn a_bound_is_the_root_of_its_tail() {
    for n in [1u64, 2, 10, 333, 100_000, 100_000_000] {
        for k in [0, 1, n / 3, n / 2, n - n / 10, n - 1, n] {
            for alpha in [1e-12, 0.001, 0.05, 0.5, 0.9] {
                let low = clopper_pearson_lower(k, n, alpha).unwrap();
                let high = clopper_pearson_upper(n - k, n, alpha).unwrap();
                assert_eq!(high, 1.0 - low);
                if k == 0 {
                    assert_eq!(low, 0.0);
                    continue;
                }
                let found = binomial_tail(k, n, low).unwrap();
                // One rounding of p moves ln P(X >= k) by at most about n 2^-53 / (1 - p) and k 2^-53 / p.
                let moved = n as f64 / (1.0 - low).max(1.0 / n as f64) + k as f64 / low;
                let slack = 4.0 * f64::EPSILON * moved + 1e-12;
                assert!(
                    (found / alpha - 1.0).abs() < slack,
                    "{k}/{n} at {alpha}: {found}"
                );
            }
        }
    }
}

#[test]
fn every_success_has_a_closed_form() {
    for n in [1u64, 20, 1000, 1_000_000] {
        let bound = clopper_pearson_lower(n, n, 0.01).unwrap();
        assert!((bound - 0.01f64.powf(1.0 / n as f64)).abs() < 1e-15);
    }
}

fn close(found: Interval, low: f64, high: f64) {
    assert!((found.low - low).abs() < 1e-9, "{found:?}");
    assert!((found.high - high).abs() < 1e-9, "{found:?}");
}

#[test]
fn two_sided_intervals() {
    // k = n: (alpha/2)^(1/n), and its mirror image
    let ten = 0.025f64.powf(0.1);
    close(clopper_pearson(10, 10, 0.05).unwrap(), ten, 1.0);
    close(clopper_pearson(0, 10, 0.05).unwrap(), 0.0, 1.0 - ten);
    // of two trials: P(X >= 1) = 1 - (1-p)^2
    let low = 1.0 - (1.0 - 0.025f64).sqrt();
    close(clopper_pearson(1, 2, 0.05).unwrap(), low, 1.0 - low);

    // Wilson's ends solve n (k/n - p)^2 = z^2 p (1 - p); z of 0.975 is in every table
    let z = 1.959963984540054f64;
    for (k, n) in [
        (0u64, 10u64),
        (1, 10),
        (5, 10),
        (10, 10),
        (81, 263),
        (99_990, 100_000),
    ] {
        let found = wilson(k, n, 0.05).unwrap();
        let share = k as f64 / n as f64;
        for p in [found.low, found.high] {
            let error = n as f64 * (share - p).powi(2) - z * z * p * (1.0 - p);
            assert!(error.abs() < 1e-9, "{k}/{n}: {found:?}, {error}");
        }
        assert!(found.low <= share && share <= found.high && found.low < found.high);
    }
    assert_eq!(wilson(0, 10, 0.05).unwrap().low, 0.0);
    assert_eq!(wilson(10, 10, 0.05).unwrap().high, 1.0);
    assert!(wilson(5, 10, 0.05).unwrap().contains(0.5));
}

#[test]
fn the_normal_distribution() {
    // Abramowitz and Stegun, table 26.1, and the margins of a noisy linear classifier
    for (x, p) in [
        (0.0, 0.5),
        (1.0, 0.841344746068543),
        (2.0, 0.977249868051821),
        (-3.0, 0.001349898031630095),
        (-6.0, 9.86587645037698e-10),
    ] {
        assert!((normal_cdf(x) / p - 1.0).abs() < 1e-13, "{x}");
        assert!((normal_quantile(p).unwrap() - x).abs() < 1e-13, "{p}");
    }
    for i in 1..4000 {
        let x = -0.01 * f64::from(i);
        let p = normal_cdf(x);
        // below the smallest normal number p itself is coarse
        if p < f64::MIN_POSITIVE {
            break;
        }
        let back = normal_quantile(p).unwrap();
        assert!((back / x - 1.0).abs() < 1e-13, "{x}: {back}");
    }
    assert_eq!(normal_quantile(0.0).unwrap(), f64::NEG_INFINITY);
    assert_eq!(normal_quantile(1.0).unwrap(), f64::INFINITY);
    assert_eq!(normal_quantile(0.5).unwrap(), 0.0);
}

/// One draw of a noisy linear classifier at distance sigma, and majorities of several.
#[test]
fn votes_at_distance_sigma() {
    let p = normal_cdf(1.0);
    for (n, majority) in [(5, 0.9689650), (11, 0.9964333)] {
        let found = binomial_tail(n / 2 + 1, n, p).unwrap();
        assert!((found - majority).abs() <= 0.51e-7, "{n}: {found}");
    }
    let lost = 1.0 - binomial_tail(51, 101, p).unwrap();
    assert!(lost < 2e-15, "{lost}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let message = |e: noiseforge::Result<f64>| e.unwrap_err().to_string();
    assert_eq!(
        message(clopper_pearson_lower(0, 0, 0.05)),
        "clopper_pearson_lower: n: expected at least one trial, found 0"
    );
    assert_eq!(
        message(clopper_pearson_upper(11, 10, 0.05)),
        "clopper_pearson_upper: k: expected at most 10 successes, one per trial, found 11"
    );
    for alpha in [0.0, 1.0, -0.1, f64::NAN, f64::INFINITY] {
        let error = message(clopper_pearson_lower(1, 10, alpha));
        assert!(
            error.contains("alpha: expected a number between 0 and 1"),
            "{error}"
        );
        assert!(wilson(1, 10, alpha).is_err());
        assert!(clopper_pearson(1, 10, alpha).is_err());
    }
    assert!(fair_coin_p_value(3, 2).is_err());
    assert!(fair_coin_p_value(0, 0).is_err());
    assert!(binomial_tail(1, 2, 1.5).is_err());
    assert!(normal_quantile(f64::NAN).is_err());
    assert!(normal_quantile(-0.1).is_err());
}
