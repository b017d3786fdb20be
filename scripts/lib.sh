# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# Shared by the scripts beside this file; sourced, never run.

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die() {
    say "$*"
    exit 1
}

# Runs a command whose output matters only if it fails.
quietly() {
    local output rc=0
    output=$("$@" </dev/null 2>&1) || rc=$?
    [ $rc -eq 0 ] || printf '%s\n' "$output" >&2
    return $rc
}

need_root() {
    [ "$(id -u)" = 0 ] || die "$1 must run as root (try: sudo $0)"
}

# Sets `missing` to those of the given packages that are not installed.
find_missing_packages() {
    local package
    missing=()
    for package in "$@"; do
        if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            missing+=("$package")
        fi
    done
}

# Installs what is missing and touches neither the network nor dpkg if nothing is.
install_packages() {
    local missing
    find_missing_packages "$@"
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "these packages are missing and there is no apt-get to install them: ${missing[*]}"
    need_root "installing packages (${missing[*]})"
    say "installing ${missing[*]}"
    # The lock timeout: another of these scripts, or the system's own timer, may be installing too.
    local options=(-qq -o DPkg::Lock::Timeout=600)
    quietly apt-get "${options[@]}" update || say "apt-get update reported errors; trying with the package lists there are"
    DEBIAN_FRONTEND=noninteractive quietly apt-get "${options[@]}" install -y --no-install-recommends "${missing[@]}" ||
        die "cannot install ${missing[*]}"
}

# The distribution's interpreter: one from elsewhere on PATH may lack venv or the headers apt installed.
PYTHON=/usr/bin/python3

need_python() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$PYTHON is $("$PYTHON" --version 2>&1), but vemgr needs Python 3.11 or newer (Debian 12, Ubuntu 23.04)"
}

# Where quickstart puts things and uninstall looks for them.
# shellcheck disable=SC2034  # used by those who source this
{
    prefix=/opt/vemgr
    bin=/usr/local/sbin
    man=/usr/local/share/man
    manual=(vemgr.1 vemgr-compare.1 vemgr.toml.5 vemgrd.8)
    declare -A completions=(
        [bash]=/usr/local/share/bash-completion/completions/vemgr
        [zsh]=/usr/local/share/zsh/site-functions/_vemgr
        [fish]=/usr/local/share/fish/vendor_completions.d/vemgr.fish
    )
    commands=(vemgr vemgrd vemgr-keeper)
    unit_dir=/etc/systemd/system
    units=(vemgr.socket vemgr-keeper.service vemgr.service vemgr-ves.service)
}
