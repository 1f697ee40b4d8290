//! What happened to datasets and jobs, as lines for programs: the input of reports and of advice.
//!
//! Events are not announced by who does something: they follow from how a dataset's record changed. So there
//! is one for every change that was made durable, and none that was not. Those of jobs and nodes are the
//! supervisor's, which has no records. Pure; who writes them
//! down is elsewhere. Names of events and fields are a promise to users.

pub mod pages;

use crate::config::Class;
use crate::id::Epoch;
use crate::layout::record::{DatasetRecord, Phase, UnixMillis};
use crate::status::rfc3339;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Its directory was made.
    Created,
    /// It was committed on every node; the duration is that of writing it.
    Committed,
    /// It survives what its scheme promises; since it was committed.
    Protected,
    /// The prefix has all of it; since it was committed.
    Flushed,
    /// The caches have none of it any more; the prefix has.
    Evicted,
    /// It was brought back from the prefix.
    Fetched,
    /// A program has removed it: out of sight, and kept until a newer checkpoint is as safe.
    Fenced,
    /// It is no more, and nobody needs it.
    Removed,
    /// Its run ended before it was committed.
    Incomplete,
    /// More of it is gone than can be recomputed.
    Lost,
    /// A restart from it did not work.
    Failed,
    /// Something went wrong with it; what, is in `error`.
    Error,
}

/// One line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Event {
    /// When it was noted: RFC 3339, in UTC.
    pub time: Option<String>,
    /// What happened.
    pub event: What,
    /// To which dataset.
    pub id: u64,
    /// Its name at that time.
    pub name: String,
    /// What it is for.
    pub class: Class,
    /// In which epoch.
    pub epoch: u64,
    /// How long it took, in milliseconds, where that can be said.
    pub duration_ms: Option<u64>,
    /// Bytes of all parts; none before the commit.
    pub bytes: Option<u64>,
    /// Regular files of all parts.
    pub files: Option<u64>,
    /// What went wrong.
    pub error: Option<String>,
}

impl Event {
    fn of(what: What, record: &DatasetRecord, now: UnixMillis, begun: Option<UnixMillis>) -> Self {
        let seal = record.seal.as_ref();
        let Epoch(epoch) = record.epoch;
        Self {
            time: rfc3339(Some(now)),
            event: what,
            id: record.id.0,
            name: record.name.to_string(),
            class: record.class,
            epoch,
            duration_ms: begun.map(|begun| now.saturating_sub(begun)),
            bytes: seal.map(|seal| seal.bytes()),
            files: seal.map(|seal| seal.files()),
            error: None,
        }
    }

    /// It was removed.
    pub fn removed(record: &DatasetRecord, now: UnixMillis) -> Self {
        Self::of(What::Removed, record, now, None)
    }

    /// One line of JSON, with its end.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// What happened to a job, or to one of its nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobWhat {
    /// `scrfs run` has begun.
    JobBegan,
    /// A node is silent, or cannot be used; why, is in `error`.
    NodeLost,
    /// A spare takes the place of a node; whose, is in `detail`.
    SpareTaken,
    /// Coordinators are there, and it is known what there is; the duration is that of recovery.
    EpochReady,
    /// Coordinators did not come, or did not stay.
    EpochFailed,
    /// The application was started; what it restarts from, is in `detail`.
    Launched,
    /// It has ended; how, is in `detail`.
    LaunchEnded,
    /// There is no further launch; why, is in `detail`.
    Halted,
    /// What the nodes had left was saved without coordinators.
    Scavenged,
    /// `scrfs run` has ended; its exit code is in `detail`.
    JobEnded,
}

/// How a launch ended, for programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// By itself, and well.
    Finished,
    /// Somebody or something wanted it to end, however it then did.
    Halted,
    /// The application failed.
    Failed,
    /// A node was lost.
    NodeLost,
    /// Nothing moved any more.
    Hung,
    /// The launcher could not start it, or broke by itself.
    Launcher,
    /// The coordinators could not be kept.
    NoEpoch,
}

/// One line about a job. Fields that say nothing are left out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct JobEvent {
    /// When it was noted: RFC 3339, in UTC.
    pub time: Option<String>,
    /// What happened.
    pub event: JobWhat,
    /// To which job.
    pub job: String,
    /// To which node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// In which epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Which launch, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launch: Option<u64>,
    /// How long it took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// How a launch ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<EndCause>,
    /// More about it, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl JobEvent {
    /// Nothing but what and when.
    pub fn new(event: JobWhat, job: &str, now: UnixMillis) -> Self {
        Self {
            time: rfc3339(Some(now)),
            event,
            job: job.to_owned(),
            node: None,
            epoch: None,
            launch: None,
            duration_ms: None,
            cause: None,
            detail: None,
            error: None,
        }
    }

    /// One line of JSON, with its end.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// So many lines were left out here: a line that says so.
pub fn dropped(count: u64) -> Vec<u8> {
    format!("{{\"event\":\"dropped\",\"count\":{count}}}\n").into_bytes()
}

/// The newest lines, of which there are not many bytes.
#[derive(Debug, Default)]
pub struct Recent {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// What is kept of them.
const RECENT_BYTES_MAX: usize = 256 << 10;

impl Recent {
    /// One more; the oldest go.
    pub fn push(&mut self, event: &Event) {
        let line = event.line();
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > RECENT_BYTES_MAX {
            let oldest = self.lines.pop_front();
            self.bytes -= oldest.map_or(0, |line| line.len());
        }
    }

    /// All of them, oldest first.
    pub fn text(&self) -> Vec<u8> {
        self.lines.iter().flatten().copied().collect()
    }
}

/// What a change of a record says; `before` is the one it replaces.
pub fn events(
    before: Option<&DatasetRecord>,
    after: &DatasetRecord,
    now: UnixMillis,
) -> Vec<Event> {
    let mut found = Vec::new();
    let mut note = |what, begun| found.push(Event::of(what, after, now, begun));
    let same = |record: &&DatasetRecord| record.key() == after.key();
    let Some(before) = before.filter(same) else {
        match after.phase {
            Phase::Open => note(What::Created, None),
            // Nothing here knew of it: it comes from the prefix.
            Phase::Sealed if after.flushed.is_some() => note(What::Fetched, None),
            _ => {}
        }
        return found;
    };
    if before.seal.is_none() && after.seal.is_some() {
        note(What::Committed, Some(after.created));
    }
    if before.protected.is_none() && after.protected.is_some() && after.flushed.is_none() {
        note(What::Protected, after.sealed);
    }
    if before.flushed.is_none() && after.flushed.is_some() {
        note(What::Flushed, after.sealed);
    }
    if before.phase != after.phase {
        match after.phase {
            Phase::Sealed if before.phase == Phase::Evicted => note(What::Fetched, None),
            Phase::Evicted => note(What::Evicted, None),
            Phase::Incomplete => note(What::Incomplete, None),
            Phase::Lost => note(What::Lost, None),
            Phase::Failed => note(What::Failed, None),
            Phase::Removed { .. } => note(What::Fenced, None),
            Phase::Open | Phase::Sealed => {}
        }
    }
    if after.error.is_some() && before.error != after.error {
        let mut event = Event::of(What::Error, after, now, None);
        event.error.clone_from(&after.error);
        found.push(event);
    }
    found
}
