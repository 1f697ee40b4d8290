//! Extended attributes of an open file, of the `user.` namespace only.
//!
//! The one place of this module tree with raw system calls: `nix` has none for these. A filesystem
//! without extended attributes has none to list.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The namespace that belongs to users; the others belong to the system.
const PREFIX: &[u8] = b"user.";
/// Room for names or a value that most files do with.
const GUESS_BYTES: usize = 256;

/// Whether the filesystem just has no such thing.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTSUP | libc::ENOSYS))
}

fn c_name(name: &[u8]) -> io::Result<CString> {
    CString::new(name).map_err(io::Error::other)
}

/// Calls with a buffer until the answer fits into it.
fn fitting(call: impl Fn(&mut [u8]) -> isize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; GUESS_BYTES];
    loop {
        match usize::try_from(call(&mut buffer)) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                // 64 KiB is the kernel's limit for names and values alike.
                if error.raw_os_error() != Some(libc::ERANGE) || buffer.len() > 1 << 16 {
                    return Err(error);
                }
                buffer = vec![0; buffer.len() * 4];
            }
        }
    }
}

/// All of them, sorted by name.
pub(crate) fn read_all(file: impl AsFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call; the kernel writes at most `len` bytes.
    let names =
        fitting(|buffer| unsafe { libc::flistxattr(fd, buffer.as_mut_ptr().cast(), buffer.len()) });
    let names = match names {
        Err(error) if is_unsupported(&error) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for name in names
        .split(|&byte| byte == 0)
        .filter(|name| name.starts_with(PREFIX))
    {
        let c_name = c_name(name)?;
        // SAFETY: as above; the name is a string with its NUL that outlives the call.
        let value = fitting(|buffer| unsafe {
            libc::fgetxattr(
                fd,
                c_name.as_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        })?;
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}

/// Sets one.
pub(crate) fn write(file: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    let name = c_name(name)?;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, the name ends with its NUL, and the kernel
    // reads `len` bytes of the value; both outlive the call.
    let result =
        unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
