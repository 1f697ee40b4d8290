//! What only the prefix has, with a coordinator played by hand.

use super::*;
use crate::vfs::view::Remote;
use scrfs::control::Shelved;

#[test]
fn what_only_the_prefix_has_is_fetched_by_who_opens_it_and_in_nobody_elses_way() {
    let world = World::new(|_| Some(false));
    world.put(DatasetRecord {
        flushed: Some(2),
        ..record(3, "evicted", Phase::Evicted, None)
    });
    let shelved = |id, name: &str| Shelved {
        id: DatasetId(id),
        name: Name::new(name.as_bytes()).expect("a name"),
        sealed: 1,
        mode: 0o750,
        uid: 1,
        gid: 2,
    };
    world
        .vfs
        .set_shelf(vec![shelved(7, "old"), shelved(5, "old"), shelved(3, "no")]);
    for name in ["old", "evicted"] {
        assert_eq!(world.lookup(name), Err(FsError::Missing), "{name} is free");
    }
    REACHES.set(true);
    let remote = |id| Remote::top(DatasetId(id)).ino().expect("it fits");
    assert_eq!(world.ino("evicted"), remote(3));
    assert_eq!(
        world.lookup("no"),
        Err(FsError::Missing),
        "another's number"
    );
    let old = world.lookup("old").expect("the newest of its name").attr;
    let whose = (old.ino, old.mode & 0o7777, old.uid, old.gid);
    assert_eq!(whose, (remote(7), 0o750, 1, 2));
    let getattr = world.vfs.getattr(old.ino).expect("attributes").0;
    assert_eq!(getattr, old);
    // Whoever looks into it waits for the fetch, and is told what came of it.
    let (done, result) = mpsc::channel();
    let answer = move |entry| done.send(entry).expect("somebody listens");
    world.vfs.lookup(me(), old.ino, OsStr::new("f"), answer);
    let (request, what) = world.asked();
    assert!(matches!(what, Request::Fetch { name } if name.as_bytes() == b"old"));
    assert!(result.try_recv().is_err());
    world.vfs.requests().reply(request, Err(Refusal::NoSpace));
    let refused = result.recv().expect("an answer");
    assert_eq!(refused, Err(FsError::Refused(Refusal::NoSpace)));
    // What is here goes before.
    world.publish(9, "old", Phase::Open, None);
    assert_ne!(world.ino("old"), remote(7));
    REACHES.set(false);
}
