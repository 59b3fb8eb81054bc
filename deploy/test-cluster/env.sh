# Settings of the test cluster, shared by its scripts. Source it to use the cluster: it puts kubectl on the PATH and sets KUBECONFIG.
# shellcheck shell=bash disable=SC2034 # the scripts that source it use them
CLUSTER=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${WATERTOWER_KUBERNETES_CACHE:-$HOME/.cache/watertower/kubernetes}
# Binaries of other sources are other binaries: one folder for each content of what builds them.
BIN=$CACHE/bin-$(cd "$CLUSTER" && find build.sh src -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-16)
STATE=$CACHE/state            # what the cluster writes; removed by down.sh
RUN=/run/watertower-cluster   # process ids and sockets
NETNS=watertower-cluster      # the network namespace that is the node
HOST_LINK=wt-host NODE_LINK=wt-node
NODE=node-1
HOST_IP=10.243.0.1            # the machine, as pods reach it
NODE_IP=10.243.0.2
POD_CIDR=10.244.0.0/24
SERVICE_CIDR=10.96.0.0/16
API_IP=10.96.0.1 DNS_IP=10.96.0.10
VOLUMES=4                     # PersistentVolumes; a released one is not bound again
export KUBECONFIG=$STATE/admin.kubeconfig PATH=$BIN:$PATH
export CONTAINERD_ADDRESS=$RUN/containerd.sock CONTAINERD_NAMESPACE=k8s.io # for ctr
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY                        # nothing here is reached by a proxy

die() { echo "$*" >&2; exit 1; }

seconds() { date +%s.%N; }

lap_started=$(seconds)
lap() { awk -v a="$lap_started" -v b="$(seconds)" -v what="$*" 'BEGIN { printf "%6.1f s  %s\n", b - a, what }'; }

alive() { # alive NAME: its pid file and the program of that process agree
    local pid program
    pid=$(cat "$RUN/$1.pid" 2>/dev/null) && [[ -n $pid ]] && program=$(readlink "/proc/$pid/exe" 2>/dev/null) || return 1
    program=${program% (deleted)}
    [[ ${program##*/} == "$1" ]]
}
