//! Commits that no rename asks for, across nodes: processes on two nodes play what frameworks do, in their
//! order, and one stops in the middle of a file; and LAMMPS itself.

#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use scrfs_tests::{Cluster, binary};
use std::fs;

/// `on N WORDS` runs WORDS on node N; `must` stops the script when a command fails. `slowly N FILE
/// NAME` begins a file on node N and returns when half of it is written; `go_on N NAME` lets it end.
const PRELUDE: &str = r#"
on() { node=$1; shift; "$RSH" "node$node" "$@"; }
must() { "$@" || { echo "FAILED: $*"; exit 7; }; }
must_not() { if "$@"; then echo "SUCCEEDED: $*"; exit 7; fi; }
slowly() {
    on $1 "exec 3> $2; echo half >&3; echo > /run/tmp/$3.open; \
           while [ ! -e /run/tmp/$3.go ]; do sleep 0.05; done; echo rest >&3" &
    while ! on $1 test -e /run/tmp/$3.open; do sleep 0.05; done
}
go_on() { must on $1 touch /run/tmp/$2.go; }
is_open() { on $1 test -e /scr/.scr/status/$2.open; }
# Still open after another dataset has gone through all that a commit needs.
stays_open() {
    must on 1 "mkdir /scr/fence.tmp && echo f > /scr/fence.tmp/f"
    fence=$((fence + 1))
    must on 2 mv -T /scr/fence.tmp /scr/fence.$fence
    must is_open 1 $1
}
seals() {
    tries=0
    while is_open 1 $1 || is_open 2 $1; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || { echo "IN VAIN: $1 is sealed"; exit 7; }
        sleep 0.1
    done
    must on 1 "ls /scr/.scr/status | grep -q '^$1[.]'"
}
says() { must on $1 "test \"\$(cat $2)\" = \"\$(printf '$3')\""; }
"#;

/// Runs a script as the program of a job on two nodes, with a profile.
fn job(profile: &str, settle: &str, files: &[(&str, &str)], script: &str) -> Result<()> {
    let cluster = Cluster::builder().nodes(2).shm_bytes(256 << 20).start()?;
    let site = tempfile::tempdir()?;
    let prefix = site.path().join("prefix");
    fs::create_dir(&prefix)?;
    for (name, text) in files {
        fs::write(site.path().join(name), text)?;
    }
    let path = site.path().join("program");
    fs::write(&path, format!("{PRELUDE}{script}"))?;
    let output = cluster
        .command(0, binary("scrfs")?)
        .args(["run", "--nodes", "node[1-2]", "--prefix"])
        .arg(&prefix)
        .arg("--rsh")
        .arg(cluster.rsh())
        .args(["--", "sh"])
        .arg(&path)
        .arg("{hosts}")
        .env("RSH", cluster.rsh())
        .env("SITE", site.path())
        .env("SCRFS_COMMIT_PROFILES", profile)
        .env("SCRFS_COMMIT_SETTLE_SECONDS", settle)
        .env("SCRFS_COMMIT_QUIET_SECONDS", settle)
        .env("SCRFS_COMMIT_GRACE_SECONDS", "1")
        // None is to make room for those that come after it.
        .env("SCRFS_STORE_COUNT", "100")
        .output()?;
    ensure!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn hf_trainer_commits_when_the_last_rank_of_any_node_has_written() -> Result<()> {
    job(
        "hf-trainer",
        "2",
        &[],
        r#"
d=/scr/checkpoint-500
must on 1 "mkdir $d && echo m > $d/model.safetensors && echo o > $d/optimizer.pt"
slowly 2 $d/rng_state_2.pth early
must on 1 "echo 0 > $d/rng_state_0.pth && echo 1 > $d/rng_state_1.pth"
must on 1 "echo '{}' > $d/trainer_state.json"
stays_open checkpoint-500
# This rank begins after rank 0 has written its last file.
slowly 2 $d/rng_state_3.pth late
go_on 2 early
stays_open checkpoint-500
go_on 2 late
seals checkpoint-500
for node in 1 2; do
    says $node $d/rng_state_2.pth 'half\nrest'
    says $node $d/rng_state_3.pth 'half\nrest'
    says $node $d/rng_state_1.pth 1
    says $node $d/trainer_state.json '{}'
done
must_not on 2 "echo x 2>/dev/null > $d/rng_state_4.pth"
"#,
    )
}

#[test]
fn orbax_commits_by_the_outermost_rename_or_by_the_marker_of_the_step() -> Result<()> {
    job(
        "orbax",
        "2",
        &[],
        r#"
t=/scr/7.orbax-checkpoint-tmp
must on 1 "mkdir $t && mkdir $t/state.orbax-checkpoint-tmp"
for node in 1 2; do must on $node "echo $node > $t/state.orbax-checkpoint-tmp/array.$node"; done
must on 1 "mv -T $t/state.orbax-checkpoint-tmp $t/state && echo ok > $t/commit_success.txt"
stays_open 7.orbax-checkpoint-tmp
must on 1 mv -T $t /scr/7
for node in 1 2; do says $node /scr/7/state/array.1 1; says $node /scr/7/state/array.2 2; done

must on 1 "mkdir /scr/8 && mkdir /scr/8/state"
slowly 2 /scr/8/state/array.2 array
must on 1 "echo 1 > /scr/8/state/array.1 && echo ok > /scr/8/state/commit_success.txt"
stays_open 8
must on 1 "echo ok > /scr/8/commit_success.txt"
stays_open 8
go_on 2 array
seals 8
for node in 1 2; do says $node /scr/8/state/array.2 'half\nrest'; done
"#,
    )
}

/// Two ranks on two nodes, each writing its own file.
const IN_MELT: &str = r#"
units           lj
atom_style      atomic
lattice         fcc 0.8442
region          box block 0 6 0 6 0 6
create_box      1 box
create_atoms    1 box
mass            1 1.0
velocity        all create 3.0 87287
pair_style      lj/cut 2.5
pair_coeff      1 1 1.0 1.0 2.5
fix             1 all nve
variable        n equal step
label           again
run             50
shell           mkdir /scr/restart.${n}
write_restart   /scr/restart.${n}/state.%
if              "${n} < 200" then "jump SELF again"
"#;

/// Reading checks the magic at the end of each file.
const IN_READ: &str = r#"
read_restart    /scr/restart.${n}/state.%
pair_style      lj/cut 2.5
pair_coeff      1 1 1.0 1.0 2.5
run             0
"#;

#[test]
fn lammps_itself_is_committed_directory_by_directory() -> Result<()> {
    job(
        "lammps",
        "2",
        &[("in.melt", IN_MELT), ("in.read", IN_READ)],
        r#"
must mpirun -n 2 --map-by node --bind-to none --host node1,node2 --mca plm_rsh_agent $RSH \
    lmp -log none -in $SITE/in.melt
for step in 50 100 150; do
    seals restart.$step
done
# Nobody begins another: it is the silence that commits.
seals restart.200
for step in 50 100 150 200; do
    for node in 1 2; do
        must on $node "test \"\$(ls /scr/restart.$step | wc -l)\" = 3"
        must on $node "lmp -log none -var n $step -in $SITE/in.read > /run/tmp/read.$step"
        must on $node "grep -q '864 atoms' /run/tmp/read.$step"
    done
    must_not on 1 "touch /scr/restart.$step/more 2>/dev/null"
done
"#,
    )
}

#[test]
fn a_program_that_knows_better_does_not_wait_for_what_a_trigger_settles_for() -> Result<()> {
    job(
        "hf-trainer",
        "3600",
        &[],
        r#"
for step in 1 2 3; do
    must on 1 "mkdir /scr/checkpoint-$step && echo m > /scr/checkpoint-$step/model"
    must on 1 "echo '{}' > /scr/checkpoint-$step/trainer_state.json"
    stays_open checkpoint-$step
done
must on 2 "echo 2 > /scr/checkpoint-1/of.2"
must on 2 setfattr -n user.scrfs.commit -v 1 /scr/checkpoint-1
must_not is_open 1 checkpoint-1
says 1 /scr/checkpoint-1/of.2 2
# To a name that looks temporary, and to a final one.
must on 2 mv -T /scr/checkpoint-2 /scr/checkpoint-2.tmp
must on 1 "echo more > /scr/checkpoint-2.tmp/more"
must on 2 mv -T /scr/checkpoint-3 /scr/final
says 1 /scr/final/model m
must_not on 1 "touch /scr/final/more 2>/dev/null"
"#,
    )
}

#[test]
fn megatron_commits_what_the_tracker_names_and_keeps_the_tracker() -> Result<()> {
    job(
        "megatron",
        "1",
        &[],
        r#"
for step in 0000010 0000020; do
    d=/scr/iter_$step
    must on 1 "mkdir -p $d/mp_rank_00 $d/mp_rank_01"
    for node in 1 2; do must on $node "echo $node > $d/mp_rank_0$((node - 1))/model_optim_rng.pt"; done
    stays_open iter_$step
    must on 1 "echo $step | sed 's/^0*//' | tr -d '\\n' > /scr/latest_checkpointed_iteration.txt"
    seals iter_$step
    for node in 1 2; do
        says $node $d/mp_rank_00/model_optim_rng.pt 1
        says $node $d/mp_rank_01/model_optim_rng.pt 2
    done
done
for node in 1 2; do says $node /scr/latest_checkpointed_iteration.txt 20; done
"#,
    )
}

#[test]
fn deepspeed_waits_for_ranks_that_write_after_latest() -> Result<()> {
    job(
        "deepspeed",
        "2",
        &[],
        r#"
d=/scr/global_step8
must on 1 "mkdir $d && echo 0 > $d/mp_rank_00_model_states.pt"
slowly 2 $d/zero_pp_rank_1_mp_rank_00_optim_states.pt late
must on 1 "echo 0 > $d/zero_pp_rank_0_mp_rank_00_optim_states.pt && printf global_step8 > /scr/latest"
stays_open global_step8
go_on 2 late
seals global_step8
for node in 1 2; do
    says $node $d/zero_pp_rank_1_mp_rank_00_optim_states.pt 'half\nrest'
    says $node /scr/latest global_step8
done
"#,
    )
}

#[test]
fn nemo_commits_when_the_mark_beside_the_checkpoint_is_removed() -> Result<()> {
    job(
        "nemo",
        "1",
        &[],
        r#"
d=/scr/model--step=5
must on 1 "touch /scr/model--step=5-unfinished && mkdir $d && echo 1 > $d/common.pt"
must on 2 "test -e /scr/model--step=5-unfinished && echo 2 > $d/__1_0.distcp"
stays_open model--step=5
must on 1 rm /scr/model--step=5-unfinished
seals model--step=5
for node in 1 2; do says $node $d/__1_0.distcp 2; must_not on $node test -e $d-unfinished; done
"#,
    )
}
