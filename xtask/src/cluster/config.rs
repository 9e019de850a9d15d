//! What each component is started with.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    API_SERVICE_IP, CONTROL_PLANE_IP, Cluster, DNS_SERVICE_IP, POD_CIDR, SERVICE_CIDR,
    certs::{Authority, Subject, write_secret},
    node_ip, node_name, place_name, pod_cidr,
};
use crate::{
    components::program,
    images,
    paths::write_atomically,
    versions::{self, CNI, CONTAINERD, CONTOUR, COREDNS, ETCD, KUBERNETES, RUNC},
    wheels,
};

/// Where the API server answers within the control plane.
const API_PORT: u16 = 6443;
/// Where the cluster's DNS server asks for names of the world.
pub(crate) const HOST_DNS_PORT: u16 = 5300;
/// Where pods' connections to the world arrive.
pub(crate) const EGRESS_PORT: u16 = 5301;
/// Where Envoy takes requests within the control plane.
pub(crate) const INGRESS_PORT: u16 = 8080;

/// A program to supervise.
#[derive(Clone, Debug)]
pub(crate) struct Component {
    /// Unique name; also that of its log.
    pub(crate) name: String,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<String>,
}

/// The files and the command lines of a cluster.
pub(crate) struct Config<'a> {
    cluster: &'a Cluster,
    authority: Authority,
}

impl<'a> Config<'a> {
    /// Opens the authority and issues the certificates of the control plane.
    pub(crate) fn write(cluster: &'a Cluster, api_port: u16) -> Result<Self> {
        let authority = Authority::open(&cluster.dir.join("pki"))?;
        let hosts: Vec<String> = ["", ".default", ".default.svc", ".default.svc.cluster.local"]
            .iter()
            .map(|suffix| format!("kubernetes{suffix}"))
            .chain(["localhost".to_owned()])
            .collect();
        authority.issue(&Subject {
            file: "kube-apiserver",
            name: "kube-apiserver",
            group: None,
            hosts: &hosts,
            addresses: &[Ipv4Addr::LOCALHOST, CONTROL_PLANE_IP, API_SERVICE_IP],
        })?;
        let config = Self { cluster, authority };
        for (file, name, group) in [
            ("admin", "hyprstream-local-admin", Some("system:masters")),
            ("kubelet-client", "kube-apiserver-kubelet-client", None),
            (
                "kube-controller-manager",
                "system:kube-controller-manager",
                None,
            ),
            ("kube-scheduler", "system:kube-scheduler", None),
            ("kube-proxy", "system:kube-proxy", None),
            ("coredns", "hyprstream-local:coredns", None),
            ("contour", "hyprstream-local:contour", None),
        ] {
            config.client(file, name, group)?;
        }
        let context = format!("hyprstream-{}", cluster.name);
        let server = format!("https://127.0.0.1:{api_port}");
        write_secret(
            &cluster.kubeconfig(),
            &config.authority.kubeconfig("admin", &server, &context)?,
        )?;
        Ok(config)
    }

    fn client(&self, file: &str, name: &str, group: Option<&str>) -> Result<()> {
        self.authority.issue(&Subject {
            file,
            name,
            group,
            hosts: &[],
            addresses: &[],
        })?;
        let server = format!("https://{CONTROL_PLANE_IP}:{API_PORT}");
        write_secret(
            &self.kubeconfig(file),
            &self
                .authority
                .kubeconfig(file, &server, &self.cluster.name)?,
        )
    }

    fn kubeconfig(&self, file: &str) -> PathBuf {
        self.cluster
            .dir
            .join("pki")
            .join(format!("{file}.kubeconfig"))
    }

    fn pki(&self, file: &str) -> String {
        text(&self.cluster.dir.join("pki").join(file))
    }

    fn kubernetes(&self, node: u8, name: &str, args: Vec<String>) -> Component {
        let suffix = if node == 0 {
            String::new()
        } else {
            format!("-{}", node_name(node))
        };
        Component {
            name: format!("{name}{suffix}"),
            program: program(&self.cluster.cache, &KUBERNETES, name),
            args,
        }
    }

    /// The store.
    pub(crate) fn etcd(&self) -> Component {
        let data = self.cluster.dir.join("etcd");
        Component {
            name: "etcd".into(),
            program: program(&self.cluster.cache, &ETCD, "server"),
            args: strings([
                "--name=local",
                &format!("--data-dir={}", data.display()),
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                "--initial-cluster=local=http://127.0.0.1:2380",
                "--auto-compaction-mode=periodic",
                "--auto-compaction-retention=30m",
                "--log-level=warn",
            ]),
        }
    }

    /// The API server.
    pub(crate) fn api_server(&self) -> Component {
        let args = strings([
            "--etcd-servers=http://127.0.0.1:2379",
            &format!("--advertise-address={CONTROL_PLANE_IP}"),
            &format!("--secure-port={API_PORT}"),
            &format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            &format!("--client-ca-file={}", self.pki("ca.crt")),
            &format!("--tls-cert-file={}", self.pki("kube-apiserver.crt")),
            &format!("--tls-private-key-file={}", self.pki("kube-apiserver.key")),
            &format!("--kubelet-certificate-authority={}", self.pki("ca.crt")),
            &format!(
                "--kubelet-client-certificate={}",
                self.pki("kubelet-client.crt")
            ),
            &format!("--kubelet-client-key={}", self.pki("kubelet-client.key")),
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            &format!(
                "--service-account-key-file={}",
                self.pki("service-accounts.pub")
            ),
            &format!(
                "--service-account-signing-key-file={}",
                self.pki("service-accounts.key")
            ),
            // A lost node's pods move soon, so that one can watch it.
            "--default-not-ready-toleration-seconds=5",
            "--default-unreachable-toleration-seconds=5",
            "--profiling=false",
        ]);
        self.kubernetes(0, "kube-apiserver", args)
    }

    /// Controllers, scheduler and the Services of the control plane's own network.
    pub(crate) fn controllers(&self) -> Vec<Component> {
        let manager = strings([
            &format!(
                "--kubeconfig={}",
                self.kubeconfig("kube-controller-manager").display()
            ),
            "--controllers=*,-nodeipam",
            "--use-service-account-credentials=true",
            &format!("--root-ca-file={}", self.pki("ca.crt")),
            &format!(
                "--service-account-private-key-file={}",
                self.pki("service-accounts.key")
            ),
            &format!("--cluster-signing-cert-file={}", self.pki("ca.crt")),
            &format!("--cluster-signing-key-file={}", self.pki("ca.key")),
            "--enable-hostpath-provisioner=true",
            "--leader-elect=false",
            "--node-monitor-period=2s",
            "--node-monitor-grace-period=16s",
            "--profiling=false",
        ]);
        let scheduler = strings([
            &format!(
                "--kubeconfig={}",
                self.kubeconfig("kube-scheduler").display()
            ),
            "--leader-elect=false",
            "--profiling=false",
        ]);
        vec![
            self.kubernetes(0, "kube-controller-manager", manager),
            self.kubernetes(0, "kube-scheduler", scheduler),
        ]
    }

    /// kube-proxy of a node, or of the control plane, where it speaks in the first node's name.
    pub(crate) fn proxy(&self, node: u8) -> Component {
        let args = strings([
            &format!("--kubeconfig={}", self.kubeconfig("kube-proxy").display()),
            "--proxy-mode=nftables",
            &format!("--hostname-override={}", node_name(node.max(1))),
            &format!("--cluster-cidr={POD_CIDR}"),
            "--detect-local-mode=ClusterCIDR",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            "--nodeport-addresses=primary",
        ]);
        self.kubernetes(node, "kube-proxy", args)
    }

    /// The DNS server.
    pub(crate) fn coredns(&self) -> Result<Component> {
        let file = self.cluster.dir.join("Corefile");
        let kubeconfig = self.kubeconfig("coredns");
        let corefile = format!(
            ".:53 {{\n    bind {CONTROL_PLANE_IP}\n    errors\n    \
             kubernetes cluster.local in-addr.arpa ip6.arpa {{\n        \
             kubeconfig {} {}\n        pods insecure\n        fallthrough in-addr.arpa ip6.arpa\n        \
             ttl 5\n    }}\n    forward . 127.0.0.1:{HOST_DNS_PORT} {{\n        prefer_udp\n        \
             health_check 0\n    }}\n    cache 5\n    loop\n    loadbalance\n}}\n",
            kubeconfig.display(),
            self.cluster.name,
        );
        write_atomically(&file, corefile)?;
        Ok(Component {
            name: "coredns".into(),
            program: program(&self.cluster.cache, &COREDNS, "coredns"),
            args: vec!["-conf".into(), text(&file)],
        })
    }

    /// The ingress controller and its proxy.
    pub(crate) fn ingress(&self, envoy_bootstrap: &Path) -> Vec<Component> {
        let contour = strings([
            "serve",
            "--no-incluster",
            &format!("--kubeconfig={}", self.kubeconfig("contour").display()),
            "--insecure",
            "--xds-address=127.0.0.1",
            "--xds-port=8001",
            "--stats-address=127.0.0.1",
            "--http-address=127.0.0.1",
            "--health-address=127.0.0.1",
            "--debug-http-address=127.0.0.1",
            &format!("--envoy-service-http-port={INGRESS_PORT}"),
            "--ingress-class-name=contour",
            "--ingress-status-address=127.0.0.1",
            "--disable-leader-election",
        ]);
        let envoy = strings([
            "-c",
            &text(envoy_bootstrap),
            "--service-cluster",
            "default",
            "--service-node",
            "envoy",
            "--concurrency",
            "1",
            "--log-level",
            "warn",
            // Several may run on one machine.
            "--use-dynamic-base-id",
        ]);
        vec![
            Component {
                name: "contour".into(),
                program: program(&self.cluster.cache, &CONTOUR, "contour"),
                args: contour,
            },
            Component {
                name: "envoy".into(),
                program: wheels::envoy(&self.cluster.cache),
                args: envoy,
            },
        ]
    }

    /// Container runtime and kubelet of a node.
    pub(crate) fn node(&self, node: u8) -> Result<[Component; 2]> {
        let dir = self.cluster.dir.join(place_name(node));
        let name = node_name(node);
        let ip = node_ip(node);
        let user = format!("system:node:{name}");
        self.client(&name, &user, Some("system:nodes"))?;
        let serving = format!("{name}-serving");
        self.authority.issue(&Subject {
            file: &serving,
            name: &user,
            group: Some("system:nodes"),
            hosts: std::slice::from_ref(&name),
            addresses: &[ip],
        })?;
        let cni = dir.join("cni");
        fs::create_dir_all(&cni)?;
        write_atomically(
            &cni.join("10-ptp.conflist"),
            serde_json::to_vec_pretty(&network(node))?,
        )?;
        let containerd_toml = dir.join("containerd.toml");
        write_atomically(&containerd_toml, self.containerd_toml(&cni))?;
        let kubelet_config = dir.join("kubelet.yaml");
        let kubelet = self.kubelet_config(node, &serving);
        write_atomically(&kubelet_config, serde_yaml::to_string(&kubelet)?)?;
        let containerd = Component {
            name: format!("containerd-{name}"),
            program: program(&self.cluster.cache, &CONTAINERD, "containerd"),
            args: vec!["--config".into(), text(&containerd_toml)],
        };
        let kubelet = strings([
            &format!("--config={}", kubelet_config.display()),
            &format!("--kubeconfig={}", self.kubeconfig(&name).display()),
            &format!("--hostname-override={name}"),
            &format!("--node-ip={ip}"),
            "--root-dir=/var/lib/kubelet",
        ]);
        Ok([containerd, self.kubernetes(node, "kubelet", kubelet)])
    }

    fn containerd_toml(&self, cni: &Path) -> String {
        let cache = &self.cluster.cache;
        format!(
            r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.internal.v1.opt']
path = "/var/lib/containerd/opt"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{pause}"

[plugins.'io.containerd.cri.v1.runtime']
# Without CAP_SYS_RESOURCE the scores of pods cannot be lowered.
restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{cni_bin}"]
conf_dir = "{cni_conf}"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"#,
            pause = images::PAUSE,
            cni_bin = crate::components::folder(cache, &CNI).display(),
            cni_conf = cni.display(),
            runc = program(cache, &RUNC, "runc").display(),
        )
    }

    fn kubelet_config(&self, node: u8, serving: &str) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": node_ip(node).to_string(),
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.pki("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": self.pki(&format!("{serving}.crt")),
            "tlsPrivateKeyFile": self.pki(&format!("{serving}.key")),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}/{}", self.cluster.prefix, node_name(node)),
            "failCgroupV1": false,
            "clusterDNS": [DNS_SERVICE_IP.to_string()],
            "clusterDomain": "cluster.local",
            "resolvConf": "",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "failSwapOn": false,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "nodefs.inodesFree": "1%",
                "imagefs.available": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "maxPods": 250,
            "nodeLeaseDurationSeconds": 8,
            "nodeStatusUpdateFrequency": "5s",
            "serializeImagePulls": false,
            "registryPullQPS": 0,
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
            "eventRecordQPS": 0,
            "syncFrequency": "20s",
            "protectKernelDefaults": false,
            "enableProfilingHandler": false,
        })
    }

    /// The file that tells Envoy where Contour is.
    pub(crate) fn envoy_bootstrap(&self) -> Result<PathBuf> {
        let file = self.cluster.dir.join("envoy.json");
        // Sockets have short names at most; /tmp is the control plane's own.
        crate::proc::output(
            std::process::Command::new(program(&self.cluster.cache, &CONTOUR, "contour"))
                .args([
                    "bootstrap",
                    "--xds-address=127.0.0.1",
                    "--xds-port=8001",
                    "--admin-address=/tmp/envoy-admin.sock",
                ])
                .arg(&file),
        )?;
        Ok(file)
    }
}

/// Pods are reached by routes only: an answer from a pod on the same node then passes the node's
/// Service translation too, without the kernel's bridge filter.
fn network(node: u8) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "mtu": 1500,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-addresses",
                    "ranges": [[{"subnet": pod_cidr(node)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"},
        ],
    })
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn strings<const N: usize>(args: [&str; N]) -> Vec<String> {
    args.map(str::to_owned).to_vec()
}

/// Address of the API server within the control plane.
pub(crate) fn api_address() -> std::net::SocketAddrV4 {
    std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, API_PORT)
}

/// The programs' folders, for `PATH`.
pub(crate) fn path(cluster: &Cluster) -> String {
    let mut path: Vec<String> = [&KUBERNETES, &CONTAINERD, &RUNC, &versions::CNI]
        .iter()
        .map(|c| {
            crate::components::folder(&cluster.cache, c)
                .display()
                .to_string()
        })
        .collect();
    path.push("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    path.join(":")
}
