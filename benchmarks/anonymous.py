"""Anonymous memory of this process and those that it has started: what cannot be dropped and read again from a file."""

import os
import threading
from pathlib import Path


def process_bytes(pid: int | str = "self") -> int:
    """RssAnon of one process, pages that it shares with its parent since the fork included; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def shared_out(pid: int | str) -> int:
    """Pss_Anon: as RssAnon, but a page that n processes share counts as 1/n."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")), 0)


def children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


class Sampler:
    """Samples in a thread; ``with Sampler() as memory: …`` and then ``memory.peak`` and the others, in bytes.

    Attributes:
        peak: of RssAnon of this process.
        peak_all: of Pss_Anon of this process and its children, which counts each page once.
        samples: of RssAnon of this process.
    """

    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds, self.samples, self.peak_all = seconds, [], 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def peak(self) -> int:
        return max(self.samples)

    def _run(self) -> None:
        while True:
            self.samples.append(process_bytes())
            self.peak_all = max(self.peak_all, self.samples[-1])
            if len(self.samples) % 10 == 0:  # the system walks all pages for it
                self.peak_all = max(self.peak_all, sum(map(shared_out, [os.getpid(), *children()])))
            if self._stop.wait(self.seconds):
                return

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
