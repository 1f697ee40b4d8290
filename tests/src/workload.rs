//! A program whose checkpoints can be told right from wrong: every byte follows from seed, step,
//! rank and place. It knows nothing of scrfs but the path of the mount.
//!
//! Each rank writes one file a step, meets the others while half of it is written, writes the rest and
//! renames the directory for itself; with no barrier after its own close, unless that is asked for: where a
//! rank may be killed alone, in the middle of its file, only a barrier keeps the others from committing that.
//! Meetings are files in a
//! shared directory, so that no MPI is linked.

use crate::wait_until;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What one rank is to do.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The mount.
    pub mount: PathBuf,
    /// A directory all ranks share, for meetings and the log.
    pub shared: PathBuf,
    /// Which launch this is: meetings of another are not ours.
    pub launch: String,
    /// This rank.
    pub rank: u32,
    /// How many there are.
    pub size: u32,
    /// The last step.
    pub steps: u64,
    /// Bytes a rank and step.
    pub bytes: usize,
    /// Of the contents.
    pub seed: u64,
    /// Nobody renames before all have written.
    pub barrier: bool,
}

/// Ranks that do not come within this time will not come.
const PATIENCE: Duration = Duration::from_secs(120);

/// The content of one rank's file of one step.
pub fn content(seed: u64, step: u64, rank: u32, bytes: usize) -> Vec<u8> {
    let mut state = seed ^ step.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (u64::from(rank) << 40);
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        // splitmix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        content.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    content.truncate(bytes);
    content
}

/// Checks one rank's file of one step, wherever it lies.
pub fn verify(path: &Path, seed: u64, step: u64, rank: u32, bytes: usize) -> Result<()> {
    let mut found = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut found))
        .with_context(|| format!("reading {}", path.display()))?;
    let wanted = content(seed, step, rank, bytes);
    ensure!(
        found.len() == wanted.len(),
        "WRONG BYTES: {} has {} bytes, {} were written",
        path.display(),
        found.len(),
        wanted.len()
    );
    if let Some(at) = found
        .iter()
        .zip(&wanted)
        .position(|(one, other)| one != other)
    {
        anyhow::bail!(
            "WRONG BYTES: {} differs at {at}: {:#x} instead of {:#x}",
            path.display(),
            found[at],
            wanted[at]
        );
    }
    Ok(())
}

/// Name of one rank's file.
pub fn file_name(rank: u32) -> String {
    format!("rank.{rank}")
}

impl Workload {
    /// Restarts from what the mount offers, and goes on to the last step.
    pub fn run(&self) -> Result<()> {
        self.log("begun")?;
        let first = match fs::read_link(self.mount.join(".scr/restart")) {
            Ok(target) => {
                let name = target.file_name().unwrap_or_default().to_string_lossy();
                let step: u64 = name
                    .strip_prefix("ckpt.")
                    .and_then(|step| step.parse().ok())
                    .with_context(|| format!("restart names {name}"))?;
                let file = self.mount.join(".scr/restart").join(file_name(self.rank));
                if let Err(error) = verify(&file, self.seed, step, self.rank, self.bytes) {
                    self.log(&format!("restart {step}: {error:#}"))?;
                    return Err(error);
                }
                self.log(&format!("restart {step}"))?;
                step
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.log("restart 0")?;
                0
            }
            Err(error) => return Err(error).context("reading .scr/restart"),
        };
        for step in first + 1..=self.steps {
            self.step(step)
                .with_context(|| format!("step {step} of rank {}", self.rank))?;
        }
        self.log("finished")
    }

    fn step(&self, step: u64) -> Result<()> {
        let open = self.mount.join(format!("ckpt.{step}.tmp"));
        let committed = self.mount.join(format!("ckpt.{step}"));
        if self.rank == 0 {
            fs::create_dir(&open).context("mkdir")?;
        } else {
            wait_until(PATIENCE, "the directory of the step", || {
                Ok(open.is_dir().then_some(()))
            })?;
        }
        let content = content(self.seed, step, self.rank, self.bytes);
        let (half, rest) = content.split_at(self.bytes / 2);
        let mut file = File::create(open.join(file_name(self.rank))).context("create")?;
        file.write_all(half).context("write")?;
        self.meet(&step.to_string())?;
        file.write_all(rest).context("write")?;
        drop(file);
        if self.barrier {
            self.meet(&format!("{step}.written"))?;
        }
        fs::rename(&open, &committed).context("rename")?;
        self.log(&format!("committed {step}"))
    }

    /// Waits until all ranks of this launch are at this place.
    fn meet(&self, place: &str) -> Result<()> {
        let here = |rank| self.shared.join(format!("{}.{place}.{rank}", self.launch));
        File::create(here(self.rank))?;
        wait_until(PATIENCE, "the other ranks", || {
            Ok((0..self.size).all(|rank| here(rank).exists()).then_some(()))
        })
    }

    fn log(&self, line: &str) -> Result<()> {
        let path = self.shared.join(format!("log.{}", self.rank));
        let mut file = File::options().create(true).append(true).open(path)?;
        Ok(writeln!(file, "{} {line}", self.launch)?)
    }
}
