//! Several jobs that have one prefix, and do not know of each other.

use super::*;
use std::collections::BTreeSet;

#[test]
fn two_datasets_of_one_number_do_not_meet() {
    let (one, mut theirs) = (World::new(), World::new());
    let first = one.dataset(5, "ours", 2, 7);
    one.flush(&first);
    // The other job's coordinator, on the same prefix.
    theirs.prefix = Prefix::open(one.prefix.paths().root()).unwrap();
    let mut second = theirs.dataset(5, "theirs", 2, 9);
    second.created += 1;
    theirs.flush_slots(&second);
    assert!(one.has_all_of(&first));
    one.fetches_all_of(&first);
    theirs.prefix.complete_flush(&second).unwrap();
    let all = [(5, EntryState::Complete), (5, EntryState::Complete)];
    assert_eq!(one.ids(), all);
    assert!(one.has_all_of(&first) && theirs.has_all_of(&second));
    one.fetches_all_of(&first);
    theirs.fetches_all_of(&second);
    one.prefix.reconcile(&BTreeSet::new()).unwrap();
    assert_eq!(one.ids(), all);
}

/// What a crash of one job leaves.
fn interrupted(world: &World) -> (DatasetRecord, DatasetRecord) {
    let copying = world.files(5, "copying", &[("a", b"half")]);
    world.flush_slots(&copying);
    let publishing = world.files(6, "publishing", &[("a", b"all")]);
    world.flush_slots(&publishing);
    let died = world
        .prefix
        .complete_flush_with(&publishing, &|step| match step {
            "take the name" => Err(io::Error::other("crashed")),
            _ => Ok(()),
        });
    assert!(died.is_err());
    (copying, publishing)
}

fn age_all(path: &Path) {
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(4000);
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            age_all(&path);
        }
        File::open(&path).unwrap().set_modified(long_ago).unwrap();
    }
}

#[test]
fn what_another_job_is_at_work_on_is_left_to_it_while_it_may_live() {
    let mut world = World::new();
    let root = world.prefix.paths().root().to_owned();
    world.prefix = Prefix::open(&root).unwrap().of_job("one");
    let (copying, publishing) = interrupted(&world);
    let theirs = Prefix::open(&root).unwrap().of_job("two");
    theirs.reconcile(&BTreeSet::new()).unwrap();
    // The first one goes on as if nothing had happened.
    world.prefix.complete_flush(&copying).unwrap();
    world.prefix.complete_flush(&publishing).unwrap();
    let all = [(5, EntryState::Complete), (6, EntryState::Complete)];
    assert_eq!(world.ids(), all);
    world.fetches_all_of(&copying);
    world.fetches_all_of(&publishing);
}

#[test]
fn what_another_job_has_abandoned_is_finished_or_removed() {
    let mut world = World::new();
    let root = world.prefix.paths().root().to_owned();
    world.prefix = Prefix::open(&root).unwrap().of_job("one");
    let (_, publishing) = interrupted(&world);
    let theirs = Prefix::open(&root).unwrap().of_job("two");
    age_all(&root.join(".scrfs"));
    theirs.reconcile(&BTreeSet::new()).unwrap();
    assert_eq!(world.ids(), [(6, EntryState::Complete)]);
    assert_eq!(world.leftovers(), [""; 0]);
    world.fetches_all_of(&publishing);
}
