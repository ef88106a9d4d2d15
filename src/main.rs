//! The `noiseforge` command.

mod cli;

/// Keeps freed memory for the next step: with glibc's allocator a training step returns its
/// activations to the system and faults them in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
