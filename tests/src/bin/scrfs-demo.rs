//! `make demo`: see `scrfs_tests::demo`.

use std::process::ExitCode;

use clap::Parser;
use scrfs_tests::demo::Demo;

fn main() -> ExitCode {
    match Demo::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scrfs-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
