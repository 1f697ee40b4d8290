//! Nodes that are lost one after the other, each with a spare in its place, and what advice learns of it.

use super::*;

/// Each launch reads on each host what the one before has committed, commits the next, and waits for a node to
/// be lost; the third has seen enough.
const SCRIPT: &str = r#"
cd SHARED
hosts=$(echo $1 | tr , ' ')
first=${hosts%% *}
step=$(RSH $first readlink /scr/.scr/restart || echo none.0)
step=${step##*.}
for host in $hosts; do
    [ $step = 0 ] && break
    for part in 1 2 3; do
        RSH $host "cat /scr/.scr/restart/of.$part" | cmp - $step.$part || exit 3
    done
done
echo "restart $step on $1" >> restarts
[ $step = 2 ] && exit 0
step=$((step + 1))
part=0
RSH $first mkdir /scr/ckpt.$step.tmp || exit 4
for host in $hosts; do
    part=$((part + 1))
    head -c ${part}00001 /dev/urandom > $step.$part
    RSH $host "cat > /scr/ckpt.$step.tmp/of.$part" < $step.$part || exit 5
done
RSH $first "mv -T /scr/ckpt.$step.tmp /scr/ckpt.$step && sync /scr/ckpt.$step" || exit 6
touch written.$step
while :; do sleep 0.05; done
"#;

#[test]
fn two_nodes_are_lost_one_after_the_other_with_two_spares() {
    let site = Site::start(5);
    let script = SCRIPT
        .replace("SHARED", site.shared().to_str().unwrap())
        .replace("RSH", site.cluster.rsh().to_str().unwrap());
    let app = site.shared().join("app.sh");
    fs::write(&app, script).unwrap();
    let launcher = ["sh", app.to_str().unwrap(), "{hosts}"];
    // Nothing is flushed: each restart is from what the nodes have.
    let environment = [("SCRFS_FLUSH_EVERY", "0".into())];
    let options = ["--spares", "2", "--runs", "3"];
    let mut run = site.run_with(&environment, &options, &launcher);
    for (victim, loss) in [(2, Loss::Crash), (1, Loss::Power)] {
        let written = site.shared().join(format!("written.{}", 3 - victim));
        let waited = wait_until(SOON, "the checkpoint is protected", || {
            anyhow::ensure!(run.child.try_wait()?.is_none(), "it ended");
            Ok(written.exists().then_some(()))
        });
        waited.unwrap_or_else(|error| panic!("{error:#}\n{}", run.output()));
        site.cluster.kill(victim, loss).unwrap();
    }
    let output = run.expect(0);
    let restarts = fs::read_to_string(site.shared().join("restarts")).unwrap();
    let expected = "restart 0 on node1,node2,node3\nrestart 1 on node1,node4,node3\n\
                    restart 2 on node5,node4,node3\n";
    assert_eq!(restarts, expected, "{output}");
    assert!(output.contains("3 launches"), "{output}");
    site.nothing_is_left(&[1, 2], &output);
    let status = site.directory.path().join("status");
    fs::write(&status, "{}").unwrap();
    let mut advise = Command::new(binary("scrfs").unwrap());
    advise.args(["advise", "--json", "--cost", "2s", "--from"]);
    let advice = advise.arg(&status).arg("--prefix").arg(site.prefix());
    let advice = advice.output().unwrap();
    let advice: serde_json::Value = serde_json::from_slice(&advice.stdout).unwrap();
    let failures = |kind: &str| &advice["seen"][kind]["failures"];
    assert_eq!(failures("node"), 2, "{advice:#}\n{output}");
    assert_eq!(
        (failures("process"), failures("beyond")),
        (&0.into(), &0.into())
    );
    assert!(
        advice["recoveries"]["parity_seconds"].as_f64().unwrap() > 0.0,
        "{advice:#}"
    );
}
