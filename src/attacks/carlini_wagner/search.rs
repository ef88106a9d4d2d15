//! Which constants are tried.

/// Binary search over `c` for one image: a ladder until the first success, then ever smaller parts of the
/// interval between the largest failure and the smallest success. With several constants at once the
/// ladder takes as many rungs, and the interval is cut into as many parts and one.
pub(in crate::attacks) struct Search {
    /// Constants still to be tried.
    left: u32,
    at_once: u32,
    /// Where the ladder goes on.
    rung: f64,
    lower: f64,
    upper: Option<f64>,
    /// Ten or more constants: the last one tries the smallest that succeeded once more.
    repeats_upper: bool,
}

impl Search {
    pub fn new(first: f64, constants: u32, at_once: u32) -> Self {
        Search {
            left: constants,
            at_once,
            rung: first,
            lower: 0.0,
            upper: None,
            repeats_upper: constants >= 10,
        }
    }

    /// The next constants, ascending; none when the search is over.
    pub fn next(&mut self) -> Vec<f64> {
        let count = self.left.min(self.at_once);
        self.left -= count;
        match self.upper {
            Some(upper) if self.repeats_upper && self.left == 0 && count == 1 => vec![upper],
            Some(upper) => (1..=count)
                .map(|j| self.lower + (upper - self.lower) * f64::from(j) / f64::from(count + 1))
                .collect(),
            None => (0..count)
                .map(|_| {
                    let c = self.rung;
                    self.rung *= 10.0;
                    c
                })
                .collect(),
        }
    }

    /// What became of the constants that [`Search::next`] gave.
    pub fn tell(&mut self, constants: &[f64], success: &[bool]) {
        for (&c, _) in constants.iter().zip(success).filter(|(_, s)| **s) {
            self.upper = Some(self.upper.map_or(c, |u| u.min(c)));
        }
        let below = self.upper.unwrap_or(f64::INFINITY);
        for (&c, _) in constants.iter().zip(success).filter(|(_, s)| !**s) {
            // A failure above a success says nothing of the interval.
            if c < below {
                self.lower = self.lower.max(c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Search;

    fn run(search: &mut Search, succeeds: impl Fn(f64) -> bool) -> Vec<Vec<f64>> {
        let mut all = Vec::new();
        loop {
            let c = search.next();
            if c.is_empty() {
                return all;
            }
            let success: Vec<bool> = c.iter().map(|&c| succeeds(c)).collect();
            search.tell(&c, &success);
            all.push(c);
        }
    }

    fn near(found: &[Vec<f64>], expected: &[&[f64]]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (f, e) in found.iter().flatten().zip(expected.iter().flat_map(|e| *e)) {
            assert!((f / e - 1.0).abs() < 1e-12, "{found:?}");
        }
    }

    #[test]
    fn climbs_by_ten_and_halves() {
        let never = run(&mut Search::new(1e-3, 4, 1), |_| false);
        near(&never, &[&[1e-3], &[1e-2], &[0.1], &[1.0]]);
        let always = run(&mut Search::new(1e-3, 3, 1), |_| true);
        near(&always, &[&[1e-3], &[5e-4], &[2.5e-4]]);
        let above = run(&mut Search::new(1.0, 5, 1), |c| c > 6.0);
        near(&above, &[&[1.0], &[10.0], &[5.5], &[7.75], &[6.625]]);
    }

    #[test]
    fn the_last_of_ten_repeats_the_smallest_success() {
        let ten = run(&mut Search::new(1.0, 10, 1), |c| c > 6.0);
        let smallest = ten[..9].iter().flatten().filter(|c| **c > 6.0);
        assert_eq!(ten[9][0], smallest.fold(f64::INFINITY, |a, &b| a.min(b)));
    }

    #[test]
    fn several_at_once_share_the_ladder_and_the_interval() {
        let found = run(&mut Search::new(1.0, 7, 3), |c| c > 6.0);
        near(&found, &[&[1.0, 10.0, 100.0], &[3.25, 5.5, 7.75], &[6.625]]);
    }
}
