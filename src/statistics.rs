//! Intervals of proportions.

use statrs::distribution::{Beta, ContinuousCDF, Normal};

/// An interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Two-sided interval of Clopper and Pearson 1934: it holds the proportion with probability at least
/// `1 - alpha`, of which `k` of `n` were seen.
///
/// Panics unless `k <= n`, `n` is above 0 and `alpha` lies between 0 and 1.
pub fn clopper_pearson(k: u64, n: u64, alpha: f64) -> Interval {
    assert!(k <= n && n > 0 && alpha > 0.0 && alpha < 1.0);
    let (k, n) = (k as f64, n as f64);
    let beta = |a, b| Beta::new(a, b).expect("both are above 0");
    Interval {
        low: match k > 0.0 {
            true => beta(k, n - k + 1.0).inverse_cdf(alpha / 2.0),
            false => 0.0,
        },
        high: match k < n {
            true => beta(k + 1.0, n - k).inverse_cdf(1.0 - alpha / 2.0),
            false => 1.0,
        },
    }
}

/// Interval of Wilson 1927 of a proportion of which `k` of `n` were seen; `k` need not be whole, where the
/// `n` themselves are shares.
///
/// `(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`, `z` the normal quantile.
///
/// Panics unless `0 <= k <= n`, `n` is above 0 and `alpha` lies between 0 and 1.
pub fn wilson(k: f64, n: f64, alpha: f64) -> Interval {
    assert!(k >= 0.0 && k <= n && n > 0.0 && alpha > 0.0 && alpha < 1.0);
    let z = Normal::standard().inverse_cdf(1.0 - alpha / 2.0);
    let p = k / n;
    let centre = p + z * z / (2.0 * n);
    let width = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    Interval {
        low: ((centre - width) / scale).max(0.0),
        high: ((centre + width) / scale).min(1.0),
    }
}
