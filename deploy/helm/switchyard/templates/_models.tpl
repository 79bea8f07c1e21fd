{{/* Id that requests choose a model by: `dict "name" NAME "model" MODEL`. */}}
{{- define "switchyard.modelId" -}}
{{ default .name .model.id }}
{{- end }}

{{/* Folder of a model's files in a container: `dict "name" NAME "source" SOURCE`. */}}
{{- define "switchyard.modelDir" -}}
{{- if .source.builtin }}/usr/local/models/{{ .source.builtin }}{{ else }}/models/{{ .name }}{{ end }}
{{- end }}

{{/* Where the coordinator finds a model's small files: `dict "model" MODEL` gives YAML. */}}
{{- define "switchyard.coordinatorSource" -}}
{{- default .model.source .model.coordinatorSource | toYaml }}
{{- end }}

{{/*
Volume of a model's files: `dict "name" NAME "source" SOURCE "claimed" BOOL`. Claimed: a StatefulSet's claim template has made
it already.
*/}}
{{- define "switchyard.modelVolume" -}}
{{- $source := .source }}
{{- if $source.pvc }}
- name: model-{{ .name }}
  persistentVolumeClaim:
    claimName: {{ $source.pvc.claimName }}
    readOnly: true
{{- else if $source.hostPath }}
- name: model-{{ .name }}
  hostPath:
    path: {{ $source.hostPath.path }}
    type: Directory
{{- else if $source.image }}
- name: model-{{ .name }}
  image:
    reference: {{ $source.image.reference }}
    pullPolicy: {{ default "IfNotPresent" $source.image.pullPolicy }}
{{- else if $source.download }}
{{- if not $source.download.size }}
- name: model-{{ .name }}
  emptyDir: {}
{{- else if not .claimed }}
- name: model-{{ .name }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        {{- include "switchyard.modelClaim" . | nindent 8 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Spec of the claim that holds downloaded files: `dict "source" SOURCE`. */}}
{{- define "switchyard.modelClaim" -}}
accessModes: [ReadWriteOnce]
{{- with .source.download.storageClassName }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ .source.download.size }}
{{- end }}

{{/* Mount of a model's files: `dict "name" NAME "source" SOURCE`. */}}
{{- define "switchyard.modelMount" -}}
{{- if not .source.builtin }}
- name: model-{{ .name }}
  mountPath: {{ include "switchyard.modelDir" . }}
  readOnly: true
  {{- with .source.pvc }}{{ with .subPath }}
  subPath: {{ . }}
  {{- end }}{{ end }}
  {{- with .source.image }}{{ with .subPath }}
  subPath: {{ . }}
  {{- end }}{{ end }}
{{- end }}
{{- end }}

{{/* Init container that downloads a model: `dict "root" $ "name" NAME "source" SOURCE`. */}}
{{- define "switchyard.modelDownload" -}}
{{- with .source.download }}
- name: download-{{ $.name }}
  image: {{ .image }}
  {{- with .command }}
  command:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .args }}
  args:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  env:
    - name: MODEL_DIR
      value: {{ include "switchyard.modelDir" $ }}
    # Nothing else is writable.
    - name: HOME
      value: /tmp
    {{- with .env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml $.root.Values.securityContext | nindent 4 }}
  {{- with .resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - name: model-{{ $.name }}
      mountPath: {{ include "switchyard.modelDir" $ }}
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end }}

{{/* Refuses what the schema cannot see. */}}
{{- define "switchyard.validate" -}}
{{- if not .Values.models }}
{{- fail "models is empty: name at least one model, or take a preset, for example -f presets/cpu-demo.yaml" }}
{{- end }}
{{- $ids := dict }}
{{- range $name, $model := .Values.models }}
{{- $id := include "switchyard.modelId" (dict "name" $name "model" $model) }}
{{- if hasKey $ids $id }}
{{- fail (printf "models.%s and models.%s have the id %s: give one of them another" (get $ids $id) $name $id) }}
{{- end }}
{{- $_ := set $ids $id $name }}
{{- end }}
{{- /* Not in the schema, whose messages show what they refuse. */}}
{{- if and .Values.adminKey.value (not (regexMatch "^[!-~]{16,}$" .Values.adminKey.value)) }}
{{- fail "adminKey.value must have at least 16 visible ASCII characters" }}
{{- end }}
{{- if and .Values.database.value (not (regexMatch "^postgres(ql)?://." .Values.database.value)) }}
{{- fail "database.value must be a URL, postgres://USER:PASSWORD@HOST/NAME" }}
{{- end }}
{{- if ne (empty .Values.tls.coordinatorSecret) (empty .Values.tls.workerSecret) }}
{{- fail "tls.coordinatorSecret and tls.workerSecret belong together: the processes of a cluster have TLS, or none has" }}
{{- end }}
{{- include "switchyard.validateElection" . }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs: name the gateway" }}
{{- end }}
{{- if and .Values.inferencePool.enabled (not .Values.inferencePool.endpointPicker.name) }}
{{- fail "inferencePool.enabled needs inferencePool.endpointPicker.name: the Service of the endpoint picker" }}
{{- end }}
{{- end }}

{{/* Refuses several coordinators that share nothing: what one has been told, the next would not know. */}}
{{- define "switchyard.validateElection" -}}
{{- $settings := .Values.coordinator }}
{{- $times := $settings.leaderElection }}
{{- if not (and (gt (int $times.leaseSeconds) (int $times.renewSeconds)) (gt (int $times.renewSeconds) (int $times.retrySeconds))) }}
{{- fail "coordinator.leaderElection: leaseSeconds must be more than renewSeconds, and that more than retrySeconds" }}
{{- end }}
{{- if include "switchyard.elects" . }}
{{- $replicas := int $settings.replicas }}
{{- if not (or .Values.database.existingSecret .Values.database.value) }}
{{- fail (printf "coordinator.replicas %d needs database.existingSecret: SQLite is one coordinator's" $replicas) }}
{{- end }}
{{- if and $settings.persistence.enabled (not $settings.persistence.existingClaim) }}
{{- fail (printf "coordinator.replicas %d needs coordinator.persistence.enabled=false, or an existingClaim that all their pods can write: the chart's own is one node's" $replicas) }}
{{- end }}
{{- $stores := list }}
{{- range $settings.extraEnv }}{{ if eq .name "SWITCHYARD_FILE_STORE" }}{{ $stores = append $stores .name }}{{ end }}{{ end }}
{{- if not (or $stores (has "--file-store" $settings.extraArgs) $settings.persistence.existingClaim) }}
{{- fail (printf "coordinator.replicas %d needs a place for files that all reach: SWITCHYARD_FILE_STORE in coordinator.extraEnv, or coordinator.persistence.existingClaim" $replicas) }}
{{- end }}
{{- if $settings.podDisruptionBudget.enabled }}
{{- fail (printf "coordinator.podDisruptionBudget.enabled is for one coordinator: of %d only the leader is ready, and it could never be moved" $replicas) }}
{{- end }}
{{- end }}
{{- end }}
