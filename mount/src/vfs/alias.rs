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
//!
//! *Opening what only the prefix has.* See `shelf`. Opening counts, of the dataset or of anything
//! below it; but not to make a file. Asking for attributes counts when it is of something below it, which the
//! path says that the caller gave: whether a dataset itself is there is asked by who is about to write it.

use scrfs::name::Name;
use std::os::unix::fs::FileExt;

/// Whether the thread is inside a rename system call; `None` when that cannot be found out.
pub fn is_renaming(pid: u32) -> Option<bool> {
    system_call(pid).map(is_rename_number)
}

/// Whether the thread is inside `unlink` or `unlinkat`; `None` when that cannot be found out.
pub fn is_removing(pid: u32) -> Option<bool> {
    system_call(pid).map(is_unlink_number)
}

/// Whether the thread opens the dataset of that name, or wants something below it; `None` when that cannot be
/// found out.
pub fn is_reaching(pid: u32, dataset: &Name) -> Option<bool> {
    let call = system_call_line(pid)?;
    let mut words = call.split_whitespace();
    let number = words.next()?.parse().unwrap_or(-1);
    let arguments: Vec<u64> = words
        .map_while(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
        .collect();
    let argument = |at: usize| arguments.get(at).copied().unwrap_or(0);
    match reach_of(number) {
        Reach::Opens { flags } => {
            let flags = flags.map_or(0, argument);
            Some(flags & libc::O_CREAT as u64 == 0)
        }
        Reach::Asks { path } => {
            let path = string_of(pid, argument(path))?;
            Some(is_below(&path, dataset.as_bytes()))
        }
        Reach::No => Some(false),
    }
}

/// What a system call does with what it names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reach {
    /// Opens or enters it; which argument has the flags that may say otherwise.
    Opens { flags: Option<usize> },
    /// Asks about it; which argument has the path.
    Asks { path: usize },
    /// Neither.
    No,
}

fn reach_of(number: i64) -> Reach {
    #[cfg(target_arch = "x86_64")]
    match number {
        libc::SYS_open => return Reach::Opens { flags: Some(1) },
        libc::SYS_stat | libc::SYS_lstat | libc::SYS_access | libc::SYS_readlink => {
            return Reach::Asks { path: 0 };
        }
        _ => {}
    }
    match number {
        libc::SYS_openat => Reach::Opens { flags: Some(2) },
        libc::SYS_openat2 | libc::SYS_chdir | libc::SYS_execve | libc::SYS_execveat => {
            Reach::Opens { flags: None }
        }
        libc::SYS_statfs
        | libc::SYS_getxattr
        | libc::SYS_lgetxattr
        | libc::SYS_listxattr
        | libc::SYS_llistxattr => Reach::Asks { path: 0 },
        libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_faccessat
        | libc::SYS_faccessat2
        | libc::SYS_readlinkat => Reach::Asks { path: 1 },
        _ => Reach::No,
    }
}

/// The string at an address of a thread; `None` when it cannot be read.
fn string_of(pid: u32, address: u64) -> Option<Vec<u8>> {
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut string = Vec::new();
    while string.len() < libc::PATH_MAX as usize {
        let at = address.checked_add(string.len() as u64)?;
        // What lies in the next page may not be there.
        let mut bytes = [0; 256];
        let len = (256 - at % 256) as usize;
        memory.read_exact_at(&mut bytes[..len], at).ok()?;
        match bytes[..len].iter().position(|byte| *byte == 0) {
            Some(end) => {
                string.extend_from_slice(&bytes[..end]);
                return Some(string);
            }
            None => string.extend_from_slice(&bytes[..len]),
        }
    }
    None
}

/// Whether a path goes on below a name in it.
fn is_below(path: &[u8], name: &[u8]) -> bool {
    let mut components = path.split(|byte| *byte == b'/').filter(|it| !it.is_empty());
    components.any(|it| it == name) && components.next().is_some()
}

/// The number of the system call that the thread is in, -1 when it is in none.
fn system_call(pid: u32) -> Option<i64> {
    let line = system_call_line(pid)?;
    let first = line.split_whitespace().next()?;
    Some(first.parse().unwrap_or(-1))
}

/// What `/proc` says of the system call that the thread is in: its number and its arguments.
///
/// A thread that waits for our answer is asleep; right after it sent the request it may still be seen
/// running, for microseconds.
fn system_call_line(pid: u32) -> Option<String> {
    if pid == 0 {
        return None;
    }
    let path = format!("/proc/{pid}/syscall");
    for _ in 0..200 {
        let text = std::fs::read_to_string(&path).ok()?;
        if text.trim_end() != "running" {
            return Some(text);
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
    use scrfs::name::Name;

    #[test]
    fn a_path_goes_below_a_name_or_ends_with_it() {
        for path in [
            "/scr/ckpt.5/f",
            "ckpt.5/d/f",
            "//scr//ckpt.5//f",
            "../ckpt.5/.",
        ] {
            assert!(super::is_below(path.as_bytes(), b"ckpt.5"), "{path}");
        }
        for path in [
            "/scr/ckpt.5",
            "/scr/ckpt.5/",
            "ckpt.5",
            "/scr/ckpt.55/f",
            "",
            "f",
        ] {
            assert!(!super::is_below(path.as_bytes(), b"ckpt.5"), "{path}");
        }
    }

    #[test]
    fn strings_are_read_wherever_they_lie() {
        let long = std::ffi::CString::new(vec![b'x'; 4000]).expect("no NUL");
        let pid = std::process::id();
        let found = super::string_of(pid, long.as_ptr() as u64);
        assert_eq!(found.as_deref(), Some(long.as_bytes()));
        assert_eq!(super::string_of(pid, 8), None, "nothing is there");
    }

    /// To open a FIFO waits for who writes into it.
    #[test]
    fn who_opens_is_told_from_who_makes_a_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let name = Name::new(b"ckpt.5").expect("a name");
        for (create, reaches) in [(false, true), (true, false)] {
            let (said, heard) = std::sync::mpsc::channel();
            let path = path.clone();
            let reading = path.clone();
            let reader = std::thread::spawn(move || {
                let _ = said.send(nix::unistd::gettid().as_raw() as u32);
                let flags = if create { libc::O_CREAT } else { 0 };
                let mut options = std::fs::OpenOptions::new();
                std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
                drop(options.read(true).open(reading));
            });
            let pid = heard.recv().expect("its number");
            // Until it waits there.
            let inside = || super::system_call(pid) == Some(libc::SYS_openat);
            while !inside() {
                std::thread::yield_now();
            }
            assert_eq!(super::is_reaching(pid, &name), Some(reaches));
            drop(std::fs::OpenOptions::new().write(true).open(&path));
            reader.join().expect("it ends");
        }
        assert_eq!(super::is_reaching(0, &name), None);
    }

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
