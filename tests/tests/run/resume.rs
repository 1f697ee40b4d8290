//! A job goes on under another supervisor, on another node: `scrfs run --resume`.

use super::site::{GATE, RANKS, Run, SOON, Site};
use super::{check_prefix, wait_at_gate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scrfs_tests::{Loss, wait_until};
use std::fs;

fn begin(site: &Site, node: usize, options: &[&str]) -> Run {
    let job = site.job();
    let job: Vec<&str> = job.iter().map(String::as_str).collect();
    site.run_on(node, &[], options, &job)
}

fn pid(run: &Run) -> Pid {
    Pid::from_raw(i32::try_from(run.child.id()).unwrap())
}

/// All ranks restarted once, from the checkpoint before the gate, on these nodes.
fn check_restarts(site: &Site, nodes: [usize; RANKS], output: &str) {
    for (rank, node) in nodes.iter().enumerate() {
        let log = fs::read_to_string(site.shared().join(format!("log.{rank}"))).unwrap();
        let wanted = format!("restart {} node{node}\n", GATE - 1);
        assert_eq!(log, wanted, "rank {rank}\n{output}");
    }
}

#[test]
fn another_node_goes_on_when_the_supervisor_is_killed() {
    let site = Site::start(RANKS + 1);
    let mut lost = begin(&site, 0, &["--spares", "1", "--runs", "2"]);
    wait_at_gate(&site, &mut lost, 1);
    kill(pid(&lost), Signal::SIGKILL).unwrap();
    lost.end();
    // Everything but the supervisor goes on: coordinators, daemons, ranks, and both launchers.
    let mut run = site.resume(RANKS + 1);
    run.wait_for("launch 2 on ");
    fs::write(site.shared().join("go"), "").unwrap();
    let output = run.expect(0);
    assert!(output.contains("the supervisor was lost"), "{output}");
    check_restarts(&site, [1, 2, 3], &output);
    check_prefix(&site.prefix());
    site.nothing_is_left(&[], &output);
}

#[test]
fn another_node_goes_on_when_the_supervisors_is_lost_with_a_rank() {
    let site = Site::start(RANKS + 1);
    let mut lost = begin(&site, 1, &["--spares", "1", "--runs", "2"]);
    wait_at_gate(&site, &mut lost, 2);
    site.cluster.kill(1, Loss::Power).unwrap();
    lost.end();
    let mut run = site.resume(3);
    run.wait_for("launch 2 on ");
    fs::write(site.shared().join("go"), "").unwrap();
    let output = run.expect(0);
    assert!(
        output.contains("spare node4 takes the place of node1"),
        "{output}"
    );
    check_restarts(&site, [4, 2, 3], &output);
    check_prefix(&site.prefix());
    site.nothing_is_left(&[1], &output);
}

/// The one that was thought lost wakes up, and finds that it has nothing to say any more.
#[test]
fn of_two_supervisors_the_earlier_ends_and_does_no_harm() {
    let site = Site::start(RANKS);
    let mut old = begin(&site, 0, &["--runs", "2"]);
    wait_at_gate(&site, &mut old, 1);
    kill(pid(&old), Signal::SIGSTOP).unwrap();
    let mut run = site.resume(2);
    run.wait_for("launch 2 on ");
    kill(pid(&old), Signal::SIGCONT).unwrap();
    let said = old.expect(1);
    assert!(said.contains("has taken this job over"), "{said}");
    assert!(!said.contains("unmounted"), "{said}");
    fs::write(site.shared().join("go"), "").unwrap();
    let output = run.expect(0);
    check_restarts(&site, [1, 2, 3], &output);
    check_prefix(&site.prefix());
    site.nothing_is_left(&[], &output);
}

/// The application had finished, and its last checkpoint was on its way to the prefix.
#[test]
fn what_had_finished_is_not_launched_again_but_flushed() {
    let site = Site::start(1);
    let script = r#"
echo launched >> SHARED/launches
RSH node1 "mkdir /scr/ckpt.1.tmp && yes all | head -c 24000000 > /scr/ckpt.1.tmp/f && mv -T /scr/ckpt.1.tmp /scr/ckpt.1"
"#;
    let script = script
        .replace("SHARED", site.shared().to_str().unwrap())
        .replace("RSH", site.cluster.rsh().to_str().unwrap());
    let slow = [("SCRFS_FLUSH_BANDWIDTH", "4MiB".into())];
    let mut lost = site.run_on(0, &slow, &["--runs", "-1"], &["sh", "-c", &script]);
    lost.wait_for("the application has finished");
    kill(pid(&lost), Signal::SIGKILL).unwrap();
    lost.end();
    assert!(!site.prefix().join("ckpt.1").exists(), "it was too fast");
    let mut run = site.resume(1);
    let output = run.expect(0);
    assert!(output.contains("everything is flushed"), "{output}");
    let launches = fs::read_to_string(site.shared().join("launches")).unwrap();
    assert_eq!(launches, "launched\n", "{output}");
    let kept = fs::metadata(site.prefix().join("ckpt.1/f")).unwrap();
    assert_eq!(kept.len(), 24_000_000, "{output}");
    site.nothing_is_left(&[], &output);
}

#[test]
fn what_has_ended_cannot_be_resumed() {
    let site = Site::start(1);
    let output = site.resume(1).expect(3);
    assert!(output.contains("there is nothing to resume"), "{output}");
    site.run(&[], &["true"]).expect(0);
    let output = site.resume(1).expect(3);
    assert!(output.contains("there is nothing to resume"), "{output}");
    // Of one that is at work, nobody takes over from the same host by mistake.
    let mut run = site.run(&[], &["sh", "-c", "echo begun; sleep 1000"]);
    run.wait_for("begun");
    let output = site.resume(0).expect(2);
    assert!(output.contains("this run is at work"), "{output}");
    kill(pid(&run), Signal::SIGTERM).unwrap();
    let ended = wait_until(SOON, "its end", || Ok(run.child.try_wait()?));
    assert!(ended.is_ok(), "{}", run.output());
}

/// Its first flush is cut off, and then left out for two newer ones: nobody ends it any more.
#[test]
fn what_a_flush_that_was_cut_off_and_left_out_has_copied_goes_with_the_job() {
    let site = Site::start(1);
    let script = r#"
RSH node1 "cd /scr && mkdir ckpt.1.tmp && yes all | head -c 24000000 > ckpt.1.tmp/f && mv -T ckpt.1.tmp ckpt.1"
until ls PREFIX/.scrfs/inflight/*/*/f; do sleep 0.1; done
RSH node1 "cd /scr && for n in 2 3 4; do mkdir ckpt.\$n.tmp && echo \$n > ckpt.\$n.tmp/f && mv -T ckpt.\$n.tmp ckpt.\$n; done"
"#;
    let script = script
        .replace("PREFIX", site.prefix().to_str().unwrap())
        .replace("RSH", site.cluster.rsh().to_str().unwrap());
    let slow = [("SCRFS_FLUSH_BANDWIDTH", "2MiB".into())];
    let mut lost = site.run_on(0, &slow, &["--runs", "-1"], &["sh", "-c", &script]);
    lost.wait_for("the application has finished");
    kill(pid(&lost), Signal::SIGKILL).unwrap();
    lost.end();
    let inflight = site.prefix().join(".scrfs/inflight");
    let left = || fs::read_dir(&inflight).unwrap().count();
    assert_eq!(left(), 1, "it was too fast");
    let mut run = site.resume(1);
    let output = run.expect(0);
    assert!(output.contains("everything is flushed"), "{output}");
    assert!(!site.prefix().join("ckpt.1").exists(), "{output}");
    let kept = fs::read_to_string(site.prefix().join("ckpt.4/f")).unwrap();
    assert_eq!((kept.as_str(), left()), ("4\n", 0), "{output}");
    site.nothing_is_left(&[], &output);
}
