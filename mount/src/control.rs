//! The control socket: this node's coordinator, and commands.
//!
//! One thread a connection reads; what goes to the coordinator is queued and written by a thread of
//! its own, so that nobody who tells it something ever waits for it. Only this user and root are
//! heard. One coordinator at a time: a newer epoch takes over, an older one is refused, and so is
//! any below the epoch the supervisor asks for.
//!
//! Lock: `Inner`, a leaf. The filesystem is never called with it held.

use crate::errno::refusal_of;
use crate::space::Figures;
use crate::vfs::Vfs;
use nix::sys::socket::{getsockopt, sockopt};
use scrfs::config::Config;
use scrfs::control::{
    Answer, Command, DirectoryChange, FromDaemon, Hello, Level, PROTOCOL_VERSION, Refusal, Request,
    Role, ToDaemon, Welcome, read_frame, write_frame,
};
use scrfs::id::{DatasetId, Epoch};
use scrfs::layout::path::CachePaths;
use scrfs::layout::record::Phase;
use scrfs::name::Name;
use scrfs::process::Held;
use scrfs::stores::Stores;
use std::fmt::Display;
use std::io::{self, BufReader, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a caller may take to introduce itself.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// A supervisor that has said nothing for so long is gone.
const SUPERVISOR_SILENCE: Duration = Duration::from_secs(10);
/// Longest frame of anybody but the one coordinator: of callers there may be many.
const CALLER_FRAME_BYTES_MAX: u64 = 64 << 10;
/// Longest path a unix socket address holds, without its NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What does not change while the daemon lives.
#[derive(Debug)]
pub struct Facts {
    /// Node name.
    pub node: String,
    /// The job's cache directories, in order.
    pub stores: Stores,
    /// The effective configuration, as JSON.
    pub config: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// What kinds of stores they are in, in words.
    pub words: Vec<String>,
}

/// What a command asks of the daemon as a process.
#[derive(Debug)]
pub enum ProcessCommand {
    /// See [`Command::Attach`].
    Attach { supervisor: String, token: u64 },
    /// See [`Command::Unmount`]; the answer goes to the sender.
    Unmount {
        finish_flushes: bool,
        purge: bool,
        answer: Sender<Answer>,
    },
}

#[derive(Debug)]
struct Link {
    serial: u64,
    epoch: Epoch,
    ready: bool,
    stream: UnixStream,
    process: Option<OwnedFd>,
    pid: i32,
    held: Held,
}

#[derive(Debug, Default)]
struct Inner {
    serial: u64,
    link: Option<Link>,
    epoch_min: Epoch,
    /// Of the supervisor we report to.
    supervisor: u64,
    /// When it was last heard.
    ordered: Option<Instant>,
}

/// The server of the control socket.
#[derive(Debug)]
pub struct Server {
    vfs: Arc<Vfs>,
    facts: Facts,
    process: Sender<ProcessCommand>,
    inner: Mutex<Inner>,
    /// A coordinator has gone, or its recovery has ended.
    changed: Condvar,
}

/// An address that is short enough, for a socket whose path may not be. The descriptor must live
/// while the address is used.
pub fn short_address(path: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    use std::os::fd::AsRawFd;
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok((path.to_owned(), None));
    }
    let directory = std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
    let name = path.file_name().unwrap_or_default();
    let short = PathBuf::from(format!("/proc/{}/fd", std::process::id()))
        .join(directory.as_raw_fd().to_string())
        .join(name);
    Ok((short, Some(directory.into())))
}

/// Calls a daemon.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (address, _directory) = short_address(socket)?;
    UnixStream::connect(address)
}

/// Calls a daemon as a command does; the effective configuration is its greeting.
fn greet(socket: &Path, patience: Option<Duration>) -> io::Result<(UnixStream, String)> {
    let mut stream = connect(socket)?;
    stream.set_read_timeout(patience)?;
    write_frame(
        &mut stream,
        &Hello {
            version: PROTOCOL_VERSION,
            role: Role::Command,
        },
    )?;
    match read_frame::<Welcome>(&mut stream)? {
        Some(Welcome::Accepted { config, .. }) => Ok((stream, config)),
        Some(Welcome::Refused(why)) => Err(io::Error::other(why)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Asks a daemon one thing.
pub fn ask(socket: &Path, command: &Command, patience: Option<Duration>) -> io::Result<Answer> {
    let (mut stream, _) = greet(socket, patience)?;
    write_frame(&mut stream, command)?;
    read_frame::<Answer>(&mut stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The effective configuration of a daemon.
pub fn configuration(socket: &Path, patience: Duration) -> io::Result<Config> {
    let (_, config) = greet(socket, Some(patience))?;
    serde_json::from_str(&config).map_err(io::Error::from)
}

impl Server {
    /// A server; [`Self::serve`] starts it.
    pub fn new(vfs: Arc<Vfs>, facts: Facts, process: Sender<ProcessCommand>) -> Arc<Self> {
        let inner = Mutex::default();
        Arc::new(Self {
            vfs,
            facts,
            process,
            inner,
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers callers from now on, on threads of its own.
    pub fn serve(self: &Arc<Self>, listener: UnixListener) -> io::Result<()> {
        let server = Arc::clone(self);
        let accept = move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => {
                        let server = Arc::clone(&server);
                        let talk = move || {
                            if let Err(error) = server.talk(stream) {
                                tracing::warn!(%error, "a control connection ended");
                            }
                        };
                        if let Err(error) = spawn("control", talk) {
                            tracing::error!(%error, "no thread for a control connection");
                        }
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: do not spin.
                        tracing::error!(%error, "cannot accept on the control socket");
                        std::thread::park_timeout(Duration::from_millis(100));
                    }
                }
            }
        };
        spawn("accept", accept)
    }

    /// The epoch whose coordinator is connected, and whether its recovery has ended.
    pub fn epoch(&self) -> Option<(Epoch, bool)> {
        self.lock()
            .link
            .as_ref()
            .map(|link| (link.epoch, link.ready))
    }

    /// Waits until recovery has ended, so that programs find what was there before; `false` when it
    /// takes longer than that.
    pub fn wait_ready(&self, patience: Duration) -> bool {
        let is_ready = |inner: &mut Inner| inner.link.as_ref().is_some_and(|link| link.ready);
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), patience, |inner| !is_ready(inner))
            .unwrap_or_else(PoisonError::into_inner);
        inner.link.as_ref().is_some_and(|link| link.ready)
    }

    fn is_ready(&self) -> bool {
        self.lock().link.as_ref().is_some_and(|link| link.ready)
    }

    /// Reports to this supervisor from now on, unless a later one is at work here.
    pub fn attach(&self, supervisor: String, token: u64, number: u64) -> Result<(), String> {
        let mut inner = self.lock();
        let is_heard = inner
            .ordered
            .is_some_and(|heard| heard.elapsed() < SUPERVISOR_SILENCE);
        if number < inner.supervisor && is_heard {
            return Err("a later `scrfs run` has this node".into());
        }
        inner.supervisor = number;
        // With the lock held: the order of these is the order of the supervisors.
        let _ = self
            .process
            .send(ProcessCommand::Attach { supervisor, token });
        Ok(())
    }

    /// The supervisor's order: no epoch below this. Kills the coordinator of one.
    pub fn require_epoch(&self, epoch_min: Epoch) {
        let mut inner = self.lock();
        inner.ordered = Some(Instant::now());
        inner.epoch_min = inner.epoch_min.max(epoch_min);
        let Some(link) = inner.link.take_if(|link| link.epoch < epoch_min) else {
            return;
        };
        drop(inner);
        tracing::warn!(epoch = %link.epoch, pid = link.pid, %epoch_min, "killing the coordinator");
        kill(&link);
        self.give_up(&link);
    }

    /// Tells the coordinator to finish and waits until it has gone; `true` when it has.
    pub fn stop_coordinator(&self, finish_flushes: bool, patience: Option<Duration>) -> bool {
        self.vfs
            .requests()
            .tell(FromDaemon::Stop { finish_flushes });
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut inner = self.lock();
        while let Some(link) = &inner.link {
            let step = Duration::from_millis(200);
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                tracing::warn!(pid = link.pid, "the coordinator did not stop in time");
                return false;
            }
            let waited = self.changed.wait_timeout(inner, step);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            self.give_up_the_dead();
            inner = self.lock();
        }
        true
    }

    fn talk(self: &Arc<Self>, mut stream: UnixStream) -> io::Result<()> {
        let peer = getsockopt(&stream, sockopt::PeerCredentials)?;
        if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::other(format!(
                "user {} is not heard here",
                peer.uid()
            )));
        }
        stream.set_read_timeout(Some(HELLO_PATIENCE))?;
        let Some(hello) = read_frame::<Hello>(&mut (&stream).take(CALLER_FRAME_BYTES_MAX))? else {
            return Ok(());
        };
        stream.set_read_timeout(None)?;
        if hello.version != PROTOCOL_VERSION {
            let why = format!(
                "control protocol {}, this is {PROTOCOL_VERSION}",
                hello.version
            );
            return write_frame(&mut stream, &Welcome::Refused(why));
        }
        match hello.role {
            Role::Command => {
                write_frame(&mut stream, &self.welcome())?;
                loop {
                    let mut frame = (&stream).take(CALLER_FRAME_BYTES_MAX);
                    let Some(command) = read_frame::<Command>(&mut frame)? else {
                        return Ok(());
                    };
                    write_frame(&mut stream, &self.answer(command))?;
                }
            }
            Role::Coordinator {
                epoch,
                rank,
                size,
                slot,
                pid: _,
            } => {
                let Some(serial) = self.admit(&stream, epoch, peer.pid())? else {
                    let why = format!("{epoch} is over");
                    return write_frame(&mut stream, &Welcome::Refused(why));
                };
                tracing::info!(%epoch, %rank, size, %slot, "coordinator connected");
                let result = self.converse(stream, slot);
                self.left(serial);
                tracing::info!(%epoch, "coordinator gone");
                result
            }
        }
    }

    fn welcome(&self) -> Welcome {
        Welcome::Accepted {
            node: self.facts.node.clone(),
            cache: self.facts.stores.home().root().to_owned(),
            further: (self.facts.stores.iter().skip(1))
                .map(|store| store.root().to_owned())
                .collect(),
            config: self.facts.config.clone(),
            mountpoint: self.facts.mountpoint.clone(),
        }
    }

    /// Makes a coordinator the one that counts; `None` when it comes too late.
    fn admit(&self, stream: &UnixStream, epoch: Epoch, pid: i32) -> io::Result<Option<u64>> {
        let process = open_process(pid);
        let mut inner = self.lock();
        let newest = inner.link.as_ref().map_or(Epoch(0), |link| link.epoch);
        if epoch < inner.epoch_min.max(newest) {
            return Ok(None);
        }
        inner.serial += 1;
        let serial = inner.serial;
        let stream = stream.try_clone()?;
        let link = Link {
            serial,
            epoch,
            ready: false,
            stream,
            process,
            pid,
            held: Held::default(),
        };
        let old = inner.link.replace(link);
        drop(inner);
        if let Some(old) = old {
            let _ = old.stream.shutdown(Shutdown::Both);
            self.vfs.coordinator_gone();
        }
        Ok(Some(serial))
    }

    /// Kills the coordinator; it is as one that is gone.
    pub fn kill_coordinator(&self) {
        let link = self.lock().link.take();
        if let Some(link) = link {
            kill(&link);
            self.give_up(&link);
        }
    }

    /// Gives up a coordinator that was killed and cannot go, because it waits in the kernel for a file system that
    /// does not answer: its end of the connection stays open until then.
    pub fn give_up_the_dead(&self) {
        let is_dead = |link: &mut Link| link.held.look(link.pid, Instant::now());
        let dead = self.lock().link.take_if(is_dead);
        let Some(link) = dead else { return };
        tracing::warn!(
            pid = link.pid,
            "the coordinator is dead, but is held by a file system that does not answer"
        );
        self.give_up(&link);
    }

    fn give_up(&self, link: &Link) {
        let _ = link.stream.shutdown(Shutdown::Both);
        self.vfs.coordinator_gone();
        self.changed.notify_all();
    }

    fn left(&self, serial: u64) {
        let mut inner = self.lock();
        let mine = inner.link.take_if(|link| link.serial == serial).is_some();
        drop(inner);
        if mine {
            self.vfs.coordinator_gone();
            self.changed.notify_all();
        }
    }

    fn converse(&self, mut stream: UnixStream, slot: scrfs::id::Slot) -> io::Result<()> {
        write_frame(&mut stream, &self.welcome())?;
        let (outbox, outgoing) = mpsc::channel();
        let writer = stream.try_clone()?;
        spawn("coordinator-out", move || write_all(writer, &outgoing))?;
        self.vfs.set_slot(slot);
        if let Some(verdicts) = self.vfs.verdicts() {
            // Before any question.
            let _ = outbox.send(verdicts);
        }
        self.vfs
            .requests()
            .connect(outbox.clone(), |what| self.vfs.settled(what));
        let mut incoming = BufReader::new(stream);
        while let Some(message) = read_frame::<ToDaemon>(&mut incoming)? {
            self.handle(message, &outbox);
        }
        Ok(())
    }

    fn handle(&self, message: ToDaemon, outbox: &Sender<FromDaemon>) {
        let vfs = &self.vfs;
        let done = |sequence: u64, result: Result<(), Refusal>| {
            // It is going away; the reader will see the end of the stream.
            let _ = outbox.send(FromDaemon::Done { sequence, result });
        };
        match message {
            ToDaemon::Dataset { sequence, record } => {
                let removed = record.is_removed();
                let dataset = record.id;
                let is_new =
                    record.phase == Phase::Open && self.is_ready() && vfs.gate(dataset).is_none();
                vfs.publish(*record);
                if removed {
                    // Before the answer: what programs have open stays until they close it.
                    vfs.settings().space.tell_in_use(vfs);
                }
                let lacks_room = is_new && vfs.settings().space.lacks_room(vfs, dataset);
                if !(lacks_room && self.done_with_room(sequence, dataset, outbox.clone())) {
                    done(sequence, Ok(()));
                }
            }
            ToDaemon::Forget { sequence, dataset } => {
                vfs.forget_dataset(dataset);
                done(sequence, Ok(()));
            }
            ToDaemon::Pointers {
                sequence,
                all,
                records,
            } => {
                vfs.publish_pointers(all, records);
                done(sequence, Ok(()));
            }
            ToDaemon::Change {
                sequence,
                dataset,
                change,
            } => {
                let outbox = outbox.clone();
                let answer = move |result| {
                    let _ = outbox.send(FromDaemon::Done { sequence, result });
                };
                match change {
                    DirectoryChange::TellHidden => vfs.tell_hidden(dataset, answer),
                    DirectoryChange::Hide { names } => vfs.hide_all(dataset, names, answer),
                    change => {
                        let result = vfs.carry_out(dataset, &change);
                        answer(result.map_err(|error| refusal_of(&error)));
                    }
                }
            }
            ToDaemon::Quiesce { dataset, settle_ms } => {
                if let Some(gate) = vfs.gate(dataset) {
                    vfs.settings().space.voting(dataset);
                    gate.quiesce(Duration::from_millis(settle_ms));
                }
            }
            ToDaemon::Freeze {
                sequence,
                dataset,
                generation,
            } => {
                let frozen = vfs.gate(dataset).ok_or(Refusal::Missing).and_then(|gate| {
                    if gate.freeze(generation) {
                        Ok(())
                    } else {
                        Err(Refusal::Busy)
                    }
                });
                done(sequence, frozen);
            }
            ToDaemon::Thaw { dataset } => {
                vfs.settings().space.voted(dataset);
                if let Some(gate) = vfs.gate(dataset) {
                    gate.thaw();
                }
            }
            ToDaemon::Reply { request, result } => vfs.requests().reply(request, result),
            ToDaemon::Verdict { request, verdict } => {
                vfs.requests().reply_verdict(request, verdict);
            }
            ToDaemon::Piece { request, result } => {
                vfs.requests().reply_piece(request, result.map(Vec::from));
            }
            ToDaemon::Moved { dataset } => vfs.moved(dataset),
            ToDaemon::Progress(progress) => vfs.set_progress(progress),
            ToDaemon::Due(datasets) => vfs.set_due(datasets),
            ToDaemon::Shelf(shelf) => vfs.set_shelf(shelf),
            ToDaemon::Learnt(learnt) => vfs.set_learnt(learnt),
            ToDaemon::Missing {
                dataset,
                slots,
                weak,
            } => vfs.set_missing(dataset, slots, weak),
            ToDaemon::Verified { dataset, findings } => vfs.set_findings(dataset, findings),
            ToDaemon::Nodes(nodes) => vfs.set_nodes(nodes),
            ToDaemon::Ready { restart, new_run } => {
                vfs.ready(restart, new_run);
                if let Some(link) = &mut self.lock().link {
                    link.ready = true;
                }
                self.changed.notify_all();
            }
        }
    }

    /// Says that a new dataset is there when there is room for it, or none comes; whether it will.
    fn done_with_room(
        &self,
        sequence: u64,
        dataset: DatasetId,
        outbox: Sender<FromDaemon>,
    ) -> bool {
        let vfs = Arc::clone(&self.vfs);
        let waiting = spawn("room", move || {
            let waited = vfs.settings().space.wait_for_room(&vfs, dataset);
            tracing::info!(%dataset, ?waited, "a new dataset has waited for room");
            let result = Ok(());
            let _ = outbox.send(FromDaemon::Done { sequence, result });
        });
        waiting
            .inspect_err(|error| tracing::warn!(%error, "cannot wait for room"))
            .is_ok()
    }

    fn answer(&self, command: Command) -> Answer {
        match command {
            Command::Status => Answer::Ok(self.status().to_string()),
            Command::Room => {
                let room = self.vfs.settings().space.room(&self.vfs);
                Answer::Ok(serde_json::json!(room).to_string())
            }
            Command::Commit { name } => match self.find(&name) {
                Ok(dataset) => self.request(
                    &name,
                    Request::Commit {
                        dataset,
                        to: name.clone(),
                        settle_ms: 0,
                    },
                ),
                Err(answer) => answer,
            },
            Command::Wait { name, level } => match self.find(&name) {
                Ok(dataset) if self.has_reached(dataset, level) => Answer::Ok(String::new()),
                Ok(dataset) => self.request(&name, Request::Wait { dataset, level }),
                Err(answer) => answer,
            },
            Command::Flush { name } => match self.find(&name) {
                Ok(dataset) => self.request(&name, Request::Flush { dataset }),
                Err(answer) => answer,
            },
            Command::Fetch { name } => self.request(&name, Request::Fetch { name: name.clone() }),
            Command::End => self.request(&"what is due", Request::End),
            Command::Attach {
                supervisor,
                token,
                number,
            } => match self.attach(supervisor, token, number) {
                Ok(()) => Answer::Ok(String::new()),
                Err(why) => Answer::Refused(Refusal::Busy, why),
            },
            Command::Verify { dataset } => self.verify(dataset),
            Command::Unmount {
                finish_flushes,
                purge,
            } => {
                let (answer, answered) = mpsc::channel();
                let unmount = ProcessCommand::Unmount {
                    finish_flushes,
                    purge,
                    answer,
                };
                let _ = self.process.send(unmount);
                answered.recv().unwrap_or_else(|_| {
                    Answer::Refused(Refusal::Failed, "the daemon is ending".into())
                })
            }
        }
    }

    fn find(&self, name: &Name) -> Result<DatasetId, Answer> {
        let names = self.vfs.read_names();
        let by_name = |found: &&crate::vfs::namespace::Dataset| found.record.name == *name;
        let found = names
            .find(name)
            .or_else(|| names.iter().filter(by_name).last());
        found
            .map(|found| found.record.id)
            .ok_or_else(|| Answer::Refused(Refusal::Missing, format!("no dataset {name} here")))
    }

    fn has_reached(&self, dataset: DatasetId, level: Level) -> bool {
        let names = self.vfs.read_names();
        let Some(found) = names.get(dataset) else {
            return false;
        };
        match level {
            Level::Sealed => found.record.phase == Phase::Sealed,
            Level::Protected => {
                let safe = found.record.protected.is_some() && !found.weak;
                safe || found.record.flushed.is_some()
            }
            Level::Flushed => found.record.flushed.is_some(),
        }
    }

    fn request(&self, name: &dyn Display, what: Request) -> Answer {
        let (done, result) = mpsc::channel();
        self.vfs.requests().ask(
            what,
            Box::new(move |answer| {
                // A command that has gone waits for nothing.
                let _ = done.send(answer);
            }),
        );
        match result.recv().unwrap_or(Err(Refusal::Failed)) {
            Ok(()) => Answer::Ok(String::new()),
            Err(refusal) => Answer::Refused(refusal, words(name, refusal)),
        }
    }

    fn verify(&self, dataset: DatasetId) -> Answer {
        let known = |names: &crate::vfs::namespace::Names| {
            let found = names.get(dataset);
            found.map(|found| (found.record.name.clone(), found.findings.clone()))
        };
        let Some((name, _)) = known(&self.vfs.read_names()) else {
            return Answer::Refused(Refusal::Missing, format!("no dataset {dataset} here"));
        };
        match self.request(&name, Request::Verify { dataset }) {
            Answer::Ok(_) => {}
            refused @ Answer::Refused(..) => return refused,
        }
        match known(&self.vfs.read_names()).and_then(|(_, findings)| findings) {
            Some(findings) => Answer::Ok(serde_json::json!(findings).to_string()),
            // It went in between.
            None => Answer::Refused(Refusal::Missing, words(&name, Refusal::Missing)),
        }
    }

    fn stores(&self) -> Vec<serde_json::Value> {
        let stores = self.facts.stores.iter().zip(&self.facts.words);
        let figures = self.vfs.settings().space.each();
        let of = |((store, words), figures): ((&CachePaths, &String), io::Result<Figures>)| {
            serde_json::json!({
                "path": store.root(),
                "store": words,
                "space": figures.ok(),
            })
        };
        stores.zip(figures).map(of).collect()
    }

    fn status(&self) -> serde_json::Value {
        let coordinator = self.epoch();
        serde_json::json!({
            "node": self.facts.node,
            "mountpoint": self.facts.mountpoint,
            "cache": self.facts.stores.home().root(),
            "store": self.facts.words.first(),
            "stores": self.stores(),
            "space": self.vfs.settings().space.figures().ok(),
            "pid": std::process::id(),
            "data_path": self.vfs.data_path(),
            "passthrough": self.vfs.has_passthrough(),
            "epoch": coordinator.map(|(epoch, _)| epoch.0),
            "ready": coordinator.is_some_and(|(_, ready)| ready),
            "writers": self.vfs.writers(),
            "uptime_seconds": self.vfs.started().elapsed().as_secs(),
            "datasets": self.vfs.statuses(),
            "nodes": self.vfs.nodes_json(),
        })
    }
}

fn words(name: &dyn Display, refusal: Refusal) -> String {
    let why = match refusal {
        Refusal::Busy => "is still being written, or another commit of it is under way",
        Refusal::Exists => "cannot take that name: it is taken",
        Refusal::Missing => "is not known to the coordinators",
        Refusal::NotEmpty => "is not empty",
        Refusal::ReadOnly => "is sealed already",
        Refusal::NoSpace => "does not fit: no space on some node",
        Refusal::Failed => "failed; the coordinator's log says why",
        Refusal::Damaged => "is damaged; the coordinator's log says where",
        Refusal::Unavailable => "is not to be had just now; the coordinator's log says why",
        Refusal::Again => "has no coordinator; is scrfs-coordinator running? see daemon.log",
    };
    format!("{name} {why}")
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map(drop)
}

fn write_all(mut stream: UnixStream, outgoing: &Receiver<FromDaemon>) {
    for message in outgoing {
        if let Err(error) = write_frame(&mut stream, &message) {
            tracing::debug!(%error, "the coordinator does not listen any more");
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Holds on to the process behind a connection, so that no other is ever killed in its place.
fn open_process(pid: i32) -> Option<OwnedFd> {
    crate::sys::open_process(pid).ok()
}

fn kill(link: &Link) {
    let Some(process) = &link.process else {
        tracing::error!(pid = link.pid, "the coordinator's process is out of reach");
        return;
    };
    if let Err(errno) = crate::sys::kill_process(process.as_fd()) {
        tracing::debug!(pid = link.pid, %errno, "the coordinator is dead already");
    }
}
