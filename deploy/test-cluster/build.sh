#!/usr/bin/env bash
# Builds every binary of the test cluster from the Go module proxy, once for each content of this file and of src/.
#
#   build.sh             what a cluster needs; a second run finds it there
#   build.sh metrics     also metrics-server, which makes `kubectl top` and autoscalers work (minutes more)
#
# Needs Go 1.26. Binaries are kept in WATERTOWER_KUBERNETES_CACHE (~/.cache/watertower/kubernetes): 570 MB. Keep that folder between
# runs of CI, not Go's build cache, which is 5 GB.
set -euo pipefail
. "$(cd "$(dirname "$0")" && pwd)/env.sh"

JOBS=${JOBS:-2}
KUBERNETES=v1.34.2 # as in src/k8s/go.mod
VERSION=k8s.io/component-base/version
export CGO_ENABLED=0 GOFLAGS="-buildvcs=false -mod=readonly" GOTOOLCHAIN=local

build() { # build NAME MODULE PACKAGE [LINKER FLAG...]: a program of the module src/MODULE, if it is not there
    local name=$1 module=$2 package=$3 started=$SECONDS
    shift 3
    [[ -x $BIN/$name ]] && return
    (cd "$CLUSTER/src/$module" && nice -n 15 go build -p "$JOBS" -ldflags "-s -w $*" -o "$BIN/$name.part" "$package")
    mv "$BIN/$name.part" "$BIN/$name"
    echo "built $name in $((SECONDS - started)) s"
}

mkdir -p "$BIN"
exec 9>"$CACHE/lock"
flock 9 # two builds at once would be twice as slow
build pause pause .
build etcd etcd go.etcd.io/etcd/server/v3
for name in kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl kube-proxy; do
    # Without the flags every part calls itself v0.0.0.
    build "$name" k8s "k8s.io/kubernetes/cmd/$name" -X "$VERSION.gitVersion=$KUBERNETES" -X "$VERSION.gitMajor=1" -X "$VERSION.gitMinor=34"
done
build coredns coredns .
[[ ${1-} != metrics ]] || build metrics-server metrics sigs.k8s.io/metrics-server/cmd/metrics-server
lap "binaries in $BIN"
