"""A small distributed program, which `test_launch` has launched: ``python -m ranks WHAT FOLDER``."""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed


def main(what: str, folder: Path, more: list[str]) -> None:
    rank = int(os.environ["RANK"])

    def stop(signum, frame):
        (folder / f"stopped-{rank}").write_text(signal.Signals(signum).name)
        sys.exit(128 + signum)

    def meet() -> float:
        total = torch.tensor(float(rank + 1))
        distributed.all_reduce(total)
        return total.item()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=100))
    try:
        print(f"noise of rank {rank}", file=sys.stderr, flush=True)
        total = meet()
        (folder / f"pid-{rank}").write_text(str(os.getpid()))
        last = rank == distributed.get_world_size() - 1
        if what == "sum":
            names = ("LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_ADDR")
            print(json.dumps({"total": total, "arguments": more} | {n: os.environ.get(n) for n in names}), flush=True)
        elif what == "refuse" and last:
            print("Usage: …\n\nError: no such sample 'x':\nuse another", file=sys.stderr, flush=True)
            sys.exit(2)
        elif what == "bug" and last:
            raise ZeroDivisionError("a bug in the last rank")
        elif what == "kill" and last:
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "late":
            time.sleep(100)
        else:
            meet()
    finally:
        if what != "late":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as the program does: its exit code stands
        # Else Gloo's threads may abort the process at its end, whatever its exit code was to be.
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
