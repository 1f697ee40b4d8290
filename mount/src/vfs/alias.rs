//! Names that are found only by those who are about to rename or remove them.
//!
//! *Renames that come after the commit.*
//! One rename commits on every node; other processes that call the identical `rename(T, N)` later
//! must get 0 as well, on this node (they waited for the kernel's lock on the top directory) and
//! on others. The kernel looks both names up first and fails with ENOENT before asking anybody, so T
//! must still be found. For the grace time after the seal, a lookup of T *from inside a rename
//! system call* yields the sealed dataset itself: source and target are then the same inode, for
//! which POSIX and the kernel say that rename does nothing and succeeds. A rename of T to another
//! name does reach us, and gets ENOENT.
//!
//! Why not an empty stand-in directory: renaming that over N makes the kernel mark N's inode dead, and
//! every program inside it would fail. Why only inside rename: a T that `mkdir` can see is EEXIST
//! before we are asked, and programs use one temporary name for all their checkpoints. FUSE does not
//! say what a lookup is for, so the caller's current system call is read from `/proc`; where
//! that is not allowed (no ptrace right over the caller, another pid namespace) T is shown.
//!
//! *Removing what cannot be opened.* A name that two nodes gave to different things is EIO to whoever looks it
//! up; a lookup from inside `unlink` finds a stand-in, so that all names of such a dataset can be removed.

/// Whether the thread is inside a rename system call; `None` when that cannot be found out.
pub fn is_renaming(pid: u32) -> Option<bool> {
    system_call(pid).map(is_rename_number)
}

/// Whether the thread is inside `unlink` or `unlinkat`; `None` when that cannot be found out.
pub fn is_removing(pid: u32) -> Option<bool> {
    system_call(pid).map(is_unlink_number)
}

/// The number of the system call that the thread is in, -1 when it is in none.
///
/// A thread that waits for our answer is asleep; right after it sent the request it may still be seen
/// running, for microseconds.
fn system_call(pid: u32) -> Option<i64> {
    if pid == 0 {
        return None;
    }
    let path = format!("/proc/{pid}/syscall");
    for _ in 0..200 {
        let text = std::fs::read_to_string(&path).ok()?;
        let first = text.split_whitespace().next()?;
        if first != "running" {
            return Some(first.parse().unwrap_or(-1));
        }
        std::thread::yield_now();
    }
    None
}

fn is_rename_number(number: i64) -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86", target_arch = "arm"))]
    if number == libc::SYS_rename {
        return true;
    }
    number == libc::SYS_renameat || number == libc::SYS_renameat2
}

fn is_unlink_number(number: i64) -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86", target_arch = "arm"))]
    if number == libc::SYS_unlink {
        return true;
    }
    number == libc::SYS_unlinkat
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_thread_that_sleeps_is_not_renaming() {
        let (said, heard) = std::sync::mpsc::channel();
        let (_end, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let _ = said.send(nix::unistd::gettid().as_raw() as u32);
            let _ = wait.recv();
        });
        let pid = heard.recv().expect("its number");
        assert_eq!(super::is_renaming(pid), Some(false));
        assert_eq!(super::is_removing(pid), Some(false));
        drop(_end);
        let _ = thread.join();
        assert_eq!(super::is_renaming(0), None);
    }
}
