//! Single values of the configuration: where they come from, and how their text is read.
//!
//! Sizes are bytes; `KiB` to `PiB`, and the bare letters `K` to `P`, are powers of 1024, `kB` to
//! `PB` powers of 1000. Reading is strict: what is not understood is an error that says
//! what was expected. Which keys there are is the business of `document`.

use crate::config::{Bandwidth, Capacity, Class, CommitWait, Mtbf};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// An option of the command.
    CommandLine,
    /// A variable of the environment, by name.
    Environment(String),
    /// A file and the line in it, from 1.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => write!(f, "command line"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Default => write!(f, "default"),
        }
    }
}

/// What is wrong with a configuration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file is not TOML.
    #[error("{origin}: not valid TOML: {message}")]
    Syntax {
        /// File and line.
        origin: Origin,
        /// What the parser says.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key {key:?}; the nearest valid key is {nearest:?}")]
    UnknownKey {
        /// Where it is.
        origin: Origin,
        /// The key with its table.
        key: String,
        /// The valid key most like it.
        nearest: String,
    },
    /// A value that cannot be.
    #[error("{origin}: {key} = {value}: expected {expected}")]
    BadValue {
        /// Where it is.
        origin: Origin,
        /// The key with its table.
        key: String,
        /// The value as it was given.
        value: String,
        /// What could stand there.
        expected: String,
    },
}

/// A value as it was given.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Raw {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Raw>),
    /// Something no key wants, by the name of its type.
    Other(&'static str),
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Self::Other(kind) => write!(f, "({kind})"),
        }
    }
}

/// A value and where it stands.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Setting {
    pub(super) raw: Raw,
    pub(super) origin: Origin,
}

impl Setting {
    pub(super) fn bad(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        ConfigError::BadValue {
            origin: self.origin.clone(),
            key: key.to_owned(),
            value: self.raw.to_string(),
            expected: expected.into(),
        }
    }
}

/// How a value is read: the value, or what was expected instead.
pub(super) type Read<T> = fn(&Raw) -> Result<T, String>;

pub(super) fn text(raw: &Raw) -> Result<String, String> {
    match raw {
        Raw::Text(text) if !text.contains('\0') => Ok(text.clone()),
        _ => Err("a string".into()),
    }
}

pub(super) fn path(raw: &Raw) -> Result<String, String> {
    text(raw)
        .ok()
        .filter(|path| !path.is_empty())
        .ok_or_else(|| "a path".into())
}

pub(super) fn flag(raw: &Raw) -> Result<bool, String> {
    let word = match raw {
        Raw::Bool(value) => return Ok(*value),
        Raw::Integer(number) => number.to_string(),
        Raw::Text(text) => text.to_ascii_lowercase(),
        _ => String::new(),
    };
    match word.as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("true or false".into()),
    }
}

pub(super) fn count(raw: &Raw) -> Result<u64, String> {
    let number = match raw {
        Raw::Integer(number) => u64::try_from(*number).ok(),
        Raw::Text(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| "a whole number, 0 or more".into())
}

pub(super) fn positive(raw: &Raw) -> Result<u32, String> {
    let number = count(raw)
        .ok()
        .and_then(|number| u32::try_from(number).ok());
    number
        .filter(|&number| number > 0)
        .ok_or_else(|| "a whole number, 1 or more".into())
}

pub(super) fn interval(raw: &Raw) -> Result<u64, String> {
    let number = count(raw).ok().filter(|&number| number > 0);
    number.ok_or_else(|| "a whole number, 1 or more".into())
}

pub(super) fn set_size(raw: &Raw) -> Result<u32, String> {
    positive(raw)
        .ok()
        .filter(|&size| size > 1)
        .ok_or_else(|| "a whole number, 2 or more".into())
}

pub(super) fn failures(raw: &Raw) -> Result<u8, String> {
    let number = positive(raw)
        .ok()
        .and_then(|number| u8::try_from(number).ok());
    number.ok_or_else(|| "a whole number from 1 to 255".into())
}

fn number(raw: &Raw) -> Option<f64> {
    let number = match raw {
        Raw::Integer(number) => *number as f64,
        Raw::Float(number) => *number,
        Raw::Text(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    (number.is_finite() && number >= 0.0).then_some(number)
}

pub(super) fn percent(raw: &Raw) -> Result<f64, String> {
    number(raw).ok_or_else(|| "a number of percent, 0 or more".into())
}

pub(super) fn share(raw: &Raw) -> Result<u64, String> {
    let share = count(raw).ok().filter(|share| *share <= 100);
    share.ok_or_else(|| "a number of percent from 0 to 100".into())
}

pub(super) fn mtbf(raw: &Raw) -> Result<Mtbf, String> {
    if matches!(raw, Raw::Text(text) if text.eq_ignore_ascii_case("auto")) {
        return Ok(Mtbf::Auto);
    }
    let seconds = match raw {
        Raw::Text(text) => parse_seconds(text),
        _ => number(raw),
    };
    seconds
        .filter(|&seconds| seconds > 0.0)
        .map(Mtbf::Seconds)
        .ok_or_else(|| {
            "\"auto\", or a time above 0 such as \"12h\"; bare numbers are seconds".into()
        })
}

/// Reads a time such as `30s`, `11min`, `1h 30m`, `2d` or `5y`, in seconds; a bare number is seconds.
/// A day has 24 hours, a month 30.44 days, a year 365.25. None when it is no time, or below 0.
#[must_use]
pub fn parse_seconds(text: &str) -> Option<f64> {
    const DAY: f64 = 86_400.0;
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return (seconds.is_finite() && seconds >= 0.0).then_some(seconds);
    }
    let span: jiff::Span = text.parse().ok()?;
    let parts = [
        (f64::from(span.get_years()), 365.25 * DAY),
        (f64::from(span.get_months()), 365.25 * DAY / 12.0),
        (f64::from(span.get_weeks()), 7.0 * DAY),
        (f64::from(span.get_days()), DAY),
        (f64::from(span.get_hours()), 3600.0),
        (span.get_minutes() as f64, 60.0),
        (span.get_seconds() as f64, 1.0),
        (span.get_milliseconds() as f64, 1e-3),
        (span.get_microseconds() as f64, 1e-6),
        (span.get_nanoseconds() as f64, 1e-9),
    ];
    let seconds = parts.iter().map(|(number, unit)| number * unit).sum();
    (!span.is_negative()).then_some(seconds)
}

/// Reads a size such as `64GiB`, `1MiB` or `4096`, in bytes; None when it is no whole number with
/// a known unit, or does not fit.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (letter, base) = match unit.trim_start().as_bytes() {
        [] | [b'B' | b'b'] => return number.parse().ok(),
        [letter] => (letter, 1024_u64),
        [letter, b'i' | b'I', b'B' | b'b'] => (letter, 1024),
        [letter, b'B' | b'b'] => (letter, 1000),
        _ => return None,
    };
    let power = b"KMGTP"
        .iter()
        .position(|p| *p == letter.to_ascii_uppercase())?;
    let factor = base.checked_pow(u32::try_from(power).ok()? + 1)?;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// A size in bytes, printed with the largest unit that divides it.
#[derive(Clone, Copy)]
pub(super) struct Size(pub(super) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [
            (50, "PiB"),
            (40, "TiB"),
            (30, "GiB"),
            (20, "MiB"),
            (10, "KiB"),
        ] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

fn bytes(raw: &Raw) -> Option<u64> {
    match raw {
        Raw::Integer(number) => u64::try_from(*number).ok(),
        Raw::Text(text) => parse_size(text),
        _ => None,
    }
}

pub(super) fn chunk(raw: &Raw) -> Result<Size, String> {
    use crate::redundancy::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};
    let allowed = CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX;
    let size = bytes(raw).filter(|size| size.is_power_of_two() && allowed.contains(size));
    size.map(Size)
        .ok_or_else(|| "a power of two from 4KiB to 1GiB".into())
}

fn is_unlimited(raw: &Raw) -> bool {
    matches!(raw, Raw::Text(text) if text.trim().eq_ignore_ascii_case("unlimited"))
}

pub(super) fn capacity(raw: &Raw) -> Result<Capacity, String> {
    if is_unlimited(raw) {
        return Ok(Capacity::Unlimited);
    }
    let percent = match raw {
        Raw::Text(text) => text
            .trim()
            .strip_suffix('%')
            .map(|number| number.trim().parse::<u8>()),
        _ => None,
    };
    let read = match percent {
        Some(Ok(percent @ 1..=100)) => Some(Capacity::Percent(percent)),
        Some(_) => None,
        None => bytes(raw).filter(|&bytes| bytes > 0).map(Capacity::Bytes),
    };
    read.ok_or_else(|| "a share such as \"50%\", a size such as \"64GiB\", or \"unlimited\"".into())
}

pub(super) fn bandwidth(raw: &Raw) -> Result<Bandwidth, String> {
    if is_unlimited(raw) {
        return Ok(Bandwidth::Unlimited);
    }
    let read = bytes(raw)
        .filter(|&bytes| bytes > 0)
        .map(Bandwidth::BytesPerSecond);
    read.ok_or_else(|| "bytes a second such as \"2GiB\", or \"unlimited\"".into())
}

/// A scheme before it is told how many failures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SchemeName {
    Single,
    Partner,
    Xor,
    Rs,
}

/// One of `choices` by its name, in any case.
fn choice<T: Copy>(raw: &Raw, choices: &[(&str, T)]) -> Result<T, String> {
    let Raw::Text(text) = raw else {
        return Err(names(choices));
    };
    let text = text.trim();
    let found = choices
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(|| names(choices))
}

fn names<T>(choices: &[(&str, T)]) -> String {
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    format!("one of {}", names.join(", "))
}

fn name_of<T: PartialEq>(value: &T, choices: &[(&'static str, T)]) -> &'static str {
    choices
        .iter()
        .find(|(_, v)| v == value)
        .map_or("", |(name, _)| name)
}

const SCHEMES: [(&str, SchemeName); 4] = [
    ("single", SchemeName::Single),
    ("partner", SchemeName::Partner),
    ("xor", SchemeName::Xor),
    ("rs", SchemeName::Rs),
];
const CLASSES: [(&str, Class); 3] = [
    ("checkpoint", Class::Checkpoint),
    ("output", Class::Output),
    ("both", Class::Both),
];
const WAITS: [(&str, CommitWait); 3] = [
    ("sealed", CommitWait::Sealed),
    ("protected", CommitWait::Protected),
    ("flushed", CommitWait::Flushed),
];

pub(super) fn scheme(raw: &Raw) -> Result<SchemeName, String> {
    choice(raw, &SCHEMES)
}

pub(super) fn class(raw: &Raw) -> Result<Class, String> {
    choice(raw, &CLASSES)
}

pub(super) fn wait(raw: &Raw) -> Result<CommitWait, String> {
    choice(raw, &WAITS)
}

impl fmt::Display for SchemeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(self, &SCHEMES))
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(self, &CLASSES))
    }
}

impl std::str::FromStr for Class {
    type Err = String;

    /// Reads `checkpoint`, `output` or `both`, as the attribute `user.scrfs.class` gives them;
    /// the error says what was expected.
    fn from_str(text: &str) -> Result<Self, String> {
        choice(&Raw::Text(text.to_owned()), &CLASSES)
    }
}

impl fmt::Display for CommitWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(self, &WAITS))
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => Size(*bytes).fmt(f),
            Self::Unlimited => write!(f, "unlimited"),
        }
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BytesPerSecond(bytes) => Size(*bytes).fmt(f),
            Self::Unlimited => write!(f, "unlimited"),
        }
    }
}

impl fmt::Display for Mtbf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Seconds(seconds) => write!(f, "{seconds}"),
        }
    }
}

/// Replaces `$VAR` and `${VAR}` by their values; `$$` is a dollar sign, and so is one before
/// anything that is no name. Values are not expanded again.
///
/// # Errors
///
/// What is wrong, as text: a variable that is not set, or a brace that is not closed.
pub fn expand_variables(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        let name = if let Some(braced) = rest.strip_prefix('{') {
            let Some(close) = braced.find('}') else {
                return Err("a closing brace after ${".into());
            };
            rest = &braced[close + 1..];
            &braced[..close]
        } else if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        } else {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            if end == 0 || rest.starts_with(|c: char| c.is_ascii_digit()) {
                out.push('$');
                continue;
            }
            let name = &rest[..end];
            rest = &rest[end..];
            name
        };
        match env(name) {
            Some(value) => out.push_str(&value),
            None => return Err(format!("a path without ${name}, which is not set")),
        }
    }
    out.push_str(rest);
    Ok(out)
}
