"""Processes that are killed while they save a catalog over an older one; `test_whole_files.py` reads what is printed.

Arguments: folder, how many to kill. Half of them end themselves after some number of bytes, the others are killed from
outside at a random moment. After each, the file has to be the old catalog or the new one, whole.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from stores import same, some_store

from rfkernels import _files
from rfkernels.catalog import files
from rfkernels.catalog.header import HEADER


class Dying:
    """A file whose writer is killed after some number of bytes."""

    def __init__(self, file: Any, left: int) -> None:
        self.file, self.left = file, left

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def write(self, block: Any) -> None:
        data = memoryview(block).cast("B")[: self.left]
        self.file.write(data)
        self.left -= len(data)
        if self.left == 0:
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1e-4)  # so that those killed from outside are in the midst of it


def save_and_die(store: Any, path: Path, left: int) -> None:
    opened = _files._temporary

    def dying(folder: Path) -> Any:
        temporary, file = opened(folder)
        return temporary, Dying(file, left)

    _files._temporary = dying
    files.save(store, path)


def main(folder: str, times: int) -> None:
    path, rng = Path(folder) / "some.catalog", random.Random(0)
    files._BLOCK = 2048
    old, new = some_store(seed=0), some_store(seed=1)
    seen: Counter[str] = Counter()
    start = time.perf_counter()
    save_twice = [files.save(store, path) for store in (new, old)]
    usual = (time.perf_counter() - start) / len(save_twice) + 0.01
    written = path.stat().st_size + HEADER  # which is written twice
    for turn in range(times):
        child = os.fork()
        if child == 0:
            save_and_die(new, path, rng.randrange(1, written) if turn % 2 else 2 * written)
            os._exit(0)
        rng.random()
        if turn % 2 == 0:
            time.sleep(1.5 * usual * turn / times)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        found = files.load(path)
        seen["old" if same(found, old) else "new" if same(found, new) else "neither"] += 1
        seen["killed"] += os.WIFSIGNALED(status)
        left = len(list(path.parent.glob(".rfkernels-*")))
        seen["leftovers"] += left
        seen["piled up"] += left > 1
        if same(found, new):
            files.save(old, path)
    files.save(old, path)
    print(json.dumps({**seen, "in the end": sorted(os.listdir(folder))}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
