//! What the events of a prefix tell, as it is told to all nodes: in whole milliseconds, so that all have the same.

use super::estimate::Exposure;
use super::history::Recoveries;
use super::inputs::Seen;
use crate::layout::record::UnixMillis;
use serde::{Deserialize, Serialize};

/// Of failures of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Kind {
    failures: u64,
    /// It ran so long meanwhile.
    ran_ms: UnixMillis,
    /// From a failure until the next launch, median.
    recovery_ms: Option<UnixMillis>,
}

/// Failures and recoveries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Learnt {
    process: Kind,
    node: Kind,
    beyond: Kind,
}

fn millis(seconds: f64) -> u64 {
    // Saturates, and nothing that makes no sense is left.
    (seconds * 1000.0).round() as u64
}

impl Learnt {
    /// Of what was seen.
    #[must_use]
    pub fn of((seen, recoveries): &(Seen, Recoveries)) -> Self {
        let kind = |of: Exposure, recovery: Option<f64>| Kind {
            failures: of.failures,
            ran_ms: millis(of.seconds),
            // A time must pass.
            recovery_ms: recovery.map(|seconds| millis(seconds).max(1)),
        };
        Self {
            process: kind(seen.process, recoveries.cache_seconds),
            node: kind(seen.node, recoveries.parity_seconds),
            beyond: kind(seen.beyond, recoveries.prefix_seconds),
        }
    }

    /// For models.
    #[must_use]
    pub fn open(&self) -> (Seen, Recoveries) {
        let seconds = |millis: u64| millis as f64 / 1000.0;
        let exposure = |kind: Kind| Exposure {
            seconds: seconds(kind.ran_ms),
            failures: kind.failures,
        };
        let recovery = |kind: Kind| kind.recovery_ms.map(seconds);
        let seen = Seen {
            process: exposure(self.process),
            node: exposure(self.node),
            beyond: exposure(self.beyond),
        };
        let recoveries = Recoveries {
            cache_seconds: recovery(self.process),
            parity_seconds: recovery(self.node),
            prefix_seconds: recovery(self.beyond),
        };
        (seen, recoveries)
    }
}
