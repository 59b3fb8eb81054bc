{{/* A number or a word as the environment wants it: without the exponent that large numbers get in templates. */}}
{{- define "watertower.word" -}}
{{- if kindIs "string" . }}{{ . | quote }}{{ else }}{{ toJson . | quote }}{{ end -}}
{{- end -}}

{{/* The settings that have a value of their own, with its name: `settings` must not have them too. JSON. */}}
{{- define "watertower.ownValues" -}}
{
  "data": "mode", "log": "mode", "store": "mode", "partitions": "partitions",
  "write_host": "bindAddress", "write_port": "a Service in front", "read_host": "bindAddress", "read_port": "a Service in front",
  "drain_ms": "drainMs", "shutdown_grace_ms": "shutdownGraceMs",
  "projector_health_host": "bindAddress", "projector_health_port": "a Service in front",
  "ingest_connection_age_ms_max": "connectionAgeMs", "query_connection_age_ms_max": "connectionAgeMs",
  "ingest_connection_age_grace_ms_max": "connectionAgeGraceMs", "query_connection_age_grace_ms_max": "connectionAgeGraceMs",
  "metrics_host": "bindAddress", "ingest_metrics_port": "metrics.enabled", "projector_metrics_port": "metrics.enabled",
  "query_metrics_port": "metrics.enabled", "query_warm_file": "query.warmSize",
  "kafka_bootstrap_servers": "kafka.bootstrapServers", "kafka_prefix": "kafka.prefix",
  "kafka_security_protocol": "kafka.securityProtocol", "kafka_sasl_mechanism": "kafka.saslMechanism", "kafka_user": "kafka.user",
  "kafka_password": "kafka.passwordSecret", "kafka_password_file": "kafka.passwordSecret", "kafka_ca_file": "kafka.caSecret",
  "kafka_replication_factor": "kafka.replicationFactor",
  "cassandra_contact_points": "cassandra.contactPoints", "cassandra_local_datacenter": "cassandra.localDatacenter",
  "cassandra_keyspace": "cassandra.keyspace", "cassandra_replication": "cassandra.replication", "cassandra_user": "cassandra.user",
  "cassandra_password": "cassandra.passwordSecret", "cassandra_password_file": "cassandra.passwordSecret",
  "cassandra_ca_file": "cassandra.caSecret"
}
{{- end -}}

{{/* The service's settings as a map, as each container is given it. Takes (dict "root" $ "role" ROLE), or "" for the hooks. */}}
{{- define "watertower.settings" -}}
{{- $v := .root.Values -}}
{{- $ports := include "watertower.ports" . | fromJson -}}
{{- $s := dict "drain_ms" $v.drainMs "shutdown_grace_ms" $v.shutdownGraceMs -}}
{{- if eq $v.mode "embedded" -}}
{{- /* A folder of the volume's: the root of one may have a lost+found, and then it is no empty data folder. */ -}}
{{- $_ := merge $s (dict "log" "sqlite" "store" "rocksdb" "data" "/data/watertower" "partitions" $v.partitions) -}}
{{- else -}}
{{- $_ := merge $s (dict "log" "kafka" "store" "cassandra"
  "kafka_bootstrap_servers" $v.kafka.bootstrapServers "kafka_prefix" $v.kafka.prefix "kafka_security_protocol" $v.kafka.securityProtocol
  "kafka_sasl_mechanism" $v.kafka.saslMechanism "kafka_replication_factor" $v.kafka.replicationFactor
  "cassandra_contact_points" $v.cassandra.contactPoints "cassandra_local_datacenter" $v.cassandra.localDatacenter
  "cassandra_keyspace" $v.cassandra.keyspace "cassandra_replication" $v.cassandra.replication) -}}
{{- range $engine := list "kafka" "cassandra" -}}
{{- $values := index $v $engine -}}
{{- if $values.user -}}
{{- $_ := set $s (printf "%s_user" $engine) $values.user -}}
{{- $_ := set $s (printf "%s_password_file" $engine) (printf "/etc/watertower/%s/password" $engine) -}}
{{- end -}}
{{- if $values.caSecret.name -}}
{{- $_ := set $s (printf "%s_ca_file" $engine) (printf "/etc/watertower/%s/ca.crt" $engine) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq .role "ingest" -}}
{{- $_ := merge $s (dict "write_host" $v.bindAddress "write_port" $ports.ingest.grpc
  "ingest_connection_age_ms_max" $v.connectionAgeMs "ingest_connection_age_grace_ms_max" $v.connectionAgeGraceMs) -}}
{{- else if eq .role "projector" -}}
{{- $_ := merge $s (dict "projector_health_host" $v.bindAddress "projector_health_port" $ports.projector.grpc) -}}
{{- else if eq .role "query" -}}
{{- $_ := merge $s (dict "read_host" $v.bindAddress "read_port" $ports.query.grpc) -}}
{{- if ne (toString $v.settings.query_server) "native" -}}
{{- $_ := merge $s (dict
  "query_connection_age_ms_max" $v.connectionAgeMs "query_connection_age_grace_ms_max" $v.connectionAgeGraceMs) -}}
{{- end -}}
{{- if eq $v.mode "cluster" -}}
{{- $_ := set $s "query_warm_file" "/warm/query-warm" -}}
{{- end -}}
{{- end -}}
{{- if and .role $v.metrics.enabled -}}
{{- $_ := merge $s (dict "metrics_host" $v.bindAddress (printf "%s_metrics_port" .role) (index $ports .role "metrics")) -}}
{{- end -}}
{{- merge $s $v.settings | toJson -}}
{{- end -}}

{{/* The same as a container's environment. */}}
{{- define "watertower.env" -}}
{{- range $name, $value := include "watertower.settings" . | fromJson }}
- {name: WATERTOWER_{{ upper $name }}, value: {{ include "watertower.word" $value }}}
{{- end }}
{{- end -}}
