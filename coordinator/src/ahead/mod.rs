//! Encoding before the commit: the parity of files that nobody writes any more, of datasets that are still open.
//!
//! The daemon says which files are closed, and before anything that may follow that one is opened again. What is closed
//! is appended to the *provisional log* of this node, in that order; members of a set tell each other how far theirs
//! reach. Each makes the parity of the stripes that all reach beyond, by the ordinary plan, into the room that the daemon
//! keeps for its parity, for a share of the time, and only while nothing else is to be done and programs do not write: what a
//! log has reached is told when its node is [quiet], and parity is made by a node that is.
//!
//! All of it is provisional: it lives in memory and in that room, is no promise, and is thrown away with the epoch. The scan
//! for the vote places the files as the provisional log has them, as far as they are what they were.
//!
//! **What of it holds is decided by checksums, after the seal.** Every stripe that was made remembers the crc32c of each unit it
//! was made of. Each member tells its set the checksums of the units of its log that it knows from before. A stripe whose
//! units all have the checksum that it was made of is not made again; any other is: whatever was reopened, cut, renamed
//! or removed meanwhile, and whoever heard of it late. So nothing between nodes has to be in time. On one node
//! it has: a checksum is known from before only if it was taken of a closed file, and none that was opened again since
//! is believed.
//!
//! A file that is opened again ends the provisional log where it began; what came after it is appended again.

mod log;
mod quiet;

use crate::transfer::{Engine, JobEvent, JobId, TransferError};
use bytes::Bytes;
use log::{Foreseen, Made};
use quiet::Quiet;
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::manifest::DataExtent;
use scrfs::layout::path::CachePaths;
use scrfs::layout::record::{DatasetRecord, Phase, Seal};
use scrfs::name::RelPath;
use scrfs::protocol::message::Message;
use scrfs::redundancy::{Combination, Extent, Stream};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Numbers of jobs from here on are ours: those of works count from 1, those of reads from `LAST_JOB`.
const FIRST_JOB: u64 = 1 << 62;
/// No number from here on is.
const LAST_JOB: u64 = 1 << 63;
/// Parity that is made in a row, in bytes, before it rests: programs that begin to write, or commit, wait for no more.
const SLICE_BYTES: u64 = 4 << 20;
/// So many slices in a row may fail before it is left to the encode after the commit.
const FAILURES_MAX: u32 = 5;
/// How far logs reach is told no more often.
const TELL_EVERY: Duration = Duration::from_millis(20);
/// A slice that failed is tried again after so long.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A closed file, as the scan for a vote must find it if it is to be where it is in the provisional log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Closed {
    /// Its number in the cache.
    pub(crate) ino: u64,
    /// Its length.
    pub(crate) size: u64,
    /// Its data.
    pub(crate) extents: Vec<DataExtent>,
}

impl Closed {
    fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }
}

/// In which order a scan is to place files, first ones first.
#[derive(Clone, Default, Debug)]
pub(crate) struct LogOrder {
    version: u64,
    pub(crate) files: Vec<Closed>,
}

/// Parity of a dataset that is about to be written, and what it is made of.
type Making = (DatasetId, Extent, Vec<(Extent, u32)>);

/// What is left of it when its seal is what was foreseen.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Checksums of this node's log that hold, unit by unit.
    pub(crate) sums: Vec<Option<u32>>,
    made: BTreeMap<u64, Made>,
    /// The file that the parity is in; held, so that no other one gets its number.
    room: Option<File>,
}

impl Settled {
    /// Whether anything was made.
    pub(crate) fn is_empty(&self) -> bool {
        self.made.is_empty()
    }

    /// The file that the parity is in, by device and number.
    pub(crate) fn room(&self) -> Option<(u64, u64)> {
        let found = self.room.as_ref()?.metadata().ok()?;
        Some((found.dev(), found.ino()))
    }

    /// The checksum of what a combination makes, if it was made of just these bytes; `known` says which checksums the
    /// extents of the set have.
    pub(crate) fn holds(
        &self,
        wanted: &Combination,
        known: impl Fn(Extent) -> Option<u32>,
    ) -> Option<u32> {
        let made = self.made.get(&wanted.destination.offset)?;
        let is_same = made.len == wanted.destination.len
            && made.sources.len() == wanted.terms.len()
            && made
                .sources
                .iter()
                .zip(&wanted.terms)
                .all(|((source, crc), term)| {
                    *source == term.source && known(*source) == Some(*crc)
                });
        is_same.then_some(made.crc)
    }
}

/// All datasets that are being written.
#[derive(Debug)]
pub(crate) struct Ahead {
    own: Slot,
    paths: CachePaths,
    share_percent: u64,
    open: BTreeMap<DatasetId, Foreseen>,
    settled: BTreeMap<DatasetId, Settled>,
    /// Their seals are what was foreseen: on all nodes alike.
    foreseen: BTreeSet<DatasetId>,
    jobs: u64,
    /// What members know of their logs from before the commit.
    foreknown: BTreeMap<(DatasetId, Slot), Vec<Option<u32>>>,
    /// Of what the next parity that is written is made.
    making: Option<Making>,
    quiet: Quiet,
    /// There is something to be told or made when it is quiet.
    waits: bool,
}

impl Ahead {
    /// Nothing is written yet. At most `share_percent` of the time is for it.
    pub(crate) fn new(me: Rank, paths: CachePaths, share_percent: u64) -> Self {
        Self {
            own: Slot(me.0),
            paths,
            share_percent: share_percent.min(100),
            open: BTreeMap::new(),
            settled: BTreeMap::new(),
            foreseen: BTreeSet::new(),
            foreknown: BTreeMap::new(),
            jobs: 0,
            making: None,
            quiet: Quiet::new(Instant::now()),
            waits: false,
        }
    }

    /// What the seal of a new dataset would be.
    pub(crate) fn foresee(&mut self, dataset: DatasetId, seal: Seal) {
        // Also where nothing is to be made here: the others wait for what is told.
        let has_peers = seal.set_of(self.own).is_some_and(|set| set.len() > 1);
        if !has_peers || seal.scheme.parity_count() == 0 {
            return;
        }
        let foreseen = Foreseen::new(self.own, seal);
        self.open.insert(dataset, foreseen);
    }

    /// Nobody can write a file any more without [`Self::reopened`].
    pub(crate) fn closed(&mut self, dataset: DatasetId, ino: u64, path: RelPath) {
        // The daemon says it when programs have not opened or closed anything for a moment.
        self.quiet.begin(used_bytes(self.paths.root()));
        let (own, paths) = (self.own, &self.paths);
        if let Some(foreseen) = self.open.get_mut(&dataset)
            && let Err(error) = foreseen.append(paths, (dataset, own), ino, path)
        {
            // Renamed or removed since: the encode after the commit sees to it.
            tracing::debug!(%dataset, ino, %error, "a closed file is not encoded yet");
        }
    }

    /// A file is about to be written again.
    pub(crate) fn reopened(&mut self, dataset: DatasetId, ino: u64) {
        self.quiet.disturb(Instant::now());
        if let Some(foreseen) = self.open.get_mut(&dataset) {
            foreseen.reopened(ino);
        }
    }

    /// The log of a member of the set reaches so far.
    pub(crate) fn reaches(&mut self, dataset: DatasetId, slot: Slot, bytes: u64) {
        if let Some(foreseen) = self.open.get_mut(&dataset)
            && slot != self.own
        {
            foreseen.reaches(slot, bytes);
        }
    }

    /// How a scan is to place files.
    pub(crate) fn order(&self, dataset: DatasetId) -> LogOrder {
        let foreseen = self.open.get(&dataset);
        foreseen.map_or_else(LogOrder::default, Foreseen::order)
    }

    /// A scan has placed so many bytes as that order says.
    pub(crate) fn scanned(&mut self, dataset: DatasetId, order: &LogOrder, kept: u64) {
        if let Some(foreseen) = self.open.get_mut(&dataset) {
            foreseen.kept = Some((order.version, kept));
        }
    }

    /// A dataset is as the record says: when it is not open any more, nothing more is made. Returns the job that is to end.
    pub(crate) fn learn(&mut self, record: &DatasetRecord) -> Option<JobId> {
        if record.phase == Phase::Open {
            return None;
        }
        let foreseen = self.open.remove(&record.id)?;
        let job = foreseen.job;
        if record
            .seal
            .as_ref()
            .is_some_and(|seal| foreseen.is_of(seal))
        {
            self.foreseen.insert(record.id);
            self.settled.insert(record.id, foreseen.settle());
        }
        job
    }

    /// A dataset is no more, or is made of other things. Returns the job that is to end.
    pub(crate) fn forget(&mut self, dataset: DatasetId) -> Option<JobId> {
        self.settled.remove(&dataset);
        self.foreseen.remove(&dataset);
        self.unhear(dataset);
        self.open.remove(&dataset).and_then(|foreseen| foreseen.job)
    }

    /// What was made of a sealed dataset; once.
    pub(crate) fn take(&mut self, dataset: DatasetId) -> Option<Settled> {
        self.settled.remove(&dataset)
    }

    /// What was made of a sealed dataset and was not taken.
    #[cfg(test)]
    pub(crate) fn peek(&mut self, dataset: DatasetId) -> &Settled {
        self.settled.entry(dataset).or_default()
    }

    /// Whether members tell each other what they know from before.
    pub(crate) fn was_foreseen(&self, dataset: DatasetId) -> bool {
        self.foreseen.contains(&dataset)
    }

    /// A member knows these checksums of its log from before.
    pub(crate) fn hear(&mut self, dataset: DatasetId, slot: Slot, crcs: Vec<Option<u32>>) {
        if self.foreseen.contains(&dataset) {
            self.foreknown.insert((dataset, slot), crcs);
        }
    }

    /// What a member knows, once it was heard.
    pub(crate) fn heard(&self, dataset: DatasetId, slot: Slot) -> Option<&[Option<u32>]> {
        self.foreknown.get(&(dataset, slot)).map(Vec::as_slice)
    }

    /// What members know was used, or will not be.
    pub(crate) fn unhear(&mut self, dataset: DatasetId) {
        self.foreknown.retain(|(of, _), _| *of != dataset);
    }

    /// Whether a job is one of these.
    pub(crate) fn owns(event: &JobEvent) -> bool {
        let (JobEvent::Made { job, .. }
        | JobEvent::Progress { job, .. }
        | JobEvent::Done { job, .. }
        | JobEvent::Failed { job, .. }) = event;
        (FIRST_JOB..LAST_JOB).contains(&job.0)
    }

    /// The engine says something of one of these jobs.
    pub(crate) fn job_event(&mut self, now: Instant, event: &JobEvent) {
        let share = self.share_percent.max(1);
        let mut all = self.open.iter_mut();
        match event {
            JobEvent::Done { job, .. } => {
                if let Some((_, foreseen)) = all.find(|(_, it)| it.job == Some(*job)) {
                    let took = now.saturating_duration_since(foreseen.begun).as_nanos();
                    let rest = took * u128::from(100 - share) / u128::from(share);
                    let rest = Duration::from_nanos(u64::try_from(rest).unwrap_or(u64::MAX));
                    foreseen.rests_until = now + rest;
                    foreseen.next = foreseen.goal;
                    (foreseen.job, foreseen.failures) = (None, 0);
                }
            }
            JobEvent::Failed { job, error } => {
                if let Some((dataset, foreseen)) = all.find(|(_, it)| it.job == Some(*job)) {
                    // A log that has become shorter, or a member that is gone.
                    tracing::debug!(%dataset, %error, "nothing was encoded before the commit");
                    foreseen.rests_until = now + RETRY_AFTER;
                    foreseen.failures += 1;
                    foreseen.job = None;
                }
            }
            JobEvent::Made { .. } | JobEvent::Progress { .. } => {}
        }
    }

    /// When to take a turn although nothing has happened.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        let next = |it: &Foreseen| [it.rests_until, it.told_at + TELL_EVERY];
        let all = self.open.values().flat_map(next);
        let quiet = self.waits.then(|| self.quiet.may_be_at());
        all.filter(|at| *at > now).chain(quiet).min()
    }

    /// Tells the sets how far this node's logs reach, and begins to make parity where there is some to be made and
    /// nothing else to do. Returns what is to be sent.
    pub(crate) fn turn(
        &mut self,
        now: Instant,
        is_idle: bool,
        engine: &mut Engine,
    ) -> Vec<(Rank, Message)> {
        let mut messages = Vec::new();
        let is_free = is_idle && self.open.values().all(|it| it.job.is_none());
        let mut may_begin = is_free && self.share_percent > 0;
        let has_more = self.open.values().any(Foreseen::has_more);
        let is_quiet = has_more && {
            let root = self.paths.root();
            self.quiet.is_quiet(now, || used_bytes(root))
        };
        self.waits = has_more && !is_quiet;
        for (&dataset, foreseen) in &mut self.open {
            for bytes in foreseen.new_reach(now, is_quiet) {
                let slot = self.own;
                let set = foreseen.seal.set_of(slot).unwrap_or(&[]);
                let peers = set.iter().filter(|member| **member != slot);
                messages.extend(peers.map(|member| {
                    let reach = Message::Reach {
                        dataset,
                        slot,
                        bytes,
                    };
                    (Rank(member.0), reach)
                }));
            }
            if !(may_begin && is_quiet)
                || now < foreseen.rests_until
                || foreseen.failures > FAILURES_MAX
            {
                continue;
            }
            let room = self.paths.parity_room(dataset, self.own);
            let Some((from, to, geometry)) = foreseen.next_slice(&room) else {
                continue;
            };
            let job = JobId(FIRST_JOB + self.jobs);
            self.jobs = (self.jobs + 1) % FIRST_JOB;
            let plan = geometry.parity(self.own, from, to - from, foreseen.seal.unit_bytes);
            let holders = geometry.members().iter().map(|slot| (*slot, Rank(slot.0)));
            engine.start(job, dataset, Box::new(plan), holders.collect());
            (foreseen.job, foreseen.goal, foreseen.begun) = (Some(job), to, now);
            may_begin = false;
        }
        messages
    }

    /// The bytes of an extent of a provisional log; `None` when there is no such log.
    pub(crate) fn read(
        &self,
        dataset: DatasetId,
        extent: Extent,
    ) -> Option<Result<Bytes, TransferError>> {
        let foreseen = self.open.get(&dataset)?;
        let missing = || TransferError::Missing { dataset, extent };
        let end = extent.offset.checked_add(extent.len.into());
        let is_there = extent.slot == self.own
            && extent.stream == Stream::Data
            && end.is_some_and(|end| end <= foreseen.bytes);
        if !is_there {
            return Some(Err(missing()));
        }
        Some(foreseen.read(extent).map_err(|error| {
            tracing::debug!(%dataset, ?extent, %error, "a closed file cannot be read");
            missing()
        }))
    }

    /// The checksum of a unit of a provisional log.
    pub(crate) fn expected_crc(&self, dataset: DatasetId, extent: Extent) -> Option<u32> {
        let foreseen = self.open.get(&dataset)?;
        *foreseen.sums.get(foreseen.unit_of(extent)?)?
    }

    /// A unit of a provisional log was read.
    pub(crate) fn served(&mut self, dataset: DatasetId, extent: Extent, crc: u32) {
        let Some(foreseen) = self.open.get_mut(&dataset) else {
            return;
        };
        if let Some(unit) = foreseen.unit_of(extent) {
            if foreseen.sums.len() <= unit {
                foreseen.sums.resize(unit + 1, None);
            }
            foreseen.sums[unit] = Some(crc);
        }
    }

    /// A unit is not what it was. That its file was opened will be heard, or memory is bad: nothing from there on is
    /// believed.
    pub(crate) fn damaged(&mut self, dataset: DatasetId, extent: Extent) {
        if let Some(foreseen) = self.open.get_mut(&dataset)
            && extent.slot == self.own
        {
            let first = foreseen.first_at(extent.offset);
            let at = foreseen
                .log
                .get(first)
                .map_or(foreseen.bytes, |placed| placed.at);
            foreseen.log.truncate(first);
            foreseen.cut(at);
        }
    }

    /// Whether a dataset is being written.
    pub(crate) fn is_open(&self, dataset: DatasetId) -> bool {
        self.open.contains_key(&dataset)
    }

    /// Of what the parity is made that is written next.
    pub(crate) fn made_of(
        &mut self,
        dataset: DatasetId,
        destination: Extent,
        sources: &[(Extent, u32)],
    ) {
        if self.open.contains_key(&dataset) {
            self.making = Some((dataset, destination, sources.to_vec()));
        }
    }

    /// Keeps parity of a dataset that is being written; `None` when this is none.
    pub(crate) fn write(
        &mut self,
        dataset: DatasetId,
        extent: Extent,
        bytes: &[u8],
        crc: u32,
    ) -> Option<Result<(), TransferError>> {
        let foreseen = self.open.get_mut(&dataset)?;
        let broken = TransferError::BrokenPlan { dataset, extent };
        let making = self.making.take();
        let Some((_, _, sources)) = making.filter(|it| (it.0, it.1) == (dataset, extent)) else {
            return Some(Err(broken));
        };
        let room = foreseen
            .room
            .as_ref()
            .filter(|_| extent.stream == Stream::Parity);
        let Some(room) = room else {
            return Some(Err(broken));
        };
        let len = extent.len;
        // Until it is whole it is not what it was.
        foreseen.made.remove(&extent.offset);
        Some(match room.write_all_at(bytes, extent.offset) {
            Ok(()) => {
                let made = Made { len, crc, sources };
                foreseen.made.insert(extent.offset, made);
                Ok(())
            }
            Err(error) => Err(TransferError::Io {
                dataset,
                extent,
                errno: error.raw_os_error().unwrap_or(libc::EIO),
            }),
        })
    }
}

/// Bytes in use where a directory lies.
fn used_bytes(directory: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(directory).ok()?;
    let blocks = found.blocks().saturating_sub(found.blocks_free());
    Some(blocks.saturating_mul(found.fragment_size()))
}

/// Device and number of a file that is there.
pub(crate) fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path)
        .ok()
        .map(|found| (found.dev(), found.ino()))
}
