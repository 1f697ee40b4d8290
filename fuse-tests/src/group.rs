//! A memory control group of a test's own, of either kind of control groups.
//!
//! Processes are started in it; those that they start are in it, too. It goes when it is dropped, after the
//! last of them is gone. Without swap where that can be said, so that its limit is the end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The files of one kind of control groups.
struct Kind {
    limit: &'static str,
    /// Optional: with it comes no swap.
    swap: (&'static str, Option<u64>),
    /// Where `oom_kill N` is told.
    kills: &'static str,
}

const FIRST: Kind = Kind {
    limit: "memory.limit_in_bytes",
    swap: ("memory.memsw.limit_in_bytes", None),
    kills: "memory.oom_control",
};
const SECOND: Kind = Kind {
    limit: "memory.max",
    swap: ("memory.swap.max", Some(0)),
    kills: "memory.events",
};

/// A control group with a limit of memory.
pub struct Group {
    at: PathBuf,
    kind: &'static Kind,
}

/// Where groups may be made, and of which kind.
fn parents() -> Vec<(PathBuf, &'static Kind)> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = |controller: &str| {
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let is_it = fields.next()?.split(',').any(|it| it == controller);
            let path = fields.next()?.trim_start_matches('/').to_owned();
            is_it.then_some(path)
        })
    };
    let mut found = Vec::new();
    if let Some(path) = own("memory") {
        found.push((Path::new("/sys/fs/cgroup/memory").join(path), &FIRST));
    }
    // One with processes in it can have no groups below it; the root can.
    found.push((PathBuf::from("/sys/fs/cgroup"), &SECOND));
    found
}

impl Group {
    /// A new one with room for so many bytes; why not, where none can be made.
    pub fn new(limit: u64) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("scrfs-test-{}-{next}", std::process::id());
        let mut why = String::from("there are no memory control groups");
        for (parent, kind) in parents() {
            let at = parent.join(&name);
            match make(&at, kind, limit) {
                Ok(()) => return Ok(Self { at, kind }),
                Err(error) => {
                    why = format!("no memory control group at {}: {error}", at.display());
                    // It may not have come so far.
                    let _ = fs::remove_dir(&at);
                }
            }
        }
        Err(why)
    }

    /// The same command, to run in this group.
    pub fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.at.join("cgroup.procs"))
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// How many of its processes were killed for want of memory.
    pub fn kills(&self) -> u64 {
        let path = self.at.join(self.kind.kills);
        let text = fs::read_to_string(&path).expect("what the group tells");
        let number = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        let number = number.expect("the kernel counts kills since 4.13");
        number.trim().parse().expect("a number")
    }
}

fn make(at: &Path, kind: &Kind, limit: u64) -> io::Result<()> {
    fs::create_dir(at)?;
    let limit_file = at.join(kind.limit);
    if !limit_file.exists() {
        // The second kind gives controllers to those below when it is told to.
        if let Some(parent) = at.parent() {
            fs::write(parent.join("cgroup.subtree_control"), "+memory")?;
        }
    }
    fs::write(limit_file, limit.to_string())?;
    let (swap, bytes) = kind.swap;
    if at.join(swap).exists() {
        fs::write(at.join(swap), bytes.unwrap_or(limit).to_string())?;
    }
    Ok(())
}

impl Drop for Group {
    fn drop(&mut self) {
        let deadline = std::time::Instant::now() + crate::PATIENCE;
        // It is busy until the last process is gone for good.
        while fs::remove_dir(&self.at).is_err_and(|it| it.kind() != io::ErrorKind::NotFound) {
            if std::time::Instant::now() > deadline {
                eprintln!("{} cannot be removed", self.at.display());
                return;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(5));
        }
    }
}
