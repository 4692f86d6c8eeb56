#!/usr/bin/env bash
# The whole workflow on scikit-learn's digits: train, request, unlearn, review, go on until it passes, promote, verify.
# Each step is run and its outcome compared with what the text says of it: the script fails where the story is not true.
set -euo pipefail
cd "$(dirname "$0")"

rm -rf demo
mkdir demo
export MLFLOW_TRACKING_URI="sqlite:///$PWD/demo/mlflow.db"
export MLFLOW_EXPERIMENT_NAME=demo
# Hides the messages of MLflow's own set-up.
export MLFLOW_LOGGING_LEVEL=WARNING PYTHONWARNINGS=ignore

# step CODE TITLE COMMAND: the command has to end with this exit code.
step() {
  local code=0
  printf '\n\033[1m# %s\033[0m\n$ %s\n' "$2" "$3"
  eval "$3" || code=$?
  [ "$code" -eq "$1" ] || { printf '\nThis step ended with exit code %s, and the story needs %s.\n' "$code" "$1" >&2; exit 1; }
}
# reads VERSION WORD...: how the membership test reads a version of clf has to be one of the words.
reads() {
  python - "$@" <<'PY'
import sys
import mlflow
version, *words = sys.argv[1:]
run_id = mlflow.MlflowClient().get_model_version("clf", version).run_id
found = mlflow.artifacts.load_dict(f"runs:/{run_id}/evidence/evidence.json")["reading"]
sys.exit(None if found in words else f"version {version} reads {found}, and the story needs {' or '.join(words)}")
PY
}
recipe="--architecture timm:test_resnet --epochs 70 --lr 0.1 --batch-size 128 --weight-decay 0"
data="digits,train=50%"

mlflow experiments create -n demo -l "file://$PWD/demo/artifacts" >/dev/null

step 0 "1. Train a classifier on 898 scans of digits and register it as clf version 1" \
  "mlflow-unlearn train --data $data --name clf $recipe"
step 0 "2. A fifth of them has to be forgotten: file a request" \
  "mlflow-unlearn request --model-uri models:/clf/1 --forget random:20% --reason 'data subject request'"
step 0 "3. Fulfil it with LoTUS and its published setting; this registers clf version 2" \
  "mlflow run . -e unlearn -P model_uri=models:/clf/1 --env-manager local"
reads 2 residual spread
step 3 "4. May version 2 replace version 1? No: the forgotten samples still stand out, exit code 3" \
  "mlflow-unlearn review --model-uri models:/clf/2"
step 0 "5. Try stronger settings, cheapest first, until one passes; this registers clf version 3" \
  "mlflow-unlearn unlearn --model-uri models:/clf/1 --until pass"
reads 3 indistinguishable
id=$(python -c '
from mlflow import MlflowClient
tags = MlflowClient().get_model_version("clf", "1").tags
print(next(key for key in tags if key.startswith("unlearn.request.")).removeprefix("unlearn.request."))')
step 0 "6a. How would a model do that never saw them? Train the gold standard" \
  "mlflow-unlearn train --data $data --name clf-gold --exclude request:$id --seed 1 $recipe"
step 0 "6b. Measure version 3 against it" \
  "mlflow-unlearn evaluate --model-uri models:/clf/3 --gold-uri models:/clf-gold/1"
step 0 "7. May version 3 replace version 1? Each rule of the default policy" \
  "mlflow-unlearn review --model-uri models:/clf/3"
step 0 "8. Move the alias champion to it" \
  "mlflow-unlearn promote --model-uri models:/clf/3"
step 0 "9. Where does the forgotten data still live?" \
  "mlflow-unlearn exposure --model-uri models:/clf/3"
step 0 "10. What would retiring version 1 remove? A dry run without --yes true" \
  "mlflow-unlearn retire --model-uri models:/clf/1 --reason 'data subject request'"
step 0 "11. Is version 3 still the one that was measured? Measure it again" \
  "mlflow-unlearn verify --model-uri models:/clf/3 --recompute true"

cat <<'END'

What you saw: in version 2 the forgotten samples still stand out from unseen ones (mia_advantage is above its null), so that
its review failed. Version 3 was reached by stronger settings; it passed on the validation set, then once on the test set,
and is the champion now. docs/reading-the-numbers.md explains how to read figures from so few samples.
END
printf '\nclf has version 1 (trained), version 2 (unlearned once) and version 3 (unlearned until it passed). Look at them:\n'
printf '\n  .venv/bin/mlflow ui --backend-store-uri sqlite:///demo/mlflow.db\n\n'
