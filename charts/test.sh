#!/bin/sh
# Lints the chart and renders every combination in ci/. With a cluster (KUBECONFIG), its API server
# checks what was rendered, without keeping it. Needs helm, and kubectl for the latter, on the PATH.
set -eu
chart=$(dirname "$0")/hyprstream
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

helm lint --strict "$chart"
diff -r "$chart/files/crds" "$chart/../../crds"

for values in "$chart"/ci/*-values.yaml; do
    echo "== $(basename "$values")"
    helm template hyprstream "$chart" --namespace default --values "$values" > "$out/all.yaml"
    if [ -n "${KUBECONFIG:-}" ]; then
        # Namespaces that are only named, and kinds that this cluster does not have, are left out.
        sed -i 's/^  namespace: team-[ab]$/  namespace: default/' "$out/all.yaml"
        if ! kubectl apply --dry-run=server --filename "$out/all.yaml" > "$out/log" 2>&1; then
            if grep -v -e '(server dry run)' -e 'ensure CRDs are installed first' \
                -e 'no matches for kind "HTTPRoute"' -e 'no matches for kind "ServiceMonitor"' \
                -e '^Warning: ' -e 'would violate PodSecurity' "$out/log"; then
                exit 1
            fi
        fi
    fi
done

echo "== rights of the operator and of users on all kinds"
# The gateway has to do with TrainingJobs only for those who fine-tune through it.
helm template hyprstream "$chart" --namespace default --set gateway.fineTuning.enabled=true \
    --set gateway.fineTuning.existingSecret=keys > "$out/all.yaml"
for crd in "$chart"/files/crds/*.yaml; do
    kind=$(basename "$crd" .hyprstream.io.yaml)
    for role in operator gateway models-view models-edit; do
        # The document of that ClusterRole.
        awk -v RS='---\n' -v name="name: hyprstream-$role\n" \
            '/kind: ClusterRole\n/ && index($0, name)' "$out/all.yaml" > "$out/role"
        if ! grep -q "resources: \[.*\b$kind\b" "$out/role"; then
            echo "hyprstream-$role has no rights on $kind" >&2
            exit 1
        fi
    done
    if ! grep -q "^  name: $kind.hyprstream.io$" "$out/all.yaml"; then
        echo "the definition of $kind is not rendered" >&2
        exit 1
    fi
done

echo "== rights of the registry and on repositories"
if grep -n 'verbs: .*\*' "$out/all.yaml"; then
    echo "a role has a wildcard" >&2
    exit 1
fi
role() {
    awk -v RS='---\n' -v name="name: hyprstream-$1\n" \
        '/kind: ClusterRole\n/ && index($0, name)' "$out/all.yaml"
}
check() {
    if [ "$(role "$1" | grep -e resources: -e verbs: | tr -s ' \n' ' ')" != "$2" ]; then
        echo "hyprstream-$1 has other rights than $2" >&2
        exit 1
    fi
}
check registry ' resources: [tokenreviews] verbs: [create] resources: [subjectaccessreviews] verbs: [create] resources: [persistentvolumes] verbs: [get] '
check repositories-view ' resources: [repositories] verbs: [get] '
check repositories-edit ' resources: [repositories] verbs: [push, create] '
helm template hyprstream "$chart" --set registry.kubernetesTokens.enabled=false > "$out/without.yaml"
if grep -q -e 'tokenreviews' -e '--kubernetes-tokens' "$out/without.yaml"; then
    echo "the registry may review tokens although it takes none" >&2
    exit 1
fi

echo "== TLS"
helm template hyprstream "$chart" --namespace default > "$out/all.yaml"
for part in 'port: 443' '--tls-cert=' '--registry-url=https://hyprstream-registry.default.svc"\{0,1\}$' \
    '--registry-ca-file=' '--certificate-names=hyprstream-registry,' 'secretName: hyprstream-registry-tls'; do
    if ! grep -q -e "$part" "$out/all.yaml"; then
        echo "with TLS, $part is missing" >&2
        exit 1
    fi
done
# A new installation has nobody who speaks as before.
if grep -q -e '--accept-plain' -e 'registry-url=http:' "$out/all.yaml"; then
    echo "a new installation speaks plain HTTP" >&2
    exit 1
fi
helm template hyprstream "$chart" --set tls.enabled=true --set tls.acceptPlain=true > "$out/both.yaml"
if ! grep -q -e '--accept-plain' "$out/both.yaml" || ! grep -q 'appProtocol: https' "$out/both.yaml"; then
    echo "tls.acceptPlain serves not both" >&2
    exit 1
fi
helm template hyprstream "$chart" --set tls.enabled=false --set gateway.fineTuning.enabled=true \
    --set gateway.fineTuning.existingSecret=keys > "$out/plain.yaml"
if grep -q -e 'hyprstream-trust' -e 'tls-cert' -e 'hyprstream-ca' -e 'https://hyprstream' "$out/plain.yaml"; then
    echo "something of TLS is left without it" >&2
    exit 1
fi

echo "== TLS of workers"
tls="--set tls.enabled=true --set serviceMonitor.enabled=true"
helm template hyprstream "$chart" $tls --set tls.workers=auto > "$out/strict.yaml"
for part in '--worker-tls=strict' '--worker-ca-file=/etc/hyprstream-trust/ca.crt' \
    'serverName: workers.hyprstream.internal'; do
    if ! grep -q -e "$part" "$out/strict.yaml"; then
        echo "with TLS to workers, $part is missing" >&2
        exit 1
    fi
done
helm template hyprstream "$chart" $tls --set tls.workers=disabled > "$out/off.yaml"
if grep -q -e '--worker-ca-file' -e 'serverName: workers' "$out/off.yaml" \
    || ! grep -q -e '--worker-tls=off' "$out/off.yaml"; then
    echo "workers speak TLS though nobody asked for it" >&2
    exit 1
fi

# Has to have each of the lines, in the document of that kind and name.
holds() {
    kind=$1 name=$2 file=$3
    shift 3
    awk -v RS='---\n' -v kind="kind: $kind\n" -v name="  name: $name\n" \
        'index($0, kind) && index($0, name)' "$file" > "$out/one"
    for line; do
        if ! grep -q -x -e " *$line" "$out/one"; then
            echo "$kind $name has no line $line" >&2
            exit 1
        fi
    done
}

echo "== the gateway behind an Ingress"
helm template hyprstream "$chart" --set ingress.className=contour > "$out/contour.yaml"
holds Ingress hyprstream-gateway "$out/contour.yaml" \
    'projectcontour.io/response-timeout: infinity' \
    'projectcontour.io/retry-on: connect-failure,refused-stream,reset-before-request' \
    'projectcontour.io/num-retries: "10"'
holds Service hyprstream-gateway "$out/contour.yaml" 'projectcontour.io/max-retries: "16384"' \
    'projectcontour.io/max-requests: "16384"' 'projectcontour.io/max-connections: "16384"' \
    'projectcontour.io/max-pending-requests: "16384"'
helm template hyprstream "$chart" --set ingress.className=nginx > "$out/nginx.yaml"
holds Ingress hyprstream-gateway "$out/nginx.yaml" \
    'nginx.ingress.kubernetes.io/proxy-buffering: "off"' \
    'nginx.ingress.kubernetes.io/proxy-body-size: 16m'

echo "== the registry behind an Ingress"
if awk -v RS='---\n' \
    '/kind: Ingress\n/ && /  name: hyprstream-registry\n/ {found = 1} END {exit !found}' "$out/nginx.yaml"; then
    echo "the registry has an Ingress though nobody asked for it" >&2
    exit 1
fi
outside="--set registry.ingress.enabled=true --set registry.ingress.host=git.example.org"
for tls in false true; do
    for class in nginx contour; do
        helm template hyprstream "$chart" $outside --set tls.enabled=$tls \
            --set registry.ingress.className=$class > "$out/$class-$tls.yaml"
        holds Ingress hyprstream-registry "$out/$class-$tls.yaml" "ingressClassName: \"$class\"" \
            '- path: "/git"' 'host: "git.example.org"'
    done
    port=http
    if [ $tls = true ]; then port=https; fi
    holds Ingress hyprstream-registry "$out/contour-$tls.yaml" \
        'projectcontour.io/response-timeout: infinity' "port: {name: $port}"
    holds Ingress hyprstream-registry "$out/nginx-$tls.yaml" "port: {name: $port}" \
        'nginx.ingress.kubernetes.io/proxy-body-size: "0"' \
        'nginx.ingress.kubernetes.io/proxy-buffering: "off"' \
        'nginx.ingress.kubernetes.io/proxy-request-buffering: "off"' \
        'nginx.ingress.kubernetes.io/proxy-read-timeout: "3600"' \
        'nginx.ingress.kubernetes.io/proxy-send-timeout: "3600"'
    holds Service hyprstream-registry "$out/nginx-$tls.yaml" "- name: $port"
done
holds Ingress hyprstream-registry "$out/nginx-true.yaml" \
    'nginx.ingress.kubernetes.io/backend-protocol: HTTPS'
holds Service hyprstream-registry "$out/contour-true.yaml" \
    'projectcontour.io/upstream-protocol.tls: 443,https'
if grep -q -e 'backend-protocol' "$out/nginx-false.yaml" \
    || grep -q -e 'upstream-protocol' "$out/contour-false.yaml" "$out/nginx-true.yaml"; then
    echo "an ingress would speak TLS to who speaks none" >&2
    exit 1
fi
traefik="$outside --set registry.ingress.className=traefik --set tls.enabled=true"
if helm template hyprstream "$chart" $traefik > "$out/refused" 2>&1; then
    echo "Traefik would have to believe a certificate that it does not know" >&2
    exit 1
fi
transport='traefik\.ingress\.kubernetes\.io/service\.serverstransport'
helm template hyprstream "$chart" $traefik \
    --set "registry.service.annotations.$transport=default-registry@kubernetescrd" > "$out/traefik.yaml"
holds Service hyprstream-registry "$out/traefik.yaml" \
    'traefik.ingress.kubernetes.io/service.serversscheme: https' \
    'traefik.ingress.kubernetes.io/service.serverstransport: default-registry@kubernetescrd'

echo "== values that must be refused"
for wrong in gateway.replicas=many gatway.replicas=1 ingress.controller=caddy \
    images.pullPolicy=Sometimes httpRoute.enabled=true csi.stateDir=relative registry.extraArgs[0]=x \
    registry.allowUpstreams[0]=http://host/ registry.kubernetesTokens.audience= tls.acceptPlain=maybe registry.ingress.controller=caddy registry.ingress.paths[0]=git tls.workers=maybe tls.enabled=false,tls.workers=strict tls.overlap=soon networkPolicy.apiServer[0]=host operator.allowInsecureCredentials[0]=http://host; do
    if helm template hyprstream "$chart" --set "$wrong" > "$out/refused" 2>&1; then
        echo "--set $wrong was accepted" >&2
        exit 1
    fi
done
echo "the chart is sound"
