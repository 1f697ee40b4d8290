//! Several jobs that have one prefix, and do not know of each other.

use super::*;
use scrfs::config::DEFAULT_JOB;
use scrfs::protocol::step::Presence;
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
fn jobs_without_an_id_leave_each_other_alone() {
    let mut world = World::new();
    let root = world.prefix.paths().root().to_owned();
    world.prefix = Prefix::open(&root).unwrap().of_job(DEFAULT_JOB);
    let (copying, publishing) = interrupted(&world);
    let theirs = Prefix::open(&root).unwrap().of_job(DEFAULT_JOB);
    theirs.reconcile(&BTreeSet::new()).unwrap();
    theirs.end_job(Epoch(9)).unwrap();
    // What was all there has its name, whoever gave it.
    assert!(world.ids().contains(&(6, EntryState::Complete)));
    world.prefix.complete_flush(&copying).unwrap();
    world.prefix.complete_flush(&publishing).unwrap();
    world.fetches_all_of(&copying);
    world.fetches_all_of(&publishing);
    // In the end nobody is at work on it.
    let left = world.files(7, "left", &[("a", b"half")]);
    world.flush_slots(&left);
    age_all(&root.join(".scrfs"));
    theirs.reconcile(&BTreeSet::new()).unwrap();
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn what_another_job_has_completed_meanwhile_keeps_its_manifests() {
    let mut world = World::new();
    let root = world.prefix.paths().root().to_owned();
    world.prefix = Prefix::open(&root).unwrap().of_job("one");
    let (copying, publishing) = interrupted(&world);
    let theirs = Prefix::open(&root).unwrap().of_job("two");
    // The other has read the index, and seen attempts that have no entry.
    world.prefix.complete_flush(&copying).unwrap();
    theirs.clear_attempts(copying.key(), None, false);
    world.fetches_all_of(&copying);
    // Whose it is cannot be read: it may be at work.
    let job = world.prefix.paths().inflight_job(publishing.key());
    fs::remove_file(&job).unwrap();
    fs::create_dir(&job).unwrap();
    theirs.clear_attempts(publishing.key(), None, false);
    assert!(job.exists());
    fs::remove_dir(&job).unwrap();
    world.prefix.complete_flush(&publishing).unwrap();
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

/// A copy of a directory, as `cp -a` makes it: with inodes of its own.
fn replace_by_a_copy(path: &Path) {
    let copy = path.with_extension("copy");
    let mut cp = std::process::Command::new("cp");
    assert!(cp.arg("-a").args([path, &copy]).status().unwrap().success());
    // What is removed last gives its inode number away.
    let old = path.with_extension("old");
    fs::rename(path, &old).unwrap();
    fs::rename(&copy, path).unwrap();
    fs::remove_dir_all(&old).unwrap();
}

#[test]
fn what_was_flushed_is_there_or_gone_or_replaced_by_another() {
    let mut world = World::new();
    let root = world.prefix.paths().root().to_owned();
    world.prefix = Prefix::open(&root).unwrap().of_job("one");
    let ours = world.files(5, "name", &[("a", b"ours")]);
    let presence = |of: &World| of.prefix.presence(&ours).unwrap();
    assert_eq!(presence(&world), Presence::Gone);
    world.flush(&ours);
    assert_eq!(presence(&world), Presence::Settled);
    let path = world.published("name");
    // As in a prefix that somebody copied.
    replace_by_a_copy(&path);
    assert_eq!(presence(&world), Presence::Settled);

    let mut theirs = World::new();
    theirs.prefix = Prefix::open(&root).unwrap().of_job("two");
    let mut record = theirs.files(7, "name", &[("a", b"theirs")]);
    record.created += 1;
    theirs.flush_slots(&record);
    // What each step finds before it.
    let steps = std::cell::RefCell::new(Vec::new());
    theirs
        .prefix
        .complete_flush_with(&record, &|step| {
            steps.borrow_mut().push((step, presence(&world)));
            Ok(())
        })
        .unwrap();
    let steps = steps.into_inner();
    let taken = steps.iter().position(|(step, _)| *step == "sync the name");
    let (before, after) = steps.split_at(taken.unwrap());
    assert!(
        before
            .last()
            .is_some_and(|(step, _)| *step == "take the name"),
        "{steps:?}"
    );
    assert!(
        before.iter().all(|(_, it)| *it == Presence::Settled),
        "{steps:?}"
    );
    assert!(
        after.iter().all(|(_, it)| *it == Presence::Replaced),
        "{steps:?}"
    );
    assert_eq!(presence(&world), Presence::Replaced);

    fs::remove_dir_all(&path).unwrap();
    assert_eq!(presence(&world), Presence::Gone);
    fs::write(&path, b"a file").unwrap();
    assert_eq!(presence(&world), Presence::Gone);
    // What cannot be seen is not gone.
    fs::rename(&root, world.root.path().join("away")).unwrap();
    fs::write(&root, b"not a directory").unwrap();
    assert!(world.prefix.presence(&ours).is_err());
}
