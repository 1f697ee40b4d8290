//! Pieces of sealed datasets, for daemons whose node does not have them: the manifest of a slot, or
//! bytes of its part log.
//!
//! A daemon asks its own coordinator, that one the ranks that may hold the slot, one after the other:
//! the one that had it last, the one of the slot's number, then the rest. Whoever holds it reads it on
//! another thread and holds every unit against its checksum, where one is known. Of a slot that the
//! leader has said is lost nobody is asked: its bytes are made of the rest of its set, in `lost`.
//!
//! Invariants: a daemon's request is answered exactly once. Nothing is served but what is sealed, in
//! the words it was asked for. Bytes read for peers that the fabric has not let go of stay below
//! [`LENT_BYTES_MAX`], and below [`LENT_BYTES_A_PEER`] for each, but for one piece; whoever asks
//! meanwhile waits, and costs a few words. So nobody who asks for much holds up the others, nor what
//! else this node has to say to that peer. A daemon bounds how much it asks for at once.
//!
//! What it does not do: recompute what is damaged on a node that holds it.

mod lost;

use crate::part::{Part, SealedPart, records};
use crate::parts::Parts;
use crate::tasks::{Event, Tasks};
use crate::transfer::source::Loan;
use crate::transfer::{JobEvent, JobId};
use bytes::Bytes;
use lost::Lost;
use scrfs::control::{FRAME_BYTES_MAX, PIECE_BYTES_MAX, Piece, Refusal};
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::envelope::crc32c;
use scrfs::layout::path::{CachePaths, Keep};
use scrfs::layout::record::{DatasetRecord, Phase};
use scrfs::protocol::message::{Message, Metadata};
use scrfs::redundancy::Stream;
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes read for peers at once.
const LENT_BYTES_MAX: u64 = 16 << 20;

/// Of them, for one peer: messages of a pair keep their order, so everything else waits behind these.
const LENT_BYTES_A_PEER: u64 = 4 << 20;

/// A piece, or why there is none.
type Result<T> = std::result::Result<T, Refusal>;

/// Names a piece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wanted {
    /// Of which dataset.
    pub(crate) dataset: DatasetId,
    /// Of which slot.
    pub(crate) slot: Slot,
    /// What.
    pub(crate) piece: Piece,
}

/// For whom a piece is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum For {
    /// This node's daemon, by our ticket.
    Daemon(u64),
    /// A peer, by its ticket.
    Peer(Rank, u64),
}

/// A piece was read on another thread.
#[derive(Debug)]
pub(crate) struct Read {
    whom: For,
    bytes: u64,
    result: Result<Bytes>,
}

/// What is to be done now.
#[derive(Debug, Default)]
pub(crate) struct Todo {
    /// To be sent.
    pub(crate) messages: Vec<(Rank, Message)>,
    /// The daemon's requests that are answered.
    pub(crate) answers: Vec<(u64, Result<Bytes>)>,
    /// Reads that the engine is to begin.
    pub(crate) reads: Vec<lost::Read>,
    /// Reads that it is to forget.
    pub(crate) cancelled: Vec<JobId>,
    /// Pieces of lost slots, by our ticket; taken up before anybody else sees this.
    made: Vec<(u64, Result<Bytes>)>,
}

/// A request of the daemon under way.
#[derive(Debug)]
struct Asked {
    request: u64,
    wanted: Wanted,
    /// Who has not been asked yet.
    left: VecDeque<Rank>,
    /// Whose answer is awaited.
    at: Rank,
    /// Somebody said that it may yet come.
    again: bool,
}

/// All pieces under way on this node.
#[derive(Debug)]
pub(crate) struct Pieces {
    me: Rank,
    size: u32,
    tickets: u64,
    asked: BTreeMap<u64, Asked>,
    /// Who had a slot when it was last asked for.
    holders: HashMap<(DatasetId, Slot), Rank>,
    /// Peers that wait for their turn.
    queue: VecDeque<(Rank, u64, Wanted)>,
    /// Bytes being read, or still with the fabric, for each peer that ever asked.
    busy: BTreeMap<Rank, Busy>,
    lost: Lost,
}

/// What one peer keeps busy.
#[derive(Debug, Default)]
struct Busy {
    reading: u64,
    lent: Arc<AtomicU64>,
}

impl Busy {
    fn bytes(&self) -> u64 {
        self.reading + self.lent.load(Ordering::Relaxed)
    }
}

impl Pieces {
    /// Nobody has asked yet.
    pub(crate) fn new(me: Rank, size: u32) -> Self {
        Self {
            me,
            size,
            tickets: 0,
            asked: BTreeMap::new(),
            holders: HashMap::new(),
            queue: VecDeque::new(),
            busy: BTreeMap::new(),
            lost: Lost::default(),
        }
    }

    /// The leader says what is lost of a dataset, and who has the rest; nothing lost: it is whole.
    pub(crate) fn learn_losses(
        &mut self,
        dataset: DatasetId,
        holders: &[(Slot, Rank)],
        lost: &[Slot],
        parts: &Parts,
        tasks: &Tasks,
        todo: &mut Todo,
    ) {
        for &(slot, rank) in holders {
            self.holders.insert((dataset, slot), rank);
        }
        let holders: BTreeMap<Slot, Rank> = holders.iter().copied().collect();
        let lost: BTreeSet<Slot> = lost.iter().copied().collect();
        self.lost.learn(dataset, holders, lost, parts, todo);
        self.take_made(parts, tasks, todo);
    }

    /// The engine says something of a job; whether it is one of these.
    pub(crate) fn owns(event: &JobEvent) -> bool {
        let (JobEvent::Made { job, .. }
        | JobEvent::Progress { job, .. }
        | JobEvent::Done { job, .. }
        | JobEvent::Failed { job, .. }) = event;
        Lost::owns(*job)
    }

    /// The engine says something of one of these jobs.
    pub(crate) fn job_event(
        &mut self,
        event: JobEvent,
        parts: &Parts,
        tasks: &Tasks,
        todo: &mut Todo,
    ) {
        match event {
            JobEvent::Made { job, extent, bytes } => {
                self.lost.made(job, extent, &bytes, parts, todo);
            }
            JobEvent::Progress { .. } => {}
            JobEvent::Done { job, .. } => self.lost.ended(job, Ok(()), parts, todo),
            JobEvent::Failed { job, error } => self.lost.ended(job, Err(error), parts, todo),
        }
        self.take_made(parts, tasks, todo);
    }

    /// A peer says what it knows of a slot.
    pub(crate) fn told(
        &mut self,
        from: Rank,
        slot: (DatasetId, Slot),
        metadata: Option<&Metadata>,
        parts: &Parts,
        tasks: &Tasks,
        todo: &mut Todo,
    ) {
        self.lost.told(from, slot, metadata, parts, todo);
        self.take_made(parts, tasks, todo);
    }

    /// Answers with what was made of other slots, or could not be.
    fn take_made(&mut self, parts: &Parts, tasks: &Tasks, todo: &mut Todo) {
        for (ticket, result) in std::mem::take(&mut todo.made) {
            self.come((ticket, self.me), result, parts, tasks, todo);
        }
    }

    /// The daemon wants a piece. `is_ready`: recovery has ended, and what is not here now will not come.
    pub(crate) fn fetch(
        &mut self,
        request: u64,
        wanted: Wanted,
        is_ready: bool,
        parts: &Parts,
        tasks: &Tasks,
        todo: &mut Todo,
    ) {
        if let Err(refusal) = check(parts.record(wanted.dataset), &wanted) {
            let refusal = if is_ready { refusal } else { Refusal::Again };
            return todo.answers.push((request, Err(refusal)));
        }
        let known = self.holders.get(&(wanted.dataset, wanted.slot)).copied();
        let mine = is_here(parts.paths(), &wanted).then_some(self.me);
        let likely = Some(Rank(wanted.slot.0)).filter(|rank| rank.0 < self.size);
        let mut left: VecDeque<Rank> = VecDeque::new();
        let all = (0..self.size).map(Rank);
        let is_lost = self.lost.is_lost(wanted.dataset, wanted.slot);
        let keepers = match is_lost {
            true => self.lost.keepers(&wanted, parts),
            false => Vec::new(),
        };
        let likely = keepers.into_iter().chain(known).chain(likely);
        for rank in mine.into_iter().chain(likely).chain(all) {
            if (rank != self.me || mine.is_some()) && !left.contains(&rank) {
                left.push_back(rank);
            }
        }
        let is_made = is_lost && matches!(wanted.piece, Piece::Log { .. });
        if is_made {
            left.clear();
        }
        self.tickets += 1;
        let (ticket, made) = (self.tickets, wanted.clone());
        let asked = Asked {
            request,
            wanted,
            left,
            at: self.me,
            again: !is_ready,
        };
        self.asked.insert(ticket, asked);
        if is_made {
            self.lost.begin(ticket, made, parts, todo);
            self.take_made(parts, tasks, todo);
        } else {
            self.ask_next(ticket, parts, tasks, todo);
        }
    }

    /// Asks the next rank, or gives up.
    fn ask_next(&mut self, ticket: u64, parts: &Parts, tasks: &Tasks, todo: &mut Todo) {
        let Some(asked) = self.asked.get_mut(&ticket) else {
            return;
        };
        if let Some(rank) = asked.left.pop_front() {
            asked.at = rank;
            let wanted = asked.wanted.clone();
            if rank == self.me {
                read(For::Daemon(ticket), wanted, parts, tasks);
            } else {
                let Wanted {
                    dataset,
                    slot,
                    piece,
                } = wanted;
                let message = Message::WantPiece {
                    ticket,
                    dataset,
                    slot,
                    piece,
                };
                todo.messages.push((rank, message));
            }
            return;
        }
        if let Some(Asked {
            request,
            wanted,
            again,
            ..
        }) = self.asked.remove(&ticket)
        {
            let refusal = if again {
                Refusal::Again
            } else {
                tracing::error!(?wanted, "nobody can serve it");
                Refusal::Failed
            };
            todo.answers.push((request, Err(refusal)));
        }
    }

    fn come(
        &mut self,
        (ticket, from): (u64, Rank),
        result: Result<Bytes>,
        parts: &Parts,
        tasks: &Tasks,
        todo: &mut Todo,
    ) {
        let Some(asked) = self.asked.get_mut(&ticket).filter(|asked| asked.at == from) else {
            tracing::warn!(ticket, %from, "a piece that was not asked for");
            return;
        };
        let fits = |bytes: &[u8]| match asked.wanted.piece {
            Piece::Manifest => bytes.len() <= MANIFEST_BYTES_MAX,
            Piece::Log { len, .. } => bytes.len() == len as usize,
        };
        match result {
            Ok(bytes) if fits(&bytes) => {
                let key = (asked.wanted.dataset, asked.wanted.slot);
                todo.answers.push((asked.request, Ok(bytes)));
                self.asked.remove(&ticket);
                if from != self.me {
                    self.holders.insert(key, from);
                }
            }
            Ok(bytes) => {
                tracing::error!(wanted = ?asked.wanted, %from, bytes = bytes.len(), "wrong length");
                self.ask_next(ticket, parts, tasks, todo);
            }
            Err(refusal) => {
                asked.again |= refusal == Refusal::Again;
                self.ask_next(ticket, parts, tasks, todo);
            }
        }
    }

    /// A peer has a piece for us, or has not.
    pub(crate) fn have(
        &mut self,
        from: Rank,
        ticket: u64,
        result: Result<Bytes>,
        parts: &Parts,
        tasks: &Tasks,
        todo: &mut Todo,
    ) {
        self.come((ticket, from), result, parts, tasks, todo);
    }

    /// A peer wants a piece.
    pub(crate) fn want(
        &mut self,
        from: Rank,
        ticket: u64,
        wanted: Wanted,
        parts: &Parts,
        tasks: &Tasks,
        todo: &mut Todo,
    ) {
        let record = parts.record(wanted.dataset);
        // The asker has been told of the seal; the same order may still be on its way to here.
        let is_early = record.is_none_or(|record| record.phase == Phase::Open);
        let here = match check(record, &wanted) {
            Ok(()) if is_here(parts.paths(), &wanted) => Ok(()),
            Ok(()) => Err(Refusal::Missing),
            Err(_) if is_early => Err(Refusal::Again),
            Err(refusal) => Err(refusal),
        };
        match here {
            Ok(()) => {
                self.queue.push_back((from, ticket, wanted));
                self.serve(parts, tasks);
            }
            Err(refusal) => {
                let result = Err(refusal);
                let message = Message::HavePiece { ticket, result };
                todo.messages.push((from, message));
            }
        }
    }

    /// Serves those who wait, as far as the bound allows. To be called whenever the fabric may have
    /// let go of something.
    pub(crate) fn serve(&mut self, parts: &Parts, tasks: &Tasks) {
        while self.busy.values().map(Busy::bytes).sum::<u64>() < LENT_BYTES_MAX {
            let may = |(from, ..): &(Rank, u64, Wanted)| {
                let busy = self.busy.get(from).map_or(0, Busy::bytes);
                busy < LENT_BYTES_A_PEER
            };
            let next = self.queue.iter().position(may);
            let Some((from, ticket, wanted)) = next.and_then(|next| self.queue.remove(next)) else {
                return;
            };
            self.busy.entry(from).or_default().reading += bytes_of(&wanted);
            read(For::Peer(from, ticket), wanted, parts, tasks);
        }
    }

    /// Whether peers wait until the fabric lets go of something.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// A piece was read here.
    pub(crate) fn read(&mut self, read: Read, parts: &Parts, tasks: &Tasks, todo: &mut Todo) {
        let Read {
            whom,
            bytes,
            result,
        } = read;
        match whom {
            For::Daemon(ticket) => self.come((ticket, self.me), result, parts, tasks, todo),
            For::Peer(to, ticket) => {
                let busy = self.busy.entry(to).or_default();
                busy.reading = busy.reading.saturating_sub(bytes);
                let message = Message::HavePiece { ticket, result };
                todo.messages.push((to, message));
            }
        }
    }

    /// Counts the bytes of a piece that is sent to a peer until the fabric drops them.
    pub(crate) fn lend(&mut self, to: Rank, bytes: Vec<u8>) -> Bytes {
        let busy = self.busy.entry(to).or_default();
        Bytes::from_owner(Loan::new(bytes.into(), &busy.lent))
    }
}

/// Longest manifest that is passed to a daemon: it has to fit into one frame. Enough for some
/// hundred thousand files a node.
const MANIFEST_BYTES_MAX: usize = FRAME_BYTES_MAX - (1 << 20);

/// What a piece weighs while it is read.
fn bytes_of(wanted: &Wanted) -> u64 {
    match wanted.piece {
        Piece::Manifest => u64::from(PIECE_BYTES_MAX),
        Piece::Log { len, .. } => len.into(),
    }
}

/// That there can be such a piece: of a sealed dataset, and in its part log.
fn check(record: Option<&DatasetRecord>, wanted: &Wanted) -> Result<()> {
    let sealed = record.filter(|record| record.is_cached());
    let seal = sealed.and_then(|record| record.seal.as_ref());
    let part = seal.and_then(|seal| seal.part(wanted.slot));
    let part = part.ok_or(Refusal::Missing)?;
    match wanted.piece {
        Piece::Manifest => Ok(()),
        Piece::Log { offset, len } => {
            let end = offset.checked_add(len.into());
            let lies_in = end.is_some_and(|end| end <= part.log_bytes);
            let fits = len > 0 && len <= PIECE_BYTES_MAX;
            (lies_in && fits).then_some(()).ok_or(Refusal::Failed)
        }
    }
}

/// Whether it is worth looking for on this node.
fn is_here(paths: &CachePaths, wanted: &Wanted) -> bool {
    let Wanted { dataset, slot, .. } = *wanted;
    match wanted.piece {
        Piece::Manifest => [Keep::Own, Keep::Copy]
            .into_iter()
            .any(|keep| paths.manifest(dataset, slot, keep).exists()),
        Piece::Log { .. } => paths.slot(dataset, slot, Keep::Own).exists(),
    }
}

/// Reads a piece on another thread.
fn read(whom: For, wanted: Wanted, parts: &Parts, tasks: &Tasks) {
    let bytes = bytes_of(&wanted);
    let part = match wanted.piece {
        Piece::Manifest => None,
        Piece::Log { .. } => Some(parts.open(wanted.dataset, wanted.slot)),
    };
    let record = parts.record(wanted.dataset).cloned();
    let paths = parts.paths().clone();
    tasks.spawn(move |_| {
        let result = match (&wanted.piece, part) {
            (Piece::Log { offset, len }, Some(Ok(part))) => read_log(&part, *offset, *len),
            (Piece::Log { .. }, Some(Err(error))) => {
                tracing::error!(?wanted, %error, "cannot be read here");
                Err(Refusal::Failed)
            }
            _ => read_manifest(&paths, record.as_ref(), &wanted),
        };
        Event::Read(Read {
            whom,
            bytes,
            result,
        })
    });
}

/// Bytes of a part log, whole units of it held against their checksums.
fn read_log(part: &Part, offset: u64, len: u32) -> Result<Bytes> {
    if part.is_restoring() {
        return Err(Refusal::Again);
    }
    let unit_bytes = u64::from(part.unit_bytes()).max(1);
    let log_bytes = part.stream_bytes(Stream::Data);
    let first = offset / unit_bytes;
    let from = first * unit_bytes;
    let to = (offset + u64::from(len))
        .next_multiple_of(unit_bytes)
        .min(log_bytes);
    let whole = u32::try_from(to.saturating_sub(from)).map_err(|_| Refusal::Failed)?;
    let bytes = part.read_data(from, whole).map_err(|error| {
        tracing::error!(%error, "a piece cannot be read");
        Refusal::Failed
    })?;
    let unit_len = usize::try_from(unit_bytes).map_err(|_| Refusal::Failed)?;
    for (unit, bytes) in (first..).zip(bytes.chunks(unit_len)) {
        let unit = usize::try_from(unit).map_err(|_| Refusal::Failed)?;
        let found = crc32c(bytes);
        // Not noted when it is not known yet: the encode does that, and counts them.
        if let Some(expected) = part.sum(Stream::Data, unit)
            && expected != found
        {
            let part = part.id();
            tracing::error!(%part, unit, expected, found, "damaged: it is not served");
            return Err(Refusal::Failed);
        }
    }
    let start = (offset - from) as usize;
    let end = start + len as usize;
    if end > bytes.len() {
        return Err(Refusal::Failed);
    }
    Ok(bytes.slice(start..end))
}

/// A manifest that is kept here, if it is the sealed one.
fn read_manifest(
    paths: &CachePaths,
    record: Option<&DatasetRecord>,
    wanted: &Wanted,
) -> Result<Bytes> {
    let sealed = record.and_then(|record| SealedPart::of(record, wanted.slot).ok());
    let sealed = sealed.ok_or(Refusal::Missing)?;
    let kept = [Keep::Own, Keep::Copy].into_iter().find_map(|keep| {
        let path = paths.manifest(wanted.dataset, wanted.slot, keep);
        let bytes = PosixStore::new().get(&path).ok().flatten()?;
        let stored = records::decode_manifest(sealed.part, &path, &bytes);
        match stored.and_then(|stored| sealed.check_manifest(&path, &stored)) {
            Ok(()) if bytes.len() > MANIFEST_BYTES_MAX => {
                let length = bytes.len();
                tracing::error!(
                    ?path,
                    length,
                    most = MANIFEST_BYTES_MAX,
                    "too long to be served"
                );
                None
            }
            Ok(()) => Some(Bytes::from(bytes)),
            Err(error) => {
                tracing::error!(%error, "a manifest that is not served");
                None
            }
        }
    });
    kept.ok_or(Refusal::Missing)
}

#[cfg(test)]
mod tests;
