#!/usr/bin/env bash
# Builds helm, kubeconform and yaml2json from pinned source, once for each content of tools/, and prints the folder that has them.
# Needs Go, as old as tools/go.mod says or newer. Kept beside WATERTOWER_ENGINES_CACHE, in kubernetes/tools-HASH.
#   tools.sh            builds what is missing
#   tools.sh --cached   fails instead
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

cache=$(dirname "${WATERTOWER_ENGINES_CACHE:-$HOME/.cache/watertower/engines}")/kubernetes
digest=$(cat tools.sh tools/go.mod tools/go.sum tools/yaml2json/main.go | sha256sum | cut -c-16)
done=$cache/tools-$digest

if [[ ! -d $done ]]; then
    [[ ${1:-} != --cached ]] || { echo "helm and kubeconform are not built: run deploy/test-cluster/tools.sh" >&2 && exit 1; }
    mkdir -p "$cache"
    exec 9>"$cache/tools.lock" && flock 9 # two may ask at once
    if [[ ! -d $done ]]; then
        part=$(mktemp -d "$cache/.tools-XXXXXX")
        trap 'rm -rf "$part"' EXIT
        helm=helm.sh/helm/v3
        version=$(cd tools && GOTOOLCHAIN=local go list -m -f '{{.Version}}' $helm)
        # As helm's own Makefile does. Without a version of Kubernetes, helm takes one for templates that no chart supports any more.
        flags="-s -w -X $helm/internal/version.version=$version"
        for package in pkg/chartutil pkg/lint/rules; do
            flags+=" -X $helm/$package.k8sVersionMajor=1 -X $helm/$package.k8sVersionMinor=34"
        done
        (cd tools && GOBIN=$part GOTOOLCHAIN=local GOFLAGS=-buildvcs=false CGO_ENABLED=0 \
            nice -n 15 go install -p 2 -trimpath -ldflags "$flags" $helm/cmd/helm github.com/yannh/kubeconform/cmd/kubeconform ./yaml2json) >&2 9>&-
        chmod 755 "$part"
        mv "$part" "$done"
        trap - EXIT
    fi
fi
echo "$done"
