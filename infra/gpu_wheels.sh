#!/usr/bin/env bash
# Fills a folder with the wheels that a GPU machine without internet may lack.
# For Python 3.12 on 64-bit x86 Linux, as infra.gpu_check --wheels DIR wants them; torch is taken to be there, and with it
# what it needs (typing_extensions, fsspec, ...). At most 60 MB: more ends with 1. PIP names another pip.
set -euo pipefail
usage='usage: infra/gpu_wheels.sh DIR'
case "${1-}" in
-h | --help) echo "$usage" && sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit ;;
'' | -*) echo "$usage" >&2 && exit 2 ;;
esac
folder=$1
pip=${PIP:-pip}
most=60000000

# What training, scoring and generating import (docs/gpu.md). An older pyarrow, since newer ones alone take 55 MB.
wheels=(
  numpy==2.5.5 pyarrow==18.1.0 safetensors==0.8.0
  pydantic==2.14.3 pydantic_core==2.50.4 annotated_types==0.8.0 typing_inspection==0.4.5 typing_extensions==4.16.0
  torchdata==0.11.0
)
options=(--only-binary :all: --python-version 3.12 --implementation cp)
for glibc in 2_28 2_27 2_17; do options+=(--platform "manylinux_${glibc}_x86_64"); done

mkdir -p "$folder"
"$pip" download --quiet --disable-pip-version-check --no-deps "${options[@]}" --platform manylinux2014_x86_64 \
  --dest "$folder" "${wheels[@]}"
bytes=$(cat "$folder"/*.whl | wc -c)
printf '%s: %d wheels, %d.%d MB\n' "$folder" "$(find "$folder" -name '*.whl' | wc -l)" $((bytes / 1000000)) $((bytes / 100000 % 10))
[ "$bytes" -le "$most" ] || { echo "gpu_wheels: more than $((most / 1000000)) MB" >&2; exit 1; }
