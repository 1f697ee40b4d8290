//! An adopted directory in parts, so that several nodes fetch it, each its share.
//!
//! Files are dealt out in the order of the manifest, in runs of about the same number of bytes; a hard link
//! goes where its file is. Every part has the directories that its entries lie in, the first one all of
//! them, and what holds no data. Pure; [`split`] of something small gives it back.

use scrfs::id::Slot;
use scrfs::layout::manifest::{Entry, EntryKind, Manifest};
use scrfs::name::RelPath;
use std::collections::{BTreeMap, BTreeSet};

/// Parts at most: more nodes than so many do not fetch faster.
const PARTS_MAX: u64 = 64;
/// Bytes of a part at least.
const PART_BYTES_MIN: u64 = 16 << 20;

/// The parts of a manifest, slots from 0.
pub(super) fn split(manifest: Manifest) -> Vec<Manifest> {
    split_into(manifest, PARTS_MAX, PART_BYTES_MIN)
}

fn split_into(manifest: Manifest, parts_max: u64, bytes_min: u64) -> Vec<Manifest> {
    let total = manifest.log_bytes;
    let parts = parts_max
        .min(manifest.files())
        .min(total / bytes_min.max(1));
    if parts < 2 {
        return vec![manifest];
    }
    let mut of_file: BTreeMap<RelPath, u64> = BTreeMap::new();
    let mut shares: BTreeMap<u64, Vec<usize>> = (0..parts).map(|part| (part, vec![])).collect();
    for (index, entry) in manifest.entries.iter().enumerate() {
        let part = match &entry.kind {
            EntryKind::File { log_offset, .. } => {
                // Below `parts`, for a file begins before the log ends; one without data may not.
                let part = u128::from(*log_offset) * u128::from(parts) / u128::from(total);
                let part = u64::try_from(part).unwrap_or(0).min(parts - 1);
                of_file.insert(entry.path.clone(), part);
                part
            }
            EntryKind::HardLink { to } => of_file.get(to).copied().unwrap_or(0),
            EntryKind::Directory | EntryKind::Symlink { .. } | EntryKind::Node(_) => 0,
        };
        shares.entry(part).or_default().push(index);
    }
    // One large file may leave nothing for the parts behind it.
    shares.retain(|part, share| *part == 0 || !share.is_empty());
    let slots = (0u32..).map(Slot);
    let shares = slots.zip(shares.into_values());
    shares
        .map(|(slot, share)| part_of(&manifest, slot, &share))
        .collect()
}

fn part_of(manifest: &Manifest, slot: Slot, share: &[usize]) -> Manifest {
    let mut above: BTreeSet<&[u8]> = BTreeSet::new();
    for &index in share {
        let path = manifest.entries[index].path.as_bytes();
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        above.extend(ends.map(|(end, _)| &path[..end]));
    }
    let mut wanted: BTreeSet<usize> = share.iter().copied().collect();
    let directories = manifest.entries.iter().enumerate().filter(|(_, entry)| {
        entry.kind == EntryKind::Directory && above.contains(entry.path.as_bytes())
    });
    wanted.extend(directories.map(|(index, _)| index));
    let mut log_bytes = 0;
    let entries = wanted.into_iter().map(|index| {
        let mut entry: Entry = manifest.entries[index].clone();
        if let EntryKind::File {
            log_offset,
            extents,
            ..
        } = &mut entry.kind
        {
            *log_offset = log_bytes;
            log_bytes += extents.iter().map(|extent| extent.len).sum::<u64>();
        }
        entry
    });
    let entries = entries.collect();
    Manifest {
        slot,
        entries,
        log_bytes,
        ..manifest.clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::part::scan_part;
    use crate::part::testing::random_tree;
    use scrfs::id::{DatasetId, Epoch};

    #[test]
    fn every_entry_is_in_one_part_and_directories_where_they_are_needed() {
        for seed in 0..20 {
            let root = tempfile::tempdir().unwrap();
            let tree = root.path().join("tree");
            random_tree(&tree, 0, seed);
            let whole = scan_part(&tree, DatasetId(1), Slot(0), Epoch(0)).unwrap();
            assert_eq!(split(whole.clone()), std::slice::from_ref(&whole), "small");
            let parts = split_into(whole.clone(), 5, 1);
            let mut seen: BTreeMap<&RelPath, usize> = BTreeMap::new();
            for (slot, part) in parts.iter().enumerate() {
                assert_eq!(part.slot.0 as usize, slot);
                part.check().unwrap();
                let mut here = BTreeSet::new();
                for entry in &part.entries {
                    let path = entry.path.as_bytes();
                    if let Some(end) = path.iter().rposition(|&byte| byte == b'/') {
                        assert!(here.contains(&path[..end]), "{:?}", entry.path);
                    }
                    if let EntryKind::HardLink { to } = &entry.kind {
                        assert!(here.contains(to.as_bytes()), "{to:?} is elsewhere");
                    }
                    here.insert(path);
                    if entry.kind != EntryKind::Directory || slot == 0 {
                        *seen.entry(&entry.path).or_default() += 1;
                    }
                }
            }
            let all: BTreeMap<_, _> = whole.entries.iter().map(|it| (&it.path, 1)).collect();
            assert_eq!(seen, all);
            let bytes: u64 = parts.iter().map(|part| part.log_bytes).sum();
            assert_eq!(bytes, whole.log_bytes);
        }
    }
}
