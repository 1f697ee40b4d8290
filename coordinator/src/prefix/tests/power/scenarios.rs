//! What is done to a prefix, on which world, and what is to be seen of it.

use super::super::scr::written_by_scr;
use super::super::*;
use super::loses_power;
use crate::part::testing::{Described, set_mtime};
use scrfs::config::Class;
use scrfs::layout::envelope::{Kind, seal};
use scrfs::layout::pointer::{Content, Pointer, PointerRecord, Pointers, Version};
use std::collections::{BTreeMap, BTreeSet};

/// One operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Slots in this order, then the whole.
    Flush(u64, &'static [u32]),
    Delete(&'static str),
    Drop(&'static str),
    Add(&'static str),
    AddScr(&'static str),
    Retain(u64),
    Choose(&'static str),
    Fail(u64),
    Reconcile,
    /// A job writes this version of the pointer files `latest` and `link`, which name the dataset of that
    /// number.
    Point(&'static str, u64, u64),
}

/// What there is of a name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shown {
    Not,
    /// Listed as complete, and so it is.
    Whole(u64),
    /// All files are there, and it was dropped.
    Dropped(u64),
    /// All files are there, and it is not complete yet.
    Loose(u64),
    /// What somebody else wrote, as it was.
    Theirs,
    /// A pointer file that names the dataset of this number.
    Pointer(u64),
}
use Shown::{Dropped, Loose, Not, Theirs, Whole};

/// By name, what is to be seen.
type Seen = &'static [(&'static str, Shown)];

pub(super) struct Scenario {
    pub(super) name: &'static str,
    begin: fn(&World) -> Vec<DatasetRecord>,
    /// The filesystem has plain renames only.
    pub(super) plain: bool,
    /// Before the first step.
    pub(super) first: Seen,
    /// And what each of them changes.
    pub(super) steps: &'static [(Step, Seen)],
}

/// A world that a scenario has begun in.
pub(super) struct Stage {
    pub(super) world: World,
    pub(super) records: Vec<DatasetRecord>,
    /// What somebody else wrote.
    pub(super) theirs: Option<BTreeMap<PathBuf, Described>>,
    pub(super) plain: bool,
}

pub(super) const SCENARIOS: [Scenario; 14] = [
    Scenario {
        name: "first",
        begin: |world| vec![rich(world, 5, "ckpt.5"), rich(world, 6, "ckpt.6")],
        plain: false,
        first: &[("ckpt.5", Not), ("ckpt.6", Not)],
        steps: &[
            (Step::Flush(5, &[1, 0]), &[("ckpt.5", Whole(5))]),
            (Step::Flush(6, &[0, 1]), &[("ckpt.6", Whole(6))]),
        ],
    },
    Scenario {
        name: "replace",
        begin: replaced,
        plain: false,
        first: &[("ckpt", Whole(5)), ("ckpt.2", Whole(2))],
        steps: &[(Step::Flush(6, &[0, 1]), &[("ckpt", Whole(6))])],
    },
    Scenario {
        name: "replace in two steps",
        begin: replaced,
        plain: true,
        first: &[("ckpt", Whole(5)), ("ckpt.2", Whole(2))],
        steps: &[(Step::Flush(6, &[0, 1]), &[("ckpt", Whole(6))])],
    },
    Scenario {
        name: "delete",
        begin: three,
        plain: false,
        first: THREE,
        steps: &[
            (Step::Delete("ckpt.3"), &[("ckpt.3", Not)]),
            (Step::Drop("ckpt.2"), &[("ckpt.2", Dropped(2))]),
            (Step::Delete("ckpt.2"), &[("ckpt.2", Not)]),
        ],
    },
    Scenario {
        name: "drop and add",
        begin: three,
        plain: false,
        first: THREE,
        steps: &[
            (Step::Drop("ckpt.2"), &[("ckpt.2", Dropped(2))]),
            (Step::Add("ckpt.2"), &[("ckpt.2", Whole(2))]),
        ],
    },
    Scenario {
        name: "adopt",
        begin: |world| {
            theirs(world);
            three(world)
        },
        plain: false,
        first: &[
            ("ckpt.2", Whole(2)),
            ("ckpt.3", Whole(3)),
            ("ckpt.4", Whole(4)),
            ("theirs", Theirs),
        ],
        steps: &[
            (Step::Add("theirs"), &[("theirs", Whole(5))]),
            (Step::Delete("theirs"), &[("theirs", Not)]),
        ],
    },
    Scenario {
        name: "gather",
        begin: |world| {
            of_scr(world);
            three(world)
        },
        plain: false,
        first: &[
            ("ckpt.2", Whole(2)),
            ("ckpt.3", Whole(3)),
            ("ckpt.4", Whole(4)),
            ("run/theirs", Theirs),
            ("step 6", Not),
        ],
        steps: &[
            (Step::AddScr("step 6"), &[("step 6", Whole(5))]),
            (Step::Delete("step 6"), &[("step 6", Not)]),
        ],
    },
    Scenario {
        name: "retain",
        begin: three,
        plain: false,
        first: THREE,
        steps: &[(Step::Retain(1), &[("ckpt.2", Not), ("ckpt.3", Not)])],
    },
    Scenario {
        name: "choose and fail",
        begin: three,
        plain: false,
        first: THREE,
        steps: &[
            (Step::Fail(4), &[]),
            (Step::Choose("ckpt.3"), &[]),
            (Step::Fail(3), &[]),
            (Step::Choose("ckpt.4"), &[]),
        ],
    },
    Scenario {
        name: "reconcile",
        begin: interrupted,
        plain: false,
        first: &[
            ("ckpt.2", Loose(7)),
            ("ckpt.3", Not),
            ("ckpt.4", Whole(4)),
            ("ckpt.5", Not),
            ("ckpt.6", Not),
        ],
        steps: &[
            (
                Step::Reconcile,
                &[("ckpt.2", Whole(7)), ("ckpt.5", Whole(5))],
            ),
            (Step::Flush(6, &[0, 1]), &[("ckpt.6", Whole(6))]),
        ],
    },
    Scenario {
        name: "resume",
        begin: |world| {
            let mut records = vec![cut_off(world, 5), cut_off(world, 6)];
            records[1].epoch.0 += 1;
            records
        },
        plain: false,
        first: &[("ckpt.5", Not), ("ckpt.6", Not)],
        steps: &[
            (Step::Flush(5, &[0, 1]), &[("ckpt.5", Whole(5))]),
            (Step::Flush(6, &[0, 1]), &[("ckpt.6", Whole(6))]),
        ],
    },
    Scenario {
        name: "point",
        begin: three,
        plain: false,
        first: THREE,
        steps: &[
            (
                Step::Point("job", 3, 3),
                &[("latest", Shown::Pointer(3)), ("link", Shown::Pointer(3))],
            ),
            (
                Step::Point("job", 4, 4),
                &[("latest", Shown::Pointer(4)), ("link", Shown::Pointer(4))],
            ),
        ],
    },
    Scenario {
        name: "point by two jobs",
        begin: three,
        plain: false,
        first: THREE,
        steps: &[
            (
                Step::Point("job", 7, 3),
                &[("latest", Shown::Pointer(3)), ("link", Shown::Pointer(3))],
            ),
            // Versions of jobs are not compared.
            (
                Step::Point("another", 2, 4),
                &[("latest", Shown::Pointer(4)), ("link", Shown::Pointer(4))],
            ),
            (Step::Point("job", 7, 3), &[]),
            (
                Step::Point("job", 8, 2),
                &[("latest", Shown::Pointer(2)), ("link", Shown::Pointer(2))],
            ),
        ],
    },
    Scenario {
        name: "point where it was one file",
        begin: |world| {
            pointed_once(world);
            three(world)
        },
        plain: false,
        first: &[
            ("ckpt.2", Whole(2)),
            ("ckpt.3", Whole(3)),
            ("ckpt.4", Whole(4)),
            ("latest", Shown::Pointer(2)),
            ("link", Shown::Pointer(2)),
        ],
        steps: &[
            (
                Step::Point("job", 3, 3),
                &[("latest", Shown::Pointer(3)), ("link", Shown::Pointer(3))],
            ),
            (
                Step::Point("another", 3, 4),
                &[("latest", Shown::Pointer(4)), ("link", Shown::Pointer(4))],
            ),
        ],
    },
];

const THREE: Seen = &[
    ("ckpt.2", Whole(2)),
    ("ckpt.3", Whole(3)),
    ("ckpt.4", Whole(4)),
];

impl Scenario {
    pub(super) fn stage(&self) -> Stage {
        // Where syncs cost nothing, and numbers are not used again.
        let memory = Path::new("/dev/shm");
        let mut world = match memory.is_dir() {
            true => World::below(memory),
            false => World::new(),
        };
        world.prefix.job = "job".into();
        let records = (self.begin)(&world);
        let strange = ["theirs", "run/theirs"].map(|name| world.published(name));
        let theirs = strange.iter().find(|path| path.is_dir());
        let theirs = theirs.map(|path| describe(path));
        Stage {
            world,
            records,
            theirs,
            plain: self.plain,
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Also what its owner may not write to: it lies in memory.
        let _ = crate::part::remove_tree(self.world.root.path());
    }
}

impl Stage {
    pub(super) fn record(&self, id: u64) -> DatasetRecord {
        let found = self.records.iter().find(|record| record.id.0 == id);
        found.unwrap().clone()
    }
}

fn missing_is_fine(result: Result<DatasetKey, PrefixError>) -> Result<(), PrefixError> {
    match result {
        Err(PrefixError::NoSuch { .. }) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Step {
    /// Does it, as far as it is not done; in an epoch that is so much later than that of the record.
    pub(super) fn perform(
        self,
        prefix: &Prefix,
        cache: &CachePaths,
        record: &dyn Fn(u64) -> DatasetRecord,
        later: u64,
    ) -> Result<(), PrefixError> {
        let name = |text: &str| Name::new(text.as_bytes()).unwrap();
        match self {
            Self::Flush(id, slots) => {
                let mut record = record(id);
                record.epoch.0 += later;
                let limits = FlushLimits {
                    // The same order each time.
                    streams: 1,
                    ..FlushLimits::default()
                };
                for &slot in slots {
                    let part = Part::open(&PosixStore::new(), cache, &record, Slot(slot))?;
                    prefix.flush_part(&record, &part, limits, &|_| {}, &GO)?;
                }
                prefix.complete_flush(&record)
            }
            Self::Delete(text) => missing_is_fine(prefix.delete(&name(text), false)),
            Self::Drop(text) => missing_is_fine(prefix.drop_entry(&name(text))),
            Self::Add(text) => prefix
                .add(&name(text), Class::Checkpoint, &|_, _| {})
                .map(drop),
            Self::AddScr(text) => prefix.add_scr(&name(text), None, &|_, _| {}).map(drop),
            Self::Retain(keep) => prefix.retain(keep, &BTreeSet::new()).map(drop),
            Self::Choose(text) => prefix.choose(&name(text), None).map(drop),
            Self::Fail(id) => prefix.fail(record(id).key()),
            Self::Reconcile => prefix.reconcile(&BTreeSet::new()),
            Self::Point(job, version, id) => {
                let of_job = Prefix::at(prefix.paths().root()).of_job(job);
                of_job.write_pointers(&pointers(version, id))
            }
        }
    }
}

fn pointers(number: u64, id: u64) -> Pointers {
    let mut due = Pointers::default();
    let says = format!("ckpt.{id}").into_bytes();
    for (name, content) in [
        ("latest", Content::File(says.clone())),
        ("link", Content::Link(says)),
    ] {
        let pointer = Pointer {
            content,
            mode: 0o640,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            mtime: (1_000_000_000, 5),
        };
        let record = PointerRecord {
            version: Version { term: 1, number },
            after: None,
            pointer: Some(pointer),
        };
        due.learn(Name::new(name.as_bytes()).unwrap(), record);
    }
    due
}

/// Pointer files that name the dataset 2, as they were kept in one file: one written, one only claimed.
fn pointed_once(world: &World) {
    let mut pointers = pointers(2, 2);
    let says = "ckpt.2";
    fs::write(world.published("latest"), says).unwrap();
    symlink(says, world.published("link")).unwrap();
    let claimed = PointerRecord {
        version: Version::default(),
        after: None,
        pointer: None,
    };
    let link = Name::new(b"link").unwrap();
    pointers.all.insert(link, claimed);
    let path = world.prefix.paths().pointers();
    let bytes = seal(Kind::Pointers, &pointers);
    PosixStore::new().put(&path, &bytes).unwrap();
}

/// Two slots of everything.
fn rich(world: &World, id: u64, name: &str) -> DatasetRecord {
    for slot in 0..2 {
        let tree = world.cache.tree(DatasetId(id), Slot(slot));
        fs::create_dir_all(tree.join("shared/deep")).unwrap();
        fs::create_dir(tree.join(format!("empty.{slot}"))).unwrap();
        let file = |name: &str| tree.join(format!("{name}.{slot}"));
        fs::write(file("shared/rank"), [id as u8; 20_000]).unwrap();
        fs::write(file("shared/deep/small"), format!("{slot} of {id}")).unwrap();
        fs::write(file("nothing"), b"").unwrap();
        let sparse = File::create(file("sparse")).unwrap();
        for at in [0, 131_072] {
            sparse.write_all_at(&[slot as u8 + 1; 4096], at).unwrap();
        }
        sparse.set_len(200_000).unwrap();
        symlink("shared/rank.0", file("link")).unwrap();
        fs::hard_link(file("shared/rank"), file("twin")).unwrap();
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o640);
        nix::unistd::mkfifo(&file("pipe"), mode).unwrap();
        let noted = File::open(file("shared/deep/small")).unwrap();
        // A filesystem may have none.
        crate::part::xattr::write(&noted, b"user.note", b"value").ok();
        for name in ["shared/rank", "nothing", "sparse", "link", "pipe"] {
            set_mtime(&file(name), 1_000_000_000 + i64::from(slot), 5);
        }
        set_mtime(&tree.join("shared"), 1_100_000_000, 5);
    }
    sealed(&world.cache, id, name, 2)
}

fn three(world: &World) -> Vec<DatasetRecord> {
    let all = (2..=4).map(|id| {
        let content = format!("content of {id}");
        let files: [(&str, &[u8]); 2] = [("a", content.as_bytes()), ("b", &[id as u8; 5000])];
        let record = world.files(id, &format!("ckpt.{id}"), &files);
        world.flush(&record);
        record
    });
    all.collect()
}

fn theirs(world: &World) {
    let path = world.published("theirs");
    fs::create_dir_all(path.join("below")).unwrap();
    fs::write(path.join("below/a"), b"theirs").unwrap();
    fs::write(path.join("b"), [9; 20_000]).unwrap();
}

/// A dataset of SCR's that has its directory below one that others are in, too.
fn of_scr(world: &World) {
    let six: [(&str, &[u8]); 2] = [
        ("run/theirs/a", &[6; 20_000]),
        ("run/theirs/below/b", b"theirs"),
    ];
    let seven: [(&str, &[u8]); 1] = [("run/seven", b"others")];
    let root = world.prefix.paths().root();
    written_by_scr(root, &[(6, "step 6", &six), (7, "step 7", &seven)]);
}

fn replaced(world: &World) -> Vec<DatasetRecord> {
    let other = world.files(2, "ckpt.2", &[("a", b"other")]);
    let old = world.files(5, "ckpt", &[("a", b"old"), ("b", &[5; 5000])]);
    world.flush(&other);
    world.flush(&old);
    vec![other, old, rich(world, 6, "ckpt")]
}

/// Stops a flush before a step of its end.
fn stopped(world: &World, record: &DatasetRecord, at: &str) {
    world.flush_slots(record);
    let step = |step: &'static str| match step == at {
        true => Err(io::Error::other("stopped")),
        false => Ok(()),
    };
    assert!(world.prefix.complete_flush_with(record, &step).is_err());
}

/// What earlier crashes left: one that is being given its name, one half copied, one half deleted, and
/// one that has just taken the name of another.
fn interrupted(world: &World) -> Vec<DatasetRecord> {
    let mut records = three(world);
    let publishing = rich(world, 5, "ckpt.5");
    stopped(world, &publishing, "take the name");
    let copying = rich(world, 6, "ckpt.6");
    world.flush_slot(&copying, 0).unwrap();
    let replacing = world.files(7, "ckpt.2", &[("a", b"new")]);
    stopped(world, &replacing, "write the complete entry");
    let step = |step: &'static str| match step {
        "mark it gone" => Err(io::Error::other("stopped")),
        _ => Ok(()),
    };
    let name = Name::new(b"ckpt.3").unwrap();
    assert!(world.prefix.delete_with(&name, false, &step).is_err());
    records.extend([publishing, copying, replacing]);
    records
}

/// A flush that has two files of the first slot, and all of the second.
fn cut_off(world: &World, id: u64) -> DatasetRecord {
    let record = rich(world, id, &format!("ckpt.{id}"));
    world.flush_slots(&record);
    let paths = world.prefix.paths();
    let noted = paths.done(record.key(), record.epoch, Slot(0));
    let noted = File::options().write(true).open(noted).unwrap();
    noted.set_len(2 * 20).unwrap();
    fs::remove_file(paths.manifest(record.key(), Slot(0))).unwrap();
    record
}

macro_rules! scenarios {
    ($($test:ident $name:literal)*) => {
        $(#[test]
        fn $test() {
            loses_power($name);
        })*

        #[test]
        fn each_scenario_is_a_test() {
            let names = SCENARIOS.map(|it| it.name);
            assert_eq!(names, [$($name),*]);
        }
    };
}

scenarios! {
    invariant_a_flush_holds_when_the_power_goes "first"
    invariant_a_replaced_dataset_is_the_old_or_the_new_one "replace"
    invariant_so_it_is_where_nothing_can_be_exchanged "replace in two steps"
    invariant_a_deleted_dataset_is_whole_or_gone "delete"
    invariant_what_was_dropped_and_added_is_there "drop and add"
    invariant_what_others_wrote_stays_until_it_is_deleted "adopt"
    invariant_what_scr_wrote_is_gathered_or_not "gather"
    invariant_the_newest_are_kept "retain"
    invariant_a_choice_is_made_or_not "choose and fail"
    invariant_what_a_crash_left_is_finished_after_another "reconcile"
    invariant_a_flush_that_is_begun_again_holds "resume"
    invariant_a_pointer_file_is_the_old_or_the_new_one "point"
    invariant_so_it_is_where_two_jobs_write_it "point by two jobs"
    invariant_so_it_is_where_claims_are_in_one_file "point where it was one file"
}
