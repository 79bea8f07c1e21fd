{{/* What is fixed in the program, or in the image. */}}
{{- define "switchyard.httpPort" -}}8080{{- end }}
{{- define "switchyard.grpcPort" -}}9090{{- end }}
{{- define "switchyard.adminPort" -}}8081{{- end }}
{{- define "switchyard.controlPort" -}}9091{{- end }}
{{- define "switchyard.dataPort" -}}9092{{- end }}
{{- define "switchyard.workerMetricsPort" -}}9093{{- end }}

{{/* Seconds that a coordinator takes to stop at most: answers finish (30), connections close (5), usage is recorded (10). */}}
{{- define "switchyard.coordinatorStopSeconds" -}}45{{- end }}
{{/* Seconds that a worker takes to stop at most: steps in flight (3), open calls (3). */}}
{{- define "switchyard.workerStopSeconds" -}}6{{- end }}
{{/* Seconds between what a process needs and the kill. */}}
{{- define "switchyard.stopMarginSeconds" -}}10{{- end }}

{{- define "switchyard.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Beginning of all names. With `-worker-`, a model's name (16) and the hash of a revision (11) it fits into 63 characters. */}}
{{- define "switchyard.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 28 | trimSuffix "-" }}
{{- else }}
{{- $name := include "switchyard.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 28 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 28 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Labels that every object has. */}}
{{- define "switchyard.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: switchyard
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of pods beside those that choose them. Not the chart's version: another chart must not restart workers for a label. */}}
{{- define "switchyard.podLabels" -}}
app.kubernetes.io/part-of: switchyard
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Whether there are several coordinators, which elect one: not empty then. */}}
{{- define "switchyard.elects" -}}
{{- if gt (int .Values.coordinator.replicas) 1 }}yes{{ end }}
{{- end }}

{{/* Labels that choose a component's pods: `dict "root" $ "component" "worker" "model" NAME`, the model for workers only. */}}
{{- define "switchyard.selector" -}}
app.kubernetes.io/name: {{ include "switchyard.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .model }}
switchyard/model: {{ . }}
{{- end }}
{{- end }}

{{- define "switchyard.coordinatorSelector" -}}
{{ include "switchyard.selector" (dict "root" . "component" "coordinator") }}
{{- end }}

{{- define "switchyard.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "switchyard.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Reference of the image: `dict "root" $ "cuda" BOOL`. */}}
{{- define "switchyard.image" -}}
{{- $image := .root.Values.image }}
{{- $name := $image.repository }}
{{- with $image.registry }}{{ $name = printf "%s/%s" . $name }}{{ end }}
{{- $digest := ternary $image.cudaDigest $image.digest .cuda }}
{{- $tag := printf "%s%s" (default .root.Chart.AppVersion $image.tag) (ternary $image.cudaTagSuffix "" .cuda) }}
{{- if $digest }}{{ $name }}@{{ $digest }}{{ else }}{{ $name }}:{{ $tag }}{{ end }}
{{- end }}

{{/* Name of a Secret: `dict "root" $ "secret" .Values.apiKey "suffix" "api-key"`; empty if there is none. */}}
{{- define "switchyard.secretName" -}}
{{- if .secret.existingSecret }}{{ .secret.existingSecret }}
{{- else if .secret.value }}{{ include "switchyard.fullname" .root }}-{{ .suffix }}
{{- end }}
{{- end }}

{{/* A worker's settings: those of all models, and the model's own over them. `dict "root" $ "model" MODEL` gives YAML. */}}
{{- define "switchyard.workerSettings" -}}
{{- mustMergeOverwrite (deepCopy .root.Values.worker) (deepCopy (default dict .model.worker)) | toYaml }}
{{- end }}

{{/* Name of a group's objects: `dict "root" $ "name" NAME`. */}}
{{- define "switchyard.workerName" -}}
{{ include "switchyard.fullname" .root }}-worker-{{ .name }}
{{- end }}

{{/* A program argument as it is: Kubernetes must not take `$(…)` in it for a variable. */}}
{{- define "switchyard.literal" -}}
{{ replace "$(" "$$(" . }}
{{- end }}

{{/* Environment that every process has. */}}
{{- define "switchyard.env" -}}
- name: SWITCHYARD_LOG
  value: {{ .Values.log.filter | quote }}
- name: SWITCHYARD_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- with .Values.tracing.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{/* Topology spread constraints with the pods' own selector where there is none: `dict "constraints" LIST "selector" YAML`. */}}
{{- define "switchyard.spread" -}}
{{- $selector := dict "matchLabels" (fromYaml .selector) }}
{{- $constraints := list }}
{{- range .constraints }}
{{- $constraints = append $constraints (merge (deepCopy .) (dict "labelSelector" $selector)) }}
{{- end }}
{{- toYaml $constraints }}
{{- end }}

{{/* What pods have in common: `dict "root" $ "pod" SETTINGS "selector" YAML "token" BOOL`, the token of Kubernetes' API where it is needed. */}}
{{- define "switchyard.podSettings" -}}
serviceAccountName: {{ include "switchyard.serviceAccountName" .root }}
automountServiceAccountToken: {{ default false .token }}
# A Service's name must not become a setting of the program.
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- include "switchyard.spread" (dict "constraints" . "selector" $.selector) | nindent 2 }}
{{- end }}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Files of a process in its cluster, as variables: `kubectl exec` finds them, too. */}}
{{- define "switchyard.clusterTlsEnv" -}}
- name: SWITCHYARD_CLUSTER_TLS_CERT
  value: /etc/switchyard/cluster-tls/tls.crt
- name: SWITCHYARD_CLUSTER_TLS_KEY
  value: /etc/switchyard/cluster-tls/tls.key
- name: SWITCHYARD_CLUSTER_TLS_CA
  value: /etc/switchyard/cluster-tls/ca.crt
{{- end }}

{{/* Mount of a Secret as a folder, so that its changes arrive: `dict "name" NAME`. */}}
{{- define "switchyard.tlsMount" -}}
- name: {{ .name }}
  mountPath: /etc/switchyard/{{ .name }}
  readOnly: true
{{- end }}

{{/* Its volume: `dict "name" NAME "secret" SECRET`. */}}
{{- define "switchyard.tlsVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
{{- end }}
