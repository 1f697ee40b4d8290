//! What the demo knows of LAMMPS: its inputs, its thermo lines, and a run without scrfs to compare with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::RANKS;
use crate::Cluster;

/// Steps between checkpoints, as the inputs say.
pub(super) const STEPS: u64 = 50;
const MELT: &str = include_str!("../../demo/in.melt");
const RESTART: &str = include_str!("../../demo/in.restart");

/// That the programs of the demo are there.
pub(super) fn check() -> Result<()> {
    for (program, package) in [("lmp", "lammps"), ("mpirun", "openmpi-bin")] {
        let found = Command::new(program)
            .arg("-h")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if found.is_err() {
            bail!("the demo needs {program}: apt-get install {package}");
        }
    }
    Ok(())
}

/// Writes the two inputs, and gives their paths: from the beginning, and from a checkpoint.
pub(super) fn write_inputs(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    let (melt, restart) = (directory.join("in.melt"), directory.join("in.restart"));
    fs::write(&melt, MELT).context("writing in.melt")?;
    fs::write(&restart, RESTART).context("writing in.restart")?;
    Ok((melt, restart))
}

/// `mpirun .. lmp ..`, without its hosts.
pub(super) fn command(input: &Path, last: u64) -> Vec<String> {
    let ranks = RANKS.to_string();
    let input = input.display().to_string();
    let last = last.to_string();
    [
        "mpirun",
        "-n",
        &ranks,
        "--map-by",
        "node",
        "--bind-to",
        "none",
        "lmp",
        "-log",
        "none",
        "-in",
        &input,
        "-var",
        "last",
        &last,
    ]
    .map(String::from)
    .into()
}

/// The step of a line of thermo output, if it is one.
pub(super) fn thermo_step(line: &str) -> Option<u64> {
    let mut words = line.split_whitespace();
    let step = words.next()?.parse().ok()?;
    let numbers = words.map(|word| word.parse::<f64>().ok());
    let numbers: Option<Vec<f64>> = numbers.collect();
    // Step Temp E_pair E_mol TotEng Press
    (numbers?.len() == 5).then_some(step)
}

/// Prints a prefix directory, and gives the steps of its checkpoints.
pub(super) fn list_prefix(prefix: &Path, last: u64) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    let mut others = Vec::new();
    for entry in fs::read_dir(prefix).context("listing the prefix")? {
        let entry = entry.context("listing the prefix")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match name
            .strip_prefix("ckpt.")
            .and_then(|step| step.parse().ok())
        {
            Some(step) => found.push(step),
            None => others.push(name),
        }
    }
    found.sort_unstable();
    others.sort();
    let names: Vec<String> = found.iter().map(|step| format!("ckpt.{step}")).collect();
    println!(
        "$ ls -A PREFIX\n{}  {}",
        others.join("  "),
        names.join("  ")
    );
    println!("$ ls -l PREFIX/ckpt.{last}");
    for (name, bytes) in files(&prefix.join(format!("ckpt.{last}")))? {
        println!("{:>10}  {name}", bytes.len());
    }
    ensure!(found.contains(&last), "ckpt.{last} is not in the prefix");
    Ok(found)
}

fn files(directory: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let list = || format!("listing {}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(list)? {
        let path = entry.with_context(list)?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        files.push((
            name,
            fs::read(&path).with_context(|| format!("reading {}", path.display()))?,
        ));
    }
    files.sort();
    Ok(files)
}

/// What must come out.
pub(super) struct Reference {
    /// Its last thermo line.
    pub(super) last: String,
    directory: PathBuf,
}

impl Reference {
    /// Runs the same inputs on node0, in plain directories; `restart` is the step of the checkpoint to
    /// start again from, as the job did.
    ///
    /// The only change: the directory has its name from the beginning. On a plain file system the first
    /// rank's rename could take the directory away from a rank that has not opened its file yet.
    pub(super) fn run(
        cluster: &Cluster,
        directory: &Path,
        last: u64,
        restart: Option<u64>,
    ) -> Result<Self> {
        let plain = directory.join("plain");
        fs::create_dir(&plain).context("making a plain directory")?;
        let mut output = run_plain(cluster, &plain, MELT, restart.unwrap_or(last), None)?;
        if let Some(step) = restart {
            output = run_plain(cluster, &plain, RESTART, last, Some(step))?;
        }
        let is_last = |line: &&str| thermo_step(line) == Some(last);
        let line = output
            .lines()
            .rfind(is_last)
            .context("no last thermo line")?;
        Ok(Self {
            last: line.trim().to_owned(),
            directory: plain,
        })
    }

    /// Compares checkpoints with those of the prefix, and gives the number of files.
    pub(super) fn compare(&self, prefix: &Path, steps: &[u64]) -> Result<usize> {
        let mut count = 0;
        for step in steps {
            let name = format!("ckpt.{step}");
            let ours = files(&prefix.join(&name))?;
            let theirs = files(&self.directory.join(&name))?;
            let names = |files: &[(String, Vec<u8>)]| -> Vec<String> {
                files.iter().map(|(name, _)| name.clone()).collect()
            };
            ensure!(
                names(&ours) == names(&theirs),
                "{name} has other files: {:?}",
                names(&ours)
            );
            for ((file, our), (_, their)) in ours.iter().zip(&theirs) {
                ensure!(our == their, "{name}/{file} differs");
                count += 1;
            }
        }
        Ok(count)
    }
}

fn run_plain(
    cluster: &Cluster,
    plain: &Path,
    input: &str,
    last: u64,
    from: Option<u64>,
) -> Result<String> {
    let at = plain.display().to_string();
    let begin = from
        .map(|step| format!("{at}/ckpt.{step}/"))
        .unwrap_or_default();
    let lines: Vec<String> = input
        .lines()
        .filter(|line| !(line.starts_with("shell") && line.contains(" mv ")))
        .map(|line| {
            line.replace("/scr/.scr/restart/", &begin)
                .replace("/scr/", &format!("{at}/"))
        })
        .map(|line| line.replace(".tmp", ""))
        .collect();
    let path = plain.join(format!("in.{last}"));
    fs::write(&path, lines.join("\n") + "\n").context("writing an input")?;
    let command = command(&path, last);
    let (program, arguments) = command.split_first().context("an empty command")?;
    let output = cluster
        .command(0, program)
        .args(["--host", &format!("node0:{RANKS}")])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("running mpirun")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{}: {}\n{text}{}",
        program,
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thermo_lines_are_told_from_others() {
        let line = "     150    1.6468836    -4.750268            0   -2.2800198    5.8582032 ";
        assert_eq!(thermo_step(line), Some(150));
        for other in [
            "Step Temp E_pair E_mol TotEng Press",
            "1 2 3",
            "Nlocal: 8000 ave 1 2 3",
            "",
        ] {
            assert_eq!(thermo_step(other), None);
        }
    }

    #[test]
    fn the_inputs_checkpoint_as_often_as_we_think() {
        for input in [MELT, RESTART] {
            assert!(input.lines().any(|line| {
                line.split_whitespace().collect::<Vec<_>>() == ["run", &STEPS.to_string()]
            }));
        }
    }
}
