//! Shared maps and calls on one file, down to one page: what each sees of the other, and that nothing is lost
//! that POSIX lets programs count on. On a tmpfs first, then by both ways to the bytes.
//!
//! Not tested, for it holds only by passthrough: a map and calls that change one page *at the same time*. See
//! `docs/semantics.md`.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use memmap2::MmapMut;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scrfs_fuse_tests::coordinator::Manners;
use scrfs_fuse_tests::mounted::{DATA_PATHS, Place};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

const MIB: u64 = 1 << 20;
const PAGE: usize = 4096;

/// Runs a script in a directory of a tmpfs, and in an open dataset by each way to the bytes; then commits, and
/// looks at the file `f` once more. The last argument: whether maps and calls may meet in a page at once.
fn everywhere(script: impl Fn(&Path, bool) -> Vec<u8>) {
    let tmpfs = tempfile::tempdir_in("/dev/shm").unwrap();
    let expected = script(tmpfs.path(), true);
    assert!(fs::read(tmpfs.path().join("f")).unwrap() == expected);
    for path in DATA_PATHS {
        println!("{}", path.0);
        let Some(place) = Place::on_path(256 * MIB, path) else {
            continue;
        };
        let _coordinator = place.coordinator(1, Manners::default());
        let open = place.mnt().join("a.tmp");
        fs::create_dir(&open).unwrap();
        let expected = script(&open, path.0 == "passthrough");
        assert!(fs::read(open.join("f")).unwrap() == expected);
        fs::rename(&open, place.mnt().join("a")).unwrap();
        assert!(fs::read(place.mnt().join("a/f")).unwrap() == expected);
    }
}

fn file(dir: &Path, length: usize) -> File {
    let mut options = File::options();
    let options = options.read(true).write(true).create(true);
    let file = options.open(dir.join("f")).unwrap();
    file.set_len(length as u64).unwrap();
    file
}

#[expect(unsafe_code, reason = "memory maps have no safe interface")]
fn map(file: &File) -> MmapMut {
    // SAFETY: a file of this test, which nobody cuts while it is mapped.
    unsafe { MmapMut::map_mut(file).unwrap() }
}

/// Bytes that must not be forgotten, nor read too early, by the compiler.
fn put(map: &mut [u8], at: usize, bytes: &[u8]) {
    map[at..at + bytes.len()].copy_from_slice(bytes);
    std::hint::black_box(map);
}

/// One after the other, as programs do that wait for each other: without msync, byte by byte in one page.
#[test]
fn a_map_and_the_calls_of_others_see_each_other_in_one_page() {
    everywhere(|dir, _| {
        let file = file(dir, 3 * PAGE);
        let mut options = File::options();
        let other = options.read(true).write(true).open(dir.join("f"));
        let other = other.unwrap();
        let mut map = map(&file);
        let mut expected = vec![0; 3 * PAGE];
        let mut random = StdRng::seed_from_u64(7);
        for turn in 0..1000_u32 {
            let at = random.random_range(0..expected.len() - 20);
            let length = random.random_range(1..20);
            let bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
            expected[at..at + length].copy_from_slice(&bytes);
            match turn % 2 {
                0 => put(&mut map, at, &bytes),
                _ => other.write_all_at(&bytes, at as u64).unwrap(),
            }
            if turn % 3 == 0 {
                let mut found = vec![0; expected.len()];
                other.read_exact_at(&mut found, 0).unwrap();
                assert!(found == expected, "calls see something else in turn {turn}");
            }
            assert!(
                map[..] == expected[..],
                "the map shows something else in turn {turn}"
            );
        }
        expected
    });
}

/// From several threads, in any order. Where only one changes a page at a time nothing is lost.
#[test]
fn nothing_is_lost_of_a_map_and_of_calls_that_take_turns() {
    const TURNS: usize = 150;
    everywhere(|dir, at_once| {
        let length = 4 * PAGE;
        let file = file(dir, length);
        let turn = Mutex::new(());
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let (file, turn, dir) = (&file, &turn, dir.join("f"));
                scope.spawn(move || {
                    let other = File::options().read(true).write(true).open(dir).unwrap();
                    let mut map = map(file);
                    for round in 0..TURNS {
                        let value = (round % 250) as u8 + 1;
                        for at in (round % 8 * 4 + writer..length).step_by(1024 + 32) {
                            let _turn = (!at_once).then(|| turn.lock().unwrap());
                            match writer % 2 {
                                0 => put(&mut map, at, &[value]),
                                _ => other.write_all_at(&[value], at as u64).unwrap(),
                            }
                        }
                    }
                });
            }
        });
        let mut expected = vec![0; length];
        for writer in 0..4 {
            for round in 0..TURNS {
                for at in (round % 8 * 4 + writer..length).step_by(1024 + 32) {
                    expected[at] = (round % 250) as u8 + 1;
                }
            }
        }
        expected
    });
}

#[test]
fn what_is_written_to_a_private_map_stays_there() {
    everywhere(|dir, _| {
        let file = file(dir, 2 * PAGE);
        file.write_all_at(&[1; 2 * PAGE], 0).unwrap();
        #[expect(unsafe_code, reason = "memory maps have no safe interface")]
        // SAFETY: a file of this test, which nobody cuts while it is mapped.
        let mut private = unsafe { memmap2::MmapOptions::new().map_copy(&file).unwrap() };
        assert!(private[..] == [1; 2 * PAGE]);
        put(&mut private, 10, &[2; 5000]);
        let mut found = vec![0; 2 * PAGE];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == [1; 2 * PAGE], "it reached the file");
        file.write_all_at(&[3; 2 * PAGE], 0).unwrap();
        assert!(private[10..5010] == [2; 5000], "it was lost");
        vec![3; 2 * PAGE]
    });
}

#[test]
fn a_program_that_runs_cannot_be_emptied() {
    for path in DATA_PATHS {
        let Some(place) = Place::on_path(64 * MIB, path) else {
            continue;
        };
        let _coordinator = place.coordinator(1, Manners::default());
        let open = place.mnt().join("a.tmp");
        fs::create_dir(&open).unwrap();
        let program = open.join("sleep");
        fs::copy("/bin/sleep", &program).unwrap();
        let length = fs::metadata(&program).unwrap().len();
        let mut sleeping = Command::new(&program).arg("1000").spawn().unwrap();
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_TRUNC)
            .open(&program);
        // Right after it began, it has yet to read most of itself.
        let after = fs::metadata(&program).unwrap().len();
        let ended = sleeping.try_wait().unwrap();
        sleeping.kill().unwrap();
        sleeping.wait().unwrap();
        assert_eq!(opened.err().unwrap().raw_os_error(), Some(libc::ETXTBSY));
        assert_eq!(after, length, "{}", path.0);
        assert!(ended.is_none(), "{}: it ended: {ended:?}", path.0);
    }
}
