#!/usr/bin/env bash
# Runs one command on this host's GPUs, one process for all of them.
#
#   launch/gpu_host.sh python -m launch.train --config=configs/quickstart.py --workdir=DIR
#
# Several hosts: give each --coordinator=HOST:PORT --num_processes=N --process_id=I.
set -euo pipefail
[[ $# -ge 1 ]] || { sed -n '2,6p' "$0"; exit 2; }
command -v nvidia-smi >/dev/null || { echo 'no NVIDIA driver here' >&2; exit 1; }
# The latency-hiding scheduler overlaps collectives with computation.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
exec "$@"
