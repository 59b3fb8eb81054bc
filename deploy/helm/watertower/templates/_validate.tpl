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
{{- range $label, $_ := include "watertower.selector" (dict "root" $ "component" "any") | fromYaml -}}
{{- if hasKey $v.pod.labels $label -}}
{{- $problems = append $problems (printf "pod.labels.%s: pods are selected by it; leave it out" $label) -}}
{{- end -}}
{{- end -}}
{{- $name := include "watertower.fullname" . -}}
{{- if not (regexMatch "^[a-z][a-z0-9-]*$" $name) -}}
{{- $problems = append $problems (printf "fullnameOverride: names of Services begin with a letter and have letters, digits and hyphens only, which %s does not; set another one" $name) -}}
{{- end -}}
{{- range $value := list "ingest" "projector" "query" "setup" -}}
{{- $resources := (index $v $value).resources -}}
{{- range $what, $limit := $resources.limits -}}
{{- $request := get $resources.requests $what | default 0 -}}
{{- if gt (include "watertower.amount" $request | float64) (include "watertower.amount" $limit | float64) -}}
{{- $problems = append $problems (printf "%s.resources.requests.%s: %v is more than the limit, %v" $value $what $request $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $cache := mulf ($v.settings.query_cache_bytes_max | default 268435456) ($v.settings.query_workers | default 1) -}}
{{- $memory := $v.query.resources.limits.memory -}}
{{- if gt (mulf $cache 2) (include "watertower.amount" $memory | float64) -}}
{{- $problems = append $problems (printf "query.resources.limits.memory: %v does not hold query_cache_bytes_max of each worker twice (%.0f bytes); raise it, or set settings.query_cache_bytes_max lower" $memory (mulf $cache 2)) -}}
{{- end -}}
{{- /* A line has 129 bytes at most; while a process replaces the file, both are there. */ -}}
{{- $workers := $v.settings.query_workers | default 1 -}}
{{- $warm := mulf (hasKey $v.settings "query_warm_entities_max" | ternary $v.settings.query_warm_entities_max 10000) 129 (add1 (int $workers)) -}}
{{- if and (eq $v.mode "cluster") (gt $warm (include "watertower.amount" $v.query.warmSize | float64)) -}}
{{- $problems = append $problems (printf "query.warmSize: %v does not hold a list of query_warm_entities_max entities once and for each worker (%.0f bytes), and its pod would be evicted; raise it, or set settings.query_warm_entities_max lower" $v.query.warmSize $warm) -}}
{{- end -}}
{{- /* One process answers probes while it warms up; of several, which share a port, none does. */ -}}
{{- if and (gt (int $workers) 1) (ge (int ($v.settings.query_warm_ms_max | default 10000)) (mul 1000 (int $v.probes.startupSeconds) | int)) -}}
{{- $problems = append $problems (printf "probes.startupSeconds: %d is not more than query_warm_ms_max, and workers answer nobody while they warm up; raise it, or set settings.query_warm_ms_max lower" (int $v.probes.startupSeconds)) -}}
{{- end -}}
{{- range $where, $addresses := dict "kafka.bootstrapServers" $v.kafka.bootstrapServers "cassandra.contactPoints" $v.cassandra.contactPoints -}}
{{- if $addresses -}}
{{- $ports := include "watertower.portsOf" $addresses | fromJsonArray -}}
{{- range $ports -}}
{{- if or (lt (int .) 1) (gt (int .) 65535) -}}
{{- $problems = append $problems (printf "%s: port %d is not between 1 and 65535" $where (int .)) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $where "cassandra.contactPoints") (gt (len $ports) 1) -}}
{{- $problems = append $problems (printf "%s: has %d ports; all nodes have one" $where (len $ports)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- /* Of what is there: `lookup` finds nothing when templates are only rendered. The ConfigMap is in every namespace; helm makes one of
its own only after this, and whoever may do that may look at another. */ -}}
{{- $namespace := lookup "v1" "ConfigMap" .Release.Namespace "kube-root-ca.crt" -}}
{{- if and (eq $v.mode "cluster") (or $namespace (lookup "v1" "Namespace" "" "default")) -}}
{{- range $engine := list "kafka" "cassandra" -}}
{{- range $field, $from := dict "passwordSecret" "--from-literal=%s=PASSWORD" "caSecret" "--from-file=%s=FILE" -}}
{{- $wanted := index $v $engine $field -}}
{{- if $wanted.name -}}
{{- $secret := lookup "v1" "Secret" $.Release.Namespace $wanted.name -}}
{{- if not $secret -}}
{{- if not $namespace -}}
{{- $problems = append $problems (printf "namespace %s is not there; make it before its Secrets: kubectl create namespace %s" $.Release.Namespace $.Release.Namespace) -}}
{{- end -}}
{{- $problems = append $problems (printf "%s.%s.name: namespace %s has no Secret %s; make it: kubectl create secret generic %s --namespace %s %s" $engine $field $.Release.Namespace $wanted.name $wanted.name $.Release.Namespace (printf $from $wanted.key)) -}}
{{- else if not (hasKey ($secret.data | default dict) $wanted.key) -}}
{{- $problems = append $problems (printf "%s.%s.key: Secret %s has no %s, but %s; set one of these, or name another Secret: kubectl create secret generic NAME --namespace %s %s" $engine $field $wanted.name $wanted.key (keys ($secret.data | default dict) | sortAlpha | join ", " | default "nothing") $.Release.Namespace (printf $from $wanted.key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $found := (lookup "v1" "ConfigMap" .Release.Namespace (printf "%s-log" .Release.Name)).data | default dict -}}
{{- $why := dict
  "partitions" "the number can never change"
  "mode" "its data would stay behind"
  "fullnameOverride" "all its objects would be made anew beside the data"
  "nameOverride" "it is in every selector, and a Deployment cannot change its own"
  "kafka.prefix" "another log has none of its events"
  "cassandra.keyspace" "another keyspace has none of its counts"
  "embedded.storage.size" "a StatefulSet cannot change it; grow the claim itself"
  "embedded.storage.className" "a volume cannot change it" -}}
{{- range $value, $now := include "watertower.fixed" . | fromJson -}}
{{- if and (hasKey $found $value) (ne $now (get $found $value)) -}}
{{- $problems = append $problems (printf "%s: this release has %s and %s; set %s to %s, or install another release" $value (get $found $value | quote) (get $why $value) $value (get $found $value | quote)) -}}
{{- end -}}
{{- end -}}
{{- with uniq $problems -}}
{{- fail (printf "\n\nThese values cannot be:\n  %s\n" (join "\n  " .)) -}}
{{- end -}}
{{- end -}}
