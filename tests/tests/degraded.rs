//! A node is lost with its memory; programs read what was on it at once, on every node, before any
//! of it is rebuilt. Also where a file that it is made of is damaged, as far as the scheme reaches.
//!
//! The rebuild is held back by a spare whose memory is full: there it fails, and is tried again, until
//! the test makes room. Nothing else knows of it.

#![allow(clippy::unwrap_used)]

use scrfs_tests::{Cluster, Loss, binary, wait_until};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// For what takes seconds, on a machine with much else to do.
const SOON: Duration = Duration::from_secs(90);
/// The memory of a node; the parts are a third of it.
const SHM_BYTES: u64 = 192 << 20;

/// The first launch writes and waits to be killed. The second one reads everything everywhere.
const PROGRAM: &str = r#"
cd SHARED
must() { "$@" || { echo "FAILED: $*"; exit 7; }; }
if [ ! -e written ]; then
    must RSH node1 mkdir /scr/ckpt.1.tmp
    must RSH node2 mkdir /scr/ckpt.1.tmp/sub
    # Unequal parts, files with holes, an empty one, and one of a single byte.
    for n in 1 2 3 4; do
        must RSH node$n "cd /scr/ckpt.1.tmp/sub && head -c ${n}0300001 /dev/urandom > of.$n && \
            truncate -s 30M holes.$n && echo end >> holes.$n && : > empty.$n && printf x > one.$n && \
            mkdir own.$n && md5sum of.$n > own.$n/copy && \
            md5sum of.$n holes.$n empty.$n one.$n own.$n/copy > sum.$n"
    done
    must RSH node1 "mv -T /scr/ckpt.1.tmp /scr/ckpt.1 && sync /scr/ckpt.1"
    must RSH node1 "cat /scr/ckpt.1/sub/sum.?" > sums
    touch written
    while :; do sleep 0.05; done
fi
echo "names $(RSH node1 readlink /scr/.scr/restart)"
for host in $(echo "$1" | tr , ' '); do
    must RSH $host "head -c 1 /scr/ckpt.1/sub/of.3 | wc -c | grep -qx 1"
    echo "first byte on $host"
done
for host in $(echo "$1" | tr , ' '); do
    must RSH $host "cd /scr/ckpt.1/sub && md5sum --check --quiet SHARED/right"
    must RSH $host "test \"\$(find /scr/ckpt.1 | wc -l)\" = 30"
    must RSH $host "grep -q '\"slot 2\"' /scr/.scr/status/ckpt.1.*"
    echo "all read on $host"
done
# Somebody is inside on the spare while its slot comes back.
RSH node5 "cd /scr/ckpt.1/sub/own.3 && while [ ! -e SHARED/again ]; do sleep 0.05; done; \
    pwd && test \"\$(pwd -P)\" = /scr/ckpt.1/sub/own.3 && cat copy" > inside 2>&1 &
inside=$!
touch read
while [ ! -e again ]; do sleep 0.05; done
must wait $inside
for host in $(echo "$1" | tr , ' '); do
    must RSH $host "cd /scr/ckpt.1/sub && md5sum --check --quiet SHARED/sums"
    must RSH $host "test \"\$(find /scr/ckpt.1 | wc -l)\" = 30"
    echo "read again on $host"
done
"#;

struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        // It may have ended; then these fail.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn status_of(cluster: &Cluster, node: usize) -> String {
    let script = "cat /scr/.scr/status/ckpt.1.*";
    let output = cluster.command(node, "sh").args(["-c", script]).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

fn wait_for(run: &mut Run, path: &Path, output: &Path) {
    let waited = wait_until(SOON, &path.display().to_string(), || {
        anyhow::ensure!(run.0.try_wait()?.is_none(), "the run ended");
        Ok(path.exists().then_some(()))
    });
    waited.unwrap_or_else(|error| panic!("{error:#}\n{}", fs::read_to_string(output).unwrap()));
}

/// A command on a node, which must succeed.
fn on(cluster: &Cluster, node: usize, script: &str) {
    let output = cluster.command(node, "sh").args(["-c", script]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}

#[test]
fn what_was_on_a_lost_node_is_read_at_once_on_every_node_and_rebuilt_behind_it() {
    lose_and_read(&[], None);
}

/// One node lost and one bit flipped on another are two losses of that stripe: with two parities what is
/// lost is read as it was, and both are mended before it is called protected again.
#[test]
fn reed_solomon_makes_it_without_a_source_that_is_damaged() {
    let scheme = [("SCR_COPY_TYPE", "RS"), ("SCR_SET_FAILURES", "2")];
    lose_and_read(
        &scheme,
        Some(Damage {
            node: 1,
            file: "of.1",
            offset: 4_000_000,
        }),
    );
}

/// A bit that is flipped before a node is lost.
struct Damage {
    node: usize,
    file: &'static str,
    offset: u64,
}

impl Damage {
    fn flip(&self, cluster: &Cluster) {
        let Self { node, file, offset } = self;
        // Its time stays: a file with another one is not taken for whole at all.
        let script = format!(
            "f=$(echo /dev/shm/scrfs.0/*/datasets/1/slot.{slot}/tree/sub/{file}) && \
             touch -r $f /run/tmp/time && \
             was=$(dd if=$f bs=1 skip={offset} count=1 status=none | od -An -tu1) && \
             printf \"\\\\$(printf %o $((was ^ 4)))\" | \
             dd of=$f bs=1 seek={offset} conv=notrunc status=none && touch -r /run/tmp/time $f",
            slot = node - 1
        );
        on(cluster, *node, &script);
    }
}

fn lose_and_read(settings: &[(&str, &str)], damage: Option<Damage>) {
    let cluster = Cluster::builder()
        .nodes(5)
        .shm_bytes(SHM_BYTES)
        .start()
        .unwrap();
    let site = tempfile::tempdir().unwrap();
    let (prefix, shared) = (site.path().join("prefix"), site.path().join("shared"));
    fs::create_dir(&prefix).unwrap();
    fs::create_dir(&shared).unwrap();
    let program = PROGRAM
        .replace("SHARED", shared.to_str().unwrap())
        .replace("RSH", cluster.rsh().to_str().unwrap());
    let output = site.path().join("output");
    let file = fs::File::create(&output).unwrap();
    let child = cluster
        .command(0, binary("scrfs").unwrap())
        .args([
            "run",
            "--nodes",
            "node[1-5]",
            "--spares",
            "1",
            "--runs",
            "2",
            // The spare is kept from rebuilding by a full memory, and is to be used.
            "--min-free",
            "8MiB",
        ])
        .arg("--rsh")
        .arg(cluster.rsh())
        .arg("--prefix")
        .arg(&prefix)
        .args(["--", "sh", "-c", &program, "sh", "{hosts}"])
        // What is not in the prefix can come from the others alone.
        .env("SCR_FLUSH", "0")
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let mut run = Run(child);
    wait_for(&mut run, &shared.join("written"), &output);
    let sums = fs::read_to_string(shared.join("sums")).unwrap();
    let is_right = |line: &&str| !damage.as_ref().is_some_and(|it| line.ends_with(it.file));
    let right: Vec<&str> = sums.lines().filter(is_right).collect();
    fs::write(shared.join("right"), right.join("\n") + "\n").unwrap();
    if let Some(damage) = &damage {
        let scrfs = binary("scrfs").unwrap();
        let protected = ["wait", "ckpt.1", "--for", "protected", "--timeout", "60"];
        let waited = cluster.command(1, scrfs).args(protected).output().unwrap();
        assert!(waited.status.success(), "{waited:?}");
        damage.flip(&cluster);
    }
    // Room for records, not for the part that is to come here.
    let fill = "free=$(df --output=avail -k /dev/shm | tail -n 1); \
        head -c $((free - 16384))K /dev/zero > /dev/shm/filler";
    on(&cluster, 5, fill);
    cluster.kill(3, Loss::Power).unwrap();
    wait_for(&mut run, &shared.join("read"), &output);
    let said = || fs::read_to_string(&output).unwrap();
    assert!(said().contains("names ../ckpt.1"), "{}", said());
    for node in [1, 2, 4, 5] {
        let words = format!("all read on node{node}");
        assert!(said().contains(&words), "{}", said());
        // All the time.
        let status = status_of(&cluster, node);
        assert!(status.contains("\"slot 2\""), "{status}");
    }
    // Who waits for protection waits for the rebuild.
    let wait = |seconds: &str| {
        let args = ["wait", "ckpt.1", "--for", "protected", "--timeout", seconds];
        let scrfs = binary("scrfs").unwrap();
        cluster.command(1, scrfs).args(args).output().unwrap()
    };
    assert_eq!(wait("1").status.code(), Some(4));
    on(&cluster, 5, "rm /dev/shm/filler");
    let waited = wait("80");
    assert!(
        waited.status.success(),
        "{waited:?}\n{}\n{}",
        said(),
        status_of(&cluster, 1)
    );
    for node in [1, 2, 4, 5] {
        let status = status_of(&cluster, node);
        assert!(!status.contains("\"slot 2\""), "{status}");
    }
    fs::write(shared.join("again"), "").unwrap();
    let ended = wait_until(SOON, "the end of scrfs run", || Ok(run.0.try_wait()?)).unwrap();
    assert!(ended.success(), "{}", said());
    for node in [1, 2, 4, 5] {
        let words = format!("read again on node{node}");
        assert!(said().contains(&words), "{}", said());
    }
    let inside = fs::read_to_string(shared.join("inside")).unwrap();
    assert!(inside.contains("/scr/ckpt.1/sub/own.3"), "{inside}");
    show_times(&cluster, &said());
}

/// How long after the coordinator of the new epoch had started the first bytes were there.
fn show_times(cluster: &Cluster, said: &str) {
    let logs = Command::new("grep")
        .args(["-rhE", "the first bytes of what is lost|epoch 2"])
        .arg(cluster.directory())
        .output();
    println!("{}", String::from_utf8_lossy(&logs.unwrap().stdout));
    for line in said.lines().filter(|line| line.contains("epoch")) {
        println!("{line}");
    }
}
