//! One node's share: what it has, and copying it. Reads the caches, and changes nothing in them.
//!
//! The lock of the caches is held, so that no daemon starts meanwhile.

use crate::effects::chain;
use crate::job::args::MountArgs;
use crate::part::records::load_manifest;
use crate::part::{self, Part, SealedPart, sums_that_fit};
use crate::prefix::{FlushLimits, Prefix, PrefixError};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use scrfs::config::Config;
use scrfs::id::{DatasetId, Epoch, Slot};
use scrfs::layout::envelope::{Kind, open, seal};
use scrfs::layout::path::{CachePaths, Keep, parse_dataset_directory};
use scrfs::layout::pointer::Pointers;
use scrfs::layout::record::DatasetRecord;
use scrfs::protocol::message::Inventory;
use scrfs::protocol::scavenge::{Plan, Problem, Report, Salvage};
use scrfs::redundancy::Stream;
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use scrfs::stores::{Stores, owner};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Where a daemon's own tmpfs is, and what it takes instead.
const PRIVATE_HOMES: [&str; 2] = ["/run", "/dev/shm"];
/// For a daemon that ends to let go of its cache.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_LOOK: Duration = Duration::from_millis(20);
/// Between two words of a node about its progress.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// How it says so: this word, bytes done, bytes in all.
pub(super) const PROGRESS: &str = "progress";

/// One node's share of a scavenge.
#[derive(clap::Args, Clone, Debug)]
pub struct NodeArgs {
    #[command(flatten)]
    mount: MountArgs,
    /// Which scavenge
    #[arg(long)]
    session: u64,
    /// What the node is called
    #[arg(long)]
    node: String,
    /// Copy what the plan says; otherwise look what there is
    #[arg(long)]
    copy: bool,
    /// Also where a daemon has the cache
    #[arg(long)]
    live: bool,
}

impl NodeArgs {
    /// Does it. Progress goes to stdout.
    pub fn run(&self) -> Result<()> {
        let config = self.mount.load().context("the configuration")?;
        let prefix = Prefix::open(&config.prefix)?.of_job(&config.job);
        let node = Node::of(&config, &self.node, self.live);
        let session = Epoch(self.session);
        if !self.copy {
            return node.look(&prefix, session);
        }
        let told = std::cell::Cell::new(None::<Instant>);
        node.copy(&prefix, session, &|done, total| {
            let is_due = told.get().is_none_or(|told| told.elapsed() >= TELL_EVERY);
            if is_due || done == total {
                told.set(Some(Instant::now()));
                println!("{PROGRESS} {done} {total}");
            }
        })
    }
}

/// The caches of a node.
#[derive(Debug)]
pub(super) struct Node {
    name: String,
    stores: Stores,
    live: bool,
    limits: FlushLimits,
}

impl Node {
    /// This node, as the configuration has it.
    pub(super) fn of(config: &Config, name: &str, live: bool) -> Self {
        let uid = nix::unistd::geteuid().as_raw();
        let place = |path: &Path| CachePaths::new(path, uid, &config.job);
        let mut stores = config.store.iter().map(|store| {
            if !store.is_private_tmpfs() {
                return place(&store.path);
            }
            let mut homes = PRIVATE_HOMES.iter().map(|home| place(Path::new(home)));
            let found = homes.find(|cache| cache.datasets().exists());
            found.unwrap_or_else(|| place(Path::new(PRIVATE_HOMES[0])))
        });
        let home = stores
            .next()
            .unwrap_or_else(|| place(Path::new("/dev/shm")));
        Self {
            name: name.to_owned(),
            stores: Stores::new(home, stores.collect()),
            live,
            // No application is there that a bandwidth would spare.
            limits: FlushLimits::default(),
        }
    }

    /// The node whose first store is `root`; the others are where its links lead.
    pub(super) fn at(root: &Path, name: &str, live: bool) -> Self {
        let home = CachePaths::at(root);
        let links = fs::read_dir(home.datasets())
            .into_iter()
            .flatten()
            .flatten();
        let targets = links.filter_map(|entry| {
            parse_dataset_directory(entry.file_name().to_str()?)?;
            let target = fs::read_link(entry.path()).ok()?;
            Some(target.parent()?.parent()?.to_owned())
        });
        let further: BTreeSet<PathBuf> = targets.collect();
        let further = further.iter().map(|path| CachePaths::at(path)).collect();
        Self {
            name: name.to_owned(),
            stores: Stores::new(home, further),
            live,
            limits: FlushLimits::default(),
        }
    }

    /// Keeps daemons away for as long as the result lives.
    fn lock(&self) -> Result<Vec<Flock<File>>> {
        let mut locks = Vec::new();
        for path in self.stores.iter().map(CachePaths::lock) {
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot open {}", path.display()));
                }
            };
            let deadline = Instant::now() + LOCK_PATIENCE;
            loop {
                file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                    Ok(lock) => {
                        locks.push(lock);
                        break;
                    }
                    Err((_, Errno::EWOULDBLOCK)) if self.live => break,
                    Err((file, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file,
                    Err((_, Errno::EWOULDBLOCK)) => bail!(
                        "a daemon has the cache {}: `scrfs unmount --now` there ends it, --live copies \
                         beside it",
                        path.parent().unwrap_or(&path).display()
                    ),
                    Err((_, error)) => {
                        return Err(error)
                            .with_context(|| format!("cannot lock {}", path.display()));
                    }
                };
                std::thread::park_timeout(LOCK_LOOK);
            }
        }
        Ok(locks)
    }

    /// Tells what there is.
    pub(super) fn look(&self, prefix: &Prefix, session: Epoch) -> Result<()> {
        let _locks = self.lock()?;
        let store = PosixStore::new();
        for cache in self.stores.iter() {
            owner::check(&store, cache, prefix.paths().root())?;
        }
        let (found, _) = part::look(&store, &self.stores)?;
        let pointers = match store.get(&self.stores.home().pointers())? {
            None => Pointers::default(),
            Some(bytes) => open(Kind::Pointers, &bytes).unwrap_or_else(|error| {
                tracing::error!(%error, "what the cache says of pointer files is not believed");
                Pointers::default()
            }),
        };
        let inventory = Inventory {
            node: self.name.clone(),
            epoch: found.epoch,
            datasets: found.datasets,
            pointers,
            ..Inventory::default()
        };
        let path = prefix.paths().scavenge_catalog(session, &self.name);
        Ok(store.put(&path, &seal(Kind::Catalog, &inventory))?)
    }

    /// Copies what the plan wants of this node, and reports what could not be.
    pub(super) fn copy(
        &self,
        prefix: &Prefix,
        session: Epoch,
        progress: &dyn Fn(u64, u64),
    ) -> Result<()> {
        let _locks = self.lock()?;
        let store = PosixStore::new();
        let path = prefix.paths().scavenge_plan(session);
        let bytes = store.get(&path)?;
        let bytes = bytes.with_context(|| format!("there is no {}", path.display()))?;
        let plan: Plan = open(Kind::ScavengePlan, &bytes)
            .with_context(|| format!("{} is damaged", path.display()))?;
        let places = self.stores.survey()?.places;
        let total = plan.salvages.iter().map(|one| self.bytes_of(one)).sum();
        let mut copying = Copying {
            node: self,
            prefix,
            places: &places,
            progress,
            total,
            done: 0,
            problems: Vec::new(),
        };
        for salvage in &plan.salvages {
            copying.salvage(salvage);
        }
        let report = Report {
            problems: copying.problems,
        };
        progress(total, total);
        let path = prefix.paths().scavenge_report(session, &self.name);
        Ok(store.put(&path, &seal(Kind::ScavengeReport, &report))?)
    }

    fn is_mine(&self, (_, node): &&(Slot, String)) -> bool {
        *node == self.name
    }

    fn bytes_of(&self, salvage: &Salvage) -> u64 {
        let bytes = |slot: Slot, stream| {
            let sealed = SealedPart::of(&salvage.record, slot);
            sealed.map_or(0, |sealed| sealed.stream_bytes(stream))
        };
        let data = salvage.data.iter().filter(|one| self.is_mine(one));
        let parity = salvage.parity.iter().filter(|one| self.is_mine(one));
        let data = data.map(|(slot, _)| bytes(*slot, Stream::Data));
        data.chain(parity.map(|(slot, _)| bytes(*slot, Stream::Parity)))
            .sum()
    }
}

/// What is under way on a node.
struct Copying<'a> {
    node: &'a Node,
    prefix: &'a Prefix,
    places: &'a BTreeMap<DatasetId, CachePaths>,
    progress: &'a dyn Fn(u64, u64),
    total: u64,
    done: u64,
    problems: Vec<Problem>,
}

impl Copying<'_> {
    fn salvage(&mut self, salvage: &Salvage) {
        let node = self.node;
        let record = &salvage.record;
        for (slot, _) in salvage.metadata.iter().filter(|one| node.is_mine(one)) {
            if let Err(why) = self.metadata(record, *slot) {
                self.problem(record, *slot, None, why);
            }
        }
        for stream in [Stream::Data, Stream::Parity] {
            let wanted = match stream {
                Stream::Data => &salvage.data,
                Stream::Parity => &salvage.parity,
            };
            for (slot, _) in wanted.iter().filter(|one| node.is_mine(one)) {
                self.stream(record, *slot, stream);
            }
        }
    }

    fn problem(&mut self, record: &DatasetRecord, slot: Slot, spoilt: Option<Stream>, why: String) {
        tracing::error!(dataset = %record.id, %slot, why, "not copied");
        let key = record.key();
        self.problems.push(Problem {
            key,
            slot,
            spoilt,
            why,
        });
    }

    fn stream(&mut self, record: &DatasetRecord, slot: Slot, stream: Stream) {
        let Some(paths) = self.places.get(&record.id) else {
            let why = "it is not there any more".to_owned();
            return self.problem(record, slot, Some(stream), why);
        };
        let part = match Part::open(&PosixStore::new(), paths, record, slot) {
            Ok(part) => Arc::new(part),
            Err(error) => return self.problem(record, slot, Some(stream), chain(&error)),
        };
        let (before, total, told) = (self.done, self.total, self.progress);
        let progress = |bytes: u64| told(before + bytes, total);
        let never = AtomicBool::new(false);
        let limits = self.node.limits;
        let copied = match stream {
            Stream::Data => self
                .prefix
                .flush_part(record, &part, limits, &progress, &never)
                .map(drop),
            Stream::Parity => self
                .prefix
                .keep_parity(record, &part, limits, &progress, &never),
        };
        self.done += part.stream_bytes(stream);
        if let Err(error) = copied {
            // Which of the two is to blame, is found out by asking the cache alone.
            let is_whole = part.verify_stream(stream).is_ok()
                && (stream == Stream::Parity || part.verify_against_tree().is_ok());
            let spoilt = (!is_whole).then_some(stream);
            self.problem(record, slot, spoilt, chain(&error));
        }
    }

    fn metadata(&self, record: &DatasetRecord, slot: Slot) -> Result<(), String> {
        let paths = self.places.get(&record.id);
        let paths = paths.ok_or("it is not there any more")?;
        let store = PosixStore::new();
        let sealed = SealedPart::of(record, slot).map_err(|error| chain(&error))?;
        let mut why = "names and checksums of it are not there any more".to_owned();
        for keep in [Keep::Own, Keep::Copy] {
            let stored = match load_manifest(&store, paths, record.id, slot, keep) {
                Ok(Some(stored)) => stored,
                Ok(None) => continue,
                Err(error) => {
                    why = chain(&error);
                    continue;
                }
            };
            let sums = sums_that_fit(&store, paths, &sealed, Stream::Data, keep);
            let Some(sums) = sums.filter(scrfs::layout::manifest::Sums::is_complete) else {
                continue;
            };
            match self.prefix.keep_metadata(record, &stored, &sums) {
                Ok(()) => return Ok(()),
                Err(error @ PrefixError::Part(_)) => why = chain(&error),
                Err(error) => return Err(chain(&error)),
            }
        }
        Err(why)
    }
}
