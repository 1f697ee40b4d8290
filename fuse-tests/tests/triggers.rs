//! Commits that no rename asks for, on a real mount: processes play what frameworks do, in their order,
//! and stop where it hurts. Each dataset is sealed when it should be, whole, and not before.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use scrfs_fuse_tests::coordinator::{Coordinator, Manners};
use scrfs_fuse_tests::mounted::{Place, text};
use scrfs_fuse_tests::ranks::Rank;
use scrfs_fuse_tests::until;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A mount with a configuration, and ranks in it.
struct Stage {
    ranks: Vec<Rank>,
    _coordinator: Coordinator,
    place: Place,
    fences: u32,
}

impl Stage {
    fn new(commit: &str, ranks: usize, grace: Duration) -> Self {
        let place = Place::new(64 * MIB);
        let file = place.prefix().join(".scrfs.toml");
        fs::write(&file, commit).unwrap();
        let output = place
            .mount_command(&["--config"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let manners = Manners {
            grace,
            ..Manners::default()
        };
        let coordinator = place.coordinator(1, manners);
        let ranks = (0..ranks).map(|_| Rank::new(&place.mnt())).collect();
        Self {
            ranks,
            _coordinator: coordinator,
            place,
            fences: 0,
        }
    }

    fn profile(name: &str, ranks: usize) -> Self {
        let text =
            format!("[commit]\nprofiles = [{name:?}]\nsettle_seconds = 1\nquiet_seconds = 1\n");
        Self::new(&text, ranks, Duration::from_secs(10))
    }

    fn run(&mut self, rank: usize, script: &str) {
        self.ranks[rank].run(script);
    }

    fn status(&self, name: &str, state: &str) -> PathBuf {
        self.place.mnt().join(format!(".scr/status/{name}.{state}"))
    }

    /// It is sealed, soon.
    fn seals(&self, name: &str) {
        until(&format!("{name} is sealed"), || {
            self.status(name, "sealed").exists()
        });
    }

    /// It is open still, after another dataset has gone through all that a commit needs.
    fn stays_open(&mut self, name: &str) {
        self.fences += 1;
        let from = self.place.mnt().join(format!("fence.{}.tmp", self.fences));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("f"), b"fence").unwrap();
        fs::rename(&from, from.with_extension("")).unwrap();
        assert!(
            self.status(name, "open").exists(),
            "{name} is committed too early"
        );
    }

    fn holds(&self, name: &str, files: &[&str]) {
        for file in files {
            let path = self.place.mnt().join(name).join(file);
            assert!(
                fs::metadata(&path).is_ok_and(|it| it.len() > 0),
                "{}",
                path.display()
            );
        }
    }
}

#[test]
fn the_attribute_and_the_command_commit_what_is_written_in_place() {
    let mut stage = Stage::new("", 2, Duration::from_secs(10));
    stage.run(
        0,
        "mkdir a b && echo 1 > a/f && mkdir a/sub && echo 2 > b/f",
    );
    assert_ne!(
        stage.ranks[0].try_run("setfattr -n user.scrfs.commit -v 0 a"),
        0
    );
    assert_ne!(
        stage.ranks[0].try_run("setfattr -n user.scrfs.commit -v 1 a/sub"),
        0
    );
    assert_ne!(
        stage.ranks[0].try_run("setfattr -n user.scrfs.commit -v 1 a/f"),
        0
    );
    stage.stays_open("a");
    stage.run(1, "exec 3> a/late; echo half >&3");
    let attribute = {
        let mnt = stage.place.mnt();
        std::thread::spawn(move || Rank::new(&mnt).try_run("setfattr -n user.scrfs.commit -v 1 a"))
    };
    stage.stays_open("a");
    assert!(!attribute.is_finished(), "it waits for the writer");
    stage.run(1, "echo rest >&3; exec 3>&-");
    assert_eq!(attribute.join().unwrap(), 0);
    stage.seals("a");
    assert_eq!(
        fs::read(stage.place.mnt().join("a/late")).unwrap(),
        b"half\nrest\n"
    );
    stage.run(0, "setfattr -n user.scrfs.commit -v 1 a");
    assert_ne!(stage.ranks[0].try_run("echo more >> a/f"), 0);

    let output = stage.place.command("commit", &["b"]);
    assert!(output.status.success(), "{}", text(&output));
    stage.seals("b");
    let output = stage.place.command("commit", &["b"]);
    assert!(output.status.success(), "again: {}", text(&output));
    let output = stage.place.command("commit", &["nothing"]);
    assert!(!output.status.success());
}

#[test]
fn amrex_is_committed_by_its_rename() {
    let mut stage = Stage::new(
        "[commit]\nprofiles = ['amrex']\ntemporary = ['*.other']\n",
        3,
        Duration::from_secs(10),
    );
    stage.run(0, "mkdir chk00010.temp.tmp");
    stage.run(0, "mv chk00010.temp.tmp chk00010.temp");
    stage.run(0, "mkdir chk00010.temp/Level_0");
    for rank in 0..3 {
        stage.run(
            rank,
            &format!("echo {rank} > chk00010.temp/Level_0/Cell_D_0000{rank}"),
        );
    }
    stage.run(
        0,
        "echo h > chk00010.temp/Level_0/Cell_H; echo H > chk00010.temp/Header",
    );
    stage.stays_open("chk00010.temp");
    stage.run(0, "mv -T chk00010.temp chk00010");
    stage.seals("chk00010");
    stage.holds(
        "chk00010",
        &["Header", "Level_0/Cell_H", "Level_0/Cell_D_00002"],
    );
}

#[test]
fn orbax_is_committed_by_the_outermost_rename_or_by_its_marker() {
    let mut stage = Stage::profile("orbax", 2);
    let step = "7.orbax-checkpoint-tmp";
    stage.run(
        0,
        &format!("mkdir {step} && mkdir {step}/default.orbax-checkpoint-tmp"),
    );
    for rank in 0..2 {
        stage.run(
            rank,
            &format!("echo {rank} > {step}/default.orbax-checkpoint-tmp/array.{rank}"),
        );
    }
    stage.run(
        0,
        &format!("mv -T {step}/default.orbax-checkpoint-tmp {step}/default"),
    );
    stage.run(0, &format!("echo ok > {step}/commit_success.txt"));
    stage.stays_open(step);
    stage.run(0, &format!("mv -T {step} 7"));
    stage.seals("7");
    stage.holds(
        "7",
        &["default/array.0", "default/array.1", "commit_success.txt"],
    );

    // COMMIT_FILE: each item and the step have a marker.
    stage.run(0, "mkdir 8 && mkdir 8/default");
    stage.run(1, "exec 3> 8/default/array.1; echo half >&3");
    stage.run(
        0,
        "echo 0 > 8/default/array.0; echo ok > 8/default/commit_success.txt",
    );
    stage.stays_open("8");
    stage.run(0, "echo ok > 8/commit_success.txt");
    stage.stays_open("8");
    stage.run(1, "echo rest >&3; exec 3>&-");
    stage.seals("8");
    stage.holds(
        "8",
        &["default/array.0", "default/array.1", "commit_success.txt"],
    );
}

#[test]
fn hf_trainer_waits_for_ranks_that_begin_after_the_marker() {
    let mut stage = Stage::profile("hf-trainer", 4);
    stage.run(
        0,
        "mkdir checkpoint-500; echo m > checkpoint-500/model.safetensors",
    );
    stage.run(
        0,
        "echo o > checkpoint-500/optimizer.pt; echo s > checkpoint-500/scheduler.pt",
    );
    // Another rank is in the middle of its file when rank 0 writes the last of its own.
    stage.run(1, "exec 3> checkpoint-500/rng_state_1.pth; echo half >&3");
    stage.run(0, "echo r > checkpoint-500/rng_state_0.pth");
    stage.stays_open("checkpoint-500");
    stage.run(0, "echo '{}' > checkpoint-500/trainer_state.json");
    stage.stays_open("checkpoint-500");
    // A third has not even begun.
    stage.run(2, "exec 3> checkpoint-500/rng_state_2.pth");
    stage.run(1, "echo rest >&3; exec 3>&-");
    stage.stays_open("checkpoint-500");
    stage.run(2, "echo two >&3; exec 3>&-");
    stage.run(3, "echo three > checkpoint-500/rng_state_3.pth");
    let closed = Instant::now();
    stage.seals("checkpoint-500");
    let settled = closed.elapsed();
    assert!(
        settled >= Duration::from_millis(990),
        "sealed after {settled:?} of settling"
    );
    let files: Vec<String> = (0..4).map(|rank| format!("rng_state_{rank}.pth")).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    stage.holds("checkpoint-500", &files);
    stage.holds(
        "checkpoint-500",
        &["trainer_state.json", "model.safetensors"],
    );
    let late = stage.ranks[3].try_run("echo late > checkpoint-500/rng_state_4.pth");
    assert_ne!(
        late, 0,
        "what comes after the seal is refused, not lost in silence"
    );
}

#[test]
fn torch_dcp_is_committed_by_its_metadata_and_tried_again_while_somebody_writes() {
    let text = "[commit]\nprofiles = ['torch-dcp']\n";
    let mut stage = Stage::new(text, 2, Duration::from_millis(100));
    stage.run(0, "mkdir step-10");
    for rank in 0..2 {
        stage.run(
            rank,
            &format!("echo {rank} > step-10/__{rank}_0.distcp && sync step-10/__{rank}_0.distcp"),
        );
    }
    stage.run(
        0,
        "echo md > step-10/.metadata.tmp && sync step-10/.metadata.tmp",
    );
    stage.stays_open("step-10");
    stage.run(1, "exec 3>> step-10/__1_0.distcp");
    stage.run(0, "mv -T step-10/.metadata.tmp step-10/.metadata");
    let log = stage.place.job().join("daemon.log");
    until("the proposal is refused", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("proposed again"))
    });
    stage.stays_open("step-10");
    stage.run(1, "echo more >&3; exec 3>&-");
    stage.seals("step-10");
    stage.holds("step-10", &["__0_0.distcp", "__1_0.distcp", ".metadata"]);
    assert!(!stage.place.mnt().join("step-10/.metadata.tmp").exists());
    let said = fs::read_to_string(&log).unwrap();
    assert_eq!(
        said.matches("proposed again").count(),
        1,
        "said once\n{said}"
    );
}

#[test]
fn lammps_is_committed_when_the_next_is_begun_and_the_last_when_quiet() {
    let mut stage = Stage::profile("lammps", 2);
    stage.run(0, "mkdir restart.50 && echo b > restart.50/base");
    stage.run(1, "exec 3> restart.50/1; echo half >&3");
    stage.run(0, "mkdir restart.100");
    stage.stays_open("restart.50");
    stage.run(1, "echo rest >&3; exec 3>&-");
    stage.seals("restart.50");
    stage.holds("restart.50", &["base", "1"]);
    stage.stays_open("restart.100");
    stage.run(1, "exec 3> restart.100/1; echo half >&3");
    stage.run(0, "echo b > restart.100/base");
    stage.stays_open("restart.100");
    stage.run(1, "echo rest >&3; exec 3>&-");
    stage.seals("restart.100");
    stage.holds("restart.100", &["base", "1"]);
    // Nothing was written to it: nothing to commit.
    stage.run(
        0,
        "mkdir restart.150 && mkdir restart.200 && echo b > restart.200/base",
    );
    stage.seals("restart.200");
    assert!(stage.status("restart.150", "open").exists());
}

#[test]
fn triggers_of_the_configuration_work_as_they_say() {
    let mut stage = Stage::new(
        "[[commit.trigger]]\nmatch = 'm*'\nmarker = 'done/rank.*'\nsettle_seconds = 0\n\
         [[commit.trigger]]\nmatch = 'r*'\nremoved = 'WRITING'\nsettle_seconds = 0\n",
        1,
        Duration::from_secs(10),
    );
    stage.run(
        0,
        "mkdir m1 m1/done r1; echo x > m1/data; echo x > m1/done/rank; echo x > r1/WRITING",
    );
    stage.stays_open("m1");
    stage.run(0, "echo x > m1/done/first; ln m1/done/first m1/done/rank.0");
    stage.seals("m1");
    stage.run(0, "echo x > r1/data; rm r1/data; echo y > r1/data");
    stage.stays_open("r1");
    stage.run(0, "rm r1/WRITING");
    stage.seals("r1");
    stage.holds("r1", &["data"]);
    // A name that looks temporary is not proposed.
    stage.run(0, "mkdir m2.tmp m2.tmp/done; echo x > m2.tmp/done/rank.0");
    stage.stays_open("m2.tmp");
    // A rename takes the place of what a trigger would settle for.
    drop(stage);
    let settles = "[[commit.trigger]]\nmatch = 'x*'\nmarker = 'done'\nsettle_seconds = 3600\n";
    let mut stage = Stage::new(settles, 1, Duration::from_secs(10));
    stage.run(0, "mkdir x1; echo x > x1/done");
    stage.stays_open("x1");
    let output = stage.place.command("commit", &["x1"]);
    assert!(output.status.success(), "{}", text(&output));
    stage.seals("x1");
    assert!(File::create(stage.place.mnt().join("x1/more")).is_err());
}
