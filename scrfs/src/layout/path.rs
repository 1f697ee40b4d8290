//! Where everything lies in a node's cache directory and in the prefix.
//!
//! ```text
//! <store>/scrfs.<uid>/<job>/        one job's cache on this node, mode 0700
//!   daemon.lock                     held by the daemon while it lives
//!   daemon.json                     its pid, node name, mount point
//!   control.sock                    where it answers
//!   prefix                          the path of the prefix that its datasets are of, and a newline
//!   epoch                           EpochRecord
//!   pointers                        Pointers
//!   reserve                         space that records may use when the cache is full
//!   trash/                          files on their way out
//!   boot                            the boot of the machine in which an epoch last began here
//!   datasets/<id>/record            DatasetRecord
//!   datasets/<id>/slot.<n>/tree/    the files of slot n, as the application wrote them
//!   datasets/<id>/slot.<n>/manifest, sums.data, sums.parity, parity
//!   datasets/<id>/slot.<n>/tree.new, tree.old, parity.new          on their way in or out
//!   datasets/<id>/slot.<n>/parity.room       space kept for the parity, nothing written yet
//!   datasets/<id>/slot.<n>/damaged.data, damaged.parity      it was found not to be what was stored
//!   datasets/<id>/copy.<n>/manifest, sums.data, sums.parity      of another member of the set
//!
//! <other store>/scrfs.<uid>/<job>/  the same job's further stores (see `crate::stores`)
//!   daemon.lock                     held by the daemon while it lives
//!   prefix                          as above
//!   seen                            EpochRecord: the newest epoch that this store took part in
//!   trash/                          as above
//!   moving/datasets/<id>/           a dataset on its way in
//!   datasets/<id>/                  as above; <first store>/datasets/<id> is a link to it
//!
//! <prefix>/<dataset>/               the application's files and nothing else
//! <prefix>/.scrfs/inflight/<key>/<epoch>/   a flush that has not ended, one directory an attempt
//! <prefix>/.scrfs/inflight/<key>/<epoch>.<slot>.done   files that it has finished
//! <prefix>/.scrfs/inflight/<key>/job        the job that makes them
//! <prefix>/.scrfs/inflight/<key>/<epoch>.kept/    what a scavenge rebuilds lost slots from
//! <prefix>/.scrfs/scavenge/<session>/       what nodes and plan say while a scavenge runs
//! <prefix>/.scrfs/index/<key>       IndexEntry
//! <prefix>/.scrfs/dropped/<key>     IndexEntry of a dataset that is not to be listed any more
//! <prefix>/.scrfs/failed/<key>      empty: a restart from it did not work
//! <prefix>/.scrfs/gone/<key>        empty: it was deleted
//! <prefix>/.scrfs/current           Choice
//! <prefix>/.scrfs/turns/<name>/     who has written the pointer file of that name (see `super::turn`)
//! <prefix>/.scrfs/events/<begun>.<writer>.jsonl   what happened, a line of JSON each
//! <prefix>/.scrfs/events.jsonl      a copy of it for people; .old and .1 what happened before
//! <prefix>/.scrfs/clock             empty: its time is that of the file server
//! <prefix>/.scrfs/manifests/<key>/<slot>.{manifest,sums}
//! <prefix>/.scrfs/trash/            datasets on their way out
//! ```

use super::record::UnixMillis;
use super::run::RunKey;
use super::turn::Turn;
use crate::id::{DatasetId, DatasetKey, Epoch, Slot};
use crate::name::Name;
use crate::redundancy::Stream;
use std::path::{Path, PathBuf};

/// Paths of one job's cache on one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CachePaths {
    root: PathBuf,
}

/// Whether a slot's metadata is its own or kept for another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// The slot's data lies here.
    Own,
    /// Only its manifest and checksums do.
    Copy,
}

impl CachePaths {
    /// The cache of `job` of user `uid` in `store`.
    pub fn new(store: &Path, uid: u32, job: &str) -> Self {
        Self {
            root: store.join(format!("scrfs.{uid}")).join(job),
        }
    }

    /// A cache whose root is known.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The job's cache directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Locked by the daemon while it lives.
    pub fn lock(&self) -> PathBuf {
        self.root.join("daemon.lock")
    }

    /// Facts about the daemon, for people and for `scrfs` commands.
    pub fn daemon(&self) -> PathBuf {
        self.root.join("daemon.json")
    }

    /// The prefix that its datasets are of.
    pub fn owner(&self) -> PathBuf {
        self.root.join("prefix")
    }

    /// All pointer files.
    pub fn pointers(&self) -> PathBuf {
        self.root.join("pointers")
    }

    /// The daemon's log, when it runs in the background.
    pub fn log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// The epoch record.
    pub fn epoch(&self) -> PathBuf {
        self.root.join("epoch")
    }

    /// The newest epoch that a further store took part in.
    pub fn seen(&self) -> PathBuf {
        self.root.join("seen")
    }

    /// In which boot of the machine an epoch last began.
    pub fn boot(&self) -> PathBuf {
        self.root.join("boot")
    }

    /// Datasets on their way into this store.
    pub fn moving(&self) -> Self {
        Self::at(&self.root.join("moving"))
    }

    /// Space given up when a record does not fit otherwise.
    pub fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// Files that are on their way out.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// All datasets.
    pub fn datasets(&self) -> PathBuf {
        self.root.join("datasets")
    }

    /// One dataset.
    pub fn dataset(&self, id: DatasetId) -> PathBuf {
        self.datasets().join(id.0.to_string())
    }

    /// Its record.
    pub fn record(&self, id: DatasetId) -> PathBuf {
        self.dataset(id).join("record")
    }

    /// What is kept of one slot of it.
    pub fn slot(&self, id: DatasetId, slot: Slot, keep: Keep) -> PathBuf {
        let kind = match keep {
            Keep::Own => "slot",
            Keep::Copy => "copy",
        };
        self.dataset(id).join(format!("{kind}.{}", slot.0))
    }

    /// The files of a slot.
    pub fn tree(&self, id: DatasetId, slot: Slot) -> PathBuf {
        self.slot(id, slot, Keep::Own).join("tree")
    }

    /// The files of a slot while they are brought back; renamed to [`Self::tree`] when whole.
    pub fn tree_new(&self, id: DatasetId, slot: Slot) -> PathBuf {
        self.slot(id, slot, Keep::Own).join("tree.new")
    }

    /// What was at [`Self::tree`] before, on its way out.
    pub fn tree_old(&self, id: DatasetId, slot: Slot) -> PathBuf {
        self.slot(id, slot, Keep::Own).join("tree.old")
    }

    /// The parity of a slot while it is computed; renamed to [`Self::parity`] when whole.
    pub fn parity_new(&self, id: DatasetId, slot: Slot) -> PathBuf {
        self.slot(id, slot, Keep::Own).join("parity.new")
    }

    /// Space that is kept for the parity of a slot until it is computed: as long as that, nothing
    /// written; renamed to [`Self::parity_new`].
    pub fn parity_room(&self, id: DatasetId, slot: Slot) -> PathBuf {
        self.slot(id, slot, Keep::Own).join("parity.room")
    }

    /// The parity of a slot.
    pub fn parity(&self, id: DatasetId, slot: Slot) -> PathBuf {
        self.slot(id, slot, Keep::Own).join("parity")
    }

    /// There when a stream of a slot was found not to be what was stored, until it is made again.
    pub fn damage(&self, id: DatasetId, slot: Slot, stream: Stream) -> PathBuf {
        self.slot(id, slot, Keep::Own).join(match stream {
            Stream::Data => "damaged.data",
            Stream::Parity => "damaged.parity",
        })
    }

    /// The manifest of a slot.
    pub fn manifest(&self, id: DatasetId, slot: Slot, keep: Keep) -> PathBuf {
        self.slot(id, slot, keep).join("manifest")
    }

    /// The checksums of one stream of a slot.
    pub fn sums(&self, id: DatasetId, slot: Slot, stream: Stream, keep: Keep) -> PathBuf {
        self.slot(id, slot, keep).join(match stream {
            Stream::Data => "sums.data",
            Stream::Parity => "sums.parity",
        })
    }
}

/// The dataset number that a directory name stands for.
pub fn parse_dataset_directory(name: &str) -> Option<DatasetId> {
    let number = name.parse::<u64>().ok()?;
    (number.to_string() == name).then_some(DatasetId(number))
}

/// The slot that `slot.<n>` or `copy.<n>` stands for.
pub fn parse_slot_directory(name: &str) -> Option<(Slot, Keep)> {
    let (kind, number) = name.split_once('.')?;
    let keep = match kind {
        "slot" => Keep::Own,
        "copy" => Keep::Copy,
        _ => return None,
    };
    let slot = number.parse::<u32>().ok()?;
    (slot.to_string() == number).then_some((Slot(slot), keep))
}

/// Ends the name of the files of a dataset that is being deleted.
const DELETED: &str = ".deleted";

/// The dataset that is being deleted, whose files have this name in the trash.
pub fn parse_deleted(name: &str) -> Option<DatasetKey> {
    DatasetKey::parse(name.strip_suffix(DELETED)?)
}

/// What a page of events is called: in the order of names they are in that of time.
pub fn event_page_name(begun: UnixMillis, writer: u64) -> String {
    format!("{begun:013}.{writer:016x}.jsonl")
}

/// When a page of events was begun; `None` of what is no page.
pub fn parse_event_page(name: &str) -> Option<UnixMillis> {
    let (begun, writer) = name.strip_suffix(".jsonl")?.split_once('.')?;
    let is_hex = writer.len() == 16 && writer.bytes().all(|byte| byte.is_ascii_hexdigit());
    (begun.len() == 13 && is_hex).then(|| begun.parse().ok())?
}

/// Paths of a prefix directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrefixPaths {
    root: PathBuf,
}

impl PrefixPaths {
    /// The prefix at `root`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The prefix directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Everything of SCR's, where it has been.
    pub fn scr(&self) -> PathBuf {
        self.root.join(".scr")
    }

    /// Everything of ours.
    pub fn control(&self) -> PathBuf {
        self.root.join(".scrfs")
    }

    /// When jobs are to end by themselves.
    pub fn halt(&self) -> PathBuf {
        self.control().join("halt")
    }

    /// Supervisors that are at work, or were and did not end by themselves.
    pub fn runs(&self) -> PathBuf {
        self.control().join("run")
    }

    /// What one of them knows.
    pub fn run(&self, key: RunKey) -> PathBuf {
        self.runs().join(key.to_string())
    }

    /// Where a flushed dataset is, for everybody to read.
    pub fn dataset(&self, name: &Name) -> PathBuf {
        self.root.join(name.as_os_str())
    }

    /// Which pointer files are there, as it was kept in one file. Only read.
    pub fn pointers(&self) -> PathBuf {
        self.control().join("pointers")
    }

    /// Names of which pointer files are ours.
    pub fn all_turns(&self) -> PathBuf {
        self.control().join("turns")
    }

    /// Who has written a pointer file. That it is there says that the name is ours.
    pub fn turns(&self, name: &Name) -> PathBuf {
        self.all_turns().join(name.as_os_str())
    }

    /// A turn at a pointer file whose file was there.
    pub fn turn(&self, name: &Name, turn: Turn) -> PathBuf {
        self.turns(name).join(turn.names().0)
    }

    /// A turn at a pointer file until then.
    pub fn turn_begun(&self, name: &Name, turn: Turn) -> PathBuf {
        self.turns(name).join(turn.names().1)
    }

    /// All flushes that have not ended.
    pub fn inflights(&self) -> PathBuf {
        self.control().join("inflight")
    }

    /// Flushes of one dataset that have not ended.
    pub fn inflight(&self, key: DatasetKey) -> PathBuf {
        self.inflights().join(key.to_string())
    }

    /// Which job makes them.
    pub fn inflight_job(&self, key: DatasetKey) -> PathBuf {
        self.inflight(key).join("job")
    }

    /// One attempt: that of one epoch, so that a late-comer of an earlier one writes elsewhere.
    pub fn attempt(&self, key: DatasetKey, epoch: Epoch) -> PathBuf {
        self.inflight(key).join(epoch.0.to_string())
    }

    /// What a scavenge keeps beside an attempt: parity, and what is known of lost slots.
    pub fn kept(&self, key: DatasetKey, epoch: Epoch) -> PathBuf {
        self.inflight(key).join(format!("{}.kept", epoch.0))
    }

    /// Names of the files of a slot that a scavenge makes again.
    pub fn kept_manifest(&self, key: DatasetKey, epoch: Epoch, slot: Slot) -> PathBuf {
        self.kept(key, epoch).join(format!("{}.manifest", slot.0))
    }

    /// Parity of a slot, which lost ones are made again from.
    pub fn kept_parity(&self, key: DatasetKey, epoch: Epoch, slot: Slot) -> PathBuf {
        self.kept(key, epoch).join(format!("{}.parity", slot.0))
    }

    /// Checksums of either.
    pub fn kept_sums(&self, key: DatasetKey, epoch: Epoch, slot: Slot, of: Stream) -> PathBuf {
        let end = match of {
            Stream::Data => "sums",
            Stream::Parity => "parity-sums",
        };
        self.kept(key, epoch).join(format!("{}.{end}", slot.0))
    }

    /// Records of scavenges that run.
    pub fn scavenges(&self) -> PathBuf {
        self.control().join("scavenge")
    }

    /// What one scavenge wants done.
    pub fn scavenge_plan(&self, session: Epoch) -> PathBuf {
        self.scavenges().join(session.0.to_string()).join("plan")
    }

    /// What a node has.
    pub fn scavenge_catalog(&self, session: Epoch, node: &str) -> PathBuf {
        let session = self.scavenges().join(session.0.to_string());
        session.join(format!("{node}.catalog"))
    }

    /// What a node could not copy.
    pub fn scavenge_report(&self, session: Epoch, node: &str) -> PathBuf {
        let session = self.scavenges().join(session.0.to_string());
        session.join(format!("{node}.report"))
    }

    /// What one attempt has finished of one slot.
    pub fn done(&self, key: DatasetKey, epoch: Epoch, slot: Slot) -> PathBuf {
        self.inflight(key)
            .join(format!("{}.{}.done", epoch.0, slot.0))
    }

    /// All index entries.
    pub fn index(&self) -> PathBuf {
        self.control().join("index")
    }

    /// One index entry.
    pub fn entry(&self, key: DatasetKey) -> PathBuf {
        self.index().join(key.to_string())
    }

    /// Entries that were taken out of the index, to be put back some day.
    pub fn dropped(&self) -> PathBuf {
        self.control().join("dropped")
    }

    /// One such entry.
    pub fn dropped_entry(&self, key: DatasetKey) -> PathBuf {
        self.dropped().join(key.to_string())
    }

    /// Marks of datasets from which no restart worked.
    pub fn failed(&self) -> PathBuf {
        self.control().join("failed")
    }

    /// One such mark.
    pub fn failed_mark(&self, key: DatasetKey) -> PathBuf {
        self.failed().join(key.to_string())
    }

    /// Marks of datasets that were deleted.
    pub fn gone(&self) -> PathBuf {
        self.control().join("gone")
    }

    /// One such mark.
    pub fn gone_mark(&self, key: DatasetKey) -> PathBuf {
        self.gone().join(key.to_string())
    }

    /// What happened, a line each, as it is copied for people to follow.
    pub fn events(&self) -> PathBuf {
        self.control().join("events.jsonl")
    }

    /// What happened while all writers wrote to one file.
    pub fn events_old(&self) -> PathBuf {
        self.control().join("events.jsonl.old")
    }

    /// What happened before that.
    pub fn events_before(&self) -> PathBuf {
        self.control().join("events.jsonl.1")
    }

    /// What happened, in pages.
    pub fn event_pages(&self) -> PathBuf {
        self.control().join("events")
    }

    /// Lines of one writer, which is a random number. The first is of this time.
    pub fn event_page(&self, begun: UnixMillis, writer: u64) -> PathBuf {
        self.event_pages().join(event_page_name(begun, writer))
    }

    /// Written to learn what time it is where the prefix is.
    pub fn clock(&self) -> PathBuf {
        self.control().join("clock")
    }

    /// The checkpoint that somebody chose.
    pub fn choice(&self) -> PathBuf {
        self.control().join("current")
    }

    /// All manifests.
    pub fn all_manifests(&self) -> PathBuf {
        self.control().join("manifests")
    }

    /// The manifests of a dataset.
    pub fn manifests(&self, key: DatasetKey) -> PathBuf {
        self.all_manifests().join(key.to_string())
    }

    /// The manifest of one part of a dataset.
    pub fn manifest(&self, key: DatasetKey, slot: Slot) -> PathBuf {
        self.manifests(key).join(format!("{}.manifest", slot.0))
    }

    /// The checksums of one part's log.
    pub fn sums(&self, key: DatasetKey, slot: Slot) -> PathBuf {
        self.manifests(key).join(format!("{}.sums", slot.0))
    }

    /// Where replaced datasets wait to be removed.
    pub fn trash(&self) -> PathBuf {
        self.control().join("trash")
    }

    /// The files of a dataset that is being deleted. Their being here is what decides it.
    pub fn deleted(&self, key: DatasetKey) -> PathBuf {
        self.trash().join(format!("{key}{DELETED}"))
    }
}
