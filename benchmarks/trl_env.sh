#!/usr/bin/env bash
# Makes .venv-trl: TRL's PPOTrainer beside the same torch and transformers as textenv's own environment, so that
# benchmarks.ppo_cycle compares the trainers and nothing else. Usage: benchmarks/trl_env.sh [PYTHON-OF-TEXTENV]
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:-.venv/bin/python}"
[ -x "$python" ] || python="$(command -v python3)"
venv=.venv-trl

version() { "$python" -c "from importlib.metadata import version; print(version('$1').split('+')[0])"; }
same="$(mktemp)"
trap 'rm -f "$same"' EXIT
for package in torch transformers accelerate datasets numpy tokenizers safetensors; do
    echo "$package==$(version $package)" >>"$same"
done

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# torch first and alone: with it there, no other package asks for a build with CUDA libraries.
"$venv/bin/python" -m pip install --quiet "$(grep '^torch==' "$same")"
"$venv/bin/python" -m pip install --quiet -r benchmarks/trl-requirements.txt -c "$same"
"$venv/bin/python" -c "import torch, transformers, trl; print('trl', trl.__version__, 'transformers', transformers.__version__, 'torch', torch.__version__)"
