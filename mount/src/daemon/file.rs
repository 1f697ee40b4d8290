//! What a live daemon says of itself in its cache: `daemon.json`.

use scrfs::layout::path::CachePaths;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `daemon.json`: facts about a live daemon, for commands and people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DaemonFile {
    /// Its process.
    pub pid: u32,
    /// Node name.
    pub node: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The cache.
    pub cache: PathBuf,
    /// Where it answers.
    pub socket: PathBuf,
    /// The prefix.
    pub prefix: PathBuf,
    /// The job.
    pub job: String,
}

impl DaemonFile {
    /// As it is in the file.
    pub(super) fn text(&self) -> serde_json::Result<String> {
        Ok(format!("{}\n", serde_json::to_string_pretty(self)?))
    }
}

/// Reads `daemon.json` of a cache.
pub fn read_daemon_file(cache: &CachePaths) -> Option<DaemonFile> {
    let text = std::fs::read(cache.daemon()).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_the_page_on_the_layout_has_it() {
        let page = include_str!("../../../docs/layout.md");
        let (_, block) = page.split_once("```daemon\n").expect("the block");
        let (block, _) = block.split_once("```").expect("its end");
        let cache = PathBuf::from("/dev/shm/scrfs.1000/job");
        let file = DaemonFile {
            pid: 77,
            node: "n1".into(),
            mountpoint: "/scr".into(),
            socket: cache.join("control.sock"),
            cache,
            prefix: "/lustre/ckpt".into(),
            job: "job".into(),
        };
        assert_eq!(file.text().expect("text"), block);
        assert_eq!(
            serde_json::from_str::<DaemonFile>(block).expect("JSON"),
            file
        );
    }
}
