//! One node with the real daemon and the real coordinator: the quick start, and everything that can be
//! wrong with its surroundings. What is acknowledged stays; what cannot be done is said.

#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use scrfs_tests::{Alone, binary, wait_until};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn the_quick_start_works_and_everything_comes_back_after_a_purge() -> Result<()> {
    let node = Alone::new(256 << 20)?;
    node.mount()?;
    node.commit("ckpt.1", 3000)?;
    let sum = node.sum("/scr/ckpt.1/data")?;
    ensure!(
        node.refused("touch /scr/ckpt.1/x")?.contains("Read-only"),
        "sealed can be written"
    );
    node.wait_state("ckpt.1", "flushed")?;
    ensure!(
        node.sum("$P/ckpt.1/data")? == sum,
        "the prefix has other bytes"
    );
    ensure!(
        node.sh("readlink /scr/.scr/restart")? == "../ckpt.1",
        "restart names another"
    );
    let status = node.sh("$SCRFS status")?;
    ensure!(
        status.contains("passthrough"),
        "status does not say how data travels: {status}"
    );
    node.sh("$SCRFS unmount /scr --purge")?;
    ensure!(
        node.refused("ls /scr/.scr")?.contains("No such file"),
        "still mounted"
    );
    node.mount()?;
    // Nothing in the cache: fetched from the prefix before programs may start.
    wait_until(SOON, "the restart", || {
        Ok(node
            .try_sh("test -L /scr/.scr/restart")?
            .status
            .success()
            .then_some(()))
    })?;
    ensure!(
        node.sum("/scr/.scr/restart/data")? == sum,
        "fetched other bytes"
    );
    node.commit("ckpt.2", 10)?;
    node.wait_state("ckpt.2", "flushed")?;
    node.sh("$SCRFS unmount /scr")?;
    ensure!(
        node.sh("ls $P")? == "ckpt.1\nckpt.2",
        "the prefix has other names"
    );
    Ok(())
}

#[test]
fn killed_daemons_and_coordinators_lose_nothing_sealed() -> Result<()> {
    let node = Alone::new(256 << 20)?;
    node.mount()?;
    node.commit("ckpt.1", 2000)?;
    let sum = node.sum("/scr/ckpt.1/data")?;
    node.sh("mkdir /scr/ckpt.2.tmp && echo half > /scr/ckpt.2.tmp/data")?;
    node.kill("scrfs-coordinator serve")?;
    // The daemon starts another, and what is open goes on.
    node.sh("echo more >> /scr/ckpt.2.tmp/data && mv -T /scr/ckpt.2.tmp /scr/ckpt.2")?;
    ensure!(
        node.sh("cat /scr/ckpt.2/data")? == "half\nmore",
        "other bytes after a crash"
    );
    node.kill("scrfs mount")?;
    node.refused("ls /scr/ckpt.1")?;
    node.mount()?;
    ensure!(
        node.sum("/scr/ckpt.1/data")? == sum,
        "other bytes after a remount"
    );
    ensure!(
        node.sh("cat /scr/ckpt.2/data")? == "half\nmore",
        "other bytes after a remount"
    );
    node.wait_state("ckpt.2", "flushed")?;
    node.sh("$SCRFS unmount /scr").map(drop)
}

#[test]
fn a_full_cache_says_so_and_can_still_commit() -> Result<()> {
    let node = Alone::new(48 << 20)?;
    node.mount()?;
    node.sh("mkdir /scr/ckpt.1.tmp")?;
    let said = node.refused("head -c 100M /dev/zero > /scr/ckpt.1.tmp/data")?;
    ensure!(said.contains("No space"), "a full cache said: {said}");
    let bytes = node.sh("stat -c %s /scr/ckpt.1.tmp/data")?;
    node.sh("mv -T /scr/ckpt.1.tmp /scr/ckpt.1")?;
    ensure!(
        node.sh("stat -c %s /scr/ckpt.1/data")? == bytes,
        "the commit changed the file"
    );
    node.wait_state("ckpt.1", "flushed")?;
    node.sh("$SCRFS unmount /scr").map(drop)
}

#[test]
fn a_prefix_that_fails_is_tried_again_and_loses_nothing() -> Result<()> {
    let node = Alone::new(256 << 20)?;
    // A prefix that is full, then read-only, then well again.
    node.sh("mount -t tmpfs -o size=1m tmpfs $P && $MOUNT $P")?;
    node.commit("ckpt.1", 4000)?;
    let sum = node.sum("/scr/ckpt.1/data")?;
    node.wait_error("ckpt.1", "No space left")?;
    node.sh("mount -o remount,size=100m $P")?;
    node.wait_state("ckpt.1", "flushed")?;
    // Refused while somebody writes there, as the last event of the flush may be.
    node.sh("for n in $(seq 200); do mount -o remount,ro $P 2>/dev/null && exit 0; sleep 0.05; done; exit 1")?;
    node.commit("ckpt.2", 100)?;
    node.wait_error("ckpt.2", "Read-only file system")?;
    ensure!(
        node.sum("/scr/ckpt.1/data")? == sum,
        "other bytes while the prefix failed"
    );
    node.sh("mount -o remount,rw $P")?;
    node.wait_state("ckpt.2", "flushed")?;
    ensure!(
        node.sum("$P/ckpt.1/data")? == sum,
        "the prefix has other bytes"
    );
    node.sh("$SCRFS unmount /scr").map(drop)
}

#[test]
fn names_that_are_taken_and_directories_that_are_not_ours_are_left_alone() -> Result<()> {
    let node = Alone::new(128 << 20)?;
    node.mount()?;
    node.commit("ckpt.1", 10)?;
    let sum = node.sum("/scr/ckpt.1/data")?;
    node.sh("mkdir /scr/other.tmp && echo other > /scr/other.tmp/data")?;
    let said = node.refused("mv -T /scr/other.tmp /scr/ckpt.1")?;
    ensure!(said.contains("exists"), "a taken name said: {said}");
    ensure!(
        node.sum("/scr/ckpt.1/data")? == sum,
        "the dataset was replaced"
    );
    ensure!(
        node.sh("cat /scr/other.tmp/data")? == "other",
        "the other one is gone"
    );
    ensure!(
        node.refused("mkdir /scr/other.tmp")?.contains("exists"),
        "a second directory"
    );
    // In the prefix, a directory of that name that scrfs did not make.
    node.sh("mkdir $P/mine && echo mine > $P/mine/file")?;
    node.sh("mv -T /scr/other.tmp /scr/mine")?;
    node.wait_error("mine", "not ours")?;
    ensure!(
        node.sh("cat $P/mine/file")? == "mine",
        "somebody's directory was touched"
    );
    node.sh("mv $P/mine $P/kept")?;
    node.wait_state("mine", "flushed")?;
    node.sh("$SCRFS unmount /scr").map(drop)
}

#[test]
fn a_user_without_privilege_gets_a_slower_mount_that_says_so() -> Result<()> {
    let node = Alone::new(128 << 20)?;
    // Where /dev/fuse is root's alone, as on some machines, the node gets one for everybody.
    node.sh("mknod -m 666 /run/fuse c 10 229 && mount --bind /run/fuse /dev/fuse")?;
    node.sh("mkdir -p /run/u/scr /run/u/c && chown -R 65534 /run/u $P && chmod 755 /run /run/u")?;
    let site = node.site.path().display().to_string();
    node.sh(&format!("chmod 755 {site}"))?;
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/run/u";
    node.sh(&format!(
        "{user} $SCRFS mount /run/u/scr --cache /run/u/c --prefix $P"
    ))?;
    node.sh(&format!(
        "{user} sh -c 'cd /run/u/scr && mkdir a.tmp && echo data > a.tmp/file && mv -T a.tmp a'"
    ))?;
    let status = node.sh(&format!("{user} $SCRFS status --mount /run/u/scr"))?;
    ensure!(
        status.contains("served by the daemon"),
        "status says: {status}"
    );
    ensure!(
        node.sh(&format!("{user} cat /run/u/scr/a/file"))? == "data",
        "other bytes"
    );
    node.sh(&format!("{user} $SCRFS unmount /run/u/scr"))?;
    ensure!(
        node.sh("cat $P/a/file")? == "data",
        "the prefix has other bytes"
    );
    Ok(())
}

#[test]
fn programs_for_one_node_need_no_mpi() -> Result<()> {
    for name in ["scrfs", "scrfs-coordinator"] {
        let needed = std::process::Command::new("ldd")
            .arg(binary(name)?)
            .output()?;
        let needed = String::from_utf8_lossy(&needed.stdout).into_owned();
        ensure!(
            needed.contains("libc.so") && !needed.contains("mpi"),
            "{name} needs\n{needed}"
        );
    }
    Ok(())
}

#[test]
fn what_is_wrong_with_a_mount_is_said() -> Result<()> {
    let node = Alone::new(64 << 20)?;
    let said = node.refused("$MOUNT $P/absent")?;
    ensure!(said.contains("absent"), "a missing prefix said: {said}");
    let said = node.refused("$SCRFS mount /scr/absent --prefix $P")?;
    ensure!(
        said.contains("/scr/absent"),
        "a missing mount point said: {said}"
    );
    let said = node.refused("$SCRFS mount /scr --prefix $P --cache /proc")?;
    ensure!(said.contains("/proc"), "an unwritable cache said: {said}");
    let status = node.try_sh("$SCRFS status")?;
    ensure!(
        status.status.code() == Some(3),
        "status without a mount: {}",
        status.status
    );
    let config = node.try_sh("SCRFS_COMMIT_WAIT=perhaps $MOUNT $P")?;
    ensure!(
        config.status.code() == Some(2),
        "a bad setting: {}",
        config.status
    );
    Ok(())
}

#[test]
fn the_bench_measures_both_ways_to_the_bytes_and_leaves_nothing() -> Result<()> {
    let node = Alone::new(512 << 20)?;
    let said = node.sh(
        "$SCRFS bench --store /dev/shm --file 16 --files 100 --part 16 --runs 1 --json; \
         test -z \"$(ls /dev/shm)\"",
    )?;
    let figures: Vec<Value> = serde_json::from_str(&said)?;
    for wanted in [
        "mount: write a new file, 1 MiB requests",
        "mount: read a file through a mapping",
        "mount: write one new file from 4 places, 1 MiB requests",
        "mount: create, write 4 KiB, close",
        "mount: entries listed by readdir",
        "served: write over a file, 4 MiB requests",
    ] {
        let figure = figures
            .iter()
            .find(|figure| figure["name"] == wanted)
            .with_context(|| format!("no {wanted:?} in {said}"))?;
        let number = |key: &str| {
            figure[key]
                .as_f64()
                .filter(|value| value.is_finite() && *value > 0.0)
                .with_context(|| format!("{key} of {figure}"))
        };
        let ratio = number("value")? / number("limit")?;
        ensure!((ratio - number("ratio")?).abs() < 1e-6 * ratio, "{figure}");
    }
    let refused = node.try_sh("$SCRFS bench --file 17")?;
    ensure!(!refused.status.success(), "17 MiB were accepted");
    Ok(())
}

#[test]
fn a_hundred_thousand_files_need_little_memory_and_few_descriptors() -> Result<()> {
    const MEMORY_KIB_MAX: u64 = 256 << 10;
    let node = Alone::new(1 << 30)?;
    // Far fewer descriptors than files.
    node.sh("ulimit -n 4096 && $MOUNT $P")?;
    node.sh(
        "mkdir /scr/many.tmp && cd /scr/many.tmp && d=0 && while [ $d -lt 100 ]; do \
         mkdir $d && cd $d && i=0 && while [ $i -lt 1000 ]; do \
         echo $d.$i > rank_$i.h5 || exit 1; i=$((i+1)); done; cd ..; d=$((d+1)); done",
    )?;
    node.sh("mv /scr/many.tmp /scr/many && $SCRFS wait many --for flushed")?;
    for place in ["/scr/many", "$P/many"] {
        let listed = node.sh(&format!(
            "find {place} -type f -size -2 | wc -l; find {place} -type f -exec cat {{}} + | sort | cksum"
        ))?;
        let expected = node.sh(
            "echo 100000; d=0; while [ $d -lt 100 ]; do i=0; while [ $i -lt 1000 ]; do \
             echo $d.$i; i=$((i+1)); done; d=$((d+1)); done | sort | cksum",
        )?;
        ensure!(listed == expected, "{place}: {listed} for {expected}");
    }
    let daemon = "$(grep -o '\"pid\": *[0-9]*' $C/daemon.json | grep -o '[0-9]*')";
    let coordinator = format!("$(cat /proc/{daemon}/task/*/children | tr -d ' ')");
    for process in [daemon, &coordinator] {
        let most: u64 = node
            .sh(&format!(
                "grep VmHWM /proc/{process}/status | grep -o '[0-9]*'"
            ))?
            .parse()?;
        println!("at most {} MiB", most >> 10);
        ensure!(most < MEMORY_KIB_MAX, "{most} KiB were used");
    }
    Ok(())
}

#[test]
fn odd_names_reach_the_prefix_and_come_back_and_swapped_files_do_not() -> Result<()> {
    let node = Alone::new(64 << 20)?;
    node.mount()?;
    let made = node.site.path().join("odd");
    let names: [&[u8]; 8] = [
        b"a\nb",
        b"-rf",
        b" x ",
        b"$(id)",
        b"...",
        b"\x01\x1b",
        b"\xff\xfe",
        b"%s",
    ];
    for name in names.map(OsStr::from_bytes) {
        fs::create_dir_all(made.join(name))?;
        fs::write(made.join(name).join(name), name.as_bytes())?;
    }
    node.sh("cp -a $P/../odd /scr/odd.tmp")?;
    node.sh("mv /scr/odd.tmp /scr/odd && $SCRFS wait odd --for flushed")?;
    let sum = |place: &str| {
        node.sh(&format!(
            "cd {place} && find . -print0 | sort -z | tar --null --no-recursion -T - -cf - \
             --mtime=@0 --owner=0 --group=0 --mode=0700 | cksum"
        ))
    };
    let written = sum("$P/../odd")?;
    ensure!(sum("/scr/odd")? == written, "other names in the mount");
    ensure!(sum("$P/odd")? == written, "other names in the prefix");
    // Everything here is lost, and comes back from the prefix.
    node.sh("$SCRFS unmount /scr --purge")?;
    node.mount()?;
    node.wait_for("[ -e /scr/odd ]")?;
    ensure!(sum("/scr/odd")? == written, "other names after a fetch");

    // Whoever can write to the cache puts a link to a secret in the place of a file.
    node.sh("echo classified > $P/secret && mkdir /scr/bad.tmp && echo mine > /scr/bad.tmp/file")?;
    node.sh(
        "cd $C/datasets/*/slot.0/tree && test -e file || cd $C/datasets/2/slot.0/tree && \
         rm file && ln -s $P/secret file",
    )?;
    let _ = node.try_sh("mv /scr/bad.tmp /scr/bad && timeout 5 $SCRFS wait bad --for flushed")?;
    let found =
        node.sh("find $P -type f -not -name secret -exec cat {} + | grep -c classified; true")?;
    ensure!(found == "0", "the secret was followed into the prefix");
    Ok(())
}

#[test]
fn pointer_files_reach_the_prefix_after_what_they_name_and_come_back() -> Result<()> {
    let node = Alone::new(256 << 20)?;
    // Of these, every second checkpoint is flushed.
    let mount = "SCR_FLUSH=2 $MOUNT $P";
    node.sh(mount)?;
    node.sh("echo before > /scr/notes")?;
    node.wait_for("[ \"$(cat $P/notes)\" = before ]")?;
    for step in 1..=4 {
        node.commit(&format!("ckpt.{step}"), 20_000)?;
        node.sh(&format!("echo ckpt.{step} > /scr/latest"))?;
    }
    node.wait_state("ckpt.4", "flushed")?;
    node.wait_for("[ \"$(cat $P/latest)\" = ckpt.4 ]")?;
    // One that will never be there is never named there.
    node.commit("ckpt.5", 100)?;
    node.sh("echo ckpt.5 > /scr/latest && chmod 640 /scr/latest")?;
    node.sh("$SCRFS unmount /scr --now --purge")?;
    ensure!(node.sh("cat $P/latest; ls $P")? == "ckpt.4\nckpt.2\nckpt.4\nlatest\nnotes");
    // A new job finds them.
    node.sh(mount)?;
    ensure!(node.sh("cat /scr/latest /scr/notes")? == "ckpt.4\nbefore");
    node.sh("rm /scr/notes && echo theirs > $P/mine && echo ours > /scr/mine")?;
    node.wait_for("! [ -e $P/notes ]")?;
    node.wait_for("grep -q 'mine.*not ours' $C/daemon.log")?;
    ensure!(node.sh("cat $P/mine")? == "theirs");
    node.sh("$SCRFS unmount /scr --now").map(drop)
}

#[test]
fn the_latest_checkpoint_goes_to_the_prefix_when_the_mount_ends() -> Result<()> {
    let node = Alone::new(256 << 20)?;
    node.sh("SCR_FLUSH=10 $MOUNT $P")?;
    for step in 1..=3 {
        node.commit(&format!("ckpt.{step}"), 20_000)?;
    }
    node.sh("$SCRFS wait ckpt.3 --for protected && $SCRFS unmount /scr")?;
    let left = node.sh("ls $P")?;
    ensure!(left == "ckpt.3", "{left}");
    Ok(())
}

#[test]
fn a_prefix_that_comes_late_is_flushed_to_and_one_that_goes_is_told_by_its_path() -> Result<()> {
    let node = Alone::new(256 << 20)?;
    node.mount()?;
    // Away before the next epoch begins.
    node.sh("mv $P $P.away")?;
    node.kill("scrfs-coordinator serve")?;
    node.commit("ckpt.1", 20_000)?;
    node.wait_state("ckpt.1", "protected")?;
    node.sh("mv $P.away $P")?;
    node.wait_state("ckpt.1", "flushed")?;
    // A running job learns what people did.
    node.sh("$SCRFS current --failed ckpt.1 --prefix $P")?;
    node.wait_state("ckpt.1", "failed")?;
    node.sh("mv $P $P.away")?;
    node.commit("ckpt.2", 20_000)?;
    node.wait_for("grep -q \"$P.*does not exist\" /scr/.scr/status/ckpt.2.*")?;
    ensure!(node.sh("[ -e $P ] || echo none")? == "none", "made anew");
    node.sh("mv $P.away $P")?;
    node.wait_state("ckpt.2", "flushed")?;
    node.sh("$SCRFS unmount /scr").map(drop)
}

#[test]
fn only_the_newest_checkpoints_stay_in_the_prefix_and_none_is_missed() -> Result<()> {
    const MOUNT: &str = "SCR_PREFIX_SIZE=2 SCR_CACHE_SIZE=1 $MOUNT $P";
    let node = Alone::new(256 << 20)?;
    node.sh(MOUNT)?;
    for step in 1..=5 {
        node.commit(&format!("ckpt.{step}"), 64)?;
        node.sh(&format!("$SCRFS wait ckpt.{step} --for flushed"))?;
    }
    let left = node.sh("ls $P")?;
    ensure!(left == "ckpt.4\nckpt.5", "{left}");
    node.wait_state("ckpt.1", "evicted")?;
    node.sh(&format!("$SCRFS unmount /scr && {MOUNT}"))?;
    let status = node.sh("ls /scr/.scr/status")?;
    let known: Vec<&str> = status.lines().collect();
    ensure!(known == ["ckpt.4.evicted", "ckpt.5.flushed"], "{status}");
    let events = node.sh("cat $P/.scrfs/events.jsonl")?;
    for event in ["created", "committed", "protected", "flushed", "evicted"] {
        let said = format!("\"event\":\"{event}\"");
        ensure!(events.contains(&said), "no {said} in {events}");
    }
    let said = node.sh("mkdir /scr/new.tmp && cat /scr/.scr/events")?;
    ensure!(
        said.contains("\"event\":\"created\"") && said.contains("new.tmp"),
        "{said}"
    );
    ensure!(
        !said.contains("\"event\":\"flushed\""),
        "of another daemon: {said}"
    );
    node.sh("$SCRFS unmount /scr --now").map(drop)
}

#[test]
fn a_job_on_this_machine_needs_no_ssh() -> Result<()> {
    let alone = Alone::new(256 << 20)?;
    // Fails once: the daemon is not ended with what is left of a launch.
    let said = alone.sh(
        "cd $P && $SCRFS run --nodes localhost --runs 2 --prefix $P -- sh -c \
         'mkdir /scr/a.tmp && echo 1 > /scr/a.tmp/f && mv -T /scr/a.tmp /scr/a && (sleep 1000 & echo $! > $P/pid) && exit 7; \
         cat /scr/a/f' && cat $P/a/f && ! kill -0 $(cat $P/pid)",
    )?;
    ensure!(said == "1\n1", "{said}");
    Ok(())
}

/// `script` gives a command a terminal and prints what it draws there.
#[test]
fn bars_are_drawn_on_terminals_and_nowhere_else() -> Result<()> {
    let alone = Alone::new(256 << 20)?;
    alone.sh("SCRFS_FLUSH_BANDWIDTH=8MiB $MOUNT $P")?;
    alone.commit("ckpt.1", 24 << 10)?;
    let drawn = alone.sh(
        "export TERM=xterm; $SCRFS wait ckpt.1 --for flushed 2> $P/said & \
         script -qefc \"$SCRFS wait ckpt.1 --for flushed\" /dev/null; wait $! && test ! -s $P/said",
    )?;
    let has_bar = |drawn: &str| drawn.contains("ckpt.1") && drawn.contains("% ");
    ensure!(has_bar(&drawn), "wait: {drawn:?}");
    let drawn = alone.sh(
        "export TERM=xterm; $SCRFS verify ckpt.1 --prefix $P 2> $P/said > $P/found && test ! -s $P/said && \
         $SCRFS unmount /scr && script -qefc \"$SCRFS verify ckpt.1 --prefix $P\" /dev/null",
    )?;
    ensure!(has_bar(&drawn), "verify: {drawn:?}");
    Ok(())
}

/// With a bandwidth that is known, so is what the estimate should be.
#[test]
fn the_status_of_a_flush_tells_its_bytes_and_the_time_that_is_left() -> Result<()> {
    const BYTES: u64 = 96 << 20;
    let alone = Alone::new(256 << 20)?;
    // Not a disk, which others may use.
    alone.sh("mount -t tmpfs tmpfs $P && SCRFS_FLUSH_BANDWIDTH=8MiB $MOUNT $P")?;
    alone.commit("ckpt.1", (BYTES >> 10) as u32)?;
    let mut seen = Vec::new();
    let (end, all, file) = wait_until(SOON, "the flush", || {
        let all: Value = serde_json::from_str(&alone.sh("$SCRFS status --json")?)?;
        // Its name changes with the progress: it may go before it is opened.
        let file = alone.try_sh("cat /scr/.scr/status/ckpt.1.*")?;
        let file = serde_json::from_slice(&file.stdout).unwrap_or(Value::Null);
        let now = Instant::now();
        for told in [&all["datasets"][0], &file] {
            if told["state"] == "flushing" {
                ensure!(told["bytes"] == BYTES, "{told}");
                let done = told["flushed_bytes"].as_u64().context("no bytes")?;
                seen.push((now, done, told["remaining_seconds"].as_u64()));
            }
        }
        let is_flushed = |told: &Value| told["state"] == "flushed";
        Ok((is_flushed(&all["datasets"][0]) && is_flushed(&file)).then_some((now, all, file)))
    })?;
    for told in [&all["datasets"][0], &file] {
        let rest = &told["remaining_seconds"];
        ensure!(told["flushed_bytes"] == BYTES && rest.is_null(), "{told}");
    }
    ensure!(seen.is_sorted_by_key(|(_, done, _)| *done), "{seen:?}");
    let in_the_middle = |done| (BYTES / 4..BYTES * 3 / 4).contains(&done);
    let mut middle = seen.iter().filter(|(_, done, _)| in_the_middle(*done));
    ensure!(middle.clone().count() >= 10, "{seen:?}");
    middle.try_for_each(|&(at, done, told)| {
        let told = told.with_context(|| format!("no estimate at {done} bytes"))? as f64;
        let left = (end - at).as_secs_f64();
        // It is of whole seconds.
        let fits = told >= left / 2.0 && told <= left * 2.0 + 1.0;
        ensure!(fits, "{told} s were told, {left:.1} s were left");
        Ok(())
    })
}

#[test]
fn a_cache_of_another_prefix_is_refused_and_left_alone() -> Result<()> {
    let alone = Alone::new(256 << 20)?;
    alone.sh("mkdir $P/../other")?;
    alone.sh("export SCRFS_FLUSH_EVERY=0; $MOUNT $P")?;
    alone.commit("ckpt.1", 100)?;
    let sum = alone.sum("/scr/ckpt.1/data")?;
    let said = alone.refused("$MOUNT $P/../other")?;
    ensure!(said.contains("is mounted with the prefix"), "{said}");
    alone.sh("$SCRFS unmount --now /scr")?;
    let said = alone.refused("$MOUNT $P/../other")?;
    ensure!(said.contains("has datasets of the prefix"), "{said}");
    ensure!(said.contains("--job NAME"), "{said}");
    let run = "$SCRFS run --nodes localhost --prefix $P/../other -- sh -c 'ls /scr; exit 3'";
    let output = alone.try_sh(run)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("has datasets of the prefix"), "{said}");
    ensure!(output.status.code() != Some(3), "the program ran: {said}");
    let said = alone.refused("$SCRFS scavenge --nodes localhost --prefix $P/../other")?;
    ensure!(said.contains("has datasets of the prefix"), "{said}");
    let listed = alone.sh("$SCRFS list --prefix $P/../other 2>&1")?;
    ensure!(
        !listed.contains("ckpt.1") && listed.contains("not looked at"),
        "{listed}"
    );
    // Under another name the two do not meet.
    alone.sh("$MOUNT $P/../other --job other && test ! -e /scr/ckpt.1 && $SCRFS unmount /scr")?;
    ensure!(alone.sh("$SCRFS list --prefix $P")?.contains("ckpt.1"));
    // The same directory by another path is the same prefix.
    alone.sh("ln -s $P $P/../link && $MOUNT $P/../link")?;
    ensure!(alone.sum("/scr/ckpt.1/data")? == sum, "changed");
    alone.sh("$SCRFS unmount --now --purge /scr && $MOUNT $P/../other && $SCRFS unmount /scr")?;
    Ok(())
}
