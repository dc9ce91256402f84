#!/usr/bin/env bash
# Makes the project's virtual environment: infra/setup.sh FOLDER [CONSTRAINTS]. Does nothing when it is already current:
# FOLDER/.installed holds the digest of what decides the installation.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: infra/setup.sh FOLDER [CONSTRAINTS]}
constraints=${2:-constraints.txt}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: Patchwork needs Python 3.11 or newer; $("$python" --version) was found (set PYTHON=)" >&2
  exit 2
}
identity=$({ "$python" --version; pwd; cat pyproject.toml "$constraints"; } | sha256sum | cut -d' ' -f1)
[ "$(cat "$venv/.installed" 2>/dev/null)" != "$identity" ] || exit 0

echo "setup: installing into $venv (once; some minutes on a slow network)"
"$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check "$(grep '^torch==' "$constraints")"
"$venv/bin/pip" install --quiet --disable-pip-version-check --constraint "$constraints" --editable '.[test,lint]'
echo "$identity" >"$venv/.installed"
echo "setup: done"
