//! The ensemble: an average over draws that is a classifier, with the right gradient.

use noiseforge::data::Dataset;
use noiseforge::ensemble::{Average, Classifier, Differentiable, Ensemble, combine};
use noiseforge::evaluate::Judge;
use noiseforge::models::{Arch, Config, Model};
use noiseforge::ops::noise::{Purpose, Row, Rows};
use noiseforge::rng::Stream;
use noiseforge::tensor::Device;
use noiseforge::{DType, Shape, Tensor};

const INPUT: Shape = Shape::new(1, 8, 8, 3);

fn model() -> Model {
    let mut config = Config::new(Arch::Small, INPUT, 4).with_noise(0.3, 0.2);
    config.width = 3;
    Model::new(config, 2).unwrap()
}

fn images(n: usize) -> Tensor {
    let mut stream = Stream::new(8, 99, 0);
    let shape = INPUT.with_n(n);
    let data: Vec<f64> = (0..shape.len()).map(|_| stream.uniform()).collect();
    Tensor::from_vec(shape, data)
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap()
}

fn rows(n: usize) -> Rows {
    (0..n as u32).map(|id| Row { id, draw: 0 }).collect()
}

#[test]
fn averages_by_hand() {
    // two draws of one image: probabilities (0.5, 0.5) and (0.75, 0.25)
    let z = Tensor::from_vec(Shape::new(2, 1, 1, 2), vec![0.0, 0.0, 3f64.ln(), 0.0]).unwrap();
    let probabilities = combine(&z, 2, Average::Probabilities).unwrap();
    let expected = [0.625f64.ln(), 0.375f64.ln()];
    for (a, b) in probabilities.data::<f64>().iter().zip(expected) {
        assert!((a - b).abs() < 1e-15);
    }
    let logits = combine(&z, 2, Average::Logits).unwrap();
    assert_eq!(logits.data::<f64>(), [0.5 * 3f64.ln(), 0.0]);
    let error = combine(&z, 3, Average::Logits).unwrap_err().to_string();
    assert_eq!(
        error,
        "ensemble::combine: draws: expected a divisor of 2 rows, found 3"
    );
}

#[test]
fn probabilities_that_underflow_still_have_a_logarithm() {
    let z = Tensor::from_vec(Shape::new(2, 1, 1, 2), vec![0.0f32, -500.0, 0.0, -501.0]).unwrap();
    let score = combine(&z, 2, Average::Probabilities).unwrap();
    let expected = -500.0 + ((1.0 + (-1f64).exp()) / 2.0).ln();
    assert!((f64::from(score.data::<f32>()[1]) - expected).abs() < 1e-4);
}

#[test]
fn draws_differ_and_chunks_do_not_matter() {
    let mut model = model();
    let x = images(5);
    let mut net = Ensemble::new(&mut model, 1, Purpose::Eval, 4).unwrap();
    let whole = net.logits_of_draws(&x, &rows(5)).unwrap();
    let data = whole.data::<f32>();
    assert_ne!(data[0..4], data[4..8], "two draws of one image");
    for chunk in [1, 4, 7, 8] {
        net.chunk = chunk;
        let parts = net.logits_of_draws(&x, &rows(5)).unwrap();
        assert_eq!(parts.data::<f32>(), data, "{chunk}");
    }
}

/// Successive steps of an attack with n draws each never share a draw.
#[test]
fn the_draws_of_successive_steps_are_disjoint() {
    let mut model = model();
    let x = images(1);
    let mut single = Vec::new();
    for draw in 0..6 {
        let mut net = Ensemble::new(&mut model, 1, Purpose::Attack, 1).unwrap();
        let z = net
            .logits_of_draws(&x, &[Row { id: 0, draw }].into())
            .unwrap();
        single.extend_from_slice(z.data::<f32>());
    }
    let mut grouped = Vec::new();
    for draw in 0..2 {
        let mut net = Ensemble::new(&mut model, 1, Purpose::Attack, 3).unwrap();
        let z = net
            .logits_of_draws(&x, &[Row { id: 0, draw }].into())
            .unwrap();
        grouped.extend_from_slice(z.data::<f32>());
    }
    assert_eq!(single, grouped);
}

/// <g, d scores> against differences in double precision, for both averages.
#[test]
fn the_gradient_is_the_averages() {
    let mut model = model();
    model.to(&Device::Cpu, DType::F64).unwrap();
    let x = images(2).to_dtype(DType::F64).unwrap();
    let rows = rows(2);
    let mut stream = Stream::new(1, 98, 0);
    let mut random = |shape: Shape| -> Tensor {
        let data: Vec<f64> = (0..shape.len()).map(|_| stream.normal()).collect();
        Tensor::from_vec(shape, data).unwrap()
    };
    let g = random(Shape::new(2, 1, 1, 4));
    let v = random(x.shape());
    for (draws, average) in [
        (1, Average::Logits),
        (3, Average::Logits),
        (3, Average::Probabilities),
    ] {
        let mut net = Ensemble::new(&mut model, 1, Purpose::Attack, draws).unwrap();
        net.average = average;
        let (_, dx) = net.input_grad(&x, &rows, &mut |_| Ok(g.clone())).unwrap();
        let dot = |a: &Tensor, b: &Tensor| -> f64 {
            a.data::<f64>()
                .iter()
                .zip(b.data::<f64>())
                .map(|(a, b)| a * b)
                .sum()
        };
        let mut at = |h: f64| -> f64 {
            let moved: Vec<f64> = x
                .data::<f64>()
                .iter()
                .zip(v.data::<f64>())
                .map(|(x, v)| x + h * v)
                .collect();
            let moved = Tensor::from_vec(x.shape(), moved).unwrap();
            dot(&net.logits(&moved, &rows).unwrap(), &g)
        };
        let h = 1e-6;
        let numeric = (at(h) - at(-h)) / (2.0 * h);
        let analytic = dot(&dx, &v);
        assert!(
            (numeric - analytic).abs() < 1e-6 * (1.0 + analytic.abs()),
            "{draws} {average:?}: {numeric} {analytic}"
        );
    }
}

#[test]
fn no_draws_is_an_error() {
    let mut model = model();
    let error = Ensemble::new(&mut model, 0, Purpose::Eval, 0)
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "Ensemble::new: draws: expected at least 1, found 0"
    );
}

#[test]
fn judging_counts_prefixes_of_the_draws() {
    let mut model = model();
    let x = images(6);
    let labels = vec![0, 1, 2, 3, 0, 1];
    let classes = (0..4).map(|c| c.to_string()).collect();
    let data = Dataset::from_tensor(&x, labels.clone(), classes).unwrap();
    let ids: Vec<u32> = (0..6).collect();
    let mut judge = |draws: Vec<usize>| {
        let judge = Judge {
            seed: 3,
            first_draw: 0,
            draws,
            average: Average::Probabilities,
        };
        judge.judge(&mut model, &data, &ids, &mut |_| Ok(()))
    };
    let curve = judge(vec![7, 1, 3]).unwrap();
    assert_eq!(
        curve.accuracy.iter().map(|a| a.0).collect::<Vec<_>>(),
        [1, 3, 7]
    );
    for (draws, accuracy) in &curve.accuracy {
        let alone = judge(vec![*draws]).unwrap();
        assert_eq!(alone.final_accuracy(), *accuracy);
        let right = alone
            .predictions
            .iter()
            .zip(&labels)
            .filter(|(a, b)| a == b)
            .count();
        assert_eq!(*accuracy, right as f64 / 6.0);
    }
    assert_eq!(
        judge(vec![]).unwrap_err().to_string(),
        "evaluate: draws: expected at least 1, found 0"
    );
}
