//! The daemon's life: killed at any moment, told to stop, told to reopen its log, unmounted by others,
//! watched by systemd. Files stay, mounts do not pile up, programs in the middle of a write go on.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use nix::sys::signal::{Signal, kill};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scrfs_fuse_tests::coordinator::Manners;
use scrfs_fuse_tests::mounted::{Map, Place, text};
use scrfs_fuse_tests::{PATIENCE, leave_out, until};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// How many mounts lie on that path.
fn mounts_on(path: &Path) -> usize {
    let path = path.to_str().unwrap();
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines()
        .filter(|line| line.split(' ').nth(4) == Some(path))
        .count()
}

/// What a writer puts into its file.
fn content(writer: u64, file: u64) -> Vec<u8> {
    let unit = format!("writer {writer}, file {file}\n");
    unit.repeat(1 + (file % 300) as usize).into_bytes()
}

/// Until the mount is dead, makes datasets of a few files; says which files were closed and which
/// datasets were committed.
fn write_until_dead(mnt: &Path, writer: u64, next: &AtomicU64, done: &Mutex<Vec<(String, u64)>>) {
    loop {
        let dataset = next.fetch_add(1, Ordering::Relaxed);
        let (open, sealed) = (format!("d{dataset}.tmp"), format!("d{dataset}"));
        let directory = mnt.join(&open);
        if fs::create_dir(&directory).is_err() {
            return;
        }
        for file in 0..5 {
            let Ok(mut to) = File::create_new(directory.join(file.to_string())) else {
                return;
            };
            if to.write_all(&content(writer, file)).is_err() {
                return;
            }
            if nix::unistd::close(to).is_err() {
                return;
            }
            done.lock()
                .unwrap()
                .push((format!("{open}/{file}"), writer));
        }
        // Every other one stays open.
        if dataset.is_multiple_of(2) {
            if fs::rename(&directory, mnt.join(&sealed)).is_err() {
                return;
            }
            done.lock().unwrap().push((sealed, writer));
        }
    }
}

#[test]
fn killed_at_random_moments_it_loses_no_closed_file_and_no_commit() {
    let seed = std::env::var("SCRFS_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand::random);
    println!("SCRFS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let place = Place::new(256 * MIB);
    let (next, done) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    for round in 1..=8 {
        let options: &[&str] = if round % 2 == 0 {
            &["-o", "no_passthrough"]
        } else {
            &[]
        };
        place.mount(options);
        let coordinator = place.coordinator(round, Manners::default());
        let mnt = place.mnt();
        let pause = Duration::from_millis(random.random_range(1..150));
        std::thread::scope(|scope| {
            for writer in 0..3 {
                let (mnt, next, done) = (&mnt, &next, &done);
                scope.spawn(move || write_until_dead(mnt, writer, next, done));
            }
            // Not a wait for anything: the moment of the crash is what is random.
            std::thread::park_timeout(pause);
            place.kill_daemon();
        });
        drop(coordinator);
        place.mount(options);
        let coordinator = place.coordinator(round + 100, Manners::default());
        let done = done.lock().unwrap();
        let is_sealed = |name: &str| done.iter().any(|(path, _)| path == name);
        for (path, writer) in done.iter() {
            let Some((open, file)) = path.split_once('/') else {
                let listed = fs::read_dir(mnt.join(path)).unwrap().count();
                assert_eq!(listed, 5, "files of the sealed {path}");
                continue;
            };
            let sealed = open.strip_suffix(".tmp").unwrap();
            let directory = match mnt.join(open).exists() {
                true => {
                    assert!(!is_sealed(sealed), "{sealed} was committed and is open");
                    open
                }
                // Committed, or about to be when the daemon died.
                false => sealed,
            };
            let found = fs::read(mnt.join(directory).join(file))
                .unwrap_or_else(|error| panic!("{directory}/{file}: {error}"));
            let expected = content(*writer, file.parse().unwrap());
            assert!(found == expected, "{directory}/{file} has other bytes");
        }
        drop(coordinator);
        place.kill_daemon();
    }
    println!("{} closed files and commits", done.lock().unwrap().len());
}

#[test]
fn open_files_work_on_while_it_is_dead_and_after() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    if place.status()["passthrough"] != true {
        leave_out("this machine has no passthrough: a crash closes all files");
        return;
    }
    let _coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    fs::create_dir(mnt.join("old.tmp")).unwrap();
    fs::write(mnt.join("old.tmp/f"), b"sealed").unwrap();
    fs::rename(mnt.join("old.tmp"), mnt.join("old")).unwrap();
    fs::create_dir(mnt.join("new.tmp")).unwrap();
    let mut sealed = File::open(mnt.join("old/f")).unwrap();
    let mut open = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mnt.join("new.tmp/f"))
        .unwrap();
    open.write_all(&[b'.'; 8192]).unwrap();
    let _map = Map::new(&open, 8192);

    place.kill_daemon();
    open.write_all_at(b"written while it was dead", 0).unwrap();
    let mut bytes = vec![0; 25];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, b"written while it was dead");
    let mut text = String::new();
    sealed.read_to_string(&mut text).unwrap();
    assert_eq!(text, "sealed");
    assert!(File::open(mnt.join("old/f")).is_err(), "a dead mount opens");

    place.mount(&[]);
    // The old handle and a new one are the same file.
    open.seek(std::io::SeekFrom::Start(0)).unwrap();
    open.write_all(b"WRITTEN").unwrap();
    let again = fs::read(mnt.join("new.tmp/f")).unwrap();
    assert!(again.starts_with(b"WRITTEN while it was dead"));
    assert_eq!(again.len(), 8192);
    nix::unistd::close(open).unwrap();
}

#[test]
fn dead_mounts_do_not_pile_up() {
    let place = Place::new(64 * MIB);
    for _ in 0..3 {
        place.mount(&[]);
        assert_eq!(mounts_on(&place.mnt()), 1);
        place.kill_daemon();
    }
    place.mount(&[]);
    let output = Command::new(scrfs_fuse_tests::mounted::scrfs())
        .args(["unmount", "--now"])
        .arg(place.mnt())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(mounts_on(&place.mnt()), 0);
    // A dead mount is also taken away by unmounting.
    place.mount(&[]);
    place.kill_daemon();
    let output = Command::new(scrfs_fuse_tests::mounted::scrfs())
        .args(["unmount", "--now"])
        .arg(place.mnt())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(mounts_on(&place.mnt()), 0, "{}", text(&output));
}

/// As a container has that starts while it is mounted.
#[test]
fn a_copy_of_the_mount_in_another_namespace_does_not_hold_up_who_unmounts() {
    if !nix::unistd::geteuid().is_root() {
        leave_out("only root may make a mount namespace");
        return;
    }
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let mnt = place.mnt();
    let daemon = place.daemon().unwrap();
    let mut elsewhere = Command::new("unshare")
        .args(["--mount", "sh", "-c", "echo there; read end; ls \"$0\""])
        .arg(&mnt)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut there = String::new();
    let mut output = BufReader::new(elsewhere.stdout.take().unwrap());
    output.read_line(&mut there).unwrap();
    assert_eq!(there, "there\n");
    let unmounted = Command::new("timeout")
        .arg("60")
        .arg(scrfs_fuse_tests::mounted::scrfs())
        .args(["unmount", "--now"])
        .arg(&mnt)
        .output()
        .unwrap();
    // Before it can fail: nobody waits for it.
    drop(elsewhere.stdin.take());
    let seen_there = elsewhere.wait().unwrap();
    assert!(unmounted.status.success(), "{}", text(&unmounted));
    assert!(
        text(&unmounted).contains("another mount namespace"),
        "{}",
        text(&unmounted)
    );
    assert!(!seen_there.success(), "it is gone there, too");
    assert_eq!(mounts_on(&mnt), 0);
    until("the daemon has ended", || kill(daemon, None).is_err());
}

#[test]
fn told_to_stop_it_unmounts_and_waits_for_those_who_use_it() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let _coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    let daemon = place.daemon().unwrap();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    let mut busy = File::create_new(mnt.join("a.tmp/f")).unwrap();
    kill(daemon, Signal::SIGTERM).unwrap();
    until("it is unmounted", || mounts_on(&mnt) == 0);
    // Whoever has a file open goes on, and the daemon stays for it.
    busy.write_all(b"to the end").unwrap();
    busy.sync_all().unwrap();
    assert_eq!(busy.metadata().unwrap().len(), 10);
    assert!(Path::new(&format!("/proc/{daemon}")).exists());
    drop(busy);
    until("it ends", || place.daemon().is_none());

    place.mount(&[]);
    assert_eq!(fs::read(mnt.join("a.tmp/f")).unwrap(), b"to the end");
    // Twice means at once.
    let daemon = place.daemon().unwrap();
    let busy = File::open(mnt.join("a.tmp/f")).unwrap();
    kill(daemon, Signal::SIGTERM).unwrap();
    until("it is unmounted", || mounts_on(&mnt) == 0);
    kill(daemon, Signal::SIGTERM).unwrap();
    until("it ends at once", || {
        !Path::new(&format!("/proc/{daemon}/exe")).exists()
            || fs::read_link(format!("/proc/{daemon}/exe")).is_err()
    });
    drop(busy);
    place.mount(&[]);
    assert_eq!(fs::read(mnt.join("a.tmp/f")).unwrap(), b"to the end");
}

#[test]
fn unmounted_by_others_it_ends_and_its_files_stay() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    fs::write(mnt.join("a.tmp/f"), b"bytes").unwrap();
    let output = Command::new("umount").arg(&mnt).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    until("it ends", || place.daemon().is_none());
    drop(coordinator);
    place.mount(&[]);
    assert_eq!(fs::read(mnt.join("a.tmp/f")).unwrap(), b"bytes");
}

#[test]
fn told_that_the_terminal_is_gone_it_stays_and_reopens_its_log() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let log = place.log();
    let moved = log.with_extension("log.1");
    fs::rename(&log, &moved).unwrap();
    kill(place.daemon().unwrap(), Signal::SIGHUP).unwrap();
    until("a new log", || log.exists());
    let _coordinator = place.coordinator(1, Manners::default());
    until("it goes on there", || {
        fs::read_to_string(&log)
            .unwrap()
            .contains("coordinator connected")
    });
    let old = fs::read_to_string(&moved).unwrap();
    assert!(!old.contains("coordinator connected"), "{old}");
    assert!(place.mnt().join(".scr/status").exists());
}

#[test]
fn a_service_manager_hears_when_it_is_ready_and_when_it_stops() {
    let place = Place::new(64 * MIB);
    let address = place.prefix().join("notify");
    let socket = UnixDatagram::bind(&address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let mut daemon = place
        .mount_command(&["--foreground"])
        .env("NOTIFY_SOCKET", &address)
        .spawn()
        .unwrap();
    let said = hear();
    assert!(said.contains("READY=1"), "{said}");
    assert!(place.mnt().join(".scr/status").exists());
    kill(place.daemon().unwrap(), Signal::SIGTERM).unwrap();
    let said = hear();
    assert!(said.contains("STOPPING=1"), "{said}");
    assert!(daemon.wait().unwrap().success());
    assert_eq!(mounts_on(&place.mnt()), 0);
}
