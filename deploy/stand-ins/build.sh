#!/usr/bin/env bash
# Builds local stand-ins for official images that cannot be pulled: the same name and tag, ports, variables, paths and log lines, as far as
# compose files and tests use them, so that those stay the same where the official images can be had.
#
#   build.sh [python] [kafka] [cassandra]      default: all; an image that is there already, or can be pulled, is left alone
#
# Made from a Debian root file system (debootstrap) and Maven Central's jars. Needs root, a Docker engine, debootstrap, java, mvn, and
# PYTHON (default: the project's .venv), which knows the versions and fetches the jars.
set -euo pipefail
cd "$(dirname "$0")"
PYTHON=${PYTHON:-$PWD/../../.venv/bin/python}
CACHE=${WATERTOWER_ENGINES_CACHE:-$HOME/.cache/watertower/engines}
SUITE=bookworm
BASE=debian:$SUITE-slim
mkdir -p "$CACHE"
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT

PULL_S=120

have() { docker image inspect "$1" >/dev/null 2>&1; }
get() { have "$1" || timeout "$PULL_S" docker pull -q "$1" >/dev/null 2>&1; }
ask() { "$PYTHON" -c "from watertower.testing.engines import containers, jvm_cassandra, jvm_kafka; print($1)"; }

base() {
    have "$BASE" && return
    local root=$CACHE/debian-$SUITE
    if [[ ! -d $root ]]; then
        rm -rf "$root.making"
        debootstrap --variant=minbase --include=ca-certificates "$SUITE" "$root.making" >"$CACHE/debootstrap.log" 2>&1 ||
            { tail -n 20 "$CACHE/debootstrap.log" >&2; return 1; }
        printf 'APT::Install-Recommends "false";\nAcquire::Languages "none";\n' >"$root.making/etc/apt/apt.conf.d/99slim"
        mv "$root.making" "$root"
    fi
    # Behind a mirror that inspects TLS, builds need what the host trusts.
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    tar -C "$root" --exclude='./var/cache/apt/archives/*.deb' --exclude='./var/lib/apt/lists/*' --exclude='./usr/share/doc/*' \
        --exclude='./usr/share/locale/*' --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' -c . |
        docker import -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' -c 'CMD ["bash"]' - "$BASE" >/dev/null
}

build() { # build FOLDER TAG...: with the jars of $jars, if any, as jars/
    rm -rf "${context:?}"/* && cp -r "$1"/. "$context"
    [[ -z ${jars-} ]] || cp -r "$jars" "$context/jars"
    local tags=() tag
    for tag in "${@:2}"; do tags+=(-t "$tag"); done
    # Debian's engine has no BuildKit, and with the host's network apt reaches what the host reaches.
    DOCKER_BUILDKIT=0 docker build -q --network host --build-arg "BASE=$BASE" "${tags[@]}" "$context" >"$CACHE/build.log" 2>&1 || { tail -n 20 "$CACHE/build.log" >&2; return 1; }
}

jre() { base; have local/jre17 || jars='' build jre17 local/jre17; }
do_python() { get python:3.11-slim || { base; build python python:3.11-slim "python:3.11-slim-$SUITE"; }; }
do_kafka() { get "$(ask containers.KAFKA_IMAGE)" || { jre; jars=$(ask 'jvm_kafka.jars()') build kafka "$(ask containers.KAFKA_IMAGE)"; }; }
do_cassandra() { get "$(ask containers.CASSANDRA_IMAGE)" || { jre; jars=$(ask 'jvm_cassandra.jars()') build cassandra "$(ask containers.CASSANDRA_IMAGE)"; }; }

(($#)) || set -- python kafka cassandra
for name in "$@"; do
    started=$SECONDS
    "do_$name"
    echo "stand-in $name: $((SECONDS - started)) s"
done
