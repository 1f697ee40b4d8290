//! Files that are closed are encoded before the commit; some are written again, cut, renamed or removed after that.
//! What was committed is right, also when a node is lost and its part is made of the others and that parity.

#![allow(clippy::unwrap_used)]

use scrfs_tests::{Cluster, Loss, binary, wait_until};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

/// For what takes seconds, on a machine with much else to do.
const SOON: Duration = Duration::from_secs(120);

/// The first launch writes, and goes on when parity was made of what is closed. The second one reads everything.
const PROGRAM: &str = r#"
cd SHARED
must() { "$@" || { echo "FAILED: $*"; exit 7; }; }
if [ ! -e committed ]; then
    must RSH node1 mkdir /scr/ckpt.1.tmp
    for file in a b c; do
        for n in 1 2 3 4; do
            must RSH node$n "cd /scr/ckpt.1.tmp && head -c 8${n}00001 /dev/urandom > of.$n.$file && \
                head -c 900 /dev/urandom > small.$n.$file"
        done
    done
    for n in 1 2 3 4; do
        room="/dev/shm/scrfs.0/*/datasets/1/slot.$((n - 1))/parity.room"
        for try in $(seq 600); do
            RSH node$n "test -s $room && ! cmp -s -n 1000000 $room /dev/zero" && break
            sleep 0.05
        done
        must RSH node$n "test -s $room && ! cmp -s -n 1000000 $room /dev/zero"
    done
    echo "parity was made"
    # In the middle of what was encoded; by a map, after its descriptor was closed; by its name; away.
    must RSH node1 "printf changed | dd of=/scr/ckpt.1.tmp/of.1.b bs=1 seek=5000000 conv=notrunc status=none"
    must RSH node2 "mv /scr/ckpt.1.tmp/of.2.a /scr/ckpt.1.tmp/renamed.2 && truncate -s 3000000 /scr/ckpt.1.tmp/of.2.c"
    must RSH node3 "rm /scr/ckpt.1.tmp/of.3.b && cp /scr/ckpt.1.tmp/of.3.a /scr/ckpt.1.tmp/of.3.b"
    must RSH node4 "python3 -c 'import mmap, os
fd = os.open(\"/scr/ckpt.1.tmp/of.4.a\", os.O_RDWR)
held = mmap.mmap(fd, 0)
os.close(fd)
held[7000000:7000006] = b\"mapped\"
held.close()'"
    for n in 1 2 3 4; do
        must RSH node$n "cd /scr/ckpt.1.tmp && md5sum *" > of.$n
    done
    must RSH node1 "mv -T /scr/ckpt.1.tmp /scr/ckpt.1"
    cat of.? > sums
    touch committed
    while :; do sleep 0.05; done
fi
echo "restart $(RSH node1 readlink /scr/.scr/restart)"
for host in $(echo "$1" | tr , ' '); do
    must RSH $host "cd /scr/ckpt.1 && md5sum --check --quiet SHARED/sums"
    must RSH $host "test \"\$(find /scr/ckpt.1 -type f | wc -l)\" = 24"
    echo "all right on $host"
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

fn wait_for(run: &mut Run, path: &Path, output: &Path) {
    let waited = wait_until(SOON, &path.display().to_string(), || {
        anyhow::ensure!(run.0.try_wait()?.is_none(), "the run ended");
        Ok(path.exists().then_some(()))
    });
    waited.unwrap_or_else(|error| panic!("{error:#}\n{}", fs::read_to_string(output).unwrap()));
}

/// Bytes of parity that held of those made before the commit, by slot, as coordinators log it.
fn made_before(cluster: &Cluster) -> Vec<(u64, u64)> {
    let found = cluster
        .command(0, "grep")
        .args(["-rhoE", "encoded before the commit.*", "/run/tmp"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let number = |line: &str, field: &str| -> u64 {
        let at = line.find(field).unwrap_or_else(|| panic!("{line}")) + field.len();
        let digits = line[at..].chars().take_while(char::is_ascii_digit);
        digits.collect::<String>().parse().unwrap()
    };
    text.lines()
        .map(|line| (number(line, " bytes="), number(line, " of=")))
        .collect()
}

fn lose_and_read(settings: &[(&str, &str)]) {
    let cluster = Cluster::builder()
        .nodes(5)
        .shm_bytes(768 << 20)
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
        ])
        .arg("--rsh")
        .arg(cluster.rsh())
        .arg("--prefix")
        .arg(&prefix)
        .args(["--", "sh", "-c", &program, "sh", "{hosts}"])
        // What is not in the prefix can come from the others alone.
        .env("SCR_FLUSH", "0")
        .env("SCRFS_REDUNDANCY_AHEAD", "100")
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let mut run = Run(child);
    wait_for(&mut run, &shared.join("committed"), &output);
    let protected = ["wait", "ckpt.1", "--for", "protected", "--timeout", "60"];
    let scrfs = binary("scrfs").unwrap();
    let waited = cluster.command(1, scrfs).args(protected).output().unwrap();
    assert!(waited.status.success(), "{waited:?}");
    let made = made_before(&cluster);
    assert_eq!(made.len(), 4, "{made:?}");
    let (before, all) = made.iter().fold((0, 0), |(one, other), (bytes, of)| {
        (one + bytes, other + of)
    });
    println!("{before} of {all} bytes of parity were made before the commit");
    assert!(before > 0, "{made:?}");
    cluster.kill(3, Loss::Power).unwrap();
    let said = || fs::read_to_string(&output).unwrap();
    let ended = wait_until(SOON, "the end of scrfs run", || Ok(run.0.try_wait()?)).unwrap();
    assert!(ended.success(), "{}", said());
    assert!(said().contains("restart ../ckpt.1"), "{}", said());
    for node in [1, 2, 4, 5] {
        let words = format!("all right on node{node}");
        assert!(said().contains(&words), "{}", said());
    }
}

#[test]
fn what_was_encoded_before_the_commit_brings_a_lost_node_back() {
    lose_and_read(&[]);
}

#[test]
fn reed_solomon_too() {
    lose_and_read(&[("SCR_COPY_TYPE", "RS"), ("SCR_SET_FAILURES", "2")]);
}

/// What it saves after the commit, and what it costs who writes: four nodes, eight files of 32 MiB each, written one
/// after the other; five checkpoints.
const MEASURED: &str = r#"
ms() { echo $(($(date +%s%N) / 1000000)); }
for n in 1 2 3 4; do RSH node$n "head -c 32M /dev/urandom > /run/tmp/32M"; done
for step in 1 2 3 4 5; do
    RSH node1 mkdir /scr/ckpt.RUN$step.tmp
    begun=$(ms)
    for n in 1 2 3 4; do
        RSH node$n "for f in 1 2 3 4 5 6 7 8; do cp /run/tmp/32M /scr/ckpt.RUN$step.tmp/of.$n.\$f; sleep PAUSE; done" &
    done
    wait
    written=$(ms)
    RSH node1 mv -T /scr/ckpt.RUN$step.tmp /scr/ckpt.RUN$step
    committed=$(ms)
    RSH node1 SCRFS wait ckpt.RUN$step --for protected --timeout 60
    protected=$(ms)
    echo "MEASURED written $((written - begun)) committed $((committed - written)) protected $((protected - committed)) ms"
done
"#;

/// `cargo test --test ahead -- --ignored --nocapture` prints it.
#[test]
#[ignore = "a measurement"]
fn what_it_saves_and_costs() {
    let cluster = Cluster::builder()
        .nodes(4)
        .shm_bytes(3 << 30)
        .start()
        .unwrap();
    let site = tempfile::tempdir().unwrap();
    for pause in ["0", "0.1"] {
        for share in ["0", "50", "100"] {
            let program = MEASURED
                .replace("RSH", cluster.rsh().to_str().unwrap())
                .replace("SCRFS", binary("scrfs").unwrap().to_str().unwrap())
                .replace("RUN", &format!("{pause}.{share}."))
                .replace("PAUSE", pause);
            let ran = cluster
                .command(0, binary("scrfs").unwrap())
                .args(["run", "--nodes", "node[1-4]", "--rsh"])
                .arg(cluster.rsh())
                .arg("--prefix")
                .arg(site.path())
                .args(["--", "sh", "-c", &program])
                .env("SCR_FLUSH", "0")
                .env("SCRFS_REDUNDANCY_AHEAD", share)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&ran.stdout);
            println!("pause {pause} s a file, share {share} %");
            let lines = said.lines().filter(|line| line.starts_with("MEASURED"));
            let count = lines.inspect(|line| println!("  {line}")).count();
            assert_eq!(count, 5, "{said}{}", String::from_utf8_lossy(&ran.stderr));
        }
    }
}
