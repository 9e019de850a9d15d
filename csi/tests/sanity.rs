//! csi-sanity, the conformance tests of the Container Storage Interface, against the program.

#![allow(clippy::float_cmp, clippy::panic, clippy::unwrap_used)]

mod support;

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use hyprstream_contract::volume::VolumeMode;
use hyprstream_csi::proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeHealthRequest,
    NodeGetVolumeHealthResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, PluginCapability, ProbeRequest,
    ProbeResponse,
    identity_client::IdentityClient,
    identity_server::{Identity, IdentityServer},
    node_client::NodeClient,
    node_server::{Node as NodeApi, NodeServer},
    plugin_capability,
};
use support::{in_private_mounts, program::Node, registry::Registry};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status, async_trait,
    transport::{Channel, Server},
};

#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic
)]
mod controller {
    include!(concat!(env!("OUT_DIR"), "/tests/csi.v1.rs"));
}
use controller::controller_server::{Controller, ControllerServer};

/// csi-sanity makes its volumes through a controller service, which a node plugin does not have.
/// So this stands before the program: it passes on every call, adds a controller that hands out
/// handles of one commit, or of the adapters of one Model, and says that there is one.
#[derive(Clone)]
struct Front {
    node: NodeClient<Channel>,
    identity: IdentityClient<Channel>,
    context: Arc<HashMap<String, String>>,
}

macro_rules! pass_on {
    ($api:ident {
        $($client:ident.$method:ident($request:ty) -> $response:ty;)*
    } $($own:tt)*) => {
        #[async_trait]
        impl $api for Front {
            $(async fn $method(
                &self,
                request: Request<$request>,
            ) -> Result<Response<$response>, Status> {
                self.$client.clone().$method(request).await
            })*
            $($own)*
        }
    };
}

pass_on! {
    NodeApi {
        node.node_stage_volume(NodeStageVolumeRequest) -> NodeStageVolumeResponse;
        node.node_unstage_volume(NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse;
        node.node_publish_volume(NodePublishVolumeRequest) -> NodePublishVolumeResponse;
        node.node_unpublish_volume(NodeUnpublishVolumeRequest) -> NodeUnpublishVolumeResponse;
        node.node_get_volume_stats(NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse;
        node.node_get_volume_health(NodeGetVolumeHealthRequest) -> NodeGetVolumeHealthResponse;
        node.node_get_capabilities(NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse;
        node.node_get_info(NodeGetInfoRequest) -> NodeGetInfoResponse;
    }
}

pass_on! {
    Identity {
        identity.get_plugin_info(GetPluginInfoRequest) -> GetPluginInfoResponse;
        identity.probe(ProbeRequest) -> ProbeResponse;
    }
    async fn get_plugin_capabilities(
        &self,
        request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let mut response = self.identity.clone().get_plugin_capabilities(request).await?;
        let service = plugin_capability::Service {
            r#type: plugin_capability::service::Type::ControllerService.into(),
        };
        response.get_mut().capabilities.push(PluginCapability {
            r#type: Some(plugin_capability::Type::Service(service)),
        });
        Ok(response)
    }
}

#[async_trait]
impl Controller for Front {
    async fn create_volume(
        &self,
        request: Request<controller::CreateVolumeRequest>,
    ) -> Result<Response<controller::CreateVolumeResponse>, Status> {
        let volume = controller::Volume {
            capacity_bytes: 0,
            volume_id: request.into_inner().name,
            volume_context: (*self.context).clone(),
        };
        Ok(Response::new(controller::CreateVolumeResponse {
            volume: Some(volume),
        }))
    }

    async fn delete_volume(
        &self,
        _: Request<controller::DeleteVolumeRequest>,
    ) -> Result<Response<controller::DeleteVolumeResponse>, Status> {
        Ok(Response::new(controller::DeleteVolumeResponse {}))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<controller::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<controller::ControllerGetCapabilitiesResponse>, Status> {
        use controller::controller_service_capability::{Rpc, Type, rpc};
        let rpc = Rpc {
            r#type: rpc::Type::CreateDeleteVolume.into(),
        };
        Ok(Response::new(
            controller::ControllerGetCapabilitiesResponse {
                capabilities: vec![controller::ControllerServiceCapability {
                    r#type: Some(Type::Rpc(rpc)),
                }],
            },
        ))
    }
}

fn csi_sanity() -> Option<PathBuf> {
    let path = match std::env::var_os("HYPRSTREAM_CSI_SANITY") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME")?)
            .join(".cache/hyprstream/bin/csi-sanity-5.6.0/csi-sanity"),
    };
    path.is_file().then_some(path)
}

#[track_caller]
fn check(name: &str, mode: Option<VolumeMode>) {
    let Some(csi_sanity) = csi_sanity() else {
        eprintln!(
            "SKIPPED {name}: csi-sanity is not there; `cargo xtask test` builds it, or name it in \
             HYPRSTREAM_CSI_SANITY"
        );
        return;
    };
    in_private_mounts(module_path!(), name, async move {
        let registry = Registry::start();
        registry
            .write("config.json", "{}")
            .write_lfs("model.safetensors", &vec![7; 100_000]);
        let commit = registry.commit();
        let volume = match mode {
            Some(mode) => registry.volume(&commit, mode),
            None => Registry::adapters_of("default/chat"),
        };
        let node = Node::new(registry.url());
        let _program = node.start().await;
        let channel = node.connect(&node.csi_socket()).await;
        let front = Front {
            node: NodeClient::new(channel.clone()),
            identity: IdentityClient::new(channel),
            context: Arc::new(volume.into_iter().collect()),
        };
        let socket = node.path("front.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(
            Server::builder()
                .add_service(IdentityServer::new(front.clone()))
                .add_service(NodeServer::new(front.clone()))
                .add_service(ControllerServer::new(front))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        let output = tokio::process::Command::new(csi_sanity)
            .arg(format!("--csi.endpoint={}", socket.display()))
            .arg(format!("--csi.mountdir={}", node.path("mount").display()))
            .arg(format!(
                "--csi.stagingdir={}",
                node.path("staging").display()
            ))
            // The controller is not ours to test.
            .arg("--ginkgo.focus=Identity Service|Node Service")
            .arg("--ginkgo.no-color")
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}\n{}", node.log());
        // The lines of what did not run stand in the log of the test.
        println!("{text}");
        let ran = text
            .lines()
            .find(|line| line.starts_with("Ran "))
            .unwrap_or_default();
        let number: u32 = ran
            .split(' ')
            .nth(1)
            .and_then(|n| n.parse().ok())
            .unwrap_or_default();
        assert!(number >= 25, "too few of the tests ran: {ran:?}");
    });
}

#[test]
fn csi_sanity_passes_with_read_only_volumes() {
    check(
        "csi_sanity_passes_with_read_only_volumes",
        Some(VolumeMode::ReadOnly),
    );
}

#[test]
fn csi_sanity_passes_with_read_write_volumes() {
    check(
        "csi_sanity_passes_with_read_write_volumes",
        Some(VolumeMode::ReadWrite {
            capacity_bytes: 16 << 20,
        }),
    );
}

#[test]
fn csi_sanity_passes_with_volumes_of_adapters() {
    check("csi_sanity_passes_with_volumes_of_adapters", None);
}
