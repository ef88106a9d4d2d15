//! Command line.

#[allow(dead_code)]
mod gradcheck;

use std::process::ExitCode;

pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
