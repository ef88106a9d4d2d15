//! `noiseforge devices`.

use anyhow::Result;
use clap::Args;
use noiseforge::gpu::{self, Gpu};
use serde_json::json;

use super::common::say;

#[derive(Debug, Args)]
#[command(after_help = "Example:
  noiseforge devices --json")]
pub struct DevicesArgs {}

/// Prints what there is to compute on, and for the GPU what is missing.
///
/// With `json`: `{"devices": [{"name": "cpu", "threads", "kernels"}, {"name": "cuda:N", "model",
/// "compute_capability", "multiprocessors", "memory_bytes", "l2_bytes", "driver", "error"}],
/// "gpu": null or why there is none}`.
pub fn run(_: &DevicesArgs, json: bool) -> Result<()> {
    let threads = rayon::current_num_threads();
    let kernels = noiseforge::ops::isa::Isa::current();
    let missing = gpu::kernels_missing();
    let count = gpu::count();
    let gpus: Vec<_> = (0..*count.as_ref().unwrap_or(&0))
        .map(|i| (i, Gpu::open(i)))
        .collect();
    let none = match (&count, missing) {
        (_, Some(why)) => Some(format!("this build has no GPU kernels: {why}")),
        (Err(noiseforge::Error::Device { reason, .. }), _) => Some(reason.clone()),
        (Err(e), _) => Some(e.to_string()),
        (Ok(0), _) => Some("the NVIDIA driver finds no device".to_string()),
        (Ok(_), None) => None,
    };
    if json {
        let mut devices =
            vec![json!({"name": "cpu", "threads": threads, "kernels": format!("{kernels}")})];
        for (i, gpu) in &gpus {
            devices.push(match gpu {
                Ok(gpu) => {
                    let p = gpu.properties();
                    json!({
                        "name": format!("cuda:{i}"),
                        "model": p.name,
                        "compute_capability": format!("{}.{}", p.capability.0, p.capability.1),
                        "multiprocessors": p.multiprocessors,
                        "memory_bytes": p.memory,
                        "l2_bytes": p.l2,
                        "driver": p.driver,
                        "error": null,
                    })
                }
                Err(e) => json!({"name": format!("cuda:{i}"), "error": e.to_string()}),
            });
        }
        say!("{:#}", json!({"devices": devices, "gpu": none}));
        return Ok(());
    }
    say!("cpu     {threads} threads, {kernels} kernels");
    for (i, gpu) in &gpus {
        match gpu {
            Ok(gpu) => {
                let p = gpu.properties();
                say!(
                    "cuda:{i}  {}, compute capability {}.{}, {} multiprocessors, {:.1} GiB, \
                     driver for CUDA {}.{}",
                    p.name,
                    p.capability.0,
                    p.capability.1,
                    p.multiprocessors,
                    p.memory as f64 / (1u64 << 30) as f64,
                    p.driver / 1000,
                    p.driver % 1000 / 10
                );
            }
            Err(e) => say!("cuda:{i}  cannot be used: {e}"),
        }
    }
    if let Some(why) = none {
        say!("cuda    none: {why}");
    }
    Ok(())
}
