use hyprstream_contract::worker;
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{GOOD, Plan, Workers, deployment::json, metadata, selector};

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
            ports: Some(vec![ServicePort {
                name: Some(worker::PORT_NAME.to_owned()),
                port: i32::from(worker::PORT),
                target_port: Some(IntOrString::String(worker::PORT_NAME.to_owned())),
                protocol: Some("TCP".to_owned()),
                app_protocol: Some("http".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Where the workers answer inside the cluster.
pub fn url(plan: &Plan) -> String {
    format!(
        "http://{}.{}.svc:{}/v1",
        plan.name,
        plan.namespace,
        worker::PORT
    )
}
