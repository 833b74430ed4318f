#!/usr/bin/env bash
# Go on with unimol2-nano's pretraining, in a clone and an environment of its own: see README.md.
#
#     recipes/nano/continue.sh DATA
set -euo pipefail
recipe=$(cd "$(dirname "$0")" && pwd)
data=$(realpath "$1")
commit=$(cat "$recipe/COMMIT")
home=${UNIMOL2_NANO_HOME:-$HOME/unimol2-nano}/${commit:0:12}
clone=$home/clone
if [ ! -d "$clone" ]; then
    mkdir -p "$home"
    # The training keeps the code with which it started, whatever becomes of the work tree.
    git clone --quiet --no-checkout "$recipe/../.." "$clone.draft"
    git -C "$clone.draft" checkout --quiet --detach "$commit"
    mv "$clone.draft" "$clone"
fi
make --silent -C "$clone" .venv/.installed
python=$clone/.venv/bin/python
"$python" "$clone/recipes/nano/library.py" --data "$data" --output "$home"
exec "$python" "$recipe/background.py" start --home "$home" --handover "$recipe/handover"
