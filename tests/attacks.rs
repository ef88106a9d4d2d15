//! Attacks on many images at once, against exact answers on linear models.

use noiseforge::attacks::gradient::Pgd;
use noiseforge::attacks::{
    BlackBox, BlackBoxAttack, Criterion, Found, Image, Keep, Norm, Options, Running, Targets,
    WhiteBoxAttack, attack_black_box, attack_white_box,
};
use noiseforge::ensemble::{Classifier, Differentiable, Ensemble};
use noiseforge::models::{Arch, Config, Model};
use noiseforge::nn::Mode;
use noiseforge::ops::noise::{Purpose, Rows};
use noiseforge::selftest::linear::{Case, Linear};
use noiseforge::{Error, Result, Shape, Tensor};

fn run(
    model: &mut Model,
    x: &Tensor,
    labels: &[u32],
    attack: &dyn WhiteBoxAttack,
    draws: usize,
    options: &Options,
) -> Result<Vec<Found>> {
    let ids: Vec<u32> = (0..labels.len() as u32).collect();
    run_ids(model, x, &ids, labels, attack, draws, options)
}

fn run_ids(
    model: &mut Model,
    x: &Tensor,
    ids: &[u32],
    labels: &[u32],
    attack: &dyn WhiteBoxAttack,
    draws: usize,
    options: &Options,
) -> Result<Vec<Found>> {
    let mut net = Ensemble::new(model, 7, Purpose::Attack, draws)?;
    let criterion = Criterion::Untargeted {
        labels: labels.to_vec(),
    };
    let targets = Targets {
        x,
        ids,
        criterion: &criterion,
    };
    let options = Options {
        passes: draws,
        ..options.clone()
    };
    attack_white_box(&mut net, targets, attack, &options, &mut |_| Ok(()))
}

#[test]
fn by_hand() {
    // logit difference 1.2 x0 + 1.6 x1 - 1.4 at (0.2, 0.3): gap 0.68
    let x = Tensor::from_vec(Shape::new(1, 1, 2, 1), vec![0.2f32, 0.3]).unwrap();
    let linear = Linear::new(
        x.clone(),
        vec![vec![1.2, 1.6], vec![0.0, 0.0]],
        vec![-1.4, 0.0],
    );
    assert_eq!(linear.labels, [1]);
    let near = |norm, expected: f64| {
        let found = linear.distance(0, norm);
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    };
    near(Norm::L2, 0.34);
    near(Norm::Linf, 0.242857);
    // with the box in the way: (0.95, 0.10), bias -2: delta = (0.05, 0.40)
    let x = Tensor::from_vec(Shape::new(1, 1, 2, 1), vec![0.95f32, 0.1]).unwrap();
    let linear = Linear::new(x, vec![vec![1.2, 1.6], vec![0.0, 0.0]], vec![-2.0, 0.0]);
    let found = linear.distance(0, Norm::L2);
    assert!((found - 0.4031129).abs() < 1e-6, "{found}");
}

#[test]
fn one_step_is_exact_on_linear_models_with_two_classes() {
    let shape = Shape::new(40, 8, 8, 3);
    for case in Case::ALL {
        let linear = Linear::sized(case, shape, 2, 3);
        let mut model = linear.model(0.0).unwrap();
        let exact: Vec<f64> = (0..40).map(|i| linear.distance(i, Norm::Linf)).collect();
        let mut sorted = exact.clone();
        sorted.sort_by(f64::total_cmp);
        let eps = 0.5 * (sorted[19] + sorted[20]);
        let attack = Pgd::fgsm(Norm::Linf, eps);
        let found = run(
            &mut model,
            &linear.images,
            &linear.labels,
            &attack,
            1,
            &Options::default(),
        );
        for (i, f) in found.unwrap().iter().enumerate() {
            assert_eq!(f.success, exact[i] < eps, "{case:?} {i} {} {eps}", exact[i]);
            assert!(f.linf <= eps + 1e-7);
            assert_eq!((f.counts.forward, f.counts.backward), (2, 1));
        }
    }
}

#[test]
fn steps_in_l2_are_exact_where_the_box_is_far() {
    let linear = Linear::sized(Case::Interior, Shape::new(30, 8, 8, 3), 2, 5);
    let mut model = linear.model(0.0).unwrap();
    let exact: Vec<f64> = (0..30).map(|i| linear.distance(i, Norm::L2)).collect();
    let mut sorted = exact.clone();
    sorted.sort_by(f64::total_cmp);
    let eps = 0.5 * (sorted[14] + sorted[15]);
    for attack in [Pgd::fgsm(Norm::L2, eps), Pgd::projected(Norm::L2, eps)] {
        let found = run(
            &mut model,
            &linear.images,
            &linear.labels,
            &attack,
            1,
            &Options::default(),
        );
        for (i, f) in found.unwrap().iter().enumerate() {
            assert_eq!(
                f.success,
                exact[i] < eps,
                "{} {i} {} {eps}",
                attack.name,
                exact[i]
            );
            assert!(f.l2 <= eps);
        }
    }
}

fn small() -> (Model, Tensor, Vec<u32>) {
    let input = Shape::new(1, 8, 8, 3);
    let mut config = Config::new(Arch::Small, input, 4).with_noise(0.1, 0.1);
    config.width = 3;
    let linear = Linear::sized(Case::SparseImages, input.with_n(9), 4, 1);
    (Model::new(config, 2).unwrap(), linear.images, linear.labels)
}

#[test]
fn no_result_depends_on_the_batch_or_the_order() {
    let (mut model, x, labels) = small();
    let attack = Pgd {
        steps: 5,
        restarts: 2,
        ..Pgd::projected(Norm::Linf, 0.02)
    };
    let of = |model: &mut Model, ids: &[u32], rows, mean_of_objective, draws| {
        let indices: Vec<usize> = ids.iter().map(|&i| i as usize).collect();
        let x = x.gather_rows(&indices).unwrap();
        let labels: Vec<u32> = indices.iter().map(|&i| labels[i]).collect();
        let options = Options {
            rows,
            mean_of_objective,
            confirmations: 3,
            ..Options::default()
        };
        run_ids(model, &x, ids, &labels, &attack, draws, &options).unwrap()
    };
    for (mean, draws) in [(1, 2), (2, 1)] {
        let all: Vec<u32> = (0..9).collect();
        let together = of(&mut model, &all, 256, mean, draws);
        assert_eq!(together, of(&mut model, &all, 5, mean, draws));
        let order = [7, 2, 8, 0, 1, 6, 5, 4, 3];
        let shuffled = of(&mut model, &order, 7, mean, draws);
        for (found, &i) in shuffled.iter().zip(&order) {
            assert_eq!(*found, together[i as usize]);
        }
        assert!(together.iter().any(|f| f.success) && together.iter().any(|f| !f.success));
        for f in &together {
            // two starts of five gradients and one look, and three verdicts for each offer confirmed
            assert!(f.counts.backward <= 20 && f.counts.forward >= f.counts.backward);
            assert_eq!(f.counts.forward % 2, 0);
        }
    }
}

#[test]
fn a_budget_is_never_exceeded_and_keeps_what_was_found() {
    let linear = Linear::sized(Case::Interior, Shape::new(6, 8, 8, 3), 3, 5);
    let mut model = linear.model(0.0).unwrap();
    let attack = Pgd {
        steps: 50,
        ..Pgd::projected(Norm::L2, 1e-4)
    };
    let options = Options {
        budget: Some(7),
        ..Options::default()
    };
    let found = run(
        &mut model,
        &linear.images,
        &linear.labels,
        &attack,
        1,
        &options,
    )
    .unwrap();
    for f in found {
        assert!(f.out_of_queries && !f.success);
        assert_eq!((f.counts.forward, f.counts.backward), (7, 7));
        assert!(f.l2 > 0.0, "the last iterate is kept");
    }
}

/// Offers the original image if a random number says so.
struct Guess;

impl BlackBoxAttack for Guess {
    fn name(&self) -> &'static str {
        "guess"
    }

    fn keep(&self) -> Keep {
        Keep::Surest
    }

    fn check(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut BlackBox) -> Running<'a> {
        Box::pin(async move {
            for _ in 0..20 {
                let scores = classifier.look(&image.pixels).await?;
                classifier.offer(&image.pixels, &scores).await?;
            }
            Ok(())
        })
    }
}

#[test]
fn a_lucky_draw_is_no_success() {
    // Two classes, gap 1 sigma: one draw in six errs, and so does one of twenty draws almost surely; five
    // confirmations err by majority with probability 0.031.
    let x = Tensor::from_vec(Shape::new(400, 1, 2, 1), vec![0.5f32; 800]).unwrap();
    let linear = Linear::new(x, vec![vec![0.6, 0.8], vec![0.0, 0.0]], vec![-0.4, 0.0]);
    let mut model = linear.model(0.3).unwrap();
    let criterion = Criterion::Untargeted {
        labels: linear.labels.clone(),
    };
    let ids: Vec<u32> = (0..400).collect();
    let mut rate = |confirmations| {
        let mut net = Ensemble::new(&mut model, 7, Purpose::Attack, 1).unwrap();
        let targets = Targets {
            x: &linear.images,
            ids: &ids,
            criterion: &criterion,
        };
        let options = Options {
            confirmations,
            ..Options::default()
        };
        let found = attack_black_box(&mut net, targets, &Guess, &options, &mut |_| Ok(()));
        found.unwrap().iter().filter(|f| f.success).count()
    };
    let lucky = rate(0);
    assert!((377..=397).contains(&lucky), "{lucky}");
    // Offers are confirmed while they look better than before: about three of twenty.
    let (five, many) = (rate(5), rate(51));
    assert!(five < 60 && many == 0, "{five} {many}");
}

#[test]
fn bad_arguments_are_named() {
    let linear = Linear::sized(Case::Interior, Shape::new(2, 8, 8, 3), 3, 5);
    let mut model = linear.model(0.0).unwrap();
    let mut error = |x: &Tensor, labels: &[u32], attack: Pgd, options: Options| {
        let result = run(&mut model, x, labels, &attack, 1, &options);
        result.unwrap_err().to_string()
    };
    let pgd = Pgd::projected(Norm::Linf, 0.1);
    let (x, labels) = (&linear.images, &linear.labels[..]);
    let fine = Options::default;
    let outside = Tensor::from_vec(x.shape(), vec![1.5f32; x.shape().len()]).unwrap();
    assert_eq!(
        error(&outside, labels, pgd, fine()),
        "attacks: x: expected values in [0, 1], found 1.5"
    );
    assert_eq!(
        error(x, &[0, 3], pgd, fine()),
        "attacks: criterion: expected classes below 3, found 3 for image 1"
    );
    let none = Options {
        budget: Some(0),
        ..fine()
    };
    assert_eq!(
        error(x, labels, pgd, none),
        "attacks: budget: expected at least 1 query, found 0"
    );
    let zero = Pgd::projected(Norm::Linf, 0.0);
    assert_eq!(
        error(x, labels, zero, fine()),
        "pgd: eps: expected a finite number above 0, found 0"
    );
}

#[test]
fn scores_that_are_not_finite_stop_the_attack() {
    let mut linear = Linear::sized(Case::Interior, Shape::new(2, 8, 8, 3), 3, 5);
    linear.weights[1][0] = f32::NAN;
    let mut model = linear.model(0.0).unwrap();
    let attack = Pgd::projected(Norm::Linf, 0.1);
    let result = run(
        &mut model,
        &linear.images,
        &[0, 0],
        &attack,
        1,
        &Options::default(),
    );
    assert!(matches!(result, Err(Error::NotFinite { .. })));
}

/// A network with memory for so many rows at once.
struct Cramped<'m> {
    net: Ensemble<'m>,
    rows: usize,
}

impl Cramped<'_> {
    fn fit(&self, rows: &Rows) -> Result<()> {
        match rows.len() <= self.rows {
            true => Ok(()),
            false => Err(Error::OutOfMemory {
                device: "cuda:0".to_string(),
                asked: 1,
                free: 0,
                total: 0,
                in_use: 0,
                batch_that_fits: None,
            }),
        }
    }
}

impl Classifier for Cramped<'_> {
    fn classes(&self) -> usize {
        self.net.classes()
    }

    fn input(&self) -> Shape {
        self.net.input()
    }

    fn rows_are_independent(&self) -> bool {
        self.net.rows_are_independent()
    }

    fn logits(&mut self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        self.fit(rows)?;
        self.net.logits(x, rows)
    }
}

impl Differentiable for Cramped<'_> {
    fn input_grad(
        &mut self,
        x: &Tensor,
        rows: &Rows,
        gradient: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        self.fit(rows)?;
        self.net.input_grad(x, rows, gradient)
    }
}

/// Fewer rows at once give the same result, but where batch norm looks at all of them.
#[test]
fn a_lack_of_memory_changes_no_result() {
    let (mut model, x, labels) = small();
    let criterion = Criterion::Untargeted { labels };
    let ids: Vec<u32> = (0..9).collect();
    let mut of = |mode, rows| {
        let mut net = Ensemble::new(&mut model, 7, Purpose::Attack, 1).unwrap();
        net.mode = mode;
        let mut cramped = Cramped { net, rows };
        let targets = Targets {
            x: &x,
            ids: &ids,
            criterion: &criterion,
        };
        let attack = Pgd::projected(Norm::Linf, 0.02);
        let options = Options::default();
        attack_white_box(&mut cramped, targets, &attack, &options, &mut |_| Ok(()))
    };
    assert_eq!(of(Mode::Eval, 9).unwrap(), of(Mode::Eval, 2).unwrap());
    assert!(of(Mode::Train, 9).is_ok());
    assert!(matches!(of(Mode::Train, 2), Err(Error::OutOfMemory { .. })));
}
