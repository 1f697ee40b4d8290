//! Holding what the prefix has of one slot against its checksums, and putting it right from the cache.
//!
//! Nothing but the slot's own files and records is touched, and of a file only units that are not what
//! was sealed. Where there is no part to mend it with, damage is told and left.

use super::Prefix;
use super::complete::check_entries;
use super::error::PrefixError;
use crate::effects::chain;
use crate::part::records::encode_manifest;
use crate::part::{Leisure, Part, UNITS_MENDED_MAX, Units, mend_log};
use scrfs::findings::{Findings, Kept, Problem};
use scrfs::id::Slot;
use scrfs::layout::envelope::{Kind, crc32c, seal};
use scrfs::layout::record::DatasetRecord;
use scrfs::redundancy::Stream;
use scrfs::store::Store;
use std::path::Path;
use std::time::Instant;

/// Units read at once, as long as nothing is wrong with them.
const UNITS_A_READ: u64 = 16;

impl Prefix {
    /// Reads all that the prefix has of a slot; what is damaged is mended from `part`, where it is given.
    /// `progress` gets what was read by all who share `leisure`.
    pub(crate) fn look_over(
        &self,
        record: &DatasetRecord,
        slot: Slot,
        part: Option<&Part>,
        leisure: &Leisure,
        progress: &dyn Fn(u64),
    ) -> Findings {
        let mut findings = Findings::default();
        let note = |findings: &mut Findings, path: &Path, offset, repaired, words: String| {
            findings.note(Problem {
                slot,
                kept: Kept::Prefix,
                path: path.display().to_string(),
                offset,
                repaired,
                words,
            });
        };
        let root = self.paths.dataset(&record.name);
        match self.published(record) {
            Ok(true) => {}
            // Somebody deleted it, and this job does not know yet.
            Ok(false) if self.gone().is_ok_and(|gone| gone.contains(&record.key())) => {
                return findings;
            }
            Ok(false) => {
                note(&mut findings, &root, None, false, "is not there".into());
                return findings;
            }
            Err(error) => {
                note(&mut findings, &root, None, false, chain(&error));
                return findings;
            }
        }
        let units = match self.opened(record, slot) {
            Ok((units, _)) => units,
            Err(error) => {
                let path = self.paths.manifest(record.key(), slot);
                let words = chain(&error);
                let again = part
                    .and_then(|part| self.put_metadata(record, part).ok())
                    .and_then(|()| self.opened(record, slot).ok());
                note(&mut findings, &path, None, again.is_some(), words);
                match again {
                    Some((units, _)) => units,
                    None => return findings,
                }
            }
        };
        let (tree, manifest) = (units.log().tree_shared(), units.log().manifest());
        if let Err(error) = check_entries(record.id, &tree, manifest) {
            note(&mut findings, &root, None, false, chain(&error));
        }
        let total = manifest.log_bytes;
        let unit_bytes = u64::from(units.unit_bytes()).max(1);
        let stretch_bytes = unit_bytes * UNITS_A_READ;
        let (mut since, mut read) = (Instant::now(), 0);
        let mut offset = 0;
        while offset < total && leisure.goes_on() {
            let len = stretch_bytes.min(total - offset);
            findings.bytes += len;
            findings.units += len.div_ceil(unit_bytes);
            if units.read(offset, len).is_err() {
                for at in (offset..offset + len).step_by(stretch(unit_bytes)) {
                    let Err(error) = units.read(at, unit_bytes) else {
                        continue;
                    };
                    let path = units.log().path_at(at, unit_bytes);
                    let mended = findings.damaged < UNITS_MENDED_MAX as u64
                        && part.is_some_and(|part| mend(&units, part, at).is_ok());
                    note(&mut findings, &path, Some(at), mended, chain(&error));
                }
            }
            (offset, read) = (offset + len, read + len);
            if let Some(all) = leisure.rest(&mut since, &mut read) {
                progress(all);
            }
        }
        findings
    }

    /// Manifest and checksums of a slot, from the cache.
    fn put_metadata(&self, record: &DatasetRecord, part: &Part) -> Result<(), PrefixError> {
        let slot = part.id().slot;
        let sums = part.sums(Stream::Data);
        if !sums.is_complete() {
            return Err(PrefixError::NotSealed { dataset: record.id });
        }
        let path = self.paths.sums(record.key(), slot);
        self.store.put(&path, &seal(Kind::Sums, &sums))?;
        let path = self.paths.manifest(record.key(), slot);
        let (bytes, _) = encode_manifest(part.manifest());
        Ok(self.store.put(&path, &bytes)?)
    }

    /// The units of a slot's log in the prefix, each checked when it is read.
    pub(crate) fn units_of(
        &self,
        record: &DatasetRecord,
        slot: Slot,
    ) -> Result<Units, PrefixError> {
        self.opened(record, slot).map(|(units, _)| units)
    }
}

fn stretch(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX).max(1)
}

/// Writes a unit as the cache has it, if that is what was sealed.
fn mend(units: &Units, part: &Part, offset: u64) -> Result<(), PrefixError> {
    let unit_bytes = u64::from(units.unit_bytes()).max(1);
    let unit = usize::try_from(offset / unit_bytes).unwrap_or(usize::MAX);
    let bytes = part.read_unit(Stream::Data, unit)?;
    let wanted = units.sums().crcs.get(unit).copied().flatten();
    if wanted != Some(crc32c(&bytes)) {
        return Err(PrefixError::NotSealed {
            dataset: part.id().dataset,
        });
    }
    mend_log(units.log(), offset, &bytes)?;
    units.read(offset, unit_bytes)?;
    Ok(())
}
