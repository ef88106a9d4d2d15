//! `noiseforge devices`.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::common::say;

#[derive(Debug, Args)]
#[command(after_help = "Example:
  noiseforge devices --json")]
pub struct DevicesArgs {}

pub fn run(_: &DevicesArgs, json: bool) -> Result<()> {
    let threads = rayon::current_num_threads();
    let kernels = noiseforge::ops::isa::Isa::current();
    if json {
        let cpu = json!({"name": "cpu", "threads": threads, "kernels": format!("{kernels}")});
        say!(
            "{:#}",
            json!({"devices": [cpu], "gpu": "this build has no GPU code"})
        );
    } else {
        say!("cpu     {threads} threads, {kernels} kernels");
        say!("cuda    none: this build has no GPU code");
    }
    Ok(())
}
