//! `noiseforge devices`.

use anyhow::Result;
use clap::Args;
use serde_json::json;

#[derive(Debug, Args)]
#[command(after_help = "Example:
  noiseforge devices --json")]
pub struct DevicesArgs {}

pub fn run(_: &DevicesArgs, json: bool) -> Result<()> {
    let threads = rayon::current_num_threads();
    let kernels = noiseforge::ops::simd::level().name();
    if json {
        let cpu = json!({"name": "cpu", "threads": threads, "kernels": kernels});
        println!("{:#}", json!({"devices": [cpu], "gpu": "this build has no GPU code"}));
    } else {
        println!("cpu     {threads} threads, {kernels} kernels");
        println!("cuda    none: this build has no GPU code");
    }
    Ok(())
}
