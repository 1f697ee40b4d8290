//! What is done with a prefix before there is a mount: for as long as the prefix hangs it stands still, and says so.
//!
//! It is not given up: a file system that is away for minutes comes back, and without the configuration that
//! lies in the prefix a job would begin with another one.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Nobody wonders for less.
const SILENCE: Duration = Duration::from_secs(20);

/// Does what waits for the prefix at `prefix`. No thread of it is left.
pub(crate) fn patiently<T>(prefix: &Path, act: impl FnOnce() -> T) -> T {
    let (done, waiting) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("scrfs: waiting for {} to answer", prefix.display());
            }
        });
        let result = act();
        drop(done);
        result
    })
}
