#!/usr/bin/env bash
# Makes the project's virtual environment. Does nothing when it is already current:
# FOLDER/.installed holds the digest of what decides the installation. One that was copied or moved here is made anew: its
# programs name the interpreter of the folder that they were installed in.
set -euo pipefail
usage='usage: infra/setup.sh FOLDER [CONSTRAINTS]'
case "${1-}" in
-h | --help) echo "$usage" && sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit ;;
'' | -*) echo "$usage" >&2 && exit 2 ;;
esac
cd "$(dirname "$0")/.."
venv=$1
constraints=${2:-constraints.txt}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: Patchwork needs Python 3.11 or newer; $("$python" --version) was found (set PYTHON=)" >&2
  exit 2
}
identity=$({ "$python" --version; pwd; cat pyproject.toml "$constraints"; } | sha256sum | cut -d' ' -f1)
[ "$(cat "$venv/.installed" 2>/dev/null)" != "$identity" ] || exit 0

fresh=()
if [ -e "$venv/pyvenv.cfg" ]; then
  place=$(cd "$venv" && pwd)/bin/python
  # Nothing of an environment whose programs belong elsewhere, or whose interpreter is gone, can be used.
  if ! "$venv/bin/python" -c '' 2>/dev/null ||
    { [ -e "$venv/bin/pip" ] && ! head -n 2 "$venv/bin/pip" | grep -qF -e "#!$place" -e "exec' \"$place" -e "exec' $place"; }; then
    echo "setup: $venv was made in another folder or for another interpreter, and is made anew"
    fresh=(--clear)
  fi
elif [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
  echo "setup: $venv is not a virtual environment, and not empty: give another folder (VENV=)" >&2
  exit 2
fi

echo "setup: installing into $venv (once; some minutes on a slow network)"
"$python" -m venv ${fresh[@]+"${fresh[@]}"} "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" "$(grep '^torch==' "$constraints")"
"${pip[@]}" --constraint "$constraints" --editable '.[reports,test,lint]'
echo "$identity" >"$venv/.installed"
echo "setup: done"
