//! `noiseforge reproduce`: the paper's tables and figures, from data to page.

mod adaptive;
mod experiments;
mod figures;
mod paper;
mod part;
mod settings;
mod tables;
mod theory;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use noiseforge::data::{Dataset, Spec, Split};
use noiseforge::models::NoisePlacement;
use noiseforge::report::{Figure, Report};
use serde_json::{Map, Value, json};

use super::common::{self, PlaceArgs, prepare_folder, say};
use experiments::Plan;
use part::Workshop;
use settings::{BatchNorm, Network, Protocol, Scale};

/// A table or figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// The settings of the defences
    Table1,
    /// Five defences under C&W at five constants
    Table2,
    /// The distortion that a targeted attack needs, by target
    Table3,
    /// Noise in training and at test, in one of them, in none
    Fig2,
    /// Amounts of noise
    Fig3,
    /// 1 against 50 draws
    Fig4,
    /// Accuracy against the number of draws
    Fig5,
    /// Accuracy and distortion against c, all defences
    Fig6,
    /// The perturbations of table 3's attack
    Fig7,
    /// Section 3.3: inequality 5, equation 7 and the slope of the loss
    Theory,
    /// Figure 2 under attacks that average over the noise, at equal distance
    Fig2Adaptive,
    /// Figure 6 under the same attacks, with three more defences
    Fig6Adaptive,
    /// Certified accuracy against radius
    Certified,
    /// All of them
    All,
}

const ALL: [Name; 13] = [
    Name::Table1,
    Name::Table2,
    Name::Table3,
    Name::Fig2,
    Name::Fig3,
    Name::Fig4,
    Name::Fig5,
    Name::Fig6,
    Name::Fig7,
    Name::Theory,
    Name::Fig2Adaptive,
    Name::Fig6Adaptive,
    Name::Certified,
];

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  noiseforge reproduce all --data cifar10:data --out runs/paper-quick
  noiseforge reproduce table2 fig6 --scale paper --data cifar10:data --device cuda:0 --dtype bf16 --out runs/paper

DIR gets report.html (one self-contained page), its figures as SVG, results.json and parts/: every training and
attack, kept under a name that follows from its command. What is there already is not computed again, an
interrupted run goes on when it is started again, and another table finds the parts it shares.")]
pub struct Args {
    /// Tables and figures
    #[arg(value_enum, required = true)]
    names: Vec<Name>,
    /// How much of everything
    #[arg(long, value_enum, default_value = "quick")]
    scale: Scale,
    /// Data: cifar10:DIR, as the paper; or synthetic[:N], folder:DIR, npy:IMAGES,LABELS
    #[arg(long, value_name = "SPEC")]
    data: Spec,
    /// STL-10 for Model A (paper scale): stl10:DIR. Without it Model A is left out
    #[arg(long, value_name = "SPEC")]
    stl: Option<Spec>,
    /// Folder for the page and the parts
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of weights, order, noise and attacks
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Batch norm while the paper's attack runs. Table 2 shows both
    #[arg(long, value_enum, default_value = "eval")]
    batch_norm: BatchNorm,
    /// Where RSE's networks carry the noise of the image: image, or authors (before the second convolution, as the
    /// authors' VGG16 did). Table 2 shows both
    #[arg(long, default_value = "image")]
    noise_placement: NoisePlacement,
    /// Judge RSE by one draw of the noise instead of 50
    #[arg(long)]
    single_draw: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// What the chapters share.
struct Book {
    /// By network; the first is that of the tables and of figures 2 to 5.
    plans: Vec<Plan>,
    workshop: Workshop,
    page: Report,
    results: Map<String, Value>,
    /// By the names of their files.
    figures: Vec<(String, Figure)>,
}

impl Book {
    fn plan(&self) -> &Plan {
        &self.plans[0]
    }

    fn has(&self, network: Network) -> bool {
        self.plans.iter().any(|plan| plan.network == network)
    }

    /// Adds a figure to the page and to the folder.
    fn figure(&mut self, name: &str, figure: Figure) {
        self.page.figure(&figure);
        self.figures.push((name.to_string(), figure));
    }
}

/// `{"scale", "data", "seed", "version", "table2": ..., "commands": [{"command", "seconds"}], "page"}`.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let test = common::load_data(&args.data, Split::Test)?;
    let classes = test.classes().len();
    check_data(args, &test)?;
    // Fails before hours of work where there is no such device.
    args.place.device.open()?;
    prepare_folder(&args.out)?;
    same_configuration(args)?;
    common::stop_on_ctrl_c()?;
    let started = Instant::now();
    let mut book = Book {
        page: Report::new("Towards Robust Neural Networks via Random Self-Ensemble, reproduced"),
        workshop: Workshop {
            folder: args.out.join("parts"),
            place: place(&args.place),
            say: !json,
            log: Vec::new(),
        },
        plans: plans(args),
        results: Map::new(),
        figures: Vec::new(),
    };
    let names = match args.names.contains(&Name::All) {
        true => ALL.to_vec(),
        false => args.names.clone(),
    };
    introduce(&mut book, args, test.len());
    for name in names {
        match name {
            Name::Table1 => tables::table1(&mut book),
            Name::Table2 => tables::table2(&mut book)?,
            Name::Table3 => tables::table3(&mut book, &test)?,
            Name::Fig2 => figures::fig2(&mut book)?,
            Name::Fig3 => figures::fig3(&mut book)?,
            Name::Fig4 => figures::fig4(&mut book)?,
            Name::Fig5 => figures::fig5(&mut book)?,
            Name::Fig6 => figures::fig6(&mut book)?,
            Name::Fig7 => tables::fig7(&mut book, &test)?,
            Name::Theory => theory::theory(&mut book)?,
            Name::Fig2Adaptive => adaptive::fig2(&mut book)?,
            Name::Fig6Adaptive => adaptive::fig6(&mut book)?,
            Name::Certified => adaptive::certified(&mut book)?,
            Name::All => unreachable!("replaced by all of them"),
        }
    }
    let page = conclude(&mut book, args, started.elapsed().as_secs_f64())?;
    book.results.insert("classes".into(), json!(classes));
    let results = Value::Object(book.results);
    common::write_json(&args.out.join("results.json"), &results)?;
    match json {
        true => say!("{results:#}"),
        false => say!("{}", page.display()),
    }
    Ok(())
}

/// The networks and what they are trained on.
fn plans(args: &Args) -> Vec<Plan> {
    let data = args.data.to_string();
    let networks = match (args.scale, &args.stl) {
        (Scale::Quick, _) => vec![(Network::Small, data)],
        (Scale::Paper, stl) => {
            let mut networks = vec![(Network::Vgg16, data.clone()), (Network::ResNeXt29, data)];
            networks.extend(stl.iter().map(|stl| (Network::ModelA, stl.to_string())));
            networks
        }
    };
    let plan = |(network, data)| Plan {
        scale: args.scale,
        network,
        data,
        seed: args.seed,
        protocol: Protocol {
            batch_norm: args.batch_norm,
            placement: args.noise_placement,
            single_draw: args.single_draw,
        },
    };
    networks.into_iter().map(plan).collect()
}

/// An error where the data do not serve, before hours of work.
fn check_data(args: &Args, test: &Dataset) -> Result<()> {
    let (width, classes) = (test.image_shape().w, test.classes().len());
    if args.scale == Scale::Paper && width != 32 {
        bail!("--scale paper trains VGG16 on images of 32x32, found {width} pixels");
    }
    // Of APGD's DLR loss; and table 3 attacks the second image.
    if classes < 3 || test.len() < 2 {
        bail!(
            "the experiments need at least 3 classes and 2 test images, found {classes} and {}",
            test.len()
        );
    }
    let Some(stl) = &args.stl else { return Ok(()) };
    if args.scale == Scale::Quick {
        bail!("--stl belongs to --scale paper: at quick scale Model A is not run");
    }
    let shape = common::load_data(stl, Split::Test)?.image_shape();
    if shape.w != 96 || shape.h != 96 {
        bail!(
            "Model A takes images of 96x96, found {}x{} in {stl}",
            shape.h,
            shape.w
        );
    }
    Ok(())
}

/// `--device` and `--dtype`, for the parts.
fn place(args: &PlaceArgs) -> Vec<String> {
    let device = match args.device.device {
        common::DeviceChoice::Auto => "auto".to_string(),
        common::DeviceChoice::Cpu => "cpu".to_string(),
        common::DeviceChoice::Cuda(n) => format!("cuda:{n}"),
    };
    let dtype = args.dtype.to_string();
    vec!["--device".into(), device, "--dtype".into(), dtype]
}

/// An error if the folder holds results of another scale, data set or seed; else notes these.
fn same_configuration(args: &Args) -> Result<()> {
    let file = args.out.join("reproduce.json");
    let scale = match args.scale {
        Scale::Quick => "quick",
        Scale::Paper => "paper",
    };
    let asked = json!({
        "scale": scale,
        "data": args.data.to_string(),
        "seed": args.seed,
        "stl": args.stl.as_ref().map(Spec::to_string),
        "batch_norm": text_of(args.batch_norm),
        "noise_placement": args.noise_placement.name(),
        "single_draw": args.single_draw,
        "dtype": args.place.dtype.to_string(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    if file.exists() {
        let there = common::read_json(&file)?;
        for (key, value) in asked.as_object().expect("an object") {
            if there.get(key) != Some(value) {
                let found = there.get(key).unwrap_or(&Value::Null);
                bail!(
                    "{} holds a reproduction with {key} {found}, not {value}: choose another --out",
                    args.out.display()
                );
            }
        }
    }
    common::write_json(&file, &asked)
}

fn introduce(book: &mut Book, args: &Args, images: usize) {
    let settings = book.plan().scale.attack();
    let (steps, lr) = (settings.steps, settings.lr);
    let constants = settings.constants.len();
    let networks: Vec<&str> = book.plans.iter().map(|plan| plan.network.name()).collect();
    let networks = networks.join(", ");
    book.page.subtitle(match args.scale {
        Scale::Quick => "Quick scale: a small network, short training and few images; not the paper's experiment",
        Scale::Paper => "Paper scale",
    });
    book.page.paragraph(
        "What the paper (Liu, Cheng, Zhang and Hsieh, ECCV 2018) printed, what its authors' result files hold, and \
         what was measured here, side by side. The attack is the paper's: C&W at a fixed c, no search, one draw of the \
         noise a step, the last iterate. It is not adaptive, and equal c is not equal distortion: look at the figures \
         against distance, too.",
    );
    book.page.facts(&[
        ("networks", networks.clone()),
        ("data", short(&args.data.to_string())),
        ("test images", images.to_string()),
        ("attacked images", settings.count.min(images).to_string()),
        (
            "attack",
            format!("{steps} Adam steps of {lr}, {constants} constants"),
        ),
        ("draws of an RSE verdict", book.plan().draws().to_string()),
        ("batch norm under attack", text_of(args.batch_norm)),
        ("RSE's init noise", args.noise_placement.name().to_string()),
        ("seed", args.seed.to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_string()),
    ]);
    for (key, value) in [
        ("data", json!(args.data.to_string())),
        ("networks", json!(networks)),
        ("seed", json!(args.seed)),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
    ] {
        book.results.insert(key.to_string(), value);
    }
}

fn text_of(batch_norm: BatchNorm) -> String {
    format!("{batch_norm:?}").to_lowercase()
}

/// A data set's kind and the last part of its path: the commands have all of it.
fn short(spec: &str) -> String {
    match (spec.split_once(':'), spec.rsplit_once('/')) {
        (Some((kind, _)), Some((_, last))) => format!("{kind}: {last}"),
        _ => spec.to_string(),
    }
}

/// The commands, and everything written.
fn conclude(book: &mut Book, args: &Args, seconds: f64) -> Result<PathBuf> {
    let log = std::mem::take(&mut book.workshop.log);
    let worked: f64 = log.iter().map(|(_, seconds)| seconds).sum();
    book.page.heading("What was run");
    book.page.paragraph(format!(
        "{} commands, {worked:.0} s of work in all, {seconds:.0} s of it in this run.",
        log.len()
    ));
    let lines: Vec<&str> = log.iter().map(|(command, _)| command.as_str()).collect();
    book.page.command(lines.join("\n"));
    let commands: Vec<Value> = log
        .iter()
        .map(|(command, seconds)| json!({"command": command, "seconds": seconds}))
        .collect();
    let file = args.out.join("report.html");
    book.results.insert("commands".into(), json!(commands));
    book.results.insert("page".into(), json!(file));
    book.page.write(&file)?;
    for (name, figure) in &book.figures {
        write_svg(&args.out, name, figure)?;
    }
    Ok(file)
}

fn write_svg(folder: &Path, name: &str, figure: &Figure) -> Result<()> {
    let path = folder.join(format!("{name}.svg"));
    figure
        .write_svg(&path)
        .with_context(|| format!("cannot write {}", path.display()))
}
