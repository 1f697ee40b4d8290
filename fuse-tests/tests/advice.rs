//! `scrfs advise` and `scrfs simulate` as users call them: from options, from a file, from a running mount.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use scrfs_fuse_tests::coordinator::Manners;
use scrfs_fuse_tests::mounted::{Place, scrfs, text};
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(scrfs()).args(arguments).output().unwrap()
}

fn said(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn told(arguments: &[&str]) -> Value {
    serde_json::from_str(&said(arguments)).unwrap()
}

/// A place where no mount is, so that nothing of this machine is measured.
const NOWHERE: [&str; 2] = ["--from", "/dev/stdin"];

fn input<'a>(value: &'a Value, name: &str) -> &'a Value {
    let inputs = value["inputs"].as_array().unwrap();
    inputs.iter().find(|input| input["name"] == name).unwrap()
}

/// Checkpoints ten minutes apart that cost two seconds, are protected after one and flushed after
/// thirty.
fn status() -> Value {
    let at = |seconds: i64| {
        format!(
            "2026-03-04T{:02}:{:02}:{:02}Z",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        )
    };
    let datasets: Vec<Value> = (0..5)
        .map(|number| {
            let begun = number * 602;
            json!({
                "id": number + 1, "name": format!("ckpt.{number}"), "class": "checkpoint",
                "created": at(begun), "sealed": at(begun + 2), "protected": at(begun + 3),
                "flushed": at(begun + 32), "scheme": "rs",
            })
        })
        .collect();
    json!({ "datasets": datasets, "nodes": [{}, {}, {}, {}] })
}

#[test]
fn advice_is_given_from_what_a_status_tells() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("status.json");
    fs::write(&path, status().to_string()).unwrap();
    let from = ["--from", path.to_str().unwrap()];
    let value = told(&[&["advise", "--json", "--interval", "1h"], &from[..]].concat());
    for (name, seconds) in [
        ("stall_seconds", 2.0),
        ("encode_seconds", 1.0),
        ("flush_seconds", 30.0),
    ] {
        assert_eq!(
            input(&value, name),
            &json!({"name": name, "value": seconds, "from": "measured"})
        );
    }
    assert_eq!(value["measured"]["interval_seconds"], 600.0);
    assert_eq!(value["measured"]["checkpoints"], 5);
    assert_eq!(value["scheme"], "rs");
    let advice = &value["advice"];
    let waste = advice["waste"].as_f64().unwrap();
    assert!(advice["interval_seconds"].as_f64().unwrap() > 60.0);
    assert!(0.0 < waste && waste < advice["present"]["waste"].as_f64().unwrap());
    assert!(
        value["words"]
            .as_str()
            .unwrap()
            .contains("to cache (rs), flush")
    );
    let names: Vec<&str> = value["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["model"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["young", "daly", "exponential", "vaidya", "benoit", "moody"]
    );

    // What is given goes before what is measured, and changes the advice.
    let dearer = told(&[&["advise", "--json", "--cost", "200s"], &from[..]].concat());
    assert_eq!(input(&dearer, "stall_seconds")["from"], "given");
    let interval = |value: &Value| value["advice"]["interval_seconds"].as_f64().unwrap();
    assert!(interval(&dearer) > 5.0 * interval(&value));
    let words = said(&[&["advise", "--mtbf", "6h", "--models"], &from[..]].concat());
    assert!(words.starts_with("checkpoint every "), "{words}");
    assert!(
        words.contains("measured, 5 checkpoints") && words.contains("moody"),
        "{words}"
    );
}

#[test]
fn advice_without_a_cost_or_with_nonsense_is_wrong_usage() {
    for more in [
        &[][..],
        &["--cost", "0"],
        &["--cost", "soon"],
        &["--cost", "1s", "--mtbf", "0"],
        &["--cost", "1s", "--flush-slowdown", "100"],
        &["--cost", "1s", "--flush-every", "0"],
        &["--cost", "1s", "--nodes", "0"],
    ] {
        for verb in ["advise", "simulate"] {
            let mut command = Command::new(scrfs());
            command.arg(verb).args(NOWHERE).args(more);
            let mut child = command
                .stdin(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            use std::io::Write;
            // A command line that is refused reads nothing.
            let _ = child.stdin.take().unwrap().write_all(b"{}");
            let output = child.wait_with_output().unwrap();
            assert_eq!(
                output.status.code(),
                Some(2),
                "{verb} {more:?}: {}",
                text(&output)
            );
        }
    }
    let output = run(&["advise", "--mount", "/nowhere"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
}

#[test]
fn a_mount_is_measured_and_its_configuration_counts() {
    let place = Place::new(64 << 20);
    let mut mount = place.mount_command(&[]);
    mount.env("SCRFS_ADVICE_MTBF", "6h").env("SCR_FLUSH", "3");
    let output = mount.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let _coordinator = place.coordinator(1, Manners::default());
    for number in 1..=3 {
        let open = place.mnt().join(format!("ckpt.{number}.tmp"));
        fs::create_dir(&open).unwrap();
        fs::write(open.join("rank_0"), b"state").unwrap();
        fs::rename(&open, place.mnt().join(format!("ckpt.{number}"))).unwrap();
    }
    let output = place.command("advise", &["--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["measured"]["checkpoints"], 3);
    assert_eq!(input(&value, "stall_seconds")["from"], "measured");
    assert_eq!(input(&value, "mtbf_node_seconds")["from"], "given");
    let losses = value["job"]["losses"].as_object().unwrap();
    let all: f64 = losses
        .values()
        .map(|kind| kind["failures_per_second"].as_f64().unwrap())
        .sum();
    assert!((all * 6.0 * 3600.0 - 1.0).abs() < 1e-9, "{all}");
    assert_eq!(value["advice"]["present"]["flush_every"], 3);
}

/// A program asks, in every way a file can be read.
#[test]
fn need_checkpoint_is_read_like_any_file() {
    let place = Place::new(64 << 20);
    let mut mount = place.mount_command(&[]);
    mount.env("SCR_CHECKPOINT_INTERVAL", "3");
    let output = mount.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let _coordinator = place.coordinator(1, Manners::default());
    let path = place.mnt().join(".scr/need_checkpoint");
    scrfs_fuse_tests::until("recovery ends", || place.status()["ready"] == true);
    let ask = || fs::read_to_string(&path).unwrap();
    let cat = || said_by("cat", path.to_str().unwrap());
    assert_eq!(ask(), "0\n");
    assert_eq!(
        fs::metadata(&path).unwrap().len(),
        2,
        "to look is not to ask"
    );
    // Another process asks for the first time, and what is asked first was answered.
    assert_eq!(cat(), "0\n");
    assert_eq!([ask(), ask(), ask()], ["0\n", "1\n", "1\n"]);
    assert_eq!(
        [cat(), cat(), cat()],
        ["0\n", "1\n", "1\n"],
        "each follows the one before"
    );
    let open = place.mnt().join("ckpt.1.tmp");
    fs::create_dir(&open).unwrap();
    assert_eq!(ask(), "0\n", "one has been begun");
    fs::write(open.join("rank_0"), b"state").unwrap();
    fs::rename(&open, place.mnt().join("ckpt.1")).unwrap();
    assert_eq!([ask(), ask(), ask()], ["0\n", "0\n", "1\n"]);
    assert!(fs::write(&path, b"0").is_err(), "it is not to be written");
    let interval = fs::read_to_string(place.mnt().join(".scr/interval")).unwrap();
    let mut lines = interval.lines();
    assert!(
        lines.next().unwrap().starts_with("checkpoint every "),
        "{interval}"
    );
    let seconds = lines
        .next()
        .unwrap()
        .strip_prefix("interval_seconds ")
        .unwrap();
    assert!(seconds.parse::<f64>().unwrap() > 0.0, "{interval}");
}

fn said_by(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_simulation_prints_a_table_and_draws_a_picture() {
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("efficiency.svg");
    let job = [
        "simulate",
        "--cost",
        "10s",
        "--flush",
        "5min",
        "--mtbf-process",
        "12h",
        "--mtbf-node",
        "12h",
        "--mtbf-beyond",
        "7d",
        "--mount",
    ];
    // There is no mount to measure: that is said, where one was named.
    assert_eq!(
        run(&[&job[..], &["/nowhere"]].concat()).status.code(),
        Some(3)
    );
    let empty = directory.path().join("empty.json");
    fs::write(&empty, "{}").unwrap();
    let job = [&job[..job.len() - 1], &["--from", empty.to_str().unwrap()]].concat();
    let grid = [
        "--interval",
        "3min,11min,1h",
        "--flush-every",
        "1,6",
        "--runs",
        "8",
        "--duration",
        "30d",
    ];
    let drawn = ["--json", "--svg", picture.to_str().unwrap()];
    let value = told(&[&job[..], &grid, &drawn].concat());
    let cells = value["schedules"].as_array().unwrap();
    assert_eq!(cells.len(), 6);
    for cell in cells {
        let mean = cell["efficiency"]["mean"].as_f64().unwrap();
        let half = cell["efficiency"]["half_width"].as_f64().unwrap();
        let model = cell["model"].as_f64().unwrap();
        assert!(
            0.2 < mean && mean < 1.0 && 0.0 < half && half < 0.05,
            "{cell}"
        );
        assert!((mean - model).abs() < 0.01 + 2.0 * half, "{cell}");
    }
    let again = told(&[&job[..], &grid, &["--json"]].concat());
    assert_eq!(
        again["schedules"], value["schedules"],
        "one seed, one result"
    );
    let other = told(&[&job[..], &grid, &["--json", "--seed", "100"]].concat());
    assert_ne!(other["schedules"], value["schedules"]);
    let svg = fs::read_to_string(&picture).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    for words in [
        "one flush in 1",
        "one flush in 6",
        "efficiency, %",
        "computing between checkpoints",
    ] {
        assert!(svg.contains(words), "{words}");
    }
    assert!(svg.matches("<polyline").count() >= 2, "a line for each");

    let table = said(&[&job[..], &grid].concat());
    assert_eq!(
        table.lines().filter(|line| line.ends_with("best")).count(),
        1,
        "{table}"
    );
    assert!(table.contains("8 runs of 30 d each"), "{table}");
    let endless = run(&[&job[..], &["--interval", "1ms", "--duration", "5000y"]].concat());
    assert_eq!(endless.status.code(), Some(2), "{}", text(&endless));
}

/// Two failures in 1000 s of running, one of a node, 20 s until the launch after it.
#[test]
fn failures_are_learnt_from_the_events_of_a_prefix() {
    let directory = tempfile::tempdir().unwrap();
    let status_path = directory.path().join("status.json");
    fs::write(&status_path, status().to_string()).unwrap();
    let prefix = directory.path().join("prefix");
    fs::create_dir_all(prefix.join(".scrfs")).unwrap();
    let before = r#"{"time":"2026-03-04T00:00:00Z","event":"launched","job":"j","launch":1}
{"time":"2026-03-04T00:10:00Z","event":"launch_ended","job":"j","duration_ms":600000,"cause":"node_lost"}
"#;
    let events = r#"{"time":"2026-03-04T00:10:20Z","event":"launched","job":"j","launch":2}
{"time":"2026-03-04T00:17:00Z","event":"launch_ended","job":"j","duration_ms":400000,"cause":"hung"}
{"time":"2026-03-04T00:1"#;
    fs::write(prefix.join(".scrfs/events.jsonl.1"), before).unwrap();
    fs::write(prefix.join(".scrfs/events.jsonl"), events).unwrap();
    let from = ["--from", status_path.to_str().unwrap(), "--prefix"];
    let from = [&["advise"], &from[..], &[prefix.to_str().unwrap()]].concat();
    let value = told(&[&from[..], &["--json"]].concat());
    assert_eq!(
        value["seen"],
        json!({
            "process": {"seconds": 1000.0, "failures": 1},
            "node": {"seconds": 1000.0, "failures": 1},
            "beyond": {"seconds": 1000.0, "failures": 0},
        })
    );
    assert_eq!(input(&value, "recover_seconds")["value"], 20.0);
    assert_eq!(input(&value, "recover_seconds")["from"], "measured");
    assert_eq!(input(&value, "mtbf_node_seconds")["from"], "measured");
    let words = said(&from);
    for part in [
        "learnt: 1 failure in 17 min of running",
        "learnt: no failure in 17 min of running",
        "measured, after 2 failures",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    let nowhere = run(&[
        "advise",
        "--cost",
        "2s",
        "--from",
        "/dev/null",
        "--prefix",
        "/nowhere",
    ]);
    assert_ne!(nowhere.status.code(), Some(0));
}
