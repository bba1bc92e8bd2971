"""Work that is killed, or meets a limit of file sizes, in forked children.

    python tests/disk_children.py kill|limit NAME SHARED FOLDER

SHARED: what `disk_work.Works` made. A child that was forked while threads ran would wait for their
locks for ever: this process imports, and leaves all work to children. Prints `RESULT {...}`:
outcome -> how often.
"""

import importlib
import json
import os
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from disk_work import Work, works_in
from failing_disk import KILL, Disk

from main.errors import MainError

KILLED = "killed, completed"
LIMITED = "a file of limited size: told, completed"
GOES_ON = "the run goes on"
_TOLD = 3  # what a child ends with


def every_kill(work: Work, folder: Path) -> Counter[str]:
    """Once for each operation of each line of ours."""
    outcomes, made = Counter[str](), json.loads((folder / "made.json").read_text("utf-8"))
    places = [tuple(entry) for entry in made]
    for place in dict.fromkeys(places):
        number = places.index(place)
        own = folder / str(number)
        own.mkdir()
        assert in_child(partial(killed, work, own, number)) == -signal.SIGKILL, place
        again(work, own, folder, place)
        outcomes[f"{place[0]} {KILLED}"] += 1
    return outcomes


def every_limit(work: Work, folder: Path) -> Counter[str]:
    """Files may be of so many bytes and no more, whatever language writes."""
    outcomes = Counter[str]()
    files = (path for path in (folder / "whole").rglob("*") if path.is_file())
    sizes = sorted({path.stat().st_size for path in files})
    for size in sorted({0, 1, *(max(0, size - 1) for size in sizes)}):
        own = folder / str(size)
        own.mkdir()
        ended = in_child(partial(limited, work, own, size))
        assert ended in (0, _TOLD), (size, ended)
        again(work, own, folder, size)
        outcomes[f"write {LIMITED if ended == _TOLD else GOES_ON}"] += 1
    return outcomes


def again(work: Work, own: Path, folder: Path, what: object) -> None:
    """The same call gives what an undisturbed one gives."""
    assert in_child(partial(told, work, own, own / "given.json")) == 0, what
    assert (own / "given.json").read_bytes() == (folder / "given.json").read_bytes(), what


def first(work: Work, folder: Path) -> None:
    """Whatever is kept for later processes is there afterwards; tells what has to be imported."""
    work(folder / "first")
    names = [name for name in sys.modules if not name.startswith("_")]
    (folder / "modules.json").write_text(json.dumps(names), encoding="utf-8")


def undisturbed(work: Work, folder: Path) -> None:
    disk = Disk(pytest.MonkeyPatch())
    given = work(folder / "whole")
    made = list(disk.made)
    (folder / "made.json").write_text(json.dumps(made), encoding="utf-8")
    (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")


def told(work: Work, own: Path, target: Path) -> None:
    given = work(own)
    target.write_text(json.dumps(given), encoding="utf-8")


def killed(work: Work, folder: Path, allowed: int) -> None:
    disk = Disk(pytest.MonkeyPatch(), KILL)
    disk.left = allowed
    work(folder)


def limited(work: Work, folder: Path, size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    work(folder)


def in_child(work: Callable[[], Any]) -> int:
    """What a forked child ends with: 0, `_TOLD` where an error of ours was raised, - its signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except MainError:
            code = _TOLD
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    what, name, shared, given = sys.argv[1:]
    work, folder = works_in(Path(shared))[name], Path(given)
    for name in ("first", "whole"):
        (folder / name).mkdir(parents=True)
    assert in_child(partial(first, work, folder)) == 0
    for name in json.loads((folder / "modules.json").read_text("utf-8")):
        with suppress(Exception):  # once, and not in every child
            importlib.import_module(name)
    assert in_child(partial(undisturbed, work, folder)) == 0
    found = (every_kill if what == "kill" else every_limit)(work, folder)
    print(f"RESULT {json.dumps(found)}")


if __name__ == "__main__":
    main()
