//! The report: well-formed, escaped, and whole whatever the data.

use std::path::Path;

use noiseforge::report::{
    Axis, Cell, Figure, ImageGrid, Picture, Report, Series, Table, amplification,
};
use noiseforge::{Shape, Tensor};

const NASTY: &str = "<script>alert('x')</script> & \"quoted\" </svg></style>]]> \u{0}\u{8}";

/// The page or figure as XML; panics unless it is well-formed.
fn parse(text: &str) -> roxmltree::Document<'_> {
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..Default::default()
    };
    roxmltree::Document::parse_with_options(text, options)
        .unwrap_or_else(|e| panic!("{e} in\n{text}"))
}

/// All attribute values of elements of this name.
fn attributes<'a>(doc: &'a roxmltree::Document, tag: &str, name: &str) -> Vec<&'a str> {
    doc.descendants()
        .filter(|n| n.has_tag_name(tag) || n.tag_name().name() == tag)
        .filter_map(|n| n.attribute(name))
        .collect()
}

fn texts(doc: &roxmltree::Document, class: &str) -> Vec<String> {
    doc.descendants()
        .filter(|n| n.tag_name().name() == "text" && n.attribute("class") == Some(class))
        .map(|n| n.text().unwrap_or("").to_string())
        .collect()
}

fn marks(doc: &roxmltree::Document) -> usize {
    let with_tip = |n: &roxmltree::Node| n.children().any(|c| c.tag_name().name() == "title");
    doc.descendants()
        .filter(|n| n.attribute("class") == Some("mark") && with_tip(n))
        .count()
}

/// A figure's SVG, checked: well-formed, every number in it finite.
fn svg(figure: &Figure) -> String {
    let svg = figure.to_svg();
    parse(&svg);
    for word in ["NaN", "inf"] {
        let drawn = svg.replace("inf point", "");
        assert!(!drawn.contains(word), "{word} in\n{svg}");
    }
    svg
}

/// Images of smooth colours, so that a perturbation is seen on them.
fn images(n: usize, side: usize, c: usize) -> Tensor {
    let shape = Shape::new(n, side, side, c);
    let value = |i: usize| {
        let (p, ch) = (i / c, i % c);
        let (row, y, x) = (p / (side * side), p / side % side, p % side);
        let (y, x) = (y as f32 / side as f32 - 0.5, x as f32 / side as f32 - 0.5);
        let turn = (6.0 + row as f32) * (x * (row as f32).cos() + y * (row as f32).sin());
        0.5 + 0.45 * (turn + ch as f32 * 1.3 + 3.0 * (x * x + y * y)).sin()
    };
    Tensor::from_vec(shape, (0..shape.len()).map(value).collect()).unwrap()
}

/// The images with a small pattern added, clipped to [0, 1].
fn perturbed(images: &Tensor, size: f32) -> Tensor {
    let data = images.data::<f32>().iter().enumerate();
    let data = data
        .map(|(i, v)| (v + size * ((i * 2654435761) as u32 as f32 * 1e-9).sin()).clamp(0.0, 1.0));
    Tensor::from_vec(images.shape(), data.collect()).unwrap()
}

/// A report as a run would write it; look at `target/tmp/report.html`.
fn example() -> Report {
    let mut table = Table::new(
        "Accuracy under C&W L2, 200 test images. Distortion is the mean over successful attacks.",
        [
            "Defence",
            "Clean",
            "n = 10",
            "c = 0.01",
            "c = 0.1",
            "Distortion",
        ],
    );
    table
        .row(["none", "94.5%", "94.5%", "61.0%", "0.0%", "0.41"])
        .row(["RSE (0.2, 0.1)", "92.0%", "93.5%", "92.0%", "81.5%", "1.27"])
        .row([
            "adversarial training",
            "90.5%",
            "90.5%",
            "86.0%",
            "44.0%",
            "–",
        ]);
    let table = table.highest(1).highest(2).highest(3).highest(4);

    let c = [0.01, 0.03, 0.06, 0.1, 0.2];
    let zip = |ys: &[f64]| {
        c.iter()
            .copied()
            .zip(ys.iter().copied())
            .collect::<Vec<_>>()
    };
    let errors = |ys: &[f64]| ys.iter().map(|y| (y - 0.04, y + 0.03)).collect::<Vec<_>>();
    let plain = [0.61, 0.2, 0.03, 0.0, 0.0];
    let rse = [0.92, 0.9, 0.86, 0.815, 0.72];
    let attack = Figure::new(
        "Accuracy under C&W against its strength",
        "strength c",
        "accuracy",
    )
    .log_x()
    .percent_y()
    .series(Series::new("no defence", zip(&plain)))
    .series(Series::new("RSE, 50 draws", zip(&rse)).errors(errors(&rse)))
    .series(Series::new(
        "adversarial training",
        zip(&[0.86, 0.75, 0.6, 0.44, 0.2]),
    ))
    .caption("200 images of the test set, 300 steps of Adam; bars are 95% Wilson intervals.");
    let curve = |a: f64, b: f64| {
        let loss = |i: usize| a + b * (-(i as f64) / 30.0).exp() + 0.03 * (i as f64 * 1.7).sin();
        (0..200).map(|i| (i as f64, loss(i))).collect::<Vec<_>>()
    };
    let training = Figure::new("Training loss", "step", "cross-entropy, mean")
        .series(Series::new("no defence", curve(0.1, 2.2)))
        .series(Series::new("RSE", curve(0.35, 1.9)))
        .caption("One point per update.");
    let draws = Figure::new(
        "Accuracy against the number of draws",
        "draws n",
        "accuracy",
    )
    .log_x()
    .range_y(0.85, 0.95)
    .series(Series::new(
        "RSE",
        [
            (1.0, 0.875),
            (2.0, 0.89),
            (5.0, 0.91),
            (10.0, 0.92),
            (20.0, 0.9225),
            (50.0, 0.925),
        ],
    ));

    let clean = images(4, 32, 3);
    let adversarial = perturbed(&clean, 0.04);
    let gain = (0..4)
        .map(|r| amplification(&clean, &adversarial, r).unwrap())
        .fold(f64::INFINITY, f64::min);
    let mut grid = ImageGrid::new(
        format!("Images, attacks and perturbations (grey + {gain} × difference)"),
        [
            "image",
            "attack on none",
            "perturbation",
            "attack on RSE",
            "perturbation",
        ],
    );
    for (r, name) in ["airplane", "automobile", "bird", "cat"].iter().enumerate() {
        let difference = Picture::of_difference(&clean, &adversarial, r, gain).unwrap();
        grid.row(
            *name,
            [
                Cell::picture(Picture::of_image(&clean, r).unwrap())
                    .label(*name)
                    .ok(true),
                Cell::picture(Picture::of_image(&adversarial, r).unwrap())
                    .label("frog")
                    .ok(false),
                Cell::picture(difference).label("L2 0.41"),
                Cell::picture(Picture::of_image(&adversarial, r).unwrap())
                    .label(*name)
                    .ok(r != 2),
                Cell::picture(Picture::of_inverted_difference(&clean, &adversarial, r).unwrap())
                    .label("L2 1.27"),
            ],
        );
    }

    let mut report = Report::new("RSE beside its undefended twin");
    report
        .subtitle("A small network on the built-in images, trained and attacked on two cores")
        .facts(&[("Undefended, under attack", "0.0%"), ("RSE, under attack", "81.5%"), ("Images attacked", "200"), ("Wall time", "1 min 52 s")])
        .paragraph("Both networks have the same layers, the same seed and the same data. The one with noise before every convolution answers with the mean of 50 noisy draws; the attack averages nothing and sees one draw per step, as in the paper's protocol.")
        .heading("Accuracy")
        .table(&table)
        .figure(&attack)
        .figure(&draws)
        .heading("Attacked images")
        .image_grid(&grid)
        .heading("Training")
        .figure(&training)
        .heading("To repeat this")
        .command("cargo run --release -- demo --seed 1 --out runs/demo\ncargo run --release -- attack cw --weights runs/demo/rse.safetensors --data synthetic --count 200 --protocol rse --out runs/attack");
    report
}

#[test]
fn example_page_is_well_formed_and_whole() {
    let report = example();
    let html = report.to_html();
    let doc = parse(&html);
    assert!(html.starts_with("<!DOCTYPE html>"));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report.html");
    report.write(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), html);
    // Nothing is fetched: the only addresses are inline images and the SVG namespace.
    for src in attributes(&doc, "img", "src") {
        assert!(src.starts_with("data:image/png;base64,"));
    }
    assert_eq!(attributes(&doc, "img", "src").len(), 20);
    let outside = html.replace("http://www.w3.org/2000/svg", "");
    for word in ["http", "<script", "<link", "url(", "@import"] {
        assert!(!outside.contains(word), "{word}");
    }
    // Neighbouring figures share a row; a heading ends it.
    assert_eq!(html.matches("class=\"figures\"").count(), 2);
    println!("{}", path.display());
}

#[test]
fn every_text_is_escaped() {
    let mut table = Table::new(NASTY, [NASTY, "x"]);
    table.row([NASTY, NASTY, NASTY]);
    let figure = Figure {
        title: NASTY.into(),
        caption: NASTY.into(),
        x: Axis {
            label: NASTY.into(),
            ..Axis::default()
        },
        y: Axis {
            label: NASTY.into(),
            ..Axis::default()
        },
        series: vec![Series::new(NASTY, [(0.0, 1.0)])],
    };
    let mut grid = ImageGrid::new(NASTY, [NASTY]);
    let picture = Picture::from_rgb(1, 1, vec![1, 2, 3]).unwrap();
    grid.row(
        NASTY,
        [
            Cell::picture(picture).label(NASTY).ok(false),
            Cell::default().label(NASTY),
        ],
    );
    let mut report = Report::new(NASTY);
    report
        .subtitle(NASTY)
        .heading(NASTY)
        .paragraph(NASTY)
        .command(NASTY)
        .facts(&[(NASTY, NASTY)])
        .table(&table)
        .image_grid(&grid)
        .figure(&figure);
    let html = report.to_html();
    assert!(!html.contains("<script"));
    assert!(!html.contains("alert('"));
    assert!(html.matches("&lt;script&gt;").count() >= 20);
    parse(&html);
    svg(&figure);
}

#[test]
fn empty_page_table_and_grid() {
    let mut report = Report::new("");
    report
        .table(&Table::new("", Vec::<String>::new()).highest(3))
        .image_grid(&ImageGrid::default())
        .facts::<&str, &str>(&[]);
    parse(&report.to_html());
    parse(&Report::new("t").to_html());
}

#[test]
fn figures_without_points_say_so() {
    for figure in [
        Figure::default(),
        Figure::new("t", "x", "y").series(Series::new("a", [])),
        Figure::new("t", "x", "y").series(Series::new("a", [(f64::NAN, 1.0)])),
        Figure::new("t", "x", "y")
            .log_x()
            .log_y()
            .series(Series::new("a", [(0.0, 1.0)])),
    ] {
        assert!(svg(&figure).contains("no data"));
    }
}

#[test]
fn what_is_left_out_is_counted() {
    let points = [
        (1.0, 1.0),
        (2.0, f64::NAN),
        (3.0, f64::INFINITY),
        (f64::NEG_INFINITY, 2.0),
        (4.0, 2.0),
        (5.0, 3.0),
    ];
    let text = svg(&Figure::new("t", "x", "y").series(Series::new("a", points)));
    let doc = parse(&text);
    assert_eq!(
        texts(&doc, "note"),
        ["3 points not shown: not a finite number"]
    );
    assert_eq!(marks(&doc), 3);
    // The gap splits the line: the first point stands alone, the last two are joined.
    let lines = attributes(&doc, "path", "d");
    assert!(
        lines
            .iter()
            .any(|d| d.matches('M').count() == 2 && d.matches('L').count() == 1)
    );

    let log = Figure::new("t", "x", "y").log_x().series(Series::new(
        "a",
        [(0.0, 1.0), (-1.0, 1.0), (0.1, 1.0), (1.0, 2.0)],
    ));
    let text = svg(&log);
    let doc = parse(&text);
    assert_eq!(
        texts(&doc, "note"),
        ["2 points not shown: not positive, on a logarithmic axis"]
    );
    assert_eq!(marks(&doc), 2);

    let ranged = Figure::new("t", "x", "y")
        .range_y(0.0, 1.0)
        .series(Series::new("a", [(0.0, 0.5), (1.0, 7.0)]));
    let text = svg(&ranged);
    assert_eq!(
        texts(&parse(&text), "note"),
        ["1 point not shown: outside of the range of the axes"]
    );
}

#[test]
fn extreme_values_draw() {
    let one = |x: f64, y: f64| Figure::new("t", "x", "y").series(Series::new("a", [(x, y)]));
    for (x, y) in [
        (0.0, 0.0),
        (1e300, -1e300),
        (1e-300, 1e-320),
        (-5.0, 1e17),
        (f64::MAX, f64::MIN),
    ] {
        svg(&one(x, y));
        svg(&one(x, y).log_x().log_y());
    }
    let pair =
        |a: f64, b: f64| Figure::new("t", "x", "y").series(Series::new("a", [(a, a), (b, b)]));
    for (a, b) in [
        (1e-300, 1e300),
        (-1e300, 1e300),
        (1.0, 1.0 + 1e-15),
        (1e9, 1e9 + 1.0),
        (1e-320, 1.0),
    ] {
        svg(&pair(a, b));
        svg(&pair(a, b).log_x().log_y());
    }
    // Ranges that are none are passed over.
    for (lo, hi) in [
        (1.0, 1.0),
        (2.0, 1.0),
        (f64::NAN, 1.0),
        (0.0, f64::INFINITY),
    ] {
        assert_eq!(svg(&pair(1.0, 2.0).range_y(lo, hi)), svg(&pair(1.0, 2.0)));
    }
    let log = pair(1.0, 2.0).log_y();
    assert_eq!(svg(&log.clone().range_y(-1.0, 5.0)), svg(&log));
    // Error bars: too few, not finite, not positive on a logarithmic axis.
    let bars = Series::new("a", [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)])
        .errors([(0.5, f64::NAN), (-1.0, 4.0)]);
    svg(&Figure::new("t", "x", "y").log_y().series(bars.clone()));
    let text = svg(&Figure::new("t", "x", "y").series(bars));
    assert_eq!(text.matches("class=\"error\"").count(), 1);
}

#[test]
fn ticks_are_readable() {
    let ticks = |figure: &Figure| {
        let text = svg(figure);
        texts(&parse(&text), "tick")
    };
    let f = |points: &[(f64, f64)]| Figure::new("t", "x", "y").series(Series::new("a", points));
    assert_eq!(
        ticks(&f(&[(0.01, 0.0), (0.2, 1.0)]).log_x().percent_y()),
        [
            "0%", "20%", "40%", "60%", "80%", "100%", "0.01", "0.02", "0.05", "0.1", "0.2"
        ]
    );
    // Whole numbers are not divided.
    assert_eq!(
        ticks(&f(&[(1.0, 0.11), (3.0, 0.29)])),
        [
            "0.00", "0.05", "0.10", "0.15", "0.20", "0.25", "0.30", "1", "2", "3"
        ]
    );
    assert_eq!(
        ticks(&f(&[(1.0, 1e-7), (2.0, 1e-3)]).log_y()),
        ["10⁻⁷", "10⁻⁶", "10⁻⁵", "0.0001", "0.001", "1", "2"]
    );
    assert_eq!(
        ticks(&f(&[(0.0, -3e8), (2e7, 1.5e8)])),
        [
            "−3·10⁸",
            "−2·10⁸",
            "−1·10⁸",
            "0",
            "1·10⁸",
            "2·10⁸",
            "0",
            "0.5·10⁷",
            "1.0·10⁷",
            "1.5·10⁷",
            "2.0·10⁷"
        ]
    );
}

#[test]
fn long_texts_wrap_and_many_series_differ() {
    let mut figure = Figure::new(
        "A title much longer than the figure is wide ".repeat(4),
        "x",
        "y",
    );
    for i in 0..20 {
        let name = format!("a series of some length, number {i}");
        figure = figure.series(Series::new(name, [(0.0, i as f64), (1.0, i as f64 + 1.0)]));
    }
    let text = svg(&figure);
    let doc = parse(&text);
    assert!(texts(&doc, "title").len() > 2);
    let xs = doc
        .descendants()
        .filter(|n| n.attribute("text-anchor") == Some("start"))
        .filter_map(|n| n.attribute("x")?.parse::<f64>().ok());
    assert!(xs.into_iter().all(|x| x < 480.0));
    figure
        .write_svg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("many.svg"))
        .unwrap();
}

#[test]
fn tables_align_and_mark() {
    let mut table = Table::new("Caption", ["net", "accuracy", "time", "mixed"]);
    table
        .row(["a", "71.5%", "3.0 s", "1"])
        .row(["b", "9%", "−1", "one"])
        .row(["c", "71.5%", "–"]);
    let table = table.highest(1).lowest(2).highest(9);
    let mut report = Report::new("t");
    report.table(&table);
    let html = report.to_html();
    assert_eq!(html.matches("<strong>71.5%</strong>").count(), 2);
    assert_eq!(html.matches("<strong>−1</strong>").count(), 1);
    assert_eq!(html.matches("<strong>").count(), 3);
    assert_eq!(html.matches("class=\"number\"").count(), 2 * 4);
    assert_eq!(
        table.to_string(),
        "Caption\n\
         net  accuracy   time  mixed\n\
         ───  ────────  ─────  ─────\n\
         a       71.5%  3.0 s  1\n\
         b          9%     −1  one\n\
         c       71.5%      –\n"
    );
}

#[test]
fn pictures() {
    let x = Tensor::from_vec(Shape::new(2, 1, 2, 1), vec![0.0f32, 0.5, 1.5, f32::NAN]).unwrap();
    let of = |row| Picture::of_image(&x, row).unwrap();
    assert_eq!(of(0).rgb(), [0, 0, 0, 128, 128, 128]);
    assert_eq!(of(1).rgb(), [255, 255, 255, 255, 0, 255]);

    let from = Tensor::from_vec(Shape::new(1, 1, 1, 3), vec![0.5f32, 0.5, 0.5]).unwrap();
    let to = Tensor::from_vec(Shape::new(1, 1, 1, 3), vec![0.5f32, 0.55, 0.3]).unwrap();
    // The largest difference is 0.2: 2 times it stays within 0.5, 5 times does not.
    assert_eq!(amplification(&from, &to, 0).unwrap(), 2.0);
    assert_eq!(amplification(&from, &from, 0).unwrap(), 10_000.0);
    let p = Picture::of_difference(&from, &to, 0, 2.0).unwrap();
    assert_eq!(p.rgb(), [128, 153, 26]);
    let p = Picture::of_inverted_difference(&from, &to, 0).unwrap();
    assert_eq!(p.rgb(), [255, 242, 255]);

    // The PNG holds the pixels: decoded again by the same library's decoder.
    let p = Picture::of_image(&images(1, 5, 3), 0).unwrap();
    let back = image::load_from_memory(&p.to_png()).unwrap().to_rgb8();
    assert_eq!((back.width(), back.height()), (5, 5));
    assert_eq!(back.as_raw(), p.rgb());
    let p = Picture::from_rgb(1, 1, vec![9, 8, 7]).unwrap();
    assert_eq!(
        image::load_from_memory(&p.to_png())
            .unwrap()
            .to_rgb8()
            .as_raw(),
        p.rgb()
    );
}

#[test]
fn what_is_no_picture_is_refused() {
    let x = images(2, 4, 3);
    let text = |r: noiseforge::Result<Picture>| r.unwrap_err().to_string();
    assert_eq!(
        text(Picture::of_image(&x, 2)),
        "Picture::of_image: row: expected a row below 2, found 2"
    );
    let two = Tensor::from_vec(Shape::new(1, 1, 1, 2), vec![0.0f32; 2]).unwrap();
    assert_eq!(
        text(Picture::of_image(&two, 0)),
        "Picture::of_image: images: expected images of 1 or 3 channels, found [1, 1, 1, 2]"
    );
    assert_eq!(
        text(Picture::of_difference(&x, &images(2, 5, 3), 0, 1.0)),
        "Picture::of_difference: to: expected images as in `from`, [2, 4, 4, 3], found [2, 5, 5, 3]"
    );
    assert_eq!(
        text(Picture::from_rgb(2, 2, vec![0; 11])),
        "Picture::from_rgb: rgb: expected 12 bytes, found 11"
    );
    text(Picture::from_rgb(0, 2, vec![]));
    text(Picture::from_rgb(1 << 20, 2, vec![]));
}

#[test]
fn a_report_that_cannot_be_written_is_an_error() {
    let text = example()
        .write("/nonexistent/folder/report.html")
        .unwrap_err()
        .to_string();
    assert!(
        text.starts_with("cannot write /nonexistent/folder/report.html: "),
        "{text}"
    );
}
