#!/usr/bin/env bash
# A newcomer's day on a bare machine: a new Debian with git, make and Python and nothing else, a new user, a fresh clone
# of what is committed here; then `make demo` twice (the second replaces the first) and `make test`. As root:
#
#   bash Testing/fresh_machine.sh FOLDER
#
# FOLDER receives the Debian (debootstrap; 0.4 GB, some 2.5 GB after the run) and is used again by the next call; the
# clone and the user's home are new each time. It is a chroot in its own mount namespace: nothing stays mounted.
#
# SUITE    Debian release (default bookworm, Python 3.11; trixie has 3.13)
# MIRROR   Debian mirror (default: debootstrap's own)
# BRING    folders and files of this machine to show read-only at the same place inside, for a machine that cannot reach
#          the package index directly: certificates, a wheel folder that pip's find-links names
# PIP_CONFIG  a pip configuration file to give to the user inside; PIP_* variables are passed on as well
# RUN      the commands to run in the clone (default: as above)
set -euo pipefail

fail() {
    echo "fresh_machine: $*" >&2
    exit 1
}

[ $# = 1 ] || fail "give the folder for the Debian: bash Testing/fresh_machine.sh FOLDER"
[ "$(id -u)" = 0 ] || fail "chroot and debootstrap need root."
command -v debootstrap >/dev/null || fail "debootstrap is missing; install it (Debian, Ubuntu: apt-get install debootstrap)."
repository=$(cd "$(dirname "$0")/.." && pwd)
[ -z "$(git -C "$repository" status --porcelain)" ] || echo "fresh_machine: only what is committed is tested" >&2
mkdir -p "$1"
root=$(cd "$1" && pwd)
suite=${SUITE:-bookworm}
run=${RUN:-'make demo && make demo && make test'}

if [ ! -e "$root/bare-debian" ]; then
    debootstrap --variant=minbase --include=ca-certificates,git,make,python3,python3-venv "$suite" "$root" ${MIRROR:+"$MIRROR"}
    touch "$root/bare-debian"
fi

chroot "$root" sh -c 'id newcomer >/dev/null 2>&1 && userdel --remove newcomer 2>/dev/null; useradd --create-home newcomer'
cp /etc/resolv.conf "$root/etc/resolv.conf"
# Debootstrap leaves this to the installer; without it no machine knows itself by name.
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$(hostname)" >"$root/etc/hosts"
git -C "$repository" bundle create --quiet "$root/home/newcomer/repository.bundle" HEAD
if [ -n "${PIP_CONFIG:-}" ]; then
    install -D -m 644 "$PIP_CONFIG" "$root/home/newcomer/.config/pip/pip.conf"
fi
chroot "$root" chown -R newcomer: /home/newcomer

cat >"$root/home/newcomer/day.sh" <<DAY
set -eux
cd ~
git -c advice.detachedHead=false clone --quiet repository.bundle SlicerWeakTumourSeg
cd SlicerWeakTumourSeg
python3 --version
$run
DAY

# The environment is the newcomer's own: nothing of ours but pip's variables.
pip_variables=()
while IFS= read -r variable; do pip_variables+=("$variable"); done < <(env | grep '^PIP_' | grep -v '^PIP_CONFIG=' || true)
export root BRING="${BRING:-}"
unshare --mount --pid --fork --kill-child bash -euc '
    mount --make-rprivate /
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/dev/shm"
    mkdir -p "$root/dev/pts"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    mount --bind "$root/dev/pts/ptmx" "$root/dev/ptmx"
    for path in $BRING; do
        if [ -d "$path" ]; then mkdir -p "$root$path"; else mkdir -p "$(dirname "$root$path")"; touch "$root$path"; fi
        mount --bind "$path" "$root$path"
        mount -o remount,bind,ro "$root$path"
    done
    exec chroot "$root" su newcomer --shell /bin/sh -c "exec env -i HOME=/home/newcomer USER=newcomer LANG=C.UTF-8 \
        PATH=/usr/local/bin:/usr/bin:/bin \"\$@\" sh -e ~/day.sh" -- sh "$@"
' bash "${pip_variables[@]}"
echo "fresh_machine: passed on $suite"
