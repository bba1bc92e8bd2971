#!/usr/bin/env bash
# One machine:        examples/launch/torchrun.sh examples/sft.py
# Several machines:   on each of them, with NODES, NODE_RANK (0, 1, ...) and MASTER (the address
#                     of machine 0) set. Checkpoints and data lie on a disk that all machines see.
# A process that dies ends all; with RESTARTS above 0 they start again, and a script that passes
# resume_from_checkpoint="auto" goes on from its newest checkpoint.
set -euo pipefail
: "${PROCESSES:=2}" "${NODES:=1}" "${NODE_RANK:=0}" "${MASTER:=127.0.0.1}" "${PORT:=29500}" "${RESTARTS:=0}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$NODES" --node-rank "$NODE_RANK" --nproc-per-node "$PROCESSES" \
    --rdzv-backend c10d --rdzv-id "${RUN_ID:-run}" --rdzv-endpoint "$MASTER:$PORT" \
    --max-restarts "$RESTARTS" "$@"
