//! Several attacks on one image, one after the other: the ensembles of AutoAttack.

use super::apgd::Apgd;
use super::fab::Fab;
use super::image::{Image, Norm};
use super::query::{BlackBox, Keep, OutOfQueries, WhiteBox};
use super::schedule::{BlackBoxAttack, Running, WhiteBoxAttack};
use super::square::Square;
use crate::error::{Error, Result};

/// One attack of [`AutoAttack`].
pub enum Member {
    /// Needs gradients.
    White(Box<dyn WhiteBoxAttack>),
    /// Needs scores.
    Black(Box<dyn BlackBoxAttack>),
}

impl Member {
    /// The attack's name.
    pub fn name(&self) -> &'static str {
        match self {
            Member::White(attack) => attack.name(),
            Member::Black(attack) => attack.name(),
        }
    }

    fn keep(&self) -> Keep {
        match self {
            Member::White(attack) => attack.keep(),
            Member::Black(attack) => attack.keep(),
        }
    }

    fn check(&self, classes: usize) -> Result<()> {
        match self {
            Member::White(attack) => attack.check(classes),
            Member::Black(attack) => attack.check(classes),
        }
    }
}

/// Attacks within a bound, in order, until one of them succeeds beyond doubt. Which one it was stands in
/// [`Found::broken_by`](super::Found::broken_by).
pub struct AutoAttack {
    /// What it is called.
    pub name: &'static str,
    /// The attacks, at least one.
    pub members: Vec<Member>,
}

impl AutoAttack {
    /// The standard ensemble (Croce and Hein 2020): the clean image, APGD on the cross-entropy, APGD on the
    /// targeted DLR loss, targeted FAB (9 targets each) and Square with 5000 queries; one start each,
    /// 100 steps. Needs 4 classes.
    pub fn standard(norm: Norm, eps: f64) -> Self {
        AutoAttack {
            name: "autoattack",
            members: vec![
                Member::Black(Box::new(Clean)),
                Member::White(Box::new(Apgd::cross_entropy(norm, eps))),
                Member::White(Box::new(Apgd::targeted_dlr(norm, eps))),
                Member::White(Box::new(Fab::targeted(norm).within(eps))),
                Member::Black(Box::new(Square::new(norm, eps))),
            ],
        }
    }

    /// The ensemble for random networks: the clean image, APGD on the cross-entropy and on the DLR loss, of so many
    /// steps each (published: 100).
    /// The published one judges by a single draw; here every comparison sees the mean over the draws asked
    /// for, and a success is one on draws that nobody has seen before. Needs 3 classes.
    pub fn rand(norm: Norm, eps: f64, steps: u32) -> Self {
        let apgd = |published: Apgd| Member::White(Box::new(Apgd { steps, ..published }));
        AutoAttack {
            name: "autoattack-rand",
            members: vec![
                Member::Black(Box::new(Clean)),
                apgd(Apgd::cross_entropy(norm, eps)),
                apgd(Apgd::dlr(norm, eps)),
            ],
        }
    }

    /// [`AutoAttack::rand`], then targeted FAB and Square, which compare under common draws.
    pub fn rand_with_all(norm: Norm, eps: f64, steps: u32) -> Self {
        let mut attack = AutoAttack::rand(norm, eps, steps);
        let fab = Fab::targeted(norm).within(eps);
        attack.members.push(Member::White(Box::new(fab)));
        let square = Square::new(norm, eps);
        attack.members.push(Member::Black(Box::new(square)));
        attack
    }

    async fn attack(&self, image: &Image, net: &mut WhiteBox) -> Result<(), OutOfQueries> {
        for member in &self.members {
            net.credit(member.name());
            match member {
                Member::White(attack) => attack.run(image, net).await?,
                Member::Black(attack) => attack.run(image, net).await?,
            }
            if net.is_sure() {
                break;
            }
        }
        Ok(())
    }
}

impl WhiteBoxAttack for AutoAttack {
    fn name(&self) -> &'static str {
        self.name
    }

    fn keep(&self) -> Keep {
        Keep::Surest
    }

    fn check(&self, classes: usize) -> Result<()> {
        if self.members.is_empty() {
            return Err(Error::argument(self.name, "members", "at least 1", 0));
        }
        for member in &self.members {
            if member.keep() != Keep::Surest {
                let expected = "attacks within a bound";
                return Err(Error::argument(
                    self.name,
                    "members",
                    expected,
                    member.name(),
                ));
            }
            member.check(classes)?;
        }
        Ok(())
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut WhiteBox) -> Running<'a> {
        Box::pin(self.attack(image, classifier))
    }
}

/// No attack: offers the image as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clean;

impl Clean {
    async fn attack(&self, image: &Image, net: &mut BlackBox) -> Result<(), OutOfQueries> {
        let scores = net.look(&image.pixels).await?;
        net.offer(&image.pixels, &scores).await?;
        Ok(())
    }
}

impl BlackBoxAttack for Clean {
    fn name(&self) -> &'static str {
        "clean"
    }

    fn keep(&self) -> Keep {
        Keep::Surest
    }

    fn check(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn run<'a>(&'a self, image: &'a Image, classifier: &'a mut BlackBox) -> Running<'a> {
        Box::pin(self.attack(image, classifier))
    }
}
