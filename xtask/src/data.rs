//! `cargo xtask data`: public data of experiments, which is never stored in the repository.

mod fetch;
pub mod wheel;

use anyhow::Result;
use clap::Subcommand;

/// Fetch data that experiments run on.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Fetch(fetch::Args),
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    match &args.command {
        Command::Fetch(args) => fetch::main(args),
    }
}
