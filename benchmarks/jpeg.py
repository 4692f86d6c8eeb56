"""Files on disk at 224 pixels: 50,000 JPEGs of 1,000 classes, of which 500 are forgotten.

Measures, each in a separate process:

- seconds from the start of the process to the first training step, with a cold and with a warm index of the files;
- the fraction of the training loop spent waiting for data;
- how often each image is read while models are evaluated, once with caching and once where nothing may be cached;
- anonymous memory above that of a bare training step of the same model and batch.

The images are coarse colour patterns, one per class, with noise (about 9 kB each). The network has 18 million
multiplications per image, a hundredth of a ResNet18: it waits for data sooner than common networks. Its convolutions
are random and its last layer is fitted by least squares, so that LoTUS finds something to forget.

    python benchmarks/jpeg.py --data /tmp/jpeg                     # writes the images first, 3 minutes on two cores
    python benchmarks/jpeg.py --data /tmp/jpeg --shards            # the same images in tar shards
    JPEG_IMAGES=5000 python benchmarks/jpeg.py --data /tmp/small   # a tenth of the images and classes
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from multiprocessing import Pool
from pathlib import Path

START = float(os.environ.get("JPEG_START", time.time()))

SIZE, BATCH, EPOCHS, RETAIN = 224, 128, 2, 0.1
PARTS = {"train": 44, "val": 3, "test": 3}  # images a class
IMAGES = int(os.environ.get("JPEG_IMAGES", 50_000))
CLASSES = IMAGES // sum(PARTS.values())
SHARD = 5000
FORGET = 500


# --- the images ----------------------------------------------------------------------------------------------------


def jpeg(label: int, number: int) -> bytes:
    import numpy as np
    from PIL import Image

    pattern = np.random.default_rng(label).integers(0, 256, (7, 7, 3))
    random = np.random.default_rng((label, number))
    coarse = np.clip(pattern + random.integers(-60, 61, pattern.shape), 0, 255).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.int16)
    grain = random.integers(-20, 21, (56, 56, 3), np.int16).repeat(4, 0).repeat(4, 1)
    file = io.BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
    return file.getvalue()


COUNTS = {part: CLASSES * share for part, share in PARTS.items()}


def sample(part: str, index: int) -> tuple[int, int]:
    """Class and number within it, different in each split."""
    return index % CLASSES, 1000 * list(PARTS).index(part) + index // CLASSES


def write_class(job: tuple[Path, int]) -> None:
    root, label = job
    for part, count in COUNTS.items():
        folder = root / part / f"n{label:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(label, count, CLASSES):
            path = folder / f"{index // CLASSES:03d}.jpg"
            if not path.exists():
                path.with_suffix(".part").write_bytes(jpeg(*sample(part, index)))
                path.with_suffix(".part").rename(path)


def write_shard(job: tuple[Path, str, int]) -> None:
    root, part, number = job
    path = root / f"{part}-{number:06d}.tar"
    if path.exists():
        return
    with tarfile.open(path.with_suffix(".part"), "w") as tar:
        for index in range(number * SHARD, min((number + 1) * SHARD, COUNTS[part])):
            label, within = sample(part, index)
            for kind, content in (("jpg", jpeg(label, within)), ("cls", f"n{label:04d}".encode())):
                member = tarfile.TarInfo(f"{index:06d}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    path.with_suffix(".part").rename(path)


def write(root: Path, shards: bool) -> Path:
    """Write what is missing."""
    folder = root / ("shards" if shards else "folder")
    folder.mkdir(parents=True, exist_ok=True)
    with Pool(os.cpu_count()) as pool:
        if shards:
            jobs = [(folder, part, n) for part, count in COUNTS.items() for n in range(-(-count // SHARD))]
            list(pool.imap_unordered(write_shard, jobs))
        else:
            list(pool.imap_unordered(write_class, [(folder, label) for label in range(CLASSES)], 4))
    return folder


# --- the model -----------------------------------------------------------------------------------------------------


def network():
    from torch import nn

    def block(channels: int, out: int, kernel: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        return [conv, nn.BatchNorm2d(out), nn.ReLU()]

    layers = [*block(3, 16, 7, 4), *block(16, 32, 3, 2), *block(32, 64, 3, 2), *block(64, 128, 3, 2)]
    return nn.Sequential(*layers, *block(128, 16, 1, 1), nn.Flatten(), nn.Linear(16 * 49, CLASSES))


def fitted(dataset, labels, chosen):
    """Random convolutions; the last layer by least squares on the ``chosen`` samples."""
    import torch

    from mlflow_unlearn.data.batching import gather

    torch.manual_seed(0)
    model = network()
    chunks = chosen.split(BATCH)
    with torch.inference_mode():
        for rows in chunks[:10]:
            model.train()(gather(dataset, rows)[0])
        model.eval()
        features = torch.cat([model[:-1](gather(dataset, rows)[0]) for rows in chunks]).double()
        features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        wanted = torch.nn.functional.one_hot(labels[chosen], CLASSES).double()
        gram = features.T @ features
        penalty = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram))
        weights = torch.linalg.solve(gram + penalty, features.T @ wanted)
        model[-1].weight.copy_(20 * weights[:-1].T)
        model[-1].bias.copy_(20 * weights[-1])
    return model.eval()


# --- one process each ----------------------------------------------------------------------------------------------


def splits_of(spec: str, *, kept: bool = True):
    """The four sets as `mlflow-unlearn unlearn` reads them, and how often each image is read from its file."""
    import numpy as np
    import torch

    from mlflow_unlearn import Splits
    from mlflow_unlearn.data.datasets import as_dataset
    from mlflow_unlearn.data.loaders import load_source
    from mlflow_unlearn.data.source import rest
    from mlflow_unlearn.data.transforms import build_transform

    source = load_source(spec)
    forget = np.sort(np.random.default_rng(0).permutation(len(source.train))[:FORGET])
    parts = {
        "forget": source.train.subset(forget),
        "retain": source.train.subset(rest(len(source.train), forget)),
        "val": source.val,
        "test": source.test,
    }
    reads = {}
    for split, part in parts.items():
        reads[split] = torch.zeros(len(part), dtype=torch.int32).share_memory_()  # workers count too
        part.images.read = Counted(part.images, reads[split])
    where = {} if kept else {"memory_limit": 0, "disk_limit": 0}
    transform = build_transform("imagenet", channels=3)
    return Splits(**{split: as_dataset(part, transform, **where) for split, part in parts.items()}), reads


class Counted:
    """Counts the calls of ``read`` by image."""

    def __init__(self, images, count) -> None:
        self.read, self.count = images.read, count
        self.place = {name_of(images.keys[row]): i for i, row in enumerate(images.rows)}

    def __call__(self, key):
        self.count[self.place[name_of(key)]] += 1
        return self.read(key)


def name_of(key) -> str:
    return getattr(key, "id", key)


class Waiting:
    """Times each ``next`` of the training loop's loader, the start of its workers included."""

    def __init__(self) -> None:
        from mlflow_unlearn.data.batching import BatchReader
        from mlflow_unlearn.engine.loop import _TaggedSamples

        self.waited, self.total, self.batches = [], 0.0, 0
        read = BatchReader.read

        def timed(reader, batches):
            loader = read(reader, batches)
            return self._timed(loader) if isinstance(reader.dataset, _TaggedSamples) else loader

        BatchReader.read = timed

    def _timed(self, loader):
        start = time.perf_counter()
        before, batches = start, iter(loader)
        for batch in batches:
            self.waited.append(time.perf_counter() - before)
            yield batch
            before = time.perf_counter()
        self.total += time.perf_counter() - start


def first_step(spec: str, *, stop: bool, method: str) -> dict:
    """`unlearn` from the start of the process; to its first step, or to the end and the evaluation of the result."""
    import torch
    from anonymous import Sampler
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from mlflow_unlearn import evaluate, unlearn

    found: dict = {"imported": time.time() - START}

    def seen(*_) -> None:
        if "first_step" not in found:
            found["first_step"] = time.time() - START
            found["first_step_processor"] = sum(os.times()[:2])
            if stop:
                raise KeyboardInterrupt

    register_optimizer_step_pre_hook(seen)
    with Sampler() as memory:
        model = network()
        model.load_state_dict(torch.load(Path(os.environ["JPEG_MODEL"])))
        splits, reads = splits_of(spec)
        found["listed"] = time.time() - START
        waiting = Waiting()
        params = {"epochs": EPOCHS, "batch_size": BATCH}
        if method == "lotus":
            params["retain_fraction"] = RETAIN
        try:
            result = unlearn(model.eval(), splits, method, params, num_workers=None)
        except KeyboardInterrupt:
            return found
        found |= {
            "epochs": len(result.history) or EPOCHS,
            "loop_seconds": waiting.total,
            "steps": len(waiting.waited),
            "waited_seconds": sum(waiting.waited),
            "waited_first": waiting.waited[0],
            "waited_median": statistics.median(waiting.waited),
            "waited_share": sum(waiting.waited) / waiting.total,
            "unlearn_seconds": result.seconds,
        }
        start = time.perf_counter()
        metrics = evaluate(result.model, splits, original=model, num_workers=None)
        found["evaluate_seconds"] = time.perf_counter() - start
        found |= {key: metrics[key] for key in ("acc_forget", "acc_retain", "acc_test")}
        found["reads_of_an_image"] = [
            min(int(r.min()) for r in reads.values()),
            max(int(r.max()) for r in reads.values()),
        ]
    return found | {"peak": memory.peak, "peak_all": memory.peak_all}


def reads_where_nothing_is_kept(spec: str) -> dict:
    """Evaluation of one model, small enough that reading takes all of the time."""
    from torch import nn

    from mlflow_unlearn import evaluate

    splits, reads = splits_of(spec, kept=False)
    model = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(147, CLASSES))
    start = time.perf_counter()
    evaluate(model, splits, num_workers=None)
    seconds = time.perf_counter() - start
    values = [int(value) for count in reads.values() for value in (count.min(), count.max())]
    return {"reads": [min(values), max(values)], "images_a_second": sum(map(len, reads.values())) / seconds}


def bare() -> dict:
    """Three training steps of the same model and batch on noise."""
    import torch
    from anonymous import Sampler

    import mlflow_unlearn  # noqa: F401  imports do not count as the data path's memory

    with Sampler() as memory:
        model = network().train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        for _ in range(3):
            images = torch.randn(BATCH, 3, SIZE, SIZE)
            optimizer.zero_grad()
            model(images).logsumexp(1).mean().backward()
            optimizer.step()
            time.sleep(0.1)
    return {"peak": memory.peak}


def original(spec: str) -> dict:
    import torch

    splits, _ = splits_of(spec, kept=False)
    train = torch.utils.data.ConcatDataset([splits.forget, splits.retain])
    labels = torch.cat([splits.forget.labels, splits.retain.labels])
    model = fitted(train, labels, torch.arange(min(len(train), FORGET + 10 * CLASSES)))
    torch.save(model.state_dict(), os.environ["JPEG_MODEL"])
    return {}


# --- all together --------------------------------------------------------------------------------------------------


def process(what: str, spec: str, args, cache: Path) -> dict:
    command = [sys.executable, __file__, "--data", str(args.data), "--method", args.method, "--part", what, spec]
    environment = os.environ | {
        "MLFLOW_UNLEARN_CACHE": str(cache),
        "JPEG_MODEL": str(args.data / "original.pt"),
        "JPEG_START": str(time.time()),
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder for images, model and index")
    parser.add_argument("--shards", action="store_true", help="tar shards instead of an ImageFolder")
    parser.add_argument("--method", default="lotus")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        what, spec = args.part
        parts = {
            "cold": lambda: first_step(spec, stop=True, method=args.method),
            "warm": lambda: first_step(spec, stop=False, method=args.method),
            "reads": lambda: reads_where_nothing_is_kept(spec),
            "bare": bare,
            "original": lambda: original(spec),
        }
        print(json.dumps(parts[what]()))
        return

    folder = write(args.data, args.shards)
    spec = f"{'shards' if args.shards else 'folder'}:{folder}"
    cache = args.data / "cache"
    if not (args.data / "original.pt").exists():
        process("original", spec, args, cache)
    time.sleep(3)  # only what has not changed for two seconds is indexed
    shutil.rmtree(cache, ignore_errors=True)
    found = {name: process(name, spec, args, cache) for name in ("cold", "warm", "reads", "bare")}
    cold, warm = found["cold"], found["warm"]
    above = warm["peak_all"] - found["bare"]["peak"]
    rows = [
        ("seconds to the first step, cold index", f"{cold['first_step']:.1f}", "", True),
        ("seconds to the first step, warm index", f"{warm['first_step']:.1f}", "≤ 30", warm["first_step"] <= 30),
        ("  of the processor, without workers", f"{warm['first_step_processor']:.1f}", "", True),
        ("  of which imports", f"{warm['imported']:.1f}", "", True),
        ("share of the loop that waits for data", f"{warm['waited_share']:.1%}", "≤ 5 %", warm["waited_share"] <= 0.05),
        ("  of which the first batch", f"{warm['waited_first'] / warm['loop_seconds']:.1%}", "", True),
        ("  median wait of a step, ms", f"{1000 * warm['waited_median']:.0f}", "", True),
        (
            "reads of an image, training and evaluation",
            "{} to {}".format(*warm["reads_of_an_image"]),
            "1",
            warm["reads_of_an_image"] == [1, 1],
        ),
        (
            "reads of an image, one model, nothing kept",
            "{} to {}".format(*found["reads"]["reads"]),
            "1",
            found["reads"]["reads"] == [1, 1],
        ),
        ("images read a second, nothing kept", f"{found['reads']['images_a_second']:.0f}", "", True),
        ("anonymous memory above a bare step, MB", f"{above / 1e6:.0f}", "≤ 2000", above <= 2e9),
    ]
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    print(f"{IMAGES} images, {spec.split(':')[0]}, {args.method}, {os.cpu_count()} cores, {threads} threads")
    for name, value, bar, met in rows:
        print(f"{name:<46} {value:>10}   {bar and bar + ('' if met else '  MISSED')}")
    if args.json:
        setting = {"images": IMAGES, "source": spec.split(":")[0], "method": args.method}
        machine = {"cores": os.cpu_count(), "threads": threads, "load": os.getloadavg()}
        args.json.write_text(json.dumps(setting | machine | found, indent=1) + "\n")
    sys.exit(0 if all(met for *_, met in rows) else 1)


if __name__ == "__main__":
    main()
