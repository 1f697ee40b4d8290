//! Removing sealed datasets and leftovers, on a real mount, by the programs that people use.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use nix::errno::Errno;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use scrfs_fuse_tests::coordinator::Manners;
use scrfs_fuse_tests::elsewhere::{Elsewhere, Part};
use scrfs_fuse_tests::mounted::{DATA_PATHS, Place, text};
use scrfs_fuse_tests::{leave_out, until};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result
        .err()
        .and_then(|error| error.raw_os_error())
        .map(Errno::from_raw)
}

/// All paths below a directory, directories after what is in them.
fn try_walk(top: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(top)? {
        let path = entry?.path();
        if fs::symlink_metadata(&path)?.is_dir() {
            found.extend(try_walk(&path)?);
        }
        found.push(path);
    }
    Ok(found)
}

fn walk(top: &Path) -> Vec<PathBuf> {
    try_walk(top).unwrap()
}

fn listed(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != ".scr").collect()
}

/// A dataset with what rotations meet: depth, long names, links, many files in one directory.
fn write_and_commit(mnt: &Path, name: &str, what: &str) {
    let open = mnt.join(format!("{name}.tmp"));
    fs::create_dir(&open).unwrap();
    fs::create_dir_all(open.join("a/b/c")).unwrap();
    fs::create_dir_all(open.join("empty/er")).unwrap();
    fs::create_dir_all(open.join("x".repeat(255))).unwrap();
    fs::write(open.join("x".repeat(255)).join("y".repeat(255)), what).unwrap();
    fs::write(open.join("a/b/c/new\nline"), what).unwrap();
    fs::write(open.join("state"), what).unwrap();
    fs::hard_link(open.join("state"), open.join("a/again")).unwrap();
    std::os::unix::fs::symlink("a/b", open.join("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", open.join("a/dangling")).unwrap();
    for number in 0..1500 {
        File::create(open.join(format!("a/b/{number}"))).unwrap();
    }
    fs::rename(&open, mnt.join(name)).unwrap();
}

fn run(program: &str, arguments: &[&str], top: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .arg(top)
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        text(&output)
    );
}

#[test]
fn rm_takes_a_sealed_dataset_away_and_its_name_is_free_at_once() {
    let python = "import shutil, sys; shutil.rmtree(sys.argv[1])";
    let mut programs: Vec<(&str, &[&str])> = vec![("rm", &["-r"]), ("rm", &["-rf"])];
    let python = ["-c", python];
    match Command::new("python3").arg("--version").output() {
        Ok(output) if output.status.success() => programs.push(("python3", &python)),
        _ => leave_out("there is no python3"),
    }
    for path in DATA_PATHS {
        let Some(place) = Place::on_path(64 * MIB, path) else {
            continue;
        };
        let _coordinator = place.coordinator(1, Manners::default());
        let mnt = place.mnt();
        for (turn, (program, arguments)) in programs.iter().enumerate() {
            let what = format!("turn {turn}");
            // Under one name each time.
            write_and_commit(&mnt, "ckpt", &what);
            let top = mnt.join("ckpt");
            let mut open = File::open(top.join("state")).unwrap();
            let inside = File::open(top.join("a")).unwrap();
            run(program, arguments, &top);
            assert_eq!(listed(&mnt), BTreeSet::new());
            assert_eq!(errno(fs::metadata(&top)), Some(Errno::ENOENT));
            assert_eq!(errno(fs::remove_dir(&top)), Some(Errno::ENOENT));
            assert_eq!(
                errno(fs::read_link(mnt.join(".scr/restart"))),
                Some(Errno::ENOENT)
            );
            // Who has it open reads on; who is inside is in an empty directory.
            let mut read = String::new();
            open.rewind().unwrap();
            open.read_to_string(&mut read).unwrap();
            assert_eq!(read, what);
            let beneath = PathBuf::from(format!(
                "/proc/self/fd/{}",
                std::os::fd::AsRawFd::as_raw_fd(&inside)
            ));
            until("the kernel believes that it is gone", || {
                errno(fs::metadata(beneath.join("again"))) == Some(Errno::ENOENT)
            });
            assert_eq!(fs::read_dir(&beneath).unwrap().count(), 0);
        }
        let removed = listed(&mnt.join(".scr/status"));
        let last = programs.len();
        assert!(removed.contains("ckpt.removed"), "{removed:?}");
        assert!(removed.contains("ckpt.removed.1"), "{removed:?}");
        assert_eq!(removed.len(), last, "{removed:?}");
    }
}

#[test]
fn what_is_begun_and_not_ended_comes_back() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    write_and_commit(&mnt, "ckpt", "bytes");
    let top = mnt.join("ckpt");
    let all = walk(&top).len();
    assert_eq!(errno(fs::remove_dir(&top)), Some(Errno::ENOTEMPTY));
    assert_eq!(errno(fs::remove_dir(top.join("a"))), Some(Errno::ENOTEMPTY));
    fs::remove_file(top.join("state")).unwrap();
    // Somebody stays inside.
    let inside = File::open(top.join("empty/er")).unwrap();
    fs::remove_dir(top.join("empty/er")).unwrap();
    fs::remove_dir(top.join("empty")).unwrap();
    assert_eq!(
        errno(fs::remove_file(top.join("state"))),
        Some(Errno::ENOENT)
    );
    assert_eq!(errno(File::open(top.join("state"))), Some(Errno::ENOENT));
    assert_eq!(errno(File::create(top.join("state"))), Some(Errno::EROFS));
    assert_eq!(errno(fs::create_dir(top.join("empty"))), Some(Errno::EROFS));
    assert_eq!(
        errno(fs::rename(&top, mnt.join("other"))),
        Some(Errno::EROFS)
    );
    // Another name of the file is another name.
    assert_eq!(fs::read(top.join("a/again")).unwrap(), b"bytes");
    assert_eq!(walk(&top).len(), all - 3);
    // Another coordinator of the same run changes nothing of it; programs that start anew see all.
    drop(coordinator);
    let coordinator = place.coordinator(2, Manners::default());
    until("it is there", || place.status()["ready"] == true);
    assert_eq!(walk(&top).len(), all - 3);
    drop(coordinator);
    let manners = Manners {
        new_run: true,
        ..Manners::default()
    };
    let _coordinator = place.coordinator(3, manners);
    // Who is inside at that moment is told that it is another directory now.
    until("all of it is there", || {
        try_walk(&top).is_ok_and(|found| found.len() == all)
    });
    assert_eq!(walk(&top).len(), all);
    assert_eq!(
        errno(fs::metadata(top.join("empty/er/none"))),
        Some(Errno::ENOENT)
    );
    assert_eq!(
        errno(File::create(top.join("empty/er/none"))),
        Some(Errno::EROFS)
    );
    drop(inside);
    assert_eq!(fs::read(top.join("state")).unwrap(), b"bytes");
    // And so it is after the daemon.
    fs::remove_file(top.join("state")).unwrap();
    place.kill_daemon();
    place.mount(&[]);
    let _coordinator = place.coordinator(4, Manners::default());
    assert_eq!(walk(&top).len(), all);
    assert_eq!(fs::read(top.join("state")).unwrap(), b"bytes");
}

#[test]
fn any_names_of_all_nodes_go_and_the_rest_stays() {
    let mut draw = StdRng::seed_from_u64(u64::from(std::process::id()));
    let (mut one, mut two) = (Part::default(), Part::default());
    one = one
        .directory("d")
        .directory("d/only")
        .directory("d/only/one");
    two = two.directory("d").directory("e");
    for number in 0..300 {
        one = one.file(&format!("d/one.{number}"), b"1");
        two = two.file(&format!("d/two.{number}"), &[2; 5000]);
        two = two.file(&format!("e/{number}"), b"3");
        one = one.symlink(&format!("d/only/one/{number}"), "x");
    }
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let manners = Manners {
        elsewhere: Some(Elsewhere::new(vec![one, two])),
        ..Manners::default()
    };
    let _coordinator = place.coordinator(1, manners);
    let mnt = place.mnt();
    write_and_commit(&mnt, "ckpt", "own");
    let top = mnt.join("ckpt");
    let far = File::open(top.join("d/two.7")).unwrap();
    let mut left = walk(&top);
    assert!(left.len() > 2700, "{}", left.len());
    while !left.is_empty() {
        // Some at random: directories that are not empty say so.
        let mut all = left.clone();
        all.shuffle(&mut draw);
        all.truncate(draw.random_range(1..600));
        for path in all {
            let is_directory = fs::symlink_metadata(&path).unwrap().is_dir();
            if !is_directory {
                fs::remove_file(&path).unwrap();
            } else if left.iter().any(|it| it.parent() == Some(&path)) {
                assert_eq!(
                    errno(fs::remove_dir(&path)),
                    Some(Errno::ENOTEMPTY),
                    "{path:?}"
                );
                continue;
            } else {
                fs::remove_dir(&path).unwrap();
            }
            left.retain(|it| *it != path);
        }
        let found: BTreeSet<PathBuf> = walk(&top).into_iter().collect();
        assert_eq!(found, left.iter().cloned().collect());
        if !left.is_empty() {
            assert_eq!(errno(fs::remove_dir(&top)), Some(Errno::ENOTEMPTY));
        }
    }
    fs::remove_dir(&top).unwrap();
    assert_eq!(listed(&mnt), BTreeSet::new());
    // Its bytes lie on another node.
    let mut bytes = [0; 5000];
    far.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [2; 5000]);
}

/// What two nodes wrote under one path can be removed, though nobody can open it.
#[test]
fn a_dataset_with_conflicts_can_be_removed() {
    let python = [
        "python3",
        "-c",
        "import shutil, sys; shutil.rmtree(sys.argv[1])",
    ];
    for program in [["rm", "-rf"].as_slice(), python.as_slice()] {
        let parts = [b"1", b"2"].map(|bytes| {
            let part = Part::default().directory("d").file("d/same", bytes);
            part.file("both", bytes).file("kind", bytes)
        });
        let place = Place::new(64 * MIB);
        place.mount(&[]);
        let manners = Manners {
            elsewhere: Some(Elsewhere::new(parts.into())),
            ..Manners::default()
        };
        let _coordinator = place.coordinator(1, manners);
        let top = place.mnt().join("a");
        fs::create_dir_all(place.mnt().join("a.tmp/kind")).unwrap();
        fs::write(place.mnt().join("a.tmp/both"), "3").unwrap();
        fs::rename(place.mnt().join("a.tmp"), &top).unwrap();
        for name in ["both", "d/same", "kind"] {
            until("the kernel forgets what it knew before the seal", || {
                errno(fs::symlink_metadata(top.join(name))) == Some(Errno::EIO)
            });
            assert_eq!(errno(File::open(top.join(name))), Some(Errno::EIO));
        }
        run(program[0], &program[1..], &top);
        assert_eq!(listed(&place.mnt()), BTreeSet::new());
    }
}

#[test]
fn leftovers_of_an_earlier_run_are_listed_and_can_be_removed() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    for name in ["torn.tmp", "other.tmp"] {
        fs::create_dir_all(mnt.join(name).join("sub")).unwrap();
        fs::write(mnt.join(name).join("sub/half"), name).unwrap();
    }
    drop(coordinator);
    let manners = Manners {
        new_run: true,
        ..Manners::default()
    };
    let _coordinator = place.coordinator(2, manners);
    let incomplete = mnt.join(".scr/incomplete");
    let both = ["other.tmp", "torn.tmp"].map(str::to_owned);
    until("they are left behind", || {
        listed(&incomplete) == both.clone().into()
    });
    assert_eq!(listed(&mnt), BTreeSet::new());
    let half = incomplete.join("torn.tmp/sub/half");
    assert_eq!(fs::read(&half).unwrap(), b"torn.tmp");
    assert_eq!(errno(fs::write(&half, "x")), Some(Errno::EROFS));
    let torn = incomplete.join("torn.tmp");
    assert_eq!(errno(fs::remove_dir(&torn)), Some(Errno::ENOTEMPTY));
    run("rm", &["-r"], &torn);
    assert_eq!(listed(&incomplete), both[..1].iter().cloned().collect());
    assert_eq!(errno(fs::remove_dir(&torn)), Some(Errno::ENOENT));
    assert_eq!(errno(fs::remove_dir(&incomplete)), Some(Errno::EPERM));
    // Its name is as free as it was before.
    fs::create_dir(mnt.join("torn.tmp")).unwrap();
    assert_eq!(
        fs::read(incomplete.join("other.tmp/sub/half")).unwrap(),
        b"other.tmp"
    );
}
