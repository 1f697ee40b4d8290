//! The virtual directory `.scr`: what scrfs knows, readable from any language.
//!
//! Everything is made anew at each lookup, listing or open, and the kernel may keep none of it (all
//! lifetimes are zero, files are read past the page cache), so that it is never stale. Read-only, but for
//! the heartbeat.
//!
//! ```text
//! status/<name>.<state>   JSON of a dataset      restart      link to the dataset to restart from
//! nodes/<name>            JSON of a node         incomplete/  datasets left unsealed by earlier runs
//! config                  effective settings     daemon       this daemon: pid, socket, how data goes
//! should_exit             1 when programs are to end, else 0
//! heartbeat               written or touched by a program that wants to be known to live
//! events                  what happened, a line of JSON each, since the daemon was started
//! need_checkpoint         1 when one is due      interval     how often is best, in words and numbers
//! ```

use super::attr::Attr;
use super::handle::Listed;
use super::inode::VIRTUAL_BIT;
use super::namespace::{Dataset, Names};
use super::{Entry, FsError, FsResult, Vfs};
use scrfs::control::{Activity, NodeStatus};
use scrfs::id::DatasetId;
use scrfs::layout::record::{Phase, State, UnixMillis};
use scrfs::status::DatasetStatus;
use serde::Serialize;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// An entry of `.scr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlNode {
    /// `.scr` itself.
    Top,
    /// `status/`
    Status,
    /// `nodes/`
    Nodes,
    /// `incomplete/`
    Incomplete,
    /// `restart`
    Restart,
    /// `config`
    Config,
    /// `daemon`
    Daemon,
    /// `should_exit`
    ShouldExit,
    /// `heartbeat`
    Heartbeat,
    /// `events`
    Events,
    /// `need_checkpoint`
    NeedCheckpoint,
    /// `interval`
    Interval,
    /// One file of `status/`.
    DatasetFile(DatasetId),
    /// One file of `nodes/`, by rank.
    NodeFile(u32),
}

const KIND_SHIFT: u32 = 48;
const FIXED: [(ControlNode, &[u8]); 12] = [
    (ControlNode::Top, b".scr"),
    (ControlNode::Status, b"status"),
    (ControlNode::Nodes, b"nodes"),
    (ControlNode::Incomplete, b"incomplete"),
    (ControlNode::Restart, b"restart"),
    (ControlNode::Config, b"config"),
    (ControlNode::Daemon, b"daemon"),
    (ControlNode::ShouldExit, b"should_exit"),
    (ControlNode::Heartbeat, b"heartbeat"),
    (ControlNode::Events, b"events"),
    (ControlNode::NeedCheckpoint, b"need_checkpoint"),
    (ControlNode::Interval, b"interval"),
];

impl ControlNode {
    /// Its inode number.
    pub fn ino(self) -> u64 {
        let (kind, number) = match self {
            Self::DatasetFile(id) => (1, id.0),
            Self::NodeFile(rank) => (2, u64::from(rank)),
            fixed => (
                0,
                FIXED
                    .iter()
                    .position(|(node, _)| *node == fixed)
                    .unwrap_or(0) as u64,
            ),
        };
        VIRTUAL_BIT | (kind << KIND_SHIFT) | number
    }

    /// What a number stands for.
    pub fn of(ino: u64) -> Option<Self> {
        if ino & VIRTUAL_BIT == 0 {
            return None;
        }
        let number = ino & ((1 << KIND_SHIFT) - 1);
        match (ino & !VIRTUAL_BIT) >> KIND_SHIFT {
            0 => FIXED
                .get(usize::try_from(number).ok()?)
                .map(|(node, _)| *node),
            1 => Some(Self::DatasetFile(DatasetId(number))),
            2 => u32::try_from(number).ok().map(Self::NodeFile),
            _ => None,
        }
    }

    fn kind(self) -> u32 {
        match self {
            Self::Top | Self::Status | Self::Nodes | Self::Incomplete => libc::S_IFDIR,
            Self::Restart => libc::S_IFLNK,
            Self::Config
            | Self::Daemon
            | Self::ShouldExit
            | Self::Heartbeat
            | Self::Events
            | Self::NeedCheckpoint
            | Self::Interval
            | Self::DatasetFile(_)
            | Self::NodeFile(_) => libc::S_IFREG,
        }
    }
}

/// Milliseconds as seconds and nanoseconds.
pub fn to_timespec(time: UnixMillis) -> (i64, u32) {
    let seconds = i64::try_from(time / 1000).unwrap_or(i64::MAX);
    (seconds, (time % 1000) as u32 * 1_000_000)
}

/// What a dataset's record and its progress show of it.
pub(super) fn status_of(dataset: &Dataset, current: Option<DatasetId>) -> DatasetStatus {
    let record = &dataset.record;
    let mut status = DatasetStatus::of(record, current == Some(record.id));
    status.missing_nodes = dataset.missing.iter().map(ToString::to_string).collect();
    // The record says when it is done; what was last heard before that stays.
    let flush = dataset.progress.get(&Activity::Flush);
    if let Some(progress) = flush.filter(|_| record.flushed.is_none()) {
        status.flushed_bytes = progress.done_bytes;
        if let (State::Flushing, Some((since, first))) = (record.state(), dataset.flushing_since) {
            let done = progress.done_bytes.saturating_sub(first);
            let left = progress.total_bytes.saturating_sub(progress.done_bytes);
            status.remaining_seconds = estimate(since.elapsed(), done, left);
        }
    }
    let encode = dataset.progress.get(&Activity::Encode);
    if let Some(progress) = encode.filter(|_| record.protected.is_none() || dataset.weak) {
        status.protected_bytes = progress.done_bytes;
    }
    let verify = dataset.progress.get(&Activity::Verify);
    status.verifying_bytes = verify.map(|progress| progress.done_bytes);
    let fetch = dataset.progress.get(&Activity::Fetch);
    status.fetching_bytes = fetch.map(|progress| progress.done_bytes);
    status
}

/// Seconds until `left` bytes are done, when `done` took so long.
fn estimate(took: Duration, done: u64, left: u64) -> Option<u64> {
    let seconds = took.as_secs_f64() * left as f64 / done as f64;
    // Nothing done yet gives no number.
    seconds.is_finite().then_some(seconds.ceil() as u64)
}

/// With the number behind it when one of this name was removed again since.
fn status_name(names: &Names, dataset: &Dataset) -> Vec<u8> {
    let record = &dataset.record;
    let mut name = record.name.as_bytes().to_vec();
    name.extend_from_slice(format!(".{}", record.state()).as_bytes());
    let flush = dataset
        .progress
        .get(&Activity::Flush)
        .filter(|flush| flush.total_bytes > 0);
    if let (State::Flushing, Some(flush)) = (record.state(), flush) {
        let percent = u128::from(flush.done_bytes) * 100 / u128::from(flush.total_bytes);
        name.extend_from_slice(format!(".{percent}%").as_bytes());
    }
    let again = names.iter().any(|other| {
        let named = other.record.is_removed() && other.record.name == record.name;
        named && other.record.id > record.id
    });
    if record.is_removed() && again {
        name.extend_from_slice(format!(".{}", record.id).as_bytes());
    }
    name
}

/// The name under `incomplete/`; with the number behind it when an earlier run used the name too.
fn incomplete_name(names: &Names, dataset: &Dataset) -> Vec<u8> {
    let record = &dataset.record;
    let taken = names.iter().any(|other| {
        other.record.phase == Phase::Incomplete
            && other.record.name == record.name
            && other.record.id > record.id
    });
    let mut name = record.name.as_bytes().to_vec();
    if taken {
        name.extend_from_slice(format!(".{}", record.id).as_bytes());
    }
    name
}

fn incomplete(names: &Names) -> impl Iterator<Item = &Dataset> {
    names
        .iter()
        .filter(|dataset| dataset.record.phase == Phase::Incomplete)
}

#[derive(Serialize)]
struct NodeJson<'a> {
    node: &'a str,
    rank: u32,
    slot: u32,
    free_bytes: u64,
}

fn node_json(node: &NodeStatus) -> NodeJson<'_> {
    NodeJson {
        node: &node.node,
        rank: node.rank.0,
        slot: node.slot.0,
        free_bytes: node.free_bytes,
    }
}

fn json_line(value: &impl Serialize) -> FsResult<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| {
        tracing::error!(%error, "status does not encode");
        FsError::Broken
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}

impl Vfs {
    fn control_entry(&self, control: ControlNode) -> FsResult<Entry> {
        let attr = self.control_attr(control)?;
        Ok(Entry {
            attr,
            generation: 0,
            entry_ttl: Duration::ZERO,
            attr_ttl: Duration::ZERO,
        })
    }

    pub(super) fn control_top(&self) -> FsResult<Entry> {
        self.control_entry(ControlNode::Top)
    }

    pub(super) fn lookup_control(&self, parent: ControlNode, name: &OsStr) -> FsResult<Entry> {
        if parent == ControlNode::Incomplete {
            let dataset = self.incomplete_of(name).ok_or(FsError::Missing)?;
            let names = self.read_names();
            let found = names.get(dataset).and_then(|dataset| dataset.tree.clone());
            drop(names);
            return self.entry_of_tree(found.ok_or(FsError::Missing)?);
        }
        let listed = self.list_control(parent)?;
        let found = listed
            .iter()
            .skip(2)
            .find(|listed| listed.name == name.as_bytes());
        let ino = found.ok_or(FsError::Missing)?.ino;
        self.control_entry(ControlNode::of(ino).ok_or(FsError::Missing)?)
    }

    /// What is listed under `incomplete/` by that name.
    pub(super) fn incomplete_of(&self, name: &OsStr) -> Option<DatasetId> {
        let names = self.read_names();
        let mut listed = incomplete(&names).filter(|dataset| dataset.tree.is_some());
        let found = listed.find(|dataset| incomplete_name(&names, dataset) == name.as_bytes());
        found.map(|dataset| dataset.record.id)
    }

    pub(super) fn control_attr(&self, control: ControlNode) -> FsResult<Attr> {
        let (uid, gid, top) = self.settings().top;
        let kind = control.kind();
        let size = match kind {
            // To look at it is not to ask.
            libc::S_IFREG if control == ControlNode::NeedCheckpoint => super::advice::ANSWER_BYTES,
            libc::S_IFREG => self.control_content(control)?.len(),
            libc::S_IFLNK => self.control_link(control)?.len(),
            _ => 0,
        };
        let mode = match kind {
            // Who may remove a dataset may remove what is left of one.
            libc::S_IFDIR if control == ControlNode::Incomplete => top,
            libc::S_IFDIR => 0o555,
            libc::S_IFLNK => 0o777,
            _ if control == ControlNode::Heartbeat => 0o666,
            _ => 0o444,
        };
        let time = match control {
            ControlNode::DatasetFile(id) => {
                let names = self.read_names();
                let record = &names.get(id).ok_or(FsError::Missing)?.record;
                let newest = [
                    Some(record.created),
                    record.sealed,
                    record.protected,
                    record.flushed,
                ];
                to_timespec(newest.into_iter().flatten().max().unwrap_or(0))
            }
            _ => (0, 0),
        };
        Ok(Attr {
            rdev: 0,
            ino: control.ino(),
            size: size as u64,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            mode: kind | mode,
            nlink: if kind == libc::S_IFDIR { 2 } else { 1 },
            uid,
            gid,
            blksize: 4096,
        })
    }

    pub(super) fn control_link(&self, control: ControlNode) -> FsResult<Vec<u8>> {
        if control != ControlNode::Restart {
            return Err(FsError::Invalid);
        }
        let names = self.read_names();
        let dataset = names.restart().ok_or(FsError::Missing)?;
        Ok(match self.place_in_prefix(&names, dataset) {
            Some(path) => path.into_os_string().into_vec(),
            None => [b"../", dataset.record.name.as_bytes()].concat(),
        })
    }

    /// Where a dataset is in the prefix, if a restart is to read it there.
    pub fn place_in_prefix(&self, names: &Names, dataset: &Dataset) -> Option<PathBuf> {
        let prefix = self.settings().in_place.as_ref()?;
        let name = dataset.record.name.as_os_str();
        names.is_in_place(dataset).then(|| prefix.join(name))
    }

    /// What is read of a file that is opened now.
    pub(super) fn control_content(&self, control: ControlNode) -> FsResult<Vec<u8>> {
        match control {
            ControlNode::Config => Ok(self.settings().config_text.clone().into_bytes()),
            ControlNode::Daemon => Ok(self.settings().daemon_text.clone().into_bytes()),
            ControlNode::ShouldExit => {
                let text: &[u8] = if self.signs().should_exit() {
                    b"1\n"
                } else {
                    b"0\n"
                };
                Ok(text.to_vec())
            }
            ControlNode::Heartbeat => Ok(format!("{}\n", self.signs().beats()).into_bytes()),
            ControlNode::Events => Ok(self.read_names().events.text()),
            ControlNode::Interval => Ok(self.interval_text().into_bytes()),
            ControlNode::DatasetFile(id) => {
                let names = self.read_names();
                let current = names.restart().map(|dataset| dataset.record.id);
                let dataset = names.get(id).ok_or(FsError::Missing)?;
                json_line(&status_of(dataset, current))
            }
            ControlNode::NodeFile(rank) => {
                let names = self.read_names();
                let node = names.nodes.iter().find(|node| node.rank.0 == rank);
                json_line(&node_json(node.ok_or(FsError::Missing)?))
            }
            ControlNode::Top
            | ControlNode::Status
            | ControlNode::Nodes
            | ControlNode::Incomplete
            // Asked of the leader, when it is opened.
            | ControlNode::NeedCheckpoint
            | ControlNode::Restart => Err(FsError::Invalid),
        }
    }

    pub(super) fn list_control(&self, directory: ControlNode) -> FsResult<Vec<Listed>> {
        let parent = match directory {
            ControlNode::Top => super::inode::ROOT,
            _ => ControlNode::Top.ino(),
        };
        let listed = |node: ControlNode, name: &[u8]| Listed {
            ino: node.ino(),
            kind: node.kind(),
            name: name.to_vec(),
        };
        let above = |ino, name: &[u8]| Listed {
            ino,
            kind: libc::S_IFDIR,
            name: name.to_vec(),
        };
        let mut listing = vec![above(directory.ino(), b"."), above(parent, b"..")];
        let names = self.read_names();
        match directory {
            ControlNode::Top => {
                let shown = FIXED
                    .iter()
                    .skip(1)
                    .filter(|(node, _)| *node != ControlNode::Restart || names.restart().is_some());
                listing.extend(shown.map(|(node, name)| listed(*node, name)));
            }
            ControlNode::Status => listing.extend(names.iter().map(|dataset| {
                listed(
                    ControlNode::DatasetFile(dataset.record.id),
                    &status_name(&names, dataset),
                )
            })),
            ControlNode::Nodes => listing.extend(
                names
                    .nodes
                    .iter()
                    .map(|node| listed(ControlNode::NodeFile(node.rank.0), node.node.as_bytes())),
            ),
            ControlNode::Incomplete => {
                listing.extend(incomplete(&names).filter_map(|dataset| {
                    let ino = dataset.tree.as_ref()?.ino;
                    Some(above(ino, &incomplete_name(&names, dataset)))
                }));
            }
            ControlNode::Restart
            | ControlNode::Config
            | ControlNode::Daemon
            | ControlNode::ShouldExit
            | ControlNode::Heartbeat
            | ControlNode::Events
            | ControlNode::NeedCheckpoint
            | ControlNode::Interval
            | ControlNode::DatasetFile(_)
            | ControlNode::NodeFile(_) => return Err(FsError::NotDirectory),
        }
        Ok(listing)
    }

    /// JSON of the nodes, for `scrfs status`.
    pub fn nodes_json(&self) -> serde_json::Value {
        let names = self.read_names();
        let nodes = names
            .nodes
            .iter()
            .map(|node| serde_json::json!(node_json(node)));
        serde_json::Value::Array(nodes.collect())
    }
}
