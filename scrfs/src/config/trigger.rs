//! What proposes a commit besides a rename: triggers, and the profiles of common frameworks.
//!
//! A trigger watches datasets whose name it matches, and proposes to commit one under the name it
//! has. It only proposes: the vote waits for writers on every node, and for as long as the trigger
//! says that nobody may have written (*settle*). Settling is for frameworks without a barrier
//! between the last file of every rank and the sign that is watched for (ADR 0011).
//!
//! Invariant: which triggers a dataset has depends on its name alone. Those of the configuration
//! come before those of profiles, and profiles of certain names before those of all names
//! ([`Tier`]): a general one would fire too early where a framework does more than usual.
//!
//! Names that still look temporary are not watched at all; that is `crate::trigger`'s business.

use super::pattern::{PathPattern, Pattern, PatternError};
use crate::name::Name;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most digits a template pads to.
const DIGITS_MAX: usize = 20;

/// Where a trigger comes from; the first of those that match a name applies, the others do not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// `[[commit.trigger]]`.
    Configured,
    /// A profile of a framework that names its datasets in a certain way.
    Profile,
    /// A profile of a framework whose datasets may have any name.
    General,
}

/// What is watched for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// A file of the dataset was closed after writing, or renamed into place.
    Marker(PathPattern),
    /// A plain file at the top became visible, and its content names the dataset.
    Pointer {
        /// The file.
        file: Name,
        /// How its content gives the name.
        names: NameTemplate,
    },
    /// A file was removed.
    Removed(RemovedMarker),
    /// A newer dataset was begun that the same trigger matches.
    Next,
    /// Nobody has written for so many seconds, more than 0.
    Quiet {
        /// How long.
        seconds: u64,
    },
}

/// A marker whose removal counts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemovedMarker {
    /// In the dataset.
    Inside(PathPattern),
    /// At the top: the dataset's name with something before and after it.
    Beside {
        /// Before.
        before: String,
        /// After.
        after: String,
    },
}

/// A name with a place for the content of a pointer file: `{content}`, or `{content:07}` for a
/// number of at least so many digits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameTemplate {
    before: String,
    digits: Option<usize>,
    after: String,
}

/// One trigger.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trigger {
    /// The datasets it watches, by name.
    #[serde(rename = "match")]
    pub pattern: Pattern,
    /// What it watches for.
    pub when: When,
    /// For how many seconds nobody may have written, on any node, before the vote.
    pub settle_seconds: u64,
    /// Where it comes from.
    pub tier: Tier,
}

impl Trigger {
    /// How long the vote must see nobody write.
    #[must_use]
    pub fn settle_ms(&self) -> u64 {
        let seconds = match self.when {
            When::Quiet { seconds } => seconds,
            _ => self.settle_seconds,
        };
        seconds.saturating_mul(1000)
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} when ", self.pattern.as_str())?;
        match &self.when {
            When::Marker(path) => write!(f, "{:?} in it is closed", path.as_str())?,
            When::Pointer { file, names } => {
                write!(f, "{:?} at the top says {names}", file.to_string())?;
            }
            When::Removed(RemovedMarker::Inside(path)) => {
                write!(f, "{:?} in it is removed", path.as_str())?;
            }
            When::Removed(RemovedMarker::Beside { before, after }) => {
                write!(f, "\"{before}{{name}}{after}\" at the top is removed")?;
            }
            When::Next => write!(f, "the next is begun")?,
            When::Quiet { seconds } => return write!(f, "quiet for {seconds} s"),
        }
        match self.settle_seconds {
            0 => Ok(()),
            seconds => write!(f, " and then quiet for {seconds} s"),
        }
    }
}

/// The two parts of a text around the one `{word}` or `{word:...}` in it, and what `...` was.
fn around<'a>(text: &'a str, word: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let (before, rest) = text.split_once('{')?;
    let (place, after) = rest.split_once('}')?;
    let format = place.strip_prefix(word)?;
    let format = match format.strip_prefix(':') {
        Some(format) if !format.is_empty() => format,
        None if format.is_empty() => "",
        _ => return None,
    };
    (!after.contains(['{', '}']) && !before.contains('}')).then_some((before, format, after))
}

impl RemovedMarker {
    /// Reads a pattern of a path in the dataset, or `../` and a name with `{name}` in it.
    ///
    /// # Errors
    ///
    /// [`PatternError`] for anything else.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let Some(sibling) = text.strip_prefix("../") else {
            return PathPattern::new(text).map(Self::Inside);
        };
        match around(sibling, "name") {
            Some((before, "", after)) if !sibling.contains('/') && sibling != "{name}" => {
                Ok(Self::Beside {
                    before: before.to_owned(),
                    after: after.to_owned(),
                })
            }
            _ => Err(PatternError {
                text: text.to_owned(),
                reason: "a marker beside the dataset is written as in ../{name}-unfinished".into(),
            }),
        }
    }

    /// Whether `marker`, a name at the top, is that of the dataset `name`.
    #[must_use]
    pub fn is_beside(&self, marker: &[u8], name: &[u8]) -> bool {
        match self {
            Self::Inside(_) => false,
            Self::Beside { before, after } => {
                [before.as_bytes(), name, after.as_bytes()].concat() == marker
            }
        }
    }
}

impl NameTemplate {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// [`PatternError`] unless there is exactly one place for the content.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let error = |reason: &str| PatternError {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let Some((before, format, after)) = around(text, "content") else {
            return Err(error("a name with one {content} or {content:07} in it"));
        };
        let digits = match format.strip_prefix('0') {
            _ if format.is_empty() => None,
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|digits| (1..=DIGITS_MAX).contains(digits)),
            None => None,
        };
        if !format.is_empty() && digits.is_none() {
            return Err(error("01 to 020 after {content: as the digits of a number"));
        }
        Ok(Self {
            before: before.to_owned(),
            digits,
            after: after.to_owned(),
        })
    }

    /// The name that a pointer file with this content gives; `None` when it gives none.
    #[must_use]
    pub fn fill(&self, content: &[u8]) -> Option<Name> {
        let content = content.trim_ascii();
        let padding = match self.digits {
            Some(digits) => {
                let number = (1..=DIGITS_MAX).contains(&content.len())
                    && content.iter().all(u8::is_ascii_digit);
                if !number {
                    return None;
                }
                "0".repeat(digits.saturating_sub(content.len()))
            }
            None => String::new(),
        };
        let parts = [
            self.before.as_bytes(),
            padding.as_bytes(),
            content,
            self.after.as_bytes(),
        ];
        if content.is_empty() {
            return None;
        }
        Name::new(&parts.concat()).ok()
    }
}

impl fmt::Display for NameTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.digits {
            Some(digits) => write!(f, "{}{{content:0{digits}}}{}", self.before, self.after),
            None => write!(f, "{}{{content}}{}", self.before, self.after),
        }
    }
}

impl TryFrom<String> for NameTemplate {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        Self::new(&text)
    }
}

impl From<NameTemplate> for String {
    fn from(template: NameTemplate) -> Self {
        template.to_string()
    }
}

/// What scrfs knows of a framework.
#[derive(Debug)]
pub struct Profile {
    /// Its name in `commit.profiles`.
    pub name: &'static str,
    /// For people: what it is for, and what must be so.
    pub about: &'static str,
    /// Names that do not commit.
    pub temporary: &'static [&'static str],
    rules: &'static [Rule],
}

/// A trigger of a profile.
#[derive(Debug)]
struct Rule {
    pattern: &'static str,
    sign: Sign,
    /// Whether there is no barrier before the sign.
    settle: bool,
}

#[derive(Debug)]
enum Sign {
    Marker(&'static str),
    Pointer(&'static str, &'static str),
    Removed(&'static str),
    Next,
    Quiet,
}

/// All profiles.
pub const PROFILES: &[Profile] = &[
    Profile {
        name: "amrex",
        about: "AMReX codes: chkNNNNN.temp and pltNNNNN.temp are renamed when complete \
                (not with AsyncOut, which writes in place)",
        temporary: &["*.temp"],
        rules: &[],
    },
    Profile {
        name: "orbax",
        about: "Orbax: STEP.orbax-checkpoint-tmp* is renamed when complete; where it writes in \
                place, commit_success.txt comes last",
        temporary: &["*.orbax-checkpoint-tmp*"],
        rules: &[Rule {
            pattern: "*",
            sign: Sign::Marker("commit_success.txt"),
            settle: false,
        }],
    },
    Profile {
        name: "hf-trainer",
        about: "Hugging Face Trainer with output_dir at the mount: trainer_state.json is rank 0's \
                last file, but other ranks may still be about to write theirs",
        temporary: &["tmp-checkpoint-*"],
        rules: &[Rule {
            pattern: "checkpoint-*",
            sign: Sign::Marker("trainer_state.json"),
            settle: true,
        }],
    },
    Profile {
        name: "deepspeed",
        about: "DeepSpeed with its default tags: rank 0 writes latest without waiting for others",
        temporary: &[],
        rules: &[Rule {
            pattern: "global_step*",
            sign: Sign::Pointer("latest", "{content}"),
            settle: true,
        }],
    },
    Profile {
        name: "megatron",
        about: "Megatron-LM with --save at the mount: the tracker is written after a barrier",
        temporary: &[],
        rules: &[
            Rule {
                pattern: "iter_*",
                sign: Sign::Pointer("latest_checkpointed_iteration.txt", "iter_{content:07}"),
                settle: false,
            },
            Rule {
                pattern: "release",
                sign: Sign::Pointer("latest_checkpointed_iteration.txt", "{content}"),
                settle: false,
            },
        ],
    },
    Profile {
        name: "torch-dcp",
        about: "torch.distributed.checkpoint, torchtitan: .metadata is renamed into place after \
                all ranks have written",
        temporary: &[],
        rules: &[Rule {
            pattern: "*",
            sign: Sign::Marker(".metadata"),
            settle: false,
        }],
    },
    Profile {
        name: "nemo",
        about: "NeMo: NAME-unfinished beside the checkpoint is removed when it is complete",
        temporary: &[],
        rules: &[Rule {
            pattern: "*",
            sign: Sign::Removed("../{name}-unfinished"),
            settle: false,
        }],
    },
    Profile {
        name: "lammps",
        about: "LAMMPS writing restart files into directories restart.N: complete when the next \
                is begun, the last when nobody has written for commit.quiet_seconds",
        temporary: &[],
        rules: &[
            Rule {
                pattern: "restart.*",
                sign: Sign::Next,
                settle: false,
            },
            Rule {
                pattern: "restart.*",
                sign: Sign::Quiet,
                settle: false,
            },
        ],
    },
];

impl Profile {
    /// Its triggers, with the times of the configuration.
    ///
    /// # Errors
    ///
    /// [`PatternError`] when the table is wrong, which a test excludes.
    pub(super) fn triggers(
        &self,
        settle_seconds: u64,
        quiet_seconds: u64,
    ) -> Result<Vec<Trigger>, PatternError> {
        self.rules
            .iter()
            .map(|rule| rule.trigger(settle_seconds, quiet_seconds))
            .collect()
    }
}

impl Rule {
    fn trigger(&self, settle_seconds: u64, quiet_seconds: u64) -> Result<Trigger, PatternError> {
        let when = match self.sign {
            Sign::Marker(path) => When::Marker(PathPattern::new(path)?),
            Sign::Pointer(file, names) => When::Pointer {
                file: pointer_name(file)?,
                names: NameTemplate::new(names)?,
            },
            Sign::Removed(path) => When::Removed(RemovedMarker::new(path)?),
            Sign::Next => When::Next,
            Sign::Quiet => When::Quiet {
                seconds: quiet_seconds,
            },
        };
        Ok(Trigger {
            pattern: Pattern::new(self.pattern)?,
            when,
            settle_seconds: if self.settle { settle_seconds } else { 0 },
            tier: match self.pattern {
                "*" => Tier::General,
                _ => Tier::Profile,
            },
        })
    }
}

/// The name of a pointer file.
pub(super) fn pointer_name(text: &str) -> Result<Name, PatternError> {
    Name::new(text.as_bytes()).map_err(|error| PatternError {
        text: text.to_owned(),
        reason: error.to_string(),
    })
}
