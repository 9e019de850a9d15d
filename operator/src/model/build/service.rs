use hyprstream_contract::worker;
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{GOOD, Plan, Workers, deployment::json, metadata, selector};
use crate::policy::WorkerTls;

/// The Service of a Model's workers. It has the Model's name, and notes the workers that were
/// last good.
pub fn service(plan: &Plan, good: Option<&Workers>) -> Service {
    let mut meta = metadata(plan, &plan.name);
    meta.annotations = good.map(|g| [(GOOD.to_owned(), json(g))].into());
    Service {
        metadata: meta,
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(selector(&plan.name)),
            ports: Some(ports(plan)),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// What pods do not name is not in their EndpointSlice, which is how the gateway knows what each
/// speaks, whatever else of the Model runs meanwhile.
fn ports(plan: &Plan) -> Vec<ServicePort> {
    let plain = port(worker::PORT_NAME, worker::PORT);
    match plan.worker_tls {
        WorkerTls::Off => vec![plain],
        WorkerTls::Permissive | WorkerTls::Strict => {
            vec![plain, port(worker::TLS_PORT_NAME, worker::TLS_PORT)]
        }
    }
}

/// A port of the pods that name it, which is called after what they speak there.
fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        app_protocol: Some(name.to_owned()),
        ..ServicePort::default()
    }
}

/// Where the workers answer inside the cluster.
pub fn url(plan: &Plan) -> String {
    let (scheme, port) = match plan.worker_tls {
        WorkerTls::Off | WorkerTls::Permissive => (worker::PORT_NAME, worker::PORT),
        WorkerTls::Strict => (worker::TLS_PORT_NAME, worker::TLS_PORT),
    };
    format!("{scheme}://{}.{}.svc:{port}/v1", plan.name, plan.namespace)
}
