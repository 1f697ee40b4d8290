//! Workloads that move bytes: large files, through `read` and `write` and through mappings, by one
//! process and by four threads.
//!
//! A workload says what it needs in its directory before the clock starts, and what is timed. It
//! knows nothing of mounts: the same one runs on the raw store and on the mount.

use super::{Unit, Workload};
use crate::sys;
use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// Sizes of the requests, in bytes, and how people call them.
const REQUESTS: [(usize, &str); 3] = [
    (128 << 10, "128 KiB"),
    (1 << 20, "1 MiB"),
    (4 << 20, "4 MiB"),
];
/// Bytes of a request where only one size is measured.
const REQUEST_BYTES: usize = 1 << 20;
/// Threads that write at the same time.
const WRITERS: u64 = 4;

/// All of them, on files of `bytes` in all, which is a multiple of 16 MiB.
pub(super) fn workloads(bytes: u64) -> Vec<Workload> {
    let mut all = Vec::new();
    for (request, name) in REQUESTS {
        all.push(workload(
            format!("write a new file, {name} requests"),
            bytes,
            |_| Ok(()),
            move |dir| write(create(dir, "file")?, request, bytes),
        ));
        all.push(workload(
            format!("write over a file, {name} requests"),
            bytes,
            move |dir| prepare(dir, bytes),
            move |dir| write(open(dir, "file")?, request, bytes),
        ));
        all.push(workload(
            format!("read a file, {name} requests"),
            bytes,
            move |dir| prepare(dir, bytes),
            move |dir| read(&mut open(dir, "file")?, request, bytes),
        ));
    }
    all.push(workload(
        "write a new file through a mapping".into(),
        bytes,
        |_| Ok(()),
        move |dir| {
            let file = create(dir, "file")?;
            file.set_len(bytes).context("setting the file's length")?;
            let mut map = sys::map_shared(&file).context("mapping the file")?;
            map.chunks_mut(REQUEST_BYTES).for_each(|to| to.fill(0x5a));
            Ok(())
        },
    ));
    all.push(workload(
        "read a file through a mapping".into(),
        bytes,
        move |dir| prepare(dir, bytes),
        move |dir| {
            let map = sys::map_shared(&open(dir, "file")?).context("mapping the file")?;
            let mut block = vec![0; REQUEST_BYTES];
            for from in map.chunks_exact(REQUEST_BYTES) {
                block.copy_from_slice(from);
                std::hint::black_box(&block);
            }
            Ok(())
        },
    ));
    all.push(workload(
        format!("write {WRITERS} new files at once, 1 MiB requests"),
        bytes,
        |_| Ok(()),
        move |dir| {
            at_once(|writer| {
                let file = create(dir, &format!("file.{writer}"))?;
                write(file, REQUEST_BYTES, bytes / WRITERS)
            })
        },
    ));
    all.push(workload(
        format!("write one new file from {WRITERS} places, 1 MiB requests"),
        bytes,
        |_| Ok(()),
        move |dir| {
            create(dir, "file")?;
            at_once(|writer| {
                let file = open(dir, "file")?;
                let block = vec![0x5a; REQUEST_BYTES];
                let share = bytes / WRITERS;
                for request in 0..share / REQUEST_BYTES as u64 {
                    let offset = writer * share + request * REQUEST_BYTES as u64;
                    file.write_all_at(&block, offset).context("writing")?;
                }
                Ok(())
            })
        },
    ));
    all
}

/// A workload of `bytes`, of which only `timed` counts.
fn workload(
    name: String,
    bytes: u64,
    before: impl Fn(&Path) -> Result<()> + 'static,
    timed: impl Fn(&Path) -> Result<()> + 'static,
) -> Workload {
    Workload {
        name,
        amount: bytes as f64 / 1e9,
        unit: Unit::GigabytesPerSecond,
        run: Box::new(move |dir| {
            before(dir)?;
            let start = Instant::now();
            timed(dir)?;
            Ok(start.elapsed())
        }),
    }
}

fn create(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(name);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    options
        .open(&path)
        .with_context(|| format!("creating {}", path.display()))
}

fn open(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(name);
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}

fn prepare(dir: &Path, bytes: u64) -> Result<()> {
    fs::create_dir_all(dir)?;
    write(create(dir, "file")?, REQUEST_BYTES, bytes)
}

fn write(mut file: File, request: usize, bytes: u64) -> Result<()> {
    let block = vec![0x5a_u8; request];
    for _ in 0..bytes / request as u64 {
        file.write_all(&block).context("writing")?;
    }
    Ok(())
}

fn read(file: &mut File, request: usize, bytes: u64) -> Result<()> {
    let mut block = vec![0; request];
    for _ in 0..bytes / request as u64 {
        file.read_exact(&mut block).context("reading")?;
    }
    Ok(())
}

/// Runs `work` in all writers and waits for the last.
fn at_once(work: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || work(writer)))
            .collect();
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a writer panicked"))??;
        }
        Ok(())
    })
}
