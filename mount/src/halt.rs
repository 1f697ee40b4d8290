//! Halt conditions where no supervisor looks at them: a daemon that is a cluster of one does it itself.
//!
//! A thread of its own, because the prefix may hang. `.scr/should_exit` is all that follows: nobody is
//! ended. What cannot be read leaves what was said before.

use crate::heartbeat::now_millis;
use crate::vfs::Vfs;
use scrfs::halt::{HaltFiles, Situation};
use std::path::Path;
use std::time::Duration;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Looks every second, until `ending` says so.
pub fn watch(vfs: &Vfs, prefix: &Path, ending: impl Fn() -> bool) {
    let files = HaltFiles::new(prefix);
    while !ending() {
        if let Err(error) = look(vfs, &files) {
            tracing::debug!(%error, "halt conditions cannot be read");
        }
        std::thread::park_timeout(INTERVAL);
    }
}

fn look(vfs: &Vfs, files: &HaltFiles) -> Result<(), scrfs::store::StoreError> {
    let mut conditions = files.read()?;
    let checkpoint = vfs.read_names().newest_checkpoint();
    if let Some(base) = conditions.base_wanted(checkpoint) {
        files.note(&base)?;
        conditions = files.read()?;
    }
    let situation = Situation {
        time: now_millis() / 1000,
        checkpoint,
        ..Situation::default()
    };
    let halt = conditions.holds(&situation);
    if vfs.signs().tell_exit(halt.is_some()) != halt.is_some() {
        let why = halt.map(|halt| halt.why);
        tracing::info!(why, "whether programs are to end has changed");
    }
    Ok(())
}
