"""One writer at a time: a lock file that says who holds it and since when.

A lock of a process that is gone, on this host, is taken over; one of another host never is: nobody
here can know whether it is dead. Where the disk can, the kernel knows besides: it holds a lock on
the file for as long as its process lives.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from main.errors import InUseError
from main.system.disk import told

log = logging.getLogger(__name__)

_PAUSE = 0.2  # seconds between two looks at a lock that is waited for
_held: dict[Path, "Lock"] = {}  # by this process
_one_thread = threading.Lock()


@dataclasses.dataclass
class Owner:
    """Who holds a lock.

    boot, space: of the host's start and of its process numbers, which a container has of its own.
    began: when the process started, in the kernel's words: a number comes again, this does not.
    """

    what: str
    host: str
    boot: str
    space: str
    process: int
    began: str
    since: str

    @classmethod
    def here(cls, what: str) -> "Owner":
        process, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S %z")
        began = process_start(process) or ""
        return cls(what, socket.gethostname(), _boot(), _space(), process, began, since)

    def is_gone(self, kernel_knows: bool) -> bool:
        """Whether it is dead for certain; `kernel_knows`: its lock on the file is no more."""
        if self.host != socket.gethostname():
            return False
        if self.boot != _boot():
            return True
        if self.space != _space():
            return kernel_knows
        return process_start(self.process) != self.began

    def __str__(self) -> str:
        return f"{self.what} (process {self.process} on {self.host}, since {self.since})"


class Lock:
    """Held from `take` to `release`."""

    def __init__(self, path: Path, owner: Owner, descriptor: int):
        self.path, self.owner, self._descriptor = path, owner, descriptor

    def release(self) -> None:
        with _one_thread:
            if self.owner.process != os.getpid() or _held.pop(self.path, None) is None:
                return  # a forked child's copy, or released before
            _delete(self._descriptor, self.path)


def take(path: Path, what: str) -> Lock:
    """Hold the lock file `path`, which is made, with its folder.

    Args:
        what: who asks, for the message to others, e.g. "a run of task 'demo'".

    Raises:
        InUseError: somebody holds it who is not known to be dead.
        DiskError: it cannot be written.
    """
    with told(path), _one_thread:
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.resolve()
        if path in _held and _held[path].owner.process == os.getpid():
            raise _in_use(path, _held[path].owner)
        descriptor, kernel_knows = _opened(path)
        try:
            _refuse_living(path, _read(descriptor), kernel_knows)
        except InUseError:
            os.close(descriptor)
            raise
        lock = Lock(path, Owner.here(what), descriptor)
        try:
            _write(descriptor, lock.owner)
        except BaseException:
            _delete(descriptor, path)
            raise
        _held[path] = lock
    return lock


@contextlib.contextmanager
def holding(path: Path, what: str) -> Iterator[None]:
    """Hold a lock inside; see `take`."""
    lock = take(path, what)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def in_turn(path: Path, what: str) -> Iterator[None]:
    """Wait for the holder, then hold the lock inside: for what both would make alike.

    Another host's is not waited for: both work, and the file that is there last is as good.
    """
    lock = _waited_for(path, what)
    try:
        yield
    finally:
        if lock:
            lock.release()


def beside(path: Path) -> Path:
    """The lock file for another file."""
    return path.with_name(f".{path.name}.lock")


def _waited_for(path: Path, what: str) -> Lock | None:
    said = False
    while True:
        try:
            return take(path, what)
        except InUseError as error:
            if error.elsewhere:
                return None
            if not said:
                log.warning("waiting: %s", error)
            said = True
            time.sleep(_PAUSE)


def _opened(path: Path) -> tuple[int, bool]:
    """The file, and whether the kernel says that no living process of it holds the lock.

    Raises:
        InUseError: the kernel says that one does.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return descriptor, False  # a disk that knows no locks
            owner = _read(descriptor)
            os.close(descriptor)
            raise _in_use(path, owner) from error
        if _is_that_file(descriptor, path):
            return descriptor, True
        os.close(descriptor)  # the holder has just deleted it


def _is_that_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> Owner | None:
    """None of a new file, and of one that a crash has left half written."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        return Owner(**json.loads(os.read(descriptor, 4096)))
    except (ValueError, TypeError):
        return None


def _refuse_living(path: Path, owner: Owner | None, kernel_knows: bool) -> None:
    if owner is None:
        return
    itself = dataclasses.replace(Owner.here(owner.what), since=owner.since) == owner
    if not (itself or owner.is_gone(kernel_knows)):  # what this process holds is in `_held`
        raise _in_use(path, owner)
    log.warning("%s was held by %s, which is gone: taken over.", path, owner)


def _write(descriptor: int, owner: Owner) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(dataclasses.asdict(owner)).encode(), 0)


def _delete(descriptor: int, path: Path) -> None:
    with contextlib.suppress(OSError):
        if _is_that_file(descriptor, path):
            path.unlink()
    os.close(descriptor)


def _in_use(path: Path, owner: Owner | None) -> InUseError:
    elsewhere = owner is not None and owner.host != socket.gethostname()
    who = owner or "a process that is just beginning"
    advice = f" If it is gone, delete {path}." if elsewhere else ""
    return InUseError(
        f"{path.parent} is in use by {who}. Wait for it, stop it, or choose another name.{advice}",
        elsewhere,
    )


def process_start(process: int) -> str | None:
    """When a process of this host started; None when none of that number is alive."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        state, *rest = text.rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]  # clock ticks since the host's start
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    import psutil

    try:
        return str(psutil.Process(process).create_time())
    except psutil.NoSuchProcess:
        return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
