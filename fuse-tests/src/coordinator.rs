//! A coordinator of a cluster of one, for tests: it grants, quiesces, freezes and seals.
//!
//! It writes the same records as the real one and keeps the order *record on disk, then daemon told,
//! then program answered*. It computes no redundancy, copies nothing to the prefix, and trusts the
//! disk. Of what lies on other nodes it knows what the test says ([`Elsewhere`]).

use crate::elsewhere::{self, Elsewhere};
use scrfs::config::{Class, Config};
use scrfs::control::{
    FromDaemon, Hello, PROTOCOL_VERSION, PointerChange, Refusal, Request, Role, ToDaemon, Welcome,
    read_frame, write_frame,
};
use scrfs::id::{DatasetId, Epoch, Rank, Slot};
use scrfs::interval::{Learnt, Question, Rounds, Rules, Situation, Times};
use scrfs::layout::envelope::{self, Kind};
use scrfs::layout::path::{CachePaths, Keep, parse_dataset_directory};
use scrfs::layout::pointer::{PointerRecord, Pointers, Version};
use scrfs::layout::record::{DatasetRecord, EpochRecord, PartSummary, Phase, Seal};
use scrfs::name::Name;
use scrfs::redundancy::Scheme;
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How a test wants it to behave.
#[derive(Clone, Debug)]
pub struct Manners {
    /// How long a commit waits for writers.
    pub grace: Duration,
    /// Answer nothing of programs' requests.
    pub silent: bool,
    /// Stop after freezing, as if it died before the seal.
    pub die_frozen: bool,
    /// Programs start anew with it: what is open was left behind.
    pub new_run: bool,
    /// Parts of other nodes in every dataset that is sealed.
    pub elsewhere: Option<Elsewhere>,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(10),
            silent: false,
            die_frozen: false,
            new_run: false,
            elsewhere: None,
        }
    }
}

struct Commit {
    dataset: DatasetId,
    to: Name,
    requests: Vec<u64>,
    settle_ms: u64,
    deadline: Instant,
}

/// What a frame's `Done` is waited for.
enum Then {
    Reply(u64),
    Freeze(DatasetId),
    Nothing,
}

struct Player {
    stream: UnixStream,
    cache: CachePaths,
    store: PosixStore,
    epoch: Epoch,
    manners: Manners,
    sequence: u64,
    awaited: BTreeMap<u64, Then>,
    datasets: BTreeMap<DatasetId, DatasetRecord>,
    last: u64,
    commits: Vec<Commit>,
    pointers: Pointers,
    last_version: u64,
    rules: Rules,
    rounds: Rounds,
    recovered: u64,
}

/// A running one; dropping it hangs up.
pub struct Coordinator {
    stream: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Coordinator {
    /// Connects to the daemon at `socket` as the coordinator of `epoch`.
    pub fn start(socket: &Path, epoch: u64, manners: Manners) -> std::io::Result<Self> {
        let epoch = Epoch(epoch);
        let mut stream = scrfs_mount::control::connect(socket)?;
        let role = Role::Coordinator {
            epoch,
            rank: Rank(0),
            size: 1,
            slot: Slot(0),
            pid: std::process::id(),
        };
        write_frame(
            &mut stream,
            &Hello {
                version: PROTOCOL_VERSION,
                role,
            },
        )?;
        let (cache, config) = match read_frame::<Welcome>(&mut stream)? {
            Some(Welcome::Accepted { cache, config, .. }) => (CachePaths::at(&cache), config),
            Some(Welcome::Refused(why)) => return Err(std::io::Error::other(why)),
            None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
        };
        let config: Config = serde_json::from_str(&config)?;
        let (said, heard) = mpsc::channel();
        let mut reader = stream.try_clone()?;
        std::thread::spawn(move || {
            while let Ok(Some(message)) = read_frame::<FromDaemon>(&mut reader) {
                if said.send(message).is_err() {
                    return;
                }
            }
        });
        let mut player = Player {
            stream: stream.try_clone()?,
            cache,
            store: PosixStore::new(),
            epoch,
            manners,
            sequence: 0,
            awaited: BTreeMap::new(),
            datasets: BTreeMap::new(),
            last: 0,
            commits: Vec::new(),
            pointers: Pointers::default(),
            last_version: 0,
            rules: Rules::of(&config),
            rounds: Rounds::default(),
            recovered: 0,
        };
        let thread = std::thread::spawn(move || {
            // The test sees what does not happen; the reason is for people.
            if let Err(error) = player.play(&heard) {
                eprintln!("the test's coordinator ends: {error}");
            }
            let _ = player.stream.shutdown(std::net::Shutdown::Both);
        });
        Ok(Self {
            stream,
            thread: Some(thread),
        })
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A seal over parts that nothing protects.
pub fn seal_of(epoch: Epoch, parts: Vec<PartSummary>) -> Seal {
    Seal {
        epoch,
        scheme: Scheme::Single,
        chunk_bytes: 1 << 20,
        unit_bytes: 1 << 17,
        sets: (0u32..)
            .take(parts.len())
            .map(|slot| vec![Slot(slot)])
            .collect(),
        parts,
    }
}

fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Player {
    fn play(&mut self, heard: &Receiver<FromDaemon>) -> std::io::Result<()> {
        self.recover()?;
        loop {
            match heard.recv_timeout(Duration::from_millis(20)) {
                Ok(FromDaemon::Stop { .. }) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(message) => self.handle(message)?,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.expire()?;
        }
    }

    fn tell(&mut self, message: &ToDaemon) -> std::io::Result<()> {
        write_frame(&mut self.stream, message)
    }

    fn reply(&mut self, request: u64, result: Result<(), Refusal>) -> std::io::Result<()> {
        self.tell(&ToDaemon::Reply { request, result })
    }

    fn await_done(&mut self, then: Then) -> u64 {
        self.sequence += 1;
        self.awaited.insert(self.sequence, then);
        self.sequence
    }

    /// What is on disk is what there is.
    fn recover(&mut self) -> std::io::Result<()> {
        for name in self
            .store
            .list(&self.cache.datasets())
            .map_err(std::io::Error::other)?
        {
            let Some(id) = name.to_str().and_then(parse_dataset_directory) else {
                continue;
            };
            let bytes = std::fs::read(self.cache.record(id))?;
            let mut record: DatasetRecord =
                envelope::open(Kind::Dataset, &bytes).map_err(std::io::Error::other)?;
            if self.manners.new_run && record.phase == Phase::Open {
                record.phase = Phase::Incomplete;
            }
            self.last = self.last.max(id.0);
            self.publish(record, Then::Nothing)?;
        }
        if let Some(bytes) = self
            .store
            .get(&self.cache.pointers())
            .map_err(std::io::Error::other)?
        {
            self.pointers =
                envelope::open(Kind::Pointers, &bytes).map_err(std::io::Error::other)?;
        }
        let sequence = self.await_done(Then::Nothing);
        let records = self.pointers.all.clone().into_iter().collect();
        self.tell(&ToDaemon::Pointers {
            sequence,
            all: true,
            records,
        })?;
        let epoch = EpochRecord {
            epoch: self.epoch,
            slot: Some(Slot(0)),
            last_dataset: self.last,
            last_checkpoint: self.last,
        };
        self.put(&self.cache.epoch(), &envelope::seal(Kind::Epoch, &epoch))?;
        let restart = self
            .datasets
            .values()
            .rfind(|record| record.is_restartable());
        let restart = restart.map(|record| record.id);
        let new_run = self.manners.new_run;
        self.recovered = now();
        self.tell(&ToDaemon::Ready { restart, new_run })
    }

    fn question(&mut self, request: u64, question: Question) -> std::io::Result<()> {
        let records = self.datasets.values();
        let of_programs = records.filter(|it| it.class.is_checkpoint());
        let checkpoints: Vec<Times> = of_programs.map(Times::of).collect();
        let situation = Situation {
            rules: &self.rules,
            checkpoints: &checkpoints,
            nodes: 1,
            recovered: self.recovered,
            learnt: Learnt::default(),
        };
        let verdict = self.rounds.answer(question, &situation, now());
        self.tell(&ToDaemon::Verdict { request, verdict })
    }

    fn put(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        self.store.put(path, bytes).map_err(std::io::Error::other)
    }

    fn publish(&mut self, record: DatasetRecord, then: Then) -> std::io::Result<()> {
        let bytes = envelope::seal(Kind::Dataset, &record);
        self.put(&self.cache.record(record.id), &bytes)?;
        self.datasets.insert(record.id, record.clone());
        let sequence = self.await_done(then);
        self.tell(&ToDaemon::Dataset {
            sequence,
            record: Box::new(record),
        })
    }

    fn is_taken(&self, name: &Name) -> bool {
        let mut all = self.datasets.values();
        all.any(|record| record.name == *name && !record.is_removed())
    }

    fn handle(&mut self, message: FromDaemon) -> std::io::Result<()> {
        match message {
            FromDaemon::Request { .. } if self.manners.silent => Ok(()),
            FromDaemon::Request { request, what } => self.request(request, what),
            FromDaemon::Question { request, question } => self.question(request, question),
            FromDaemon::Closed { .. } | FromDaemon::Reopened { .. } => Ok(()),
            FromDaemon::Verdicts(verdicts) => {
                self.rounds.recall(&verdicts);
                Ok(())
            }
            FromDaemon::Done { sequence, result } => match self.awaited.remove(&sequence) {
                Some(Then::Reply(request)) => self.reply(request, result),
                Some(Then::Freeze(dataset)) if result.is_ok() => self.seal(dataset),
                Some(Then::Freeze(_) | Then::Nothing) | None => Ok(()),
            },
            FromDaemon::Quiet {
                dataset,
                generation,
            } => {
                if !self.commits.iter().any(|commit| commit.dataset == dataset) {
                    return Ok(());
                }
                let sequence = self.await_done(Then::Freeze(dataset));
                self.tell(&ToDaemon::Freeze {
                    sequence,
                    dataset,
                    generation,
                })
            }
            FromDaemon::Fetch {
                request,
                dataset,
                slot,
                piece,
            } => {
                let result = match &self.manners.elsewhere {
                    Some(elsewhere) => elsewhere.answer(dataset, slot, &piece),
                    None => Some(Err(Refusal::Missing)),
                };
                match result {
                    Some(result) => {
                        let result = result.map(Into::into);
                        self.tell(&ToDaemon::Piece { request, result })
                    }
                    None => Ok(()),
                }
            }
            FromDaemon::Disturbed { .. }
            | FromDaemon::Move { .. }
            | FromDaemon::Pressure(_)
            | FromDaemon::Stop { .. } => Ok(()),
        }
    }

    fn request(&mut self, request: u64, what: Request) -> std::io::Result<()> {
        match what {
            Request::Create {
                name,
                mode,
                uid,
                gid,
            } => {
                if self.is_taken(&name) || self.pointers.live(&name).is_some() {
                    return self.reply(request, Err(Refusal::Exists));
                }
                self.last += 1;
                let id = DatasetId(self.last);
                let tree = self.cache.tree(id, Slot(0));
                std::fs::create_dir_all(&tree)?;
                std::os::unix::fs::chown(&tree, Some(uid), Some(gid))?;
                std::fs::set_permissions(&tree, PermissionsExt::from_mode(mode))?;
                let record = DatasetRecord {
                    id,
                    name,
                    committed_from: None,
                    class: Class::Checkpoint,
                    checkpoint: None,
                    phase: Phase::Open,
                    epoch: self.epoch,
                    created: now(),
                    sealed: None,
                    protected: None,
                    flushing: false,
                    flushed: None,
                    seal: None,
                    error: None,
                    mode,
                    uid,
                    gid,
                };
                self.publish(record, Then::Reply(request))
            }
            Request::Change { dataset, change } => {
                let sequence = self.await_done(Then::Reply(request));
                self.tell(&ToDaemon::Change {
                    sequence,
                    dataset,
                    change,
                })
            }
            Request::Rename { dataset, to } => {
                if self.is_taken(&to) {
                    return self.reply(request, Err(Refusal::Exists));
                }
                let Some(mut record) = self.datasets.get(&dataset).cloned() else {
                    return self.reply(request, Err(Refusal::Missing));
                };
                record.name = to;
                self.publish(record, Then::Reply(request))
            }
            Request::Commit {
                dataset,
                to,
                settle_ms,
            } => {
                let taken = self
                    .datasets
                    .values()
                    .any(|it| it.name == to && it.id != dataset && !it.is_removed());
                if taken {
                    return self.reply(request, Err(Refusal::Exists));
                }
                if let Some(known) = self.datasets.get(&dataset)
                    && known.phase == Phase::Sealed
                {
                    let same = known.name == to;
                    return self.reply(request, same.then_some(()).ok_or(Refusal::ReadOnly));
                }
                if let Some(commit) = self.commits.iter_mut().find(|it| it.dataset == dataset) {
                    commit.requests.push(request);
                    if settle_ms >= commit.settle_ms {
                        return Ok(());
                    }
                    // Who asks for less settling knows better.
                    commit.settle_ms = settle_ms;
                    return self.tell(&ToDaemon::Quiesce { dataset, settle_ms });
                }
                let deadline =
                    Instant::now() + self.manners.grace + Duration::from_millis(settle_ms);
                self.commits.push(Commit {
                    dataset,
                    to,
                    requests: vec![request],
                    settle_ms,
                    deadline,
                });
                self.tell(&ToDaemon::Quiesce { dataset, settle_ms })
            }
            Request::Remove { dataset } => {
                let known = self.datasets.get(&dataset).cloned();
                if let Some(mut record) = known.filter(|it| it.phase == Phase::Sealed) {
                    record.phase = Phase::Removed { overtaken: false };
                    return self.publish(record, Then::Reply(request));
                }
                self.datasets.remove(&dataset);
                let sequence = self.await_done(Then::Reply(request));
                self.tell(&ToDaemon::Forget { sequence, dataset })?;
                std::fs::remove_dir_all(self.cache.dataset(dataset))
            }
            Request::Point { changes, absent } => self.point(request, changes, absent.as_ref()),
            Request::Wait { .. }
            | Request::Flush { .. }
            | Request::Fetch { .. }
            | Request::Verify { .. }
            | Request::End => self.reply(request, Ok(())),
        }
    }

    fn point(
        &mut self,
        request: u64,
        changes: Vec<PointerChange>,
        absent: Option<&Name>,
    ) -> std::io::Result<()> {
        let is_dataset =
            |change: &PointerChange| change.pointer.is_some() && self.is_taken(&change.name);
        let exists = absent.is_some_and(|name| self.pointers.live(name).is_some());
        if exists || changes.iter().any(is_dataset) {
            return self.reply(request, Err(Refusal::Exists));
        }
        let mut records = Vec::new();
        for PointerChange { name, pointer } in changes {
            self.last_version += 1;
            let record = PointerRecord {
                version: Version {
                    term: self.epoch.0,
                    number: self.last_version,
                },
                after: None,
                pointer,
            };
            self.pointers.learn(name.clone(), record.clone());
            records.push((name, record));
        }
        let bytes = envelope::seal(Kind::Pointers, &self.pointers);
        self.store
            .put(&self.cache.pointers(), &bytes)
            .map_err(std::io::Error::other)?;
        let sequence = self.await_done(Then::Reply(request));
        self.tell(&ToDaemon::Pointers {
            sequence,
            all: false,
            records,
        })
    }

    fn seal(&mut self, dataset: DatasetId) -> std::io::Result<()> {
        if self.manners.die_frozen {
            return Err(std::io::Error::other("as asked: frozen, and gone"));
        }
        let Some(at) = self.commits.iter().position(|it| it.dataset == dataset) else {
            return Ok(());
        };
        let commit = self.commits.remove(at);
        let Some(mut record) = self.datasets.get(&dataset).cloned() else {
            return Ok(());
        };
        record.committed_from = (record.name != commit.to).then(|| record.name.clone());
        record.name = commit.to;
        record.phase = Phase::Sealed;
        record.sealed = Some(now());
        record.checkpoint = Some(dataset.0);
        let mut parts = vec![PartSummary {
            log_bytes: 0,
            files: 0,
            manifest_crc: 0,
        }];
        if let Some(others) = &self.manners.elsewhere {
            let tree = self.cache.tree(dataset, Slot(0));
            let (bytes, own) = elsewhere::encode(&elsewhere::scan(&tree, dataset, Slot(0))?);
            self.put(&self.cache.manifest(dataset, Slot(0), Keep::Own), &bytes)?;
            parts = vec![own];
            parts.extend(others.summaries(dataset));
        }
        record.seal = Some(seal_of(self.epoch, parts));
        let mut requests = commit.requests.into_iter();
        let first = requests.next().map_or(Then::Nothing, Then::Reply);
        self.publish(record, first)?;
        requests.try_for_each(|request| self.reply(request, Ok(())))
    }

    fn expire(&mut self) -> std::io::Result<()> {
        let now = Instant::now();
        while let Some(at) = self
            .commits
            .iter()
            .position(|commit| commit.deadline <= now)
        {
            let commit = self.commits.remove(at);
            self.tell(&ToDaemon::Thaw {
                dataset: commit.dataset,
            })?;
            for request in commit.requests {
                self.reply(request, Err(Refusal::Busy))?;
            }
        }
        Ok(())
    }
}
