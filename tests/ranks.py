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

WHAT, FOLDER, *MORE = sys.argv[1:]
RANK = int(os.environ["RANK"])


def stop(signum, frame):
    (Path(FOLDER) / f"stopped-{RANK}").write_text(signal.Signals(signum).name)
    sys.exit(128 + signum)


def meet() -> float:
    total = torch.tensor(float(RANK + 1))
    distributed.all_reduce(total)
    return total.item()


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
distributed.init_process_group("gloo", timeout=timedelta(seconds=100))
try:
    print(f"noise of rank {RANK}", file=sys.stderr, flush=True)
    total = meet()
    (Path(FOLDER) / f"pid-{RANK}").write_text(str(os.getpid()))
    last = RANK == distributed.get_world_size() - 1
    if WHAT == "sum":
        seen = {name: os.environ.get(name) for name in ("LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_ADDR")}
        print(json.dumps({"total": total, "arguments": MORE, **seen}), flush=True)
    elif WHAT == "refuse" and last:
        print("Usage: …\n\nError: no such sample 'x':\nuse another", file=sys.stderr, flush=True)
        sys.exit(2)
    elif WHAT == "bug" and last:
        raise ZeroDivisionError("a bug in the last rank")
    elif WHAT == "kill" and last:
        os.kill(os.getpid(), signal.SIGKILL)
    elif WHAT == "late":
        time.sleep(100)
    else:
        meet()
finally:
    # Else Gloo's threads may abort the process at its end, whatever its exit code was to be.
    distributed.destroy_process_group()
