{{/*
The settings as JSON: those of `config`, and what follows from the rest of the values.
*/}}
{{- define "aerodrome.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if hasKey $config "server" -}}
{{- fail "config.server is the chart's own: see drain, http, gateway and data" -}}
{{- end -}}
{{- $any := ternary "[::]" "0.0.0.0" (eq .Values.ipFamily "IPv6") -}}
{{- $server := dict
  "http" (printf "%s:8080" $any)
  "gateway" (printf "%s:4321" $any)
  "data_dir" "/var/lib/aerodrome"
  "drain_timeout" (printf "%ds" (int .Values.drain.timeoutSeconds)) -}}
{{- $config = set $config "server" $server -}}
{{- if .Values.postgresql.enabled -}}
{{- $key := ternary "tables" "url" .Values.cliServers.enabled -}}
{{- $config = include "aerodrome.put" (list $config "state" $key "file:/etc/aerodrome/secrets/state-url" "postgresql.enabled") | fromJson -}}
{{- end -}}
{{- if .Values.valkey.enabled -}}
{{- $config = include "aerodrome.put" (list $config "coordination" "url" "file:/etc/aerodrome/secrets/coordination-url" "valkey.enabled") | fromJson -}}
{{- end -}}
{{- if .Values.cliServers.enabled -}}
{{- $config = include "aerodrome.put" (list $config "state" "url" "volume:/var/lib/aerodrome-sessions" "cliServers.enabled") | fromJson -}}
{{- $attached := list (dict
  "address" (printf "%s-cli:4321" (include "aerodrome.fullname" .))
  "tenant" .Values.cliServers.tenant
  "token" "file:/etc/aerodrome/secrets/cli-token") -}}
{{- $config = include "aerodrome.put" (list $config "runtime" "attach" $attached "cliServers.enabled") | fromJson -}}
{{- end -}}
{{- if .Values.sandboxes.enabled -}}
{{- $config = include "aerodrome.put" (list $config "runtime" "launcher" "sandbox" "sandboxes.enabled") | fromJson -}}
{{- end -}}
{{- if .Values.metrics.enabled -}}
{{- $config = include "aerodrome.put" (list $config "telemetry" "metrics_address" (printf "%s:9464" $any) "metrics.enabled") | fromJson -}}
{{- end -}}
{{- toJson $config -}}
{{- end -}}

{{/* A setting that follows from a value: (settings, section, key, what it is, the value's name). */}}
{{- define "aerodrome.put" -}}
{{- $config := index . 0 -}}
{{- $section := index . 1 -}}
{{- $key := index . 2 -}}
{{- $settings := get $config $section | default dict -}}
{{- if hasKey $settings $key -}}
{{- fail (printf "config.%s.%s and %s are both set: leave one out" $section $key (index . 4)) -}}
{{- end -}}
{{- toJson (set $config $section (set $settings $key (index . 3))) -}}
{{- end -}}

{{/*
The settings as TOML. Strings, numbers, booleans and lists of JSON are written as TOML writes them; tables are not.
*/}}
{{- define "aerodrome.toml" -}}
{{- range $section, $settings := . }}
[{{ $section }}]
{{- range $key, $value := $settings }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ include "aerodrome.tomlValue" $value }}
{{- end }}
{{- end }}
{{ end }}
{{- end -}}

{{- define "aerodrome.tomlValue" -}}
{{- if kindIs "map" . -}}
{{- $entries := list -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $entries = append $entries (printf "%s = %s" (toJson $key) (include "aerodrome.tomlValue" $value)) -}}
{{- end -}}
{{- end -}}
{ {{- join ", " $entries -}} }
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . -}}
{{- $items = append $items (include "aerodrome.tomlValue" .) -}}
{{- end -}}
[{{ join ", " $items }}]
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}

{{/* Refuse what would lose conversations or leave nodes apart; called once, by the Deployment. */}}
{{- define "aerodrome.validate" -}}
{{- $config := include "aerodrome.config" . | fromJson -}}
{{- $many := or (gt (int .Values.replicas) 1) .Values.autoscaling.enabled -}}
{{- $state := get $config "state" | default dict -}}
{{- $url := get $state "url" | default "sqlite" -}}
{{- if hasPrefix "volume:" $url -}}
{{- $url = get $state "tables" | default "sqlite" -}}
{{- end -}}
{{- $coordination := get (get $config "coordination" | default dict) "url" | default "sqlite" -}}
{{- if eq $coordination "memory" -}}
{{- fail "config.coordination.url: memory is for tests, and forgets whose the sessions are" -}}
{{- end -}}
{{- $local := or (eq $url "sqlite") (eq $coordination "sqlite") -}}
{{- if and $many $local -}}
{{- fail "more than one node needs stores that they share: set config.state.url (postgresql://...) and config.coordination.url (redis://... or postgresql://...), or postgresql.enabled and valkey.enabled for a trial" -}}
{{- end -}}
{{- if and $many .Values.data.persistence.enabled -}}
{{- fail "more than one node cannot share a volume: set data.persistence.enabled to false" -}}
{{- end -}}
{{- if and $local (not .Values.data.persistence.enabled) -}}
{{- fail "with SQLite every conversation is in the data directory and would go with the pod: set data.persistence.enabled, or name stores" -}}
{{- end -}}
{{- if and .Values.cliServers.enabled (not .Values.cliServers.tokenSecret) -}}
{{- fail "cliServers.tokenSecret: whoever reaches a Copilot CLI server without a token may read everything in it" -}}
{{- end -}}
{{- if and .Values.cliServers.enabled (not .Values.cliServers.tenant) -}}
{{- fail "cliServers.tenant: say whose the servers are, because a server shows all that it sees to whoever it serves" -}}
{{- end -}}
{{- if and (or .Values.autoscaling.enabled .Values.metrics.serviceMonitor.enabled .Values.metrics.prometheusRule.enabled) (not .Values.metrics.enabled) -}}
{{- fail "metrics.enabled: autoscaling, the ServiceMonitor and the PrometheusRules have nothing to go by without metrics" -}}
{{- end -}}
{{- if and .Values.secretFiles.csi.enabled (not .Values.secretFiles.csi.secretProviderClass) -}}
{{- fail "secretFiles.csi.secretProviderClass: name the SecretProviderClass" -}}
{{- end -}}
{{- end -}}
