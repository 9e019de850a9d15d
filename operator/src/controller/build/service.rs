use hyprstream_contract::worker;
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Plan, metadata, selector};

/// The Service of a Model's workers. It has the Model's name.
pub fn service(plan: &Plan) -> Service {
    Service {
        metadata: metadata(plan, &plan.name),
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
