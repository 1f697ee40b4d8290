//! Host lists as Slurm writes them: `node[0-3,7],login1` stands for six names.
//!
//! Ranges keep leading zeros (`n[08-11]`), brackets may stand anywhere and more than once.
//! Invariants: the names come in the order written, each once; no list makes more than
//! [`HOSTS_MAX`] names, however short it is; no text panics. Names are not looked up.

use std::collections::BTreeSet;

/// Names that one list may stand for.
pub const HOSTS_MAX: usize = 1 << 17;

/// Bytes of one name at most.
pub const HOST_BYTES_MAX: usize = 255;

/// A list that does not make sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HostlistError {
    /// A bracket without its partner, or one inside another.
    #[error("host list {0:?}: brackets do not match")]
    Brackets(String),
    /// Something in brackets that is no number and no ascending range.
    #[error("host list {list:?}: {range:?} is no range of numbers")]
    Range {
        /// The list.
        list: String,
        /// What stands in the brackets.
        range: String,
    },
    /// A name that is empty, contains blanks, or is longer than [`HOST_BYTES_MAX`].
    #[error("host list {0:?}: a name is empty, has blanks in it, or is too long")]
    Name(String),
    /// More names than [`HOSTS_MAX`].
    #[error("host list {0:?}: more than {HOSTS_MAX} names")]
    TooMany(String),
}

/// The names that `list` stands for. An empty list stands for none.
///
/// # Errors
///
/// [`HostlistError`] when brackets, ranges or names make no sense, or there are too many.
pub fn expand_hostlist(list: &str) -> Result<Vec<String>, HostlistError> {
    let mut names = Vec::new();
    let mut seen = BTreeSet::new();
    if list.trim().is_empty() {
        return Ok(names);
    }
    for item in split_outside_brackets(list)? {
        let item = item.trim();
        if item.is_empty() || item.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(HostlistError::Name(list.to_owned()));
        }
        for name in expand_item(list, item)? {
            if seen.insert(name.clone()) {
                names.push(name);
            }
        }
        if names.len() > HOSTS_MAX {
            return Err(HostlistError::TooMany(list.to_owned()));
        }
    }
    Ok(names)
}

fn split_outside_brackets(list: &str) -> Result<Vec<&str>, HostlistError> {
    let (mut items, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, c) in list.char_indices() {
        match (c, inside) {
            ('[', false) => inside = true,
            (']', true) => inside = false,
            ('[', true) | (']', false) => return Err(HostlistError::Brackets(list.to_owned())),
            (',', false) => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(HostlistError::Brackets(list.to_owned()));
    }
    items.push(&list[start..]);
    Ok(items)
}

/// One item, brackets balanced, as the product of its ranges.
fn expand_item(list: &str, item: &str) -> Result<Vec<String>, HostlistError> {
    let mut names = vec![String::new()];
    let mut rest = item;
    while let Some((text, after)) = rest.split_once('[') {
        let Some((inside, after)) = after.split_once(']') else {
            return Err(HostlistError::Brackets(list.to_owned()));
        };
        let mut numbers = Vec::new();
        for range in inside.split(',') {
            let bad = || HostlistError::Range {
                list: list.to_owned(),
                range: range.to_owned(),
            };
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
            if !digits(first) || !digits(last) {
                return Err(bad());
            }
            let low: u64 = first.parse().map_err(|_| bad())?;
            let high: u64 = last.parse().map_err(|_| bad())?;
            if first.len() > HOST_BYTES_MAX {
                return Err(HostlistError::Name(list.to_owned()));
            }
            if low > high || first.len() > last.len() {
                return Err(bad());
            }
            let more = usize::try_from(high - low)
                .ok()
                .filter(|&more| more < HOSTS_MAX);
            let total = more.map(|more| numbers.len() + more + 1);
            if total.is_none_or(|total| total.saturating_mul(names.len()) > HOSTS_MAX) {
                return Err(HostlistError::TooMany(list.to_owned()));
            }
            let width = first.len();
            numbers.extend((low..=high).map(|number| format!("{number:0width$}")));
        }
        let longest = names.last().map_or(0, String::len) + text.len();
        if longest > HOST_BYTES_MAX {
            return Err(HostlistError::Name(list.to_owned()));
        }
        names = names
            .iter()
            .flat_map(|name| {
                numbers
                    .iter()
                    .map(move |number| format!("{name}{text}{number}"))
            })
            .collect();
        rest = after;
    }
    if names.last().map_or(0, String::len) + rest.len() > HOST_BYTES_MAX {
        return Err(HostlistError::Name(list.to_owned()));
    }
    names.iter_mut().for_each(|name| name.push_str(rest));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_are_expanded_in_order() {
        let names = |list| expand_hostlist(list).expect("valid").join(" ");
        assert_eq!(
            names("node[0-3,7],login1"),
            "node0 node1 node2 node3 node7 login1"
        );
        assert_eq!(names("n[08-11]-ib"), "n08-ib n09-ib n10-ib n11-ib");
        assert_eq!(names("r[1-2]n[0-1], r1n0"), "r1n0 r1n1 r2n0 r2n1");
        assert_eq!(names("n[98-101]"), "n98 n99 n100 n101");
        assert_eq!(names("a"), "a");
        assert_eq!(names(" "), "");
        assert_eq!(
            expand_hostlist("node[0-15]").map(|names| names.len()),
            Ok(16)
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for list in ["a[1", "a]", "a[[1]]", "a[1-3", "a[1,]2["] {
            assert!(
                matches!(expand_hostlist(list), Err(HostlistError::Brackets(_))),
                "{list}"
            );
        }
        for list in [
            "a[]",
            "a[x]",
            "a[3-1]",
            "a[1-]",
            "a[-1]",
            "a[010-9]",
            "a[+1]",
            "a[99999999999999999999]",
        ] {
            assert!(
                matches!(expand_hostlist(list), Err(HostlistError::Range { .. })),
                "{list}"
            );
        }
        for list in ["a,,b", ",", "a b", "a,"] {
            assert!(
                matches!(expand_hostlist(list), Err(HostlistError::Name(_))),
                "{list}"
            );
        }
        let long = [
            &"a".repeat(256),
            &format!("a[{}1-2]", "0".repeat(300)),
            &"b[1]".repeat(200),
        ]
        .map(|list| expand_hostlist(list));
        assert!(
            long.iter()
                .all(|names| matches!(names, Err(HostlistError::Name(_))))
        );
        for list in [
            "a[0-18446744073709551615]",
            "a[0-999999]",
            "a[0-999]b[0-999]c[0-999]",
        ] {
            assert!(
                matches!(expand_hostlist(list), Err(HostlistError::TooMany(_))),
                "{list}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(list in "[a-c0-9\\[\\],\\- \u{e9}]{0,40}") {
            if let Ok(names) = expand_hostlist(&list) {
                prop_assert!(names.len() <= HOSTS_MAX);
                prop_assert!(names.iter().all(|n| !n.is_empty() && !n.contains(['[', ']', ','])));
            }
        }
    }
}
