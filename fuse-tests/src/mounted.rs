//! A mount of its own for each test, with its cache and prefix, taken down whatever happens.
//!
//! The daemon runs as users run it, from the `scrfs` binary, in the background; only processes that
//! it named in its own `daemon.json` are killed, by number.

use crate::coordinator::{Coordinator, Manners};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// The `scrfs` binary, built if need be.
pub fn scrfs() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "scrfs-mount", "--bin", "scrfs"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo runs");
        assert!(built.success(), "the binary does not build");
        let test = std::env::current_exe().expect("this test's own path");
        let directory = test
            .parent()
            .and_then(Path::parent)
            .expect("target/<profile>/deps");
        directory.join("scrfs")
    })
}

/// A directory with everything a mount needs.
pub struct Place {
    root: TempDir,
    supervisor: UdpSocket,
    has_tmpfs: bool,
    /// The job whose private tmpfs is asked for, in place of the cache above.
    private: Option<String>,
}

/// A way to the bytes, with the options that choose it.
pub type DataPath = (&'static str, &'static [&'static str]);

/// Both: through the kernel, and through the daemon.
pub const DATA_PATHS: [DataPath; 2] = [("passthrough", &[]), ("served", &["-o", "no_passthrough"])];

impl Place {
    /// Mounted, with one way to the bytes, for all users; `None` where the machine has not that way.
    pub fn on_path(cache_bytes: u64, (name, options): DataPath) -> Option<Self> {
        use std::os::unix::fs::PermissionsExt;
        let place = Self::new(cache_bytes);
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(place.root.path(), everybody).expect("its own directory");
        place.mount(options);
        let is_it = (place.status()["passthrough"] == true) == (name == "passthrough");
        if !is_it {
            crate::leave_out("this machine has no passthrough (Linux 6.9, and root)");
        }
        is_it.then_some(place)
    }

    /// With a private tmpfs that the daemon mounts itself, where it may.
    pub fn private() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let private = Some(format!("test-{}-{next}", std::process::id()));
        let mut place = Self::new(1 << 20);
        place.private = private;
        place
    }

    /// With a cache of `cache_bytes`, where the test may mount a tmpfs.
    pub fn new(cache_bytes: u64) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        for name in ["mnt", "cache", "prefix"] {
            std::fs::create_dir(root.path().join(name)).expect("a directory");
        }
        let options = format!("size={cache_bytes},mode=0755,inode64");
        let cache = root.path().join("cache");
        let flags = MsFlags::empty();
        let has_tmpfs = mount(
            Some("tmpfs"),
            &cache,
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        )
        .is_ok();
        let supervisor = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        Self {
            root,
            supervisor,
            has_tmpfs,
            private: None,
        }
    }

    /// The mount point.
    pub fn mnt(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    /// The store.
    pub fn cache(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    /// The prefix.
    pub fn prefix(&self) -> PathBuf {
        self.root.path().join("prefix")
    }

    /// Whether the cache is a tmpfs of the size asked for.
    pub fn has_tmpfs(&self) -> bool {
        self.has_tmpfs
    }

    /// Where the daemon's heartbeats come in.
    pub fn supervisor(&self) -> &UdpSocket {
        &self.supervisor
    }

    /// The job's cache.
    pub fn job(&self) -> PathBuf {
        let uid = nix::unistd::geteuid();
        match &self.private {
            Some(job) => Path::new("/run").join(format!("scrfs.{uid}")).join(job),
            None => self.cache().join(format!("scrfs.{uid}")).join("test"),
        }
    }

    /// The daemon's log.
    pub fn log(&self) -> PathBuf {
        self.job().join("daemon.log")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.job().join("control.sock")
    }

    /// `scrfs mount` with this place's directories, no coordinator of its own, and `more`.
    pub fn mount_command(&self, more: &[&str]) -> Command {
        let address = self.supervisor.local_addr().expect("bound").to_string();
        let mut command = Command::new(scrfs());
        command
            .arg("mount")
            .arg(self.mnt())
            .args(["--job", self.private.as_deref().unwrap_or("test")])
            .args(["--node", "n0"]);
        let cache = match &self.private {
            Some(_) => PathBuf::from("tmpfs"),
            None => self.cache(),
        };
        command
            .arg("--cache")
            .arg(cache)
            .arg("--prefix")
            .arg(self.prefix());
        command
            .args(["--supervisor", &address, "--token", "7"])
            .args(more);
        command.env("SCRFS_COMMIT_GRACE_SECONDS", "3");
        command
    }

    /// Mounts, and panics with the daemon's words when that fails.
    pub fn mount(&self, more: &[&str]) {
        let output = self.mount_command(more).output().expect("scrfs runs");
        assert!(output.status.success(), "{}", text(&output));
    }

    /// A coordinator.
    pub fn coordinator(&self, epoch: u64, manners: Manners) -> Coordinator {
        Coordinator::start(&self.socket(), epoch, manners).expect("the daemon accepts it")
    }

    /// `scrfs VERB --mount ...`.
    pub fn command(&self, verb: &str, more: &[&str]) -> Output {
        let mut command = Command::new(scrfs());
        command.arg(verb).arg("--mount").arg(self.mnt()).args(more);
        command.output().expect("scrfs runs")
    }

    /// `scrfs status --json`.
    pub fn status(&self) -> serde_json::Value {
        let output = self.command("status", &["--json"]);
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The daemon's process, if one is recorded.
    pub fn daemon(&self) -> Option<Pid> {
        let text = std::fs::read(self.job().join("daemon.json")).ok()?;
        let json: serde_json::Value = serde_json::from_slice(&text).ok()?;
        i32::try_from(json["pid"].as_i64()?).ok().map(Pid::from_raw)
    }

    /// Kills the daemon as a crash would, and waits until it is gone.
    pub fn kill_daemon(&self) {
        let Some(pid) = self.daemon() else { return };
        let executable = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        if executable.file_name().is_none_or(|name| name != "scrfs") {
            return;
        }
        let _ = kill(pid, Signal::SIGKILL);
        crate::until("the daemon dies", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat
                .rsplit(')')
                .next()
                .unwrap_or_default()
                .trim()
                .chars()
                .next();
            matches!(state, None | Some('Z'))
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.job().join("daemon.log")).unwrap_or_default();
            eprintln!("--- daemon.log\n{log}---");
        }
        self.kill_daemon();
        let _ = umount2(&self.mnt(), MntFlags::MNT_DETACH);
        if self.has_tmpfs {
            let _ = umount2(&self.cache(), MntFlags::MNT_DETACH);
        }
        if self.private.is_some() {
            let _ = umount2(&self.job(), MntFlags::MNT_DETACH);
            let _ = std::fs::remove_dir(self.job());
        }
    }
}

/// A shared, writable memory map of the beginning of a file.
pub struct Map {
    address: std::ptr::NonNull<std::ffi::c_void>,
    length: std::num::NonZeroUsize,
}

#[expect(unsafe_code, reason = "memory maps have no safe interface")]
impl Map {
    /// Maps `length` bytes, which must be there.
    pub fn new(file: &std::fs::File, length: usize) -> Self {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap};
        let length = std::num::NonZeroUsize::new(length).expect("a length");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it is never read from here.
        let address = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, 0) };
        Self {
            address: address.expect("a map"),
            length,
        }
    }
}

#[expect(unsafe_code, reason = "memory maps have no safe interface")]
impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped, unmapped once; no reference into it was given out.
        let _ = unsafe { nix::sys::mman::munmap(self.address, self.length.get()) };
    }
}

/// What a command said.
pub fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}
