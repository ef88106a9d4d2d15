#[derive(Debug, clap::Args)]
pub struct Args {}
pub fn run(_: &Args, _: bool) -> anyhow::Result<()> { Ok(()) }
