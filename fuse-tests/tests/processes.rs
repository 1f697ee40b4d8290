//! What processes of a node do to each other in one dataset: locks, creation masks, and directories that
//! are read while their entries go. Each script runs on a tmpfs first, then by both ways to the bytes.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use nix::errno::Errno;
use scrfs_fuse_tests::coordinator::Manners;
use scrfs_fuse_tests::mounted::{DATA_PATHS, Place};
use scrfs_fuse_tests::process::{self, Process};
use scrfs_fuse_tests::until;
use scrfs_mount::sys;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

const MIB: u64 = 1 << 20;

/// What the processes of this file run.
#[test]
#[ignore = "run by the other tests, in processes of their own"]
fn acts_as_a_process() {
    process::serve();
}

/// Runs a script in a directory of a tmpfs, and in an open dataset by each way to the bytes.
fn everywhere(script: impl Fn(&Path)) {
    let tmpfs = tempfile::tempdir_in("/dev/shm").unwrap();
    println!("tmpfs");
    script(tmpfs.path());
    for path in DATA_PATHS {
        println!("{}", path.0);
        let Some(place) = Place::on_path(256 * MIB, path) else {
            continue;
        };
        let _coordinator = place.coordinator(1, Manners::default());
        let open = place.mnt().join("a.tmp");
        fs::create_dir(&open).unwrap();
        script(&open);
        // Nothing that was done keeps it from being committed.
        fs::rename(&open, place.mnt().join("a")).unwrap();
    }
}

/// Whether a process waits for a lock, as the kernel tells.
fn waits(process: &Process) -> bool {
    let pid = process.pid().to_string();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "->");
        words.next().is_some() && words.nth(3) == Some(&pid)
    })
}

fn await_waiting(process: &Process) {
    until("it waits for the lock", || waits(process));
}

#[test]
fn posix_locks_hold_between_processes_and_go_with_them() {
    everywhere(|dir| {
        let path = dir.join("f");
        let mut holder = Process::start();
        let mut other = Process::start();
        holder.open("f", &path);
        other.open("f", &path);
        holder.run("lock f w 0 10").unwrap();
        assert_eq!(other.run("try_lock f w 5 10"), Err(Errno::EAGAIN));
        assert_eq!(other.run("try_lock f r 9 1"), Err(Errno::EAGAIN));
        let in_the_way = other.run("get_lock f w 0 0").unwrap();
        assert_eq!(in_the_way, holder.pid().to_string());
        other.run("try_lock f w 10 5").unwrap();
        other.run("lock f u 10 5").unwrap();
        // Readers share, and one that wants to write waits for the other.
        holder.run("lock f r 0 10").unwrap();
        other.run("try_lock f r 0 10").unwrap();
        other.begin("lock f w 0 10");
        await_waiting(&other);
        holder.run("lock f u 3 2").unwrap();
        // It was woken, found that the holder has still some of it, and waits again.
        await_waiting(&other);
        holder.run("lock f u 0 0").unwrap();
        other.answer().unwrap();
        // Two that wait for each other: one of them is told.
        holder.run("lock f w 20 1").unwrap();
        other.begin("lock f w 20 1");
        await_waiting(&other);
        assert_eq!(holder.run("lock f w 0 1"), Err(Errno::EDEADLK));
        holder.run("lock f u 20 1").unwrap();
        other.answer().unwrap();
        // Closing any descriptor of the file gives all of it back.
        other.open("again", &path);
        other.run("close again").unwrap();
        assert_eq!(holder.run("get_lock f w 0 0").unwrap(), "0");
        // So does death, also to those who wait.
        holder.run("lock f w 0 0").unwrap();
        other.begin("lock f r 7 1");
        await_waiting(&other);
        holder.kill();
        other.answer().unwrap();
    });
}

#[test]
fn flock_holds_between_processes_and_goes_with_them() {
    everywhere(|dir| {
        let path = dir.join("f");
        let mut holder = Process::start();
        let mut other = Process::start();
        holder.open("f", &path);
        other.open("f", &path);
        holder.run("flock f r").unwrap();
        other.run("try_flock f r").unwrap();
        assert_eq!(other.run("try_flock f w"), Err(Errno::EAGAIN));
        // That gave the shared one up: it is not kept while another is asked for.
        holder.run("try_flock f w").unwrap();
        assert_eq!(other.run("try_flock f r"), Err(Errno::EAGAIN));
        // The other kind is not in its way.
        other.run("try_lock f w 0 0").unwrap();
        other.begin("flock f w");
        await_waiting(&other);
        // It belongs to the descriptor that took it, not to the process.
        holder.open("again", &path);
        assert_eq!(holder.run("try_flock again r"), Err(Errno::EAGAIN));
        holder.run("close again").unwrap();
        assert!(waits(&other));
        holder.run("close f").unwrap();
        other.answer().unwrap();
        holder.open("f", &path);
        holder.begin("flock f w");
        await_waiting(&holder);
        other.kill();
        holder.answer().unwrap();
    });
}

#[test]
fn masks_decide_the_modes_of_what_is_made() {
    everywhere(|dir| {
        for (mask, file, directory) in [
            ("0", 0o666, 0o777),
            ("22", 0o644, 0o755),
            ("77", 0o600, 0o700),
            ("777", 0, 0),
        ] {
            let mut process = Process::start();
            process.run(&format!("umask {mask}")).unwrap();
            let name = |kind: &str| dir.join(format!("{kind}.{mask}"));
            process.open("f", &name("file"));
            for kind in ["mkdir", "mkfifo"] {
                let path = name(kind);
                let command = format!("{kind} {}", path.to_str().unwrap());
                process.run(&command).unwrap();
            }
            for (kind, wanted) in [("file", file), ("mkdir", directory), ("mkfifo", file)] {
                let mode = fs::metadata(name(kind)).unwrap().mode() & 0o7777;
                assert_eq!(mode, wanted, "{kind} with {mask}: {mode:o}");
            }
        }
        // What is given an owner's bits back can be committed.
        for entry in fs::read_dir(dir).unwrap() {
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(entry.unwrap().path(), mode).unwrap();
        }
    });
}

/// Entries of an open directory from an offset on, without dots: name, and where it goes on.
fn entries(directory: &File, offset: u64) -> (Vec<(Vec<u8>, u64)>, Option<u64>) {
    let listed = sys::read_directory(directory.as_fd(), offset as i64).unwrap();
    let next = listed.last().map(|last| last.next as u64);
    let named = listed
        .into_iter()
        .filter(|entry| entry.name != b"." && entry.name != b"..")
        .map(|entry| (entry.name, entry.next as u64));
    (named.collect(), next)
}

#[test]
fn entries_are_listed_once_while_others_come_and_go() {
    const ENTRIES: usize = 10_000;
    everywhere(|dir| {
        let dir = dir.join("d");
        fs::create_dir(&dir).unwrap();
        let fill = || {
            for number in 0..ENTRIES {
                symlink("t", dir.join(format!("entry-{number:05}"))).unwrap();
            }
        };
        fill();
        // As `rm -r` does: what was listed is removed, then it is read on.
        let open = File::open(&dir).unwrap();
        let mut seen = BTreeSet::new();
        let mut at = 0;
        loop {
            let (listed, next) = entries(&open, at);
            for (name, _) in listed {
                fs::remove_file(dir.join(OsStr::from_bytes(&name))).unwrap();
                assert!(seen.insert(name), "listed twice");
            }
            let Some(next) = next else { break };
            assert_ne!(next, at, "it does not go on");
            at = next;
        }
        assert_eq!(seen.len(), ENTRIES);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        fill();
        // Any place that was told stays the place, whatever has gone or come.
        let open = File::open(&dir).unwrap();
        let mut all = Vec::new();
        let mut at = 0;
        while let (listed, Some(next)) = entries(&open, at) {
            all.extend(listed);
            assert_ne!(next, at, "it does not go on");
            at = next;
        }
        assert_eq!(all.len(), ENTRIES);
        for (name, _) in all.iter().step_by(3) {
            fs::remove_file(dir.join(OsStr::from_bytes(name))).unwrap();
        }
        for number in 0..100 {
            symlink("t", dir.join(format!("new-{number}"))).unwrap();
        }
        for index in (1..ENTRIES - 3).step_by(97).chain([ENTRIES / 2]) {
            // What followed that is still there: the two after it, but for the removed.
            let (listed, _) = entries(&open, all[index].1);
            let follows = &all[index + 1..=index + 3];
            let expected = (index + 1..).zip(follows).filter(|(at, _)| at % 3 != 0);
            let mut found = listed
                .iter()
                .filter(|(name, _)| name.starts_with(b"entry-"));
            for (_, (name, _)) in expected {
                let next = found.next().map(|(name, _)| name);
                assert_eq!(next, Some(name), "after {index}");
            }
        }
        let removed = std::process::Command::new("rm")
            .arg("-r")
            .arg(&dir)
            .status();
        assert!(removed.unwrap().success());
        assert!(!dir.exists());
    });
}

#[test]
fn direct_transfers_move_the_same_bytes() {
    everywhere(|dir| {
        let direct = |create: bool| {
            let mut options = File::options();
            options.read(true).write(true).create(create);
            options.custom_flags(libc::O_DIRECT);
            options.open(dir.join("f"))
        };
        let file = direct(true).unwrap();
        let mut space = vec![0_u8; 3 * MIB as usize];
        let start = space.as_ptr().align_offset(4096);
        let block = &mut space[start..start + 2 * MIB as usize];
        for (number, byte) in block.iter_mut().enumerate() {
            *byte = (number / 511) as u8;
        }
        file.write_all_at(block, 4096).unwrap();
        // A piece that is aligned to nothing.
        file.write_all_at(&block[1..1000], 13).unwrap();
        let mut expected = vec![0; 4096];
        expected[13..13 + 999].copy_from_slice(&block[1..1000]);
        expected.extend_from_slice(block);
        assert!(fs::read(dir.join("f")).unwrap() == expected);
        let again = direct(false).unwrap();
        block.fill(0);
        again.read_exact_at(block, 4096).unwrap();
        assert!(*block == expected[4096..]);
        let mut odd = vec![0; 12_345];
        again.read_exact_at(&mut odd, 777).unwrap();
        assert!(odd == expected[777..777 + 12_345]);
        // Beyond the end there is nothing.
        assert_eq!(again.read_at(block, expected.len() as u64).unwrap(), 0);
    });
}

#[test]
fn ranges_are_copied_inside_datasets_and_between_them() {
    for path in DATA_PATHS {
        let Some(place) = Place::on_path(256 * MIB, path) else {
            continue;
        };
        let _coordinator = place.coordinator(1, Manners::default());
        let mnt = place.mnt();
        fs::create_dir(mnt.join("old.tmp")).unwrap();
        let bytes: Vec<u8> = (0..3 * MIB).map(|at| (at / 253) as u8).collect();
        fs::write(mnt.join("old.tmp/f"), &bytes).unwrap();
        fs::rename(mnt.join("old.tmp"), mnt.join("old")).unwrap();
        for name in ["a.tmp", "b.tmp"] {
            fs::create_dir(mnt.join(name)).unwrap();
        }
        let copy = |from: &str, to: &str| {
            let from = File::open(mnt.join(from)).unwrap();
            let to = File::create(mnt.join(to)).unwrap();
            let (mut at, mut goes_to) = (1000, 5);
            let mut left = 2 * MIB as usize;
            while left > 0 {
                let (at, goes_to) = (Some(&mut at), Some(&mut goes_to));
                let copied = nix::fcntl::copy_file_range(&from, at, &to, goes_to, left).unwrap();
                assert!(copied > 0);
                left -= copied;
            }
        };
        copy("old/f", "a.tmp/f");
        copy("old/f", "a.tmp/g");
        fs::write(mnt.join("a.tmp/all"), &bytes).unwrap();
        copy("a.tmp/all", "a.tmp/h");
        copy("a.tmp/all", "b.tmp/h");
        let expected = &bytes[1000..1000 + 2 * MIB as usize];
        for name in ["a.tmp/f", "a.tmp/g", "a.tmp/h", "b.tmp/h"] {
            let found = fs::read(mnt.join(name)).unwrap();
            assert!(found[..5] == [0; 5] && found[5..] == *expected, "{name}");
        }
        // Into what is sealed nothing is copied; it cannot even be opened so.
        let sealed = File::options().write(true).open(mnt.join("old/f"));
        assert_eq!(sealed.unwrap_err().raw_os_error(), Some(libc::EROFS));
        for name in ["a", "b"] {
            fs::rename(mnt.join(format!("{name}.tmp")), mnt.join(name)).unwrap();
        }
        assert!(fs::read(mnt.join("b/h")).unwrap()[5..] == *expected);
    }
}
