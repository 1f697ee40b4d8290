//! A prefix in an object store: a real server of S3 (moto's) on the launcher's node of a virtual cluster, which
//! all nodes reach by the network. Flush, list, restart from it on empty caches, delete; events.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use scrfs_tests::{Cluster, binary, wait_until};
use tempfile::TempDir;

/// For what takes seconds, on a machine with much else to do.
const SOON: Duration = Duration::from_secs(100);
const NODES: usize = 3;
/// node0, as the others reach it.
const SERVER: &str = "10.77.0.1:5000";
const PREFIX: &str = "s3://bucket/runs/7";

/// Writes a checkpoint when there is none, else reads it: on every node, what every node wrote.
const SCRIPT: &str = r#"
content() { yes "part of $1" | head -c 9000000; }
if from=$(RSH node1 readlink /scr/.scr/restart); then
    for n in 1 2 3; do
        for m in 1 2 3; do
            content $m | RSH node$n "cmp - /scr/.scr/restart/deep/of.$m" || exit 9
        done
    done
    echo "restarted from $from"
    exit 0
fi
RSH node1 mkdir -p /scr/ckpt.1.tmp/deep || exit 1
for n in 1 2 3; do
    content $n | RSH node$n "cat > /scr/ckpt.1.tmp/deep/of.$n && chmod 640 /scr/ckpt.1.tmp/deep/of.$n" || exit 2
done
RSH node1 "ln -s deep/of.1 /scr/ckpt.1.tmp/link && mv -T /scr/ckpt.1.tmp /scr/ckpt.1" || exit 3
RSH node1 "echo ckpt.1 > /scr/latest"
"#;

/// The program, where it is installed.
fn moto_server() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    let own = cache.map(|cache| cache.join("scrfs-tests/moto/bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let all = env::split_paths(&path).chain(own);
    all.map(|directory| directory.join("moto_server"))
        .find(|program| program.is_file())
}

/// Why this machine cannot run the test.
fn missing() -> Option<&'static str> {
    if moto_server().is_none() {
        return Some("there is no moto_server");
    }
    let scrfs = binary("scrfs").unwrap();
    let asked = Command::new(scrfs)
        .args(["list", "--prefix", "none://x"])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&asked.stderr).into_owned();
    let without = words.contains("without object stores");
    without.then_some("scrfs was built without the feature `objects`")
}

struct World {
    cluster: Cluster,
    directory: TempDir,
    server: Child,
}

impl Drop for World {
    fn drop(&mut self) {
        // It may have ended; then these fail.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl World {
    fn start() -> Self {
        let cluster = Cluster::builder()
            .nodes(NODES)
            .shm_bytes(256 << 20)
            .start()
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let log = fs::File::create(directory.path().join("moto.log")).unwrap();
        let server = cluster
            .command(0, moto_server().unwrap())
            .args(["-H", "0.0.0.0", "-p", "5000"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let credentials = format!(
            "AWS_ACCESS_KEY_ID=tests\nAWS_SECRET_ACCESS_KEY=secret\nAWS_REGION=us-east-1\n\
             AWS_ENDPOINT_URL=http://{SERVER}\n"
        );
        fs::write(directory.path().join("credentials"), credentials).unwrap();
        let world = Self {
            cluster,
            directory,
            server,
        };
        wait_until(SOON, "the server", || {
            let made = world.curl(&["-X", "PUT", &format!("http://{SERVER}/bucket")]);
            Ok(made.status.success().then_some(()))
        })
        .unwrap();
        world
    }

    fn curl(&self, arguments: &[&str]) -> Output {
        let mut command = self.cluster.command(0, "curl");
        command
            .args(["--silent", "--fail", "--user", "tests:secret"])
            .args(["--aws-sigv4", "aws:amz:us-east-1:s3"])
            .args(arguments);
        command.output().unwrap()
    }

    fn scrfs(&self, arguments: &[&str]) -> Output {
        let mut command = self.cluster.command(0, binary("scrfs").unwrap());
        command
            .args(arguments)
            .env(
                "SCRFS_CREDENTIALS",
                self.directory.path().join("credentials"),
            )
            .env("SCR_PREFIX", PREFIX)
            .stdin(Stdio::null());
        command.output().unwrap()
    }

    fn run(&self) -> String {
        let rsh = self.cluster.rsh().display().to_string();
        let script = SCRIPT.replace("RSH", &rsh);
        let words = ["run", "--nodes", "node[1-3]", "--rsh", &rsh];
        let output = self.scrfs(&[&words[..], &["--", "sh", "-c", &script]].concat());
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(0), "{text}");
        text
    }

    /// What happened, and to what of it, in order; and how many objects say so.
    fn events(&self) -> (Vec<String>, usize) {
        let output = self.scrfs(&["events"]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let said = text.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let name = line["name"].as_str().unwrap_or("");
            format!("{} {name}", line["event"].as_str().unwrap())
        });
        let all = format!("http://{SERVER}/bucket?list-type=2&prefix=runs/7/.scrfs/events/");
        let keys = self.curl(&[&all]).stdout;
        let count = String::from_utf8_lossy(&keys).matches("<Key>").count();
        (said.collect(), count)
    }

    fn list(&self) -> serde_json::Value {
        let output = self.scrfs(&["list", "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn a_job_flushes_to_s3_and_another_restarts_from_there() {
    if let Some(why) = missing() {
        assert!(env::var_os("SCRFS_REQUIRE_ALL").is_none(), "{why}");
        eprintln!("not tested: {why}");
        return;
    }
    let world = World::start();
    let output = world.run();
    assert!(output.contains("everything is flushed"), "{output}");
    let listed = world.list();
    assert_eq!(listed[0]["name"], "ckpt.1", "{listed}\n{output}");
    assert_eq!(listed[0]["complete"], true, "{listed}");
    assert_eq!(listed[0]["bytes"], 27_000_000, "{listed}");
    // Anybody reads it with any tool.
    let keys = world.curl(&[&format!(
        "http://{SERVER}/bucket?list-type=2&prefix=runs/7/ckpt.1/"
    )]);
    let keys = String::from_utf8_lossy(&keys.stdout).into_owned();
    let key = keys.split("<Key>").find(|text| text.contains("/deep/of.2"));
    let key = key.expect(&keys).split("</Key>").next().unwrap();
    let file = world.curl(&[&format!("http://{SERVER}/bucket/{key}")]);
    let wanted: Vec<u8> = b"part of 2\n"
        .iter()
        .copied()
        .cycle()
        .take(9_000_000)
        .collect();
    assert!(file.stdout == wanted);
    let latest = world.curl(&[&format!("http://{SERVER}/bucket/runs/7/latest")]);
    assert_eq!(latest.stdout, b"ckpt.1\n");
    // The supervisor's and rank 0's, in the order of their times.
    let (events, objects) = world.events();
    let mut rest = events.iter();
    for wanted in [
        "job_began ",
        "launched ",
        "created ckpt.1.tmp",
        "committed ckpt.1",
        "flushed ckpt.1",
        "job_ended ",
    ] {
        let found = rest.any(|said| said == wanted);
        assert!(found, "no {wanted} in its place: {events:?}");
    }
    assert_eq!(rest.next(), None, "{events:?}");
    assert!((2..=4).contains(&objects), "{objects}: {events:?}");
    // On nodes that know nothing of it.
    for node in 1..=NODES {
        let mut remove = world.cluster.command(node, "sh");
        remove.args(["-c", "rm -rf /dev/shm/scrfs.*"]);
        assert!(remove.status().unwrap().success());
    }
    let output = world.run();
    assert!(output.contains("restarted from ../ckpt.1"), "{output}");
    let (events, _) = world.events();
    let count = |wanted| events.iter().filter(|said| *said == wanted).count();
    assert_eq!(count("job_ended "), 2, "{events:?}");
    assert_eq!(count("fetched ckpt.1"), 1, "{events:?}");
    let advised = world.scrfs(&["advise", "--prefix", PREFIX, "--cost", "10s", "--json"]);
    assert!(advised.status.success(), "{advised:?}");
    let advised: serde_json::Value = serde_json::from_slice(&advised.stdout).unwrap();
    let ran = advised["seen"]["process"]["seconds"].as_f64();
    assert!(ran > Some(0.0), "{advised}");
    let current = world.scrfs(&["current"]);
    assert_eq!(current.stdout, b"ckpt.1\n");
    let refused = world.scrfs(&["delete", "ckpt.1"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(world.scrfs(&["drop", "ckpt.1"]).status.success());
    assert_eq!(world.list(), serde_json::json!([]));
    assert!(world.scrfs(&["add", "ckpt.1"]).status.success());
    assert!(
        world
            .scrfs(&["delete", "--force", "ckpt.1"])
            .status
            .success()
    );
    assert_eq!(world.list(), serde_json::json!([]));
    let keys = world.curl(&[&format!(
        "http://{SERVER}/bucket?list-type=2&prefix=runs/7/ckpt.1/"
    )]);
    assert!(!String::from_utf8_lossy(&keys.stdout).contains("<Key>"));
    let again = world.scrfs(&["delete", "ckpt.1"]);
    assert_eq!(again.status.code(), Some(3), "{again:?}");
}
