//! How much memory there is for a private tmpfs: of the machine, and of the control groups this process is in.
//!
//! Figures are of the moment, in bytes. What cannot be read counts as no limit.

use super::budget::{PAGE, page_up};
use scrfs::config::Capacity;
use std::path::{Path, PathBuf};

/// The number after `key` in `/proc/meminfo`, in bytes.
fn memory(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let number = line.strip_prefix(':')?.trim().strip_suffix("kB")?;
    number.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// One of the two kinds of control groups: where they are, and what their files are called.
struct Groups {
    /// In `/proc/self/cgroup`, the second field has this word, or nothing.
    controller: &'static str,
    root: &'static str,
    limit: &'static str,
    current: &'static str,
    /// Of `memory.stat`: cached files, which go when memory is needed; what is in a tmpfs does not.
    cached: [&'static str; 2],
}

const GROUPS: [Groups; 2] = [
    Groups {
        controller: "",
        root: "/sys/fs/cgroup",
        limit: "memory.max",
        current: "memory.current",
        cached: ["inactive_file", "active_file"],
    },
    Groups {
        controller: "memory",
        root: "/sys/fs/cgroup/memory",
        limit: "memory.limit_in_bytes",
        current: "memory.usage_in_bytes",
        cached: ["total_inactive_file", "total_active_file"],
    },
];

impl Groups {
    /// What the group named in `/proc/self/cgroup`, or one above it, has left, but for one of so many `shares`
    /// of its limit.
    fn left(&self, own: &str, root: &Path, shares: u64) -> Option<u64> {
        let of_controller = |line: &'_ str| -> Option<PathBuf> {
            let mut fields = line.splitn(3, ':').skip(1);
            let is_it = fields.next()?.split(',').any(|it| it == self.controller);
            let path = fields.next()?.trim_start_matches('/');
            is_it.then(|| root.join(path))
        };
        let own = own.lines().find_map(of_controller)?;
        let read = |path: PathBuf| std::fs::read_to_string(path).ok();
        let number = |path: PathBuf| read(path)?.trim().parse::<u64>().ok();
        own.ancestors()
            .take_while(|group| group.starts_with(root))
            .filter_map(|group| {
                let limit = number(group.join(self.limit))?;
                let stat = read(group.join("memory.stat"))?;
                let cached = stat
                    .lines()
                    .filter_map(|line| line.split_once(' '))
                    .filter(|(key, _)| self.cached.contains(key))
                    .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
                    .sum::<u64>();
                let current = number(group.join(self.current))?.saturating_sub(cached);
                Some((limit - limit / shares).saturating_sub(current))
            })
            .min()
    }
}

/// One of so many shares of all memory is kept: for what the kernel needs to keep files, and for the programs
/// themselves.
const KEPT_OF: u64 = 20;
/// Records may take half of that.
const KEPT_OF_RECORDS: u64 = 2 * KEPT_OF;

fn group_left(shares: u64) -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let left = |groups: &Groups| groups.left(&own, Path::new(groups.root), shares);
    GROUPS.iter().filter_map(left).min()
}

fn left(shares: u64) -> u64 {
    let available = memory("MemAvailable").unwrap_or(u64::MAX);
    let keep = memory("MemTotal").unwrap_or(0) / shares;
    available
        .saturating_sub(keep)
        .min(group_left(shares).unwrap_or(u64::MAX))
}

/// Bytes that this process's control group, or one above it, has left; `None` without a limit.
pub(super) fn group_memory_left() -> Option<u64> {
    group_left(KEPT_OF)
}

/// Memory that may still be promised to programs, in bytes.
pub(super) fn memory_left() -> u64 {
    left(KEPT_OF)
}

/// Memory that records may still take, in bytes.
pub(super) fn memory_left_for_records() -> u64 {
    left(KEPT_OF_RECORDS)
}

/// Whether a path lies in the memory of the machine.
pub(super) fn is_in_memory(path: &Path) -> bool {
    use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
    /// `RAMFS_MAGIC` of the kernel's headers.
    const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
    statfs(path).is_ok_and(|found| {
        let kind = found.filesystem_type();
        kind == TMPFS_MAGIC || kind == RAMFS_MAGIC
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn group(root: &Path, name: &str, groups: &Groups, figures: (&str, u64, u64)) {
        let (limit, current, cached) = figures;
        let at = root.join(name);
        std::fs::create_dir_all(&at).expect("a directory");
        let put = |file: &str, text: String| std::fs::write(at.join(file), text).expect("written");
        put(groups.limit, format!("{limit}\n"));
        put(groups.current, format!("{current}\n"));
        let [inactive, active] = groups.cached;
        put(
            "memory.stat",
            format!("shmem 77\n{inactive} {cached}\n{active} 1\n"),
        );
    }

    #[test]
    fn the_tightest_group_of_either_kind_counts_and_a_tmpfs_is_not_taken_for_cached() {
        for groups in &GROUPS {
            let root = tempfile::tempdir().expect("a directory");
            let root = root.path();
            let unlimited =
                ["max", "9223372036854771712"][usize::from(!groups.controller.is_empty())];
            group(root, "", groups, (unlimited, 0, 0));
            group(
                root,
                "job",
                groups,
                (&(200 * MIB).to_string(), 100 * MIB, 20 * MIB - 1),
            );
            group(root, "job/step", groups, (unlimited, 90 * MIB, 0));
            let own = format!("9:other:/x\n4:{}:/job/step\n", groups.controller);
            // A twentieth of 200 is kept; of the 100 in use 20 would go.
            assert_eq!(groups.left(&own, root, KEPT_OF), Some(110 * MIB));
            group(
                root,
                "job/step",
                groups,
                (&(50 * MIB).to_string(), 40 * MIB, 0),
            );
            let left = 50 * MIB - 50 * MIB / 20 - 40 * MIB + 1;
            assert_eq!(groups.left(&own, root, KEPT_OF), Some(left));
            group(
                root,
                "job/step",
                groups,
                (&(30 * MIB).to_string(), 40 * MIB, 0),
            );
            assert_eq!(groups.left(&own, root, KEPT_OF), Some(0), "over it already");
            assert_eq!(groups.left("4:cpu:/job/step\n", root, KEPT_OF), None);
        }
    }

    #[test]
    fn no_budget_is_more_than_there_is() {
        let left = private_bytes(Capacity::Unlimited, 0);
        let more = private_bytes(Capacity::Bytes(u64::MAX / 2), 0);
        assert!(left <= memory("MemTotal").expect("known"), "{left}");
        assert!(more <= memory("MemTotal").expect("known"), "{more}");
        assert_eq!(private_bytes(Capacity::Bytes(5000), 0), 8192);
    }
}
