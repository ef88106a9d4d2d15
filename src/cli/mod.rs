//! Command line.

#[allow(dead_code)]
mod noise;

use std::process::ExitCode;

pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
