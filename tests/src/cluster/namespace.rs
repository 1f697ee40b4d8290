//! The inside of a node: its own network, host name, IPC and mounts; and the way in.
//!
//! ```text
//! /           tmpfs of the node, so a new directory there is the node's own
//! /scr        empty: the mount point of the product; the machine's / never gets one
//! /dev/shm    tmpfs of the node, of the size asked for
//! /run        tmpfs of the node; /run/tmp is its TMPDIR, /run/node what the agent needs
//! /etc/hosts  and /etc/hostname: the node's own, over the machine's
//! all else    the machine's, /tmp too: what a test makes there is the parallel file system
//! ```
//!
//! Invariants: all of this is gone with the node's last process. Nothing is mounted or made where
//! the machine could see it; later mounts of the machine are not seen inside.
//! No pid namespace, so that tests can signal by process id.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chdir, pivot_root, sethostname};

use super::control::Place;
use super::network;
use super::process::Process;

/// Where a node's programs put what they need for the moment; Open MPI its sessions.
pub(crate) const SCRATCH: &str = "/run/tmp";
const SCRATCH_BELOW_RUN: &str = "tmp";

fn namespaces() -> CloneFlags {
    CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
}

/// Turns the calling process, still of one thread, into the first of a new node.
///
/// `mount_point` is any empty directory outside; it stays empty for everyone else.
pub(crate) fn create(
    node: usize,
    nodes: usize,
    shm_bytes: Option<u64>,
    mount_point: &Path,
) -> Result<()> {
    unshare(namespaces()).context("making namespaces (needs root)")?;
    sethostname(network::name(node)).context("setting the host name")?;
    network::disable_ipv6()?;

    // Else our mounts would show outside.
    set_propagation(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    tmpfs(mount_point, "mode=755")?;
    // Else the copy of the tree that mount_point lies in would hold another copy of the root.
    set_propagation(mount_point, MsFlags::MS_UNBINDABLE)?;
    copy_root(mount_point)?;

    let shm_size = shm_bytes.map_or("50%".to_owned(), |bytes| bytes.to_string());
    tmpfs(
        &mount_point.join("dev/shm"),
        &format!("mode=1777,size={shm_size}"),
    )?;
    let run = mount_point.join("run");
    fs::create_dir_all(&run).context("making /run")?;
    tmpfs(&run, "mode=755")?;
    for (name, mode) in [
        (SCRATCH_BELOW_RUN, 0o1777),
        ("lock", 0o1777),
        ("node", 0o755),
    ] {
        let path = run.join(name);
        fs::create_dir(&path)
            .and_then(|()| {
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))
            })
            .with_context(|| format!("making {}", path.display()))?;
    }
    let own = [
        ("hosts", network::hosts(nodes)),
        ("hostname", network::name(node) + "\n"),
    ];
    for (file, text) in own {
        let inside = run.join("node").join(file);
        fs::write(&inside, text).with_context(|| format!("writing {}", inside.display()))?;
        let shown = mount_point.join("etc").join(file);
        if shown.exists() {
            bind(&inside, &shown)?;
        } else if file == "hosts" {
            bail!("this machine has no /etc/hosts to put the nodes' over");
        }
    }

    // The documented way to do without a directory for the old root: both at the same place.
    chdir(mount_point).context("going to the new root")?;
    pivot_root(".", ".").context("changing the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("dropping the old root")?;
    chdir("/").context("going to /")?;
    set_propagation(Path::new("/"), MsFlags::MS_PRIVATE)
}

/// All of the machine's root but /scr, in the new one.
fn copy_root(new: &Path) -> Result<()> {
    for entry in fs::read_dir("/").context("listing /")? {
        let entry = entry.context("listing /")?;
        let (from, name) = (entry.path(), entry.file_name());
        if name == OsStr::new("scr") || name == OsStr::new("lost+found") {
            continue;
        }
        let to = new.join(&name);
        let kind = entry
            .file_type()
            .with_context(|| format!("reading {}", from.display()))?;
        if kind.is_symlink() {
            let target =
                fs::read_link(&from).with_context(|| format!("reading {}", from.display()))?;
            symlink(target, &to).with_context(|| format!("making {}", to.display()))?;
        } else if kind.is_dir() {
            fs::create_dir(&to).with_context(|| format!("making {}", to.display()))?;
            bind(&from, &to)?;
        } else if kind.is_file() {
            fs::write(&to, "").with_context(|| format!("making {}", to.display()))?;
            bind(&from, &to)?;
        }
    }
    fs::create_dir(new.join("scr")).context("making /scr")
}

fn tmpfs(at: &Path, options: &str) -> Result<()> {
    mount(
        Some("node"),
        at,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options),
    )
    .with_context(|| format!("mounting a tmpfs with {options} at {}", at.display()))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(
        Some(from),
        to,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("binding {} to {}", from.display(), to.display()))
}

fn set_propagation(of: &Path, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, of, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("setting the propagation of mounts at {}", of.display()))
}

/// Moves the calling process, still of one thread, into a node.
///
/// Looking whether the agent lives *after* going in is what makes kills certain: the warden looks
/// for the node's processes only when the agent is dead, so it either sees us or we see that.
pub(crate) fn enter(node: usize, place: Place) -> Result<()> {
    let name = network::name(node);
    let working_directory = std::env::current_dir();
    let agent = Process::open(place.pid)?.with_context(|| format!("{name} is dead"))?;
    setns(&agent, namespaces()).with_context(|| format!("entering {name}"))?;
    let link = fs::metadata("/proc/self/ns/net").context("reading our namespace")?;
    ensure!(
        link.ino() == place.network && !agent.wait_dead(Duration::ZERO)?,
        "{name} is dead"
    );
    // Going in leads to /. A directory that only the machine has cannot be kept.
    if let Ok(directory) = working_directory {
        let _ = chdir(&directory);
    }
    Ok(())
}

/// Moves the calling thread, and nothing else of its process, into a node's network.
pub(crate) fn enter_network(node: usize, place: Place) -> Result<()> {
    let name = network::name(node);
    let agent = Process::open(place.pid)?.with_context(|| format!("{name} is dead"))?;
    setns(&agent, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {name}"))?;
    let link = fs::metadata("/proc/thread-self/ns/net").context("reading our namespace")?;
    ensure!(link.ino() == place.network, "{name} is dead");
    Ok(())
}
