//! What people and programs are told of a dataset: the JSON of `status/`, `scrfs status` and `scrfs list`.
//!
//! Field names are a promise to users. Derived from a record alone; who knows more, such as the
//! progress of a flush, fills it in.

use crate::config::Class;
use crate::layout::record::{DatasetRecord, State, UnixMillis};
use serde::{Deserialize, Serialize};

/// RFC 3339 in UTC; `None` for no time, or none that a calendar has.
pub fn rfc3339(time: Option<UnixMillis>) -> Option<String> {
    let time = i64::try_from(time?).ok()?;
    jiff::Timestamp::from_millisecond(time)
        .ok()
        .map(|time| time.to_string())
}

/// JSON of a dataset; its fields are a promise to users.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatasetStatus {
    /// Number.
    pub id: u64,
    /// Name.
    pub name: String,
    /// checkpoint, output or both.
    pub class: Class,
    /// State.
    pub state: State,
    /// RFC 3339, as the next three.
    pub created: Option<String>,
    /// When committed.
    pub sealed: Option<String>,
    /// When it survived the loss of nodes.
    pub protected: Option<String>,
    /// When the prefix had it.
    pub flushed: Option<String>,
    /// Bytes of all parts; 0 while open.
    pub bytes: u64,
    /// Files of all parts; 0 while open.
    pub files: u64,
    /// Bytes in the prefix.
    pub flushed_bytes: u64,
    /// Seconds until the prefix has it, going by its flush so far; only while that goes on.
    #[serde(default)]
    pub remaining_seconds: Option<u64>,
    /// Bytes with parity.
    pub protected_bytes: u64,
    /// Bytes that a verify that is going on has read.
    #[serde(default)]
    pub verifying_bytes: Option<u64>,
    /// Bytes that a fetch that is going on has brought.
    #[serde(default)]
    pub fetching_bytes: Option<u64>,
    /// Scheme, once sealed.
    pub scheme: Option<String>,
    /// Members of its largest set.
    pub set_size: Option<usize>,
    /// Losses a set survives.
    pub failures: Option<u32>,
    /// Parts.
    pub nodes: Option<usize>,
    /// Slots whose part is lost and not rebuilt yet: it is read by making it of the rest.
    pub missing_nodes: Vec<String>,
    /// Whether a program may restart from it.
    pub restartable: bool,
    /// Whether `restart` names it.
    pub current: bool,
    /// What last went wrong.
    pub error: Option<String>,
}

impl DatasetStatus {
    /// Of a dataset.
    pub fn of(record: &DatasetRecord, current: bool) -> Self {
        let seal = record.seal.as_ref();
        let bytes = seal.map_or(0, |seal| seal.bytes());
        let when = |complete: bool| if complete { bytes } else { 0 };
        Self {
            id: record.id.0,
            name: record.name.to_string(),
            class: record.class,
            state: record.state(),
            created: rfc3339(Some(record.created)),
            sealed: rfc3339(record.sealed),
            protected: rfc3339(record.protected),
            flushed: rfc3339(record.flushed),
            bytes,
            files: seal.map_or(0, |seal| seal.files()),
            flushed_bytes: when(record.flushed.is_some()),
            remaining_seconds: None,
            protected_bytes: when(record.protected.is_some()),
            verifying_bytes: None,
            fetching_bytes: None,
            scheme: seal.map(|seal| seal.scheme.to_string()),
            set_size: seal.and_then(|seal| seal.sets.iter().map(Vec::len).max()),
            failures: seal.map(|seal| seal.scheme.tolerates()),
            nodes: seal.map(|seal| seal.parts.len()),
            missing_nodes: Vec::new(),
            restartable: record.is_restartable(),
            current,
            error: record.error.clone(),
        }
    }
}

/// What a program that knows no zones wrote on a machine like this one, as RFC 3339 in UTC.
pub fn local_time(text: &str) -> Option<String> {
    let civil: jiff::civil::DateTime = text.parse().ok()?;
    let zoned = civil.to_zoned(jiff::tz::TimeZone::system()).ok()?;
    Some(zoned.timestamp().to_string())
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = bytes as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{scaled:.1} {}", UNITS[unit])
    }
}
