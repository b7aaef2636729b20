#!/bin/bash
#SBATCH --job-name=attention
#SBATCH --array=0-2
# One job of an array: `sbatch job_array.sh`, and `python measure.py --merge sums` when all are done.
python "${MEASURE:-measure.py}" --shard "$SLURM_ARRAY_TASK_ID" --of 3 --save "${SUMS:-sums}"
