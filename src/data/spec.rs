//! What the user types after `--data`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{Dataset, cifar, folder, npy, stl, synthetic};
use crate::error::{Error, Result};

/// Which part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// The images to learn from.
    Train,
    /// The images held back.
    Test,
}

impl Split {
    /// `train` or `test`, as in file and folder names.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Test => "test",
        }
    }
}

/// Names a data set. Parses from, and displays as, the form in which users type it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// `synthetic[:N]`: N procedural training images and a quarter as many test images, 32x32 RGB,
    /// 10 classes. Without N, 4000 and 1000.
    Synthetic {
        /// Number of training images.
        n: usize,
    },
    /// `cifar10:DIR`: the files of CIFAR-10's binary version.
    Cifar10(PathBuf),
    /// `stl10:DIR`: the files of STL-10's binary version.
    Stl10(PathBuf),
    /// `folder:DIR`: `train/CLASS/*.png|jpg|jpeg` and `test/CLASS/*`.
    Folder(PathBuf),
    /// `npy:IMAGES,LABELS`: two arrays; both splits are the whole of them.
    Npy {
        /// `[n, h, w, c]` or `[n, c, h, w]`, u8 in 0..=255 or f32 in [0, 1].
        images: PathBuf,
        /// `[n]`, any integer type.
        labels: PathBuf,
    },
}

/// Training images of `synthetic` without a number.
const SYNTHETIC_DEFAULT: usize = 4000;
/// The most training images `synthetic` makes: 3 GB of bytes.
const SYNTHETIC_MOST: usize = 1_000_000;
/// What a specification looks like, for messages.
const FORMS: &str = "synthetic[:N], cifar10:DIR, stl10:DIR, folder:DIR or npy:IMAGES,LABELS";

impl Spec {
    /// Reads one split. `seed` matters to `synthetic` only.
    ///
    /// Every image and label is checked here: what comes back is ready to be used. Errors name
    /// the file, where in it, what was expected and what was found.
    pub fn load(&self, split: Split, seed: u64) -> Result<Dataset> {
        match self {
            Spec::Synthetic { n } => synthetic::generate(check_n(*n)?, split, seed),
            Spec::Cifar10(dir) => cifar::load(dir, split),
            Spec::Stl10(dir) => stl::load(dir, split),
            Spec::Folder(dir) => folder::load(dir, split),
            Spec::Npy { images, labels } => npy::load(images, labels),
        }
    }
}

fn check_n(n: usize) -> Result<usize> {
    if (1..=SYNTHETIC_MOST).contains(&n) {
        return Ok(n);
    }
    let expected = format!("1 to {SYNTHETIC_MOST} images");
    Err(Error::argument("synthetic", "n", expected, n))
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::argument("data", "spec", FORMS, format_args!("`{text}`"));
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind, Some(rest)),
            None => (text, None),
        };
        let path = || {
            rest.filter(|r| !r.is_empty())
                .map(PathBuf::from)
                .ok_or_else(wrong)
        };
        match kind {
            "synthetic" => {
                let n = match rest {
                    None => SYNTHETIC_DEFAULT,
                    Some(digits) => digits.parse().map_err(|_| {
                        let found = format!("`{digits}`");
                        Error::argument("synthetic", "n", "a number of images", found)
                    })?,
                };
                Ok(Spec::Synthetic { n: check_n(n)? })
            }
            "cifar10" => Ok(Spec::Cifar10(path()?)),
            "stl10" => Ok(Spec::Stl10(path()?)),
            "folder" => Ok(Spec::Folder(path()?)),
            "npy" => match rest.and_then(|r| r.split_once(',')) {
                Some((images, labels)) if !images.is_empty() && !labels.is_empty() => {
                    Ok(Spec::Npy {
                        images: images.into(),
                        labels: labels.into(),
                    })
                }
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spec::Synthetic { n } => write!(f, "synthetic:{n}"),
            Spec::Cifar10(dir) => write!(f, "cifar10:{}", dir.display()),
            Spec::Stl10(dir) => write!(f, "stl10:{}", dir.display()),
            Spec::Folder(dir) => write!(f, "folder:{}", dir.display()),
            Spec::Npy { images, labels } => {
                write!(f, "npy:{},{}", images.display(), labels.display())
            }
        }
    }
}
