//! Making ourselves known to the kubelet.

use hyprstream_contract::volume::DRIVER_NAME;
use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait};

use crate::proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::Registration,
};

/// What the kubelet made of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has not called yet.
    Pending,
    /// It knows us.
    Registered,
    /// It does not want us, and says why.
    Refused(String),
}

/// Answers the kubelet's plugin watcher.
#[derive(Clone, Debug)]
pub struct RegistrationService {
    /// Path of the CSI socket as the kubelet sees it.
    pub host_endpoint: String,
    /// Where the outcome goes.
    pub outcome: watch::Sender<Outcome>,
}

/// Name of the registration socket.
///
/// The kubelet sends the escaped path of the socket as the authority of its calls, and HTTP/2
/// libraries refuse `%2F` in a host name. What stands before an `@` is user information, where it
/// is allowed: so the name ends in `@reg.sock`, and all of the path stands before the `@`.
pub fn socket_name() -> String {
    format!("{DRIVER_NAME}@reg.sock")
}

#[async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER_NAME.to_owned(),
            endpoint: self.host_endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let outcome = if status.plugin_registered {
            tracing::info!("registered with the kubelet");
            Outcome::Registered
        } else {
            Outcome::Refused(status.error)
        };
        self.outcome.send_replace(outcome);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
