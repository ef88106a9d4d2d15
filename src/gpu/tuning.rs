//! What was measured on a device: which way of cutting an op's work is the fastest for a shape.
//!
//! A CSV file with a header, one line a measurement:
//!
//! ```text
//! device,operation,dtype,n,h,w,c_in,c_out,k,stride,pad,groups,kernel,blocking,microseconds
//! NVIDIA H200,forward,bf16,128,32,32,64,64,3,1,1,1,mma,4,40.1
//! ```
//!
//! `kernel` is the family that `blocking` is a number of. Of several lines for one shape the fastest
//! counts. Lines of other devices are skipped. A choice changes no result, so a table that is wrong or
//! of another version can cost time and nothing else: a number that no kernel has, or that does not
//! fit the shape, is as good as none.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::error::{Error, Result};
use crate::tensor::DType;

/// Measured with this version's kernels; `noiseforge bench --tune` makes such a file.
const EMBEDDED: &str = include_str!("tuned.csv");
/// The columns of the file.
pub const HEADER: &str =
    "device,operation,dtype,n,h,w,c_in,c_out,k,stride,pad,groups,kernel,blocking,microseconds";
const COLUMNS: usize = 15;

/// A shape, as far as it is not the batch: an image's height, width and channels, output channels, the
/// kernel's size, stride, pad and groups.
pub type Sizes = [usize; 8];

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// The device's name.
    pub device: String,
    /// `forward`, `input grad` or `weight grad`.
    pub operation: String,
    /// The type of the activations.
    pub dtype: DType,
    /// Images of the batch.
    pub n: usize,
    /// The rest of the shape.
    pub sizes: Sizes,
    /// The family of kernels.
    pub kernel: String,
    /// The number of the way of cutting.
    pub blocking: u32,
    /// How long it took.
    pub microseconds: f64,
}

impl Measurement {
    /// The line of the file, without its end.
    pub fn line(&self) -> String {
        let sizes: Vec<_> = self.sizes.iter().map(usize::to_string).collect();
        format!(
            "{},{},{},{},{},{},{},{:.3}",
            // A comma would end the field.
            self.device.replace(',', " "),
            self.operation,
            self.dtype,
            self.n,
            sizes.join(","),
            self.kernel,
            self.blocking,
            self.microseconds
        )
    }

    /// Reads a line; an error says what is wrong with it.
    fn parse(line: &str) -> std::result::Result<Self, String> {
        let fields: Vec<&str> = line.split(',').collect();
        if fields.len() != COLUMNS {
            return Err(format!("{} fields in place of {COLUMNS}", fields.len()));
        }
        let count = |i: usize| -> std::result::Result<usize, String> {
            let name = HEADER.split(',').nth(i).unwrap_or_default();
            let parsed = fields[i].parse::<u32>();
            parsed
                .map(|v| v as usize)
                .map_err(|_| format!("{name} {:?}, which is no count", fields[i]))
        };
        let mut sizes = Sizes::default();
        for (i, size) in sizes.iter_mut().enumerate() {
            *size = count(4 + i)?;
        }
        let microseconds = fields[14].parse::<f64>().ok();
        let microseconds = microseconds.filter(|v| v.is_finite() && *v > 0.0);
        Ok(Measurement {
            device: fields[0].to_string(),
            operation: fields[1].to_string(),
            dtype: fields[2]
                .parse()
                .map_err(|_| format!("dtype {:?}", fields[2]))?,
            n: count(3)?,
            sizes,
            kernel: fields[12].to_string(),
            blocking: count(13)? as u32,
            microseconds: microseconds
                .ok_or_else(|| format!("microseconds {:?}, which is no time", fields[14]))?,
        })
    }
}

/// Reads all lines of a file.
///
/// Errors: the file cannot be read; a line is not as it has to be, and which.
pub fn read(path: &Path) -> Result<Vec<Measurement>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
        action: "read",
        path: path.to_path_buf(),
        source,
    })?;
    parse(&text).map_err(|(expected, found)| Error::File {
        path: path.to_path_buf(),
        offset: None,
        expected,
        found,
    })
}

fn parse(text: &str) -> std::result::Result<Vec<Measurement>, (String, String)> {
    let header = text.lines().next().unwrap_or_default().trim_end();
    if header != HEADER {
        let found: String = header.chars().take(80).collect();
        return Err((format!("the first line {HEADER:?}"), format!("{found:?}")));
    }
    // A file that was cut off may end within a number.
    if !text.ends_with('\n') {
        let expected = "lines that end; `noiseforge bench --tune` writes the file anew".to_string();
        return Err((expected, "a last line that does not".to_string()));
    }
    let lines = text.lines().enumerate().skip(1);
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| {
            Measurement::parse(line.trim_end()).map_err(|found| {
                let expected = format!(
                    "measurements; `noiseforge bench --tune` makes them. Line {}",
                    i + 1
                );
                (expected, found)
            })
        })
        .collect()
}

/// What is chosen on one device.
#[derive(Debug, Clone, Default)]
pub struct Tuning {
    /// By operation and kernel; then, for each measured batch, the fastest.
    chosen: HashMap<(String, DType, Sizes), HashMap<String, Batches>>,
}

type Batches = BTreeMap<usize, (u32, f64)>;

impl Tuning {
    /// What this version knows of a device of this name.
    pub fn embedded(device: &str) -> Self {
        let measurements = parse(EMBEDDED).unwrap_or_default();
        Tuning::new(&measurements, device)
    }

    /// The measurements on devices of this name.
    pub fn new(measurements: &[Measurement], device: &str) -> Self {
        let mut tuning = Tuning::default();
        tuning.add(measurements, device);
        tuning
    }

    /// Adds measurements. A batch that they hold is no longer what it was.
    pub fn add(&mut self, measurements: &[Measurement], device: &str) {
        let device = device.replace(',', " ");
        let mut anew: HashMap<_, HashMap<String, Batches>> = HashMap::new();
        for m in measurements
            .iter()
            .filter(|m| m.device.replace(',', " ") == device)
        {
            let key = (m.operation.clone(), m.dtype, m.sizes);
            let batches = anew.entry(key).or_default();
            let best = batches.entry(m.kernel.clone()).or_default();
            let entry = best.entry(m.n).or_insert((m.blocking, m.microseconds));
            if m.microseconds < entry.1 {
                *entry = (m.blocking, m.microseconds);
            }
        }
        for (key, kernels) in anew {
            let known = self.chosen.entry(key).or_default();
            for (kernel, batches) in kernels {
                known.entry(kernel).or_default().extend(batches);
            }
        }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// The blocking for a batch of `n`: that of the nearest batch that was measured, up to twice as
    /// large or half as large, or of the largest one for what is larger.
    pub(crate) fn blocking(
        &self,
        operation: &str,
        dtype: DType,
        kernel: &str,
        n: usize,
        sizes: Sizes,
    ) -> Option<u32> {
        if self.chosen.is_empty() {
            return None;
        }
        let kernels = self.chosen.get(&(operation.to_string(), dtype, sizes))?;
        let batches = kernels.get(kernel)?;
        let below = batches.range(..=n).next_back();
        let above = batches.range(n..).next();
        let choice = match (below, above) {
            (Some(below), None) => below,
            (None, Some(above)) if above.0 / 2 <= n => above,
            (Some(below), Some(above)) => {
                // By ratio: n / below against above / n.
                let lower = n * n <= below.0 * above.0;
                match lower {
                    true if n / 2 <= *below.0 => below,
                    false if above.0 / 2 <= n => above,
                    _ => return None,
                }
            }
            _ => return None,
        };
        Some(choice.1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = [32, 32, 64, 64, 3, 1, 1, 1];

    fn measured(n: usize, blocking: u32, microseconds: f64) -> Measurement {
        Measurement {
            device: "A, B".to_string(),
            operation: "forward".to_string(),
            dtype: DType::BF16,
            n,
            sizes: SIZES,
            kernel: "mma".to_string(),
            blocking,
            microseconds,
        }
    }

    fn chosen(tuning: &Tuning, n: usize) -> Option<u32> {
        tuning.blocking("forward", DType::BF16, "mma", n, SIZES)
    }

    #[test]
    fn the_embedded_table_can_be_read() {
        assert!(parse(EMBEDDED).is_ok());
    }

    #[test]
    fn lines_are_read_as_they_are_written() {
        let lines = [measured(128, 4, 40.125), measured(1024, 0, 300.5)];
        let text = format!("{HEADER}\n{}\n{}\n", lines[0].line(), lines[1].line());
        let mut expected = lines.to_vec();
        expected.iter_mut().for_each(|m| m.device = "A  B".into());
        assert_eq!(parse(&text).unwrap(), expected);
        let tuning = Tuning::new(&parse(&text).unwrap(), "A, B");
        assert_eq!(chosen(&tuning, 128), Some(4));
        assert!(Tuning::new(&expected, "NVIDIA H200").is_empty());
    }

    #[test]
    fn the_fastest_of_the_nearest_batch_is_chosen() {
        let tuning = Tuning::new(
            &[
                measured(128, 1, 9.0),
                measured(128, 2, 8.0),
                measured(128, 3, 8.5),
                measured(1024, 5, 70.0),
            ],
            "A, B",
        );
        let expected = [
            (63, None),
            (64, Some(2)),
            (128, Some(2)),
            (255, Some(2)),
            (300, None),
            (512, Some(5)),
            (1024, Some(5)),
            (60_000, Some(5)),
        ];
        for (n, blocking) in expected {
            assert_eq!(chosen(&tuning, n), blocking, "batch {n}");
        }
        assert_eq!(
            tuning.blocking("input grad", DType::BF16, "mma", 128, SIZES),
            None
        );
        assert_eq!(
            tuning.blocking("forward", DType::F16, "mma", 128, SIZES),
            None
        );
        assert_eq!(
            tuning.blocking("forward", DType::BF16, "wgmma", 128, SIZES),
            None
        );
    }

    #[test]
    fn later_measurements_replace_earlier_ones() {
        let mut tuning = Tuning::new(&[measured(128, 1, 5.0), measured(1024, 1, 50.0)], "A, B");
        tuning.add(&[measured(128, 6, 7.0)], "A, B");
        assert_eq!(chosen(&tuning, 128), Some(6));
        assert_eq!(chosen(&tuning, 1024), Some(1));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let good = measured(128, 4, 40.0).line();
        let cases = [
            ("", "first line"),
            ("case,microseconds\n", "first line"),
            (&format!("{HEADER}\n{good}"), "lines that end"),
            (&format!("{HEADER}\n{good}\n{}\n", &good[..30]), "Line 3"),
            (
                &format!("{HEADER}\n{}\n", good.replace(",4,", ",-4,")),
                "Line 2",
            ),
            (
                &format!("{HEADER}\n{}\n", good.replace("40.000", "NaN")),
                "Line 2",
            ),
            (
                &format!("{HEADER}\n{}\n", good.replace("bf16", "int8")),
                "Line 2",
            ),
        ];
        for (text, words) in cases {
            let (expected, _) = parse(text).unwrap_err();
            assert!(expected.contains(words), "{text:?}: {expected}");
        }
    }
}
