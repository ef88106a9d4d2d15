//! `noiseforge noise`: the draw of one noise layer for one image, as a file.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use noiseforge::io::npy;
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose, Row, RowNoise};
use noiseforge::tensor::{DType, Device, Shape, Tensor};

use super::common::{DeviceArg, say, sigma};

/// Write the noise one layer adds to one image: sigma * z, as an f32 array [h, w, c]
#[derive(Debug, clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Example:
  noiseforge noise --seed 7 --purpose eval --layer 0 --draw 3 --row 41 \\
      --shape 32,32,3 --sigma 0.2 --out z.npy

is what an evaluation with seed 7 adds to image 41 of the data set in its fourth draw. The numbers
depend on nothing else: not on the batch, the number of threads or the processor."
)]
pub struct Args {
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What the draw is for
    #[arg(long, value_enum)]
    purpose: For,
    /// Number of the noise layer in its network; 0 is the noise on the image
    #[arg(long, default_value_t = 0)]
    layer: u16,
    /// Training step, or index of the ensemble's or attack's draw
    #[arg(long, default_value_t = 0)]
    draw: u32,
    /// Index of the image: in its data set or, in training, in the batch
    #[arg(long, default_value_t = 0)]
    row: u32,
    /// Height, width and channels of the layer's input
    #[arg(long, value_name = "H,W,C", value_parser = parse_shape)]
    shape: Shape,
    /// Standard deviation
    #[arg(long, value_parser = sigma)]
    sigma: f32,
    /// Normals from 32-bit radius and angle instead of 20 and 12 bits
    #[arg(long)]
    precise: bool,
    #[command(flatten)]
    device: DeviceArg,
    /// File to write
    #[arg(long, value_name = "FILE.npy")]
    out: PathBuf,
}

/// [`Purpose`], as the command line spells it.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum For {
    Train,
    Eval,
    Attack,
    Certify,
    Test,
    Auxiliary,
}

impl From<For> for Purpose {
    fn from(purpose: For) -> Self {
        match purpose {
            For::Train => Purpose::Train,
            For::Eval => Purpose::Eval,
            For::Attack => Purpose::Attack,
            For::Certify => Purpose::Certify,
            For::Test => Purpose::Test,
            For::Auxiliary => Purpose::Auxiliary,
        }
    }
}

fn parse_shape(text: &str) -> Result<Shape, String> {
    let sizes: Option<Vec<usize>> = text
        .split(',')
        .map(|size| size.trim().parse().ok().filter(|&size| size > 0))
        .collect();
    match sizes.as_deref() {
        Some(&[h, w, c]) => Ok(Shape::new(1, h, w, c)),
        _ => Err("expected three sizes of at least 1, e.g. 32,32,3".into()),
    }
}

/// Runs the command; with `json`, prints `out`, `shape`, `mean`, `std` and `max_abs`, the last
/// three of the numbers written.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let noise = Noise {
        key: Key {
            seed: args.seed,
            purpose: args.purpose.into(),
            rows: [Row {
                id: args.row,
                draw: args.draw,
            }]
            .into(),
        },
        layer: args.layer,
        sigma: args.sigma,
        normals: if args.precise {
            Normals::Precise
        } else {
            Normals::Fast
        },
    };
    noise::check_shape("noise", &noise, args.shape)?;
    let Shape { h, w, c, .. } = args.shape;
    let z = match args.device.open()? {
        Device::Cpu => draw(&noise, args.shape)?,
        device => {
            let zeros = Tensor::full_on(&device, args.shape, DType::F32, 0.0)?;
            noise::forward(&zeros, &noise)?.to_cpu()?.data().to_vec()
        }
    };
    npy::write_f32(&args.out, &[h, w, c], &z)?;
    let Moments { mean, std, max_abs } = moments(&z);
    if json {
        let report = serde_json::json!({
            "out": args.out,
            "shape": [h, w, c],
            "mean": mean,
            "std": std,
            "max_abs": max_abs,
        });
        say!("{report:#}");
    } else {
        say!(
            "{}: [{h}, {w}, {c}] f32, mean {mean:.6}, standard deviation {std:.6}, \
             largest magnitude {max_abs:.6}",
            args.out.display()
        );
    }
    Ok(())
}

/// Of the numbers written.
struct Moments {
    mean: f64,
    std: f64,
    max_abs: f64,
}

fn moments(z: &[f32]) -> Moments {
    let n = z.len() as f64;
    let values = || z.iter().map(|&z| f64::from(z));
    let mean = values().sum::<f64>() / n;
    Moments {
        mean,
        std: (values().map(|z| z * z).sum::<f64>() / n - mean * mean)
            .max(0.0)
            .sqrt(),
        max_abs: values().fold(0.0, |max, z| max.max(z.abs())),
    }
}

/// `sigma z` of the noise's only row.
fn draw(noise: &Noise, shape: Shape) -> Result<Vec<f32>> {
    let mut z = Vec::new();
    z.try_reserve_exact(shape.len())
        .with_context(|| format!("no memory for an image of {shape}"))?;
    z.resize(shape.len(), 0.0);
    let row = RowNoise::new(noise, 0, shape.c);
    let line = shape.w * shape.c;
    let zeros = vec![0.0; line];
    for (h, z) in z.chunks_exact_mut(line).enumerate() {
        row.add(h * shape.w, &zeros, z);
    }
    Ok(z)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Command::try_parse_from(["noise"].into_iter().chain(line.split(' '))).map(|c| c.args)
    }

    #[test]
    fn the_file_holds_what_the_op_adds() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("z.npy");
        for (extra, normals) in [("", Normals::Fast), (" --precise", Normals::Precise)] {
            // Ragged in every size.
            let mut args = parse(&format!(
                "--seed 7 --purpose certify --layer 2 --draw 3 --row 41 \
                 --shape 90,71,13 --sigma 0.25 --out z.npy{extra}"
            ))
            .unwrap();
            args.out = out.clone();
            run(&args, false).unwrap();

            let noise = Noise {
                key: Key::consecutive(7, Purpose::Certify, 41, 1, 3),
                layer: 2,
                sigma: 0.25,
                normals,
            };
            let zeros = Tensor::zeros(Shape::new(1, 90, 71, 13), DType::F32);
            let expected = noise::forward(&zeros, &noise).unwrap();
            let (shape, written) = npy::read_f32(&out).unwrap();
            assert_eq!(shape, [90, 71, 13]);
            assert!(written == expected.data::<f32>());
        }
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 1, "no temporary file is left");
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        let good = "--purpose test --shape 2,2,3 --sigma 1 --out z.npy";
        parse(good).unwrap();
        for (from, to, expected) in [
            (
                "--sigma 1",
                "--sigma -1",
                "invalid value '-1' for '--sigma <SIGMA>'",
            ),
            ("--sigma 1", "--sigma NaN", "a finite number, at least 0"),
            (
                "2,2,3",
                "2,0,3",
                "invalid value '2,0,3' for '--shape <H,W,C>'",
            ),
            (
                "2,2,3",
                "2,2",
                "expected three sizes of at least 1, e.g. 32,32,3",
            ),
            (
                "test",
                "other",
                "[possible values: train, eval, attack, certify, test, auxiliary]",
            ),
            (
                "--sigma 1",
                "--sigma 1 --layer 65536",
                "65536 is not in 0..=65535",
            ),
        ] {
            let text = parse(&good.replace(from, to)).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_and_an_image_too_large_are_refused() {
        let mut args = parse("--purpose test --shape 2,2,3 --sigma 1 --out z.npy").unwrap();
        args.out = "/nowhere/at/all/z.npy".into();
        let text = format!("{:#}", run(&args, false).unwrap_err());
        assert!(
            text.starts_with("cannot write /nowhere/at/all/z.npy: "),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
        args.shape = Shape::new(1, 1 << 20, 1 << 20, 8);
        let text = format!("{:#}", run(&args, false).unwrap_err());
        assert!(
            text.starts_with("noise: x: expected at most 2^32 blocks"),
            "{text}"
        );
    }
}
