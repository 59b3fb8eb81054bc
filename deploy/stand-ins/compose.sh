#!/usr/bin/env bash
# Makes `docker compose` (v2) answer where the machine has no package of it: an ordinary Go program, built from its module and kept in the
# cache, and linked as a plugin of the docker command. Does nothing where it answers already. Needs Go >= 1.21 (which fetches a newer one if
# the module wants it) and about two minutes.
set -euo pipefail
VERSION=v2.40.3
MODULE=github.com/docker/compose/v2
CACHE=${WATERTOWER_ENGINES_CACHE:-$HOME/.cache/watertower/engines}
PLUGINS=${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins
PATH=$PATH:/usr/local/go/bin

answers() { docker compose version --short 2>/dev/null; }
if found=$(answers); then
    echo "docker compose $found is there"
    exit
fi

program=$CACHE/docker-compose-$VERSION
started=$SECONDS
if [[ ! -x $program ]]; then
    if ! command -v go >/dev/null; then
        echo "docker compose does not answer, and there is no Go to build it: install Docker's compose plugin (v2), or Go >= 1.21" >&2
        exit 1
    fi
    mkdir -p "$CACHE"
    build=$(mktemp -d "$CACHE/.compose-XXXXXX")
    trap 'rm -rf "$build"' EXIT
    cd "$build"
    # The module of a program that is only built here: its own requirements and no others.
    printf '//go:build tools\n\npackage tools\n\nimport _ "%s/cmd"\n' "$MODULE" >tools.go
    if ! {
        go mod init build && go get "$MODULE/cmd@$VERSION" && go mod tidy &&
            CGO_ENABLED=0 go build -p "$(nproc)" -ldflags "-s -w -X $MODULE/internal.Version=$VERSION" -o docker-compose "$MODULE/cmd"
    } >log 2>&1; then
        tail -n 20 log >&2
        exit 1
    fi
    mv docker-compose "$program"
fi
mkdir -p "$PLUGINS"
ln -sf "$program" "$PLUGINS/docker-compose"
found=$(answers) || { echo "$PLUGINS/docker-compose does not answer; does the docker command take plugins?" >&2; exit 1; }
echo "docker compose $found: $((SECONDS - started)) s"
