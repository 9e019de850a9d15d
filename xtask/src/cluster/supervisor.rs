//! The process that holds a cluster together.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    fs::FlockOperation,
    process::{Resource, Rlimit},
};

use super::{
    BRIDGE_CIDR, CONTROL_PLANE_IP, Cluster, POD_CIDR, SERVICE_CIDR, Spec, bootstrap,
    cgroups::Hierarchies,
    config::{Component, Config, EGRESS_PORT, HOST_DNS_PORT, INGRESS_PORT, api_address},
    dns,
    namespace::{Namespaces, disk_in_memory},
    node_ip, node_name, place_name, pod_cidr,
    relay::{self, Target},
    runner::{Runner, update},
    state::{State, start_time},
    volumes,
};
use crate::proc;

/// Name of the Service that the host's registry port leads to.
const REGISTRY: &str = "hyprstream-registry.hyprstream-system.svc.cluster.local";

/// Runs the cluster until it is killed.
pub(crate) fn supervise(cluster: &Cluster) -> Result<()> {
    // Detached from the terminal of the one who started it.
    let _ = rustix::process::setsid();
    // Two descriptors for each connection that is relayed; the programs started need many too.
    let files = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, most) {
        eprintln!("cannot raise the limit of open files: {error}");
    }
    let lock = File::create(cluster.dir.join("supervisor.lock"))?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "another supervisor of cluster {:?} is running",
            cluster.name
        );
    }
    let pid = std::process::id();
    let supervisor = Supervisor {
        cluster: cluster.clone(),
        state: Arc::new(Mutex::new(State {
            supervisor: pid,
            started: start_time(pid).unwrap_or(0),
            ..State::default()
        })),
        cgroups: Hierarchies::find()?,
    };
    let result = supervisor.run();
    if let Err(error) = &result {
        supervisor.update(|state| state.error = Some(format!("{error:#}")));
        supervisor
            .cgroups
            .kill(&cluster.prefix, Duration::from_secs(10));
    }
    result
}

struct Supervisor {
    cluster: Cluster,
    state: Arc<Mutex<State>>,
    cgroups: Hierarchies,
}

impl Supervisor {
    fn run(&self) -> Result<()> {
        let cluster = &self.cluster;
        self.phase("makes cgroups and namespaces");
        let own = format!("{}/system", cluster.prefix);
        self.cgroups.make(&own)?;
        self.cgroups.delegate(&cluster.prefix);
        self.cgroups.join(&own)?;
        let spec = cluster.spec().context("spec.json is missing")?;
        let cpus = cpus();
        self.cgroups
            .weigh(&cluster.prefix, cpus * (1 + u32::from(spec.nodes)));
        self.cgroups.weigh(&own, cpus);

        if let Some(megabytes) = spec.disk_mb {
            disk_in_memory(&cluster.dir.join("volumes"), megabytes)?;
        }
        let control = Namespaces::make(cluster, &cluster.dir.join(place_name(0)), None)?;
        self.update(|s| drop(s.namespaces.insert(place_name(0), control.place())));
        Self::make_bridge(&control)?;
        Self::start_relays(&control, &spec)?;

        volumes::open_to_all(&cluster.dir.join("volumes"))?;

        self.phase("starts etcd and the API server");
        let config = Config::write(cluster, spec.api_port)?;
        self.start(&config.etcd(), &control)?;
        self.start(&config.api_server(), &control)?;
        self.wait_for(Duration::from_mins(2), "the API server", || {
            proc::succeeds(cluster.kubectl().args(["get", "--raw", "/readyz"]))
        })?;

        self.phase("starts controllers and DNS");
        for component in config.controllers() {
            self.start(&component, &control)?;
        }
        self.start(&config.coredns()?, &control)?;
        bootstrap::apply(cluster)?;
        let mut nodes: BTreeMap<u8, Namespaces> = BTreeMap::new();
        for node in 1..=spec.nodes {
            self.phase(&format!("starts {}", node_name(node)));
            nodes.insert(node, self.start_node(&config, &control, node)?);
        }
        self.phase("starts the ingress");
        bootstrap::establish(cluster)?;
        for component in config.ingress(&config.envoy_bootstrap()?) {
            self.start(&component, &control)?;
        }

        loop {
            // More nodes may be asked for while the cluster runs.
            let wanted = cluster.spec().map_or(spec.nodes, |s| s.nodes);
            for node in 1..=wanted {
                if let Entry::Vacant(vacant) = nodes.entry(node) {
                    self.phase(&format!("starts {}", node_name(node)));
                    vacant.insert(self.start_node(&config, &control, node)?);
                }
            }
            let ready = self.count_ready_nodes();
            let was = self.read(|s| s.ready_nodes);
            if ready != was || (!self.read(|s| s.ready) && ready >= wanted) {
                self.update(|s| {
                    s.ready_nodes = ready;
                    if ready >= wanted {
                        s.ready = true;
                        s.phase = "runs".into();
                    }
                });
            }
            if ready < wanted && !self.read(|s| s.ready) {
                self.phase(&format!(
                    "waits for the nodes, {ready} of {wanted} are ready"
                ));
            }
            // Nobody waits any more once all are ready: look seldom then.
            let pause = if ready >= wanted && self.read(|s| s.ready) {
                20
            } else {
                1
            };
            for _ in 0..pause {
                thread::sleep(Duration::from_millis(500));
                if cluster.spec().map_or(wanted, |s| s.nodes) != wanted {
                    break;
                }
            }
        }
    }

    fn make_bridge(control: &Namespaces) -> Result<()> {
        let ip = |args: &[&str]| inside(control, "ip", args);
        ip(&["link", "add", "hs0", "type", "bridge"])?;
        ip(&[
            "addr",
            "add",
            &format!("{CONTROL_PLANE_IP}/16"),
            "dev",
            "hs0",
        ])?;
        ip(&["link", "set", "hs0", "up"])?;
        // A way that is never gone: kube-proxy turns it into that of a pod.
        ip(&["route", "add", SERVICE_CIDR, "dev", "hs0"])?;
        // What pods send to the world goes to the relay, which connects from the host.
        let rules = format!(
            "table ip egress {{\n\
             chain prerouting {{\n\
             type nat hook prerouting priority -90\n\
             ip daddr {{ {BRIDGE_CIDR}, {POD_CIDR}, {SERVICE_CIDR}, 127.0.0.0/8 }} accept\n\
             meta l4proto tcp redirect to :{EGRESS_PORT}\n\
             }}\n}}\n"
        );
        inside(control, "nft", &[&rules])
    }

    fn start_relays(control: &Namespaces, spec: &Spec) -> Result<()> {
        let here = |port: u16| {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port))
                .with_context(|| format!("cannot listen on 127.0.0.1:{port}"))
        };
        let local = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let inwards = [
            (
                "API server",
                here(spec.api_port)?,
                Target::Fixed(api_address()),
            ),
            (
                "ingress",
                here(spec.ingress_port)?,
                Target::Fixed(local(INGRESS_PORT)),
            ),
            (
                "registry",
                here(spec.registry_port)?,
                Target::Lookup(Box::new(registry)),
            ),
        ];
        for (name, listener, target) in inwards {
            control.spawn(move || {
                let result = relay::serve(&listener, &target);
                eprintln!("the relay to the {name} ended: {result:?}");
            })?;
        }
        let egress = control.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, EGRESS_PORT)))??;
        thread::spawn(move || {
            let result = relay::serve(&egress, &Target::Original);
            eprintln!("the relay to the world ended: {result:?}");
        });
        let questions = control.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, HOST_DNS_PORT)))??;
        thread::spawn(move || {
            let result = dns::forward(questions);
            eprintln!("the relay to the host's DNS ended: {result:?}");
        });
        // Long answers come again over TCP.
        let questions =
            control.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, HOST_DNS_PORT)))??;
        thread::spawn(move || {
            let server = || match dns::host_server() {
                Some(SocketAddr::V4(server)) => Some(server),
                _ => None,
            };
            let result = relay::serve(&questions, &Target::Lookup(Box::new(server)));
            eprintln!("the TCP relay to the host's DNS ended: {result:?}");
        });
        Ok(())
    }

    fn start_node(&self, config: &Config, control: &Namespaces, node: u8) -> Result<Namespaces> {
        let cluster = &self.cluster;
        let name = node_name(node);
        let group = format!("{}/{name}", cluster.prefix);
        self.cgroups.make(&group)?;
        self.cgroups.delegate(&group);
        self.cgroups.weigh(&group, cpus());
        let disk_mb = cluster.spec().and_then(|s| s.disk_mb);
        let dir = cluster.dir.join(place_name(node));
        let namespaces = Namespaces::make(cluster, &dir, disk_mb)?;
        self.update(|s| drop(s.namespaces.insert(place_name(node), namespaces.place())));

        let ip = node_ip(node).to_string();
        let net = namespaces.place().net;
        inside(
            control,
            "ip",
            &[
                "link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &net,
            ],
        )?;
        inside(
            control,
            "ip",
            &["link", "set", &name, "master", "hs0", "up"],
        )?;
        let here = |args: &[&str]| inside(&namespaces, "ip", args);
        here(&["addr", "add", &format!("{ip}/16"), "dev", "eth0"])?;
        here(&["link", "set", "eth0", "up"])?;
        here(&[
            "route",
            "add",
            "default",
            "via",
            &CONTROL_PLANE_IP.to_string(),
        ])?;
        // Pods of other nodes are reached straight, without the way over the control plane.
        inside(
            control,
            "ip",
            &["route", "replace", &pod_cidr(node), "via", &ip],
        )?;
        for other in 1..node {
            here(&[
                "route",
                "replace",
                &pod_cidr(other),
                "via",
                &node_ip(other).to_string(),
            ])?;
            let place = self.read(|s| s.namespaces.get(&place_name(other)).cloned());
            let place = place.context("a node has no namespaces")?;
            proc::output(place.enter().args([
                "ip",
                "route",
                "replace",
                &pod_cidr(node),
                "via",
                &ip,
            ]))?;
        }

        let [containerd, kubelet] = config.node(node)?;
        self.start(&containerd, &namespaces)?;
        self.wait_for(Duration::from_secs(30), "containerd", || {
            let pid = self.read(|s| s.components.get(&containerd.name).and_then(|c| c.pid));
            pid.is_some_and(|pid| {
                Path::new(&format!("/proc/{pid}/root/run/containerd/containerd.sock")).exists()
            })
        })?;
        self.start(&kubelet, &namespaces)?;
        self.wait_for(Duration::from_mins(1), &format!("the Node {name}"), || {
            proc::succeeds(cluster.kubectl().args(["get", "node", &name]))
        })?;
        self.start(&config.proxy(node), &namespaces)?;
        if node == 1 {
            self.start(&config.proxy(0), control)?;
        }
        Ok(namespaces)
    }

    fn count_ready_nodes(&self) -> u8 {
        let path = "-o=jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
        proc::output(self.cluster.kubectl().args(["get", "nodes", path])).map_or(0, |text| {
            text.split_whitespace().filter(|s| *s == "True").count() as u8
        })
    }

    /// Starts a component and keeps it running.
    fn start(&self, component: &Component, namespaces: &Namespaces) -> Result<()> {
        let runner = Runner {
            component: component.clone(),
            place: namespaces.place(),
            cluster: self.cluster.clone(),
            state: self.state.clone(),
        };
        runner.start()
    }

    fn wait_for(&self, limit: Duration, what: &str, ready: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            if started.elapsed() > limit {
                bail!(
                    "{what} is not ready after {} s{}; logs: {}",
                    limit.as_secs(),
                    self.read(State::failing),
                    self.cluster.logs().display()
                );
            }
            thread::sleep(Duration::from_millis(150));
        }
        Ok(())
    }

    fn phase(&self, phase: &str) {
        if self.read(|s| s.phase != phase) {
            eprintln!("{phase}");
            self.update(|s| phase.clone_into(&mut s.phase));
        }
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(
            &self
                .state
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        update(&self.state, &self.cluster, change);
    }
}

fn cpus() -> u32 {
    thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// Runs a short command in a place.
fn inside(place: &Namespaces, program: &str, args: &[&str]) -> Result<()> {
    proc::output(place.place().enter().arg(program).args(args)).map(drop)
}

/// The registry's address inside the cluster at the moment.
fn registry() -> Option<SocketAddrV4> {
    let server = SocketAddr::from((CONTROL_PLANE_IP, 53));
    Some(SocketAddrV4::new(
        dns::lookup(server, REGISTRY)?,
        crate::chart::registry().1,
    ))
}
