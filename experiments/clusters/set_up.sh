#!/usr/bin/env bash
# Everything that a machine of a cluster needs, installed once; run again, it is done in a moment.
# The cluster files call it on every machine, after they have copied the code to ~/apgd_repo:
#
#   SHARED=/mnt/shared/apgd LOCAL=/var/tmp/apgd PYTHON=3.12 EXTRAS= bash ~/apgd_repo/experiments/clusters/set_up.sh
#
# SHARED   folder that all machines see under this path, for runs and experts; it must be there
# LOCAL    folder on this machine's own disk, for the environment, data and downloaded checkpoints
# PYTHON   version of Python, the same on all machines; uv fetches it where it is missing
# EXTRAS   optional dependencies of pyproject.toml: aws, dashboard, both with a comma, or nothing
set -euo pipefail
: "${SHARED:?must name a folder that all machines see}" "${LOCAL:?must name a folder on the disk of this machine}"
: "${PYTHON:=3.12}" "${EXTRAS:=}"
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

# A folder that is not there is a share that is not mounted: to make it here would split the run.
if [ ! -d "$SHARED" ]; then
  echo "SHARED must be a folder that all machines see, but $SHARED is not there: mount it, or make it once" >&2
  exit 1
fi
mkdir -p "$SHARED/runs"
if [ -e ~/runs ] && [ ! -L ~/runs ]; then
  echo "~/runs must be a link to $SHARED/runs, but something else is there: move it away" >&2
  exit 1
fi
ln -sfn "$SHARED/runs" ~/runs
install -d -m 700 "$LOCAL"
if [ -e ~/.ray/auth_token ]; then chmod 600 ~/.ray/auth_token; fi

# What Ray's commands and `ray submit` find in their environment: they read ~/.bashrc.
cat > ~/.apgd_profile <<PROFILE
export PATH="$LOCAL/env/bin:\$PATH"
export APGD_CACHE="$LOCAL/cache" HF_HOME="$LOCAL/huggingface"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
PROFILE
grep -qs apgd_profile ~/.bashrc || echo '. ~/.apgd_profile' >> ~/.bashrc

stamp="$(cat "$repo/pyproject.toml" "${BASH_SOURCE[0]}" <(echo "$PYTHON $EXTRAS") | sha256sum | cut -c -16)"
if [ "$(cat "$LOCAL/env/stamp" 2>/dev/null)" = "$stamp" ]; then
  echo "the environment in $LOCAL/env is up to date"
  exit 0
fi

export PATH="$HOME/.local/bin:$PATH" UV_CACHE_DIR="$LOCAL/uv" UV_COMPILE_BYTECODE=1
command -v uv >/dev/null || python3 -m pip install --user -q uv ||
  python3 -m pip install --user --break-system-packages -q uv

# Machines of a cluster must not differ in their versions, also when one of them joins weeks later:
# the first machine writes down what it got, and the others take the same.
versions="$SHARED/versions-$stamp.txt"
constraints=()
if [ -e "$versions" ]; then constraints=(--constraint "$versions"); fi
rm -rf "$LOCAL/env"
uv venv -q --python "$PYTHON" "$LOCAL/env"
uv pip install -q --python "$LOCAL/env/bin/python" "${constraints[@]}" --editable "$repo${EXTRAS:+[$EXTRAS]}"
if [ ! -e "$versions" ]; then
  uv pip freeze -q --python "$LOCAL/env/bin/python" --exclude-editable > "$versions.$(hostname)"
  ln "$versions.$(hostname)" "$versions" 2>/dev/null || true
  rm "$versions.$(hostname)"
fi
echo "$stamp" > "$LOCAL/env/stamp"
