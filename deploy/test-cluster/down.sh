#!/usr/bin/env bash
# Ends the test cluster and removes what it left on the machine: processes, mounts, links, routes, cgroups, files. Can be repeated.
# KEEP=1 keeps its state (objects, images, volumes) for the next up.sh.
set -uo pipefail
. "$(cd "$(dirname "$0")" && pwd)/env.sh"

GRACE_TENTHS=50

stop() { # stop PROGRAM [TENTHS OF A SECOND]
    local name=$1 tenths=${2:-$GRACE_TENTHS} pid
    if alive "$name"; then
        pid=$(cat "$RUN/$name.pid")
        kill "$pid"
        while alive "$name" && ((tenths-- > 0)); do sleep 0.1; done
        if alive "$name"; then kill -9 "$pid"; fi
    fi
    rm -f "$RUN/$name.pid"
}

end_containers() {
    local try task container
    for try in 1 2 3 4 5; do
        for task in $(ctr tasks ls -q); do ctr tasks rm -f "$task" >/dev/null 2>&1; done
        [[ -z $(ctr tasks ls -q) ]] && break
        sleep 0.3
    done
    for container in $(ctr containers ls -q); do ctr containers rm "$container" >/dev/null 2>&1; done
}

unmount() { # unmount FOLDER: all that is mounted below it
    awk -v below="$1/" 'index($5 "/", below) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r point; do umount -l "$point"; done
}

[[ $(id -u) == 0 ]] || die "the test cluster needs root"
for name in kubelet kube-proxy kube-scheduler kube-controller-manager; do stop "$name"; done
stop kube-apiserver 10 # its own way out takes ten seconds, and etcd has everything
stop etcd
if alive containerd; then end_containers; fi
stop containerd
for folder in "$STATE/kubelet" "$RUN" "$STATE/containerd"; do unmount "$folder"; done
ip route del "$POD_CIDR" via "$NODE_IP" 2>/dev/null
ip route del "$SERVICE_CIDR" via "$NODE_IP" 2>/dev/null
ip link del "$HOST_LINK" 2>/dev/null
[[ ! -e /run/netns/$NETNS ]] || ip netns del "$NETNS"
for group in /sys/fs/cgroup/*/kubepods /sys/fs/cgroup/kubepods; do
    [[ ! -d $group ]] || find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null
done
[[ ! -f $RUN/sysctl.saved ]] || sysctl -q -p "$RUN/sysctl.saved" >/dev/null
rm -rf "${RUN:?}" /var/lib/cni/results/watertower-cluster-*
if [[ ${KEEP-} == 1 ]]; then rm -rf "$STATE/ipam" "$STATE/kubelet/pods"; else rm -rf "${STATE:?}"; fi
lap "the cluster is down"
