//! How much memory there is for a private tmpfs: of the machine, and of the control groups this process is in.
//!
//! Figures are of the moment, in bytes. What cannot be read counts as no limit.

use super::{PAGE, page_up};
use scrfs::config::Capacity;
use std::path::{Path, PathBuf};

/// The number after `key` in `/proc/meminfo`, in bytes.
fn memory(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let number = line.strip_prefix(':')?.trim().strip_suffix("kB")?;
    number.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes that this process's control group, or one above it, has left; `None` without a limit.
fn group_memory_left() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = Path::new("/sys/fs/cgroup").join(own);
    let number =
        |path: PathBuf| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    own.ancestors()
        .take_while(|group| group.starts_with("/sys/fs/cgroup"))
        .filter_map(|group| {
            let limit = number(group.join("memory.max"))?;
            // Cached files go when memory is needed; what is in a tmpfs does not.
            let cached = std::fs::read_to_string(group.join("memory.stat"))
                .ok()?
                .lines()
                .filter_map(|line| line.split_once(' '))
                .filter(|(key, _)| matches!(*key, "inactive_file" | "active_file"))
                .filter_map(|(_, bytes)| bytes.parse::<u64>().ok())
                .sum::<u64>();
            let current = number(group.join("memory.current"))?.saturating_sub(cached);
            Some(limit.saturating_sub(current))
        })
        .min()
}

/// Memory that may still be promised, in bytes: what is available but for a twentieth.
pub(super) fn memory_left() -> u64 {
    let available = memory("MemAvailable").unwrap_or(u64::MAX);
    let keep = memory("MemTotal").unwrap_or(0) / 20;
    available
        .saturating_sub(keep)
        .min(group_memory_left().unwrap_or(u64::MAX))
}

/// The budget of a private tmpfs in which `used` bytes are: what was configured, a share being of
/// the machine's memory, and never more than there is.
pub fn private_bytes(capacity: Capacity, used: u64) -> u64 {
    let all = memory("MemTotal").unwrap_or(u64::MAX);
    let wanted = match capacity {
        Capacity::Percent(percent) => all / 100 * u64::from(percent),
        Capacity::Bytes(bytes) => bytes,
        Capacity::Unlimited => all,
    };
    page_up(wanted.min(memory_left().saturating_add(used)).max(PAGE))
}
