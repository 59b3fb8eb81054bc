//go:build tools

// Package tools names what build.sh builds.
package tools

import _ "sigs.k8s.io/metrics-server/cmd/metrics-server"
