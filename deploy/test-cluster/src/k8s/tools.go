//go:build tools

// Package tools names the programs that build.sh builds, so that `go mod tidy` keeps what they need.
//
// k8s.io/kubernetes requires its 31 staging modules as v0.0.0: go.mod replaces each of them. A newer version is another version there, in
// the replace lines (v0.X.Y for v1.X.Y) and in build.sh; then `go mod tidy`.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
