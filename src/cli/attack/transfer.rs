//! `noiseforge attack transfer`: the images that another attack saved, judged by other weights.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use noiseforge::attacks::{Counts, Criterion, Found};
use noiseforge::data::{Spec, Split};
use noiseforge::io::npy;
use noiseforge::tensor::{Shape, Tensor};
use noiseforge::verdict::Report;
use serde_json::json;

use super::campaign::{self, JuryArgs, Victims};
use super::{object, report};
use crate::cli::common::{self, PlaceArgs, WeightsArgs, say};

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Example:
  noiseforge attack cw --weights plain.safetensors --data cifar10:data --out runs/cw-plain
  noiseforge attack transfer --from runs/cw-plain --weights rse.safetensors --out runs/transfer

The network judged sees the images that fooled another one; its report has the same keys."
)]
pub struct TransferArgs {
    /// Folder of the attack: its adv.npy and report.json
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    #[command(flatten)]
    weights: WeightsArgs,
    /// Data set the images come from [default: the report's]
    #[arg(long, value_name = "SPEC")]
    data: Option<Spec>,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    jury: JuryArgs,
    #[command(flatten)]
    place: PlaceArgs,
}

/// A finished attack, read from its folder.
pub struct Saved {
    pub report: Report,
    /// `[n, h, w, c]`.
    pub adversarial: Tensor,
    pub victims: Victims,
}

impl Saved {
    /// Reads a folder. The data set is the report's unless another is given.
    pub fn read(folder: &Path, data: Option<&Spec>) -> Result<Self> {
        let file = folder.join("report.json");
        let report = Report::read(&file)?;
        let array = folder.join("adv.npy");
        let (shape, pixels) = npy::read_f32(&array)?;
        let &[n, h, w, c] = &shape[..] else {
            bail!(
                "{}: expected [n, h, w, c], found {shape:?}",
                array.display()
            );
        };
        if n != report.images.len() {
            bail!(
                "{} holds {n} images, {} describes {}",
                array.display(),
                file.display(),
                report.images.len()
            );
        }
        let spec = match (data, report.parameters.get("data").and_then(|v| v.as_str())) {
            (Some(spec), _) => spec.clone(),
            (None, Some(text)) => text.parse()?,
            (None, None) => bail!("{} does not say which data set it is of", file.display()),
        };
        let test = common::load_data(&spec, Split::Test)?;
        let shape = Shape::new(n, h, w, c);
        if test.image_shape() != shape.with_n(1) {
            bail!(
                "images of another size: {} holds {}, the data set {}",
                array.display(),
                shape.with_n(1),
                test.image_shape()
            );
        }
        let ids: Vec<u32> = report.images.iter().map(|r| r.id).collect();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= test.len()) {
            bail!(
                "image {id} of the report is not in the data set, which has {}",
                test.len()
            );
        }
        let indices: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        let data = test.subset(&indices)?;
        let labels = data.labels();
        if let Some(i) = (0..n).find(|&i| labels[i] != report.images[i].label) {
            bail!(
                "image {} has label {} in the data set and {} in the report",
                ids[i],
                labels[i],
                report.images[i].label
            );
        }
        let targets: Option<Vec<u32>> = report.images.iter().map(|r| r.target).collect();
        let criterion = match targets {
            Some(targets) => Criterion::Targeted { targets },
            None => Criterion::Untargeted {
                labels: labels.to_vec(),
            },
        };
        Ok(Saved {
            adversarial: Tensor::from_vec(shape, pixels)?,
            victims: Victims {
                data,
                ids,
                criterion,
            },
            report,
        })
    }

    /// The original images.
    pub fn originals(&self) -> Result<Tensor> {
        let all: Vec<usize> = (0..self.victims.ids.len()).collect();
        Ok(self.victims.data.batch(&all)?.0)
    }
}

impl TransferArgs {
    pub fn run(&self, json: bool) -> Result<()> {
        let saved = Saved::read(&self.from, self.data.as_ref())?;
        let victims = &saved.victims;
        let mut model = self.weights.load(&victims.data)?;
        self.place.place(&mut model)?;
        common::prepare_folder(&self.out)?;
        common::stop_on_ctrl_c()?;
        let jury = self.jury.jury(self.weights.seed, &model);
        let clean = campaign::judge(&jury, &mut model, &victims.data, &victims.ids)?;
        let adversarial = &saved.adversarial;
        let verdicts = campaign::judge_adversarial(&jury, &mut model, victims, adversarial)?;
        let originals = saved.originals()?;
        let found: Vec<Found> = saved
            .report
            .images
            .iter()
            .enumerate()
            .map(|(i, row)| {
                let (x, adv): (&[f32], &[f32]) = (originals.row(i), adversarial.row(i));
                Found {
                    c: row.c,
                    forward_at_success: None,
                    ..Found::new(x, adv.to_vec(), row.attack_success, Counts::default())
                }
            })
            .collect();
        let images = victims.rows(&found, &clean, &verdicts);
        let parameters = object(json!({
            "from": self.from.display().to_string(),
            "from_attack": saved.report.attack,
            "from_weights": saved.report.parameters.get("weights"),
            "weights": self.weights.weights.display().to_string(),
            "network": common::config_json(model.config()),
            "device": model.device().to_string(),
            "dtype": model.dtype().to_string(),
            "data": match &self.data {
                Some(spec) => json!(spec.to_string()),
                None => saved.report.parameters.get("data").cloned().unwrap_or_default(),
            },
            "split": "test",
            "count": images.len(),
        }));
        let made = report::make("transfer", parameters, &jury, None, images, &model);
        report::write(&self.out, adversarial, &made)?;
        if json {
            say!("{:#}", serde_json::to_value(&made)?);
        } else {
            report::say_row(&made, true, "transfer");
            say!("{}", self.out.join("report.json").display());
        }
        Ok(())
    }
}
