//! Workloads of names and small files, where a mount costs one or more round trips between the
//! kernel and the daemon for each call.

use super::{Unit, Workload};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of a small file.
const SMALL_BYTES: usize = 4096;

/// All of them, each on `files` small files in one directory.
pub(super) fn workloads(files: u32) -> Vec<Workload> {
    let workload = |name: &str, run: fn(&Path, u32) -> Result<Duration>| Workload {
        name: name.into(),
        amount: f64::from(files),
        unit: Unit::PerSecond,
        run: Box::new(move |dir| run(dir, files)),
    };
    vec![
        workload("create, write 4 KiB, close", |dir, files| {
            timed(|| each(dir, files, create))
        }),
        workload("open, read 4 KiB, close", |dir, files| {
            each(dir, files, create)?;
            timed(|| {
                each(dir, files, |path| {
                    let bytes = fs::read(path)?;
                    ensure!(bytes.len() == SMALL_BYTES, "{} bytes read", bytes.len());
                    Ok(())
                })
            })
        }),
        workload("stat", |dir, files| {
            each(dir, files, create)?;
            timed(|| each(dir, files, |path| Ok(fs::metadata(path).map(drop)?)))
        }),
        workload("entries listed by readdir", |dir, files| {
            each(dir, files, create)?;
            timed(|| {
                let listed = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?.len();
                ensure!(listed == files as usize, "{listed} of {files} listed");
                Ok(())
            })
        }),
        workload("rename in a directory", |dir, files| {
            each(dir, files, create)?;
            timed(|| {
                each(dir, files, |path| {
                    Ok(fs::rename(path, path.with_extension("done"))?)
                })
            })
        }),
        workload("unlink", |dir, files| {
            each(dir, files, create)?;
            timed(|| each(dir, files, |path| Ok(fs::remove_file(path)?)))
        }),
    ]
}

/// Where the time of "create, write, close" goes: each call's share, one after the other on the
/// same file, and the round trip itself, of an attribute that the kernel must ask the daemon for.
pub(super) fn calls(files: u32) -> Vec<Workload> {
    let workload = |name: &str, run: fn(&Path, u32) -> Result<Duration>| Workload {
        name: name.into(),
        amount: f64::from(files),
        unit: Unit::Microseconds,
        run: Box::new(move |dir| run(dir, files)),
    };
    vec![
        workload("open of a new file", |dir, files| Ok(phases(dir, files)?.0)),
        workload("first write, 4 KiB", |dir, files| Ok(phases(dir, files)?.1)),
        workload(
            "close after writing",
            |dir, files| Ok(phases(dir, files)?.2),
        ),
        workload(
            "getxattr of an absent name: one round trip",
            |dir, files| {
                let file = File::create_new(dir.join("file"))?;
                let start = Instant::now();
                for _ in 0..files {
                    match crate::sys::get_xattr(
                        std::os::fd::AsFd::as_fd(&file),
                        "user.absent".as_ref(),
                    ) {
                        Err(nix::errno::Errno::ENODATA) => {}
                        other => anyhow::bail!("getxattr of an absent name gave {other:?}"),
                    }
                }
                Ok(start.elapsed())
            },
        ),
    ]
}

/// Time spent in open, write and close.
fn phases(dir: &Path, files: u32) -> Result<(Duration, Duration, Duration)> {
    let block = [0x5a; SMALL_BYTES];
    let mut spent = <(Duration, Duration, Duration)>::default();
    for number in 0..files {
        let path = path(dir, number);
        let start = Instant::now();
        let mut file = File::create_new(&path).context("creating a small file")?;
        let opened = Instant::now();
        file.write_all(&block).context("writing a small file")?;
        let written = Instant::now();
        drop(file);
        spent.0 += opened - start;
        spent.1 += written - opened;
        spent.2 += written.elapsed();
    }
    Ok(spent)
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("rank_{number:06}"))
}

fn create(path: &Path) -> Result<()> {
    let mut file = File::create_new(path)?;
    Ok(file.write_all(&[0x5a; SMALL_BYTES])?)
}

fn each(dir: &Path, files: u32, work: impl Fn(&Path) -> Result<()>) -> Result<()> {
    for number in 0..files {
        let path = path(dir, number);
        work(&path).with_context(|| format!("at {}", path.display()))?;
    }
    Ok(())
}
