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

{{- /* The namespace whose policies apply to the whole mesh. */ -}}
{{- define "xds.rootNamespace" -}}
{{ .Values.meshConfig.rootNamespace | default .Release.Namespace }}
{{- end -}}

{{- /* The settings of the mesh. The control plane's default of rootNamespace is istio-system. */ -}}
{{- define "xds.meshConfig" -}}
{{- $settings := deepCopy .Values.meshConfig -}}
{{- if ne .Release.Namespace "istio-system" -}}
{{- $settings = merge $settings (dict "rootNamespace" .Release.Namespace) -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}
