{{/* What the schema cannot say, or not in words that help. All problems at once. */}}
{{- define "watertower.validate" -}}
{{- $v := .Values -}}
{{- $problems := list -}}
{{- if not (kindIs "map" $v.settings) -}}{{- fail "settings: must be a map of names and values" -}}{{- end -}}
{{- range $name, $value := include "watertower.ownValues" . | fromJson -}}
{{- if hasKey $v.settings $name -}}
{{- $problems = append $problems (printf "settings.%s: the chart sets it; use %s" $name $value) -}}
{{- end -}}
{{- end -}}
{{- range $name, $tag := dict "image.tag" $v.image.tag "ingest.image.tag" $v.ingest.image.tag "projector.image.tag" $v.projector.image.tag "query.image.tag" $v.query.image.tag -}}
{{- if eq (toString $tag) "latest" -}}
{{- $problems = append $problems (printf "%s: latest names no version; set the version that is meant" $name) -}}
{{- end -}}
{{- end -}}
{{- if gt (int $v.connectionAgeGraceMs) (add $v.drainMs $v.shutdownGraceMs | int) -}}
{{- $problems = append $problems (printf "connectionAgeGraceMs: %d is more than drainMs and shutdownGraceMs together (%d); calls would outlive their pod" (int $v.connectionAgeGraceMs) (add $v.drainMs $v.shutdownGraceMs | int)) -}}
{{- end -}}
{{- if and $v.metrics.serviceMonitor.enabled (not $v.metrics.enabled) -}}
{{- $problems = append $problems "metrics.serviceMonitor.enabled: there is nothing to scrape; set metrics.enabled too" -}}
{{- end -}}
{{- if and $v.metrics.enabled (gt (int $v.settings.query_workers) 1) -}}
{{- $problems = append $problems "settings.query_workers: each worker has a port of its own for metrics, and only the first would be scraped; use query.replicas, or leave metrics off" -}}
{{- end -}}
{{- if eq $v.mode "embedded" -}}
{{- range $name, $on := dict "ingest.autoscaling.enabled" $v.ingest.autoscaling.enabled "query.autoscaling.enabled" $v.query.autoscaling.enabled "projector.keda.enabled" $v.projector.keda.enabled -}}
{{- if $on -}}
{{- $problems = append $problems (printf "%s: mode embedded is one pod; use mode cluster, or leave it off" $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $address := dict "kafka.bootstrapServers" $v.kafka.bootstrapServers "cassandra.contactPoints" $v.cassandra.contactPoints -}}
{{- if $address -}}
{{- $problems = append $problems (printf "%s: mode embedded uses no engines; set mode to cluster, or leave it empty" $name) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- range $name, $address := dict "kafka.bootstrapServers" $v.kafka.bootstrapServers "cassandra.contactPoints" $v.cassandra.contactPoints -}}
{{- if not $address -}}
{{- $problems = append $problems (printf "%s: mode cluster needs it; set HOST:PORT, several joined by commas" $name) -}}
{{- end -}}
{{- end -}}
{{- $sasl := hasPrefix "sasl_" $v.kafka.securityProtocol -}}
{{- if and $sasl (not $v.kafka.user) -}}
{{- $problems = append $problems (printf "kafka.user: securityProtocol %s needs one" $v.kafka.securityProtocol) -}}
{{- end -}}
{{- if and $v.kafka.user (not $sasl) -}}
{{- $problems = append $problems (printf "kafka.user: securityProtocol %s shows it to nobody; set sasl_ssl or sasl_plaintext, or no user" $v.kafka.securityProtocol) -}}
{{- end -}}
{{- if and $v.kafka.caSecret.name (not (hasSuffix "ssl" $v.kafka.securityProtocol)) -}}
{{- $problems = append $problems (printf "kafka.caSecret.name: securityProtocol %s has no certificates; set ssl or sasl_ssl, or no caSecret" $v.kafka.securityProtocol) -}}
{{- end -}}
{{- range $engine := list "kafka" "cassandra" -}}
{{- $values := index $v $engine -}}
{{- if and $values.user (not $values.passwordSecret.name) -}}
{{- $problems = append $problems (printf "%s.passwordSecret.name: user %s needs a password; make a Secret that has it and name it here" $engine $values.user) -}}
{{- end -}}
{{- if and $values.passwordSecret.name (not $values.user) -}}
{{- $problems = append $problems (printf "%s.passwordSecret.name: a password without a user; set %s.user too" $engine $engine) -}}
{{- end -}}
{{- end -}}
{{- if and (not $v.projector.keda.enabled) (gt (int $v.projector.replicas) (int $v.partitions)) -}}
{{- $problems = append $problems (printf "projector.replicas: %d are more than there are partitions (%d); the others would have nothing to do" (int $v.projector.replicas) (int $v.partitions)) -}}
{{- end -}}
{{- if and $v.projector.keda.enabled (gt (int $v.projector.keda.maxReplicas) (int $v.partitions)) -}}
{{- $problems = append $problems (printf "projector.keda.maxReplicas: %d are more than there are partitions (%d); the others would have nothing to do" (int $v.projector.keda.maxReplicas) (int $v.partitions)) -}}
{{- end -}}
{{- range $name, $scaling := dict "ingest.autoscaling" $v.ingest.autoscaling "query.autoscaling" $v.query.autoscaling "projector.keda" $v.projector.keda -}}
{{- if and $scaling.enabled (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- $problems = append $problems (printf "%s.minReplicas: %d is more than maxReplicas, %d" $name (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- range $role := list "ingest" "query" -}}
{{- $values := index $v $role -}}
{{- if and $values.autoscaling.enabled (not (dig "requests" "cpu" "" $values.resources)) -}}
{{- $problems = append $problems (printf "%s.resources.requests.cpu: autoscaling measures against it; set it" $role) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- /* Of the release that is there: empty when templates are only rendered. */ -}}
{{- $found := (lookup "v1" "ConfigMap" .Release.Namespace (printf "%s-log" (include "watertower.fullname" .))).data -}}
{{- if $found -}}
{{- if ne (toString $v.partitions) $found.partitions -}}
{{- $problems = append $problems (printf "partitions: this release has %s and the number can never change; set partitions to %s" $found.partitions $found.partitions) -}}
{{- end -}}
{{- if ne $v.mode $found.mode -}}
{{- $problems = append $problems (printf "mode: this release is %s and its data would stay behind; set mode to %s, or install another release" $found.mode $found.mode) -}}
{{- end -}}
{{- end -}}
{{- with uniq $problems -}}
{{- fail (printf "\n\nThese values cannot be:\n  %s\n" (join "\n  " .)) -}}
{{- end -}}
{{- end -}}
