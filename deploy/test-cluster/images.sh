#!/usr/bin/env bash
# Builds the service's image as it is here and gives it to the test cluster as localhost/watertower:1, and once more, with another label,
# as localhost/watertower:2, which a rollout sees as another image. Needs a Docker engine, and the base image (deploy/stand-ins/build.sh).
set -euo pipefail
. "$(cd "$(dirname "$0")" && pwd)/env.sh"

docker info >/dev/null 2>&1 || die "no Docker engine answers: the image cannot be built"
alive containerd || die "the cluster is not up: run deploy/test-cluster/up.sh"
for number in 1 2; do
    # Debian's engine has no BuildKit; with the host's network pip reaches what the host reaches.
    DOCKER_BUILDKIT=0 docker build -q --network host -f "$CLUSTER/../Dockerfile" --label "release=$number" -t "localhost/watertower:$number" "$CLUSTER/../.." >/dev/null
done
lap "localhost/watertower:1 and :2 built"
docker save localhost/watertower:1 localhost/watertower:2 | nice ctr images import - >/dev/null
lap "and imported"
