{{- /* The image of the control plane, its Job and the sidecars. */ -}}
{{- define "xds.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The annotations of the control plane's pods. It cannot depend on its own sidecar; values override the others. */ -}}
{{- define "xds.podAnnotations" -}}
{{- $required := dict "sidecar.istio.io/inject" "false" -}}
{{- $defaults := dict "prometheus.io/scrape" "true" "prometheus.io/port" "15014" -}}
{{- toYaml (merge $required (.Values.podAnnotations | default dict) $defaults) -}}
{{- end -}}

{{- /* The namespace whose policies apply to the whole mesh. */ -}}
{{- define "xds.rootNamespace" -}}
{{ (.Values.meshConfig | default dict).rootNamespace | default .Release.Namespace }}
{{- end -}}

{{- /* The settings of the mesh. The control plane's default of rootNamespace is istio-system. */ -}}
{{- define "xds.meshConfig" -}}
{{- $settings := deepCopy (.Values.meshConfig | default dict) -}}
{{- if ne .Release.Namespace "istio-system" -}}
{{- $settings = merge $settings (dict "rootNamespace" .Release.Namespace) -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}
