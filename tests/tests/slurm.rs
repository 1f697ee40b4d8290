//! `scrfs run` in a job of Slurm: hosts, end and remote shell from Slurm, the application by `srun`.
//!
//! Slurm is Debian's, on the virtual cluster. One node of the job is lost while it runs.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

use scrfs_tests::{Cluster, Loss, Slurm, binary, slurm, wait_until};
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(90);

/// One rank of three; the checkpoint of each step has a file of each rank.
const RANK: &str = r#"
shared=$1 rank=$SLURM_PROCID size=$SLURM_NTASKS
meet() {
    touch "$shared/$SCRFS_LAUNCH.$1.$rank"
    while [ "$(ls "$shared" | grep -c "^$SCRFS_LAUNCH\.$1\.")" -lt "$size" ]; do sleep 0.02; done
}
step=0
if target=$(readlink /scr/.scr/restart); then
    step=${target##*.}
    echo "step $step of rank $rank" | cmp - /scr/.scr/restart/rank.$rank || exit 9
    echo "restart $step $(uname -n)" >> "$shared/log.$rank"
fi
while [ $step -lt 3 ]; do
    step=$((step + 1))
    if [ $rank = 0 ]; then mkdir /scr/ckpt.$step.tmp || exit 1; fi
    while [ ! -d /scr/ckpt.$step.tmp ]; do sleep 0.02; done
    meet $step.begin
    if [ $step = 3 ]; then
        touch "$shared/gate.$rank"
        while [ ! -e "$shared/go" ]; do sleep 0.02; done
    fi
    echo "step $step of rank $rank" > /scr/ckpt.$step.tmp/rank.$rank || exit 1
    meet $step.written
    if [ $rank = 0 ]; then mv /scr/ckpt.$step.tmp /scr/ckpt.$step || exit 1; sync /scr/ckpt.$step; fi
    meet $step.committed
done
"#;

#[test]
fn a_job_of_slurm_survives_a_lost_node() {
    let missing = slurm::missing();
    if !missing.is_empty() {
        assert!(
            std::env::var_os("SCRFS_REQUIRE_ALL").is_none(),
            "no {missing:?}"
        );
        eprintln!("left out: this machine has no {missing:?}");
        return;
    }
    let cluster = Cluster::builder()
        .nodes(4)
        .shm_bytes(256 << 20)
        .start()
        .unwrap();
    let slurm = Slurm::start(&cluster).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in ["prefix", "shared"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("rank.sh"), RANK).unwrap();
    know_each_other(&cluster, &slurm, &path("prefix"));
    let output = File::create(path("output")).unwrap();
    let mut job = slurm
        .command(&cluster, "salloc")
        .args(["--no-kill", "-N4", "--time=10", "--quiet"])
        .arg(binary("scrfs").unwrap())
        .args(["run", "--spares", "1", "--runs", "2", "--prefix"])
        .arg(path("prefix"))
        .arg("--log-dir")
        .arg(path("logs"))
        .args(["--", "srun", "-n3", "sh"])
        .args([path("rank.sh"), path("shared")])
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let said = || {
        let mut text = fs::read_to_string(path("output")).unwrap();
        for log in fs::read_dir(path("logs")).into_iter().flatten().flatten() {
            let name = log.file_name();
            if name.to_string_lossy().starts_with("epoch") {
                text += &format!("--- {}\n", name.display());
                text += &fs::read_to_string(log.path()).unwrap();
            }
        }
        text
    };
    let waited = wait_until(SOON, "all ranks at the gate", || {
        anyhow::ensure!(job.try_wait()?.is_none(), "it ended");
        Ok((0..3)
            .all(|rank| path("shared").join(format!("gate.{rank}")).exists())
            .then_some(()))
    });
    waited.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", said(), slurm.logs()));
    cluster.kill(2, Loss::Power).unwrap();
    fs::write(path("shared").join("go"), "").unwrap();
    let ended = wait_until(SOON, "the end of the job", || Ok(job.try_wait()?));
    let status = ended.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", said(), slurm.logs()));
    let said = said();
    assert!(status.success(), "{status}\n{said}\n{}", slurm.logs());
    assert!(
        said.contains("spare node4 takes the place of node2"),
        "{said}"
    );
    for rank in 0..3 {
        let log = fs::read_to_string(path("shared").join(format!("log.{rank}"))).unwrap();
        assert!(log.starts_with("restart 2 node"), "{log}\n{said}");
        let file = path("prefix").join(format!("ckpt.3/rank.{rank}"));
        assert_eq!(
            fs::read_to_string(file).unwrap(),
            format!("step 3 of rank {rank}\n")
        );
    }
}

/// What Slurm really prints is understood: nodes and their states, and the end of the job.
fn know_each_other(cluster: &Cluster, slurm: &Slurm, prefix: &Path) {
    let scrfs = binary("scrfs").unwrap();
    let asked = |words: &[&str]| {
        let output = slurm
            .command(cluster, "salloc")
            .args(["-N2", "--time=10", "--quiet"])
            .arg(&scrfs)
            .args(words)
            .arg("--prefix")
            .arg(prefix)
            .args(if words[0] == "run" {
                &["--", "srun", "true"][..]
            } else {
                &[]
            })
            .output()
            .unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text.into_owned())
    };
    let (code, text) = asked(&["nodes", "--check"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text, "node1  up    not mounted\nnode2  up    not mounted\n");
    let (code, text) = asked(&["run", "--halt-seconds", "100000"]);
    assert_eq!(code, Some(3), "{text}");
    assert!(
        text.contains("halted: no more than 100000 s of the allocation are left"),
        "{text}"
    );
}
