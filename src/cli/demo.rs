//! `noiseforge demo`: an RSE network beside its undefended twin, both attacked.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use noiseforge::attacks::carlini_wagner::{self, CarliniWagner};
use noiseforge::attacks::{Criterion, Found, Options, Targets, found_images, rms_l2};
use noiseforge::data::{Dataset, Spec, Split};
use noiseforge::ensemble::{Average, Ensemble};
use noiseforge::evaluate::{Evaluation, Judge};
use noiseforge::models::{Arch, Config, Model};
use noiseforge::ops::noise::Purpose;
use noiseforge::ops::sgd::Sgd;
use noiseforge::optim::Schedule;
use noiseforge::report::{Cell, Figure, ImageGrid, Picture, Report, Series, Table, amplification};
use noiseforge::tensor::Tensor;
use noiseforge::train::{EpochLog, Event, Recipe, Select, Settings, Trainer};
use serde_json::json;

use super::common::{self, percent, say};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  noiseforge demo
  noiseforge demo --quick --out /tmp/demo

The folder holds report.html (one self-contained page), demo.json and the weights of both networks.
--quick shows that everything works, in seconds; its networks are too little trained to compare.")]
pub struct DemoArgs {
    /// Folder for the report and the weights
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    out: PathBuf,
    /// Fewer images, epochs and steps
    #[arg(long)]
    quick: bool,
    /// Seed of weights, order and noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// How much of everything.
struct Scale {
    train: usize,
    epochs: u32,
    attacked: usize,
    steps: u32,
    constants: &'static [f64],
    draws: &'static [usize],
}

const FULL: Scale = Scale {
    train: 4000,
    epochs: 8,
    attacked: 50,
    steps: 100,
    constants: &[0.03, 0.1, 0.3, 1.0],
    draws: &[1, 2, 5, 10, 20],
};

const QUICK: Scale = Scale {
    train: 400,
    epochs: 1,
    attacked: 8,
    steps: 10,
    constants: &[0.1, 1.0],
    draws: &[1, 5],
};

/// Adam's step size in the demo's attack: larger than the paper's 1e-3, because it has fewer steps.
const ATTACK_LR: f64 = 1e-2;
/// Noise of the RSE network, on the image and inside.
const SIGMAS: (f32, f32) = (0.2, 0.1);

/// One of the twins.
struct Twin {
    name: &'static str,
    model: Model,
    log: Vec<EpochLog>,
    clean: Evaluation,
    attacks: Vec<Attacked>,
}

/// What one constant did to a twin.
struct Attacked {
    c: f64,
    adversarial: Tensor,
    verdict: Evaluation,
    /// Root mean square of the L2 distances.
    rms: f64,
}

pub fn run(args: &DemoArgs, json: bool) -> Result<()> {
    let started = Instant::now();
    let scale = if args.quick { &QUICK } else { &FULL };
    common::prepare_folder(&args.out)?;
    common::stop_on_ctrl_c()?;
    let spec = Spec::Synthetic { n: scale.train };
    let train = common::load_data(&spec, Split::Train)?;
    let test = common::load_data(&spec, Split::Test)?;
    if !json {
        say!(
            "Two networks of one kind, data {spec} ({} training, {} test images), seed {}.",
            train.len(),
            test.len(),
            args.seed
        );
    }
    let mut twins = Vec::new();
    for (name, (init, inner)) in [("plain", (0.0, 0.0)), ("RSE", SIGMAS)] {
        let config = Config::new(Arch::Small, train.image_shape(), train.classes().len())
            .with_noise(init, inner);
        let mut model = Model::new(config, args.seed)?;
        let (log, seconds) = train_twin(name, &mut model, &train, &test, scale, args.seed)?;
        let file = format!("{}.safetensors", name.to_lowercase());
        model.checkpoint()?.write(args.out.join(file))?;
        let ids: Vec<u32> = (0..test.len() as u32).collect();
        let clean = judge(&mut model, &test, &ids, scale, args.seed)?;
        if !json {
            let rate = f64::from(scale.epochs) * train.len() as f64 / seconds;
            say!(
                "{name:>6}: trained {} epochs in {seconds:.0} s ({rate:.0} images/s), clean accuracy {}%",
                scale.epochs,
                percent(clean.final_accuracy())
            );
        }
        twins.push(Twin {
            name,
            model,
            log,
            clean,
            attacks: Vec::new(),
        });
    }
    for twin in &mut twins {
        for &c in scale.constants {
            let attacked = attack(twin, &test, scale, args.seed, c)?;
            twin.attacks.push(attacked);
        }
    }

    let tables = [accuracy_table(&twins), attack_table(&twins)];
    let elapsed = started.elapsed();
    let page = report(args, scale, &test, &twins, &tables, elapsed)?;
    let path = args.out.join("report.html");
    page.write(&path)?;
    let summary = summary(args, scale, &twins, elapsed);
    common::write_json(&args.out.join("demo.json"), &summary)?;
    if json {
        say!("{summary:#}");
    } else {
        for table in &tables {
            say!("\n{table}");
        }
        say!("{} ({:.0} s)", path.display(), elapsed.as_secs_f64());
    }
    Ok(())
}

fn train_twin(
    name: &str,
    model: &mut Model,
    train: &Dataset,
    test: &Dataset,
    scale: &Scale,
    seed: u64,
) -> Result<(Vec<EpochLog>, f64)> {
    let settings = Settings {
        epochs: scale.epochs,
        batch: 64,
        sgd: Sgd {
            lr: 0.03,
            ..Settings::default().sgd
        },
        schedule: Schedule::Cosine,
        select: Select::Last,
        augment: None,
        recipe: Recipe::Plain,
        seed,
    };
    let started = Instant::now();
    let mut trainer = Trainer::new(model, train, test, settings)?;
    let per_epoch = trainer.steps_per_epoch() as u64;
    let bar = common::bar(
        per_epoch * u64::from(scale.epochs),
        &format!("training {name}"),
    );
    let stop = common::stop_flag();
    trainer.run(stop, &mut |_, event| {
        if let Event::Step {
            epoch,
            step,
            loss,
            accuracy,
            ..
        } = event
        {
            bar.set_position(u64::from(epoch - 1) * per_epoch + step as u64);
            bar.set_message(format!("loss {loss:.3}  accuracy {}%", percent(accuracy)));
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok((trainer.log().to_vec(), started.elapsed().as_secs_f64()))
}

fn judge(
    model: &mut Model,
    data: &Dataset,
    ids: &[u32],
    scale: &Scale,
    seed: u64,
) -> Result<Evaluation> {
    let draws = match common::is_random(model) {
        true => scale.draws.to_vec(),
        false => vec![1],
    };
    let judge = Judge {
        seed,
        first_draw: 0,
        draws,
        average: Average::Probabilities,
    };
    Ok(judge.judge(model, data, ids, &mut |_| common::check_stop())?)
}

/// The paper's attack on the first images of the test set, with fewer and larger steps.
fn attack(twin: &mut Twin, test: &Dataset, scale: &Scale, seed: u64, c: f64) -> Result<Attacked> {
    let victims = test.take(scale.attacked);
    let indices: Vec<usize> = (0..victims.len()).collect();
    let ids: Vec<u32> = indices.iter().map(|&i| i as u32).collect();
    let (x, labels) = victims.batch(&indices)?;
    let params = CarliniWagner {
        steps: scale.steps,
        lr: ATTACK_LR,
        ..CarliniWagner::rse(c)
    };
    let what = format!("attacking {}", twin.name);
    let bar = common::bar(u64::from(scale.steps), &what).with_message(format!("c = {c}"));
    let mut net = Ensemble::new(&mut twin.model, seed, Purpose::Attack, 1)?;
    let criterion = Criterion::Untargeted {
        labels: labels.clone(),
    };
    let targets = Targets {
        x: &x,
        ids: &ids,
        criterion: &criterion,
    };
    let options = Options {
        rows: ids.len(),
        ..Options::default()
    };
    let mut report = |done: Option<(usize, &Found)>| {
        bar.inc(u64::from(done.is_none()));
        common::check_stop()
    };
    let found = carlini_wagner::attack(&mut net, targets, &params, &options, &mut report)?;
    bar.finish_and_clear();
    let adversarial = found_images(&found, x.shape())?;
    let attacked = Dataset::from_tensor(&adversarial, labels, test.classes().to_vec())?;
    let verdict = judge(&mut twin.model, &attacked, &ids, scale, seed)?;
    Ok(Attacked {
        c,
        adversarial,
        verdict,
        rms: rms_l2(&found),
    })
}

/// Accuracy on unharmed images against the number of draws.
fn accuracy_table(twins: &[Twin]) -> Table {
    let mut table = Table::new(
        "Clean accuracy (%), by number of draws of the noise averaged",
        ["draws", "plain", "RSE"],
    );
    let [plain, rse] = twins else { return table };
    for (draws, accuracy) in &rse.clean.accuracy {
        let plain = percent(plain.clean.final_accuracy());
        table.row([draws.to_string(), plain, percent(*accuracy)]);
    }
    table
}

fn attack_table(twins: &[Twin]) -> Table {
    let mut table = Table::new(
        "Accuracy (%) under C&W, and root-mean-square L2 distance of the images found",
        ["c", "plain", "RSE", "plain L2", "RSE L2"],
    );
    let [plain, rse] = twins else { return table };
    for (p, r) in plain.attacks.iter().zip(&rse.attacks) {
        table.row([
            p.c.to_string(),
            percent(p.verdict.final_accuracy()),
            percent(r.verdict.final_accuracy()),
            format!("{:.3}", p.rms),
            format!("{:.3}", r.rms),
        ]);
    }
    table
}

/// `(c, accuracy)` or `(distance, accuracy)` of a twin, from its attacks.
fn curve(twin: &Twin, x: impl Fn(&Attacked) -> f64) -> Series {
    let points: Vec<(f64, f64)> = twin
        .attacks
        .iter()
        .map(|a| (x(a), a.verdict.final_accuracy()))
        .collect();
    Series::new(twin.name, points)
}

fn report(
    args: &DemoArgs,
    scale: &Scale,
    test: &Dataset,
    twins: &[Twin],
    tables: &[Table],
    elapsed: Duration,
) -> Result<Report> {
    let mut page = Report::new("Noiseforge demo: noise as a defence");
    page.subtitle("An RSE network beside its undefended twin, both attacked");
    page.paragraph(
        "Two networks of the same kind, seed and training; one adds Gaussian noise in front of \
         every convolution, in training and when it predicts (Random Self-Ensemble, Liu et al., \
         ECCV 2018), and averages its answers over several draws.",
    );
    page.facts(&[
        ("training images", scale.train.to_string()),
        ("test images", test.len().to_string()),
        ("noise on the image", SIGMAS.0.to_string()),
        ("noise inside", SIGMAS.1.to_string()),
        (
            "draws of the verdict",
            scale.draws.last().expect("some").to_string(),
        ),
        ("seed", args.seed.to_string()),
        ("time", format!("{:.0} s", elapsed.as_secs_f64())),
        ("version", env!("CARGO_PKG_VERSION").to_string()),
    ]);
    page.command(match args.quick {
        true => "noiseforge demo --quick",
        false => "noiseforge demo",
    });

    page.heading("Training");
    let mut accuracy = Figure::new("Accuracy while training", "epoch", "accuracy").percent_y();
    let mut loss = Figure::new("Loss while training", "epoch", "cross-entropy (nats)");
    for twin in twins {
        let line = |y: fn(&EpochLog) -> f64| -> Vec<(f64, f64)> {
            twin.log
                .iter()
                .map(|l| (f64::from(l.epoch), y(l)))
                .collect()
        };
        let test_name = format!("{}, test", twin.name);
        let train_name = format!("{}, training", twin.name);
        accuracy = accuracy.series(Series::new(&test_name, line(|l| l.test_accuracy)));
        loss = loss
            .series(Series::new(test_name, line(|l| l.test_loss)))
            .series(Series::new(train_name, line(|l| l.train_loss)));
    }
    page.figure(&accuracy.caption("One draw of the noise; the test images were not trained on."));
    page.figure(&loss);

    page.heading("Draws");
    page.table(&tables[0]);
    let mut by_draws = Figure::new("Clean accuracy against draws", "draws", "accuracy").percent_y();
    for twin in twins.iter().filter(|t| t.clean.accuracy.len() > 1) {
        let points: Vec<(f64, f64)> = twin
            .clean
            .accuracy
            .iter()
            .map(|&(d, a)| (d as f64, a))
            .collect();
        by_draws = by_draws.series(Series::new(twin.name, points));
    }
    page.figure(&by_draws);

    page.heading("Under attack");
    page.paragraph(format!(
        "The white-box L2 attack of Carlini and Wagner as the paper runs it: it minimises \
         ||x' - x||^2 + c max(margin, 0) for a given c, one draw of the noise a step, and returns \
         its last iterate; here {} Adam steps of {ATTACK_LR} on the first {} test images. It is \
         not an adaptive attack: noiseforge attack cw --eot N averages the gradient over N draws.",
        scale.steps, scale.attacked
    ));
    page.table(&tables[1]);
    let mut by_c = Figure::new("Accuracy against c", "c", "accuracy")
        .log_x()
        .percent_y();
    let mut by_distance =
        Figure::new("Accuracy against distance", "RMS L2 distance", "accuracy").percent_y();
    for twin in twins {
        by_c = by_c.series(curve(twin, |a| a.c).clone());
        by_distance = by_distance.series(curve(twin, |a| a.rms));
    }
    page.figure(&by_c.range_y(0.0, 1.0));
    page.figure(&by_distance.range_y(0.0, 1.0).caption(
        "The fairer comparison: the same c does not move both networks' images equally far.",
    ));

    page.heading("Images");
    for (index, &c) in scale.constants.iter().enumerate() {
        if index + 2 < scale.constants.len() {
            continue;
        }
        page.image_grid(&image_grid(test, twins, index, c)?);
    }
    Ok(page)
}

/// Some attacked images, what was added to them and what each network says.
fn image_grid(test: &Dataset, twins: &[Twin], index: usize, c: f64) -> Result<ImageGrid> {
    let shown: Vec<usize> = (0..twins[0].attacks[index].adversarial.shape().n.min(6)).collect();
    let (x, labels) = test.batch(&shown)?;
    let mut gain = f64::INFINITY;
    for twin in twins {
        for &i in &shown {
            let adversarial = twin.attacks[index].adversarial.gather_rows(&[i])?;
            gain = gain.min(amplification(&x.gather_rows(&[i])?, &adversarial, 0)?);
        }
    }
    let mut columns = vec!["image".to_string()];
    for twin in twins {
        columns.push(format!("{}, attacked", twin.name));
        columns.push(format!("difference x {gain}"));
    }
    let mut grid = ImageGrid::new(format!("C&W with c = {c}"), columns);
    for &i in &shown {
        let class = |c: u32| test.classes()[c as usize].clone();
        let mut cells = vec![Cell::picture(Picture::of_image(&x, i)?).label(class(labels[i]))];
        for twin in twins {
            let attacked = &twin.attacks[index];
            let prediction = attacked.verdict.predictions[i];
            let image = Picture::of_image(&attacked.adversarial, i)?;
            cells.push(
                Cell::picture(image)
                    .label(class(prediction))
                    .ok(prediction == labels[i]),
            );
            let from = x.gather_rows(&[i])?;
            let to = attacked.adversarial.gather_rows(&[i])?;
            cells.push(Cell::picture(Picture::of_difference(&from, &to, 0, gain)?));
        }
        grid.row("", cells);
    }
    Ok(grid)
}

fn summary(args: &DemoArgs, scale: &Scale, twins: &[Twin], elapsed: Duration) -> serde_json::Value {
    let networks: Vec<serde_json::Value> = twins
        .iter()
        .map(|twin| {
            let attacks: Vec<serde_json::Value> = twin
                .attacks
                .iter()
                .map(|a| {
                    let accuracy = a.verdict.final_accuracy();
                    json!({"c": a.c, "accuracy": accuracy, "rms_l2": a.rms})
                })
                .collect();
            let draws: Vec<serde_json::Value> = twin
                .clean
                .accuracy
                .iter()
                .map(|(d, a)| json!({"draws": d, "accuracy": a}))
                .collect();
            json!({
                "name": twin.name,
                "network": common::config_json(twin.model.config()),
                "log": twin.log,
                "clean_accuracy_by_draws": draws,
                "attacks": attacks,
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "quick": args.quick,
        "seed": args.seed,
        "train_images": scale.train,
        "attacked_images": scale.attacked,
        "attack_steps": scale.steps,
        "attack_lr": ATTACK_LR,
        "seconds": elapsed.as_secs_f64(),
        "networks": networks,
    })
}
