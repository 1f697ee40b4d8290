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
