#!/usr/bin/env bash
# Runs one command on every host of a TPU pod slice, from this checkout.
#
#   launch/tpu_pod.sh NAME ZONE -- python -m launch.train --coordinator=auto \
#       --config=configs/nv_embed_v2.py --workdir=/mnt/shared/run
#
# The workdir lies on a file system that every host mounts.
# Copies the working tree's tracked files to all workers, installs them there, and
# starts the command on all of them; the hosts find each other (--coordinator=auto).
set -euo pipefail
[[ $# -ge 4 && $3 == -- ]] || { sed -n '2,10p' "$0"; exit 2; }
name=$1 zone=$2
shift 3
cd "$(git -C "$(dirname "$0")" rev-parse --show-toplevel)"
bundle=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$bundle"' EXIT
git archive --format=tar.gz -o "$bundle" HEAD
gcloud compute tpus tpu-vm scp "$bundle" "$name:jaxembed.tar.gz" --zone="$zone" --worker=all
printf -v quoted '%q ' "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
  set -e
  mkdir -p jaxembed && tar -xzf jaxembed.tar.gz -C jaxembed && cd jaxembed
  test -d .venv || python3 -m venv .venv
  .venv/bin/pip install --quiet --editable '.[tpu]'
  PATH=\$PWD/.venv/bin:\$PATH $quoted"
