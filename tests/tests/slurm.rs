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

/// Commits a checkpoint after the other until the first rank finds that it should end.
const UNTIL_TOLD: &str = r#"
rank=$SLURM_PROCID size=$SLURM_NTASKS step=0
meet() {
    touch "SHARED/$1.$rank"
    while [ "$(ls SHARED | grep -c "^$1\.")" -lt "$size" ]; do sleep 0.02; done
}
while [ ! -e SHARED/ends.$step ]; do
    step=$((step + 1))
    if [ $rank = 0 ]; then mkdir /scr/ckpt.$step.tmp || exit 1; fi
    meet begun.$step
    echo "step $step of rank $rank" > /scr/ckpt.$step.tmp/rank.$rank || exit 1
    meet written.$step
    if [ $rank = 0 ]; then
        mv /scr/ckpt.$step.tmp /scr/ckpt.$step || exit 1
        if [ "$(cat /scr/.scr/should_exit)" = 1 ]; then echo $step > SHARED/ends.$step; fi
    fi
    meet committed.$step
done
"#;

/// The script of the guide as it stands there, but for its size, times and paths.
#[test]
fn the_batch_script_of_the_guide_ends_cleanly_when_slurm_warns() {
    let missing = slurm::missing();
    if !missing.is_empty() {
        let required = std::env::var_os("SCRFS_REQUIRE_ALL").is_some();
        assert!(!required, "no {missing:?}");
        eprintln!("left out: this machine has no {missing:?}");
        return;
    }
    let builder = Cluster::builder().nodes(3).shm_bytes(256 << 20);
    let cluster = builder.start().unwrap();
    let slurm = Slurm::start(&cluster).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in ["prefix", "shared"] {
        fs::create_dir(path(name)).unwrap();
    }
    let shared = path("shared").display().to_string();
    fs::write(path("app"), UNTIL_TOLD.replace("SHARED", &shared)).unwrap();
    let guide = include_str!("../../docs/guide/slurm.md");
    let script = guide.split("```\n").nth(1).unwrap();
    let mut script = script.to_owned();
    for (there, here) in [
        ("--nodes=5", "--nodes=3".to_owned()),
        ("--time=12:00:00", "--time=00:10:00".to_owned()),
        ("USR1@600", "USR1@60".to_owned()),
        ("-N4 -n64", "-N2 -n2".to_owned()),
        ("/pfs/me/run1", path("prefix").display().to_string()),
        ("./app", format!("sh {}", path("app").display())),
    ] {
        assert!(script.contains(there), "no {there} in {script}");
        script = script.replace(there, &here);
    }
    fs::write(path("job"), &script).unwrap();
    let programs = binary("scrfs").unwrap();
    let mut search = programs.parent().unwrap().as_os_str().to_owned();
    search.push(":");
    search.push(std::env::var_os("PATH").unwrap_or_default());
    let submitted = slurm
        .command(&cluster, "sbatch")
        .args(["--parsable", "--output"])
        .args([path("output"), path("job")])
        .current_dir(directory.path())
        .env("PATH", search)
        .output()
        .unwrap();
    let job = String::from_utf8_lossy(&submitted.stdout).trim().to_owned();
    assert!(
        submitted.status.success(),
        "{submitted:?}\n{}",
        slurm.logs()
    );
    let said = || fs::read_to_string(path("output")).unwrap_or_default();
    let wait_for = |what: &str, is_so: &dyn Fn() -> bool| {
        let waited = wait_until(SOON, what, || Ok(is_so().then_some(())));
        waited.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", said(), slurm.logs()));
    };
    wait_for("three checkpoints", &|| {
        path("shared").join("committed.3.1").exists()
    });
    // As Slurm does by itself a minute before the end.
    slurm
        .ask(&cluster, &["scancel", "--batch", "--signal=USR1", &job])
        .unwrap();
    wait_for("the end of the job", &|| {
        said().contains("all is taken down")
    });
    let said = said();
    assert!(said.contains("halted: SIGUSR1 came"), "{said}");
    let ends = fs::read_dir(path("shared")).unwrap().flatten();
    let mut ends = ends.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_prefix("ends.").map(str::to_owned)
    });
    let last = ends.next().unwrap();
    for rank in 0..2 {
        let kept = path("prefix").join(format!("ckpt.{last}/rank.{rank}"));
        let kept = fs::read_to_string(kept).unwrap_or_default();
        assert_eq!(kept, format!("step {last} of rank {rank}\n"), "{said}");
    }
}
