//! The daemon as a process: start, crash, remount, re-attach, orders, and what goes wrong.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use scrfs::control::{Beat, Order};
use scrfs::id::Epoch;
use scrfs::layout::envelope::{self, Kind};
use scrfs_fuse_tests::coordinator::Manners;
use scrfs_fuse_tests::mounted::{Place, scrfs, text};
use scrfs_fuse_tests::{PATIENCE, leave_out, until};
use std::fs;
use std::process::Command;

const MIB: u64 = 1 << 20;

#[test]
fn a_crash_loses_nothing_and_the_dead_mount_is_taken_over() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    fs::write(mnt.join("a.tmp/f"), b"sealed").unwrap();
    fs::rename(mnt.join("a.tmp"), mnt.join("a")).unwrap();
    fs::create_dir(mnt.join("b.tmp")).unwrap();
    fs::write(mnt.join("b.tmp/f"), b"open").unwrap();
    let ino = std::os::unix::fs::MetadataExt::ino(&fs::metadata(mnt.join("a/f")).unwrap());
    drop(coordinator);
    place.kill_daemon();
    assert!(fs::metadata(&mnt).is_err(), "a dead mount");

    place.mount(&[]);
    assert_eq!(
        fs::read(mnt.join("a/f")).unwrap(),
        b"sealed",
        "from the records alone"
    );
    let again = std::os::unix::fs::MetadataExt::ino(&fs::metadata(mnt.join("a/f")).unwrap());
    assert_eq!(ino, again, "inode numbers stay");
    let _coordinator = place.coordinator(2, Manners::default());
    fs::rename(mnt.join("b.tmp"), mnt.join("b")).unwrap();
    assert_eq!(fs::read(mnt.join("b/f")).unwrap(), b"open");
}

#[test]
fn a_second_mount_finds_the_first() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let daemon = place.daemon();
    place.mount(&[]);
    assert_eq!(place.daemon(), daemon);
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = Command::new(scrfs());
    command
        .arg("mount")
        .arg(elsewhere.path())
        .args(["--job", "test"]);
    command
        .arg("--cache")
        .arg(place.cache())
        .arg("--prefix")
        .arg(place.prefix());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("in use by the daemon at"),
        "{}",
        text(&output)
    );
}

#[test]
fn unmounting_and_purging() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    let file = fs::File::create(mnt.join("a.tmp/f")).unwrap();
    let unmount = |more: &[&str]| {
        Command::new(scrfs())
            .arg("unmount")
            .arg(place.mnt())
            .args(more)
            .output()
            .unwrap()
    };
    let busy = unmount(&[]);
    assert_eq!(busy.status.code(), Some(1), "{}", text(&busy));
    assert!(text(&busy).contains("fuser"), "{}", text(&busy));
    drop(file);
    let mut last = busy;
    until("it unmounts", || {
        last = unmount(&["--purge"]);
        last.status.success()
    });
    drop(coordinator);
    assert!(!mnt.join(".scr").exists());
    assert!(
        !place.socket().with_file_name("datasets").exists(),
        "purged"
    );
    assert_eq!(unmount(&[]).status.code(), Some(3));
}

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    let place = Place::new(64 * MIB);
    let fails = |mut command: Command, code: i32, words: &str| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        assert!(
            text(&output).contains(words),
            "{words:?} is not in {}",
            text(&output)
        );
    };
    let mount = |mnt: &str, cache: &str, prefix: &str, more: &[&str]| {
        let mut command = Command::new(scrfs());
        command
            .args(["mount", mnt, "--cache", cache, "--prefix", prefix])
            .args(more);
        command
    };
    let own = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let (mnt, cache, prefix) = (own(place.mnt()), own(place.cache()), own(place.prefix()));
    fails(
        mount(&mnt, &cache, "/nonexistent/p", &[]),
        1,
        "mkdir -p /nonexistent/p",
    );
    fails(
        mount("/nonexistent/m", &cache, &prefix, &[]),
        1,
        "mkdir -p /nonexistent/m",
    );
    fails(
        mount(&mnt, "/proc/self", &prefix, &[]),
        1,
        "cannot write the cache",
    );
    fails(
        mount("/proc", &cache, &prefix, &[]),
        1,
        "another filesystem (proc)",
    );
    fails(
        mount(&mnt, &cache, &prefix, &["--config", "/nonexistent/c"]),
        2,
        "/nonexistent/c",
    );
    fails(
        mount(&mnt, &cache, &prefix, &["--nonsense"]),
        2,
        "--nonsense",
    );
    let file = place.prefix().join("file");
    fs::write(&file, b"").unwrap();
    fails(
        mount(&own(file), &cache, &prefix, &[]),
        1,
        "is not a directory",
    );
    let status = place.command("status", &[]);
    assert_eq!(status.status.code(), Some(3), "{}", text(&status));
}

#[test]
fn it_beats_and_obeys_the_supervisor() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let socket = place.supervisor();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let beat = || {
        let mut buffer = [0; 4096];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        let beat: Beat = envelope::open(Kind::Heartbeat, &buffer[..length]).unwrap();
        (beat, from)
    };
    let (first, _) = beat();
    assert_eq!(
        (first.token, first.node.as_str(), first.epoch),
        (7, "n0", None)
    );
    let coordinator = place.coordinator(4, Manners::default());
    until("it is ready", || {
        let (beat, _) = beat();
        beat.ready && beat.epoch == Some(Epoch(4)) && beat.epoch_last == Epoch(4)
    });
    // The connected process is this test: let it go before the order to kill it.
    drop(coordinator);
    until("it is gone", || beat().0.epoch.is_none());
    let (last, from) = beat();
    let order = |token| Order {
        token,
        sequence: last.sequence,
        halt: true,
        epoch_min: Epoch(9),
    };
    let send = |token| socket.send_to(&envelope::seal(Kind::Heartbeat, &order(token)), from);
    send(7).unwrap();
    until("older epochs are refused", || {
        let manners = Manners::default();
        scrfs_fuse_tests::coordinator::Coordinator::start(&place.socket(), 8, manners).is_err()
    });
    let should_exit = place.mnt().join(".scr/should_exit");
    assert_eq!(fs::read(should_exit).unwrap(), b"1\n");
    let before = beat().0.activity;
    fs::write(place.mnt().join(".scr/heartbeat"), "alive").unwrap();
    until("a sign of life is passed on", || {
        beat().0.activity != before
    });
    drop(place.coordinator(9, Manners::default()));
}

#[test]
fn a_writer_from_before_a_crash_holds_up_the_commit() {
    use std::io::Write;
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    if place.status()["passthrough"] != true {
        leave_out("this machine has no passthrough: a crash closes all files");
        return;
    }
    let coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    let mut writer = fs::File::create(mnt.join("a.tmp/f")).unwrap();
    drop(coordinator);
    place.kill_daemon();
    place.mount(&[]);
    let manners = Manners {
        grace: std::time::Duration::from_millis(300),
        ..Manners::default()
    };
    let _coordinator = place.coordinator(2, manners);
    writer.write_all(b"late").unwrap();
    assert!(
        fs::rename(mnt.join("a.tmp"), mnt.join("a")).is_err(),
        "it can still be written"
    );
    drop(writer);
    fs::rename(mnt.join("a.tmp"), mnt.join("a")).unwrap();
    assert_eq!(fs::read(mnt.join("a/f")).unwrap(), b"late");
}
