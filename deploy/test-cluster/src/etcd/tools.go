//go:build tools

// Package tools names what build.sh builds. `go install ...@version` is refused for etcd: its go.mod has replace lines.
package tools

import _ "go.etcd.io/etcd/server/v3"
