#!/usr/bin/env bash
# Runs one command on every node of a Slurm job, a process a node.
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh jaxembed train \
#       --coordinator=auto --config=configs/nv_embed_v2.py --workdir=/shared/run
#
# The workdir lies on a file system that every node mounts. Slurm's notice (SIGTERM, 120 s
# before the time limit or a preemption) reaches every process, which saves; the job is
# put into the queue again and goes on. A process that fails ends the job step.
#SBATCH --job-name=jaxembed
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
[[ $# -ge 1 ]] || { sed -n '2,9p' "$0"; exit 2; }
# The devices of a node belong to its one process.
export JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-$(seq -s, 0 $((${SLURM_GPUS_ON_NODE:-1} - 1)))}
code=0
srun --kill-on-bad-exit=1 "$@" || code=$?
# 143: stopped by the notice, with all saved.
if [[ $code -eq 143 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
