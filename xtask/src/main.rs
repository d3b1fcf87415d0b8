//! The workspace's own commands, run as `cargo xtask <command>`.
//!
//! One file per command. `--help` of each command is its manual, and every program that a command starts is
//! printed first, so that it can be repeated by hand.

mod bench;
mod built;
mod check;
mod cmd;
mod data;
mod driver;
mod model;
mod mutate;
mod package;
mod stages;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Commands of the attn workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Test(test::Args),
    Tidy(tidy::Args),
    Check(check::Args),
    Mutate(mutate::Args),
    Package(package::Args),
    Driver(driver::Args),
    Bench(bench::Args),
    Report(bench::merge::Args),
    Tune(bench::tune::Args),
    Model(model::Args),
    Data(data::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test(args) => test::main(&args),
        Command::Tidy(args) => tidy::main(&args),
        Command::Check(args) => check::main(&args),
        Command::Mutate(args) => mutate::main(&args),
        Command::Package(args) => package::main(&args),
        Command::Driver(args) => driver::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::Report(args) => bench::merge::main(&args),
        Command::Tune(args) => bench::tune::main(&args),
        Command::Model(args) => model::main(&args),
        Command::Data(args) => data::main(&args),
    };
    // The causes, without a backtrace: the command that failed is what helps.
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
