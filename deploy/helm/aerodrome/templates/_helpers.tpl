{{/* Name of everything in the release. */}}
{{- define "aerodrome.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "aerodrome.selector" -}}
app.kubernetes.io/name: aerodrome
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* What distinguishes the nodes from everything else in the release. */}}
{{- define "aerodrome.nodeSelector" -}}
{{ include "aerodrome.selector" . }}
app.kubernetes.io/component: node
{{- end -}}

{{- define "aerodrome.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "aerodrome.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "aerodrome.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "aerodrome.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Security of a pod: no root, no rights at the cluster's API. */}}
{{- define "aerodrome.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.podSecurity.runAsUser }}
  runAsGroup: {{ .Values.podSecurity.runAsUser }}
  fsGroup: {{ .Values.podSecurity.runAsUser }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    {{- toYaml .Values.podSecurity.seccompProfile | nindent 4 }}
{{- end -}}

{{/* The same for nodes, which may make namespaces for their runtimes. */}}
{{- define "aerodrome.nodeSecurity" -}}
{{- if .Values.sandboxes.enabled -}}
hostUsers: false
{{ include "aerodrome.podSecurity" (dict "Values" (merge (dict "podSecurity" (dict "runAsUser" .Values.podSecurity.runAsUser "seccompProfile" (dict "type" "Unconfined"))) (omit .Values "podSecurity"))) }}
{{- else -}}
{{ include "aerodrome.podSecurity" . }}
{{- end -}}
{{- end -}}

{{- define "aerodrome.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* Settings and secrets of a container that runs the `aerodrome` command. */}}
{{- define "aerodrome.configMounts" -}}
- name: config
  mountPath: /etc/aerodrome/config
  readOnly: true
{{- if or .Values.secretFiles.existing (include "aerodrome.storesBundled" .) .Values.cliServers.enabled }}
- name: secrets
  mountPath: /etc/aerodrome/secrets
  readOnly: true
{{- end }}
{{- if .Values.secretFiles.csi.enabled }}
- name: secrets-store
  mountPath: /etc/aerodrome/secrets-store
  readOnly: true
{{- end }}
{{- if .Values.serviceAccount.token.enabled }}
- name: service-account
  mountPath: /etc/aerodrome/service-account
  readOnly: true
{{- end }}
{{- end -}}

{{/* Environment of the same. */}}
{{- define "aerodrome.commonEnv" -}}
{{- if .Values.serviceAccount.token.enabled }}
- {name: VAULT_SERVICE_ACCOUNT_TOKEN, value: /etc/aerodrome/service-account/token}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Its volumes; `.configMap` names the ConfigMap, `.root` is the chart's context. */}}
{{- define "aerodrome.configVolumes" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
- name: config
  configMap:
    name: {{ .configMap }}
{{- if or $values.secretFiles.existing (include "aerodrome.storesBundled" $root) $values.cliServers.enabled }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range $values.secretFiles.existing }}
      - secret:
          name: {{ . }}
      {{- end }}
      {{- if include "aerodrome.storesBundled" $root }}
      - secret:
          name: {{ include "aerodrome.fullname" $root }}-stores
          items:
            {{- if $values.postgresql.enabled }}
            - {key: state-url, path: state-url}
            {{- end }}
            {{- if $values.valkey.enabled }}
            - {key: coordination-url, path: coordination-url}
            {{- end }}
      {{- end }}
      {{- if $values.cliServers.enabled }}
      - secret:
          name: {{ $values.cliServers.tokenSecret }}
          items:
            - {key: token, path: cli-token}
      {{- end }}
{{- end }}
{{- if $values.secretFiles.csi.enabled }}
- name: secrets-store
  csi:
    driver: {{ $values.secretFiles.csi.driver }}
    readOnly: true
    volumeAttributes:
      secretProviderClass: {{ $values.secretFiles.csi.secretProviderClass }}
{{- end }}
{{- with $values.serviceAccount.token }}
{{- if .enabled }}
# This token alone: pods have none for the cluster's API by themselves.
- name: service-account
  projected:
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: {{ .expirationSeconds }}
          {{- with .audience }}
          audience: {{ . | quote }}
          {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Not empty when the release runs a store of its own. */}}
{{- define "aerodrome.storesBundled" -}}
{{- if or .Values.valkey.enabled .Values.postgresql.enabled }}yes{{ end -}}
{{- end -}}

{{/* Seconds between the order to stop and SIGKILL: all that a drain may take. */}}
{{- define "aerodrome.gracePeriod" -}}
{{- with .Values.drain }}{{ add .timeoutSeconds .preStopSeconds .marginSeconds }}{{ end -}}
{{- end -}}
