//! Names, trees, links and messages that were made to do harm.
//!
//! POSIX says what is refused and how; nothing reaches outside the cache; the daemon goes on.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use nix::errno::Errno;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use scrfs::control::{
    self, Command, DirectoryChange, Hello, PROTOCOL_VERSION, Role, ToDaemon, Welcome,
};
use scrfs::id::{DatasetId, Epoch, Rank, Slot};
use scrfs::name::RelPath;
use scrfs_fuse_tests::coordinator::Manners;
use scrfs_fuse_tests::mounted::{DATA_PATHS, Place};
use scrfs_fuse_tests::until;
use scrfs_mount::control::connect;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, symlink};
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

/// The same, under programs that have it open.
#[test]
fn what_is_swapped_under_open_files_leads_nowhere() {
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::Mode;
    for path in DATA_PATHS {
        let Some(place) = Place::on_path(64 * MIB, path) else {
            continue;
        };
        let _coordinator = place.coordinator(1, Manners::default());
        let open = place.mnt().join("a.tmp");
        fs::create_dir_all(open.join("dir/below")).unwrap();
        fs::write(open.join("dir/file"), b"mine").unwrap();
        let outside = place.prefix().join("outside");
        fs::create_dir_all(outside.join("below")).unwrap();
        fs::write(outside.join("file"), b"theirs").unwrap();
        let before = tree(&outside);
        let inside = File::open(open.join("dir")).unwrap();
        let file = File::options()
            .read(true)
            .write(true)
            .open(open.join("dir/file"))
            .unwrap();
        // The directory goes elsewhere, and a link to what is outside takes its place; and the
        // file's.
        let uid = nix::unistd::geteuid();
        let job = place.cache().join(format!("scrfs.{uid}/test"));
        let files = job.join("datasets/1/slot.0/tree");
        let up = "../".repeat(7);
        let moved = place.cache().join("moved");
        fs::rename(files.join("dir"), &moved).unwrap();
        symlink(format!("{up}prefix/outside"), files.join("dir")).unwrap();
        fs::rename(moved.join("file"), moved.join("old")).unwrap();
        let theirs = outside.join("file");
        symlink(&theirs, moved.join("file")).unwrap();
        // The kernel has not looked this one up yet.
        symlink(&theirs, moved.join("fresh")).unwrap();
        assert_eq!(fs::read(files.join("dir/file")).unwrap(), b"theirs");
        // Who has them open goes on with what was opened.
        file.write_all_at(b"MORE", 4).unwrap();
        file.set_len(6).unwrap();
        let mut bytes = [0; 6];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"mineMO");
        let create = OFlag::O_WRONLY | OFlag::O_CREAT;
        let mode = Mode::from_bits_truncate(0o600);
        for name in ["new", "below/new", "../new"] {
            // Whatever comes of it, it is not there.
            drop(openat(&inside, name, create, mode));
        }
        let cut = OFlag::O_WRONLY | OFlag::O_TRUNC;
        let _ = openat(&inside, "below/../file", cut | OFlag::O_NOFOLLOW, mode);
        let fresh = openat(&inside, "fresh", cut | OFlag::O_NOFOLLOW, mode);
        assert_eq!(fresh.err(), Some(Errno::ELOOP));
        let _ = nix::sys::stat::mkdirat(&inside, "d", mode);
        let remove = nix::unistd::UnlinkatFlags::NoRemoveDir;
        let _ = nix::unistd::unlinkat(&inside, "file", remove);
        let _ = fs::remove_dir(open.join("dir/below"));
        let _ = fs::rename(open.join("dir/below"), open.join("dir/other"));
        assert!(tree(&outside) == before, "{}: something reached it", path.0);
        drop(file);
        fs::rename(&open, place.mnt().join("a")).unwrap();
        let swapped = fs::symlink_metadata(place.mnt().join("a/dir")).unwrap();
        assert!(swapped.file_type().is_symlink());
        assert_eq!(
            errno(File::open(place.mnt().join("a/dir/file"))),
            Errno::ENOENT
        );
    }
}

#[test]
fn long_frames_of_many_callers_do_not_add_up() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let hello = Hello {
        version: PROTOCOL_VERSION,
        role: Role::Command,
    };
    let callers: Vec<UnixStream> = (0..16)
        .map(|caller| {
            let mut stream = connect(&place.socket()).unwrap();
            if caller % 2 == 0 {
                control::write_frame(&mut stream, &hello).unwrap();
                control::read_frame::<Welcome>(&mut stream).unwrap();
            }
            stream
                .set_write_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            // It may hang up on this.
            let _ = stream.write_all(&(60_u32 << 20).to_le_bytes());
            let piece = vec![0; 1 << 20];
            let _ = (0..30).try_for_each(|_| stream.write_all(&piece));
            stream
        })
        .collect();
    assert!(memory(&place) < DAEMON_BYTES_MAX, "{}", memory(&place));
    assert!(place.status()["mountpoint"].is_string());
    drop(callers);
}

/// Messages of a coordinator that no sane one would send.
fn nonsense(random: &mut StdRng) -> Vec<u8> {
    let path = RelPath::new(b"zz/zz").unwrap();
    // Most of them about the one that is open.
    let dataset = DatasetId([0, 1, 2, 2, 2, 3][random.random_range(0..6)]);
    let sequence = 1;
    let change = match random.random_range(0..5) {
        0 => DirectoryChange::Make {
            path: path.clone(),
            mode: random.random(),
            uid: random.random(),
            gid: random.random(),
        },
        1 => DirectoryChange::Remove { path: path.clone() },
        2 => DirectoryChange::Rename {
            from: path.clone(),
            to: path.clone(),
            token: random.random(),
        },
        3 => DirectoryChange::Exchange {
            one: path.clone(),
            other: path.clone(),
            token: random.random(),
        },
        _ => DirectoryChange::Rename {
            from: path.clone(),
            to: RelPath::new(b"zz/zz/a").unwrap(),
            token: random.random(),
        },
    };
    let message = match random.random_range(0..12) {
        0 => ToDaemon::Reply {
            request: random.random(),
            result: Ok(()),
        },
        1 => ToDaemon::Piece {
            request: random.random_range(0..9),
            result: Ok(vec![7; 1 << 20].into()),
        },
        2 => ToDaemon::Freeze {
            sequence,
            dataset,
            generation: random.random(),
        },
        3 => ToDaemon::Quiesce {
            dataset,
            settle_ms: random.random(),
        },
        4 => ToDaemon::Thaw { dataset },
        5 => ToDaemon::Ready {
            restart: Some(DatasetId(random.random())),
            new_run: random.random(),
        },
        6 => ToDaemon::Nodes(Vec::new()),
        _ => ToDaemon::Change {
            sequence,
            dataset,
            change,
        },
    };
    let mut bytes = Vec::new();
    control::write_frame(&mut bytes, &message).unwrap();
    // Paths that cannot be said by ours.
    let hostile: [&[u8; 5]; 7] = [
        b"../zz", b"zz/..", b"/zzzz", b"zz//z", b"z\0/zz", b"./zzz", b"zz/zz",
    ];
    let with = hostile[random.random_range(0..hostile.len())];
    let places = (4..bytes.len().saturating_sub(4)).collect::<Vec<_>>();
    for at in places {
        if bytes.get(at..at + 5) == Some(&b"zz/zz"[..]) {
            bytes[at..at + 5].copy_from_slice(with);
        }
    }
    if random.random_bool(0.5) && bytes.len() < 1000 {
        let at = random.random_range(4..bytes.len());
        bytes[at] ^= 1 << random.random_range(0..8);
    }
    bytes
}

#[test]
fn a_coordinator_that_talks_nonsense_harms_nobody() {
    let seed = std::env::var("SCRFS_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand::random);
    println!("SCRFS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let coordinator = place.coordinator(1, Manners::default());
    let mnt = place.mnt();
    for name in ["a.tmp", "b.tmp"] {
        fs::create_dir(mnt.join(name)).unwrap();
        fs::write(mnt.join(name).join("f"), b"fine").unwrap();
    }
    fs::rename(mnt.join("a.tmp"), mnt.join("a")).unwrap();
    drop(coordinator);
    let uid = nix::unistd::geteuid();
    let job = place.cache().join(format!("scrfs.{uid}/test"));
    let names = |dir: &Path| {
        let listed = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let around = [
        place.cache(),
        job.clone(),
        job.join("datasets/1/slot.0"),
        job.join("datasets/2/slot.0"),
        job.join("datasets/2"),
    ];
    let before = around.each_ref().map(|dir| names(dir));
    for epoch in 2..200 {
        let mut stream = connect(&place.socket()).unwrap();
        let role = Role::Coordinator {
            epoch: Epoch(epoch),
            rank: Rank(random.random()),
            size: random.random(),
            slot: Slot(0),
            pid: random.random(),
        };
        let hello = Hello {
            version: PROTOCOL_VERSION,
            role,
        };
        control::write_frame(&mut stream, &hello).unwrap();
        let welcome = control::read_frame::<Welcome>(&mut stream).unwrap();
        assert!(matches!(welcome, Some(Welcome::Accepted { .. })));
        for _ in 0..random.random_range(1..20) {
            // It hangs up on what it does not understand.
            if stream.write_all(&nonsense(&mut random)).is_err() {
                break;
            }
        }
        // What it had to say is read before the next one comes.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let timeout = Some(Duration::from_secs(10));
        stream.set_read_timeout(timeout).unwrap();
        let _ = io::copy(&mut stream, &mut io::sink());
        // Each time: what was made might be removed again.
        assert!(around.each_ref().map(|dir| names(dir)) == before);
    }
    assert!(memory(&place) < DAEMON_BYTES_MAX, "{}", memory(&place));
    let _coordinator = place.coordinator(1 << 40, Manners::default());
    assert_eq!(fs::read(mnt.join("a/f")).unwrap(), b"fine");
    assert_eq!(fs::read(mnt.join("b.tmp/f")).unwrap(), b"fine");
    fs::create_dir(mnt.join("c.tmp")).unwrap();
    fs::write(mnt.join("c.tmp/f"), b"fine").unwrap();
    fs::rename(mnt.join("c.tmp"), mnt.join("c")).unwrap();
    assert_eq!(fs::read(mnt.join("c/f")).unwrap(), b"fine");
}
