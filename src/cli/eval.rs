//! `noiseforge eval` and `noiseforge predict`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use noiseforge::data::{Spec, Split};
use noiseforge::ensemble::Average;
use noiseforge::evaluate::{Evaluation, Judge};
use noiseforge::io::npy;
use noiseforge::ops::loss::softmax;
use serde_json::json;

use super::common::{self, PlaceArgs, WeightsArgs, percent, positive, say};

/// Which images, and how many draws.
#[derive(Debug, Args)]
pub struct JudgeArgs {
    #[command(flatten)]
    weights: WeightsArgs,
    /// Data: synthetic[:N], cifar10:DIR, stl10:DIR, folder:DIR or npy:IMAGES,LABELS
    #[arg(long, value_name = "SPEC")]
    data: Spec,
    /// Which part of the data set
    #[arg(long, value_enum, default_value = "test")]
    split: SplitArg,
    /// Only the first N images
    #[arg(long, value_name = "N", value_parser = positive)]
    count: Option<usize>,
    /// Draws of the noise for each image; 1 where the network has none
    #[arg(long, value_name = "N", default_value = "10", value_parser = positive)]
    ensemble: usize,
    /// Average logits instead of probabilities
    #[arg(long)]
    mean_logits: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum SplitArg {
    Train,
    Test,
}

impl From<SplitArg> for Split {
    fn from(split: SplitArg) -> Self {
        match split {
            SplitArg::Train => Split::Train,
            SplitArg::Test => Split::Test,
        }
    }
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:
  noiseforge eval --weights runs/rse/weights.safetensors --data cifar10:data --ensemble 50
  noiseforge eval --weights vgg16.safetensors --model vgg16 --data cifar10:data --json"
)]
pub struct EvalArgs {
    #[command(flatten)]
    judge: JudgeArgs,
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:
  noiseforge predict --weights w.safetensors --data synthetic --out logits.npy
  noiseforge predict --weights w.safetensors --data cifar10:data --ensemble 50 --probs --out p.npy

The array is f32, [images, classes]. With more than one draw its scores are the logarithm of the
mean probability (or the mean logit with --mean-logits); with --probs they are probabilities."
)]
pub struct PredictArgs {
    #[command(flatten)]
    judge: JudgeArgs,
    /// Where to write the scores
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write probabilities
    #[arg(long)]
    probs: bool,
}

struct Judged {
    evaluation: Evaluation,
    images: usize,
    report: serde_json::Value,
}

impl JudgeArgs {
    /// `curve` also asks for smaller numbers of draws.
    fn run(&self, curve: bool) -> Result<Judged> {
        let mut data = common::load_data(&self.data, self.split.into())?;
        if let Some(count) = self.count {
            data = data.take(count);
        }
        let mut model = self.weights.load(&data)?;
        self.place.place(&mut model)?;
        let most = common::useful_draws(&model, self.ensemble);
        let judge = Judge {
            seed: self.weights.seed,
            first_draw: 0,
            draws: [1, 2, 5, 10, 20, 50, 100]
                .into_iter()
                .filter(|&d| curve && d < most)
                .chain([most])
                .collect(),
            average: match self.mean_logits {
                true => Average::Logits,
                false => Average::Probabilities,
            },
        };
        let ids: Vec<u32> = (0..data.len() as u32).collect();
        let bar = common::bar(data.len() as u64, "evaluating");
        let evaluation = judge.judge(&mut model, &data, &ids, &mut |done| {
            bar.set_position(done as u64);
            common::check_stop()
        })?;
        bar.finish_and_clear();
        let report = json!({
            "weights": self.weights.weights.display().to_string(),
            "data": self.data.to_string(),
            "split": Split::from(self.split).name(),
            "images": data.len(),
            "seed": self.weights.seed,
            "network": common::config_json(model.config()),
            "device": model.device().to_string(),
            "dtype": model.dtype().to_string(),
            "draws": most,
            "average": if self.mean_logits { "logits" } else { "probabilities" },
            "accuracy": evaluation.final_accuracy(),
            "loss": evaluation.loss,
        });
        Ok(Judged {
            evaluation,
            images: data.len(),
            report,
        })
    }
}

pub fn eval(args: &EvalArgs, json: bool) -> Result<()> {
    let Judged {
        evaluation,
        images,
        mut report,
    } = args.judge.run(true)?;
    if json {
        report["accuracy_by_draws"] = evaluation
            .accuracy
            .iter()
            .map(|(draws, accuracy)| json!({"draws": draws, "accuracy": accuracy}))
            .collect();
        say!("{report:#}");
        return Ok(());
    }
    say!(
        "{images} images, mean cross-entropy {:.4} nats",
        evaluation.loss
    );
    say!("{:>6} {:>10}", "draws", "accuracy %");
    for (draws, accuracy) in &evaluation.accuracy {
        say!("{draws:>6} {:>10}", percent(*accuracy));
    }
    Ok(())
}

pub fn predict(args: &PredictArgs, json: bool) -> Result<()> {
    common::check_writable(&args.out)?;
    let Judged {
        evaluation,
        images,
        mut report,
    } = args.judge.run(false)?;
    let scores = match args.probs {
        true => softmax(&evaluation.scores)?,
        false => evaluation.scores.clone(),
    };
    npy::write_f32(&args.out, &[images, scores.shape().c], scores.data::<f32>())?;
    if json {
        report["out"] = json!(args.out.display().to_string());
        report["probabilities"] = json!(args.probs);
        say!("{report:#}");
    } else {
        say!(
            "{}: [{images}, {}] f32, accuracy {}%",
            args.out.display(),
            scores.shape().c,
            percent(evaluation.final_accuracy())
        );
    }
    Ok(())
}
