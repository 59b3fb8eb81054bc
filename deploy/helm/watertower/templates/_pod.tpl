{{/* What every pod has. Takes (dict "root" $). */}}
{{- define "watertower.podBasics" -}}
automountServiceAccountToken: false
# Variables that Kubernetes would make of Services look like settings.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .root.Values.pod.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.pod.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.pod.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.pod.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "watertower.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "watertower.podMetadata" -}}
labels: {{- /* Without the chart's version: it alone is no reason for new pods. */}}
  {{- include "watertower.selector" . | nindent 2 }}
  {{- with .root.Values.pod.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .root.Values.pod.annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The container of a role. Takes (dict "root" $ "role" ROLE). */}}
{{- define "watertower.container" -}}
{{- $probes := .root.Values.probes -}}
{{- $ports := index (include "watertower.ports" . | fromJson) .role -}}
{{- $embedded := eq .root.Values.mode "embedded" -}}
- name: {{ .role }}
  image: {{ include "watertower.image" . | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args: [{{ .role }}]
  env: {{- include "watertower.env" . | trim | nindent 4 }}
  ports:
    # Ports of the pod have names of their own: an embedded pod has those of all roles.
    - {name: {{ .role }}, containerPort: {{ $ports.grpc }}, protocol: TCP}
    {{- if .root.Values.metrics.enabled }}
    - {name: prom-{{ .role }}, containerPort: {{ $ports.metrics }}, protocol: TCP}
    {{- end }}
  startupProbe:
    grpc: {port: {{ $ports.grpc }}, service: alive}
    periodSeconds: 1
    timeoutSeconds: {{ $probes.timeoutSeconds }}
    failureThreshold: {{ $probes.startupSeconds }}
  readinessProbe:
    grpc: {port: {{ $ports.grpc }}, service: ""}
    periodSeconds: {{ $probes.periodSeconds }}
    timeoutSeconds: {{ $probes.timeoutSeconds }}
    failureThreshold: {{ $probes.readinessFailures }}
  livenessProbe:
    grpc: {port: {{ $ports.grpc }}, service: alive}
    periodSeconds: {{ $probes.periodSeconds }}
    timeoutSeconds: {{ $probes.timeoutSeconds }}
    failureThreshold: {{ $probes.livenessFailures }}
  resources: {{- toYaml (index .root.Values .role).resources | nindent 4 }}
  securityContext: {{- include "watertower.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    {{- if $embedded }}
    - {name: data, mountPath: /data}
    {{- else }}
    {{- if eq .role "query" }}
    - {name: warm, mountPath: /warm}
    {{- end }}
    {{- with include "watertower.loginMounts" .root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- end }}
{{- end -}}

{{- define "watertower.tmpVolume" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.pod.tmpSize }}}
{{- end -}}

{{/* Passwords and certificates are files: not in the environment, which is shown in too many places. */}}
{{- define "watertower.loginMounts" -}}
{{- range $engine := list "kafka" "cassandra" }}
{{- if include "watertower.hasLogin" (index $.Values $engine) }}
- {name: {{ $engine }}, mountPath: /etc/watertower/{{ $engine }}, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{- define "watertower.loginVolumes" -}}
{{- range $engine := list "kafka" "cassandra" }}
{{- $values := index $.Values $engine }}
{{- if include "watertower.hasLogin" $values }}
- name: {{ $engine }}
  projected:
    defaultMode: 0440
    sources:
      {{- if $values.user }}
      - secret: {name: {{ $values.passwordSecret.name | quote }}, items: [{key: {{ $values.passwordSecret.key | quote }}, path: password}]}
      {{- end }}
      {{- if $values.caSecret.name }}
      - secret: {name: {{ $values.caSecret.name | quote }}, items: [{key: {{ $values.caSecret.key | quote }}, path: ca.crt}]}
      {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "watertower.hasLogin" -}}
{{- if or .user .caSecret.name }}yes{{ end -}}
{{- end -}}
