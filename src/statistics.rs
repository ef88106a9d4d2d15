//! Statistics of counts: confidence intervals and tests for binomial proportions, the normal
//! distribution.
//!
//! Everything is in double precision. Binomial tails are summed term by term: a sum of positive terms
//! is exact to a few roundings for any number of trials, where the usual continued fraction of the
//! incomplete beta function needs ever more terms.

use std::f64::consts::{PI, SQRT_2};

use libm::erfc;

use crate::error::{Error, Result};

/// Two ends of a confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// Whether the value lies between the ends or on one.
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// Lower confidence bound, one-sided at level `1 - alpha`, of the probability of which `k` successes
/// in `n` independent trials were seen (Clopper and Pearson 1934): the `p` with `P(X >= k) = alpha`,
/// 0 for `k = 0`.
///
/// Errors: no trial; more successes than trials; alpha outside (0, 1).
pub fn clopper_pearson_lower(k: u64, n: u64, alpha: f64) -> Result<f64> {
    check("clopper_pearson_lower", k, n, alpha)?;
    Ok(lower(k, n, alpha))
}

/// Upper confidence bound, one-sided at level `1 - alpha`: the `p` with `P(X <= k) = alpha`, 1 for
/// `k = n`.
///
/// Errors: as [`clopper_pearson_lower`].
pub fn clopper_pearson_upper(k: u64, n: u64, alpha: f64) -> Result<f64> {
    check("clopper_pearson_upper", k, n, alpha)?;
    Ok(1.0 - lower(n - k, n, alpha))
}

/// The interval of Clopper and Pearson, two-sided at level `1 - alpha`: each end errs with at most
/// `alpha / 2`.
///
/// Errors: as [`clopper_pearson_lower`].
pub fn clopper_pearson(k: u64, n: u64, alpha: f64) -> Result<Interval> {
    check("clopper_pearson", k, n, alpha)?;
    Ok(Interval {
        low: lower(k, n, alpha / 2.0),
        high: 1.0 - lower(n - k, n, alpha / 2.0),
    })
}

/// Wilson's score interval (1927), two-sided at level about `1 - alpha`: the `p` with
/// `|k/n - p| <= z sqrt(p (1 - p) / n)`, `z` the normal quantile of `1 - alpha/2`.
///
/// Errors: as [`clopper_pearson_lower`].
pub fn wilson(k: u64, n: u64, alpha: f64) -> Result<Interval> {
    check("wilson", k, n, alpha)?;
    Ok(wilson_around(k as f64 / n as f64, n, alpha))
}

/// [`wilson`] of a mean of `n` shares, each in `[0, 1]`: they vary no more than outcomes that are 0 or 1 do,
/// so that it is too wide rather than too narrow.
///
/// Errors: a share outside of `[0, 1]`; `n` 0; `alpha` outside of `(0, 1)`.
pub fn wilson_of_shares(mean: f64, n: u64, alpha: f64) -> Result<Interval> {
    const OP: &str = "wilson_of_shares";
    check(OP, 0, n, alpha)?;
    if !(0.0..=1.0).contains(&mean) {
        return Err(Error::argument(OP, "mean", "a number in [0, 1]", mean));
    }
    Ok(wilson_around(mean, n, alpha))
}

fn wilson_around(share: f64, n: u64, alpha: f64) -> Interval {
    let z = -quantile(alpha / 2.0);
    let z2 = z * z / n as f64;
    // (share + z^2/2n -+ z sqrt(share (1 - share)/n + z^2/4n^2)) / (1 + z^2/n)
    let middle = share + z2 / 2.0;
    let half = (share * (1.0 - share) * z2 + z2 * z2 / 4.0).sqrt();
    Interval {
        // exact where rounding would leave a trace
        low: match share == 0.0 {
            true => 0.0,
            false => (middle - half) / (1.0 + z2),
        },
        high: match share == 1.0 {
            true => 1.0,
            false => (middle + half) / (1.0 + z2),
        },
    }
}

/// Two-sided p-value of `k` successes in `n` trials of a fair coin: the probability of a result that
/// is no likelier, `min(1, 2 P(X >= max(k, n - k)))`.
///
/// Errors: no trial; more successes than trials.
pub fn fair_coin_p_value(k: u64, n: u64) -> Result<f64> {
    check("fair_coin_p_value", k, n, 0.5)?;
    Ok((2.0 * tail(k.max(n - k), n, 0.5)).min(1.0))
}

/// `P(X >= k)` for `X` binomial with `n` trials of probability `p`.
///
/// Errors: no trial; more successes than trials; p outside [0, 1].
pub fn binomial_tail(k: u64, n: u64, p: f64) -> Result<f64> {
    check("binomial_tail", k, n, 0.5)?;
    if !(0.0..=1.0).contains(&p) {
        let expected = "a probability in [0, 1]";
        return Err(Error::argument("binomial_tail", "p", expected, p));
    }
    Ok(tail(k, n, p))
}

/// `P(Z <= x)` for a standard normal `Z`.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * erfc(-x / SQRT_2)
}

/// The `x` with `P(Z <= x) = p`; infinite at 0 and 1.
///
/// Errors: p outside [0, 1].
pub fn normal_quantile(p: f64) -> Result<f64> {
    match (0.0..=1.0).contains(&p) {
        true => Ok(quantile(p)),
        false => {
            let expected = "a probability in [0, 1]";
            Err(Error::argument("normal_quantile", "p", expected, p))
        }
    }
}

fn quantile(p: f64) -> f64 {
    if p > 0.5 {
        // exact, and the smaller tail keeps its digits
        return -quantile(1.0 - p);
    }
    if p == 0.5 {
        return 0.0;
    }
    if p == 0.0 {
        return f64::NEG_INFINITY;
    }
    // Below -38.5 the distribution is less than the smallest number.
    let (mut low, mut high) = (-39.0, 0.0);
    for _ in 0..30 {
        let middle = 0.5 * (low + high);
        match normal_cdf(middle) < p {
            true => low = middle,
            false => high = middle,
        }
    }
    let mut x = 0.5 * (low + high);
    // One step of Newton makes eight digits sixteen.
    let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
    if density > 0.0 {
        x -= (normal_cdf(x) - p) / density;
    }
    x
}

fn check(op: &'static str, k: u64, n: u64, alpha: f64) -> Result<()> {
    if n == 0 {
        return Err(Error::argument(op, "n", "at least one trial", n));
    }
    if n > MOST_TRIALS {
        let expected = format!("at most {MOST_TRIALS} trials");
        return Err(Error::argument(op, "n", expected, n));
    }
    if k > n {
        let expected = format!("at most {n} successes, one per trial");
        return Err(Error::argument(op, "k", expected, k));
    }
    check_alpha(op, alpha)
}

/// An error unless alpha is in (0, 1).
pub(crate) fn check_alpha(op: &'static str, alpha: f64) -> Result<()> {
    match alpha > 0.0 && alpha < 1.0 {
        true => Ok(()),
        false => {
            let expected = "a number between 0 and 1, both excluded";
            Err(Error::argument(op, "alpha", expected, alpha))
        }
    }
}

/// More would make sums slow; draws are numbered with 32 bits.
const MOST_TRIALS: u64 = 1 << 32;

/// The `p` with `P(X >= k) = alpha`, never above it: the lower end of the last bisection.
fn lower(k: u64, n: u64, alpha: f64) -> f64 {
    if k == 0 {
        return 0.0;
    }
    if k == n {
        // p^n = alpha
        return (alpha.ln() / n as f64).exp();
    }
    let (mut low, mut high) = (0.0, 1.0);
    // 200 halvings reach 1e-60; where the answer is larger, two neighbours are met long before.
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if tail(k, n, middle) <= alpha {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// `P(X >= k)`: the smaller of both tails is summed, away from the mode.
fn tail(k: u64, n: u64, p: f64) -> f64 {
    if k == 0 || p >= 1.0 {
        return 1.0;
    }
    if p <= 0.0 {
        return 0.0;
    }
    match k as f64 > n as f64 * p {
        true => upper_sum(k, n, p),
        // P(X <= k - 1) = P(n - X >= n - k + 1)
        false => 1.0 - upper_sum(n - k + 1, n, 1.0 - p),
    }
}

/// `sum_{j >= k} P(X = j)` for `k >= n p`, where each term is smaller than the one before.
fn upper_sum(k: u64, n: u64, p: f64) -> f64 {
    let odds = p / (1.0 - p);
    let (mut term, mut sum) = (1.0, 1.0);
    for j in k..n {
        // P(X = j + 1) / P(X = j)
        term *= (n - j) as f64 / (j + 1) as f64 * odds;
        sum += term;
        if term < 1e-18 * sum {
            break;
        }
    }
    (probability(k, n, p) * sum).min(1.0)
}

/// `P(X = k)` by the saddle point (Loader 2000), which never subtracts large numbers:
/// `sqrt(n / (2 pi k (n-k))) exp(s(n) - s(k) - s(n-k) - D(k; np) - D(n-k; nq))`.
fn probability(k: u64, n: u64, p: f64) -> f64 {
    let (count, rest, trials) = (k as f64, (n - k) as f64, n as f64);
    if k == 0 {
        return (trials * (-p).ln_1p()).exp();
    }
    if k == n {
        return (trials * p.ln()).exp();
    }
    let exponent = stirling_rest(trials)
        - stirling_rest(count)
        - stirling_rest(rest)
        - deviance(count, trials * p)
        - deviance(rest, trials * (1.0 - p));
    (trials / (2.0 * PI * count * rest)).sqrt() * exponent.exp()
}

/// `s(n) = ln n! - ln(sqrt(2 pi n) (n/e)^n)`.
fn stirling_rest(n: f64) -> f64 {
    if n < 16.0 {
        // exact: 15! has 41 bits
        let factorial: f64 = (1..=n as u32).map(f64::from).product();
        return factorial.ln() - 0.5 * (2.0 * PI * n).ln() - n * n.ln() + n;
    }
    let m = 1.0 / (n * n);
    (1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - (1.0 / 1680.0 - m / 1188.0) * m) * m) * m) / n
}

/// `D(x; m) = x ln(x/m) + m - x`, by a series where `x` is close to `m`.
fn deviance(x: f64, m: f64) -> f64 {
    if (x - m).abs() >= 0.1 * (x + m) {
        return x * (x / m).ln() + m - x;
    }
    // v = (x-m)/(x+m): D = (x-m) v + 2 x (v^3/3 + v^5/5 + ...)
    let v = (x - m) / (x + m);
    let mut sum = (x - m) * v;
    let mut power = 2.0 * x * v;
    let mut odd = 3.0;
    loop {
        power *= v * v;
        let next = sum + power / odd;
        if next == sum {
            return next;
        }
        sum = next;
        odd += 2.0;
    }
}
