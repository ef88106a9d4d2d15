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

/// Mean over all images of the radius, 0 where the class is wrong or withheld (the average certified
/// radius of Zhai et al. 2020); NaN without an image.
pub fn average_radius(verdicts: &[Verdict]) -> f64 {
    let radii = verdicts.iter().filter(|v| v.is_correct());
    radii.map(|v| v.radius).sum::<f64>() / verdicts.len() as f64
}
