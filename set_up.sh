#!/bin/sh
# Makes .venv ready, for the Makefile:  sh set_up.sh [EXTRA,EXTRA...]
#
# PYTHON    the Python to use (default: the first of python3, python3.13 ... python3.10 that is in range)
# TORCH     cpu (default) or cuda
# TORCH_INDEX  where PyTorch's CPU builds for Linux are; PyPI's build for Linux brings several GB of CUDA with it
#
# A second call finds nothing to do and returns at once. The package itself is installed in place: edits count at once.
set -eu
cd "$(dirname "$0")"

EXTRAS=${1:-}
TORCH=${TORCH:-cpu}
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
VENV=.venv
RANGE="Python 3.10 to 3.13"

fail() {
    echo "set-up: $*" >&2
    exit 1
}

in_range() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a program here; give the path of a $RANGE."
        in_range "$PYTHON" || fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1), but $RANGE is needed; give another one."
        return
    fi
    for PYTHON in python3 python3.13 python3.12 python3.11 python3.10; do
        if in_range "$PYTHON"; then return; fi
    done
    found=$(python3 --version 2>/dev/null || echo "no python3 at all")
    fail "$RANGE is needed and this machine has $found; install one, or name it: make ... PYTHON=/path/to/python3."
}

# Debian and Ubuntu: as root what is missing is installed, otherwise it is named.
need_package() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "set-up: installing $1" >&2
        DEBIAN_FRONTEND=noninteractive
        export DEBIAN_FRONTEND
        # shellcheck disable=SC2086  # $1 may name several
        { apt-get -qq update && apt-get -qq install -y --no-install-recommends $1; } >/dev/null ||
            fail "$2 is missing and apt-get could not install $1; install it and run this again."
    else
        fail "$2 is missing; install it (Debian, Ubuntu: apt-get install $1) and run this again."
    fi
}

make_venv() {
    if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        need_package "python$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" "Python's venv module"
    fi
    echo "set-up: making $VENV with $("$PYTHON" --version)" >&2
    "$PYTHON" -m venv --clear "$VENV"
}

# The only library beyond glibc that the wheels of torch and SimpleITK do not carry themselves.
check_libraries() {
    [ "$(uname -s)" = Linux ] || return 0
    "$VENV/bin/python" -c 'import ctypes; ctypes.CDLL("libstdc++.so.6")' 2>/dev/null || need_package libstdc++6 "libstdc++"
}

# What the wheels of Qt and VTK (extra slicer) leave to the system, by Debian's package. The tests that need them skip
# where they are missing, so that a user who is not root can run all the others.
check_slicer_libraries() {
    case ",$EXTRAS," in *,slicer,*) ;; *) return 0 ;; esac
    [ "$(uname -s)" = Linux ] || return 0
    missing=
    for library in libEGL.so.1:libegl1 libGL.so.1:libgl1 libX11.so.6:libx11-6 libxkbcommon.so.0:libxkbcommon0 \
        libdbus-1.so.3:libdbus-1-3 libfontconfig.so.1:libfontconfig1 libgthread-2.0.so.0:libglib2.0-0 \
        libgssapi_krb5.so.2:libgssapi-krb5-2; do
        "$VENV/bin/python" -c "import ctypes; ctypes.CDLL('${library%%:*}')" 2>/dev/null ||
            missing="$missing ${library#*:}"
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        need_package "${missing# }" "a library for the tests of the Slicer module"
    else
        echo "set-up: the tests of the Slicer module will be skipped: they need (Debian, Ubuntu)" \
            "apt-get install$missing" >&2
    fi
}

pip_install() {
    "$VENV/bin/python" -m pip --disable-pip-version-check install -qq "$@"
}

install_torch() {
    pin=$(grep '^torch==' constraints.txt)
    installed=$("$VENV/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
    if [ "$(uname -s)" != Linux ]; then
        return 0 # PyPI's build is the right one: it comes with the other packages.
    elif [ "$TORCH" = cuda ]; then
        # Both builds satisfy the same pin, so the CPU one has to go first.
        case $installed in *+cpu) "$VENV/bin/python" -m pip uninstall --quiet --yes torch ;; esac
        return 0
    fi
    [ "torch==$installed" = "$pin+cpu" ] && return 0
    # A wheel that pip's own configuration has on this machine (find-links) needs no download.
    if pip_install --no-deps --no-index --force-reinstall "$pin+cpu" 2>/dev/null; then return 0; fi
    echo "set-up: downloading PyTorch's CPU build (about 200 MB)" >&2
    pip_install --no-deps --force-reinstall --retries 1 --timeout 30 --index-url "$TORCH_INDEX" "$pin+cpu" || fail \
        "PyTorch's CPU build could not be had from $TORCH_INDEX; check the connection, name a mirror (TORCH_INDEX=URL)," \
        "or take PyPI's build with CUDA, several GB (TORCH=cuda)."
}

case $TORCH in cpu | cuda) ;; *) fail "TORCH=$TORCH is not known; use TORCH=cpu or TORCH=cuda." ;; esac

# What this environment was made from; a checkout that moved or another Python needs a new one.
place="$(pwd) ${PYTHON:-}"
wanted="$TORCH $(cksum pyproject.toml constraints.txt set_up.sh)"
if [ "$(cat "$VENV/made-for" 2>/dev/null)" != "$place" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    choose_python
    make_venv
    check_libraries
    echo "$place" >"$VENV/made-for"
elif [ "$(cat "$VENV/ready-$EXTRAS" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
echo "set-up: installing packages into $VENV (minutes the first time)" >&2
for ready in "$VENV"/ready-*; do # of another TORCH or another list of packages
    [ "$(cat "$ready" 2>/dev/null)" = "$wanted" ] || rm -f "$ready"
done
install_torch
check_slicer_libraries
pip_install --constraint constraints.txt --editable ".${EXTRAS:+[$EXTRAS]}" ||
    fail "the packages could not be installed (pip's reason is above); check the connection to the package index and run this again."
echo "$wanted" >"$VENV/ready-$EXTRAS"
