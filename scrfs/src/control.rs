//! What passes over a node's control socket: daemon and coordinator, daemon and commands.
//!
//! Frames on a unix stream socket: length (4 bytes, little endian, at most [`FRAME_BYTES_MAX`]), then
//! one postcard value. The first frame of a connection is a [`Hello`]; a coordinator's connection
//! then carries [`ToDaemon`] one way and [`FromDaemon`] the other, a command's one
//! [`Command`] and its [`Answer`].
//!
//! The daemon owns the namespace and the kernel; the coordinator owns every record and decides with
//! its peers. Invariants of the conversation:
//!
//! - One coordinator at a time. A newer epoch takes over, an older one is refused.
//! - What carries a `sequence` is answered by exactly one [`FromDaemon::Done`] with it; what carries
//!   a `request` is answered by exactly one [`ToDaemon::Reply`]. Nothing else is answered.
//! - A dataset the daemon has frozen stays frozen until [`ToDaemon::Thaw`] or a
//!   [`ToDaemon::Dataset`] that seals it; also when the coordinator dies in between, because other
//!   nodes may know that it is sealed.

use crate::findings::Findings;
use crate::id::{DatasetId, Epoch, Rank, Slot};
use crate::interval::{Learnt, Question, Verdict, Verdicts};
use crate::layout::pointer::{Pointer, PointerRecord};
use crate::layout::record::{DatasetRecord, UnixMillis};
use crate::name::{Name, RelPath};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// Longest frame either side accepts.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// Both sides must speak the same.
pub const PROTOCOL_VERSION: u32 = 9;

/// The first frame of every connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the caller.
    pub version: u32,
    /// Who calls.
    pub role: Role,
}

/// Who calls the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Role {
    /// This node's coordinator of an epoch.
    Coordinator {
        /// Its epoch.
        epoch: Epoch,
        /// Its rank in it.
        rank: Rank,
        /// How many ranks there are.
        size: u32,
        /// The slot this node holds.
        slot: Slot,
        /// Its process, to be killed when the epoch ends.
        pid: u32,
    },
    /// A command, such as `scrfs status`.
    Command,
}

/// What the daemon answers to a [`Hello`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Welcome {
    /// Go on.
    Accepted {
        /// The daemon's node name.
        node: String,
        /// The job's cache directory in the first store.
        cache: PathBuf,
        /// Those in the further stores, in order.
        further: Vec<PathBuf>,
        /// The effective configuration, as JSON.
        config: String,
        /// Where the filesystem is mounted.
        mountpoint: PathBuf,
    },
    /// Not with us: another version, or a newer epoch is here.
    Refused(String),
}

/// An errno, so that the kernel can be told what the coordinator found out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Refusal {
    /// Writers are still at work somewhere, or another proposal is under way (`EBUSY`).
    Busy,
    /// The name is taken (`EEXIST`).
    Exists,
    /// No such dataset or path (`ENOENT`).
    Missing,
    /// A directory that is not empty (`ENOTEMPTY`).
    NotEmpty,
    /// Sealed (`EROFS`).
    ReadOnly,
    /// No space for it on some node (`ENOSPC`).
    NoSpace,
    /// Something failed; the log says what (`EIO`).
    Failed,
    /// The coordinators went away before it was decided (`EAGAIN`).
    Again,
    /// What is kept is not what was stored, by its checksum (`EIO`).
    Damaged,
    /// The prefix is not to be had just now (`EIO`): another try may go well.
    Unavailable,
}

/// A change of directories in an open dataset, or of what is shown of a sealed one, carried out on every node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DirectoryChange {
    /// Make a directory. It existing already is `Exists` to the caller and nothing to the others.
    Make {
        /// Where.
        path: RelPath,
        /// Permission bits after umask.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Remove an empty directory; on other nodes, one that is not empty stays.
    Remove {
        /// Which.
        path: RelPath,
    },
    /// Rename a directory. Where it was done already under this token, nothing happens.
    Rename {
        /// From.
        from: RelPath,
        /// To.
        to: RelPath,
        /// Of this rename and no other.
        token: u64,
    },
    /// Exchange two directories. Where it was done already under this token, nothing happens: else
    /// asking for it again would undo it.
    Exchange {
        /// The one that gets the token.
        one: RelPath,
        /// The other.
        other: RelPath,
        /// Of this exchange and no other.
        token: u64,
    },
    /// Of a sealed dataset: each node tells all others which names it hides, before it says that this is done.
    TellHidden,
    /// Of a sealed dataset: show these names no longer.
    Hide {
        /// Which; at most [`HIDDEN_BYTES_MAX`] together.
        names: Vec<RelPath>,
    },
}

/// Bytes of the names of one [`DirectoryChange::Hide`], but for the last of them.
pub const HIDDEN_BYTES_MAX: usize = 1 << 20;

impl DirectoryChange {
    /// Whether it is one of what is shown of a sealed dataset.
    pub fn is_of_sealed(&self) -> bool {
        matches!(self, Self::TellHidden | Self::Hide { .. })
    }
}

/// One pointer file is to be another, or to go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PointerChange {
    /// Which.
    pub name: Name,
    /// What it shall be; `None` removes it.
    pub pointer: Option<Pointer>,
}

/// What a program asked of the mount that concerns other nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// `mkdir` at the top: a new open dataset, on every node.
    Create {
        /// Its name.
        name: Name,
        /// Permission bits after umask.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A change of directories inside an open dataset. The daemon has *not* done it: it comes back
    /// as [`ToDaemon::Change`], to this node as to all others.
    Change {
        /// Of which dataset.
        dataset: DatasetId,
        /// What.
        change: DirectoryChange,
    },
    /// `rename` at the top to a name that still looks temporary: no commit.
    Rename {
        /// Which dataset.
        dataset: DatasetId,
        /// Its new name.
        to: Name,
    },
    /// Propose to commit, under a name that may be the one it has. Answered when it is sealed (or as
    /// far as `commit.wait` says), or refused.
    Commit {
        /// Which dataset.
        dataset: DatasetId,
        /// The name to commit it under.
        to: Name,
        /// For how many milliseconds every node must have been quiet since it was asked: 0 when the
        /// program says that all is written, more when that is only guessed (ADR 0011).
        settle_ms: u64,
    },
    /// Remove a dataset, on every node: its name is free when it is answered. What is sealed is kept
    /// out of sight until a newer checkpoint is as safe.
    Remove {
        /// Which.
        dataset: DatasetId,
    },
    /// Change pointer files, all of these at once: a rename is a new one and a removed one. Answered
    /// when every node has them.
    Point {
        /// Which, and to what.
        changes: Vec<PointerChange>,
        /// Only if there is none of this name.
        absent: Option<Name>,
    },
    /// Answered when the dataset has come this far.
    Wait {
        /// Which.
        dataset: DatasetId,
        /// How far.
        level: Level,
    },
    /// Flush it now, whatever the configuration says; answered when the prefix has it.
    Flush {
        /// Which.
        dataset: DatasetId,
    },
    /// Bring a dataset of the prefix into the caches; answered when it is there.
    Fetch {
        /// Which: the newest of that name.
        name: Name,
    },
    /// Programs have ended: the latest checkpoint goes to the prefix as well. Answered when every node
    /// knows what is due.
    End,
    /// Read all that the caches have of it, hold it against its checksums, and repair what can be.
    /// Answered at the end; what was found comes before, as [`ToDaemon::Verified`].
    Verify {
        /// Which.
        dataset: DatasetId,
    },
}

/// How far a wait goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Level {
    /// Committed.
    Sealed,
    /// Survives what its scheme promises.
    Protected,
    /// Complete in the prefix.
    Flushed,
}

/// How a node fares, for `.scr/nodes` and `scrfs status`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: String,
    /// Its rank in this epoch.
    pub rank: Rank,
    /// The slot it holds.
    pub slot: Slot,
    /// Bytes free in its cache.
    pub free_bytes: u64,
}

/// How far a flush, fetch, encode or rebuild of one dataset has come, over all nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// Of which dataset.
    pub dataset: DatasetId,
    /// What is being done.
    pub activity: Activity,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// Long work on a dataset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Activity {
    /// Adding parity.
    Encode,
    /// Recomputing lost files.
    Rebuild,
    /// Cache to prefix.
    Flush,
    /// Prefix to cache.
    Fetch,
    /// Holding it against its checksums.
    Verify,
}

/// A piece of a sealed dataset that lies on another node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Piece {
    /// The encoded manifest of a slot, the one that was sealed.
    Manifest,
    /// `len` bytes from `offset` of the slot's part log, checked against its checksums.
    Log {
        /// Where it begins.
        offset: u64,
        /// How long it is, at most [`PIECE_BYTES_MAX`].
        len: u32,
    },
}

/// Longest piece of a part log that is asked for at once.
pub const PIECE_BYTES_MAX: u32 = 4 << 20;

/// A dataset that only the prefix has: what is shown of it to who opens something in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shelved {
    /// Its number.
    pub id: DatasetId,
    /// Its name.
    pub name: Name,
    /// When it was committed.
    pub sealed: UnixMillis,
    /// Permissions of its top directory.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Shelved {
    /// What is shown of a dataset.
    pub fn of(record: &DatasetRecord) -> Self {
        Self {
            id: record.id,
            name: record.name.clone(),
            sealed: record.sealed.unwrap_or(record.created),
            mode: record.mode,
            uid: record.uid,
            gid: record.gid,
        }
    }
}

/// Coordinator to daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToDaemon {
    /// A dataset is now as the record says: new, renamed, sealed, protected, flushed. The record is
    /// on disk already. Answered by `Done` when programs see it.
    Dataset {
        /// To be answered with.
        sequence: u64,
        /// All of it.
        record: Box<DatasetRecord>,
    },
    /// A dataset is no more; its files are about to be removed. Answered by `Done`.
    Forget {
        /// To be answered with.
        sequence: u64,
        /// Which.
        dataset: DatasetId,
    },
    /// These pointer files are now as the records say; they are on disk already. Answered by `Done`
    /// when programs see them.
    Pointers {
        /// To be answered with.
        sequence: u64,
        /// These are all there are; others are gone.
        all: bool,
        /// By name.
        records: Vec<(Name, PointerRecord)>,
    },
    /// Carry out a change of directories. Answered by `Done`.
    Change {
        /// To be answered with.
        sequence: u64,
        /// In which dataset.
        dataset: DatasetId,
        /// What.
        change: DirectoryChange,
    },
    /// Say [`FromDaemon::Quiet`] as soon as no writable handle is open under the dataset, and
    /// again whenever that comes true anew, until it is sealed or `Thaw` comes.
    Quiesce {
        /// Which.
        dataset: DatasetId,
        /// Nothing must have changed for so many milliseconds, counted from this message at the
        /// earliest.
        settle_ms: u64,
    },
    /// If nothing has changed since `generation`, let nothing change from now on (programs that
    /// try wait). Answered by `Done`: `Ok` frozen, `Err(Busy)` not.
    Freeze {
        /// To be answered with.
        sequence: u64,
        /// Which.
        dataset: DatasetId,
        /// From the last `Quiet`.
        generation: u64,
    },
    /// Ends `Quiesce` and `Freeze`.
    Thaw {
        /// Which.
        dataset: DatasetId,
    },
    /// The answer to a request.
    Reply {
        /// Of which request.
        request: u64,
        /// What to tell the program.
        result: Result<(), Refusal>,
    },
    /// The answer to [`FromDaemon::Fetch`].
    Piece {
        /// Of which request.
        request: u64,
        /// Exactly what was asked for, or why it is not to be had. Not a vector: of that each byte
        /// would be encoded by itself.
        result: Result<Bytes, Refusal>,
    },
    /// The answer to [`FromDaemon::Question`].
    Verdict {
        /// Of which request.
        request: u64,
        /// What the program is told.
        verdict: Verdict,
    },
    /// The files of a dataset lie in another store of this node now. Not answered.
    Moved {
        /// Of which.
        dataset: DatasetId,
    },
    /// What the prefix is to have and has not.
    Due(Vec<DatasetId>),
    /// What only the prefix has and this job never had; instead of what was said before.
    Shelf(Vec<Shelved>),
    /// Which failures and recoveries this job has had; for the advice.
    Learnt(Learnt),
    /// For the status files. Done bytes equal to all of them: it has ended.
    Progress(Progress),
    /// These slots of a sealed dataset are lost and not rebuilt yet; what is read of them is made of
    /// the others. Empty: it is whole again.
    Missing {
        /// Of which dataset.
        dataset: DatasetId,
        /// Which.
        slots: Vec<Slot>,
        /// Something of it is still to be made again, if only parity: it is not protected as it was.
        weak: bool,
    },
    /// What a verify has found that was asked for here; its answer comes after it.
    Verified {
        /// Of which dataset.
        dataset: DatasetId,
        /// What.
        findings: Box<Findings>,
    },
    /// For `.scr/nodes`.
    Nodes(Vec<NodeStatus>),
    /// Recovery has ended: programs may start. `restart` is the dataset to restart from.
    Ready {
        /// The dataset `.scr/restart` names.
        restart: Option<DatasetId>,
        /// Programs start anew: what those before them had begun is not gone on with.
        new_run: bool,
    },
}

/// How a node's stores fare.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Pressure {
    /// In the order of the configuration; one a store.
    pub stores: Vec<StorePressure>,
    /// Sealed datasets of which programs have files open here, by number.
    pub in_use: Vec<DatasetId>,
}

/// How one store of a node fares.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StorePressure {
    /// Bytes to be freed here before another dataset like the last one will fit; 0 when it does.
    pub wanted_bytes: u64,
    /// A dataset that is being written will not fit without: even the newest checkpoint may go, if the
    /// prefix has it.
    pub urgent: bool,
    /// Sealed datasets that lie in it, by number.
    pub holds: Vec<DatasetId>,
}

/// What a node has for another dataset, in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Room {
    /// As large as the last one was.
    pub last_bytes: u64,
    /// What may be written to each store, besides what open datasets are expected to write.
    pub available: Vec<u64>,
}

/// Daemon to coordinator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FromDaemon {
    /// A program's request.
    Request {
        /// To be answered with.
        request: u64,
        /// What is asked.
        what: Request,
    },
    /// A piece of a sealed dataset is wanted; answered by exactly one [`ToDaemon::Piece`]. What was
    /// asked of a coordinator that went is asked again of the next.
    Fetch {
        /// To be answered with; numbered apart from requests.
        request: u64,
        /// Of which dataset.
        dataset: DatasetId,
        /// Of which slot.
        slot: Slot,
        /// What.
        piece: Piece,
    },
    /// A program asks whether to checkpoint; answered by exactly one [`ToDaemon::Verdict`], once programs may
    /// start.
    Question {
        /// To be answered with; numbered with requests.
        request: u64,
        /// In which round.
        question: Question,
    },
    /// What programs here were told by coordinators before; said before any question.
    Verdicts(Verdicts),
    /// The answer to what carried this sequence.
    Done {
        /// Of which message.
        sequence: u64,
        /// How it went.
        result: Result<(), Refusal>,
    },
    /// No writable handle is open under the dataset. Any later change raises the generation.
    Quiet {
        /// Which.
        dataset: DatasetId,
        /// To be given to `Freeze`.
        generation: u64,
    },
    /// The dataset changed after a `Quiet`: what was voted no longer holds.
    Disturbed {
        /// Which.
        dataset: DatasetId,
        /// The generation now.
        generation: u64,
    },
    /// Move a sealed dataset on this node from the store it lies in to a slower one; said again while it is
    /// wanted. When it has been done, [`ToDaemon::Moved`] says so.
    Move {
        /// Which.
        dataset: DatasetId,
        /// The store's place in the order of the configuration.
        to: u32,
    },
    /// Nobody can write this file of an open dataset any more without opening it, of which [`Self::Reopened`] tells
    /// before anything that may follow.
    Closed {
        /// Of which dataset.
        dataset: DatasetId,
        /// Its number in the cache.
        ino: u64,
        /// Where it is now.
        path: RelPath,
    },
    /// A file that was closed is about to be written, cut or removed.
    Reopened {
        /// Of which dataset.
        dataset: DatasetId,
        /// Its number in the cache.
        ino: u64,
    },
    /// How this node's cache fares; said when that changes, and again while it wants anything.
    Pressure(Pressure),
    /// Finish: flush what is pending if asked to, then go.
    Stop {
        /// Whether pending flushes are waited for.
        finish_flushes: bool,
    },
}

/// A command's question. Answered by one [`Answer`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// What `scrfs status --json` prints.
    Status,
    /// A [`Room`], as JSON.
    Room,
    /// As if a program had asked, with the dataset given by name.
    Commit {
        /// Which.
        name: Name,
    },
    /// Wait for a state.
    Wait {
        /// Which.
        name: Name,
        /// How far.
        level: Level,
    },
    /// Flush now.
    Flush {
        /// Which.
        name: Name,
    },
    /// Fetch now.
    Fetch {
        /// Which.
        name: Name,
    },
    /// The job has ended: what is left for the prefix is due.
    End,
    /// Verify what the caches have of it; the answer is [`Findings`], as JSON.
    Verify {
        /// Which.
        dataset: DatasetId,
    },
    /// Send heartbeats to this address from now on, and obey the supervisor there.
    Attach {
        /// `host:port` of the supervisor's UDP socket.
        supervisor: String,
        /// Shared secret of this `scrfs run`.
        token: u64,
        /// Of two supervisors that want this node at once the one with the higher number gets it.
        number: u64,
    },
    /// Unmount and end.
    Unmount {
        /// Wait for pending flushes first.
        finish_flushes: bool,
        /// Empty the cache as well.
        purge: bool,
    },
}

/// The daemon's answer to a command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Done; JSON where the command asks for something.
    Ok(String),
    /// Refused, with the words for the user.
    Refused(Refusal, String),
}

/// Daemon to supervisor, ten times a second, as one datagram in an envelope.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Beat {
    /// Shared secret of this `scrfs run`.
    pub token: u64,
    /// Who.
    pub node: String,
    /// Grows by one each beat.
    pub sequence: u64,
    /// The epoch whose coordinator is connected, if one is.
    pub epoch: Option<Epoch>,
    /// The newest epoch that ever began on this node, from the epoch records of its stores.
    pub epoch_last: Epoch,
    /// Recovery of that epoch has ended here.
    pub ready: bool,
    /// The dataset to restart from, by name, once ready.
    pub restart: Option<Name>,
    /// Where that is in the prefix, if it is to be read there.
    pub restart_at: Option<PathBuf>,
    /// The newest sealed dataset known here: a sign of progress.
    pub newest_sealed: Option<DatasetId>,
    /// Datasets sealed but not yet as far as the configuration takes them (protected, flushed).
    pub pending: u32,
    /// The newest dataset that is lost, by name: more of it is gone than its scheme tolerates, and
    /// the prefix has none of it.
    pub lost: Option<Name>,
    /// The number of the newest sealed checkpoint known here; 0 when there is none.
    pub checkpoint: u64,
    /// Another one whenever something has moved on: the state of a dataset, bytes in the cache, a
    /// sign of life of the application's own.
    pub activity: u64,
    /// A dataset is on its way to the prefix.
    pub flushing: bool,
    /// From the wish that the program ends until all is flushed, in milliseconds, by what was measured.
    pub end_ms: Option<u64>,
    /// Milliseconds since the Unix epoch on this node's clock.
    pub clock: UnixMillis,
}

/// Supervisor to daemon, in answer to a beat.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Shared secret of this `scrfs run`.
    pub token: u64,
    /// The beat it answers.
    pub sequence: u64,
    /// Kill the coordinator of any epoch below this, and refuse its return.
    pub epoch_min: Epoch,
    /// Programs are to end: what `.scr/should_exit` says.
    pub halt: bool,
}

/// Writes one frame.
pub fn write_frame<T: Serialize>(to: &mut impl Write, value: &T) -> io::Result<()> {
    let mut bytes = postcard::to_extend(value, vec![0; 4]).map_err(io::Error::other)?;
    let length = bytes.len() - 4;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("frame of {length} bytes"),
        ));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    to.write_all(&bytes)
}

/// Reads one frame; `None` at the end of the stream.
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    let mut have = 0;
    while have < length.len() {
        match from.read(&mut length[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("frame of {length} bytes"),
        ));
    }
    // Grows with what really arrives, so that a hostile length costs nothing.
    let mut bytes = Vec::new();
    let read = from.by_ref().take(length as u64).read_to_end(&mut bytes)?;
    if read != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match postcard::take_from_bytes(&bytes) {
        Ok((value, [])) => Ok(Some(value)),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "bytes left over in a frame",
        )),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_comes_back_and_the_end_is_told_from_a_cut() {
        let hello = Hello {
            version: PROTOCOL_VERSION,
            role: Role::Command,
        };
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &hello).expect("a vector takes any frame");
        let mut from = bytes.as_slice();
        assert_eq!(read_frame::<Hello>(&mut from).expect("whole"), Some(hello));
        assert_eq!(read_frame::<Hello>(&mut from).expect("at the end"), None);
        for cut in 1..bytes.len() {
            assert!(
                read_frame::<Hello>(&mut &bytes[..cut]).is_err(),
                "cut at {cut}"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_frames_never_panic(bytes: Vec<u8>) {
            let _ = read_frame::<ToDaemon>(&mut bytes.as_slice());
            let _ = read_frame::<FromDaemon>(&mut bytes.as_slice());
            let _ = read_frame::<Command>(&mut bytes.as_slice());
        }
    }
}
