//! What the coordinator hears of files that nobody writes any more.

use super::*;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Long enough not to be left to the encode after the commit.
const LARGE: usize = 300_000;

impl World {
    /// One of several nodes, with an open dataset.
    fn of_two() -> Self {
        let world = Self::new(|_| Some(false));
        let status = |rank| scrfs::control::NodeStatus {
            node: format!("n{rank}"),
            rank: scrfs::id::Rank(rank),
            slot: Slot(rank),
            free_bytes: 0,
        };
        world.vfs.set_nodes(vec![status(0), status(1)]);
        world.publish(1, "a.tmp", Phase::Open, None);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.vfs
            .settings()
            .cache
            .tree(DatasetId(1), Slot(0))
            .join(name)
    }

    fn write_file(&self, name: &str, bytes: usize) {
        let handle = self.create(self.ino("a.tmp"), name).expect("created");
        let data = vec![7; bytes];
        assert_eq!(self.vfs.write(handle, 0, &data, true), Ok(bytes));
        self.vfs.release(handle);
    }

    /// The next word about a closed file: its name when it is closed, its number when it is opened again.
    fn word(&self) -> Result<String, u64> {
        loop {
            match self
                .said
                .recv_timeout(Duration::from_secs(10))
                .expect("a word")
            {
                FromDaemon::Closed { path, ino, .. } => {
                    let name = String::from_utf8(path.as_bytes().to_vec()).expect("a name");
                    let found = std::fs::metadata(self.path(&name)).expect("it is there");
                    assert_eq!(found.ino(), ino);
                    return Ok(name);
                }
                FromDaemon::Reopened { ino, .. } => return Err(ino),
                _ => {}
            }
        }
    }

    fn number(&self, name: &str) -> u64 {
        std::fs::metadata(self.path(name))
            .expect("it is there")
            .ino()
    }

    /// Nothing was said that was not heard: a file that is closed now is the next one.
    fn is_silent(&self, marker: &str) {
        self.write_file(marker, LARGE);
        assert_eq!(self.word(), Ok(marker.to_owned()));
    }

    fn open_to_write(&self, name: &str, flags: i32) -> u64 {
        let ino = self.ino(&format!("a.tmp/{name}"));
        wait(|answer| self.vfs.open(me(), ino, flags, answer)).expect("opened")
    }
}

#[test]
fn a_file_is_told_of_when_its_last_writer_is_gone_and_before_it_has_another() {
    let world = World::of_two();
    world.write_file("large", LARGE);
    assert_eq!(world.word(), Ok("large".into()));
    let number = world.number("large");
    // Room for its parity was kept before that was said.
    let room = world
        .vfs
        .settings()
        .cache
        .parity_room(DatasetId(1), Slot(0));
    assert!(std::fs::metadata(room).expect("a room").len() >= LARGE as u64);
    let (one, other) = (
        world.open_to_write("large", libc::O_WRONLY),
        world.open_to_write("large", libc::O_RDWR),
    );
    assert_eq!(world.word(), Err(number), "as soon as it is open");
    world.vfs.release(one);
    world.is_silent("first");
    world.vfs.release(other);
    assert_eq!(world.word(), Ok("large".into()));
    // Who only reads changes nothing.
    let reader = world.open_to_write("large", libc::O_RDONLY);
    world.is_silent("second");
    world.vfs.release(reader);
}

#[test]
fn what_is_cut_or_removed_by_its_name_is_told_of_before() {
    let world = World::of_two();
    for name in ["cut", "emptied", "removed", "replaced", "linked"] {
        world.write_file(name, LARGE);
        assert_eq!(world.word(), Ok(name.to_owned()));
    }
    let numbers = ["cut", "emptied", "removed", "replaced"].map(|name| world.number(name));
    let top = world.ino("a.tmp");
    let wanted = SetAttr {
        size: Some(270_000),
        ..SetAttr::default()
    };
    let cut = world.ino("a.tmp/cut");
    wait(|answer| world.vfs.setattr(me(), cut, None, wanted, answer)).expect("cut");
    assert_eq!(world.word(), Err(numbers[0]));
    let emptied = world.open_to_write("emptied", libc::O_WRONLY | libc::O_TRUNC);
    assert_eq!(world.word(), Err(numbers[1]));
    world.vfs.release(emptied);
    wait(|answer| world.vfs.unlink(top, OsStr::new("removed"), answer)).expect("removed");
    assert_eq!(world.word(), Err(numbers[2]));
    std::fs::write(world.path("new"), "small").expect("written");
    let (from, to) = ((top, OsStr::new("new")), (top, OsStr::new("replaced")));
    wait(|answer| world.vfs.rename(from, to, 0, answer)).expect("renamed");
    assert_eq!(world.word(), Err(numbers[3]));
    // One of two names: its bytes stay.
    std::fs::hard_link(world.path("linked"), world.path("link")).expect("linked");
    wait(|answer| world.vfs.unlink(top, OsStr::new("link"), answer)).expect("removed");
    world.is_silent("end");
}

#[test]
fn small_files_and_those_that_a_map_can_write_are_not_told_of() {
    let world = World::of_two();
    world.write_file("small", 1000);
    world.is_silent("first");
    // As a map that outlived its descriptor: the kernel says that it is open for writing.
    let handle = world.create(world.ino("a.tmp"), "mapped").expect("created");
    let data = vec![7; LARGE];
    assert_eq!(world.vfs.write(handle, 0, &data, true), Ok(LARGE));
    let held = std::fs::File::options()
        .write(true)
        .open(world.path("mapped"))
        .expect("opened");
    world.vfs.release(handle);
    world.is_silent("second");
    drop(held);
    // Nothing is said of what is sealed.
    world.publish(1, "a", Phase::Sealed, Some("a.tmp"));
    assert!(world.vfs.closed.is_empty());
}

#[test]
fn nothing_is_told_where_there_is_nobody_to_share_parity_with() {
    let world = World::new(|_| Some(false));
    world.publish(1, "a.tmp", Phase::Open, None);
    world.write_file("large", LARGE);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !world.vfs.closed.is_empty() {
        assert!(Instant::now() < deadline, "it is looked at");
        std::thread::yield_now();
    }
    assert!(world.said.try_recv().is_err());
    // Somebody who opened it then is known when there are others.
    let handle = world.open_to_write("large", libc::O_WRONLY);
    let status = |rank| scrfs::control::NodeStatus {
        node: format!("n{rank}"),
        rank: scrfs::id::Rank(rank),
        slot: Slot(rank),
        free_bytes: 0,
    };
    world.vfs.set_nodes(vec![status(0), status(1)]);
    let other = world.open_to_write("large", libc::O_WRONLY);
    world.vfs.release(other);
    world.is_silent("first");
    world.vfs.release(handle);
    assert_eq!(world.word(), Ok("large".into()));
}
