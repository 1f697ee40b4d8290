//! Where the processes of a launch stand on this node: for whoever wants to know later why it hung.
//!
//! For each process its command, and for each of its threads name, state, where in the kernel it waits, and
//! the kernel's stack where that may be read; then gdb's view, where gdb is there. Nothing is killed.

use super::child;
use super::launcher::LAUNCH_VARIABLE;
use super::resource::{Here, World};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// For gdb, each process.
const GDB_PATIENCE: Duration = Duration::from_secs(5);
/// Processes that gdb is asked about; a node may have hundreds of ranks, all alike.
const GDB_MAX: usize = 8;

/// Show where the processes of a launch stand on this node
#[derive(clap::Args, Clone, Debug)]
pub struct Stacks {
    /// Which launch
    launch: String,
}

impl Stacks {
    /// Prints them.
    pub fn run(&self) {
        let here = Here {
            patience: GDB_PATIENCE,
        };
        for (process, number) in child::marked(LAUNCH_VARIABLE, &self.launch, false)
            .iter()
            .zip(0..)
        {
            println!("{}", stack(process.pid));
            if number < GDB_MAX {
                let pid = process.pid.to_string();
                let words = [
                    "gdb",
                    "-q",
                    "-batch",
                    "-nx",
                    "-p",
                    &pid,
                    "-ex",
                    "thread apply all bt 30",
                ];
                if let Ok(text) = here.run(&words.map(String::from)) {
                    println!("{text}");
                }
            }
        }
    }
}

/// What the kernel tells of a process.
fn stack(pid: i32) -> String {
    let base = format!("/proc/{pid}");
    let base = Path::new(&base);
    let command = fs::read(base.join("cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let mut text = format!("process {pid}: {command}\n");
    let threads = fs::read_dir(base.join("task")).into_iter().flatten();
    for thread in threads.flatten() {
        let read = |name: &str| {
            let read = fs::read_to_string(thread.path().join(name));
            read.map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        let status = read("status");
        let state = status
            .lines()
            .find_map(|line| line.strip_prefix("State:"))
            .unwrap_or_default();
        let name = thread.file_name();
        text += &format!(
            "  thread {} {}: {} in {}\n",
            name.display(),
            read("comm"),
            state.trim(),
            read("wchan")
        );
        for line in read("stack").lines() {
            text += &format!("    {line}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_shown_with_its_threads() {
        let me = i32::try_from(std::process::id()).expect("a number");
        let text = stack(me);
        assert!(text.starts_with(&format!("process {me}: ")), "{text}");
        assert!(text.contains(&format!("  thread {me} ")), "{text}");
        assert!(
            text.contains("(running)") || text.contains("(sleeping)"),
            "{text}"
        );
    }
}
