"""What canaries cost in accuracy: each pair leaves one sample out of training.

3,000 images of Fashion-MNIST and the small ResNet of `nearness.py`, by the command, three seeds each.

    python benchmarks/canaries.py DIR [--pairs 0,150,300,600] [--seeds 3]
"""

import argparse
import statistics
from pathlib import Path

from mlflow.tracking import MlflowClient
from nearness import RESNET, SMALL, SMALL_RESNET, Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", default="0,150,300,600")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    store = Store(args.folder.resolve())
    train = (
        "--data",
        SMALL,
        "--architecture",
        SMALL_RESNET,
        *(str(x) for k, v in RESNET.items() for x in (f"--{k}", v)),
    )
    print("| pairs | trained on | acc_val | acc_test |\n|---:|---:|---:|---:|")
    for pairs in map(int, args.pairs.split(",")):
        found = []
        for seed in range(args.seeds):
            name = f"canaries-{pairs}-{seed}"
            if not store.has(name):
                store.command("train", *train, "--name", name, "--canaries", str(pairs), "--seed", str(seed))
            version = MlflowClient(store.uri).get_model_version(name, "1")
            found.append(MlflowClient(store.uri).get_run(version.run_id).data.metrics)
        cells = (
            f"{statistics.fmean(m[key] for m in found):.4f} ± {statistics.stdev(m[key] for m in found):.4f}"
            for key in ("acc_val", "acc_test")
        )
        print(f"| {pairs} | {3000 - pairs} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
