//! Certified accuracy of a set of images.

/// An image's label and what was said about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// The true class.
    pub label: u32,
    /// The smoothed classifier's class; `None` where it abstained.
    pub class: Option<u32>,
    /// The certified radius.
    pub radius: f64,
}

impl Verdict {
    /// Whether the class is the true one; an abstention is not.
    pub fn is_correct(&self) -> bool {
        self.class == Some(self.label)
    }
}

/// How many images are certified at this radius: correct, and their own radius is at least this one.
pub fn certified_accuracy(verdicts: &[Verdict], radius: f64) -> usize {
    verdicts
        .iter()
        .filter(|v| v.is_correct() && v.radius >= radius)
        .count()
}

/// Certified accuracy against radius, from 0 to `largest`: `(radius, share)` points of a line that goes down by a step
/// at the radius of every certificate.
pub fn curve(verdicts: &[Verdict], largest: f64) -> Vec<(f64, f64)> {
    let n = verdicts.len() as f64;
    let correct = verdicts.iter().filter(|v| v.is_correct());
    let mut steps: Vec<f64> = correct.map(|v| v.radius).collect();
    steps.sort_by(f64::total_cmp);
    let mut height = steps.len() as f64 / n;
    let mut points = vec![(0.0, height)];
    for (i, &r) in steps.iter().enumerate() {
        points.push((r, height));
        height = (steps.len() - i - 1) as f64 / n;
        points.push((r, height));
    }
    points.push((largest, height));
    points
}

/// Mean over all images of the radius, 0 where the class is wrong or withheld (the average certified
/// radius of Zhai et al. 2020); NaN without an image.
pub fn average_radius(verdicts: &[Verdict]) -> f64 {
    let radii = verdicts.iter().filter(|v| v.is_correct());
    radii.map(|v| v.radius).sum::<f64>() / verdicts.len() as f64
}
