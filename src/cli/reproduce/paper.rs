//! What the paper prints, and what its authors' result files hold (accuracy in %, root-mean-square L2 distance).

/// Table 2's columns.
pub const TABLE2_C: [f64; 5] = [0.01, 0.03, 0.06, 0.1, 0.2];

/// Table 2, CIFAR-10 and VGG16: by defence, accuracy (%) at [`TABLE2_C`].
pub const TABLE2: [(&str, [f64; 5]); 5] = [
    ("RSE", [90.00, 86.06, 79.44, 67.19, 34.75]),
    ("adversarial retraining", [27.00, 9.81, 4.13, 3.69, 1.44]),
    (
        "robust optimisation + BReLU",
        [75.06, 47.93, 30.94, 20.69, 13.50],
    ),
    ("distillation", [49.88, 17.69, 4.56, 3.13, 1.44]),
    ("no defence", [30.38, 8.93, 5.06, 3.56, 2.19]),
];

/// A defence's curve in the authors' files: `(c, accuracy %, distance)`.
pub type Curve = &'static [(f64, f64, f64)];

/// Figure 6, CIFAR-10 and VGG16, from the authors' files. The file of the RSE network is another, weaker run than
/// Table 2's.
pub const VGG16: [(&str, Curve); 5] = [
    (
        "no defence",
        &[
            (0.01, 30.38, 0.130),
            (0.03, 8.94, 0.161),
            (0.06, 5.06, 0.169),
            (0.1, 3.56, 0.177),
            (0.2, 2.19, 0.191),
            (0.4, 1.00, 0.207),
            (0.8, 0.88, 0.230),
            (1.0, 0.63, 0.235),
            (2.0, 0.44, 0.262),
            (10.0, 0.0, 0.385),
            (100.0, 0.0, 0.474),
        ],
    ),
    (
        "adversarial retraining",
        &[
            (0.01, 27.00, 0.117),
            (0.03, 9.81, 0.149),
            (0.06, 4.13, 0.161),
            (0.1, 3.69, 0.171),
            (0.2, 1.44, 0.186),
            (0.4, 0.94, 0.205),
            (0.8, 0.88, 0.228),
            (1.0, 1.13, 0.238),
            (2.0, 0.63, 0.268),
            (10.0, 0.06, 0.382),
            (100.0, 0.0, 0.457),
        ],
    ),
    (
        "robust optimisation + BReLU",
        &[
            (0.01, 75.06, 0.099),
            (0.03, 47.94, 0.178),
            (0.06, 30.94, 0.232),
            (0.1, 20.69, 0.272),
            (0.2, 13.50, 0.321),
            (0.4, 6.38, 0.366),
            (0.8, 3.44, 0.412),
            (1.0, 2.06, 0.425),
            (2.0, 0.94, 0.473),
            (10.0, 0.25, 0.674),
            (100.0, 0.06, 0.887),
        ],
    ),
    (
        "distillation",
        &[
            (0.01, 49.88, 0.101),
            (0.03, 17.69, 0.249),
            (0.06, 4.56, 0.326),
            (0.1, 3.13, 0.367),
            (0.2, 1.44, 0.440),
            (0.4, 0.94, 0.539),
            (0.8, 0.81, 0.635),
            (1.0, 1.00, 0.657),
            (2.0, 0.69, 0.726),
            (10.0, 0.63, 0.801),
            (100.0, 0.56, 0.820),
        ],
    ),
    (
        "RSE",
        &[
            (0.01, 87.38, 0.037),
            (0.03, 83.69, 0.106),
            (0.06, 75.75, 0.219),
            (0.1, 61.88, 0.363),
            (0.2, 28.00, 0.575),
            (0.4, 5.94, 0.735),
            (0.8, 1.38, 0.848),
            (1.0, 0.75, 0.883),
            (2.0, 0.38, 0.978),
            (10.0, 0.19, 1.158),
            (100.0, 0.19, 1.244),
        ],
    ),
];

/// The authors' curve of a defence.
pub fn vgg16(defence: &str) -> Option<Curve> {
    let found = VGG16.iter().find(|(name, _)| *name == defence);
    found.map(|(_, curve)| *curve)
}

/// The paper's row of Table 2.
pub fn table2(defence: &str) -> Option<[f64; 5]> {
    let found = TABLE2.iter().find(|(name, _)| *name == defence);
    found.map(|(_, row)| *row)
}
