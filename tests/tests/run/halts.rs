//! Halts that nobody asks for at the moment, and applications that do not look.

use super::*;

/// Makes a checkpoint now and then, until it is told to end.
const STEPS: &str = r#"
trap 'echo asked; exit 6' TERM
trap 'echo warned; exit 5' USR1
step=0
while UNTIL; do
    step=$((step + 1))
    RSH node1 "mkdir /scr/ckpt.$step.tmp && echo $step > /scr/ckpt.$step.tmp/f && mv -T /scr/ckpt.$step.tmp /scr/ckpt.$step"
    echo step $step
    sleep 0.2
done
"#;

fn script(site: &Site, until: &str) -> String {
    let script = STEPS.replace("UNTIL", until);
    script.replace("RSH", site.cluster.rsh().to_str().unwrap())
}

fn newest_in_prefix(site: &Site) -> Option<u64> {
    let names = fs::read_dir(site.prefix()).unwrap().flatten();
    let step = |name: &str| name.strip_prefix("ckpt.")?.parse().ok();
    let steps = names.filter_map(|entry| step(entry.file_name().to_str()?));
    steps.max()
}

/// It never looks at `.scr/should_exit`.
#[test]
fn an_application_that_does_not_look_may_be_ended_after_its_next_checkpoint() {
    let site = Site::start(1);
    // From the third on it waits until the halt is known.
    let gate = site.shared().join("go");
    let until = format!(
        "{{ [ $step -lt 2 ] || until [ -e {} ]; do sleep 0.02; done; }}",
        gate.display()
    );
    let script = script(&site, &until);
    let mut run = site.run(&["--runs", "-1", "--halt-exit"], &["sh", "-c", &script]);
    run.wait_for("\nstep 2\n");
    let ask = |how: &[&str]| {
        let mut halt = Command::new(binary("scrfs").unwrap());
        halt.args(["halt", "--prefix"]).arg(site.prefix()).args(how);
        assert!(halt.status().unwrap().success());
    };
    // Nobody knows here when the allocation ends.
    ask(&["--seconds", "60"]);
    run.wait_for("say when it ends with `scrfs halt --before TIME`");
    ask(&[]);
    run.wait_for("to halt: ");
    fs::write(&gate, "").unwrap();
    let output = run.expect(6);
    assert!(output.contains("\nasked\n"), "{output}");
    assert!(output.contains("1 launch, 1 epoch"), "{output}");
    assert!(newest_in_prefix(&site) >= Some(3), "{output}");
}

/// The resource manager says when the allocation ends; nobody has said how much of it the end takes.
#[test]
fn the_end_of_the_allocation_halts_in_time_for_a_last_checkpoint() {
    let site = Site::start(1);
    for (name, says) in [("squeue", "echo 0:30"), ("sinfo", "")] {
        let path = site.shared().join(name);
        fs::write(&path, format!("#!/bin/sh\n{says}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut path = site.shared().into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let environment = [("PATH", path.into()), ("SLURM_JOB_ID", "7".into())];
    let until = "[ \"$(RSH node1 cat /scr/.scr/should_exit)\" = 0 ]";
    let script = script(&site, until);
    let mut run = site.run_with(&environment, &["--runs", "-1"], &["sh", "-c", &script]);
    let output = run.expect(0);
    let (before, after) = output.split_once("to halt: no more than ").unwrap();
    // Before one was measured there is no reason to halt.
    assert!(before.contains("\nstep 2\n"), "{output}");
    // Ten seconds, and what was measured.
    let lead: u64 = after.split(' ').next().unwrap().parse().unwrap();
    assert!((10..30).contains(&lead), "{output}");
    assert!(output.contains("launch 1: "), "{output}");
    assert!(newest_in_prefix(&site) >= Some(2), "{output}");
}

#[test]
fn a_warning_is_passed_on_where_that_is_wanted() {
    let site = Site::start(1);
    let script = script(&site, "true");
    let options = ["--runs", "-1", "--forward-usr"];
    let mut run = site.run(&options, &["sh", "-c", &script]);
    run.wait_for("\nstep 1\n");
    let pid = Pid::from_raw(i32::try_from(run.child.id()).unwrap());
    kill(pid, Signal::SIGUSR1).unwrap();
    let output = run.expect(5);
    assert!(output.contains("\nwarned\n"), "{output}");
    assert!(output.contains("1 launch, 1 epoch"), "{output}");
}
