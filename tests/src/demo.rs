//! The demo: LAMMPS, unmodified, on a virtual cluster that loses a node; told so that a person can
//! follow it, and checked to the last byte.
//!
//! ```text
//! node0          scrfs run, mpirun          node1..4   one rank each          node5   a spare
//! /tmp/...       the parallel file system: prefix, inputs, logs; seen by all nodes
//! ```
//!
//! What must hold at the end: the job ended well although a node and its memory were lost; its last
//! thermo line and every checkpoint in the prefix are those of a run without scrfs that was restarted at
//! the same step.

mod lammps;
mod story;
mod watch;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::{Cluster, Loss, binary};
use lammps::Reference;
use story::Story;

/// Ranks, one a node; the node after them is the spare.
const RANKS: usize = 4;

/// A molecular dynamics job that survives the loss of a node
#[derive(Debug, clap::Parser)]
#[command(version)]
pub struct Demo {
    /// How the node is lost
    #[arg(long, value_enum, default_value = "power")]
    loss: Loss,
    /// Chooses node and moment
    #[arg(long)]
    seed: Option<u64>,
    /// Steps to run, a multiple of 50
    #[arg(long, default_value_t = 1000)]
    steps: u64,
    /// Keep the directory with prefix, inputs and logs
    #[arg(long)]
    keep: bool,
}

impl Demo {
    /// Tells the story; an error is a story that did not end well.
    pub fn run(&self) -> Result<()> {
        ensure!(
            self.steps.is_multiple_of(lammps::STEPS) && self.steps >= 6 * lammps::STEPS,
            "--steps is a multiple of {}, at least {}",
            lammps::STEPS,
            6 * lammps::STEPS
        );
        let scrfs = binary("scrfs")?;
        for name in ["scrfs-coordinator", "scrfs-coordinator-mpi"] {
            binary(name)?;
        }
        lammps::check()?;
        let mut directory = tempfile::Builder::new()
            .prefix("scrfs-demo-")
            .tempdir()
            .context("making a directory")?;
        directory.disable_cleanup(self.keep);
        let begun = Instant::now();
        let told = self.tell(&scrfs, directory.path().to_owned());
        if told.is_err() {
            directory.disable_cleanup(true);
            println!(
                "Logs of the failed demo are kept in {}",
                directory.path().display()
            );
        }
        told?;
        println!(
            "\nThe demo took {:.0} s. All is well.",
            begun.elapsed().as_secs_f64()
        );
        if self.keep {
            println!("Everything is kept in {}", directory.path().display());
        }
        Ok(())
    }

    fn tell(&self, scrfs: &std::path::Path, directory: PathBuf) -> Result<()> {
        let seed = self.seed.unwrap_or(1);
        let mut random = StdRng::seed_from_u64(seed);
        let victim = random.random_range(1..=RANKS);
        let checkpoints = self.steps / lammps::STEPS;
        let after = random.random_range(2..=checkpoints / 2);

        chapter("A cluster of five nodes and a launcher, on this machine");
        let cluster = Cluster::builder().nodes(RANKS + 1).start()?;
        println!(
            "node0 is the batch node, node1 to node{RANKS} compute, node{} is a spare. Each has its \
             own network,\nmounts and memory. The parallel file system is {}.",
            RANKS + 1,
            directory.display()
        );
        let mut story = Story::begin(&cluster, &directory, scrfs, self.steps)?;

        chapter(&format!(
            "The job runs; node{victim} is lost ({:?}) with its memory once checkpoint {after} is \
             safe and\n   a later one is under way (seed {seed})",
            self.loss
        ));
        let observer = if victim == 1 { 2 } else { 1 };
        story.watch_until_due(observer, after)?;
        story.show_status("Before the loss");
        cluster.kill(victim, self.loss)?;
        story.note(&format!(
            "node{victim} is lost, and all that was in its memory"
        ));

        story.watch_until_relaunched(observer)?;
        story.show_status("When the job is launched again");
        story.watch_until_ended(observer)?;
        story.show_status("At the end, before scrfs run unmounts");
        let job = story.end()?;

        chapter(
            "What the parallel file system has now: files, and nothing else is needed to use them",
        );
        let checkpoints = lammps::list_prefix(&directory.join("prefix"), self.steps)?;

        chapter("The same without scrfs and without a loss, restarted at the same step");
        let reference = Reference::run(&cluster, &directory, self.steps, job.restart)?;
        println!("with scrfs, a lost node and a spare:   {}", job.last);
        println!("plain directories, nothing lost:       {}", reference.last);
        if job.last != reference.last {
            bail!("the last thermo lines differ");
        }
        let files = reference.compare(&directory.join("prefix"), &checkpoints)?;
        println!(
            "They agree to the last digit; so do all {files} files of {} checkpoints, byte for byte.",
            checkpoints.len()
        );
        story.show_stages();
        Ok(())
    }
}

fn chapter(title: &str) {
    println!("\n== {title}\n");
}
