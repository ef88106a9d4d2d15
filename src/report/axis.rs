//! Scales and ticks.

use super::text::superscript;

/// Values beyond this are not drawn: sums and differences of them must stay finite.
pub const LARGEST: f64 = 1e300;

/// A range of values on an axis and where they lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    pub lo: f64,
    pub hi: f64,
    pub log: bool,
    percent: bool,
    /// Whether all values are whole numbers, so that no tick may lie between two of them.
    whole: bool,
}

/// A labelled place on an axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Tick {
    pub value: f64,
    pub label: String,
}

impl Scale {
    /// Whether a value has a place on this kind of axis.
    pub fn admits(value: f64, log: bool) -> bool {
        value.abs() <= LARGEST && (!log || value >= 1.0 / LARGEST)
    }

    /// The scale for these values (all admitted). A `range` that is no range of such an axis is
    /// passed over. With `snap` the ends are ticks, and zero is an end where it is near.
    pub fn new(
        values: &[f64],
        range: Option<(f64, f64)>,
        log: bool,
        percent: bool,
        snap: bool,
    ) -> Self {
        let mut scale = Scale {
            lo: f64::INFINITY,
            hi: f64::NEG_INFINITY,
            log,
            percent,
            whole: !percent && values.iter().all(|v| v.fract() == 0.0),
        };
        if let Some((lo, hi)) = range
            && lo < hi
            && Scale::admits(lo, log)
            && Scale::admits(hi, log)
        {
            return Scale { lo, hi, ..scale };
        }
        for &v in values {
            scale.lo = scale.lo.min(v);
            scale.hi = scale.hi.max(v);
        }
        if values.is_empty() {
            (scale.lo, scale.hi) = if log { (0.1, 10.0) } else { (0.0, 1.0) };
        } else if log {
            scale.pad_log();
        } else {
            scale.pad_linear(snap);
        }
        scale
    }

    fn pad_log(&mut self) {
        // In logarithms: the quotient of the ends may be too large for a number.
        let decades = self.hi.log10() - self.lo.log10();
        let room = match decades < 1e-9 {
            true => 2.0,
            false => 10f64.powf(0.04 * decades),
        };
        self.lo = (self.lo / room).max(1e-305);
        self.hi = (self.hi * room).min(1e305);
    }

    fn pad_linear(&mut self, snap: bool) {
        let mut size = self.lo.abs().max(self.hi.abs());
        // So small that steps between such values have few bits left, or none: as good as zero.
        if size < 1e-280 {
            (self.lo, self.hi, size) = (0.0, 0.0, 0.0);
        }
        if self.hi - self.lo <= size * 1e-9 {
            let room = if size == 0.0 { 1.0 } else { size * 0.1 };
            (self.lo, self.hi) = (self.lo - room, self.hi + room);
        }
        if snap {
            if self.lo > 0.0 && self.lo <= 0.5 * self.hi {
                self.lo = 0.0;
            }
            let step = self.step(5.0);
            self.lo = (self.lo / step + 1e-9).floor() * step;
            self.hi = (self.hi / step - 1e-9).ceil() * step;
        } else {
            let room = (self.hi - self.lo) * 0.03;
            (self.lo, self.hi) = (self.lo - room, self.hi + room);
        }
    }

    /// Where a value lies: 0 at the lower end, 1 at the upper.
    pub fn place(&self, value: f64) -> f64 {
        let (v, lo, hi) = match self.log {
            true => (value.ln(), self.lo.ln(), self.hi.ln()),
            false => (value, self.lo, self.hi),
        };
        (v - lo) / (hi - lo)
    }

    /// Ticks, ascending, about `count` of them.
    pub fn ticks(&self, count: f64) -> Vec<Tick> {
        if self.log {
            let ticks = self.log_ticks();
            if ticks.len() >= 2 {
                return ticks;
            }
        }
        self.linear_ticks(count)
    }

    /// 1, 2 or 5 times a power of ten that divides the range into about `count` parts.
    fn step(&self, count: f64) -> f64 {
        let raw = (self.hi - self.lo) / count;
        let power = 10f64.powf(raw.log10().floor());
        let step = match raw / power {
            m if m < 1.5 => power,
            m if m < 3.5 => 2.0 * power,
            m if m < 7.5 => 5.0 * power,
            _ => 10.0 * power,
        };
        if self.whole { step.max(1.0) } else { step }
    }

    fn linear_ticks(&self, count: f64) -> Vec<Tick> {
        let step = self.step(count);
        let first = (self.lo / step - 1e-6).ceil();
        let last = (self.hi / step + 1e-6).floor();
        // Beyond 2^53 steps from zero neighbouring ticks are no longer different numbers.
        if !(step > 0.0 && last - first <= 50.0 && first.abs() < 9e15 && last.abs() < 9e15) {
            return Vec::new();
        }
        let largest = first.abs().max(last.abs()) * step;
        (first as i64..=last as i64)
            .map(|k| {
                let value = k as f64 * step;
                let label = self.linear_label(value, step, largest);
                Tick { value, label }
            })
            .collect()
    }

    fn linear_label(&self, value: f64, step: f64, largest: f64) -> String {
        let unit = if self.percent { 100.0 } else { 1.0 };
        let (value, step, largest) = (value * unit, step * unit, largest * unit);
        let sign = if value < 0.0 { "−" } else { "" };
        let step_power = (step.log10() + 1e-9).floor() as i32;
        let power = (largest.log10() + 1e-9).floor() as i32;
        let number = if power >= 6 || step_power < -4 {
            if value == 0.0 {
                return "0".into();
            }
            let decimals = (power - step_power).clamp(0, 17) as usize;
            let mantissa = value.abs() / 10f64.powi(power);
            format!("{mantissa:.decimals$}·10{}", superscript(power))
        } else {
            let decimals = (-step_power).max(0) as usize;
            format!("{:.decimals$}", value.abs())
        };
        let suffix = if self.percent { "%" } else { "" };
        format!("{sign}{number}{suffix}")
    }

    /// Powers of ten; over less than three decades also their doubles and fives.
    fn log_ticks(&self) -> Vec<Tick> {
        let (lo, hi) = (self.lo.log10(), self.hi.log10());
        let every = ((hi - lo) / 7.0).ceil().max(1.0) as i32;
        let factors: &[f64] = if hi - lo < 2.7 {
            &[1.0, 2.0, 5.0]
        } else {
            &[1.0]
        };
        let mut ticks = Vec::new();
        for power in (lo.floor() as i32)..=(hi.ceil() as i32) {
            if power.rem_euclid(every) != 0 {
                continue;
            }
            for &factor in factors {
                let value = factor * 10f64.powi(power);
                let within = (self.lo * (1.0 - 1e-9)..=self.hi * (1.0 + 1e-9)).contains(&value);
                if within {
                    let label = self.log_label(factor, power);
                    ticks.push(Tick { value, label });
                }
            }
        }
        ticks
    }

    fn log_label(&self, factor: f64, power: i32) -> String {
        let shown = if self.percent { power + 2 } else { power };
        let suffix = if self.percent { "%" } else { "" };
        if (-4..5).contains(&shown) {
            let decimals = (-shown).max(0) as usize;
            return format!("{:.decimals$}{suffix}", factor * 10f64.powi(shown));
        }
        let exponent = superscript(shown);
        match factor == 1.0 {
            true => format!("10{exponent}{suffix}"),
            false => format!("{factor}·10{exponent}{suffix}"),
        }
    }
}
