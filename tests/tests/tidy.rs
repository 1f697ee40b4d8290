//! Style as a test: what a reviewer would say again and again, said by the build.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest source file, in lines. A question each: which structure wants its own file?
const LINES_MAX: usize = 800;
/// Those that are longer, with the length they may not pass. May only shrink.
const LONGER: [(&str, usize); 3] = [
    ("coordinator/src/mpi.rs", 857),
    ("coordinator/src/transfer.rs", 805),
    ("mount/src/fuse.rs", 900),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// The files git tracks whose names end so, below the root.
fn files(ending: &str) -> Vec<(String, String)> {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output()
        .expect("git lists the files");
    assert!(listed.status.success(), "git ls-files: {}", listed.status);
    String::from_utf8(listed.stdout)
        .unwrap()
        .split('\0')
        .filter(|name| name.ends_with(ending))
        // Removed from the tree and not yet from the index.
        .filter_map(|name| Some((name.to_owned(), fs::read_to_string(root().join(name)).ok()?)))
        .collect()
}

/// Fails with all complaints at once.
fn none(what: &str, complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{what}:\n{}", complaints.join("\n"));
}

/// Lines of sources outside some files that have these words.
fn lines_with(words: &str, allowed: &[&str]) -> Vec<String> {
    let me = "tests/tests/tidy.rs";
    let mut found = Vec::new();
    for (name, text) in files(".rs") {
        if allowed.contains(&name.as_str()) || name == me {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if line.contains(words) && !line.trim_start().starts_with("//") {
                found.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn each_file_says_what_it_is() {
    let silent = files(".rs")
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"));
    none(
        "files that do not open with //!",
        silent.map(|(name, _)| name).collect(),
    );
}

#[test]
fn each_foreign_world_has_one_door() {
    none(
        "`fuser` outside its file",
        lines_with("fuser::", &["mount/src/fuse.rs"]),
    );
    let rsmpi = ["use mpi::", "mpi::ffi", " mpi::topology"];
    for words in rsmpi {
        none(
            "rsmpi outside its file",
            lines_with(words, &["coordinator/src/mpi.rs"]),
        );
    }
}

#[test]
fn crates_depend_one_way() {
    let manifest = |name: &str| fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
    for (crate_name, forbidden) in [
        (
            "scrfs",
            &["mpi", "fuser", "tokio", "scrfs-mount", "scrfs-coordinator"][..],
        ),
        ("mount", &["mpi", "scrfs-coordinator"]),
        ("coordinator", &["fuser", "scrfs-mount"]),
    ] {
        let text = manifest(crate_name);
        for name in forbidden {
            let depends = text.lines().any(|line| {
                line.starts_with(&format!("{name}.")) || line.starts_with(&format!("{name} "))
            });
            // The feature that turns MPI on has the dependency's name.
            let feature = crate_name == "coordinator" && *name == "mpi";
            assert!(
                !depends || feature,
                "{crate_name} must not depend on {name}"
            );
        }
    }
}

#[test]
fn sources_are_plain_text_of_bearable_length() {
    let mut complaints = Vec::new();
    for (name, text) in files(".rs") {
        let allowed = LONGER
            .iter()
            .find(|(long, _)| *long == name)
            .map_or(LINES_MAX, |long| long.1);
        let lines = text.lines().count();
        if lines > allowed {
            complaints.push(format!("{name}: {lines} lines, {allowed} at most"));
        }
        for (number, line) in text.lines().enumerate() {
            if !line.is_ascii() {
                complaints.push(format!("{name}:{}: not ASCII", number + 1));
            }
        }
    }
    none("sources", complaints);
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut dead = Vec::new();
    for (name, text) in files(".md") {
        let directory = root().join(&name).parent().unwrap().to_owned();
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            if !directory.join(path).exists() {
                dead.push(format!("{name}: {target}"));
            }
        }
    }
    none("links that lead nowhere", dead);
}
