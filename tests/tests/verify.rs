//! `scrfs verify` on a cluster: one flipped bit in files, parity, copies or manifests is found on whichever
//! node it is, and repaired; what cannot be is told, and is not offered any more.

#![allow(clippy::unwrap_used)]

use scrfs_tests::{Cluster, binary, wait_until};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

/// For what takes seconds, on a machine with much else to do.
const SOON: Duration = Duration::from_secs(90);
const SHM_BYTES: u64 = 192 << 20;

/// Two checkpoints; then it waits for what the test does, and reads all of it on every node.
const PROGRAM: &str = r#"
cd SHARED
must() { "$@" || { echo "FAILED: $*"; exit 7; }; }
for step in 1 2; do
    must RSH node1 mkdir /scr/ckpt.$step.tmp
    for n in 1 2 3; do
        must RSH node$n "cd /scr/ckpt.$step.tmp && head -c ${n}500001 /dev/urandom > of.$n && \
            chmod 444 of.$n && md5sum of.$n > sum.$n"
    done
    must RSH node1 "mv -T /scr/ckpt.$step.tmp /scr/ckpt.$step && sync /scr/ckpt.$step"
done
touch written
while [ ! -e read ]; do sleep 0.05; done
for n in 1 2 3; do
    must RSH node$n "cd /scr/ckpt.1 && cat sum.? | md5sum --check --quiet"
    echo "all read on node$n"
done
touch is-read
while [ ! -e end ]; do sleep 0.05; done
"#;

struct Job {
    cluster: Cluster,
    site: tempfile::TempDir,
    child: Child,
}

impl Drop for Job {
    fn drop(&mut self) {
        // It may have ended; then these fail.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Job {
    fn start() -> Self {
        let cluster = Cluster::builder()
            .nodes(3)
            .shm_bytes(SHM_BYTES)
            .start()
            .unwrap();
        let site = tempfile::tempdir().unwrap();
        let shared = site.path().join("shared");
        fs::create_dir(site.path().join("prefix")).unwrap();
        fs::create_dir(&shared).unwrap();
        let program = PROGRAM
            .replace("SHARED", shared.to_str().unwrap())
            .replace("RSH", cluster.rsh().to_str().unwrap());
        let file = fs::File::create(site.path().join("output")).unwrap();
        let child = cluster
            .command(0, binary("scrfs").unwrap())
            .args(["run", "--nodes", "node[1-3]", "--rsh"])
            .arg(cluster.rsh())
            .arg("--prefix")
            .arg(site.path().join("prefix"))
            .args(["--", "sh", "-c", &program, "sh", "{hosts}"])
            .env("SCR_FLUSH", "0")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut job = Self {
            cluster,
            site,
            child,
        };
        job.wait_for("written");
        job
    }

    fn said(&self) -> String {
        fs::read_to_string(self.site.path().join("output")).unwrap()
    }

    fn wait_for(&mut self, name: &str) {
        let path = self.site.path().join("shared").join(name);
        let waited = wait_until(SOON, name, || {
            anyhow::ensure!(self.child.try_wait()?.is_none(), "the run ended");
            Ok(path.exists().then_some(()))
        });
        waited.unwrap_or_else(|error| panic!("{error:#}\n{}", self.said()));
    }

    fn touch(&self, name: &str) {
        fs::write(self.site.path().join("shared").join(name), "").unwrap();
    }

    /// What a script says on a node.
    fn on(&self, node: usize, script: &str) -> String {
        let output = self
            .cluster
            .command(node, "sh")
            .args(["-c", script])
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A file of the cache of a node, by the end of its path.
    fn cached(&self, node: usize, end: &str) -> PathBuf {
        let script = format!("find /dev/shm/scrfs.0 -path '*{end}'");
        let found = self.on(node, &script);
        assert!(
            found.starts_with('/') && !found.contains('\n'),
            "{end}: {found}"
        );
        PathBuf::from(found)
    }

    /// Other bytes in the middle of a file; its time stays.
    fn damage(&self, node: usize, path: &Path, offset: u64) {
        let path = path.display();
        let script = format!(
            "touch -r {path} /tmp/time && head -c 16 /dev/urandom | \
             dd of={path} bs=1 seek={offset} conv=notrunc status=none && touch -r /tmp/time {path}"
        );
        self.on(node, &script);
    }

    fn scrfs(&self, node: usize, args: &[&str]) -> Output {
        let scrfs = binary("scrfs").unwrap();
        self.cluster
            .command(node, scrfs)
            .args(args)
            .output()
            .unwrap()
    }

    /// What `scrfs verify --json` says, and its exit code.
    fn verify(&self, node: usize, args: &[&str]) -> (Vec<Value>, Option<i32>) {
        let output = self.scrfs(node, &[&["verify", "--json"], args].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        let reports = serde_json::from_str(&text);
        let reports =
            reports.unwrap_or_else(|error| panic!("{error}: {output:?}\n{}", self.said()));
        (reports, output.status.code())
    }
}

fn counts(report: &Value) -> (u64, u64) {
    let number = |key: &str| report[key].as_u64().unwrap();
    (number("damaged"), number("repaired"))
}

#[test]
fn damage_anywhere_is_found_and_repaired_or_told() {
    let mut job = Job::start();
    // What is sound is said to be.
    let (reports, code) = job.verify(2, &[]);
    assert_eq!((reports.len(), code), (2, Some(0)), "{reports:?}");
    assert!(
        reports
            .iter()
            .all(|it| it["sound"] == true && it["unknown"] == 0)
    );
    let bytes: u64 = reports.iter().map(|it| it["bytes"].as_u64().unwrap()).sum();
    // Two times three parts, and parity of half of it or more.
    assert!(bytes > 2 * 7_500_000 * 3 / 2, "{bytes}");

    // Files, parity, a manifest and a copy of one, each on another node.
    job.damage(1, &job.cached(1, "/1/slot.0/tree/of.1"), 700_000);
    job.damage(2, &job.cached(2, "/1/slot.1/parity"), 5);
    job.damage(3, &job.cached(3, "/1/slot.2/manifest"), 30);
    job.damage(1, &job.cached(1, "/1/copy.1/manifest"), 30);
    let (reports, code) = job.verify(1, &["ckpt.1"]);
    assert_eq!((reports.len(), code), (1, Some(0)), "{reports:?}");
    assert_eq!(counts(&reports[0]), (4, 4), "{reports:?}");
    let (reports, code) = job.verify(3, &["ckpt.1"]);
    assert_eq!(code, Some(0), "{reports:?}");
    assert_eq!(counts(&reports[0]), (0, 0), "{reports:?}");
    let mode = job.on(1, "stat -c %a /scr/ckpt.1/of.1");
    assert_eq!(mode, "444");

    // More than the parity can make again, in the same stripe: each is told, and nothing is offered.
    for slot in [0, 1] {
        let path = job.cached(slot + 1, &format!("/2/slot.{slot}/tree/of.{}", slot + 1));
        for offset in (0..1_500_000).step_by(100_000) {
            job.damage(slot + 1, &path, offset);
        }
    }
    let output = job.scrfs(1, &["verify", "ckpt.2"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains("NOT REPAIRED"), "{said}");
    let lost = wait_until(SOON, "ckpt.2 to be lost", || {
        let listed = job.on(3, "ls /scr/.scr/status");
        Ok(listed.contains("ckpt.2.lost").then_some(()))
    });
    lost.unwrap();
    let top = job.on(3, "ls /scr");
    assert_eq!(top, "ckpt.1");

    // In the prefix: found without the mount, repaired with it.
    assert!(job.scrfs(1, &["flush", "ckpt.1"]).status.success());
    let prefix = job.site.path().join("prefix");
    let flushed = prefix.join("ckpt.1/of.2");
    job.damage(0, &flushed, 900_000);
    let alone = ["--prefix", prefix.to_str().unwrap(), "--mount", "/nowhere"];
    let (reports, code) = job.verify(0, &alone);
    assert_eq!(code, Some(1), "{reports:?}");
    assert_eq!(reports[0]["where"], "prefix");
    assert_eq!(counts(&reports[0]), (1, 0), "{reports:?}");
    let (reports, code) = job.verify(1, &["ckpt.1"]);
    assert_eq!(
        (counts(&reports[0]), code),
        ((1, 1), Some(0)),
        "{reports:?}"
    );
    let (reports, code) = job.verify(0, &alone);
    assert_eq!(
        (counts(&reports[0]), code),
        ((0, 0), Some(0)),
        "{reports:?}"
    );
    let (_, code) = job.verify(1, &["nothing-of-that-name"]);
    assert_eq!(code, Some(3));

    job.touch("read");
    job.wait_for("is-read");
    for node in 1..=3 {
        assert!(job.said().contains(&format!("all read on node{node}")));
    }
    job.touch("end");
    let ended = wait_until(SOON, "the end of scrfs run", || Ok(job.child.try_wait()?)).unwrap();
    // It ends as well as can be said with a checkpoint that nobody will have again.
    assert!(job.said().contains("ckpt.2 is lost"), "{}", job.said());
    assert_eq!(ended.code(), Some(1), "{}", job.said());
}
