# What the scripts share: saying things, Debian packages, and a .venv that fits pyproject.toml.
#
# Sourced, never run.  The caller has set `root`, the checkout.  Nothing but a POSIX shell, the tools
# that every Debian and Ubuntu has, and a bare python3 is assumed.

say() {
    printf '%s\n' "$*"
}

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# $1 as one word of a command that can be pasted into a shell.
quoted() {
    case $1 in
    *[!A-Za-z0-9_./-]*) printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf '%s' "$1" ;;
    esac
}

# A field of /proc/self/mountinfo, which writes blanks and backslashes as \ooo, as it is.
unescaped() {
    printf '%b' "$(printf '%s' "$1" | sed 's/\\\([0-7]\)/\\0\1/g')"
}

is_superuser() {
    [ "$(id -u)" -eq 0 ]
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# Run a command with its output kept back; show the end of it only if it fails.
quietly() {
    quiet_log=$(mktemp)
    if "$@" >"$quiet_log" 2>&1 </dev/null; then
        rm -f "$quiet_log"
        return 0
    fi
    {
        say "This failed: $*"
        say "Its last lines were:"
        tail -n 20 "$quiet_log" | sed 's/^/    /'
    } >&2
    rm -f "$quiet_log"
    return 1
}

# Install Debian packages.  False when that cannot be done, with the reason said.
install_packages() {
    if ! has apt-get; then
        say "Not installed, because there is no apt-get here: $*"
        return 1
    fi
    if ! is_superuser; then
        say "Not installed, because only root can: $*  (sudo apt-get install -y $*)"
        return 1
    fi
    say "Installing with apt-get: $*"
    # A fresh machine has no package lists, an old one has stale ones.
    apt_get_install "$@" >/dev/null 2>&1 && return 0
    quietly apt-get update && quietly apt_get_install "$@"
}

apt_get_install() {
    # Wait for another apt-get (a machine's first boot runs one) instead of failing.
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 \
        install -y --no-install-recommends "$@" </dev/null
}

# The Python to build .venv with: $PYTHON, or the first on PATH that is new enough.
find_python() {
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# Make .venv hold mountfs, as an editable install, with an extra ("dev") or without ("").
# Does nothing when it already does; an extra that was once asked for stays.
ensure_venv() {
    venv_extra=$1
    venv="$root/.venv"
    venv_stamp="$venv/mountfs-setup"

    # Two scripts at once: the second waits for the first.  The lock ends with the descriptor.
    exec 9<"$root/pyproject.toml"
    has flock && flock 9

    # An editable install is bound to the place of the checkout, so that is part of what must fit.
    venv_want="$root $(sha256sum <"$root/pyproject.toml" | cut -d ' ' -f 1)"
    venv_have=
    [ -f "$venv_stamp" ] && venv_have=$(cat "$venv_stamp")
    venv_runs=no
    "$venv/bin/python" -c 'import pip' 2>/dev/null 9<&- && venv_runs=yes
    case "$venv_runs $venv_have" in
    "yes $venv_want dev")
        exec 9<&-
        return 0
        ;;
    "yes $venv_want ")
        if [ -z "$venv_extra" ]; then
            exec 9<&-
            return 0
        fi
        ;;
    "yes "*" dev")
        venv_extra=dev
        ;;
    esac

    # A .venv that came with another place has that place written into its commands.
    case "$venv_have" in
    "" | "$root "*) ;;
    *) venv_runs=no ;;
    esac
    if [ "$venv_runs" = no ]; then
        create_venv
    fi

    venv_target="$root"
    venv_what="mountfs and its dependencies"
    if [ -n "$venv_extra" ]; then
        venv_target="$root[$venv_extra]"
        venv_what="mountfs, its dependencies and what its tests need"
    fi
    say "Installing $venv_what into .venv (about half a minute)."
    rm -f "$venv_stamp"
    quietly "$venv/bin/python" -m pip install --disable-pip-version-check --prefer-binary \
        -e "$venv_target" ||
        fail "The Python packages could not be installed; pip's reason is above. Run this again when that is cured."
    printf '%s %s\n' "$venv_want" "$venv_extra" >"$venv_stamp"
    exec 9<&-
}

# The Debian package that Python $1 needs to make virtual environments; nothing if it can already.
venv_package() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null && return 0
    case $1 in
    *python3.*) say "$(basename "$1")-venv" ;;
    *) say python3-venv ;;
    esac
}

create_venv() {
    python=$(find_python) ||
        fail "mountfs needs Python 3.11 or newer, and none is on PATH. On Debian 12 or Ubuntu 24.04: sudo apt-get install -y python3"
    # Debian keeps this part of Python in a package of its own.
    package=$(venv_package "$python")
    if [ -n "$package" ]; then
        is_superuser && has apt-get ||
            fail "This Python cannot make virtual environments yet. Run this, then try again: sudo apt-get install -y $package"
        install_packages "$package" ||
            fail "Without the package $package there is no virtual environment to install mountfs into."
    fi
    say "Creating .venv with $("$python" --version)."
    quietly "$python" -m venv --clear "$venv" || fail "The virtual environment $venv could not be created."
}
