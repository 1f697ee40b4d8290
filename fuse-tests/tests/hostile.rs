//! Names, trees, links and messages that were made to do harm.
//!
//! POSIX says what is refused and how; nothing reaches outside the cache; the daemon goes on.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use nix::errno::Errno;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use scrfs::control::{self, Command, Hello, PROTOCOL_VERSION, Role};
use scrfs::id::{Epoch, Rank, Slot};
use scrfs_fuse_tests::coordinator::Manners;
use scrfs_fuse_tests::mounted::Place;
use scrfs_fuse_tests::until;
use scrfs_mount::control::connect;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Errno {
    Errno::from_raw(result.expect_err("it succeeded").raw_os_error().unwrap())
}

/// Names that are unusual and allowed.
fn odd_names() -> Vec<OsString> {
    let mut names: Vec<Vec<u8>> = vec![
        b"new\nline".to_vec(),
        b" leading and trailing ".to_vec(),
        b"-rf".to_vec(),
        b"--help".to_vec(),
        b"$(reboot);`reboot`".to_vec(),
        b"a\\b".to_vec(),
        b"%s%n".to_vec(),
        b"\"quotes'".to_vec(),
        b"\x01\x1b[2J".to_vec(),
        b"...".to_vec(),
        b"not\xff\xfeutf8".to_vec(),
        vec![b'x'; 255],
        vec![0xff; 255],
    ];
    names.extend(
        (1..=255u8)
            .filter(|&byte| byte != b'/')
            .map(|byte| vec![b'n', byte]),
    );
    names.into_iter().map(OsString::from_vec).collect()
}

/// All paths below, with what the files say.
fn tree(top: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let below = path.strip_prefix(top).unwrap().to_owned();
            if path.symlink_metadata().unwrap().is_dir() {
                found.push((below, None));
                directories.push(path);
            } else {
                found.push((below, Some(fs::read(&path).unwrap())));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn odd_names_are_names() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    let open = mnt.join("a.tmp");
    fs::create_dir(&open).unwrap();
    for name in odd_names() {
        fs::write(open.join(&name), name.as_bytes()).unwrap();
        let mut directory = OsString::from("d");
        directory.push(&name);
        if directory.len() <= 255 {
            fs::create_dir(open.join(&directory)).unwrap();
            fs::write(open.join(&directory).join(&name), b"below").unwrap();
        }
    }
    let before = tree(&open);
    assert!(before.len() > 700, "{} names", before.len());
    fs::rename(&open, mnt.join("a")).unwrap();
    assert!(tree(&mnt.join("a")) == before);
    drop(coordinator);
    place.kill_daemon();
    place.mount(&[]);
    assert!(tree(&mnt.join("a")) == before, "after a remount");
}

#[test]
fn odd_names_at_the_top_are_datasets_or_refused() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    let mut made = Vec::new();
    for name in odd_names() {
        let path = mnt.join(&name);
        match fs::create_dir(&path) {
            Ok(()) => {
                fs::write(path.join("f"), name.as_bytes()).unwrap();
                made.push(name);
            }
            // What cannot be a file name of the control directory.
            Err(error) => {
                let refused = Errno::from_raw(error.raw_os_error().unwrap());
                assert!(
                    matches!(refused, Errno::EINVAL | Errno::ENAMETOOLONG),
                    "{name:?}: {refused}"
                );
            }
        }
    }
    assert!(made.len() > 200, "only {} of them", made.len());
    assert_eq!(errno(fs::create_dir(mnt.join(".scr"))), Errno::EEXIST);
    let listed = fs::read_dir(&mnt).unwrap().count();
    assert_eq!(listed, made.len() + usize::from(mnt_lists_control(&mnt)));
    let states = fs::read_dir(mnt.join(".scr/status")).unwrap();
    for state in states {
        let state = state.unwrap();
        fs::read(state.path()).unwrap_or_else(|error| panic!("{:?}: {error}", state.path()));
    }
    drop(coordinator);
    place.kill_daemon();
    place.mount(&[]);
    for name in made {
        assert_eq!(
            fs::read(mnt.join(&name).join("f")).unwrap(),
            name.as_bytes()
        );
    }
}

fn mnt_lists_control(mnt: &Path) -> bool {
    fs::read_dir(mnt)
        .unwrap()
        .any(|entry| entry.unwrap().file_name() == ".scr")
}

#[test]
fn names_and_paths_that_are_too_long_or_too_deep() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let _coordinator = place.coordinator(1, Manners::default());
    let open = place.mnt().join("a.tmp");
    fs::create_dir(&open).unwrap();
    let long = OsString::from_vec(vec![b'y'; 256]);
    let too_long = open.join(&long);
    assert_eq!(errno(File::create(&too_long)), Errno::ENAMETOOLONG);
    assert_eq!(errno(fs::create_dir(&too_long)), Errno::ENAMETOOLONG);
    assert_eq!(errno(symlink("t", &too_long)), Errno::ENAMETOOLONG);
    assert_eq!(errno(fs::metadata(&too_long)), Errno::ENAMETOOLONG);
    assert_eq!(
        errno(fs::create_dir(place.mnt().join(&long))),
        Errno::ENAMETOOLONG
    );
    fs::write(open.join("f"), b"x").unwrap();
    assert_eq!(
        errno(fs::rename(open.join("f"), &too_long)),
        Errno::ENAMETOOLONG
    );
    // Deeper than one path can say: one step after the other.
    let mut at = nix::dir::Dir::open(
        &open,
        nix::fcntl::OFlag::O_DIRECTORY,
        nix::sys::stat::Mode::empty(),
    )
    .unwrap();
    let name = OsString::from_vec(vec![b'd'; 100]);
    let mut depth = 0;
    let refused = loop {
        use nix::sys::stat::{Mode, mkdirat};
        use std::os::fd::AsFd;
        match mkdirat(at.as_fd(), name.as_os_str(), Mode::S_IRWXU) {
            Ok(()) => depth += 1,
            Err(errno) => break Some(errno),
        }
        if depth == 100 {
            break None;
        }
        at = nix::dir::Dir::openat(
            at.as_fd(),
            name.as_os_str(),
            nix::fcntl::OFlag::O_DIRECTORY,
            Mode::empty(),
        )
        .unwrap();
    };
    // What a path cannot name cannot be brought back: refused before it is lost.
    assert!(
        matches!(refused, None | Some(Errno::ENAMETOOLONG)),
        "{refused:?} at {depth}"
    );
    assert!(depth >= 35, "only {depth} deep");
    fs::rename(&open, place.mnt().join("a")).unwrap();
}

#[test]
fn links_lead_nowhere_they_should_not() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let _coordinator = place.coordinator(1, Manners::default());
    let open = place.mnt().join("a.tmp");
    fs::create_dir(&open).unwrap();
    let secret = place.prefix().join("secret");
    fs::write(&secret, b"secret").unwrap();
    symlink("loop2", open.join("loop1")).unwrap();
    symlink("loop1", open.join("loop2")).unwrap();
    assert_eq!(errno(File::open(open.join("loop1"))), Errno::ELOOP);
    assert_eq!(errno(fs::read_dir(open.join("loop1/x"))), Errno::ELOOP);
    // A link may point anywhere: it is the reader who follows it, in the reader's own names.
    symlink("../../prefix/secret", open.join("up")).unwrap();
    assert_eq!(
        fs::read_link(open.join("up")).unwrap(),
        Path::new("../../prefix/secret")
    );
    assert_eq!(fs::read(open.join("up")).unwrap(), b"secret");
    // `..` ends at the mount, not at the cache.
    assert!(open.join("../../prefix").exists());
    assert!(!open.join("../../scrfs.0").exists());
    let too_far = open.join("up/..");
    assert_eq!(errno(fs::read_dir(too_far)), Errno::ENOTDIR);
}

/// Somebody with access to the cache puts links and other things in the place of files.
#[test]
fn what_is_swapped_in_the_cache_leads_nowhere() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let _coordinator = place.coordinator(1, Manners::default());
    let open = place.mnt().join("a.tmp");
    fs::create_dir(&open).unwrap();
    fs::create_dir(open.join("dir")).unwrap();
    fs::write(open.join("file"), b"mine").unwrap();
    fs::write(open.join("dir/file"), b"mine").unwrap();
    let outside = place.prefix().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), b"theirs").unwrap();
    let uid = nix::unistd::geteuid();
    let files = place
        .cache()
        .join(format!("scrfs.{uid}/test/datasets/1/slot.0/tree"));
    assert_eq!(fs::read(files.join("file")).unwrap(), b"mine");
    // These lead to `outside` from the cache, and nowhere from the mount: so whoever follows them
    // successfully is the daemon.
    let up = "../".repeat(7);
    fs::remove_file(files.join("file")).unwrap();
    symlink(format!("{up}prefix/outside/file"), files.join("file")).unwrap();
    fs::remove_dir_all(files.join("dir")).unwrap();
    symlink(format!("{up}prefix/outside"), files.join("dir")).unwrap();
    assert_eq!(fs::read(files.join("file")).unwrap(), b"theirs");
    let is_link = |name: &str| {
        fs::symlink_metadata(open.join(name)).is_ok_and(|found| found.file_type().is_symlink())
    };
    until("the kernel has forgotten what was there", || {
        is_link("file") && is_link("dir")
    });
    for path in ["file", "dir/file", "dir/new"] {
        let path = open.join(path);
        assert_eq!(errno(File::open(&path)), Errno::ENOENT);
        let write = File::options().write(true).truncate(true).open(&path);
        assert_eq!(errno(write), Errno::ENOENT);
        assert_eq!(errno(fs::metadata(&path)), Errno::ENOENT);
    }
    let file = open.join("dir/file");
    assert_eq!(errno(fs::write(open.join("dir/new"), "")), Errno::ENOENT);
    assert_eq!(errno(fs::create_dir(open.join("dir/d"))), Errno::ENOENT);
    assert_eq!(errno(fs::remove_file(&file)), Errno::ENOENT);
    assert_eq!(errno(fs::rename(&file, open.join("m"))), Errno::ENOENT);
    assert_eq!(errno(fs::hard_link(&file, open.join("m"))), Errno::ENOENT);
    // What a link says may be read and removed, as any link's.
    fs::remove_file(open.join("file")).unwrap();
    assert_eq!(tree(&outside), [("file".into(), Some(b"theirs".to_vec()))]);
}

/// What the daemon may use at most, in bytes.
const DAEMON_BYTES_MAX: u64 = 256 * MIB;

fn memory(place: &Place) -> u64 {
    let pid = place.daemon().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// One valid conversation, as bytes.
fn valid(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = Vec::new();
    let role = if random.random_bool(0.5) {
        Role::Command
    } else {
        Role::Coordinator {
            epoch: Epoch(random.random_range(0..3)),
            rank: Rank(0),
            size: 1,
            slot: Slot(0),
            pid: std::process::id(),
        }
    };
    let hello = Hello {
        version: PROTOCOL_VERSION,
        role,
    };
    control::write_frame(&mut bytes, &hello).unwrap();
    control::write_frame(&mut bytes, &Command::Status).unwrap();
    bytes
}

#[test]
fn nonsense_on_the_control_socket_harms_nobody() {
    let seed = std::env::var("SCRFS_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand::random);
    println!("SCRFS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    for round in 0..1500 {
        let mut bytes = valid(&mut random);
        match round % 4 {
            // Noise.
            0 => {
                bytes = vec![0; random.random_range(0..512)];
                random.fill_bytes(&mut bytes);
            }
            // Some bits of a good one.
            1 => {
                for _ in 0..random.random_range(1..6) {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] ^= 1 << random.random_range(0..8);
                }
            }
            // Cut.
            2 => bytes.truncate(random.random_range(0..bytes.len())),
            // A good beginning, then noise with a length that fits.
            _ => {
                let mut noise = vec![0; random.random_range(0..64)];
                random.fill_bytes(&mut noise);
                bytes.extend((noise.len() as u32).to_le_bytes());
                bytes.extend(noise);
            }
        }
        let mut stream = connect(&place.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let _ = stream.write_all(&bytes);
        let mut answer = [0; 64];
        let _ = stream.read(&mut answer);
    }
    // Lengths without bytes.
    let greedy: Vec<UnixStream> = (0..64)
        .map(|_| {
            let mut stream = connect(&place.socket()).unwrap();
            stream.write_all(&(64u32 << 20).to_le_bytes()).unwrap();
            stream.write_all(&[0; 1000]).unwrap();
            stream
        })
        .collect();
    let status = place.status();
    assert_eq!(status["mountpoint"].as_str(), place.mnt().to_str());
    assert!(memory(&place) < DAEMON_BYTES_MAX, "{}", memory(&place));
    drop(greedy);
    // And a real coordinator still gets through.
    let _coordinator = place.coordinator(1 << 40, Manners::default());
    let mnt = place.mnt();
    fs::create_dir(mnt.join("a.tmp")).unwrap();
    fs::write(mnt.join("a.tmp/f"), b"fine").unwrap();
    fs::rename(mnt.join("a.tmp"), mnt.join("a")).unwrap();
    assert_eq!(fs::read(mnt.join("a/f")).unwrap(), b"fine");
}
