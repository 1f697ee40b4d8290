//! What each key of a configuration means, in a sentence: for the manual page.
//!
//! Invariant: every key there is has its text, and no other has (a test).

use super::document::{KEYS, all_keys};

/// A key, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyHelp {
    /// As in a file: `flush.every`.
    pub key: &'static str,
    /// Variables of the environment that stand for it, SCR's own first; none where only files have it.
    pub variables: Vec<String>,
    /// What it means, and what holds when nobody says.
    pub text: &'static str,
}

/// Keys that no variable can stand for: they belong to one of several tables.
const FILES_ONLY: [&str; 3] = ["dataset.match", "dataset.class", "groups"];

const TEXTS: [(&str, &str); 50] = [
    (
        "prefix",
        "The directory on the parallel file system, where flushed datasets lie. The current directory when nobody says.",
    ),
    (
        "job",
        "The job's id, which its caches go by. From Slurm, Flux, PBS or LSF when nobody says, else `default`.",
    ),
    (
        "store.path",
        "A cache directory, or the word `tmpfs` for a private one that scrfs mounts. Several `[[store]]` are a hierarchy, fastest first. `/dev/shm` when nobody says.",
    ),
    (
        "store.capacity",
        "How much of the store may be used: a share of the device such as `50%`, or bytes such as `64GiB`.",
    ),
    (
        "store.count",
        "Sealed datasets that are kept in the store at most.",
    ),
    (
        "redundancy.scheme",
        "How datasets are protected: `single`, `partner`, `xor` or `rs`.",
    ),
    (
        "redundancy.set_size",
        "Members that a redundancy set has at least, where there are enough nodes.",
    ),
    (
        "redundancy.failures",
        "Losses in a set that are survived: parities of `rs`, copies of `partner`.",
    ),
    (
        "redundancy.group",
        "The kind of failure group that members of a set must not share: `node`, or one of `[groups]`.",
    ),
    (
        "redundancy.chunk",
        "Bytes of a chunk on disk, a power of two.",
    ),
    (
        "redundancy.ahead",
        "Percent of the time that encoding of closed files may take before the commit; 0: encoding begins after it.",
    ),
    (
        "commit.wait",
        "What a rename that commits waits for: `sealed`, `protected` or `flushed`.",
    ),
    (
        "commit.grace_seconds",
        "How long a rename waits for writers elsewhere, before it fails with EBUSY.",
    ),
    (
        "commit.settle_seconds",
        "How long nothing may be written before a commit that was only guessed to be due.",
    ),
    (
        "commit.quiet_seconds",
        "For profiles that commit what nothing has been written to for so long.",
    ),
    (
        "commit.temporary",
        "Patterns of names that are not final: a rename to one of them commits nothing.",
    ),
    (
        "commit.profiles",
        "Frameworks whose way of writing is recognised, by name: `hf-trainer`, `orbax` and others.",
    ),
    (
        "commit.trigger.match",
        "Of `[[commit.trigger]]`: the pattern of the datasets it is for.",
    ),
    (
        "commit.trigger.marker",
        "The dataset is committed when a file of this pattern is closed in it.",
    ),
    (
        "commit.trigger.pointer",
        "The dataset is committed when this file at the top is written and names it.",
    ),
    (
        "commit.trigger.names",
        "How the pointer file names the dataset.",
    ),
    (
        "commit.trigger.removed",
        "The dataset is committed when this file of it is removed.",
    ),
    (
        "commit.trigger.next",
        "The dataset is committed when the next one that matches is begun.",
    ),
    (
        "commit.trigger.quiet_seconds",
        "The dataset is committed when nothing was written to it for so long.",
    ),
    (
        "commit.trigger.settle_seconds",
        "How long nothing may be written before the vote of this trigger.",
    ),
    (
        "flush.every",
        "Every so many-th checkpoint is copied to the prefix; 0 none. Output always is.",
    ),
    (
        "flush.backlog",
        "Checkpoints that wait for their flush at most; older ones are left out. 0: however many.",
    ),
    ("flush.width", "Nodes that write to the prefix at once."),
    (
        "flush.bandwidth",
        "Bytes a second that each node may write to the prefix, or `unlimited`.",
    ),
    (
        "flush.keep",
        "Checkpoints that are kept in the prefix, the newest; 0 all. Output is never removed.",
    ),
    (
        "restart.fetch",
        "Whether a checkpoint is brought back from the prefix when the caches have none.",
    ),
    (
        "restart.current",
        "The dataset to restart from, by name; the newest that is good when empty.",
    ),
    (
        "restart.rebuild_first",
        "Whether programs wait until what is lost is rebuilt, instead of reading it meanwhile.",
    ),
    (
        "restart.bypass",
        "Whether a restart reads in the prefix what only the prefix has, instead of having it fetched: `.scr/restart` leads there.",
    ),
    (
        "advice.interval",
        "A program that asks is told to checkpoint at every so many-th question; 0 not by this.",
    ),
    (
        "advice.seconds",
        "A program that asks is told to checkpoint so many seconds after the last; 0 not by this.",
    ),
    (
        "advice.overhead",
        "A program that asks is told to checkpoint as long as that takes at most so many percent of the time; 0 not by this. With all three 0 it is told the computed optimum.",
    ),
    (
        "advice.mtbf",
        "The mean time between failures of the job, in seconds; `auto` learns it from those that were seen.",
    ),
    (
        "checkpoint.interval",
        "Of `[[checkpoint]]`: what follows is for checkpoints whose number this divides; the largest wins.",
    ),
    ("checkpoint.output", "What follows is for output."),
    ("checkpoint.scheme", "See `redundancy.scheme`."),
    (
        "checkpoint.store",
        "The path of the store that these datasets are cached in.",
    ),
    ("checkpoint.set_size", "See `redundancy.set_size`."),
    ("checkpoint.failures", "See `redundancy.failures`."),
    ("checkpoint.group", "See `redundancy.group`."),
    (
        "dataset.match",
        "Of `[[dataset]]`: a pattern of names; the first that matches wins.",
    ),
    (
        "dataset.class",
        "What these datasets are: `checkpoint`, `output` or `both`.",
    ),
    (
        "groups",
        "Failure groups beyond `node`: `[groups]` has a table for each kind, with a host list for each group.",
    ),
    (
        "log.events",
        "Whether what happens to datasets is written below `.scrfs/events/` in the prefix, and to `.scrfs/events.jsonl` in one that is a directory.",
    ),
    ("log.syslog", "Whether the same goes to syslog."),
];

/// All keys, in the order people read them.
pub fn keys() -> Vec<KeyHelp> {
    let is_known = |key: &str| all_keys().any(|known| known == key);
    let texts = TEXTS.iter().filter(|(key, _)| is_known(key));
    texts
        .map(|&(key, text)| {
            let known = KEYS.iter().find(|known| known.path == key);
            let known = known.filter(|_| !FILES_ONLY.contains(&key));
            let own = |_| format!("SCRFS_{}", key.replace('.', "_").to_uppercase());
            let scr = known.and_then(|known| known.scr).map(str::to_owned);
            KeyHelp {
                key,
                variables: scr.into_iter().chain(known.map(own)).collect(),
                text,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_key_has_its_text_and_no_other_has() {
        let there: BTreeSet<&str> = all_keys().collect();
        let told: Vec<&str> = TEXTS.iter().map(|(key, _)| *key).collect();
        let distinct: BTreeSet<&str> = told.iter().copied().collect();
        assert_eq!(told.len(), distinct.len(), "a key twice");
        let missing: Vec<_> = there.symmetric_difference(&distinct).collect();
        assert!(
            missing.is_empty(),
            "without a text, or without a key: {missing:?}"
        );
        assert!(TEXTS.iter().all(|(_, text)| text.ends_with('.')));
        let every = keys().into_iter().find(|help| help.key == "flush.every");
        let variables = every.expect("there").variables;
        assert_eq!(variables, ["SCR_FLUSH", "SCRFS_FLUSH_EVERY"]);
    }
}
