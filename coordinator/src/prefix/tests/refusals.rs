//! Filesystems that are full, read-only, not there, or not ours to write to.

use super::*;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

#[test]
fn a_prefix_that_cannot_be_used_is_refused_in_words() {
    let root = tempfile::tempdir().unwrap();
    let missing = Prefix::open(&root.path().join("missing")).unwrap_err();
    assert!(matches!(missing, PrefixError::Missing { .. }), "{missing}");
    let file = root.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = Prefix::open(&file).unwrap_err();
    assert!(
        matches!(error, PrefixError::NotADirectory { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("file"));
    let prefix = Prefix::open(root.path()).unwrap();
    assert!(prefix.list().unwrap().is_empty());
    prefix.reconcile(&Default::default()).unwrap();
    assert!(
        !prefix.paths().control().exists(),
        "made before it was needed"
    );
}

#[test]
fn nothing_is_made_in_the_mount_point_of_a_prefix_that_goes_away_in_a_copy() {
    let Some(world) = on_small_tmpfs("size=64m") else {
        return;
    };
    let root = world.prefix.paths().root().to_owned();
    let elsewhere = world.root.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let bind = |from: &Path, to: &Path| {
        let nothing = None::<&str>;
        mount(Some(from), to, nothing, MsFlags::MS_BIND, nothing).unwrap();
    };
    bind(&root, &elsewhere);
    let record = world.dataset(5, "ckpt.5", 2, 77);
    // A slot of which nothing is put down before its directories are made.
    let part = world.part(&record, 1);
    let goes_away = |_| {
        let flags = nix::mount::MntFlags::MNT_DETACH;
        // Told again and again, and a mount point after the first time.
        let _ = nix::mount::umount2(&root, flags);
    };
    let flush = |progress: &dyn Fn(u64)| {
        let limits = FlushLimits::default();
        let flushed = world
            .prefix
            .flush_part(&record, &part, limits, progress, &GO);
        flushed.map(drop)
    };
    flush(&goes_away).unwrap_err();
    let again = flush(&|_| {}).unwrap_err();
    for error in [again, world.prefix.fail(record.key()).unwrap_err()] {
        assert_eq!(error.cause(), Cause::Unavailable, "{error}");
        assert!(error.to_string().contains("mounted"), "{error}");
        assert!(error.is_retryable());
    }
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    // Mounted again, it goes on.
    bind(&elsewhere, &root);
    world.flush(&record);
    assert!(world.has_all_of(&record));
    nix::mount::umount2(&elsewhere, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

/// Mounts a small tmpfs on the world's prefix, seen by this thread and those it starts. `None`
/// where this user may not.
fn on_small_tmpfs(options: &str) -> Option<World> {
    let mut world = World::new();
    let nothing = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let prepared = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(nothing, "/", nothing, private, nothing))
        .and_then(|()| {
            let path = world.prefix.paths().root();
            mount(
                Some("prefix"),
                path,
                Some("tmpfs"),
                MsFlags::empty(),
                Some(options),
            )
        });
    if let Err(error) = prepared {
        eprintln!("skipped: no mount namespace for this user ({error})");
        return None;
    }
    world.mounted = true;
    Some(world)
}

fn remount(world: &World, flags: MsFlags, options: &str) {
    let flags = flags | MsFlags::MS_REMOUNT;
    mount(
        None::<&str>,
        world.prefix.paths().root(),
        None::<&str>,
        flags,
        Some(options),
    )
    .unwrap();
}

#[test]
fn a_full_prefix_is_told_from_others_and_gets_its_space_back() {
    let Some(world) = on_small_tmpfs("size=2m") else {
        return;
    };
    let record = world.files(1, "c", &[("a", &[1; 1_000_000]), ("b", &[2; 5_000_000])]);
    let error = world.flush_slot(&record, 0).unwrap_err();
    assert_eq!(
        (error.cause(), error.is_retryable()),
        (Cause::NoSpace, true),
        "{error}"
    );
    assert!(error.to_string().contains("inflight"), "{error}");
    assert_eq!(error.io().unwrap().kind(), io::ErrorKind::StorageFull);
    let free = nix::sys::statvfs::statvfs(world.prefix.paths().root()).unwrap();
    assert!(free.blocks_available() * free.fragment_size() > 1_900_000);
    remount(&world, MsFlags::empty(), "size=20m");
    world.flush(&record);
    assert!(world.has_all_of(&record));
    world.fetches_all_of(&record);
}

#[test]
fn a_read_only_prefix_is_refused_and_still_read() {
    let Some(world) = on_small_tmpfs("size=20m") else {
        return;
    };
    let old = world.files(1, "old", &[("a", &[1; 100_000])]);
    world.flush(&old);
    let new = world.files(2, "new", &[("a", &[1; 100_000])]);
    remount(&world, MsFlags::MS_RDONLY, "size=20m");
    let error = Prefix::open(world.prefix.paths().root()).unwrap_err();
    assert_eq!(
        (error.cause(), error.is_retryable()),
        (Cause::ReadOnly, false),
        "{error}"
    );
    let error = world.flush_slot(&new, 0).unwrap_err();
    assert_eq!(
        (error.cause(), error.is_retryable()),
        (Cause::ReadOnly, false),
        "{error}"
    );
    Prefix::open_to_read(world.prefix.paths().root()).unwrap();
    assert_eq!(world.ids(), [(1, EntryState::Complete)]);
    world.fetches_all_of(&old);
}

#[test]
fn denied_is_neither_full_nor_read_only() {
    if nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: root is denied nothing");
        return;
    }
    let world = World::new();
    let root = world.prefix.paths().root();
    fs::set_permissions(root, fs::Permissions::from_mode(0o500)).unwrap();
    let error = Prefix::open(root).unwrap_err();
    assert_eq!(
        (error.cause(), error.is_retryable()),
        (Cause::Denied, false),
        "{error}"
    );
    fs::set_permissions(root, fs::Permissions::from_mode(0o700)).unwrap();
}
