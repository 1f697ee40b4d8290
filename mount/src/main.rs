//! The `scrfs` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    scrfs_mount::cli::main()
}
