{{/*
One release per cluster: the CSIDriver is cluster-wide and has a fixed name. So names do not carry
the release's, and a second release is refused by Helm because it does not own them.
*/}}

{{/* Labels of an object. Call with (dict "root" $ "component" NAME). */}}
{{- define "hyprstream.labels" -}}
{{ include "hyprstream.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: hyprstream
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels that select a component's pods. They never change. */}}
{{- define "hyprstream.selector" -}}
app.kubernetes.io/name: hyprstream
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Reference of an image. Call with (dict "root" $ "name" NAME "override" REFERENCE). */}}
{{- define "hyprstream.image" -}}
{{- $images := .root.Values.images -}}
{{- if .override -}}
{{- .override -}}
{{- else -}}
{{- list $images.registry $images.repository .name | compact | join "/" -}}
:{{- $images.tag | default .root.Chart.AppVersion -}}
{{- end -}}
{{- end }}

{{- define "hyprstream.controlPlaneImage" -}}
{{- include "hyprstream.image" (dict "root" . "name" "control-plane" "override" .Values.images.references.controlPlane) -}}
{{- end }}

{{/* Secret with the registry's keys. */}}
{{- define "hyprstream.keysSecret" -}}
{{- .Values.registry.existingSecret | default "hyprstream-registry-keys" -}}
{{- end }}

{{/* Secret with what the keys of workers are made from. */}}
{{- define "hyprstream.workerKeysSecret" -}}
{{- .Values.workers.existingSecret | default "hyprstream-worker-keys" -}}
{{- end }}

{{/* Claim of the registry. */}}
{{- define "hyprstream.registryClaim" -}}
{{- .Values.registry.persistence.existingClaim | default "hyprstream-registry" -}}
{{- end }}

{{- define "hyprstream.registryUrl" -}}
{{- $service := .Values.registry.service -}}
{{- if .Values.tls.enabled -}}
{{- $port := int $service.tlsPort -}}
https://hyprstream-registry.{{ .Release.Namespace }}.svc{{ if ne $port 443 }}:{{ $port }}{{ end }}
{{- else -}}
{{- $port := int $service.port -}}
http://hyprstream-registry.{{ .Release.Namespace }}.svc{{ if ne $port 80 }}:{{ $port }}{{ end }}
{{- end }}
{{- end }}

{{/* What the registry's certificate is for, separated by commas. */}}
{{- define "hyprstream.certificateNames" -}}
{{- $name := "hyprstream-registry" -}}
{{- $own := list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.%s" $name .Release.Namespace .Values.tls.clusterDomain) -}}
{{- /* The end of a port-forward. */ -}}
{{- $here := list "localhost" "127.0.0.1" "::1" -}}
{{- concat $own $here .Values.tls.names | join "," -}}
{{- end }}

{{/*
Whether the registry serves plain HTTP beside TLS: "true" or nothing. auto: in the upgrade that turns
TLS on, which the Deployment of before tells, so that parts and pods of before go on.
*/}}
{{- define "hyprstream.acceptPlain" -}}
{{- if .Values.tls.enabled -}}
{{- if eq (toString .Values.tls.acceptPlain) "true" -}}
true
{{- else if eq (toString .Values.tls.acceptPlain) "auto" -}}
{{- with lookup "apps/v1" "Deployment" .Release.Namespace "hyprstream-registry" -}}
{{- $args := (first .spec.template.spec.containers).args | default list -}}
{{- if not (contains "--tls-cert=" (join " " $args)) -}}
true
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
Whether workers speak TLS: off, permissive or strict. auto: strict, but permissive in the upgrade that
has them speak it, which the operator of before tells, so that gateways of before go on.
*/}}
{{- define "hyprstream.workerTls" -}}
{{- if not .Values.tls.enabled -}}
{{- if has .Values.tls.workers (list "permissive" "strict") -}}
{{- fail "tls.workers needs tls.enabled: the certificates of workers are of the same authority" -}}
{{- end -}}
off
{{- else if eq .Values.tls.workers "disabled" -}}
off
{{- else if ne .Values.tls.workers "auto" -}}
{{ .Values.tls.workers }}
{{- else -}}
{{- $mode := "strict" -}}
{{- with lookup "apps/v1" "Deployment" .Release.Namespace "hyprstream-operator" -}}
{{- $args := (first .spec.template.spec.containers).args | default list -}}
{{- if not (regexMatch "--worker-tls=(permissive|strict)" (join " " $args)) -}}
{{- $mode = "permissive" -}}
{{- end -}}
{{- end -}}
{{ $mode }}
{{- end -}}
{{- end }}

{{/* The volume with the authorities that the operator keeps, its mount, and the flag for the file. */}}
{{- define "hyprstream.trustVolume" -}}
{{- if .Values.tls.enabled -}}
- name: trust
  configMap:
    name: hyprstream-trust
    items:
      - {key: ca.crt, path: ca.crt}
{{- end }}
{{- end }}
{{- define "hyprstream.trustMount" -}}
{{- if .Values.tls.enabled -}}
- {name: trust, mountPath: /etc/hyprstream-trust, readOnly: true}
{{- end }}
{{- end }}

{{/* Environment of every program. */}}
{{- define "hyprstream.logEnv" -}}
- name: HYPRSTREAM_LOG
  value: {{ .Values.log.filter | quote }}
- name: HYPRSTREAM_LOG_FORMAT
  value: {{ .Values.log.format | quote }}
{{- end }}

{{/* What the Restricted Pod Security Standard asks of a pod and of a container. */}}
{{- define "hyprstream.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}
{{- define "hyprstream.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Where a component's pods may run. Call with (dict "root" $ "values" VALUES). */}}
{{- define "hyprstream.placement" -}}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}

{{/* Metadata of a component's pods. Call with (dict "root" $ "component" NAME "values" VALUES). */}}
{{- define "hyprstream.podMetadata" -}}
labels:
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- include "hyprstream.labels" . | nindent 2 }}
annotations:
  kubectl.kubernetes.io/default-container: {{ .component }}
  {{- with .values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Probes of a program's admin port. */}}
{{- define "hyprstream.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 2
  timeoutSeconds: 2
{{- end }}

{{/* Bytes of a quantity such as 100Gi. */}}
{{- define "hyprstream.bytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+" $text | float64 -}}
{{- $units := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 -}}
{{- mulf $number (get $units (regexReplaceAll "^[0-9.]+" $text "")) | int64 -}}
{{- end }}
