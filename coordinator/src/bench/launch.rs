//! The same measurement over MPI: four ranks of `scrfs-coordinator-mpi bench` under `mpirun`, on this
//! machine, by shared memory.

use super::{BenchError, Figure, Task};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How long the ranks may take, in seconds.
const PATIENCE_SECONDS: &str = "600";

/// What the ranks find, or `None` where there is no `mpirun` or no program for it.
pub fn bench_mpi(ranks: u32, task: &Task) -> Result<Option<Vec<Figure>>, BenchError> {
    let Some(program) = program() else {
        return Ok(None);
    };
    let Ok(version) = Command::new("mpirun").arg("--version").output() else {
        return Ok(None);
    };
    let is_open_mpi = String::from_utf8_lossy(&version.stdout).contains("Open MPI");
    let mut mpirun = Command::new("mpirun");
    mpirun.env("MPIEXEC_TIMEOUT", PATIENCE_SECONDS);
    if is_open_mpi {
        // More ranks than cores: who waits must let others work.
        mpirun.args(["--oversubscribe", "--bind-to", "none"]);
        mpirun.args(["--mca", "mpi_yield_when_idle", "1"]);
        for (name, value) in [("pml", "ob1"), ("btl", "self,vader")] {
            // What the site or the user has chosen wins.
            if std::env::var_os(format!("OMPI_MCA_{name}")).is_none() {
                mpirun.args(["--mca", name, value]);
            }
        }
        if nix::unistd::geteuid().is_root() {
            mpirun
                .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
                .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        }
    }
    mpirun.args(["-n", &ranks.to_string()]).arg(&program);
    let work = match task.work {
        super::Work::Encode => "encode",
        super::Work::Rebuild => "rebuild",
    };
    mpirun
        .args(["bench", work, "--directory"])
        .arg(&task.directory);
    mpirun.args(["--part", &(task.part_bytes >> 20).to_string()]);
    mpirun.args(["--runs", &task.runs.to_string()]);
    let output = mpirun
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| BenchError::Launch(format!("cannot run mpirun: {error}")))?;
    if !output.status.success() {
        let why = format!(
            "mpirun of {} ended with {}",
            program.display(),
            output.status
        );
        return Err(BenchError::Launch(why));
    }
    serde_json::from_slice(&output.stdout)
        .map(Some)
        .map_err(|error| BenchError::Launch(format!("their figures do not parse: {error}")))
}

/// The program of the ranks: beside this one.
fn program() -> Option<PathBuf> {
    let me = std::env::current_exe().ok()?;
    let program = me
        .parent()
        .unwrap_or(Path::new("."))
        .join("scrfs-coordinator-mpi");
    program.exists().then_some(program)
}
