//! `scrfs status`.

use super::{At, Failure, ask, daemon_at, print};
use anyhow::anyhow;
use scrfs::control::Command;
use scrfs::status::size;
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Duration;

/// A daemon that does not tell its status for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(clap::Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    at: At,
    /// For programs
    #[arg(long)]
    json: bool,
    /// Again every second, until interrupted
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let daemon = daemon_at(&args.at.mountpoint)?;
    loop {
        let text = ask(&daemon, &Command::Status, Some(PATIENCE))?;
        if args.json {
            print(&format!("{text}\n"))?;
        } else {
            let status: Value = serde_json::from_str(&text).map_err(|error| anyhow!(error))?;
            let clear = if args.watch { "\x1b[2J\x1b[H" } else { "" };
            print(&format!("{clear}{}", table(&status)))?;
        }
        if !args.watch {
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("-")
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn table(status: &Value) -> String {
    let mut out = String::new();
    let empty = Vec::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{} on {}, cache {}",
        text(status, "mountpoint"),
        text(status, "node"),
        text(status, "cache")
    );
    let stores = status.get("stores").and_then(Value::as_array);
    for store in stores.unwrap_or(&empty) {
        let space = store.get("space").unwrap_or(&Value::Null);
        let _ = writeln!(
            out,
            "store: {}; {} used of {}, {} available",
            text(store, "store"),
            size(number(space, "used")),
            size(number(space, "total")),
            size(number(space, "available"))
        );
    }
    let _ = writeln!(out, "data: {}", text(status, "data_path"));
    match status.get("epoch").and_then(Value::as_u64) {
        Some(epoch) => {
            let ready = status
                .get("ready")
                .and_then(Value::as_bool)
                .unwrap_or(false);
            let words = if ready { "ready" } else { "recovering" };
            let _ = writeln!(out, "coordinator: epoch {epoch}, {words}");
        }
        None => out.push_str("coordinator: none connected; nothing can be created or committed\n"),
    }
    let nodes = status
        .get("nodes")
        .and_then(Value::as_array)
        .unwrap_or(&empty);
    for node in nodes {
        let free = size(number(node, "free_bytes"));
        let _ = writeln!(
            out,
            "node {}: rank {}, slot {}, {free} free",
            text(node, "node"),
            number(node, "rank"),
            number(node, "slot")
        );
    }
    let datasets = status
        .get("datasets")
        .and_then(Value::as_array)
        .unwrap_or(&empty);
    if datasets.is_empty() {
        out.push_str("no datasets\n");
        return out;
    }
    let _ = writeln!(
        out,
        "{:>5} {:<28} {:<11} {:>10}  ERROR",
        "ID", "NAME", "STATE", "SIZE"
    );
    for dataset in datasets {
        let mut state = text(dataset, "state").to_owned();
        if state == "flushing" {
            let done = u128::from(number(dataset, "flushed_bytes")) * 100;
            let percent = done / u128::from(number(dataset, "bytes").max(1));
            state = format!("flushing {percent}%");
            if let Some(left) = dataset.get("remaining_seconds").and_then(Value::as_u64) {
                state += &format!(", {left} s left");
            }
        }
        if dataset.get("current").and_then(Value::as_bool) == Some(true) {
            state.push('*');
        }
        let _ = writeln!(
            out,
            "{:>5} {:<28} {state:<11} {:>10}  {}",
            number(dataset, "id"),
            text(dataset, "name"),
            size(number(dataset, "bytes")),
            text(dataset, "error")
        );
    }
    out
}
