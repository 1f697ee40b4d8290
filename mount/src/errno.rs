//! From what went wrong to what the kernel is told: the only file that names errno values.
//!
//! One exhaustive match, no wildcard: a new error has to say here what programs will see.

use crate::vfs::FsError;
use scrfs::control::Refusal;

/// The errno that a program gets.
pub fn errno_of(error: &FsError) -> i32 {
    match error {
        FsError::System(errno) => *errno as i32,
        FsError::Missing => libc::ENOENT,
        FsError::Exists => libc::EEXIST,
        FsError::Sealed => libc::EROFS,
        FsError::Busy => libc::EBUSY,
        FsError::NotDirectory => libc::ENOTDIR,
        FsError::NotEmpty => libc::ENOTEMPTY,
        FsError::Invalid => libc::EINVAL,
        FsError::NameTooLong => libc::ENAMETOOLONG,
        // Files at the top and everything under `.scr` are not the program's to change. EPERM and
        // not EACCES: no permission bit would help.
        FsError::NotPermitted => libc::EPERM,
        // What makes `mv` fall back to copying.
        FsError::OtherDataset => libc::EXDEV,
        FsError::NoAttribute => libc::ENODATA,
        FsError::NotSupported => libc::EOPNOTSUPP,
        FsError::BufferTooSmall => libc::ERANGE,
        FsError::NoSpace => libc::ENOSPC,
        FsError::Broken => libc::EIO,
        // Not EAGAIN: of a regular file no program expects it.
        FsError::Unreachable => libc::EIO,
        FsError::Refused(refusal) => refusal_errno(*refusal),
    }
}

fn refusal_errno(refusal: Refusal) -> i32 {
    match refusal {
        Refusal::Busy => libc::EBUSY,
        Refusal::Exists => libc::EEXIST,
        Refusal::Missing => libc::ENOENT,
        Refusal::NotEmpty => libc::ENOTEMPTY,
        Refusal::ReadOnly => libc::EROFS,
        Refusal::NoSpace => libc::ENOSPC,
        Refusal::Failed | Refusal::Damaged | Refusal::Unavailable => libc::EIO,
        // EAGAIN is no documented result of mkdir or rename: programs would not expect it.
        Refusal::Again => libc::EBUSY,
    }
}

/// What the coordinator is told of an error of the cache.
pub fn refusal_of(error: &FsError) -> Refusal {
    let errno = errno_of(error);
    match errno {
        libc::EBUSY => Refusal::Busy,
        libc::EEXIST => Refusal::Exists,
        libc::ENOENT => Refusal::Missing,
        libc::ENOTEMPTY => Refusal::NotEmpty,
        libc::EROFS => Refusal::ReadOnly,
        libc::ENOSPC | libc::EDQUOT => Refusal::NoSpace,
        _ => Refusal::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reaches_the_program_and_comes_back() {
        for refusal in [
            Refusal::Busy,
            Refusal::Exists,
            Refusal::Missing,
            Refusal::NotEmpty,
            Refusal::ReadOnly,
            Refusal::NoSpace,
            Refusal::Failed,
        ] {
            assert_eq!(refusal_of(&FsError::Refused(refusal)), refusal);
        }
    }
}
