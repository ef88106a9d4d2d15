//! `noiseforge selftest`.

use anyhow::{Result, bail};
use clap::Args;
use noiseforge::selftest;
use serde_json::json;

use super::common::{self, positive, say};

#[derive(Debug, Args)]
#[command(after_help = "Example:
  noiseforge selftest

Attacks, verdicts and random numbers against exact answers, on this machine's processor: linear networks,
whose smallest adversarial perturbations are known, the votes of a noisy one, a network that is not robust
at all, and planted adversarial images. Fails if one answer is wrong.")]
pub struct SelftestArgs {
    /// Images of each problem
    #[arg(long, value_name = "N", default_value = "16", value_parser = positive)]
    images: usize,
}

pub fn run(args: &SelftestArgs, json: bool) -> Result<()> {
    common::stop_on_ctrl_c()?;
    let checks = selftest::run(args.images, &mut |check| {
        if !json {
            let verdict = if check.passed { "ok" } else { "WRONG" };
            say!("{verdict:>5}  {:<36} {}", check.name, check.detail);
        }
        common::check_stop()
    })?;
    let wrong = checks.iter().filter(|c| !c.passed).count();
    if json {
        let rows: Vec<_> = checks
            .iter()
            .map(|c| json!({ "name": c.name, "passed": c.passed, "detail": c.detail }))
            .collect();
        say!("{:#}", json!({ "passed": wrong == 0, "checks": rows }));
    }
    match wrong {
        0 => Ok(()),
        _ => bail!("{wrong} of {} checks give a wrong answer", checks.len()),
    }
}
