//! `docs/layout.md` held to the code: every path and every byte it shows. The examples there were not made by
//! this code.

use super::envelope::{Kind, open, seal};
use super::index::{Choice, EntryState, IndexEntry};
use super::manifest::{DataExtent, Entry, EntryKind, Manifest, Sums};
use super::path::{CachePaths, Keep, PrefixPaths, parse_deleted};
use super::pointer::{Content, Pointer, PointerRecord, Pointers, Version};
use super::record::{DatasetRecord, EpochRecord, PartSummary, Phase, Seal, UNIT_BYTES};
use super::run::{RunEnd, RunKey, RunLaunch, RunRecord, RunSuspect};
use super::turn::{Turn, job_number};
use crate::config::Class;
use crate::halt::{self, Base, Condition, HaltFiles};
use crate::id::{DatasetId, DatasetKey, Epoch, Slot};
use crate::name::{Name, RelPath};
use crate::redundancy::{Scheme, Stream};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("../../../docs/layout.md");
const KEY: DatasetKey = DatasetKey {
    id: DatasetId(5),
    created: 1000,
};

fn block(name: &str) -> &'static str {
    let begin = format!("```{name}\n");
    let rest = PAGE.split_once(begin.as_str()).expect("the block").1;
    rest.split_once("```").expect("its end").0
}

fn bytes(name: &str) -> Vec<u8> {
    let words = block(name).split_whitespace();
    words
        .map(|word| u8::from_str_radix(word, 16).expect("hexadecimal"))
        .collect()
}

fn name() -> Name {
    Name::new(b"ckpt.5").expect("a name")
}

fn entry() -> IndexEntry {
    let seal = Seal {
        epoch: Epoch(3),
        scheme: Scheme::Single,
        chunk_bytes: 1 << 20,
        unit_bytes: 256 << 10,
        sets: vec![vec![Slot(0)]],
        parts: vec![PartSummary {
            log_bytes: 7,
            files: 1,
            manifest_crc: 0x0102_0304,
        }],
    };
    let record = DatasetRecord {
        id: KEY.id,
        name: name(),
        committed_from: Some(Name::new(b"ckpt.5.tmp").expect("a name")),
        class: Class::Checkpoint,
        checkpoint: Some(2),
        phase: Phase::Sealed,
        epoch: Epoch(3),
        created: KEY.created,
        sealed: Some(1500),
        protected: None,
        flushing: false,
        flushed: None,
        seal: Some(seal),
        error: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    IndexEntry {
        record,
        state: EntryState::Complete,
        attempt: Epoch(3),
        inode: 99,
        replaces: None,
        flushed: 2000,
        bytes: 7,
        files: 1,
        job: "job".into(),
        adopted: false,
    }
}

#[test]
fn the_page_on_the_layout_tells_the_truth() {
    let paths = PrefixPaths::new(Path::new(""));
    let latest = Name::new(b"latest").expect("a name");
    let turn = Turn {
        number: 3,
        job: job_number("job"),
        version: Version { term: 4, number: 1 },
    };
    let made = [
        paths.dataset(&name()),
        paths.entry(KEY),
        paths.manifest(KEY, Slot(2)),
        paths.sums(KEY, Slot(2)),
        paths.attempt(KEY, Epoch(3)),
        paths.done(KEY, Epoch(3), Slot(2)),
        paths.inflight_job(KEY),
        paths.kept_manifest(KEY, Epoch(3), Slot(2)),
        paths.kept_sums(KEY, Epoch(3), Slot(2), Stream::Data),
        paths.kept_parity(KEY, Epoch(3), Slot(2)),
        paths.kept_sums(KEY, Epoch(3), Slot(2), Stream::Parity),
        paths.scavenge_plan(Epoch(9)),
        paths.scavenge_catalog(Epoch(9), "n1"),
        paths.scavenge_report(Epoch(9), "n1"),
        paths.dropped_entry(KEY),
        paths.gone_mark(KEY),
        paths.failed_mark(KEY),
        paths.deleted(KEY),
        paths.choice(),
        paths.pointers(),
        paths.turn(&latest, turn),
        paths.turn_begun(&latest, turn),
        paths.event_page(1000, 0x1f),
        paths.events(),
        paths.events_old(),
        paths.events_before(),
        paths.halt(),
        paths.clock(),
        paths.run(RunKey {
            mark: 0x1f,
            number: 9000,
        }),
    ];
    assert_eq!(first_words("paths"), as_text(&made));
    let cache = CachePaths::at(Path::new(""));
    let (id, slot) = (KEY.id, Slot(2));
    let both = [Stream::Data, Stream::Parity];
    let mut made = vec![
        cache.lock(),
        cache.daemon(),
        cache.log(),
        cache.socket(),
        cache.owner(),
        cache.epoch(),
        cache.boot(),
        cache.pointers(),
        cache.reserve(),
        cache.trash(),
        cache.record(id),
        cache.tree(id, slot),
        cache.manifest(id, slot, Keep::Own),
        cache.sums(id, slot, Stream::Data, Keep::Own),
        cache.parity(id, slot),
        cache.sums(id, slot, Stream::Parity, Keep::Own),
        cache.damage(id, slot, Stream::Data),
        cache.damage(id, slot, Stream::Parity),
        cache.tree_new(id, slot),
        cache.tree_old(id, slot),
        cache.parity_new(id, slot),
        cache.parity_room(id, slot),
        cache.manifest(id, slot, Keep::Copy),
    ];
    made.extend(both.map(|stream| cache.sums(id, slot, stream, Keep::Copy)));
    assert_eq!(first_words("cache-paths"), as_text(&made));
}

#[test]
fn the_records_of_the_page_are_what_the_code_writes() {
    let choice = Choice {
        key: KEY,
        newest: DatasetKey {
            id: DatasetId(7),
            created: 2000,
        },
        asked: Some(("job".into(), name())),
    };
    assert_eq!(choice.encode(), bytes("choice"));
    assert_eq!(Choice::decode(&bytes("choice")), Ok(choice));
    assert_eq!(entry().encode(), bytes("entry"));
    assert_eq!(IndexEntry::decode(&bytes("entry")), Ok(entry()));
    record_is("record", Kind::Dataset, &entry().record);
    let time = (1_700_000_000, 5);
    let manifest = Manifest {
        dataset: KEY.id,
        slot: Slot(2),
        epoch: Epoch(3),
        root_mtime: time,
        entries: vec![Entry {
            path: RelPath::new(b"rank_0").expect("a path"),
            kind: EntryKind::File {
                size: 7,
                log_offset: 0,
                extents: vec![DataExtent { offset: 0, len: 7 }],
            },
            mode: 0o640,
            uid: 1000,
            gid: 100,
            mtime: time,
            xattrs: vec![],
        }],
        log_bytes: 7,
    };
    assert_eq!(manifest.check(), Ok(()));
    record_is("manifest", Kind::Manifest, &manifest);
    let mut sums = Sums::unknown(KEY.id, Slot(2), Stream::Data, UNIT_BYTES, 7);
    sums.crcs[0] = Some(0x0102_0304);
    record_is("sums", Kind::Sums, &sums);
    let epoch = EpochRecord {
        epoch: Epoch(3),
        slot: Some(Slot(2)),
        last_dataset: 5,
        last_checkpoint: 2,
    };
    record_is("epoch", Kind::Epoch, &epoch);
    let pointer = PointerRecord {
        version: Version { term: 4, number: 1 },
        after: Some(KEY.id),
        pointer: Some(Pointer {
            content: Content::File(b"ckpt.5\n".to_vec()),
            mode: 0o644,
            uid: 1000,
            gid: 100,
            mtime: time,
        }),
    };
    let mut pointers = Pointers::default();
    pointers.learn(Name::new(b"latest").expect("a name"), pointer);
    record_is("pointers", Kind::Pointers, &pointers);
}

#[test]
fn the_record_of_a_run_is_as_the_page_has_it() {
    let launch = RunLaunch {
        began: 10,
        ended: Some(RunEnd {
            at: 500,
            how: "failed".into(),
            is_well: false,
        }),
        checkpoints: 2,
        last: Some(400),
    };
    let suspect = RunSuspect {
        from: Some(name()),
        deaths: 1,
        has_blamed: false,
    };
    let run = RunRecord {
        job: "job".into(),
        host: "n0".into(),
        process: 77,
        begun: 1000,
        arguments: vec!["sh".into(), "x".into()],
        directory: "/d".into(),
        environment: vec![("A".into(), "1".into())],
        epoch: Epoch(3),
        epochs: 2,
        positions: vec![Some(("n1".into(), Some(4))), None],
        spares: vec![("n2".into(), None)],
        excluded: vec!["n3".into()],
        down: vec![("n4".into(), "lost".into(), true)],
        launches: vec![launch],
        newest: 2,
        suspect,
        code: Some(1),
        is_over: false,
    };
    assert_eq!(run.encode(), bytes("run"));
    assert_eq!(RunRecord::decode(&bytes("run")), Ok(run));
}

#[test]
fn the_halt_conditions_of_the_page_are_what_the_code_writes() {
    let prefix = tempfile::tempdir().expect("a directory");
    let files = HaltFiles::new(prefix.path());
    let condition = |value| Condition {
        value,
        id: 31,
        by: "me@node0".into(),
        set: 1000,
    };
    for kind in halt::Kind::ALL {
        let value = match kind {
            halt::Kind::Now | halt::Kind::Soon => 0,
            halt::Kind::Checkpoints => 3,
            halt::Kind::Before | halt::Kind::After => 1_700_000_000,
            halt::Kind::Seconds => 600,
        };
        files.give(kind, &condition(value)).expect("written");
    }
    let base = Base {
        id: 31,
        checkpoint: 5,
    };
    files.note(&base).expect("written");
    let directory = PrefixPaths::new(prefix.path()).halt();
    let found = std::fs::read_dir(&directory).expect("a directory");
    assert_eq!(found.count(), block("halt").lines().count());
    for line in block("halt").lines() {
        let (file, text) = line.split_once(' ').expect("a name and its text");
        let written = std::fs::read_to_string(directory.join(file)).expect("the file");
        assert_eq!(written, format!("{}\n", text.trim_start()), "{file}");
    }
}

#[test]
fn the_page_has_every_kind_of_record_by_its_number() {
    let row = PAGE
        .lines()
        .find(|line| line.starts_with("| 6 | 1 | kind: "));
    let row = row.expect("the row of kinds");
    for (kind, words) in [
        (Kind::Dataset, "dataset"),
        (Kind::Manifest, "manifest"),
        (Kind::Sums, "sums"),
        (Kind::Epoch, "epoch"),
        (Kind::Message, "message"),
        (Kind::Heartbeat, "heartbeat"),
        (Kind::IndexEntry, "index entry"),
        (Kind::Pointers, "pointers"),
        (Kind::Choice, "choice"),
        (Kind::Catalog, "catalog"),
        (Kind::ScavengePlan, "plan"),
        (Kind::ScavengeReport, "report of a scavenge"),
        (Kind::Run, "run"),
    ] {
        let said = format!(" {} {words}", kind as u8);
        assert!(row.contains(&said), "no{said} in {row}");
        // Whoever adds one is led here by the compiler.
        match kind {
            Kind::Dataset
            | Kind::Manifest
            | Kind::Sums
            | Kind::Epoch
            | Kind::Message
            | Kind::Heartbeat
            | Kind::IndexEntry
            | Kind::Pointers
            | Kind::Choice
            | Kind::Catalog
            | Kind::ScavengePlan
            | Kind::ScavengeReport
            | Kind::Run => {}
        }
    }
}

/// That a block of the page is what the code makes of a record, and reads as it.
fn record_is<T>(block: &str, kind: Kind, record: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    assert_eq!(seal(kind, record), bytes(block), "{block}");
    assert_eq!(open::<T>(kind, &bytes(block)).as_ref(), Ok(record));
}

/// The first words of the lines of a block.
fn first_words(name: &str) -> Vec<&'static str> {
    let words = block(name).lines();
    words
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

fn as_text(paths: &[PathBuf]) -> Vec<&str> {
    paths.iter().filter_map(|path| path.to_str()).collect()
}

#[test]
fn what_is_being_deleted_is_known_by_its_name() {
    let paths = PrefixPaths::new(Path::new("/p"));
    let path = paths.deleted(KEY);
    let name = path.file_name().and_then(|name| name.to_str());
    assert_eq!(name.and_then(parse_deleted), Some(KEY));
    assert_eq!(parse_deleted("5.1000.99"), None);
}
