//! What people see while a command waits for the daemon: a bar, as far as its status goes.

use super::{Failure, ask};
use crate::daemon::DaemonFile;
use scrfs::bar::{Bar, Mark};
use scrfs::control::Command;
use scrfs::layout::record::State;
use scrfs::status::DatasetStatus;
use std::collections::BTreeMap;
use std::time::Duration;

/// A status that takes longer than that is not shown.
const STATUS_PATIENCE: Duration = Duration::from_secs(1);

/// Asks, and shows meanwhile what `figures` makes of the datasets.
pub(super) fn ask_watched(
    daemon: &DaemonFile,
    command: &Command,
    patience: Option<Duration>,
    mut figures: impl FnMut(&[DatasetStatus]) -> Option<Mark> + Send,
) -> Result<String, Failure> {
    let look = || figures(&statuses(daemon)?);
    Bar::new(true).during(look, || ask(daemon, command, patience))
}

/// All datasets. Who waits is not told why there are none: the answer to the command says it.
fn statuses(daemon: &DaemonFile) -> Option<Vec<DatasetStatus>> {
    let text = ask(daemon, &Command::Status, Some(STATUS_PATIENCE)).ok()?;
    let mut status: serde_json::Value = serde_json::from_str(&text).ok()?;
    serde_json::from_value(status.get_mut("datasets")?.take()).ok()
}

/// How far the newest dataset of a name has come, `done_bytes` of all its bytes; the name alone where that is not
/// known.
pub(super) fn of_name(
    name: String,
    done_bytes: impl Fn(&DatasetStatus) -> Option<u64>,
) -> impl FnMut(&[DatasetStatus]) -> Option<Mark> {
    move |datasets| {
        let found = datasets.iter().rfind(|dataset| dataset.name == name);
        let figures = found.and_then(|found| Some((done_bytes(found)?, found.bytes)));
        let (done_bytes, total_bytes) = figures.unwrap_or((0, 0));
        Some(Mark {
            what: name.clone(),
            done_bytes,
            total_bytes,
        })
    }
}

/// How far all flushes together have come, with those that have ended since the first look.
pub(super) fn of_flushes() -> impl FnMut(&[DatasetStatus]) -> Option<Mark> {
    let mut seen: BTreeMap<u64, DatasetStatus> = BTreeMap::new();
    move |datasets| {
        for dataset in datasets {
            if dataset.state == State::Flushing || seen.contains_key(&dataset.id) {
                seen.insert(dataset.id, dataset.clone());
            }
        }
        let what = match seen.len() {
            0 => return None,
            1 => seen.values().next()?.name.clone(),
            count => format!("{count} datasets"),
        };
        Some(Mark {
            what,
            done_bytes: seen.values().map(|dataset| dataset.flushed_bytes).sum(),
            total_bytes: seen.values().map(|dataset| dataset.bytes).sum(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn dataset(id: u64, state: State, flushed_bytes: u64) -> DatasetStatus {
        serde_json::from_value(serde_json::json!({
            "id": id, "name": format!("ckpt.{id}"), "class": "checkpoint", "state": state,
            "bytes": 100, "files": 1, "flushed_bytes": flushed_bytes, "protected_bytes": 0,
            "missing_nodes": [], "restartable": true, "current": false,
        }))
        .unwrap()
    }

    #[test]
    fn what_has_been_flushed_still_counts() {
        let mut figures = of_flushes();
        assert_eq!(figures(&[dataset(1, State::Protected, 0)]), None);
        let one = figures(&[dataset(1, State::Flushing, 40)]).unwrap();
        assert_eq!(
            (one.what.as_str(), one.done_bytes, one.total_bytes),
            ("ckpt.1", 40, 100)
        );
        let flushed = dataset(1, State::Flushed, 100);
        let two = figures(&[flushed, dataset(2, State::Flushing, 1)]).unwrap();
        assert_eq!(
            (two.what.as_str(), two.done_bytes, two.total_bytes),
            ("2 datasets", 101, 200)
        );
    }

    #[test]
    fn the_newest_of_a_name_is_meant_and_without_a_figure_there_is_none() {
        let mut old = dataset(1, State::Removed, 100);
        old.name = "ckpt.2".into();
        let all = [old, dataset(2, State::Flushing, 7)];
        let mark = of_name("ckpt.2".into(), |it| Some(it.flushed_bytes))(&all).unwrap();
        assert_eq!((mark.done_bytes, mark.total_bytes), (7, 100));
        let mark = of_name("ckpt.2".into(), |_| None)(&all).unwrap();
        assert_eq!((mark.done_bytes, mark.total_bytes), (0, 0));
        let mark = of_name("ckpt.9".into(), |_| Some(1))(&all).unwrap();
        assert_eq!((mark.what.as_str(), mark.total_bytes), ("ckpt.9", 0));
    }
}
