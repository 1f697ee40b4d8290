//! The private tmpfs and the budget: how much may be written, what `df` says, what stays.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use scrfs_fuse_tests::coordinator::{Coordinator, Manners};
use scrfs_fuse_tests::group::Group;
use scrfs_fuse_tests::mounted::{DATA_PATHS, Place, text};
use scrfs_fuse_tests::{leave_out, until};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Type and source of what is mounted on a path.
fn mounted_on(path: &Path) -> Option<(String, String, String)> {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = all
        .lines()
        .rfind(|line| line.split(' ').nth(4) == path.to_str())?;
    let mut fields = line.split_once(" - ").unwrap().1.split(' ');
    let mut next = || fields.next().unwrap_or_default().to_owned();
    Some((next(), next(), next()))
}

/// Mounts with a budget; `None` where no tmpfs may be mounted.
fn mount(place: &Place, capacity: &str, options: &[&str], epoch: u64) -> Option<Coordinator> {
    let mut command = place.mount_command(options);
    let output = command.env("SCRFS_STORE_CAPACITY", capacity).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    if mounted_on(&place.job()).is_none() {
        eprintln!("no private tmpfs here: {}", place.status()["store"]);
        return None;
    }
    Some(place.coordinator(epoch, Manners::default()))
}

/// Writes until there is no space; says how many bytes went in.
fn fill(path: &Path, piece: usize) -> u64 {
    let mut file = File::create(path).unwrap();
    let bytes = vec![7; piece];
    loop {
        match file.write_all(&bytes) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                return file.metadata().unwrap().len();
            }
        }
    }
}

fn bytes(path: &Path) -> (u64, u64, u64) {
    let found = statvfs(path).unwrap();
    let block = found.fragment_size();
    (
        found.blocks() * block,
        found.blocks_free() * block,
        found.blocks_available() * block,
    )
}

fn enospc_exactly_at_the_budget(options: &[&str]) {
    let place = Place::private();
    let Some(_coordinator) = mount(&place, "64MiB", options, 1) else {
        return;
    };
    let mnt = place.mnt();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    // Ready is told after the first directory may be made.
    until("the budget holds", || bytes(&mnt).2 < 64 * MIB - 512 * 1024);
    let (total, _, available) = bytes(&mnt);
    assert_eq!(total, 64 * MIB);
    // All but what is kept for records.
    assert!(available > 48 * MIB, "{available}");
    // Page by page, not by huge pages, to the last one; what the mount keeps of itself is in it.
    let first = fill(&mnt.join("a.tmp/first"), 4096);
    let second = fill(&mnt.join("a.tmp/second"), 4096);
    let written = first + second;
    assert!(
        written <= available && available - written <= 8 * PAGE,
        "{written} of {available}"
    );
    assert_eq!(bytes(&mnt).2 / PAGE, 0);
    // A record still fits: it can be committed, and what it was is there to be read.
    fs::rename(mnt.join("a.tmp"), mnt.join("a")).unwrap();
    assert_eq!(fs::read(mnt.join("a/first")).unwrap().len() as u64, first);
}

#[test]
fn enospc_comes_exactly_at_the_budget_in_passthrough() {
    enospc_exactly_at_the_budget(&[]);
}

#[test]
fn enospc_comes_exactly_at_the_budget_when_served() {
    enospc_exactly_at_the_budget(&["-o", "no_passthrough"]);
}

#[test]
fn what_is_removed_can_be_written_again() {
    let place = Place::private();
    let Some(_coordinator) = mount(&place, "64MiB", &[], 1) else {
        return;
    };
    let mnt = place.mnt();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    until("the budget holds", || bytes(&mnt).2 < 64 * MIB - 512 * 1024);
    let first = fill(&mnt.join("a.tmp/file"), 65536);
    fs::remove_file(mnt.join("a.tmp/file")).unwrap();
    until("the space is back", || bytes(&mnt).2 + 8 * PAGE >= first);
    let second = fill(&mnt.join("a.tmp/file"), 65536);
    assert!(first.abs_diff(second) <= 8 * PAGE, "{first} {second}");
}

#[test]
fn a_private_tmpfs_outlives_the_daemon_and_goes_with_a_purge() {
    let place = Place::private();
    let Some(coordinator) = mount(&place, "64MiB", &[], 1) else {
        return;
    };
    let (kind, source, _) = mounted_on(&place.job()).unwrap();
    assert_eq!((kind.as_str(), source.as_str()), ("tmpfs", "scrfs-store"));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(place.job()).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o700);
    assert!(
        place.status()["store"]
            .as_str()
            .unwrap()
            .starts_with("private tmpfs"),
        "{}",
        place.status()["store"]
    );
    let mnt = place.mnt();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    fs::write(mnt.join("a.tmp/file"), "kept").unwrap();
    fs::rename(mnt.join("a.tmp"), mnt.join("a")).unwrap();
    place.kill_daemon();
    drop(coordinator);

    let coordinator = mount(&place, "64MiB", &[], 2).unwrap();
    until("it is shown", || mnt.join("a/file").exists());
    assert_eq!(fs::read(mnt.join("a/file")).unwrap(), b"kept");
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let on = |line: &&str| line.split(' ').nth(4) == place.job().to_str();
    assert_eq!(all.lines().filter(on).count(), 1, "mounted once");
    let unmount = |more: &[&str]| {
        let mut command = Command::new(scrfs_fuse_tests::mounted::scrfs());
        let output = command
            .arg("unmount")
            .arg(&mnt)
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
    };
    drop(coordinator);
    unmount(&["--now"]);
    assert!(mounted_on(&place.job()).is_some());

    let coordinator = mount(&place, "64MiB", &[], 3).unwrap();
    until("it is shown", || mnt.join("a/file").exists());
    drop(coordinator);
    unmount(&["--now", "--purge"]);
    assert_eq!(mounted_on(&place.job()), None);
    assert!(!place.job().exists());
}

#[test]
fn a_directory_holds_its_capacity_where_the_daemon_sees_what_is_written() {
    let place = Place::new(256 * MIB);
    let mut command = place.mount_command(&["-o", "no_passthrough"]);
    let output = command
        .env("SCRFS_STORE_CAPACITY", "32MiB")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let _coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    until("it is measured", || bytes(&mnt).2 < 32 * MIB);
    let (total, _, available) = bytes(&mnt);
    assert_eq!(total, 32 * MIB);
    let written = fill(&mnt.join("a.tmp/file"), 65536);
    // One request goes over it at most, and what is measured is a second old.
    assert!(
        written + 2 * MIB > available && written < available + 2 * MIB,
        "{written} of {available}"
    );
    let error = File::create(mnt.join("a.tmp/more")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    assert!(!mnt.join("a.tmp/more").exists());
    // What is there may be written again; what would have to be allocated not, in whatever way.
    let file = File::options().write(true).open(mnt.join("a.tmp/file"));
    let file = file.unwrap();
    file.write_all_at(&[8; 65536], 65536).unwrap();
    file.set_len(written + 64 * MIB).unwrap();
    let error = file.write_all_at(&[8; 4096], written + MIB).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    for mode in [FallocateFlags::empty(), FallocateFlags::FALLOC_FL_KEEP_SIZE] {
        let (at, length) = (written as i64, 64 << 20);
        assert_eq!(fallocate(&file, mode, at, length), Err(Errno::ENOSPC));
    }
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let half = (written / 2) as i64;
    fallocate(&file, punch, 0, half).unwrap();
    until("it is measured again", || {
        bytes(&mnt).2 + 2 * MIB > written / 2
    });
    // As much as there is, and no more.
    fallocate(&file, FallocateFlags::empty(), 0, half - (4 << 20)).unwrap();
    let error = fallocate(&file, FallocateFlags::empty(), written as i64, 64 << 20);
    assert_eq!(error, Err(Errno::ENOSPC));
    let used = fs::metadata(mnt.join("a.tmp/file")).unwrap();
    let used = std::os::unix::fs::MetadataExt::blocks(&used) * 512;
    assert!(used < 34 * MIB, "{used}");
}

/// A job, daemon and programs, in a control group that has less memory than the store could take.
fn written_to_the_end_in_a_small_group(place: &Place, options: &[&str], group: &Group) {
    let mut command = place.mount_command(options);
    command.env("SCRFS_STORE_CAPACITY", "1GiB");
    let output = group.command(&command).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let _coordinator = place.coordinator(1, Manners::default());
    let open = place.mnt().join("a.tmp");
    let daemon = place.daemon().expect("a daemon");
    let line = b"a line of the job\n";
    for turn in 0..3 {
        fs::create_dir(&open).unwrap();
        until("there is no more than the group has", || {
            let (total, _, available) = bytes(&place.mnt());
            total <= GROUP_BYTES && available > GROUP_BYTES / 4
        });
        // Small files need memory of the kernel's, too.
        let script = "for name in $(seq 2000); do echo $name > \"$1/small.$name\" || exit 3; done; \
                      yes 'a line of the job' > \"$1/large\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(&open);
        command.env("LC_ALL", "C");
        let output = group.command(&command).output().unwrap();
        let said = text(&output);
        assert_eq!(group.kills(), 0, "{turn}: {said}");
        assert_eq!(output.status.code(), Some(1), "{turn}: {said}");
        assert!(said.contains("No space left on device"), "{said}");
        assert_eq!(place.daemon(), Some(daemon));
        // What was accepted is there.
        let large = fs::read(open.join("large")).unwrap();
        assert!(large.len() as u64 > GROUP_BYTES / 4, "{}", large.len());
        let mut all = large.iter().enumerate();
        assert_eq!(all.find(|(at, byte)| **byte != line[at % line.len()]), None);
        drop(large);
        for name in [1, 1000, 2000] {
            let small = fs::read_to_string(open.join(format!("small.{name}"))).unwrap();
            assert_eq!(small, format!("{name}\n"));
        }
        if turn < 2 {
            fs::remove_dir_all(&open).unwrap();
        }
    }
    fs::rename(&open, place.mnt().join("a")).unwrap();
    assert_eq!(fs::read(place.mnt().join("a/small.7")).unwrap(), b"7\n");
    assert_eq!(group.kills(), 0);
}

const GROUP_BYTES: u64 = 160 * MIB;

fn small_group() -> Option<Group> {
    match Group::new(GROUP_BYTES) {
        Ok(group) => Some(group),
        Err(why) => {
            leave_out(&why);
            None
        }
    }
}

#[test]
fn a_job_with_less_memory_than_its_budget_gets_enospc_and_nobody_is_killed() {
    for (_, options) in DATA_PATHS {
        // Goes after the place, which ends the daemon in it.
        let Some(group) = small_group() else { return };
        let place = Place::private();
        written_to_the_end_in_a_small_group(&place, options, &group);
        drop(place);
    }
}

#[test]
fn nobody_is_killed_either_where_the_store_is_a_directory_in_memory() {
    for (_, options) in DATA_PATHS {
        let Some(group) = small_group() else { return };
        let place = Place::new(1024 * MIB);
        if !place.has_tmpfs() {
            return leave_out("no tmpfs can be mounted");
        }
        written_to_the_end_in_a_small_group(&place, options, &group);
        drop(place);
    }
}
