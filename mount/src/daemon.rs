//! The daemon as a process: lock, socket, mount, signals, its coordinator, and the end.
//!
//! What can fail for a reason the user can mend is checked before the process splits in two, while
//! stderr is still theirs; after that the ready pipe carries the error. The parent returns only when the
//! mount answers; with a coordinator of our own, only when programs find all that was there before.
//!
//! Invariants: one daemon a cache (a lock on `daemon.lock` that dies with the process); nothing in
//! the cache is changed but by the coordinator, except by `--purge` after the unmount; the daemon is never
//! an MPI process.

mod file;
mod solo;

use crate::cli::Failure;
use crate::control::{Facts, ProcessCommand, Server, short_address};
use crate::fuse::{MountSettings, Mounted};
use crate::heartbeat::{Heartbeat, Pulse};
use crate::patience::patiently;
use crate::space::Spaces;
use crate::store::{self, Place};
use crate::vfs::{Settings, Vfs, alias};
use crate::{halt, mountpoint, sys};
use anyhow::{Context, anyhow, bail, ensure};
pub use file::{DaemonFile, read_daemon_file};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};
use scrfs::config::{Config, Provenance};
use scrfs::control::{Answer, Refusal};
use scrfs::layout::path::CachePaths;
use scrfs::store::posix::PosixStore;
use scrfs::stores::owner;
pub use solo::find_program;
use solo::solo;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long mounts in other namespaces may outlive this one's.
const ELSEWHERE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the mount may take to answer.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// How long the lock of a store may stay with a daemon that was just killed.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How long a coordinator of our own may take to learn what there was before.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(60);

/// Everything that is asked of a mount.
pub struct Plan {
    /// Where, absolute.
    pub mountpoint: PathBuf,
    /// Effective configuration.
    pub config: Config,
    /// Where its values came from.
    pub provenance: Provenance,
    /// Node name.
    pub node: String,
    /// Supervisor, secret of this run, and the supervisor's number.
    pub supervisor: Option<(String, u64, u64)>,
    /// Start a coordinator of our own: a cluster of one.
    pub solo: bool,
    /// Stay in the foreground.
    pub foreground: bool,
    /// FUSE options.
    pub mount: MountSettings,
}

/// How a start ended, for the process that asked for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Started {
    /// A daemon was there already.
    Already(DaemonFile),
    /// A new one is there.
    New(DaemonFile),
    /// It was served in the foreground, and has ended.
    Ended,
}

fn make_cache(cache: &CachePaths) -> Result<(), Failure> {
    let root = cache.root();
    let make = |path: &Path| match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    };
    let user = root.parent().unwrap_or(root);
    let made = make(user).and_then(|()| make(root)).and_then(|()| {
        let probe = root.join(".writable");
        File::create(&probe)?;
        std::fs::remove_file(&probe)
    });
    made.map_err(|error| {
        Failure::failed(anyhow!(
            "cannot write the cache {}: {error}; give another with --cache DIR",
            root.display()
        ))
    })?;
    for path in [user, root] {
        check_owned(path)?;
    }
    Ok(())
}

/// In a directory like /dev/shm anybody could have made it before us.
pub(crate) fn check_owned(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let found = std::fs::symlink_metadata(path)
        .map_err(|error| anyhow!("cannot look at the cache {shown}: {error}"))?;
    let mine = found.uid() == nix::unistd::geteuid().as_raw();
    if !found.is_dir() || !mine || found.permissions().mode() & 0o077 != 0 {
        return Err(anyhow!(
            "the cache {shown} must be a directory of yours with mode 0700"
        ));
    }
    Ok(())
}

fn check_prefix(prefix: &Path) -> Result<(), Failure> {
    // The coordinator asks the store.
    if scrfs::config::is_object_url(prefix) {
        return Ok(());
    }
    match std::fs::metadata(prefix) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Failure::failed(anyhow!(
            "the prefix {} is no directory",
            prefix.display()
        ))),
        Err(error) => Err(Failure::failed(anyhow!(
            "the prefix {} cannot be used: {error}; make it: mkdir -p {0}, or give another with \
             --prefix DIR",
            prefix.display()
        ))),
    }
}

/// Makes room for a mount, or says why there is none.
fn check_mountpoint(path: &Path) -> Result<(), Failure> {
    use mountpoint::Found;
    let shown = path.display();
    for _ in 0..8 {
        let found = mountpoint::look(path)
            .map_err(|error| Failure::failed(anyhow!("cannot look at {shown}: {error}")))?;
        let problem = match found {
            Found::Free => return Ok(()),
            Found::DeadScrfs => {
                tracing::warn!(mountpoint = %shown, "taking away the mount of a dead daemon");
                match mountpoint::unmount(path, true) {
                    Ok(()) => continue,
                    Err(error) => format!("{shown} is a dead scrfs mount that stays: {error}"),
                }
            }
            Found::LiveScrfs => {
                format!("{shown} is served by another scrfs; `scrfs unmount {shown}` ends it")
            }
            Found::Other(kind) => {
                format!(
                    "{shown} has another filesystem ({kind}) mounted on it; choose another \
                         directory"
                )
            }
            Found::NotDirectory => format!("{shown} is not a directory"),
            Found::Missing => format!("{shown} does not exist; make it: mkdir -p {shown}"),
        };
        return Err(Failure::failed(anyhow!(problem)));
    }
    Err(Failure::failed(anyhow!(
        "{shown} is under too many dead mounts; umount it by hand"
    )))
}

fn check_fuse() -> Result<(), Failure> {
    if !Path::new("/dev/fuse").exists() {
        return Err(Failure::failed(anyhow!(
            "this system has no /dev/fuse: load the fuse module, or pass the device into the \
             container (--device /dev/fuse)"
        )));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join("fusermount3").exists());
    if !nix::unistd::geteuid().is_root() && !found {
        return Err(Failure::failed(anyhow!(
            "fusermount3 is needed to mount as an ordinary user; install the package fuse3"
        )));
    }
    Ok(())
}

/// Who has the cache.
enum Claim {
    /// This process, with the lock.
    Mine(Flock<File>),
    /// The daemon that answers.
    Theirs(DaemonFile),
}

/// Takes the lock of the cache, or finds the daemon that holds it. A daemon that was just killed holds
/// it until its last thread is gone, one that just started does not answer yet: both for a moment.
fn claim(cache: &CachePaths) -> anyhow::Result<Claim> {
    let path = cache.lock();
    let mut lock = open_lock(&path)?;
    let deadline = Instant::now() + READY_PATIENCE;
    loop {
        lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Claim::Mine(lock)),
            Err((lock, Errno::EWOULDBLOCK)) => lock,
            Err((_, error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        };
        if let Some(file) = read_daemon_file(cache)
            && crate::control::connect(&file.socket).is_ok()
            && matches!(
                mountpoint::look(&file.mountpoint),
                Ok(mountpoint::Found::LiveScrfs)
            )
        {
            return Ok(Claim::Theirs(file));
        }
        if Instant::now() >= deadline {
            bail!("a daemon holds {} but does not answer", path.display());
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Takes the lock of a store that is not the first of its daemon.
fn claim_further(cache: &CachePaths) -> anyhow::Result<Flock<File>> {
    let path = cache.lock();
    let mut lock = open_lock(&path)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((lock, Errno::EWOULDBLOCK)) if Instant::now() < deadline => lock,
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "the store {} is in use by another daemon; give another --job or --cache",
                cache.root().display()
            ),
            Err((_, error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        };
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn open_lock(path: &Path) -> anyhow::Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// The first store.
fn home(places: &[Place]) -> anyhow::Result<&Place> {
    places.first().context("no [[store]] is configured")
}

/// Starts a daemon, or finds the one that is there.
pub fn start(plan: Plan) -> Result<Started, Failure> {
    let places = store::places(&plan.config)?;
    let cache = home(&places)?.cache.clone();
    check_fuse()?;
    patiently(&plan.config.prefix, || check_prefix(&plan.config.prefix))?;
    for place in &places {
        make_cache(&place.cache)?;
    }
    let lock = match claim(&cache)? {
        Claim::Mine(lock) => lock,
        Claim::Theirs(found) if found.mountpoint == plan.mountpoint => {
            if !owner::is_same(&found.prefix, &plan.config.prefix) {
                return Err(Failure::failed(anyhow!(
                    "{} is mounted with the prefix {}, not {}; `scrfs unmount {0}` ends that",
                    found.mountpoint.display(),
                    found.prefix.display(),
                    plan.config.prefix.display()
                )));
            }
            return Ok(Started::Already(found));
        }
        Claim::Theirs(found) => {
            return Err(Failure::failed(anyhow!(
                "the cache {} is in use by the daemon at {} (pid {}); give another --job or --cache",
                cache.root().display(),
                found.mountpoint.display(),
                found.pid
            )));
        }
    };
    let mut locks = vec![lock];
    for place in places.iter().skip(1) {
        locks.push(claim_further(&place.cache)?);
    }
    for place in &places {
        owner::claim(&PosixStore::new(), &place.cache, &plan.config.prefix)
            .map_err(|error| Failure::failed(error.into()))?;
    }
    check_mountpoint(&plan.mountpoint)?;
    if plan.foreground {
        crate::cli::log_to_stderr();
        serve(plan, &places, locks, None)?;
        return Ok(Started::Ended);
    }
    let (mut reader, writer) = io::pipe().context("cannot make a pipe")?;
    if sys::fork_daemon().context("cannot fork")?.is_some() {
        // The child holds the lock too; closing ours does not release it, unlocking would.
        std::mem::forget(locks);
        drop(writer);
        let mut words = String::new();
        reader
            .read_to_string(&mut words)
            .context("cannot read what the daemon says")?;
        return match words.strip_prefix("ready\n") {
            Some(file) => {
                let file = serde_json::from_str(file).context("the daemon spoke nonsense")?;
                Ok(Started::New(file))
            }
            None if words.is_empty() => Err(Failure::failed(anyhow!(
                "the daemon died while it started; see {}",
                cache.log().display()
            ))),
            None => Err(Failure::failed(anyhow!("{}", words.trim_end()))),
        };
    }
    drop(reader);
    let log = cache.log();
    let mut ready = Some(writer);
    let code = match detach(&log).and_then(|()| serve(plan, &places, locks, ready.take())) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{error:#}");
            if let Some(mut ready) = ready {
                let _ = writeln!(ready, "{error:#}");
            }
            1
        }
    };
    std::process::exit(code)
}

fn detach(log: &Path) -> anyhow::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&file)?;
    nix::unistd::chdir("/")?;
    crate::cli::log_to_stderr();
    Ok(())
}

/// Writes the log to a file of its name again, after the old one was renamed.
fn reopen_log(log: &Path) {
    let reopened = File::options()
        .create(true)
        .append(true)
        .open(log)
        .and_then(|file| Ok(nix::unistd::dup2_stderr(&file)?));
    match reopened {
        Ok(()) => tracing::info!("the log goes on here"),
        Err(error) => tracing::error!(log = %log.display(), %error, "cannot reopen the log"),
    }
}

/// Tells the service manager, if one started this process.
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

struct Running {
    mountpoint: PathBuf,
    /// Where the log goes; `None` in the foreground.
    log: Option<PathBuf>,
    vfs: Arc<Vfs>,
    ending: AtomicBool,
    /// What to do once it is unmounted.
    farewell: Mutex<Option<(bool, bool, Sender<Answer>)>>,
    ends: Sender<End>,
}

/// What ends the service.
enum End {
    /// The kernel has no use for it any more.
    Session(io::Result<()>),
    /// Somebody has had it unmounted here, and nobody here used it.
    Unmounted,
}

/// Waits for the end of the service. A mount that was copied into another mount namespace, as by containers that
/// start meanwhile, is the kernel's until that is gone, too; whoever had it unmounted does not wait for that.
fn await_end(ends: &Receiver<End>) -> (io::Result<()>, String) {
    let mut left_at = None;
    loop {
        let patience = match left_at {
            None => Duration::MAX,
            Some(at) => ELSEWHERE_PATIENCE.saturating_sub(Instant::elapsed(&at)),
        };
        match ends.recv_timeout(patience) {
            Ok(End::Session(served)) => return (served, String::new()),
            Ok(End::Unmounted) => left_at = left_at.or(Some(Instant::now())),
            Err(_) => {
                let words = "another mount namespace, such as a container's, still had it; for programs there it \
                             is gone";
                tracing::warn!("{words}");
                return (Ok(()), words.to_owned());
            }
        }
    }
}

fn serve(
    plan: Plan,
    places: &[Place],
    locks: Vec<Flock<File>>,
    ready: Option<io::PipeWriter>,
) -> anyhow::Result<()> {
    // Before any thread: all of them inherit it, and one waits for them.
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGIO,
    ] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let ready = Arc::new(Mutex::new(ready));
    let result = serve_inner(plan, places, signals, &ready);
    if let Err(error) = &result
        && let Some(mut ready) = ready.lock().unwrap_or_else(PoisonError::into_inner).take()
    {
        let _ = writeln!(ready, "{error:#}");
    }
    drop(locks);
    result
}

fn serve_inner(
    plan: Plan,
    places: &[Place],
    signals: SigSet,
    ready: &Arc<Mutex<Option<io::PipeWriter>>>,
) -> anyhow::Result<()> {
    let cache = &home(places)?.cache;
    let files = sys::raise_open_files();
    let socket = cache.socket();
    let _ = std::fs::remove_file(&socket);
    let (address, _directory) = short_address(&socket)?;
    let listener = UnixListener::bind(&address)
        .with_context(|| format!("cannot listen at {}", socket.display()))?;
    let file = DaemonFile {
        pid: std::process::id(),
        node: plan.node.clone(),
        mountpoint: plan.mountpoint.clone(),
        cache: cache.root().to_owned(),
        socket: socket.clone(),
        prefix: plan.config.prefix.clone(),
        job: plan.config.job.clone(),
    };
    let daemon_text = file.text()?;
    std::fs::write(cache.daemon(), &daemon_text)
        .with_context(|| format!("cannot write {}", cache.daemon().display()))?;
    let commit = plan.config.commit.clone();
    let grace = Duration::from_secs(commit.grace_seconds);
    let (uid, gid) = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    let space = Spaces::new(places, &plan.config).context("no [[store]] is configured")?;
    let space = Arc::new(space);
    let vfs = Vfs::new(Settings {
        files,
        in_place: plan
            .config
            .restart
            .bypass
            .then(|| plan.config.prefix.clone()),
        cache: cache.clone(),
        space: Arc::clone(&space),
        commit,
        grace,
        config_text: plan.provenance.to_string(),
        daemon_text: daemon_text.clone(),
        top: (uid, gid, 0o755),
        rules: scrfs::interval::Rules::of(&plan.config),
        asker: crate::vfs::advice::asker,
        clock: crate::heartbeat::now_millis,
        is_renaming: alias::is_renaming,
        is_removing: alias::is_removing,
        is_reaching: alias::is_reaching,
    });
    vfs.load()
        .with_context(|| format!("cannot read {}", cache.datasets().display()))?;
    space.bound(&vfs);
    let mounted = Mounted::new(&vfs, &plan.mountpoint, &plan.mount)
        .with_context(|| format!("cannot mount on {}", plan.mountpoint.display()))?;
    tracing::info!(mountpoint = %plan.mountpoint.display(), files, node = plan.node, "mounted");

    let (process, commands) = mpsc::channel();
    let facts = Facts {
        node: plan.node.clone(),
        stores: space.stores().clone(),
        config: serde_json::to_string(&plan.config)?,
        mountpoint: plan.mountpoint.clone(),
        words: places.iter().map(|place| place.words.clone()).collect(),
    };
    let server = Server::new(Arc::clone(&vfs), facts, process);
    server.serve(listener)?;
    let (ends, ended) = mpsc::channel();
    let running = Arc::new(Running {
        mountpoint: plan.mountpoint.clone(),
        log: (!plan.foreground).then(|| cache.log()),
        vfs: Arc::clone(&vfs),
        ending: AtomicBool::new(false),
        farewell: Mutex::new(None),
        ends,
    });
    let pulse = Arc::new(Pulse {
        vfs: Arc::clone(&vfs),
        server: Arc::clone(&server),
        node: plan.node.clone(),
    });
    if let Some((supervisor, token, number)) = plan.supervisor.clone() {
        // Nobody was here before.
        let _ = server.attach(supervisor, token, number);
    }
    thread("signals", {
        let running = Arc::clone(&running);
        move || watch_signals(&running, &signals)
    })?;
    thread("commands", {
        let running = Arc::clone(&running);
        move || obey(&running, &pulse, &commands)
    })?;
    thread("clock", {
        let (running, server) = (Arc::clone(&running), Arc::clone(&server));
        move || {
            while !running.ending.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(100));
                server.give_up_the_dead();
                running.vfs.requests().expire(grace);
                running.vfs.propose();
            }
        }
    })?;
    thread("space", {
        let running = Arc::clone(&running);
        move || space.run(&running.vfs, || running.ending.load(Ordering::Relaxed))
    })?;
    if plan.solo {
        let running = Arc::clone(&running);
        let prefix = plan.config.prefix.clone();
        thread("halt", move || {
            halt::watch(&running.vfs, &prefix, || {
                running.ending.load(Ordering::Relaxed)
            });
        })?;
    }
    let solo = if plan.solo {
        let running = Arc::clone(&running);
        Some(
            std::thread::Builder::new()
                .name("solo".into())
                .spawn(move || solo(&running, &socket))?,
        )
    } else {
        None
    };
    thread("ready", {
        let (ready, mountpoint) = (Arc::clone(ready), plan.mountpoint.clone());
        let (server, is_solo) = (Arc::clone(&server), plan.solo);
        let cache_root = cache.root().to_owned();
        move || {
            // Answered by the mount itself: so it is served.
            let answered = std::fs::metadata(mountpoint.join(".scr"))
                .map(drop)
                .with_context(|| format!("the mount {} does not answer", mountpoint.display()))
                .and_then(|()| {
                    // A program that sees no checkpoint starts from nothing: so what there is comes
                    // first. With others, the launcher of the coordinators waits for that.
                    ensure!(
                        !is_solo || server.wait_ready(RECOVERY_PATIENCE),
                        "{} is mounted, but after {} s it is not known what it holds; daemon.log \
                         in {} tells why",
                        mountpoint.display(),
                        RECOVERY_PATIENCE.as_secs(),
                        cache_root.display()
                    );
                    Ok(())
                });
            if answered.is_ok() {
                notify(sd_notify::NotifyState::Ready);
            }
            let mut ready = ready.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(mut ready) = ready.take() {
                let _ = match answered {
                    Ok(_) => write!(ready, "ready\n{daemon_text}"),
                    Err(error) => writeln!(ready, "{error:#}"),
                };
            }
        }
    })?;

    thread("session", {
        let running = Arc::clone(&running);
        move || {
            // Whoever waits for the end hears of it, also when a request could not be served.
            let served = panic::catch_unwind(AssertUnwindSafe(|| mounted.run()));
            let served = served.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
            // Nobody listens to one that is left to other mount namespaces.
            let _ = running.ends.send(End::Session(served));
        }
    })?;
    let (served, words) = await_end(&ended);
    running.ending.store(true, Ordering::Relaxed);
    tracing::info!("unmounted");
    let farewell = running
        .farewell
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let (finish, purge, answer) = match farewell {
        Some((finish, purge, answer)) => (finish, purge, Some(answer)),
        None => (false, false, None),
    };
    let patience = if finish {
        None
    } else {
        Some(Duration::from_secs(5))
    };
    let is_stopped = server.stop_coordinator(finish, patience);
    if let Some(solo) = solo {
        if !is_stopped {
            server.kill_coordinator();
        }
        let _ = solo.join();
    }
    let _ = std::fs::remove_file(cache.socket());
    let _ = std::fs::remove_file(cache.daemon());
    let mut last = Answer::Ok(words);
    if purge && let Err(error) = purge_stores(places) {
        last = Answer::Refused(
            Refusal::Failed,
            format!("unmounted, but not purged: {error}"),
        );
    }
    if let Some(answer) = answer {
        let _ = answer.send(last);
        // The connection's thread has it; give it the moment it takes to write.
        std::thread::park_timeout(Duration::from_millis(100));
    }
    served.context("the FUSE session failed")
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(work)?;
    Ok(())
}

/// The further ones first: what home does not know of any more is taken for what home has lost.
fn purge_stores(places: &[Place]) -> io::Result<()> {
    for place in places.iter().rev() {
        match place.is_private {
            true => store::unmount_private(place.cache.root())?,
            false => purge_cache(&place.cache)?,
        }
    }
    Ok(())
}

/// Empties the job's cache; the lock file stays, because it is held.
fn purge_cache(cache: &CachePaths) -> io::Result<()> {
    for entry in std::fs::read_dir(cache.root())? {
        let entry = entry?;
        if entry.path() == cache.lock() {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn watch_signals(running: &Running, signals: &SigSet) {
    loop {
        match signals.wait() {
            // The terminal it was started from is gone, or the log was moved: no reason to go.
            Ok(Signal::SIGHUP) => {
                if let Some(log) = &running.log {
                    reopen_log(log);
                }
            }
            // Somebody opened a file while it was asked for writers.
            Ok(Signal::SIGIO) | Err(_) => {}
            Ok(signal) => {
                if running.ending.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%signal, "again: leaving at once");
                    std::process::exit(1);
                }
                tracing::info!(%signal, "unmounting");
                notify(sd_notify::NotifyState::Stopping);
                let Err(error) = mountpoint::unmount(&running.mountpoint, false) else {
                    // It may have ended by itself.
                    let _ = running.ends.send(End::Unmounted);
                    continue;
                };
                tracing::warn!(%error, "in use: it goes when its last user does");
                if let Err(error) = mountpoint::unmount(&running.mountpoint, true) {
                    tracing::error!(%error, "cannot unmount");
                    std::process::exit(1);
                }
            }
        }
    }
}

fn obey(running: &Running, pulse: &Arc<Pulse>, commands: &Receiver<ProcessCommand>) {
    let mut heartbeat = None;
    for command in commands {
        match command {
            ProcessCommand::Attach { supervisor, token } => {
                tracing::info!(supervisor, "reporting to this supervisor");
                drop(heartbeat.take());
                match Heartbeat::start(Arc::clone(pulse), &supervisor, token) {
                    Ok(started) => heartbeat = Some(started),
                    Err(error) => tracing::error!(supervisor, %error, "no heartbeat"),
                }
            }
            ProcessCommand::Unmount {
                finish_flushes,
                purge,
                answer,
            } => {
                let mut farewell = running
                    .farewell
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *farewell = Some((finish_flushes, purge, answer));
                match mountpoint::unmount(&running.mountpoint, false) {
                    Ok(()) => {
                        // It may have ended by itself.
                        let _ = running.ends.send(End::Unmounted);
                    }
                    Err(error) => {
                        let shown = running.mountpoint.display();
                        let words = format!(
                            "cannot unmount {shown}: {error}; `fuser -vm {shown}` lists who uses it"
                        );
                        if let Some((_, _, answer)) = farewell.take() {
                            let _ = answer.send(Answer::Refused(Refusal::Busy, words));
                        }
                    }
                }
            }
        }
    }
}
