//! Pointer files: plain files and links at the top, as programs use them.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use nix::errno::Errno;
use scrfs::layout::pointer::POINTER_BYTES_MAX;
use scrfs_fuse_tests::coordinator::Manners;
use scrfs_fuse_tests::mounted::Place;
use scrfs_fuse_tests::until;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

const MIB: u64 = 1 << 20;

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Errno {
    Errno::from_raw(result.expect_err("it succeeded").raw_os_error().unwrap())
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != ".scr")
        .collect();
    names.sort();
    names
}

#[test]
fn written_replaced_linked_renamed_removed() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    let latest = mnt.join("latest");

    fs::write(&latest, "step_1\n").unwrap();
    assert_eq!(fs::read_to_string(&latest).unwrap(), "step_1\n");
    fs::write(&latest, "2").unwrap();
    assert_eq!(fs::read_to_string(&latest).unwrap(), "2");
    let mut more = OpenOptions::new().append(true).open(&latest).unwrap();
    more.write_all(b"3\n").unwrap();
    drop(more);
    assert_eq!(fs::read_to_string(&latest).unwrap(), "23\n");

    // os.replace, and somebody who has the old one open.
    let mut old = File::open(&latest).unwrap();
    fs::write(mnt.join("latest.tmp"), "step_4").unwrap();
    let ino = fs::metadata(mnt.join("latest.tmp")).unwrap().ino();
    fs::rename(mnt.join("latest.tmp"), &latest).unwrap();
    assert_eq!(fs::metadata(&latest).unwrap().ino(), ino, "it is the file");
    assert_eq!(fs::read_to_string(&latest).unwrap(), "step_4");
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "23\n", "the old one is what it was");
    assert_eq!(names(&mnt), ["latest"]);

    // ln -sfn
    fs::create_dir(mnt.join("ckpt.1.tmp")).unwrap();
    fs::write(mnt.join("ckpt.1.tmp/f"), "state").unwrap();
    fs::rename(mnt.join("ckpt.1.tmp"), mnt.join("ckpt.1")).unwrap();
    symlink("ckpt.1", mnt.join("best.new")).unwrap();
    fs::rename(mnt.join("best.new"), mnt.join("best")).unwrap();
    assert_eq!(fs::read(mnt.join("best/f")).unwrap(), b"state");
    assert_eq!(names(&mnt), ["best", "ckpt.1", "latest"]);

    fs::set_permissions(&latest, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(&latest).unwrap().mode() & 0o7777, 0o600);
    let file = OpenOptions::new().write(true).open(&latest).unwrap();
    file.set_len(4).unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(&latest).unwrap(), "step");

    // All of it is there after a crash, and a new coordinator.
    drop(coordinator);
    place.kill_daemon();
    place.mount(&[]);
    let _coordinator = place.coordinator(2, Manners::default());
    assert_eq!(fs::read_to_string(&latest).unwrap(), "step");
    assert_eq!(fs::metadata(&latest).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::read(mnt.join("best/f")).unwrap(), b"state");
    fs::remove_file(&latest).unwrap();
    fs::remove_file(mnt.join("best")).unwrap();
    assert_eq!(names(&mnt), ["ckpt.1"]);
}

#[test]
fn what_is_not_closed_is_this_nodes_own() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    fs::write(mnt.join("kept"), "closed").unwrap();
    let mut open = File::create(mnt.join("latest")).unwrap();
    open.write_all(b"half").unwrap();
    assert_eq!(fs::read(mnt.join("latest")).unwrap(), b"half");
    // Synced, it is as good as closed.
    let mut synced = File::create(mnt.join("synced")).unwrap();
    synced.write_all(b"whole").unwrap();
    synced.sync_all().unwrap();
    drop(coordinator);
    place.kill_daemon();
    place.mount(&[]);
    assert_eq!(names(&mnt), ["kept", "synced"]);
    assert_eq!(fs::read(mnt.join("synced")).unwrap(), b"whole");
}

#[test]
fn closing_waits_for_the_coordinators_and_says_so_when_there_is_none() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let mut file = File::create(place.mnt().join("latest")).unwrap();
    file.write_all(b"early").unwrap();
    // The grace time of these tests is three seconds.
    let refused = nix::unistd::close(file).unwrap_err();
    assert_eq!(refused, Errno::EBUSY);
    let writer = std::thread::spawn({
        let latest = place.mnt().join("latest");
        move || fs::write(latest, "late")
    });
    let _coordinator = place.coordinator(1, Manners::default());
    writer.join().unwrap().unwrap();
    let latest = place.mnt().join("latest");
    until("it is there", || {
        fs::read(&latest).is_ok_and(|it| it == b"late")
    });
}

#[test]
fn what_they_cannot_do_and_what_is_in_their_way() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let _coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    let latest = mnt.join("latest");
    fs::write(&latest, "x").unwrap();
    fs::create_dir(mnt.join("open.tmp")).unwrap();
    fs::write(mnt.join("open.tmp/f"), "file").unwrap();

    let mut file = OpenOptions::new().write(true).open(&latest).unwrap();
    file.seek(SeekFrom::Start(POINTER_BYTES_MAX as u64))
        .unwrap();
    assert_eq!(errno(file.write_all(b"y")), Errno::EFBIG);
    assert_eq!(
        errno(file.set_len(POINTER_BYTES_MAX as u64 + 1)),
        Errno::EFBIG
    );
    file.set_len(POINTER_BYTES_MAX as u64).unwrap();
    drop(file);
    assert_eq!(
        fs::metadata(&latest).unwrap().len(),
        POINTER_BYTES_MAX as u64
    );

    assert_eq!(errno(fs::create_dir(&latest)), Errno::EEXIST);
    assert_eq!(errno(File::create_new(&latest)), Errno::EEXIST);
    assert_eq!(errno(symlink("x", &latest)), Errno::EEXIST);
    assert_eq!(
        errno(fs::rename(&latest, mnt.join("open.tmp"))),
        Errno::EISDIR
    );
    assert_eq!(
        errno(fs::rename(mnt.join("open.tmp"), &latest)),
        Errno::ENOTDIR
    );
    assert_eq!(errno(fs::write(mnt.join("open.tmp"), "x")), Errno::EISDIR);
    assert_eq!(errno(fs::remove_file(mnt.join("open.tmp"))), Errno::EISDIR);
    assert_eq!(errno(fs::remove_dir(&latest)), Errno::ENOTDIR);
    assert_eq!(errno(fs::read_dir(latest.join("x"))), Errno::ENOTDIR);
    // `mv` copies.
    assert_eq!(
        errno(fs::rename(&latest, mnt.join("open.tmp/g"))),
        Errno::EXDEV
    );
    assert_eq!(
        errno(fs::rename(mnt.join("open.tmp/f"), mnt.join("f"))),
        Errno::EXDEV
    );
    assert!(fs::hard_link(&latest, mnt.join("second")).is_err());
    fs::copy(&latest, mnt.join("open.tmp/copy")).unwrap();
    fs::copy(mnt.join("open.tmp/f"), mnt.join("f")).unwrap();
    assert_eq!(fs::read(mnt.join("f")).unwrap(), b"file");
    // A name is free again once its file is gone.
    fs::remove_file(mnt.join("f")).unwrap();
    fs::create_dir(mnt.join("f")).unwrap();
    let lock = File::create_new(mnt.join("lock")).unwrap();
    assert_eq!(errno(File::create_new(mnt.join("lock"))), Errno::EEXIST);
    drop(lock);
}
