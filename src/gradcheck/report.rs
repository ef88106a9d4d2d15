//! What a gradient check found.

use std::fmt;

use crate::tensor::Shape;

/// Result of a [`Check`](super::Check).
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What was checked.
    pub name: String,
    /// Largest relative error that passes.
    pub tolerance: f64,
    /// One entry per input, in the order they were added.
    pub inputs: Vec<InputReport>,
    /// Of the worst input, the element with the largest discrepancy; none if the check passed, or
    /// if every element sits at a kink.
    pub worst_element: Option<Element>,
}

/// What was found in one input's gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct InputReport {
    /// The input.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Directions tried.
    pub directions: usize,
    /// Directions left out because a kink was in the way of every step.
    pub skipped: usize,
    /// Worst relative error of the others; NaN if a value or gradient was.
    pub worst_error: f64,
}

/// One element whose gradient differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    /// The input it belongs to.
    pub input: String,
    /// Its position, `[n, h, w, c]`.
    pub index: [usize; 4],
    /// What backward says.
    pub analytic: f64,
    /// What differences say.
    pub numeric: f64,
}

impl InputReport {
    pub(super) fn new(name: &str, shape: Shape) -> Self {
        InputReport {
            name: name.to_owned(),
            shape,
            directions: 0,
            skipped: 0,
            worst_error: 0.0,
        }
    }

    /// Whether at least one direction was compared and none was off by more than `tolerance`.
    pub fn passed(&self, tolerance: f64) -> bool {
        self.skipped < self.directions && self.worst_error <= tolerance
    }
}

impl Report {
    /// Whether every input's gradient is right.
    pub fn passed(&self) -> bool {
        self.inputs.iter().all(|i| i.passed(self.tolerance))
    }

    /// Worst relative error over all inputs; NaN if one is.
    pub fn worst_error(&self) -> f64 {
        self.inputs
            .iter()
            .map(|i| i.worst_error)
            .fold(0.0, super::larger)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed() { "passed" } else { "FAILED" };
        write!(
            f,
            "{}: gradient {verdict} (tolerance {:.0e})",
            self.name, self.tolerance
        )?;
        for input in &self.inputs {
            let InputReport {
                name,
                shape,
                directions,
                skipped,
                worst_error,
            } = input;
            write!(f, "\n  {name} {shape}: {directions} directions")?;
            if *skipped > 0 {
                write!(f, ", {skipped} left out at kinks")?;
            }
            if skipped == directions {
                write!(f, ": NOTHING COMPARED")?;
            } else {
                write!(f, ", worst relative error {worst_error:.1e}")?;
                if !input.passed(self.tolerance) {
                    write!(f, ": WRONG")?;
                }
            }
        }
        if let Some(Element {
            input,
            index,
            analytic,
            numeric,
        }) = &self.worst_element
        {
            write!(
                f,
                "\n  worst element {input}{index:?}: backward says {analytic:.9e}, differences say {numeric:.9e}"
            )?;
        }
        Ok(())
    }
}
