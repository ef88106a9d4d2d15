//! `noiseforge audit`.

use anyhow::{Result, bail};
use clap::Args;
use noiseforge::attacks::apgd::Apgd;
use noiseforge::attacks::auto::{AutoAttack, Member};
use noiseforge::attacks::{Norm, Options, WhiteBoxAttack};
use noiseforge::audit::{Evaluation, Level, verdict};
use noiseforge::data::{Spec, Split};
use noiseforge::ensemble::{Classifier, Ensemble};
use noiseforge::ops::noise::{Purpose, Row, Rows};
use serde_json::json;

use super::attack::{norm, radius};
use super::common::{self, PlaceArgs, WeightsArgs, positive, say};

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Example:
  noiseforge audit --weights rse.safetensors --data cifar10:data --eps 8/255 --count 50

Checks an evaluation of these weights by APGD on the cross-entropy and the targeted DLR loss: are there gradients, and are they right; does it use its
radius, its steps, its draws; does a large radius break everything; do attacks without gradients, random
noise or one step find what it misses; does the network fall when its randomness is fixed. Images that are
misclassified without an attack are left out. Fails (exit 1) where a check does."
)]
pub struct AuditArgs {
    #[command(flatten)]
    weights: WeightsArgs,
    /// Data: synthetic[:N], cifar10:DIR, stl10:DIR, folder:DIR or npy:IMAGES,LABELS
    #[arg(long, value_name = "SPEC")]
    data: Spec,
    /// How many images, from the first of the test set
    #[arg(long, default_value = "50", value_parser = positive)]
    count: usize,
    /// Norm of the perturbation: linf or l2
    #[arg(long, default_value = "linf", value_parser = norm)]
    norm: Norm,
    /// Radius, in units of an image's values (8/255 is 0.03137)
    #[arg(long, value_parser = radius)]
    eps: f64,
    /// Steps of the attack
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Draws of the noise in every gradient and comparison; 1 where nothing is random
    #[arg(long, value_name = "N", default_value = "20", value_parser = positive)]
    eot: usize,
    /// Verdicts on fresh draws behind every success; 0 where nothing is random
    #[arg(long, value_name = "N", default_value_t = 5)]
    confirmations: u32,
    #[command(flatten)]
    place: PlaceArgs,
}

pub fn run(args: &AuditArgs, json: bool) -> Result<()> {
    let data = common::load_data(&args.data, Split::Test)?.take(args.count);
    let mut model = args.weights.load(&data)?;
    args.place.place(&mut model)?;
    common::stop_on_ctrl_c()?;
    let random = common::is_random(&model);
    let draws = common::useful_draws(&model, args.eot);
    let device = model.device().clone();
    let classes = model.config().classes;
    let mut net = Ensemble::new(&mut model, args.weights.seed, Purpose::Attack, draws)?;

    let all: Vec<usize> = (0..data.len()).collect();
    let (x, labels) = data.batch(&all)?;
    // Draws far beyond those of the attacks.
    let rows: Rows = all
        .iter()
        .map(|&i| Row {
            id: i as u32,
            draw: 1 << 20,
        })
        .collect();
    let predictions = net.predict(&x.to(&device)?, &rows)?;
    let right: Vec<usize> = (0..labels.len())
        .filter(|&i| predictions[i] == labels[i])
        .collect();
    if right.is_empty() {
        bail!("none of the {} images is classified right", labels.len());
    }
    let ids: Vec<u32> = right.iter().map(|&i| i as u32).collect();
    let labels: Vec<u32> = right.iter().map(|&i| labels[i]).collect();
    let attack = |eps: f64, times: u32| -> Box<dyn WhiteBoxAttack> {
        let apgd = |attack| -> Member {
            Member::White(Box::new(Apgd {
                steps: args.steps * times,
                ..attack
            }))
        };
        let mut members = vec![apgd(Apgd::cross_entropy(args.norm, eps))];
        // The targeted loss needs four classes.
        if classes >= 4 {
            members.push(apgd(Apgd::targeted_dlr(args.norm, eps)));
        }
        Box::new(AutoAttack {
            name: "apgd",
            members,
        })
    };
    if !json {
        say!(
            "{} of {} images are classified right",
            ids.len(),
            data.len()
        );
    }
    let mut evaluation = Evaluation {
        net: &mut net,
        x: &x.gather_rows(&right)?,
        ids: &ids,
        labels: &labels,
        norm: args.norm,
        eps: args.eps,
        attack: &attack,
        options: Options {
            seed: args.weights.seed,
            rows: 128.max(draws),
            passes: draws,
            confirmations: if random { args.confirmations } else { 0 },
            ..Options::default()
        },
    };
    let findings = evaluation.audit(&mut |finding| {
        if !json {
            say!(
                "{}  {:<36} {}",
                finding.level.name(),
                finding.name,
                finding.detail
            );
            if !finding.images.is_empty() {
                let first: Vec<String> =
                    finding.images.iter().take(10).map(u32::to_string).collect();
                let more = finding.images.len().saturating_sub(10);
                let rest = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                say!("      images {}{rest}", first.join(", "));
            }
        }
        common::check_stop()
    })?;
    let worst = verdict(&findings);
    if json {
        let rows: Vec<_> = findings
            .iter()
            .map(|f| {
                json!({
                    "name": f.name,
                    "level": f.level.name(),
                    "detail": f.detail,
                    "images": f.images,
                })
            })
            .collect();
        say!(
            "{:#}",
            json!({ "verdict": worst.name(), "images": ids.len(), "checks": rows })
        );
    }
    match worst {
        Level::Fail => bail!("the evaluation says nothing of the network's robustness"),
        _ => Ok(()),
    }
}
