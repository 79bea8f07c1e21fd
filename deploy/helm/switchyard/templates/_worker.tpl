{{/*
Pod template of a worker: `dict "root" $ "name" NAME "model" MODEL`. The same for every kind of controller.
*/}}
{{- define "switchyard.workerPod" -}}
{{- $settings := include "switchyard.workerSettings" . | fromYaml }}
{{- $selector := include "switchyard.selector" (dict "root" .root "component" "worker" "model" .name) }}
{{- $source := .model.source }}
{{- $isCuda := eq .model.device "cuda" }}
{{- $listen := .root.Values.listen }}
{{- $probe := printf "grpc: {port: %s}" (include "switchyard.controlPort" .root) }}
{{- if .root.Values.tls.workerSecret }}
{{- /* A kubelet has no certificate of the cluster. */}}
{{- $probe = printf "httpGet: {path: /health, port: %s}" (include "switchyard.workerMetricsPort" .root) }}
{{- end }}
metadata:
  labels:
    {{- include "switchyard.podLabels" .root | nindent 4 }}
    {{- $selector | nindent 4 }}
    {{- with $settings.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $settings.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "switchyard.podSettings" (dict "root" .root "pod" $settings "selector" $selector) | nindent 2 }}
  {{- with $settings.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ add (include "switchyard.workerStopSeconds" .root) (include "switchyard.stopMarginSeconds" .root) }}
  {{- $init := include "switchyard.modelDownload" (dict "root" .root "name" .name "source" $source) }}
  {{- if or $init $settings.extraInitContainers }}
  initContainers:
    {{- trim $init | nindent 4 }}
    {{- with $settings.extraInitContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: worker
      image: {{ include "switchyard.image" (dict "root" .root "cuda" $isCuda) }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args:
        - worker
        - --coordinator
        - http://{{ include "switchyard.fullname" .root }}-cluster:{{ include "switchyard.grpcPort" .root }}
        - --model
        - {{ printf "%s=%s" (include "switchyard.modelId" .) (include "switchyard.modelDir" (dict "name" .name "source" $source)) | quote }}
        - --world-size
        - {{ .model.worldSize | int64 | quote }}
        - --numerics
        - {{ .root.Values.numerics }}
        - --device
        - {{ .model.device }}
        {{- if $isCuda }}
        - --exchange
        - {{ default "nccl" .model.exchange }}
        - --kernel-cache
        - /var/cache/switchyard/kernels
        {{- end }}
        - --control
        - {{ printf "%s:%s" $listen (include "switchyard.controlPort" .root) | quote }}
        - --data-plane
        - {{ printf "%s:%s" $listen (include "switchyard.dataPort" .root) | quote }}
        - --metrics
        - {{ printf "%s:%s" $listen (include "switchyard.workerMetricsPort" .root) | quote }}
        # The pod's own address: right at once, while a name would be so only after DNS has heard of it.
        - --advertise
        - $(POD_IP)
        {{- with $settings.threads }}
        - --threads
        - {{ . | int64 | quote }}
        {{- end }}
        {{- with $settings.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      env:
        {{- include "switchyard.env" .root | nindent 8 }}
        {{- if .root.Values.tls.workerSecret }}
        {{- include "switchyard.clusterTlsEnv" .root | nindent 8 }}
        {{- end }}
        - name: POD_IP
          valueFrom:
            fieldRef:
              fieldPath: status.podIP
        {{- with $settings.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: control
          containerPort: {{ include "switchyard.controlPort" .root }}
        - name: data
          containerPort: {{ include "switchyard.dataPort" .root }}
        - name: metrics
          containerPort: {{ include "switchyard.workerMetricsPort" .root }}
      # Until the worker listens. Loading comes after it has registered: the coordinator watches its progress, and puts out
      # a worker that is silent for a minute, which then exits. So a slow one is not killed, and a stuck one is.
      startupProbe:
        {{- $probe | nindent 8 }}
        periodSeconds: 5
        failureThreshold: {{ div (add $settings.startupSeconds 4) 5 }}
      livenessProbe:
        {{- $probe | nindent 8 }}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: {{ div (add $settings.livenessSeconds 9) 10 }}
      readinessProbe:
        {{- $probe | nindent 8 }}
        periodSeconds: 5
        timeoutSeconds: 5
      terminationMessagePolicy: FallbackToLogsOnError
      securityContext:
        {{- mustMergeOverwrite (deepCopy .root.Values.securityContext) (deepCopy $settings.securityContext) | toYaml | nindent 8 }}
      {{- $resources := deepCopy $settings.resources }}
      {{- if $isCuda }}
      {{- $gpu := dict "limits" (dict $settings.gpuResource 1) }}
      {{- $resources = mustMergeOverwrite $resources $gpu }}
      {{- end }}
      resources:
        {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        {{- if $settings.shmSize }}
        - name: shm
          mountPath: /dev/shm
        {{- end }}
        {{- if $isCuda }}
        - name: kernel-cache
          mountPath: /var/cache/switchyard
        {{- end }}
        {{- if .root.Values.tls.workerSecret }}
        {{- include "switchyard.tlsMount" (dict "name" "cluster-tls") | nindent 8 }}
        {{- end }}
        {{- include "switchyard.modelMount" (dict "name" .name "source" $source) | indent 8 }}
        {{- with $settings.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with $settings.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- with .root.Values.tls.workerSecret }}
    {{- include "switchyard.tlsVolume" (dict "name" "cluster-tls" "secret" .) | nindent 4 }}
    {{- end }}
    {{- with $settings.shmSize }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ . }}
    {{- end }}
    {{- if $isCuda }}
    - name: kernel-cache
      {{- /* Helm adds what is given to the default. */}}
      {{- $cache := ternary (omit $settings.kernelCache "emptyDir") $settings.kernelCache (gt (len $settings.kernelCache) 1) }}
      {{- toYaml $cache | nindent 6 }}
    {{- end }}
    {{- $claimed := eq $settings.kind "StatefulSet" }}
    {{- include "switchyard.modelVolume" (dict "name" .name "source" $source "claimed" $claimed) | indent 4 }}
    {{- with $settings.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
