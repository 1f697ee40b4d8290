//! Commit by rename, on a real mount: what programs see before, during and after.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use nix::errno::Errno;
use scrfs_fuse_tests::coordinator::Manners;
use scrfs_fuse_tests::mounted::{Place, text};
use scrfs_fuse_tests::{leave_out, until};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result
        .err()
        .and_then(|error| error.raw_os_error())
        .map(Errno::from_raw)
}

#[test]
fn written_renamed_read_and_read_only() {
    let place = Place::new(256 * MIB);
    place.mount(&[]);
    let _coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    fs::create_dir(mnt.join("ckpt.1.tmp")).unwrap();
    let bytes: Vec<u8> = (0..3 * MIB + 17).map(|at| (at % 251) as u8).collect();
    fs::write(mnt.join("ckpt.1.tmp/rank0"), &bytes).unwrap();
    fs::create_dir(mnt.join("ckpt.1.tmp/sub")).unwrap();
    fs::write(mnt.join("ckpt.1.tmp/sub/rank1"), b"one").unwrap();
    assert!(mnt.join(".scr/status/ckpt.1.tmp.open").exists());
    assert_eq!(
        fs::metadata(mnt.join("ckpt.1.tmp/rank0")).unwrap().len(),
        bytes.len() as u64
    );

    fs::rename(mnt.join("ckpt.1.tmp"), mnt.join("ckpt.1")).unwrap();

    assert_eq!(fs::read(mnt.join("ckpt.1/rank0")).unwrap(), bytes);
    assert_eq!(fs::read(mnt.join("ckpt.1/sub/rank1")).unwrap(), b"one");
    assert!(!mnt.join("ckpt.1.tmp").exists());
    let sealed = mnt.join("ckpt.1");
    assert_eq!(errno(File::create(sealed.join("new"))), Some(Errno::EROFS));
    assert_eq!(
        errno(File::options().write(true).open(sealed.join("rank0"))),
        Some(Errno::EROFS)
    );
    assert_eq!(errno(fs::create_dir(sealed.join("d"))), Some(Errno::EROFS));
    assert_eq!(
        errno(fs::rename(&sealed, mnt.join("other"))),
        Some(Errno::EROFS)
    );
    assert_eq!(
        fs::read_link(mnt.join(".scr/restart")).unwrap().to_str(),
        Some("../ckpt.1")
    );
    let status = fs::read(mnt.join(".scr/status/ckpt.1.sealed")).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["name"], "ckpt.1");
    File::open(&sealed).unwrap().sync_all().unwrap();
    File::open(&mnt).unwrap().sync_all().unwrap();
}

#[test]
fn data_goes_by_passthrough_or_says_why_not() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let status = place.status();
    let privileged = nix::unistd::geteuid().is_root();
    assert_eq!(status["passthrough"], privileged, "{status}");
    drop(place);

    let place = Place::new(64 * MIB);
    place.mount(&["-o", "no_passthrough"]);
    let _coordinator = place.coordinator(1, Manners::default());
    let status = place.status();
    assert_eq!(status["passthrough"], false);
    assert!(
        status["data_path"]
            .as_str()
            .unwrap()
            .contains("no_passthrough"),
        "{status}"
    );
    let dir = place.mnt().join("a.tmp");
    fs::create_dir(&dir).unwrap();
    let bytes: Vec<u8> = (0..5 * MIB + 3).map(|at| (at % 253) as u8).collect();
    let mut file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(dir.join("f"))
        .unwrap();
    file.write_all(&bytes).unwrap();
    file.write_all(b"end").unwrap();
    file.sync_all().unwrap();
    drop(file);
    let mut back = Vec::new();
    File::open(dir.join("f"))
        .unwrap()
        .read_to_end(&mut back)
        .unwrap();
    assert_eq!(back.len(), bytes.len() + 3);
    assert_eq!(back[..bytes.len()], bytes[..]);
}

#[test]
fn identical_renames_by_others_succeed_and_the_name_can_be_used_again() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let _coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    let (from, to) = (mnt.join("ckpt.tmp"), mnt.join("ckpt.1"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("f"), b"bytes").unwrap();
    let inside = File::open(&from).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (from, to) = (from.clone(), to.clone());
            std::thread::spawn(move || fs::rename(from, to))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    fs::rename(&from, &to).unwrap();
    assert_eq!(
        errno(fs::rename(&from, mnt.join("ckpt.2"))),
        Some(Errno::ENOENT)
    );
    assert!(!from.exists(), "only renames see it");
    assert_eq!(
        fs::read_dir(&to).unwrap().count(),
        1,
        "the directory is not dead"
    );
    let through = format!("/proc/self/fd/{}", inside.as_raw_fd());
    assert_eq!(
        fs::read_dir(through).unwrap().count(),
        1,
        "nor for who was inside"
    );
    assert_eq!(fs::read(to.join("f")).unwrap(), b"bytes");

    fs::create_dir(&from).unwrap();
    fs::write(from.join("g"), b"second").unwrap();
    fs::rename(&from, mnt.join("ckpt.2")).unwrap();
    assert_eq!(fs::read(mnt.join("ckpt.2/g")).unwrap(), b"second");
}

#[test]
fn a_commit_waits_for_writers_and_fails_busy_after_the_grace_time() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let manners = Manners {
        grace: Duration::from_millis(400),
        ..Manners::default()
    };
    let coordinator = place.coordinator(1, manners);
    let mnt = place.mnt();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    let mut writer = File::create(mnt.join("a.tmp/f")).unwrap();
    assert_eq!(
        errno(fs::rename(mnt.join("a.tmp"), mnt.join("a"))),
        Some(Errno::EBUSY)
    );
    assert!(mnt.join("a.tmp/f").exists(), "it stays open under its name");
    writer.write_all(b"more").unwrap();

    drop(coordinator);
    let _patient = place.coordinator(2, Manners::default());
    let (from, to) = (mnt.join("a.tmp"), mnt.join("a"));
    let rename = std::thread::spawn(move || fs::rename(from, to));
    // The dataset can be used by name while the rename waits.
    until("the rename is under way", || {
        let mut more = File::create(mnt.join("a.tmp/g")).unwrap();
        more.write_all(b"g").unwrap();
        true
    });
    assert!(!rename.is_finished(), "a writer is open");
    writer.write_all(b"!").unwrap();
    drop(writer);
    rename.join().unwrap().unwrap();
    assert_eq!(fs::read(mnt.join("a/f")).unwrap(), b"more!");
}

#[test]
fn a_memory_map_counts_as_a_writer_until_it_is_gone() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let manners = Manners {
        grace: Duration::from_millis(300),
        ..Manners::default()
    };
    let _coordinator = place.coordinator(1, manners);
    let mnt = place.mnt();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(mnt.join("a.tmp/f"))
        .unwrap();
    file.set_len(4096).unwrap();
    let map = scrfs_fuse_tests::mounted::Map::new(&file, 4096);
    drop(file);
    assert_eq!(
        errno(fs::rename(mnt.join("a.tmp"), mnt.join("a"))),
        Some(Errno::EBUSY)
    );
    drop(map);
    until("it commits", || {
        fs::rename(mnt.join("a.tmp"), mnt.join("a")).is_ok()
    });
}

#[test]
fn what_was_frozen_waits_for_the_next_coordinator() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let manners = Manners {
        die_frozen: true,
        ..Manners::default()
    };
    let coordinator = place.coordinator(1, manners);
    let mnt = place.mnt();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    fs::write(mnt.join("a.tmp/f"), b"bytes").unwrap();
    let (from, to) = (mnt.join("a.tmp"), mnt.join("a"));
    let rename = std::thread::spawn(move || fs::rename(from, to));
    until("it is frozen and the coordinator gone", || {
        place.status()["epoch"].is_null()
    });
    drop(coordinator);
    // By the open directory: whoever comes late still finds it, under whatever name.
    let directory = File::open(mnt.join("a.tmp")).unwrap();
    let file = PathBuf::from(format!("/proc/self/fd/{}/g", directory.as_raw_fd()));
    let writers: Vec<_> = (0..8)
        .map(|number| {
            let file = file.with_extension(number.to_string());
            std::thread::spawn(move || File::create(file).map(drop))
        })
        .collect();
    // More operations are parked than the daemon has threads: others are still served.
    assert_eq!(fs::read(mnt.join("a.tmp/f")).unwrap(), b"bytes");
    assert!(
        writers.iter().all(|writer| !writer.is_finished()),
        "they wait"
    );
    let _next = place.coordinator(2, Manners::default());
    rename.join().unwrap().unwrap();
    for writer in writers {
        assert_eq!(errno(writer.join().unwrap()), Some(Errno::EROFS));
    }
    assert_eq!(
        fs::read_dir(mnt.join("a")).unwrap().count(),
        1,
        "nothing got in after the freeze"
    );
}

#[test]
fn without_a_coordinator_requests_fail_after_the_grace_time_and_commands_say_so() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let mnt = place.mnt();
    let began = Instant::now();
    assert!(fs::create_dir(mnt.join("a.tmp")).is_err());
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "it waited for one"
    );
    let output = place.command("commit", &["nothing"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let _coordinator = place.coordinator(1, Manners::default());
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    assert_eq!(place.command("commit", &["a.tmp"]).status.code(), Some(0));
    assert!(mnt.join(".scr/status/a.tmp.sealed").exists());
    assert_eq!(
        place
            .command("wait", &["a.tmp", "--for", "protected"])
            .status
            .code(),
        Some(0)
    );
    let silent = place.coordinator(
        2,
        Manners {
            silent: true,
            ..Manners::default()
        },
    );
    let output = place.command("wait", &["a.tmp", "--for", "flushed", "--timeout", "0.2"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    drop(silent);
}

/// The kernel tells a moment after a close that a handle is gone, which holds the space of what was removed.
fn soon<T>(attempt: impl Fn() -> std::io::Result<T>) -> std::io::Result<T> {
    let began = Instant::now();
    loop {
        match attempt() {
            Err(error)
                if error.kind() == std::io::ErrorKind::StorageFull
                    && began.elapsed() < Duration::from_millis(200) => {}
            result => return result,
        }
    }
}

#[test]
fn a_full_cache_says_so_and_recovers() {
    let place = Place::new(4 * MIB);
    if !place.has_tmpfs() {
        leave_out("no tmpfs may be mounted here");
        return;
    }
    place.mount(&[]);
    let _coordinator = place.coordinator(1, Manners::default());
    let dir = place.mnt().join("a.tmp");
    fs::create_dir(&dir).unwrap();
    // For long enough that the store, which is measured each second, is measured while it is full.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) {
        let big = soon(|| File::create(dir.join("big"))).unwrap();
        let result = (&big).write_all(&vec![1; 8 * MIB as usize]);
        drop(big);
        assert_eq!(errno(result), Some(Errno::ENOSPC));
        fs::remove_file(dir.join("big")).unwrap();
        soon(|| fs::write(dir.join("small"), vec![1; MIB as usize])).unwrap();
    }
    fs::rename(&dir, place.mnt().join("a")).unwrap();
}

#[test]
fn a_dataset_behaves_like_a_local_filesystem() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let _coordinator = place.coordinator(1, Manners::default());
    let dir = place.mnt().join("a.tmp");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("f"), b"0123456789").unwrap();
    fs::hard_link(dir.join("f"), dir.join("l")).unwrap();
    assert_eq!(fs::metadata(dir.join("l")).unwrap().nlink(), 2);
    std::os::unix::fs::symlink("f", dir.join("s")).unwrap();
    assert_eq!(fs::read(dir.join("s")).unwrap(), b"0123456789");
    fs::rename(dir.join("f"), dir.join("g")).unwrap();
    assert!(!dir.join("f").exists());
    let file = File::options().write(true).open(dir.join("g")).unwrap();
    file.set_len(4).unwrap();
    let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    file.set_modified(time).unwrap();
    drop(file);
    assert_eq!(fs::read(dir.join("l")).unwrap(), b"0123");
    assert_eq!(
        fs::metadata(dir.join("g")).unwrap().modified().unwrap(),
        time
    );
    fs::create_dir_all(dir.join("d/e")).unwrap();
    fs::write(dir.join("d/e/h"), b"h").unwrap();
    fs::rename(dir.join("d/e"), dir.join("d2")).unwrap();
    assert_eq!(fs::read(dir.join("d2/h")).unwrap(), b"h");
    assert_eq!(
        errno(fs::remove_dir(dir.join("d2"))),
        Some(Errno::ENOTEMPTY)
    );
    fs::remove_dir(dir.join("d")).unwrap();
    for number in 0..500 {
        fs::write(dir.join(format!("many-{number}")), b"").unwrap();
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 500 + 4);
    fs::remove_dir_all(&dir).unwrap();
    assert!(!dir.exists());
}
