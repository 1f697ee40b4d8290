//! `scrfs run` on a virtual cluster: what it does when nodes, runs and epochs end.
//!
//! The application is a shell script that starts one shell a host by the remote shell: no MPI in it.
//! The coordinators are real, and need Open MPI's `mpirun`.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scrfs_tests::{Cluster, Loss, binary, wait_until};

mod halts;
mod losses;
mod mpich;
mod resume;
mod scavenge;
mod shells;
mod site;
mod torch;

use site::{GATE, LAST, RANKS, Run, SOON, Site};

fn content(step: u64, rank: usize) -> Vec<u8> {
    let line = format!("step {step} of rank {rank}\n");
    line.bytes().cycle().take(700_000).collect()
}

fn is_safe(status: &[String], step: u64) -> bool {
    let safe = ["protected", "flushing", "flushed"];
    let name = |state: &str| format!("ckpt.{step}.{state}");
    status
        .iter()
        .any(|entry| safe.iter().any(|state| entry.starts_with(&name(state))))
}

/// Every rank waits in the middle of the checkpoint at the gate, and the one before it is safe.
fn wait_at_gate(site: &Site, run: &mut Run, observer: usize) {
    let waited = wait_until(SOON, "all ranks at the gate", || {
        anyhow::ensure!(run.child.try_wait()?.is_none(), "it ended");
        let all = (0..RANKS).all(|rank| site.shared().join(format!("gate.{rank}")).exists());
        Ok((all && is_safe(&site.status(observer), GATE - 1)).then_some(()))
    });
    waited
        .unwrap_or_else(|error| panic!("{error:#}\n{:?}\n{}", site.status(observer), run.output()));
}

fn check_prefix(prefix: &Path) {
    for rank in 0..RANKS {
        let path = prefix.join(format!("ckpt.{LAST}/rank.{rank}"));
        assert!(
            fs::read(&path).unwrap() == content(LAST, rank),
            "{}",
            path.display()
        );
    }
}

fn a_node_is_lost(victim: usize, loss: Loss) {
    let site = Site::start(RANKS + 1);
    let job = site.job();
    let job: Vec<&str> = job.iter().map(String::as_str).collect();
    a_node_is_lost_from(&site, &job, victim, loss);
}

fn a_node_is_lost_from(site: &Site, job: &[&str], victim: usize, loss: Loss) {
    let run = site.run(&["--spares", "1"], job);
    let output = a_node_is_replaced(site, run, victim, loss);
    site.nothing_is_left(&[victim], &output);
}

/// What the run said.
fn a_node_is_replaced(site: &Site, mut run: Run, victim: usize, loss: Loss) -> String {
    wait_at_gate(site, &mut run, if victim == 1 { 2 } else { 1 });
    site.cluster.kill(victim, loss).unwrap();
    fs::write(site.shared().join("go"), "").unwrap();
    let output = run.expect(0);
    for rank in 0..RANKS {
        // The spare is where the lost node was, the others are where they were.
        let node = if rank + 1 == victim {
            RANKS + 1
        } else {
            rank + 1
        };
        let log = fs::read_to_string(site.shared().join(format!("log.{rank}"))).unwrap();
        assert_eq!(
            log,
            format!("restart {} node{node}\n", GATE - 1),
            "{output}"
        );
    }
    check_prefix(&site.prefix());
    output
}

#[test]
fn a_spare_takes_over_after_a_crash() {
    a_node_is_lost(2, Loss::Crash);
}

#[test]
fn a_spare_takes_over_after_a_loss_of_power() {
    a_node_is_lost(3, Loss::Power);
}

#[test]
fn the_first_node_is_not_special() {
    a_node_is_lost(1, Loss::Power);
}

#[test]
fn a_failed_run_is_launched_again_and_its_code_is_ours() {
    let site = Site::start(1);
    let mut run = site.run(
        &["--runs", "2"],
        &["sh", "-c", "echo hosts {hosts} {nnodes}; exit 7"],
    );
    let output = run.expect(7);
    assert_eq!(output.matches("\nhosts node1 1\n").count(), 2, "{output}");
    assert!(output.contains("2 launches, 2 epochs"), "{output}");
}

#[test]
fn what_fails_by_itself_is_not_launched_again_unasked() {
    let site = Site::start(1);
    let output = site.run(&[], &["sh", "-c", "exit 7"]).expect(7);
    assert!(output.contains("1 launch, 1 epoch"), "{output}");
    assert!(output.contains("--runs -1 launches it again"), "{output}");
}

/// A second launcher that is not there is no reason to lose what the first has made.
#[test]
fn a_launcher_that_cannot_be_run_is_told_from_the_application_and_all_is_flushed() {
    let site = Site::start(1);
    let script = "RSH node1 'mkdir /scr/ckpt.1.tmp && echo 1 > /scr/ckpt.1.tmp/f && \
                  mv -T /scr/ckpt.1.tmp /scr/ckpt.1'; exit 7";
    let script = script.replace("RSH", site.cluster.rsh().to_str().unwrap());
    let environment = [("SCRFS_FLUSH_EVERY", "10".into())];
    let options = ["--runs", "2", "--restart-cmd", "no-such-launcher {restart}"];
    let mut run = site.run_with(&environment, &options, &["sh", "-c", &script]);
    let output = run.expect(127);
    assert!(
        output.contains("launch 2 on node1: no-such-launcher /scr/ckpt.1\n"),
        "{output}"
    );
    assert!(
        output.contains("checkpoints, launcher error: cannot run no-such-launcher: "),
        "{output}"
    );
    let kept = fs::read_to_string(site.prefix().join("ckpt.1/f"));
    assert_eq!(kept.unwrap(), "1\n", "{output}");
}

#[test]
fn launches_that_come_to_nothing_do_not_follow_each_other_without_a_pause() {
    let site = Site::start(1);
    let mut run = site.run(&["--runs", "-1"], &["sh", "-c", "exit 7"]);
    run.wait_for("3 launches in a row came to nothing: the next one in 2 s");
    let pid = Pid::from_raw(i32::try_from(run.child.id()).unwrap());
    kill(pid, Signal::SIGUSR1).unwrap();
    let output = run.expect(7);
    assert!(output.contains("3 launches, 3 epochs"), "{output}");
}

#[test]
fn a_checkpoint_that_the_application_died_from_twice_is_not_tried_again() {
    let site = Site::start(1);
    let script = r#"
from=$(readlink /scr/.scr/restart || echo nothing)
echo "from $from"
step() { mkdir /scr/$1.tmp && echo $1 > /scr/$1.tmp/data && mv -T /scr/$1.tmp /scr/$1; }
case $from in
nothing) step ckpt.1 && step ckpt.2; exit 3;;
../ckpt.2) exit 4;;
*) step ckpt.3;;
esac
"#;
    let path = site.shared().join("app.sh");
    fs::write(&path, script).unwrap();
    let rsh = site.cluster.rsh().display().to_string();
    let app = ["node1", "sh", path.to_str().unwrap()];
    let launcher = [&[rsh.as_str()][..], &app].concat();
    let output = site.run(&["--runs", "4"], &launcher).expect(0);
    assert_eq!(output.matches("\nfrom ../ckpt.2\n").count(), 2, "{output}");
    assert!(output.contains("ckpt.2 is marked failed"), "{output}");
    assert!(output.contains("\nfrom ../ckpt.1\n"), "{output}");
    assert!(site.prefix().join("ckpt.3/data").exists(), "{output}");
}

#[test]
fn a_host_that_does_not_come_up_is_replaced_before_the_first_launch() {
    let site = Site::start(3);
    site.cluster.kill(1, Loss::Crash).unwrap();
    let mut run = site.run(&["--spares", "1"], &["echo", "on", "{hosts}"]);
    let output = run.expect(0);
    assert!(output.contains("\non node3,node2\n"), "{output}");
}

#[test]
fn too_few_nodes_are_said_and_fewer_are_used_if_allowed() {
    let site = Site::start(2);
    site.cluster.kill(2, Loss::Crash).unwrap();
    let output = site.run(&[], &["echo", "on", "{hosts}"]).expect(1);
    assert!(
        output.contains("1 nodes are left, and at least 2 are needed"),
        "{output}"
    );
    let output = site
        .run(&["--min-nodes", "1"], &["echo", "on", "{hosts}"])
        .expect(0);
    assert!(output.contains("\non node1\n"), "{output}");
}

/// Written by three nodes; read, after one of them is gone, on each of the two that are left.
#[test]
fn fewer_nodes_read_all_that_more_have_written() {
    let site = Site::start(3);
    let script = r#"
cd SHARED
if [ ! -e written ]; then
    RSH node1 mkdir /scr/ckpt.1.tmp || exit 1
    for n in 1 2 3; do
        RSH node$n "cd /scr/ckpt.1.tmp && head -c ${n}300001 /dev/urandom > of.$n && md5sum of.$n > sum.$n"
    done
    RSH node1 "mv -T /scr/ckpt.1.tmp /scr/ckpt.1 && sync /scr/ckpt.1" || exit 2
    touch written
    while :; do sleep 0.05; done
fi
for n in 1 2; do
    RSH node$n "cd /scr/ckpt.1 && cat sum.1 sum.2 sum.3 | md5sum --check --quiet" || exit 3
    RSH node$n "test \"\$(ls /scr/ckpt.1 | wc -l)\" = 6" || exit 4
    echo "all read on node$n"
done
"#;
    let script = script
        .replace("SHARED", site.shared().to_str().unwrap())
        .replace("RSH", site.cluster.rsh().to_str().unwrap());
    let options = ["--min-nodes", "2", "--runs", "-1"];
    let mut run = site.run(&options, &["sh", "-c", &script]);
    let written = site.shared().join("written");
    wait_until(SOON, "the checkpoint is protected", || {
        Ok(written.exists().then_some(()))
    })
    .unwrap();
    site.cluster.kill(3, Loss::Crash).unwrap();
    let output = run.expect(0);
    assert!(output.contains("all read on node1"), "{output}");
    assert!(output.contains("all read on node2"), "{output}");
}

/// The job after finds it in the prefix, and reads it there.
#[test]
fn a_restart_reads_the_prefix_in_place_if_it_is_to() {
    let site = Site::start(2);
    let rsh = site.cluster.rsh();
    let write = "for it in 1 2 3; do
            RSH node1 mkdir /scr/ckpt.$it.tmp && RSH node2 \"echo of node2 > /scr/ckpt.$it.tmp/f\" &&
            RSH node1 mv -T /scr/ckpt.$it.tmp /scr/ckpt.$it || exit
        done";
    let write = write.replace("RSH", rsh.to_str().unwrap());
    site.run(&["--job", "before"], &["sh", "-c", &write])
        .expect(0);
    // Not from the newest: a file of it was cut.
    fs::write(site.prefix().join("ckpt.3/f"), "of").unwrap();
    let read = "for node in node1 node2; do
            RSH $node 'readlink /scr/.scr/restart; cat /scr/.scr/restart/f; ls /scr/.scr/status'
        done
        cat $1/f
        # The next one is in the caches again, and so is what is restarted from.
        RSH node1 'mkdir /scr/ckpt.4.tmp && echo 4 > /scr/ckpt.4.tmp/f && mv -T /scr/ckpt.4.tmp /scr/ckpt.4'
        RSH node2 readlink /scr/.scr/restart
        # What a restart has wanted is not superfluous before the epoch ends.
        RSH node1 SCRFS wait --for flushed ckpt.4
        ls -d $1/../ckpt.?";
    let scrfs = binary("scrfs").unwrap();
    let read = read.replace("RSH", rsh.to_str().unwrap());
    let read = read.replace("SCRFS", scrfs.to_str().unwrap());
    let bypass = [
        ("SCR_FETCH_BYPASS", "1".into()),
        ("SCR_PREFIX_SIZE", "1".into()),
    ];
    let restart = format!("sh -c '{}' sh {{restart}}", read.replace('\'', "'\\''"));
    let options = ["--job", "after", "--restart-cmd", &restart];
    let output = site.run_with(&bypass, &options, &["false"]).expect(0);
    let place = site.prefix().join("ckpt.2").display().to_string();
    let lines = |line: &str| output.lines().filter(|it| *it == line).count();
    assert_eq!(lines(&place), 2, "{output}");
    assert_eq!(lines("of node2"), 3, "{output}");
    assert_eq!(lines("ckpt.2.evicted"), 2, "{output}");
    assert_eq!(lines("../ckpt.4"), 1, "{output}");
    let left = |number: u32| lines(&format!("{place}/../ckpt.{number}"));
    assert_eq!([1, 2, 3, 4].map(left), [0, 1, 1, 1], "{output}");
    assert!(output.contains(&format!("restart in place, from {place}")));
}

#[test]
fn a_signal_goes_to_the_application_and_ends_the_job() {
    let site = Site::start(1);
    let script = "trap 'echo got it; exit 5' TERM; echo begun; while :; do sleep 0.05; done";
    let mut run = site.run(&["--runs", "-1"], &["sh", "-c", script]);
    run.wait_for("begun");
    let pid = Pid::from_raw(i32::try_from(run.child.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let output = run.expect(5);
    assert!(
        output.contains("\ngot it\n") && output.contains("1 launch"),
        "{output}"
    );
}

/// Nothing else that is started may take of it: daemons, coordinators, remote shells.
#[test]
fn standard_input_is_the_applications() {
    let site = Site::start(2);
    let lines: Vec<String> = (0..5000).map(|line| format!("line {line}")).collect();
    let script = "sleep 0.2; wc -l; echo to standard error >&2";
    let input = lines.join("\n") + "\n";
    let output = site.run_fed(&input, &[], &["sh", "-c", script]).expect(0);
    assert!(output.contains("\n5000\n"), "{output}");
    assert!(output.contains("\nto standard error\n"), "{output}");
    // What one launch has left of it is the next one's.
    let script = "read line && echo \"read $line\"; exit 7";
    let options = ["--runs", "2"];
    let output = site
        .run_fed("one\ntwo\n", &options, &["sh", "-c", script])
        .expect(7);
    assert!(output.contains("\nread one\n"), "{output}");
    assert!(output.contains("\nread two\n"), "{output}");
}

#[test]
fn an_epoch_that_ends_is_renewed_under_a_running_application() {
    let site = Site::start(2);
    let go = site.directory.path().join("go");
    let script = format!(
        "echo begun; while [ ! -e {} ]; do sleep 0.05; done",
        go.display()
    );
    let mut run = site.run(&[], &["sh", "-c", &script]);
    run.wait_for("begun");
    let pid = coordinator_of(&site.cluster, 2);
    kill(pid, Signal::SIGKILL).unwrap();
    run.wait_for("epoch 2 is ready");
    fs::write(&go, "").unwrap();
    let output = run.expect(0);
    assert!(output.contains("1 launch, 2 epochs"), "{output}");
}

/// Stops the ranks of the first launch that have come to the gate; the second launch finds it open.
#[test]
fn a_hang_is_noticed_its_stacks_are_saved_and_it_is_launched_again() {
    let site = Site::start(RANKS);
    let job = site.job();
    let job: Vec<&str> = job.iter().map(String::as_str).collect();
    let logs = site.directory.path().join("logs");
    let logs_name = logs.display().to_string();
    let options = [
        "--runs",
        "2",
        "--hang-timeout",
        "3",
        "--kill-after",
        "1",
        "--log-dir",
        &logs_name,
    ];
    let mut run = site.run(&options, &job);
    wait_at_gate(&site, &mut run, 1);
    let rank = rank_of(&site, 2);
    kill(rank, Signal::SIGSTOP).unwrap();
    fs::write(site.shared().join("go"), "").unwrap();
    run.wait_for("nothing has moved for 3 s");
    let output = run.expect(0);
    assert!(
        output.contains("launch 1: ") && output.contains("hung: "),
        "{output}"
    );
    assert!(
        output.contains("launch 2: ") && output.contains("finished"),
        "{output}"
    );
    for rank in 0..RANKS {
        let log = fs::read_to_string(site.shared().join(format!("log.{rank}"))).unwrap();
        assert!(
            log.starts_with(&format!("restart {} ", GATE - 1)),
            "{log}\n{output}"
        );
    }
    check_prefix(&site.prefix());
    let stacks = fs::read_to_string(logs.join("stacks.node2.log")).unwrap();
    assert!(stacks.contains(&format!("process {rank}: sh ")), "{stacks}");
    // These nodes see each other's processes, and one may look while another's debugger holds it.
    let all = (1..=RANKS)
        .filter_map(|node| fs::read_to_string(logs.join(format!("stacks.node{node}.log"))).ok());
    let all: String = all.collect();
    assert!(all.contains("(stopped)"), "{all}");
}

/// The shell that is the rank of a node.
fn rank_of(site: &Site, node: usize) -> Pid {
    let pids = site.cluster.processes(node).unwrap();
    let is_rank = |pid: &&u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
        words.first() == Some(&&b"sh"[..])
            && words.get(1).is_some_and(|word| word.ends_with(b"rank.sh"))
    };
    let found = pids.iter().find(is_rank).expect("a rank runs");
    Pid::from_raw(i32::try_from(*found).unwrap())
}

#[test]
fn a_heartbeat_of_its_own_keeps_a_silent_application_alive() {
    let site = Site::start(1);
    let script = "echo begun; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do $RSH node1 'echo >/scr/.scr/heartbeat'; sleep 0.25; done";
    let script = script.replace("$RSH", site.cluster.rsh().to_str().unwrap());
    let options = ["--hang-timeout", "2", "--kill-after", "1"];
    let output = site.run(&options, &["sh", "-c", &script]).expect(0);
    assert!(!output.contains("nothing has moved"), "{output}");
    let options = [&options[..], &["--runs", "1"]].concat();
    let output = site.run(&options, &["sleep", "1000"]).expect(1);
    assert!(output.contains("hung: nothing moved for 2 s"), "{output}");
}

/// Silent for longer than it might be, were it not for the flush of what it has committed.
#[test]
fn a_flush_gives_a_silent_application_more_time() {
    let site = Site::start(1);
    let script = "RSH node1 'mkdir /scr/ckpt.1.tmp && head -c 40M /dev/zero > /scr/ckpt.1.tmp/f && \
                  mv -T /scr/ckpt.1.tmp /scr/ckpt.1'; sleep 6";
    let script = script.replace("RSH", site.cluster.rsh().to_str().unwrap());
    let slow = [("SCRFS_FLUSH_BANDWIDTH", "4MiB".into())];
    let options = ["--hang-timeout", "3", "--kill-after", "1"];
    let mut run = site.run_with(&slow, &options, &["sh", "-c", &script]);
    let output = run.expect(0);
    assert!(!output.contains("nothing has moved"), "{output}");
    assert!(output.contains("everything is flushed"), "{output}");
}

/// The application obeys `.scr/should_exit`, and another machine asks for its end.
#[test]
fn a_halt_is_seen_by_programs_and_there_is_no_further_launch() {
    let site = Site::start(2);
    let script = r#"
step=0
while [ "$(RSH node2 cat /scr/.scr/should_exit)" = 0 ]; do
    step=$((step + 1))
    RSH node1 "mkdir /scr/ckpt.$step.tmp && echo $step > /scr/ckpt.$step.tmp/f && mv -T /scr/ckpt.$step.tmp /scr/ckpt.$step" || exit 3
    echo step $step
done
exit 7
"#;
    let script = script.replace("RSH", site.cluster.rsh().to_str().unwrap());
    let mut run = site.run(&["--runs", "-1"], &["sh", "-c", &script]);
    run.wait_for("\nstep 2\n");
    let prefix = site.prefix().display().to_string();
    let halt = |options: &[&str]| {
        let mut command = Command::new(binary("scrfs").unwrap());
        let output = command
            .args(["halt", "--prefix", &prefix])
            .args(options)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    halt(&["--checkpoints", "2"]);
    let output = run.expect(7);
    assert!(
        output.contains("asked it to end after 2 more checkpoints"),
        "{output}"
    );
    assert!(output.contains("1 launch, 1 epoch"), "{output}");
    let base: u64 = {
        let listed = halt(&["--list"]);
        let number = listed.split("from number ").nth(1).expect("it was counted");
        number.split(' ').next().unwrap().parse().unwrap()
    };
    assert!(base >= 2, "{output}");
    // More may have been made before it was seen; the last one is flushed in any case.
    let mut steps = output.lines().filter_map(|line| line.strip_prefix("step "));
    let last: u64 = steps.next_back().unwrap().parse().unwrap();
    assert!(last >= base + 2, "{output}");
    let kept = site.prefix().join(format!("ckpt.{last}/f"));
    assert!(kept.exists(), "{}\n{output}", kept.display());
    // Nothing is launched as long as the condition is there.
    let output = site.run(&[], &["echo", "launched"]).expect(3);
    assert!(
        output.contains("halted: ") && !output.contains("\nlaunched\n"),
        "{output}"
    );
    halt(&["--clear", "all"]);
    let output = site.run(&[], &["echo", "launched"]).expect(0);
    assert!(output.contains("\nlaunched\n"), "{output}");
}

#[test]
fn a_halt_now_ends_an_application_that_does_not_look() {
    let site = Site::start(1);
    let script = "trap '' TERM; echo begun; while :; do sleep 0.05; done";
    let mut run = site.run(
        &["--runs", "-1", "--kill-after", "1"],
        &["sh", "-c", script],
    );
    run.wait_for("begun");
    let prefix = site.prefix();
    let mut halt = Command::new(binary("scrfs").unwrap());
    halt.args(["halt", "--now", "--prefix"]).arg(&prefix);
    assert!(halt.status().unwrap().success());
    let output = run.expect(1);
    assert!(
        output.contains("did not end when asked, and is killed"),
        "{output}"
    );
    assert!(output.contains("1 launch, 1 epoch"), "{output}");
}

/// SIGUSR1 is how batch systems warn of the end: nothing is relaunched, and programs may know.
#[test]
fn a_warning_of_the_batch_system_halts() {
    let site = Site::start(1);
    let script = r#"echo begun; while [ "$(RSH node1 cat /scr/.scr/should_exit)" = 0 ]; do sleep 0.02; done; exit 4"#;
    let script = script.replace("RSH", site.cluster.rsh().to_str().unwrap());
    let mut run = site.run(&["--runs", "-1"], &["sh", "-c", &script]);
    run.wait_for("begun");
    let pid = Pid::from_raw(i32::try_from(run.child.id()).unwrap());
    kill(pid, Signal::SIGUSR1).unwrap();
    let output = run.expect(4);
    assert!(output.contains("to halt: SIGUSR1 came"), "{output}");
    assert!(output.contains("1 launch, 1 epoch"), "{output}");
}

/// Two nodes lost one after the other, and one spare: the end is said, and what was protected is flushed.
#[test]
fn when_spares_are_exhausted_what_is_left_is_flushed() {
    let site = Site::start(4);
    let script = r#"
cd SHARED
if [ ! -e written ]; then
    RSH node1 mkdir /scr/ckpt.1.tmp || exit 1
    for n in 1 2 3; do RSH node$n "echo part $n > /scr/ckpt.1.tmp/of.$n" || exit 1; done
    RSH node1 "mv -T /scr/ckpt.1.tmp /scr/ckpt.1 && sync /scr/ckpt.1" || exit 2
    touch written
else
    touch "again.$SCRFS_LAUNCH"
fi
while :; do sleep 0.05; done
"#;
    let script = script
        .replace("SHARED", site.shared().to_str().unwrap())
        .replace("RSH", site.cluster.rsh().to_str().unwrap());
    let options = ["--spares", "1", "--runs", "-1"];
    let mut run = site.run(&options, &["sh", "-c", &script]);
    let exists = |run: &mut Run, what: &str, is: &dyn Fn(&str) -> bool| {
        let waited = wait_until(SOON, what, || {
            anyhow::ensure!(run.child.try_wait()?.is_none(), "it ended");
            let names = fs::read_dir(site.shared())?.flatten();
            let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
            Ok(names.any(|name| is(&name)).then_some(()))
        });
        waited.unwrap_or_else(|error| panic!("{error:#}\n{}", run.output()));
    };
    exists(&mut run, "the checkpoint is protected", &|name| {
        name == "written"
    });
    site.cluster.kill(2, Loss::Crash).unwrap();
    exists(&mut run, "the second launch", &|name| {
        name.starts_with("again")
    });
    site.cluster.kill(3, Loss::Power).unwrap();
    let output = run.expect(1);
    assert!(
        output.contains("spare node4 takes the place of node2"),
        "{output}"
    );
    assert!(
        output.contains("2 nodes are left, and at least 3 are needed"),
        "{output}"
    );
    assert!(output.contains("everything is flushed"), "{output}");
    for n in 1..=3 {
        let kept = fs::read_to_string(site.prefix().join(format!("ckpt.1/of.{n}")));
        assert_eq!(kept.unwrap(), format!("part {n}\n"), "{output}");
    }
}

/// What stands for `torchrun`: says how it was called, and waits or fails as it is told.
const TORCHRUN: &str = r#"#!/bin/sh
echo "torchrun on $(uname -n): $*" >> "$SCRFS_TEST_SHARED/calls"
trap 'echo "asked on $(uname -n)" >> "$SCRFS_TEST_SHARED/calls"; exit 9' TERM
for word; do last=$word; done
case $last in
    wait) while :; do sleep 0.02; done;;
    fail) if [ "$(uname -n)" = node2 ]; then exit 6; fi; while :; do sleep 0.02; done;;
esac
"#;

#[test]
fn torchrun_is_started_on_each_host() {
    let site = Site::start(2);
    let torchrun = site.shared().join("torchrun");
    fs::write(&torchrun, TORCHRUN).unwrap();
    fs::set_permissions(&torchrun, fs::Permissions::from_mode(0o755)).unwrap();
    let launcher = torchrun.display().to_string();
    let start = |what: &str| {
        let _ = fs::remove_file(site.shared().join("calls"));
        let environment = [("SCRFS_TEST_SHARED", site.shared())];
        site.run_with(
            &environment,
            &["--kill-after", "20"],
            &[&launcher, "--nproc-per-node=2", what],
        )
    };
    let calls = || fs::read_to_string(site.shared().join("calls")).unwrap_or_default();
    let output = start("train.py").expect(0);
    for (rank, host) in ["node1", "node2"].into_iter().enumerate() {
        let call = format!(
            "torchrun on {host}: --nnodes=2 --node_rank={rank} --master_addr=node1 --master_port=29501 \
             --nproc-per-node=2 train.py\n"
        );
        assert!(calls().contains(&call), "{}\n{output}", calls());
    }
    // The first failure ends the others, and its code is ours.
    let output = start("fail").expect(6);
    assert!(
        output.contains("on node2: exit code 6; ending the others"),
        "{output}"
    );
    // A signal gets to all hosts.
    let mut run = start("wait");
    let begun = wait_until(SOON, "both to run", || {
        Ok((calls().matches("torchrun on").count() == 2).then_some(()))
    });
    begun.unwrap_or_else(|error| panic!("{error:#}\n{}", run.output()));
    let pid = Pid::from_raw(i32::try_from(run.child.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let output = run.expect(9);
    let asked = wait_until(SOON, "both to be asked", || {
        // More than once, perhaps.
        let asked = |host: &str| calls().contains(&format!("asked on {host}"));
        Ok((asked("node1") && asked("node2")).then_some(()))
    });
    asked.unwrap_or_else(|error| panic!("{error:#}\n{}\n{output}", calls()));
}

#[test]
fn nodes_are_looked_at_and_reasons_given() {
    let site = Site::start(3);
    site.cluster.kill(3, Loss::Power).unwrap();
    let mut full = site.cluster.command(2, "sh");
    full.args(["-c", "head -c 250M /dev/zero > /dev/shm/taken"]);
    assert!(full.status().unwrap().success());
    let output = site
        .cluster
        .command(0, binary("scrfs").unwrap())
        .args([
            "nodes",
            "--check",
            "--json",
            "--nodes",
            "node[0-3]",
            "--exclude",
            "node0",
        ])
        .args(["--check-timeout", "5", "--rsh"])
        .arg(site.cluster.rsh())
        .arg("--prefix")
        .arg(site.prefix())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let nodes: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let reason = |name: &str| {
        let node = nodes
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["node"] == name);
        let reason = &node.unwrap_or_else(|| panic!("{nodes}"))["reason"];
        reason.as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(reason("node0"), "excluded by the user");
    assert_eq!(reason("node1"), "");
    assert!(reason("node2").contains("/dev/shm has "), "{nodes}");
    assert!(!reason("node3").is_empty(), "{nodes}");
}

fn coordinator_of(cluster: &Cluster, node: usize) -> Pid {
    let pids = cluster.processes(node).unwrap();
    let is_coordinator = |pid: &&u32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|&byte| byte == 0).next().is_some_and(is_it))
    };
    let is_found = pids
        .iter()
        .find(is_coordinator)
        .expect("a coordinator runs");
    Pid::from_raw(i32::try_from(*is_found).unwrap())
}

fn is_it(program: &[u8]) -> bool {
    program.ends_with(b"scrfs-coordinator-mpi")
}

#[test]
fn wrong_usage_is_told_from_failure() {
    let scrfs = binary("scrfs").unwrap();
    for options in [
        &["--nodes", "a,b", "--spares", "2"][..],
        &["--nodes", "a[1-"],
        &["--hostfile", "/no/such/file"],
        &["--nodes", "a", "--runs", "0"],
        &[],
    ] {
        let output = Command::new(&scrfs)
            .arg("run")
            .args(options)
            .args(["--", "true"])
            .output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

/// A thousand failures in three hours are in the events of the prefix when the job begins.
#[test]
fn all_nodes_advise_by_what_failed_before() {
    let site = Site::start(2);
    let events = site.prefix().join(".scrfs");
    fs::create_dir(&events).unwrap();
    let lines: String = (0..1000u64)
        .map(|number| {
            let at = |seconds: u64| {
                let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
                format!("2026-03-04T{hour:02}:{minute:02}:{second:02}Z")
            };
            let (begin, end) = (at(number * 12), at(number * 12 + 10));
            format!(
                r#"{{"time":"{begin}","event":"launched","job":"j","launch":1}}
{{"time":"{end}","event":"launch_ended","job":"j","duration_ms":10000,"cause":"failed"}}
"#
            )
        })
        .collect();
    fs::write(events.join("events.jsonl"), lines).unwrap();
    // By belief it would be minutes.
    let script = r#"
for number in 1 2; do
    mkdir /scr/ckpt.$number.tmp && mv -T /scr/ckpt.$number.tmp /scr/ckpt.$number || exit 1
done
for host in node1 node2; do
    while :; do
        said=$($1 $host cat /scr/.scr/interval)
        case $(echo "$said" | sed -n 's/^interval_seconds \([0-9]*\)[.].*/\1/p') in
        ?|??) break;;
        esac
        sleep 0.05
    done
done
a=$($1 node1 cat /scr/.scr/interval) b=$($1 node2 cat /scr/.scr/interval)
echo "$a"
# What is measured goes on: a flush may have ended in between.
until [ "$a" = "$b" ]; do a=$($1 node1 cat /scr/.scr/interval) b=$($1 node2 cat /scr/.scr/interval); done
"#;
    let path = site.shared().join("app.sh");
    fs::write(&path, script).unwrap();
    let rsh = site.cluster.rsh().display().to_string();
    let launcher = [&rsh, "node1", "sh", path.to_str().unwrap(), &rsh];
    let output = site.run(&[], &launcher).expect(0);
    assert!(output.contains("checkpoint every "), "{output}");
}
