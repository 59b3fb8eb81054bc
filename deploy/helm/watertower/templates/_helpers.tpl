{{/* The beginning of the names of all objects. At most 40 characters: some have an ending, and a name of Kubernetes has 63. */}}
{{- define "watertower.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods of a component, for good. Takes (dict "root" $ "component" NAME). */}}
{{- define "watertower.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* The labels of every object. Takes the same. */}}
{{- define "watertower.labels" -}}
{{ include "watertower.selector" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* The roles, with the ports that they serve at. */}}
{{- define "watertower.ports" -}}
{"ingest": {"grpc": 50051, "metrics": 9101}, "projector": {"grpc": 50053, "metrics": 9102}, "query": {"grpc": 50052, "metrics": 9103}}
{{- end -}}

{{/* The component whose pods run a role. Takes (dict "root" $ "role" ROLE). */}}
{{- define "watertower.component" -}}
{{- if eq .root.Values.mode "embedded" }}embedded{{ else }}{{ .role }}{{ end -}}
{{- end -}}

{{/* The image of a role, or of the hooks where there is none: a role's own digest, its own tag, the digest, the tag. Takes the same. */}}
{{- define "watertower.image" -}}
{{- $image := .root.Values.image -}}
{{- if .role -}}
{{- with (index .root.Values .role).image -}}
{{- if or .digest .tag -}}{{- $image = merge (dict "repository" $image.repository) . -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $image.repository -}}{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag }}{{ end -}}
{{- end -}}

{{/* A quantity of Kubernetes as a number: bytes of memory, cores of CPU. */}}
{{- define "watertower.amount" -}}
{{- $units := dict "" 1.0 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- $text := toString . -}}
{{- mulf (regexFind "^[0-9.]+(e[+-]?[0-9]+)?" $text | float64) (get $units (regexFind "[A-Za-z]*$" (regexReplaceAll "^[0-9.]+(e[+-]?[0-9]+)?" $text ""))) -}}
{{- end -}}

{{/* What a release is installed with and cannot change: names and values, and why. JSON; the next upgrade is compared with it. */}}
{{- define "watertower.fixed" -}}
{{- $v := .Values -}}
{{- $fixed := dict "partitions" (toString $v.partitions) "mode" $v.mode "fullnameOverride" (include "watertower.fullname" .) "nameOverride" (default .Chart.Name $v.nameOverride) -}}
{{- if eq $v.mode "cluster" -}}
{{- $_ := merge $fixed (dict "kafka.prefix" $v.kafka.prefix "cassandra.keyspace" $v.cassandra.keyspace) -}}
{{- else -}}
{{- $_ := merge $fixed (dict "embedded.storage.size" $v.embedded.storage.size "embedded.storage.className" $v.embedded.storage.className) -}}
{{- end -}}
{{- $fixed | toJson -}}
{{- end -}}

{{/* Seconds from SIGTERM to SIGKILL: what a process may take, and 10 s for what comes after its grace. */}}
{{- define "watertower.terminationSeconds" -}}
{{- add (divf (addf .Values.drainMs .Values.shutdownGraceMs) 1000 | ceil) 10 -}}
{{- end -}}

{{- define "watertower.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "watertower.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Ports in "HOST:PORT,HOST:PORT", as a JSON list without doubles. */}}
{{- define "watertower.portsOf" -}}
{{- $ports := list -}}
{{- range splitList "," . -}}
{{- $ports = append $ports (regexFind "[0-9]+$" (trim .) | int) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}
