//! TLS of workers: what their pods need for it, and when they need another certificate.

use std::time::{Duration, SystemTime};

use hyprstream_contract::{worker, worker_tls};
use hyprstream_tls::{Authority, Issued, Names, Trust, certificates};
use k8s_openapi::{
    ByteString,
    api::core::v1::{
        Container, ContainerPort, EnvVar, PodTemplateSpec, Probe, Secret, SecretVolumeSource,
        Volume, VolumeMount,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Plan, metadata};
use crate::policy::WorkerTls;

/// Key of the Secret, and name of the file, with the certificate, as kubernetes.io/tls has it.
pub const CERTIFICATE: &str = "tls.crt";
/// The same of its key.
pub const KEY: &str = "tls.key";
/// The same of the certificate of who signed.
pub const AUTHORITY: &str = "ca.crt";
/// How long a certificate lives. No longer than an authority that signs no more stays in the bundle.
pub const LIFE: Duration = Duration::from_hours(90 * 24);
const VOLUME: &str = "tls";
/// Workers run as a user of their own, and nobody else is in their pods.
const MODE: i32 = 0o444;

/// Name of the Secret with the certificate of a Model's workers.
pub fn secret_name(plan: &Plan) -> String {
    format!("{}-worker-tls", plan.name)
}

/// Makes the pods of a template speak TLS, if they should.
///
/// Invariant: nothing of a certificate is in the template, so that another one makes no other pods.
pub(super) fn speak_tls(plan: &Plan, template: &mut PodTemplateSpec) {
    let plain_too = match plan.worker_tls {
        WorkerTls::Off => return,
        WorkerTls::Permissive => true,
        WorkerTls::Strict => false,
    };
    let pod = template.spec.get_or_insert_default();
    pod.volumes.get_or_insert_default().push(Volume {
        name: VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret_name(plan)),
            default_mode: Some(MODE),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    });
    for container in &mut pod.containers {
        show(container, plain_too);
    }
}

fn show(container: &mut Container, plain_too: bool) {
    let port = worker::TLS_PORT.to_string();
    let file = |name| format!("{}/{name}", worker::TLS_DIR);
    let mut environment = vec![
        (worker::env::TLS_CERT, file(CERTIFICATE)),
        (worker::env::TLS_KEY, file(KEY)),
    ];
    let env = container.env.get_or_insert_default();
    let ports = container.ports.get_or_insert_default();
    if plain_too {
        environment.push((worker::env::TLS_PORT, port));
    } else {
        env.retain(|variable| variable.name != worker::env::PORT);
        environment.push((worker::env::PORT, port));
        ports.clear();
    }
    ports.push(ContainerPort {
        name: Some(worker::TLS_PORT_NAME.to_owned()),
        container_port: i32::from(worker::TLS_PORT),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    });
    env.extend(environment.into_iter().map(|(name, value)| EnvVar {
        name: name.to_owned(),
        value: Some(value),
        ..EnvVar::default()
    }));
    let mounts = container.volume_mounts.get_or_insert_default();
    mounts.push(VolumeMount {
        name: VOLUME.to_owned(),
        mount_path: worker::TLS_DIR.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
    let probes = [
        &mut container.startup_probe,
        &mut container.readiness_probe,
        &mut container.liveness_probe,
    ];
    probes.into_iter().flatten().for_each(probe_by_tls);
}

fn probe_by_tls(probe: &mut Probe) {
    if let Some(get) = &mut probe.http_get {
        get.scheme = Some("HTTPS".to_owned());
        get.port = IntOrString::String(worker::TLS_PORT_NAME.to_owned());
    }
}

/// The Secret with a certificate of a Model's workers, and that of who signed it.
pub fn secret(plan: &Plan, issued: &Issued, signer: &Authority) -> Secret {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let data = [
        (CERTIFICATE, bytes(&issued.certificate)),
        (KEY, bytes(&issued.key)),
        (AUTHORITY, bytes(&signer.issued().certificate)),
    ];
    Secret {
        metadata: metadata(plan, &secret_name(plan)),
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data.map(|(name, text)| (name.to_owned(), text)).into()),
        ..Secret::default()
    }
}

/// Whom the certificate of a Model's workers is for.
pub fn names(plan: &Plan) -> Names {
    Names {
        hosts: worker_tls::names(&plan.namespace, &plan.name)
            .into_iter()
            .collect(),
        ..Names::default()
    }
}

/// When the certificate of a Secret is to be made anew, or why now.
///
/// # Errors
/// It is to be made now, for that reason.
pub fn due(
    plan: &Plan,
    found: &Secret,
    signer: &Authority,
    now: SystemTime,
) -> Result<SystemTime, &'static str> {
    let text = |name| {
        let data = found.data.as_ref()?.get(name)?;
        String::from_utf8(data.0.clone()).ok()
    };
    let (Some(certificate), Some(key)) = (text(CERTIFICATE), text(KEY)) else {
        return Err("its Secret lacks it");
    };
    let issued = Issued { certificate, key };
    let subject = "the workers' certificate";
    let facts = issued.check(subject).map_err(|_| "it cannot be used")?;
    if facts.hosts != names(plan).hosts {
        return Err("it is for other names");
    }
    if facts.renew_at() <= now {
        return Err("two thirds of its time are over");
    }
    let name = worker_tls::name(&plan.namespace, &plan.name);
    let is_signed = || {
        let authority = signer.issued().certificate.as_bytes();
        let trust = Trust::fixed(authority, "the authority").ok()?;
        let chain = certificates(issued.certificate.as_bytes(), subject).ok()?;
        trust.verify(chain.first()?, &name).ok()
    };
    match is_signed() {
        Some(()) => Ok(facts.renew_at()),
        None => Err("another authority signs"),
    }
}
