//! Waiting for a condition. The only place in the tests that sleeps: a test that sleeps by itself
//! is too slow on a fast machine and wrong on a slow one.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Polls until `poll` gives a value, and hands it back.
///
/// `Ok(None)` means "not yet". An error ends the wait at once: a condition that can err for a
/// while before it holds must say `Ok(None)` for those errors. `what` ends the sentence "waited
/// for ..." and names the condition, not the means.
pub fn wait_until<T>(
    timeout: Duration,
    what: &str,
    mut poll: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        if let Some(value) = poll().with_context(|| format!("waiting for {what}"))? {
            return Ok(value);
        }
        let waited = start.elapsed();
        if waited >= timeout {
            bail!("waited {:.1} s for {what}, in vain", waited.as_secs_f64());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that waits by the clock"
        )]
        thread::sleep(pause.min(timeout - waited));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_once_it_is_there() -> Result<()> {
        let mut polls = 0;
        let value = wait_until(Duration::from_secs(10), "the third poll", || {
            polls += 1;
            Ok((polls == 3).then_some(polls))
        })?;
        assert_eq!(value, 3);
        Ok(())
    }

    #[test]
    fn names_what_did_not_come() {
        let error = wait_until(Duration::from_millis(5), "rain", || Ok(None::<()>))
            .expect_err("nothing came");
        assert!(error.to_string().contains("for rain, in vain"), "{error}");
    }

    #[test]
    fn an_error_ends_the_wait() {
        let error = wait_until(
            Duration::from_secs(3600),
            "rain",
            || -> Result<Option<()>> { bail!("drought") },
        )
        .expect_err("the poll failed");
        assert_eq!(format!("{error:#}"), "waiting for rain: drought");
    }
}
