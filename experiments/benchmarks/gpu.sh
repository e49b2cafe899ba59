#!/bin/sh
# All tests that need a CUDA device and the benchmarks that use one, within ten minutes:
#   sh experiments/benchmarks/gpu.sh [FOLDER]
# from the repository, with PYTHON (python3) that has infoscope's packages and those of [bench]. Results go to results/,
# and with all that was printed to FOLDER (outputs/gpu). A step that fails or takes too long stops no other.
set -u
PYTHON=${PYTHON:-python3}
OUT=${1:-outputs/gpu}
HERE=experiments/benchmarks
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
n_failed=0

step() { # name, seconds at most, arguments of python
    name=$1 most=$2
    shift 2
    start=$(date +%s)
    timeout "$most" "$PYTHON" "$@" >"$OUT/$name.txt" 2>&1
    code=$?
    [ "$code" -eq 0 ] || n_failed=$((n_failed + 1))
    echo "$name: exit $code after $(($(date +%s) - start)) s" | tee -a "$OUT/steps.txt"
    tail -n 25 "$OUT/$name.txt"
}

step tests 150 -m pytest -m gpu -s -p no:cacheprovider tests
step sae_step_b 60 $HERE/sae_step.py --device cuda --d-sae 49152 --tokens 16384 --precisions bf16 --save
step sae_step_small 45 $HERE/sae_step.py --device cuda --d-sae 49152 --tokens 4096 --precisions bf16
step sae_step_l 60 $HERE/sae_step.py --device cuda --d-in 1024 --d-sae 65536 --tokens 16384 --precisions bf16 --save
step extraction_b 60 $HERE/extraction.py --device cuda --model ViT-B-16 --images 16384 --workers 12 \
    --in-memory --precision bfloat16 --cache-dtype float16 --compile --only-limits --repeats 2 --save
step extraction_l 60 $HERE/extraction.py --device cuda --model ViT-L-14 --images 6144 --workers 12 \
    --in-memory --precision bfloat16 --cache-dtype float16 --compile --only-limits --repeats 2 --save
step decoding 45 $HERE/decoding.py --device cuda --workers 14 --save
step scoring 75 $HERE/scoring.py --device cuda --model ViT-L-14 --images 4096 --latents 65536 --workers 12 --no-plain \
    --precision bfloat16 --repeats 1 --save
step ranking 45 $HERE/ranking.py --device cuda --only time --save
cp $HERE/results/*cuda*.json "$OUT"
echo "$n_failed steps failed"
[ "$n_failed" -eq 0 ]
