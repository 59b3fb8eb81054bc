#!/usr/bin/env bash
# Starts a real Kubernetes cluster of one node on this machine, from the binaries of build.sh. Can be repeated: what runs is left alone.
#
# The node is a network namespace, joined to the machine by a pair of links: no firewall rule of the machine is touched, no port is taken,
# and the machine reaches pods and services by their addresses. Pods reach the machine at 10.243.0.1, and nothing beyond it.
# NetworkPolicies are stored, and nothing enforces them.
#
# Needs root, an x86-64 Linux with cgroups, and Debian's containerd runc containernetworking-plugins iptables nftables conntrack openssl.
# METRICS=1 also starts metrics-server (build.sh metrics). `up.sh --check` only says what is missing.
set -euo pipefail
. "$(cd "$(dirname "$0")" && pwd)/env.sh"

CNI_BIN=${CNI_BIN:-/usr/lib/cni}
PKI=$STATE/pki
READY_S=120

# --- the parts, in the order in which they are used below

check() {
    local program package
    [[ $(id -u) == 0 ]] || die "the test cluster needs root"
    [[ -x $BIN/kube-proxy && -x $BIN/coredns ]] || die "no binaries in $BIN: run deploy/test-cluster/build.sh"
    while read -r program package; do
        [[ -n $(command -v "$program") ]] || die "$program is missing: install Debian's package $package"
    done <<LIST
containerd containerd
ctr containerd
runc runc
$CNI_BIN/bridge containernetworking-plugins
iptables iptables
nft nftables
conntrack conntrack
openssl openssl
ip iproute2
nsenter util-linux
LIST
}

remember_sysctls() { # the kubelet sets them for the whole machine; down.sh puts them back
    [[ -f $RUN/sysctl.saved ]] || sysctl vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes >"$RUN/sysctl.saved"
}

network() {
    [[ -e /run/netns/$NETNS ]] || ip netns add "$NETNS"
    if ! ip link show "$HOST_LINK" >/dev/null 2>&1; then
        ip link add "$HOST_LINK" type veth peer name "$NODE_LINK" netns "$NETNS"
        ip addr add "$HOST_IP/30" dev "$HOST_LINK"
        ip link set "$HOST_LINK" up
        ip -n "$NETNS" link set lo up
        ip -n "$NETNS" addr add "$NODE_IP/30" dev "$NODE_LINK"
        ip -n "$NETNS" link set "$NODE_LINK" up
        ip -n "$NETNS" route add default via "$HOST_IP"
    fi
    ip route replace "$POD_CIDR" via "$NODE_IP"
    ip route replace "$SERVICE_CIDR" via "$NODE_IP"
    in_node sysctl -qw net.ipv4.ip_forward=1
    # Without the module the setting is not there: kube-proxy needs it for pods that reach each other by a service.
    modprobe -q br_netfilter 2>/dev/null || true
    in_node sysctl -qw net.bridge.bridge-nf-call-iptables=1
}

in_node() { nsenter --net="/run/netns/$NETNS" "$@"; } # not `ip netns exec`: it mounts /sys anew, without the cgroups

start() { # start PROGRAM ARGUMENT...: in the node, unless it runs; it gives way to what is tested
    local name=$1
    alive "$name" && return
    (
        # A lock or a pipe of whoever called this script would stay open for as long as the cluster runs.
        for fd in /proc/self/fd/*; do ((${fd##*/} < 3)) || eval "exec ${fd##*/}>&-"; done
        exec setsid nsenter --net="/run/netns/$NETNS" nice -n "${NICE:-5}" "$@"
    ) >>"$STATE/log/$name.log" 2>&1 </dev/null &
    echo $! >"$RUN/$name.pid"
}

put() { # put FILE: standard input, unless it says that already (kube-proxy ends when its file is written again)
    cat >"$1.new"
    if cmp -s "$1" "$1.new"; then rm "$1.new"; else mv "$1.new" "$1"; fi
}

wait_for() { # wait_for WHAT COMMAND...
    local what=$1 deadline=$((SECONDS + READY_S))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || die "$what is not there after $READY_S s; the logs are in $STATE/log"
        sleep 0.2
    done
}

authority() { # authority NAME
    new_certificate "$1" "/CN=$1" -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature
}

certificate() { # certificate NAME SUBJECT [ALTERNATIVE NAMES] [AUTHORITY]
    local authority=${4:-ca}
    new_certificate "$1" "$2" -CA "$authority.crt" -CAkey "$authority.key" -addext basicConstraints=CA:FALSE \
        -addext keyUsage=digitalSignature -addext extendedKeyUsage=serverAuth,clientAuth ${3:+-addext "subjectAltName=$3"}
}

new_certificate() { # new_certificate NAME SUBJECT OPTION...
    local name=$1 subject=$2
    shift 2
    openssl req -x509 -config request.cnf -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 \
        -keyout "$name.key" -out "$name.crt" -subj "$subject" "$@" 2>/dev/null
}

certificates() (
    cd "$PKI"
    [[ ! -e done ]] || return 0
    printf '[req]\ndistinguished_name=dn\n[dn]\n' >request.cnf
    authority ca
    authority front-ca
    certificate apiserver /CN=kube-apiserver "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:$API_IP,IP:$NODE_IP,IP:127.0.0.1"
    certificate apiserver-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client
    certificate front /CN=front-proxy-client "" front-ca
    certificate kubelet "/O=system:nodes/CN=system:node:$NODE" "DNS:$NODE,IP:$NODE_IP"
    certificate admin /O=system:masters/CN=admin
    certificate controller-manager /CN=system:kube-controller-manager
    certificate scheduler /CN=system:kube-scheduler
    certificate proxy /CN=system:kube-proxy
    openssl ecparam -name prime256v1 -genkey -noout -out sa.key
    openssl ec -in sa.key -pubout -out sa.pub 2>/dev/null
    for user in admin controller-manager scheduler proxy kubelet; do kubeconfig "$user" >"$STATE/$user.kubeconfig"; done
    touch done
)

kubeconfig() { # kubeconfig USER
    cat <<CONFIG
apiVersion: v1
kind: Config
current-context: test-cluster
clusters: [{name: test-cluster, cluster: {server: "https://$NODE_IP:6443", certificate-authority-data: $(base64 -w0 <ca.crt)}}]
users: [{name: user, user: {client-certificate-data: $(base64 -w0 <"$1.crt"), client-key-data: $(base64 -w0 <"$1.key")}}]
contexts: [{name: test-cluster, context: {cluster: test-cluster, user: user}}]
CONFIG
}

start_etcd() { # on the namespace's loopback, and so without TLS; without fsync, since nothing is meant to outlive the machine
    start etcd --name node --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster node=http://127.0.0.1:2380
}

start_apiserver() {
    start kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address="$NODE_IP" --advertise-address="$NODE_IP" --secure-port=6443 \
        --service-cluster-ip-range="$SERVICE_CIDR" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
        --allow-privileged=true --profiling=false --client-ca-file="$PKI/ca.crt" \
        --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
        --kubelet-client-certificate="$PKI/apiserver-kubelet.crt" --kubelet-client-key="$PKI/apiserver-kubelet.key" \
        --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file="$PKI/sa.pub" --service-account-signing-key-file="$PKI/sa.key" \
        --requestheader-client-ca-file="$PKI/front-ca.crt" --requestheader-allowed-names=front-proxy-client \
        --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group \
        --requestheader-username-headers=X-Remote-User \
        --proxy-client-cert-file="$PKI/front.crt" --proxy-client-key-file="$PKI/front.key" --enable-aggregator-routing=true
}

start_containerd() { # beside any other one: its own root, state and socket
    put "$STATE/containerd.toml" <<TOML
version = 2
root = "$STATE/containerd"
state = "$RUN/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "$CONTAINERD_ADDRESS"
[debug]
  level = "warn"
[plugins."io.containerd.internal.v1.opt"]
  path = "$STATE/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  netns_mounts_under_state_dir = true
  # Where not even root may lower a process's OOM score (no CAP_SYS_RESOURCE), runc fails: "can't get final child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$CNI_BIN"
    conf_dir = "$STATE/cni"
TOML
    put "$STATE/cni/10-bridge.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "watertower-cluster", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$STATE/ipam", "ranges": [[{"subnet": "$POD_CIDR"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
    start containerd --config "$STATE/containerd.toml"
    wait_for containerd ctr version
}

import_program() { # import_program NAME: an image of that one static program, localhost/NAME:1, without Docker
    local name=$1 made
    [[ -z $(ctr images ls -q "name==localhost/$name:1") ]] || return 0
    made=$(mktemp -d "$STATE/image.XXXXXX")
    mkdir -p -m 1777 "$made/root/tmp"
    cp "$BIN/$name" "$made/root/$name"
    tar -C "$made/root" --sort=name --mtime=@0 --owner=0 --group=0 -cf "$made/layer.tar" .
    printf '{"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/%s"], "Env": ["PATH=/"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:%s"]}}' \
        "$name" "$(sha256sum <"$made/layer.tar" | cut -d' ' -f1)" >"$made/config.json"
    printf '[{"Config": "config.json", "RepoTags": ["localhost/%s:1"], "Layers": ["layer.tar"]}]' "$name" >"$made/manifest.json"
    tar -C "$made" -c manifest.json config.json layer.tar | ctr images import - >/dev/null
    rm -r "$made"
}

start_controllers() { # short times: nodes are looked at every second, autoscalers go down after half a minute
    start kube-controller-manager --kubeconfig="$STATE/controller-manager.kubeconfig" --bind-address=127.0.0.1 --leader-elect=false \
        --profiling=false --node-monitor-period=1s --service-cluster-ip-range="$SERVICE_CIDR" --use-service-account-credentials=true \
        --service-account-private-key-file="$PKI/sa.key" --root-ca-file="$PKI/ca.crt" \
        --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" \
        --horizontal-pod-autoscaler-sync-period=5s --horizontal-pod-autoscaler-downscale-stabilization=30s \
        --horizontal-pod-autoscaler-initial-readiness-delay=5s --horizontal-pod-autoscaler-cpu-initialization-period=15s
    start kube-scheduler --kubeconfig="$STATE/scheduler.kubeconfig" --bind-address=127.0.0.1 --leader-elect=false --profiling=false
}

start_kubelet() { # images are never collected: a local one cannot be pulled again
    : >"$STATE/resolv.conf"
    put "$STATE/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $NODE_IP
containerRuntimeEndpoint: unix://$CONTAINERD_ADDRESS
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/kubelet.crt
tlsPrivateKeyFile: $PKI/kubelet.key
clusterDomain: cluster.local
clusterDNS: [$DNS_IP]
resolvConf: $STATE/resolv.conf
podLogsDir: $STATE/podlogs
volumePluginDir: $STATE/kubelet/volumeplugins
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
YAML
    start kubelet --config="$STATE/kubelet.yaml" --kubeconfig="$STATE/kubelet.kubeconfig" --root-dir="$STATE/kubelet" \
        --hostname-override="$NODE" --node-ip="$NODE_IP"
}

start_proxy() { # nf_conntrack_max cannot be written in a namespace
    put "$STATE/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
bindAddress: $NODE_IP
hostnameOverride: $NODE
clusterCIDR: $POD_CIDR
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
clientConnection: {kubeconfig: $STATE/proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
    start kube-proxy --config="$STATE/proxy.yaml"
}

volumes() { # the class that claims get which name none, and folders of this machine as its volumes
    local number
    kubectl apply -f "$CLUSTER/manifests/storage.yaml" >/dev/null
    for number in $(seq "$VOLUMES"); do
        mkdir -p "$STATE/volumes/$number"
        sed "s|NUMBER|$number|; s|FOLDER|$STATE/volumes/$number|; s|NODE|$NODE|" "$CLUSTER/manifests/volume.yaml"
    done | kubectl apply -f - >/dev/null
}

node_ready() { [[ $(kubectl get node "$NODE" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}') == True ]]; }

# --- all of it

check
[[ ${1-} != --check ]] || exit 0
umask 022
mkdir -p "$STATE"/{pki,etcd,cni,kubelet,podlogs,containerd,opt,log,volumes} "$RUN"
chmod 700 "$PKI" "$RUN"
remember_sysctls
network
certificates
start_etcd
start_apiserver
start_containerd # while the apiserver boots
import_program pause
import_program coredns
wait_for "the apiserver" kubectl get --raw /readyz
lap "the API answers"
start_controllers
start_kubelet
start_proxy
kubectl apply -f "$CLUSTER/manifests/coredns.yaml" >/dev/null
volumes
if [[ ${METRICS-} == 1 ]]; then
    [[ -x $BIN/metrics-server ]] || die "no metrics-server in $BIN: run deploy/test-cluster/build.sh metrics"
    import_program metrics-server
    kubectl apply -f "$CLUSTER/manifests/metrics-server.yaml" >/dev/null
fi
wait_for "the node" node_ready
wait_for "the default service account" kubectl get serviceaccount default
kubectl -n kube-system rollout status deployment/coredns --timeout="${READY_S}s" >/dev/null
for name in etcd kube-apiserver kube-controller-manager kube-scheduler containerd kubelet kube-proxy; do
    alive "$name" || die "$name has ended: see $STATE/log/$name.log"
done
lap "the cluster is up: . deploy/test-cluster/env.sh"
