#!/usr/bin/env bash
# Unpacks what pack.sh packed: unpack.sh FOLDER [SITE]. FOLDER holds the contents of all parts; nothing outside it and
# SITE is written. Prints two lines to evaluate: the path of the packages, and where what was made ahead lies.
set -euo pipefail
folder=$(cd "$1" && pwd) site=${2:-$(cd "$1" && pwd)/site} python=${PYTHON:-python3}
cd "$folder"
cat piece-* > all.tar.xz
sha256sum --check all.sha256 >&2 || { echo "unpack.sh: a part is missing or damaged; the pieces here: $(echo piece-*)" >&2; exit 1; }
tar -xJf all.tar.xz
rm all.tar.xz
"$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir --upgrade \
  --target "$site" wheels/*.whl >&2
echo "export PYTHONPATH=$site\${PYTHONPATH:+:\$PYTHONPATH}"
[[ ! -d prebuilt ]] || echo "export PREBUILT=$folder/prebuilt"
