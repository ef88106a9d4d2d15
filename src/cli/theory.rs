//! `noiseforge theory`.

use anyhow::Result;
use noiseforge::data::{Spec, Split};
use noiseforge::ensemble::Ensemble;
use noiseforge::ops::noise::Purpose;
use noiseforge::theory::{self, Estimate, Images};
use serde_json::json;

use super::common::{self, PlaceArgs, WeightsArgs, positive, say};

#[derive(Debug, clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Example:
  noiseforge theory --weights rse.safetensors --data cifar10:data --count 200

Prints, in nats and with standard errors over the images: the mean loss, the loss of the mean prediction and the
loss at the predicted class (each at least the next: inequality 5 of the RSE paper), with the network's own noise;
then, with that noise off: what noise on the image adds to the loss beside sigma^2 / 2 times the trace of the loss's
Hessian (equation 7), and the largest gradient around the images (a lower bound of the local Lipschitz constant)."
)]
pub struct Args {
    #[command(flatten)]
    weights: WeightsArgs,
    /// Data: synthetic[:N], cifar10:DIR, stl10:DIR, folder:DIR or npy:IMAGES,LABELS
    #[arg(long, value_name = "SPEC")]
    data: Spec,
    /// How many images, from the first of the test set
    #[arg(long, default_value = "100", value_parser = positive)]
    count: usize,
    /// Draws of the noise
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    draws: u32,
    /// Standard deviations of the noise on the image
    #[arg(long, value_delimiter = ',', default_value = "0.01,0.02,0.05,0.1,0.2")]
    sigmas: Vec<f64>,
    /// Vectors of Hutchinson's estimator
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    probes: u32,
    /// Half the distance between the two gradients of a difference, for each pixel
    #[arg(long, default_value_t = 1e-3)]
    h: f64,
    /// Radius of the ball, in L2, in which gradients are looked at
    #[arg(long, default_value_t = 0.5)]
    radius: f64,
    /// Points in the ball
    #[arg(long, default_value_t = 10)]
    points: u32,
    #[command(flatten)]
    place: PlaceArgs,
}

/// `{"weights", "data", "count", ..., "losses": {"expected", "ensemble", "predicted"}, "trace", "added": [{"sigma",
/// "measured", "predicted"}], "slope"}`, estimates as `{"mean", "error"}`.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let data = common::load_data(&args.data, Split::Test)?.take(args.count);
    let (x, labels) = data.batch(&(0..data.len()).collect::<Vec<_>>())?;
    let images = Images {
        x: &x,
        labels: &labels,
    };
    let seed = args.weights.seed;
    let mut own = args.weights.load(&data)?;
    args.place.place(&mut own)?;
    let draws = common::useful_draws(&own, args.draws as usize) as u32;
    let mut net = Ensemble::new(&mut own, seed, Purpose::Eval, 1)?;
    let losses = theory::losses(&mut net, images, draws)?;
    drop(net);

    let mut quiet = args.weights.load_with_noise(&data, Some((0.0, 0.0)))?;
    args.place.place(&mut quiet)?;
    let mut net = Ensemble::new(&mut quiet, seed, Purpose::Eval, 1)?;
    let trace = theory::hessian_trace(&mut net, images, args.probes, args.h, seed)?;
    let slope = theory::local_slope(&mut net, images, args.radius, args.points, seed)?;
    let mut added = Vec::new();
    for &sigma in &args.sigmas {
        let measured = theory::added_loss(&mut net, images, sigma, args.draws.div_ceil(2), seed)?;
        let half = sigma * sigma / 2.0;
        let predicted = Estimate {
            mean: half * trace.mean,
            error: half * trace.error,
        };
        added.push((sigma, measured, predicted));
    }
    if json {
        let added: Vec<_> = added
            .iter()
            .map(|(sigma, measured, predicted)| {
                json!({"sigma": sigma, "measured": measured, "predicted": predicted})
            })
            .collect();
        let report = json!({
            "weights": args.weights.weights.display().to_string(),
            "data": args.data.to_string(),
            "count": data.len(),
            "seed": seed,
            "draws": draws,
            "probes": args.probes,
            "h": args.h,
            "radius": args.radius,
            "points": args.points,
            "losses": losses,
            "trace": trace,
            "added": added,
            "slope": slope,
        });
        say!("{report:#}");
        return Ok(());
    }
    let shown = |e: Estimate| format!("{:.5} +- {:.5}", e.mean, e.error);
    say!(
        "{} images, {draws} draws of the network's own noise",
        data.len()
    );
    say!("mean loss                    {}", shown(losses.expected));
    say!("loss of the mean prediction  {}", shown(losses.ensemble));
    say!("loss at the predicted class  {}", shown(losses.predicted));
    say!("without its noise:");
    say!("trace of the Hessian         {}", shown(trace));
    say!("largest gradient within {:<5}{}", args.radius, shown(slope));
    say!("  sigma  added loss            sigma^2 / 2 trace");
    for (sigma, measured, predicted) in added {
        say!("{sigma:>7}  {:<20}  {}", shown(measured), shown(predicted));
    }
    Ok(())
}
