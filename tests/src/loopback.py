"""A file system over a directory that fails when it is told to, and says what is read of it.

    loopback.py DIRECTORY MOUNT_POINT CONTROL

As long as CONTROL has a file of a name in FAULTS, those calls fail with that error; a file `hang`, and all calls wait
for its end, or until HANG_MAX seconds after the first, and CONTROL has a file `held` from when there is one. When CONTROL has a file
`reads` at the start, no read is answered from the page cache of its readers, and each is a line there: bytes and path.
"""

import errno
import os
import sys
import time

from fusepy import FUSE, FuseOSError, Operations

FAULTS = {
    "eio-write": ({"write"}, errno.EIO),
    "eio-sync": ({"fsync", "fsyncdir"}, errno.EIO),
    "estale": ({"open", "getattr"}, errno.ESTALE),
}
# So that a program which waits for ever fails its test.
HANG_MAX = 150


class Loopback(Operations):
    use_ns = True

    def __init__(self, below, control):
        self.below = below
        self.control = control
        log = os.path.join(control, "reads")
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND) if os.path.exists(log) else None
        self.hung_since = None

    def may_hang(self):
        self.hung_since = self.hung_since or time.monotonic()
        return time.monotonic() < self.hung_since + HANG_MAX

    def __call__(self, operation, path, *arguments):
        while os.path.exists(os.path.join(self.control, "hang")) and self.may_hang():
            open(os.path.join(self.control, "held"), "w").close()
            time.sleep(0.01)
        for name, (failing, number) in FAULTS.items():
            if operation in failing and os.path.exists(os.path.join(self.control, name)):
                raise FuseOSError(number)
        return super().__call__(operation, self.below + path, *arguments)

    def getattr(self, path, file=None):
        found = os.lstat(path) if file is None else os.fstat(file)
        names = ("dev", "ino", "mode", "nlink", "uid", "gid", "size", "blocks", "blksize")
        attributes = {f"st_{name}": getattr(found, f"st_{name}") for name in names}
        times = {f"st_{name}": getattr(found, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")}
        return attributes | times

    def create(self, path, mode, info=None):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def open(self, path, flags):
        # What the kernel has done already, and what would ask for aligned memory.
        return os.open(path, flags & ~(os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_DIRECT))

    def read(self, path, size, offset, file):
        found = os.pread(file, size, offset)
        if self.log is not None:
            os.write(self.log, f"{len(found)} {path}\n".encode(errors="surrogateescape"))
        return found

    def write(self, path, data, offset, file):
        return os.pwrite(file, data, offset)

    def truncate(self, path, length, file=None):
        os.truncate(path if file is None else file, length)

    def fsync(self, path, only_data, file):
        os.fsync(file)

    def fsyncdir(self, path, only_data, file):
        directory = os.open(path, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def release(self, path, file):
        os.close(file)

    def readdir(self, path, file):
        return [".", "..", *os.listdir(path)]

    def rename(self, old, new):
        os.rename(old, self.below + new)

    def link(self, new, old):
        os.link(self.below + old, new, follow_symlinks=False)

    def symlink(self, new, target):
        os.symlink(target, new)

    def utimens(self, path, times=None):
        os.utime(path, ns=times, follow_symlinks=False)

    def chown(self, path, owner, group):
        os.lchown(path, owner, group)

    def chmod(self, path, mode):
        os.chmod(path, mode)

    def mkdir(self, path, mode):
        os.mkdir(path, mode)

    def mknod(self, path, mode, device):
        os.mknod(path, mode, device)

    def access(self, path, mode):
        if not os.access(path, mode):
            raise FuseOSError(errno.EACCES)

    def readlink(self, path):
        return os.readlink(path)

    def rmdir(self, path):
        os.rmdir(path)

    def unlink(self, path):
        os.unlink(path)

    def statfs(self, path):
        found = os.statvfs(path)
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_") and name != "f_fsid"}


below, mount_point, control = sys.argv[1:]
loopback = Loopback(below, control)
FUSE(
    loopback,
    mount_point,
    foreground=True,
    allow_other=True,
    use_ino=True,
    hard_remove=True,
    big_writes=True,
    attr_timeout=0,
    entry_timeout=0,
    direct_io=loopback.log is not None,
)
