//! Programs that others wrote, against an open dataset, by both ways to the bytes: through the kernel
//! and through the daemon.
//!
//! `SCRFS_FSX_OPERATIONS` is how many operations each of the four runs of fsx does, `SCRFS_SEED` their
//! seed.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use scrfs_fuse_tests::coordinator::{Coordinator, Manners};
use scrfs_fuse_tests::mounted::{DATA_PATHS, DataPath, Place, text};
use scrfs_fuse_tests::{leave_out, tools};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;

/// A mount with an open dataset that everybody may use.
struct Site {
    place: Place,
    _coordinator: Coordinator,
}

impl Site {
    fn new(path: DataPath) -> Option<Self> {
        let place = Place::on_path(2048 * MIB, path)?;
        let coordinator = place.coordinator(1, Manners::default());
        let site = Self {
            place,
            _coordinator: coordinator,
        };
        fs::create_dir(site.dataset()).unwrap();
        fs::set_permissions(site.dataset(), fs::Permissions::from_mode(0o777)).unwrap();
        Some(site)
    }

    fn dataset(&self) -> PathBuf {
        self.place.mnt().join("suite.tmp")
    }
}

#[derive(Deserialize)]
struct Exceptions {
    exception: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    test: String,
    reason: String,
}

/// Runs pjdfstest in a directory; gives each test's verdict.
fn pjdfstest(directory: &Path, config: &Path) -> BTreeMap<String, String> {
    let elsewhere = tempfile::tempdir().unwrap();
    let output = Command::new(tools::pjdfstest())
        .arg("-c")
        .arg(config)
        .arg("-p")
        .arg(directory)
        .arg("-s")
        .arg(elsewhere.path())
        .output()
        .unwrap();
    let said = text(&output);
    let verdicts: BTreeMap<_, _> = said
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (name, verdict) = (words.next()?, words.next()?);
            let is_verdict = matches!(verdict, "ok" | "FAILED" | "skipped");
            (is_verdict && words.next().is_none() && name.contains("::"))
                .then(|| (name.to_owned(), verdict.to_owned()))
        })
        .collect();
    assert!(
        verdicts.len() > 390,
        "only {} tests: {said}",
        verdicts.len()
    );
    for (name, verdict) in &verdicts {
        if verdict == "FAILED" {
            let why: Vec<_> = said
                .lines()
                .skip_while(|line| !line.starts_with(name.as_str()))
                .take(3)
                .collect();
            eprintln!("{}", why.join("\n"));
        }
    }
    verdicts
}

#[test]
fn pjdfstest_passes_wherever_it_passes_on_tmpfs() {
    if !nix::unistd::geteuid().is_root() {
        leave_out("only root may become other users");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let config = scratch.path().join("pjdfstest.toml");
    fs::write(
        &config,
        r#"
        [features]
        posix_fallocate = {}
        rename_ctime = {}
        utime_now = {}
        utimensat = {}
        [settings]
        naptime = 0.01
        allow_remount = false
        [dummy_auth]
        entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
        "#,
    )
    .unwrap();
    let tmpfs = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::set_permissions(tmpfs.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let raw = pjdfstest(tmpfs.path(), &config);
    let list = fs::read_to_string("data/pjdfstest.toml").unwrap();
    let list: Exceptions = toml::from_str(&list).unwrap();
    let expected: BTreeSet<_> = list.exception.iter().map(|one| one.test.clone()).collect();
    for Exception { test, reason } in &list.exception {
        assert!(!reason.trim().is_empty(), "{test} has no reason");
        assert!(raw.contains_key(test), "there is no {test}");
    }
    for path in DATA_PATHS {
        let path_name = path.0;
        let Some(site) = Site::new(path) else {
            continue;
        };
        let ours = pjdfstest(&site.dataset(), &config);
        let failed: BTreeSet<_> = raw
            .iter()
            .filter(|(name, verdict)| *verdict == "ok" && ours.get(*name) != Some(verdict))
            .map(|(name, _)| name.clone())
            .collect();
        let count = |verdicts: &BTreeMap<String, String>, wanted: &str| {
            verdicts
                .values()
                .filter(|verdict| *verdict == wanted)
                .count()
        };
        println!(
            "{path_name}: {} pass of the {} that pass on tmpfs, {} skipped on both",
            count(&ours, "ok"),
            count(&raw, "ok"),
            count(&ours, "skipped")
        );
        let surprises: Vec<_> = failed.symmetric_difference(&expected).collect();
        assert!(
            surprises.is_empty(),
            "{path_name}: failed, or passed against expectation: {surprises:?}"
        );
    }
}

#[test]
fn fsx_finds_every_byte_where_it_wrote_it() {
    let operations = std::env::var("SCRFS_FSX_OPERATIONS").unwrap_or("30000".into());
    let seed = std::env::var("SCRFS_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand::random::<u32>);
    println!("SCRFS_SEED={seed}");
    let scratch = tempfile::tempdir().unwrap();
    let config = scratch.path().join("fsx.toml");
    for path in DATA_PATHS {
        let path_name = path.0;
        let Some(site) = Site::new(path) else {
            continue;
        };
        for maps in [true, false] {
            let weight = if maps { 10.0 } else { 0.0 };
            fs::write(
                &config,
                format!(
                    r#"
                    flen = 1048576
                    [opsize]
                    max = 131072
                    [weights]
                    close_open = 1.0
                    invalidate = {}
                    mapread = {weight}
                    mapwrite = {weight}
                    read = 10.0
                    write = 10.0
                    truncate = 5.0
                    fsync = 1.0
                    fdatasync = 1.0
                    posix_fallocate = 1.0
                    punch_hole = 2.0
                    sendfile = 2.0
                    posix_fadvise = 1.0
                    copy_file_range = 2.0
                    "#,
                    if maps { 1.0 } else { 0.0 }
                ),
            )
            .unwrap();
            let output = Command::new(tools::fsx())
                .arg("-f")
                .arg(&config)
                .arg("-P")
                .arg(scratch.path())
                .args(["-S", &seed.to_string(), "-N", &operations])
                .arg(site.dataset().join(format!("maps_{maps}")))
                .output()
                .unwrap();
            let said = text(&output);
            assert!(
                output.status.success(),
                "{path_name}, maps {maps}, seed {seed}: {said}"
            );
        }
        let written = fs::read(site.dataset().join("maps_true")).unwrap();
        let sealed = site.place.mnt().join("suite");
        fs::rename(site.dataset(), &sealed).unwrap();
        assert!(fs::read(sealed.join("maps_true")).unwrap() == written);
    }
}
