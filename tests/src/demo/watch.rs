//! Looking at a node's mount from outside, quickly enough to see short states.
//!
//! Goes through `/proc/<pid>/root` of a process of the node: no process needs to be started for a look.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Cluster;

/// States in which a checkpoint survives the loss of a node.
const SAFE: [&str; 3] = ["protected", "flushing", "flushed"];

/// A node whose mount is looked at.
pub(super) struct Eye<'a> {
    cluster: &'a Cluster,
    node: usize,
    root: Option<PathBuf>,
}

impl<'a> Eye<'a> {
    pub(super) fn new(cluster: &'a Cluster, node: usize) -> Self {
        Self {
            cluster,
            node,
            root: None,
        }
    }

    /// `ls /scr/.scr/status`; nothing while it is not mounted.
    pub(super) fn status(&mut self) -> Vec<String> {
        if let Some(found) = self.root.as_deref().and_then(list) {
            return found;
        }
        let pids = self.cluster.processes(self.node).unwrap_or_default();
        let roots = pids
            .iter()
            .map(|pid| PathBuf::from(format!("/proc/{pid}/root")));
        for root in roots {
            if let Some(found) = list(&root) {
                self.root = Some(root);
                return found;
            }
        }
        Vec::new()
    }
}

fn list(root: &Path) -> Option<Vec<String>> {
    let entries = fs::read_dir(root.join("scr/.scr/status")).ok()?;
    let names = entries.map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<Option<_>>()?;
    names.sort_by_key(|name| (step_of(name), name.clone()));
    Some(names)
}

/// The step in `ckpt.<step>.<state>` or `ckpt.<step>.tmp.<state>`.
pub(super) fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("ckpt.")?.split('.').next()?.parse().ok()
}

/// Whether an entry says that its checkpoint survives the loss of a node.
pub(super) fn is_safe(name: &str) -> bool {
    name.split('.').any(|part| SAFE.contains(&part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_step_and_safety() {
        assert_eq!(step_of("ckpt.150.flushing.47%"), Some(150));
        assert_eq!(step_of("ckpt.200.tmp.open"), Some(200));
        assert_eq!(step_of("other.open"), None);
        assert!(is_safe("ckpt.150.flushing.47%") && is_safe("ckpt.1.protected"));
        assert!(!is_safe("ckpt.200.tmp.open") && !is_safe("ckpt.1.sealed"));
    }
}
