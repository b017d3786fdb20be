# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# What goes into a Debian guest, whoever boots it: sourced by testvm and build-box, after lib.sh. Needs `project`.

# The parts of pyproject.toml that end up in the image, as text: for the cache key and for pip.
project_table() {
    # shellcheck disable=SC2154
    "$PYTHON" - "$project/pyproject.toml" "$1" <<'PYTHON'
import json, sys, tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
if sys.argv[2] == "key":
    print(json.dumps([project[key] for key in ("dependencies", "optional-dependencies", "scripts")], sort_keys=True))
else:
    more = project["optional-dependencies"]["test"] if sys.argv[2] == "requirements" else []
    print(*project["dependencies"], *more, sep="\n")
PYTHON
}

build_wheels() { # DIRECTORY
    mkdir -p "$1"
    project_table requirements >"$1/requirements.txt"
    "$PYTHON" -m venv "$1/venv"
    # --use-pep517: without it this pip builds old sdists with the `wheel` package, which a fresh venv lacks.
    "$1/venv/bin/pip" wheel -q --use-pep517 --wheel-dir "$1" -r "$1/requirements.txt" setuptools wheel
    rm -r "$1/venv"
}

# shellcheck disable=SC2034  # for who sources this
template_packages=(systemd systemd-sysv dbus iproute2 iputils-ping procps ca-certificates)

build_template() { # FILE PACKAGES...
    build_debian tar "$@"
}

build_root() { # DIRECTORY PACKAGES...
    # The kernel package must not spend a minute on an initrd; make_initrd has a smaller one.
    INITRD=No build_debian directory "$@"
}

build_debian() { # FORMAT TARGET PACKAGES...
    # policy-rc.d: installing a daemon must not start it in the chroot, that is, on this host.
    # shellcheck disable=SC2016  # mmdebstrap's hooks expand $1 themselves
    mmdebstrap --quiet --mode=root --variant=minbase --format="$1" \
        --include="$(IFS=,; echo "${*:3}")" \
        --aptopt='Acquire::Languages "none"' --aptopt='Apt::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --essential-hook='printf "#!/bin/sh\nexit 101\n" >"$1/usr/sbin/policy-rc.d"; chmod 755 "$1/usr/sbin/policy-rc.d"' \
        --customize-hook='rm "$1/usr/sbin/policy-rc.d"' bookworm "$2"
}

# virtio_blk and ext4 are modules in Debian's kernel, so something has to load them: this much is enough.
make_initrd() { # ROOT OUTPUT
    local root=$1 work module version
    version=$(ls "$root/lib/modules")
    work=$(mktemp -d)
    mkdir "$work"/{bin,dev,proc,sys,new}
    cp "$root/bin/busybox" "$work/bin/"
    for module in virtio_pci virtio_blk ext4; do
        chroot "$root" modprobe -S "$version" --show-depends "$module"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r module; do
        cp "$root$module" "$work/"
        echo "/${module##*/}" >>"$work/modules"
    done
    cat >"$work/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
while read -r module; do $b insmod "$module"; done </modules
$b mount -t devtmpfs dev /dev
tries=0
until [ -b /dev/vda ] || [ $tries -ge 500 ]; do $b usleep 20000; tries=$((tries + 1)); done
$b mount -t ext4 -o rw,noatime /dev/vda /new || { echo "initrd: cannot mount /dev/vda"; exit 1; }
$b mount --move /dev /new/dev
exec $b switch_root /new /sbin/init
INIT
    chmod 755 "$work/init"
    (cd "$work" && find . | cpio --quiet -o -H newc -R 0:0) >"$2"
    rm -r "$work"
}
