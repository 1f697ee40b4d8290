//! Executes the claims of `docs/semantics.md` and `docs/prefix.md` on a real mount with a real coordinator.
//!
//! In a `console` block, `$ ` begins a command; what follows is what it prints on both streams, and
//! `[n]` its exit status when that is not 0. `...` stands for any text in a line. Blocks run in
//! turn, in one shell of one node with `$SCRFS` the program, `$P` the prefix and `$MOUNT` the mount
//! command without it. Tests that the page names must exist.

#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, bail, ensure};
use scrfs_tests::{Cluster, binary};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

const PAGE: &str = "../docs/semantics.md";
const PREFIX_PAGE: &str = "../docs/prefix.md";

/// One command of the page, and what it shall print.
struct Claim {
    line: usize,
    command: String,
    expected: Vec<String>,
}

fn claims(page: &str) -> Vec<Claim> {
    let mut claims: Vec<Claim> = Vec::new();
    let mut inside = false;
    for (number, line) in page.lines().enumerate() {
        match (inside, line) {
            (false, "```console") => inside = true,
            (true, "```") => inside = false,
            (true, line) => match line.strip_prefix("$ ") {
                Some(command) => claims.push(Claim {
                    line: number + 1,
                    command: command.to_owned(),
                    expected: Vec::new(),
                }),
                None => {
                    if let Some(claim) = claims.last_mut() {
                        claim.expected.push(line.to_owned());
                    }
                }
            },
            _ => {}
        }
    }
    claims
}

/// Whether `found` is what the page says; `...` in it is anything.
fn is_as_said(said: &str, found: &str) -> bool {
    let mut pieces = said.split("...");
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = found.strip_prefix(first) else {
        return false;
    };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    true
}

#[test]
fn the_page_on_semantics_tells_the_truth() -> Result<()> {
    tells_the_truth(PAGE, 20)
}

#[test]
fn the_page_on_the_prefix_tells_the_truth() -> Result<()> {
    tells_the_truth(PREFIX_PAGE, 15)
}

/// That a page of more than so many commands does.
fn tells_the_truth(path: &str, commands_min: usize) -> Result<()> {
    const MARK: &str = "@@claim\n";
    let page = fs::read_to_string(path).context("the page")?;
    let claims = claims(&page);
    ensure!(
        claims.len() >= commands_min,
        "only {} commands",
        claims.len()
    );
    let cluster = Cluster::builder().nodes(1).shm_bytes(256 << 20).start()?;
    let site = tempfile::tempdir()?;
    let prefix = site.path().join("prefix");
    fs::create_dir(&prefix)?;
    let scrfs = binary("scrfs")?;
    let mut script = String::from("exec 2>&1\n$MOUNT $P || exit\n");
    for claim in &claims {
        let command = &claim.command;
        script.push_str(&format!(
            "printf '{MARK}'\n{command}\ns=$?; [ $s = 0 ] || echo \"[$s]\"\n"
        ));
    }
    script.push_str(&format!("printf '{MARK}'\n$SCRFS unmount /scr --now\n"));
    let output = cluster
        .command(1, "sh")
        .args(["-c", &script])
        .env("LC_ALL", "C")
        .env("SCRFS", &scrfs)
        // The page keeps more checkpoints than users would.
        .env("SCR_CACHE_SIZE", "9")
        .env("P", &prefix)
        .env("MOUNT", format!("{} mount /scr --prefix", scrfs.display()))
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let mut printed = said.split(MARK).skip(1);
    let mut wrong = Vec::new();
    for claim in &claims {
        let Some(printed) = printed.next() else {
            bail!("line {}: the shell ended before it: {said}", claim.line);
        };
        let found: Vec<&str> = printed.lines().collect();
        let same = found.len() == claim.expected.len()
            && claim
                .expected
                .iter()
                .zip(&found)
                .all(|(said, found)| is_as_said(said, found));
        if !same {
            wrong.push(format!(
                "{path}:{}: $ {}\n  says  {:?}\n  found {:?}",
                claim.line, claim.command, claim.expected, found
            ));
        }
    }
    ensure!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn the_tests_that_the_page_names_exist() -> Result<()> {
    let page = fs::read_to_string(PAGE).context("the page")?;
    let mut sources = String::new();
    let mut names = BTreeSet::new();
    let mut directories = ["tests", "../fuse-tests/tests", "../scrfs/tests"]
        .map(PathBuf::from)
        .to_vec();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                sources.push_str(&fs::read_to_string(&path)?);
                names.extend(
                    path.file_name()
                        .map(|name| name.to_string_lossy().into_owned()),
                );
            }
        }
    }
    let mut named = 0;
    for word in page.split('`').skip(1).step_by(2) {
        let is_test = word.matches('_').count() >= 3
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if is_test {
            named += 1;
            let definition = format!("fn {word}(");
            ensure!(sources.contains(&definition), "there is no test {word}");
        }
        if word.ends_with(".rs") && !word.contains('/') {
            ensure!(names.contains(word), "there is no {word}");
        }
    }
    ensure!(named > 0, "the page names no test");
    Ok(())
}

#[test]
fn dots_stand_for_anything_and_the_rest_for_itself() {
    assert!(is_as_said("a", "a"));
    assert!(!is_as_said("a", "ab"));
    assert!(is_as_said("...b", "aab"));
    assert!(is_as_said("a...c...", "abbcd"));
    assert!(!is_as_said("a...c...e", "abbd"));
    assert!(!is_as_said("ab...b", "ab"));
}
