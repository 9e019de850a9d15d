//! The node service.

use std::{path::PathBuf, sync::Arc};

use tonic::{Request, Response, Status, async_trait};
use tracing::instrument;

use crate::{
    error::Error,
    proto::csi::{
        NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest,
        NodeGetInfoResponse, NodeGetVolumeHealthRequest, NodeGetVolumeHealthResponse,
        NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
        NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
        NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
        NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, VolumeCondition, VolumeHealth,
        VolumeHealthErrorType, VolumeUsage,
        node_server::Node,
        node_service_capability::{self, Rpc, rpc},
        volume_health::VolumeHealthEntry,
        volume_usage::Unit,
    },
    volumes::{Health, Publish, Stage, Usage, Volumes, absolute_path, blocking},
};

/// Stages and publishes volumes on this node.
#[derive(Clone)]
pub struct NodeService {
    /// The volumes.
    pub volumes: Arc<Volumes>,
    /// Name of the node.
    pub node_name: String,
}

#[async_trait]
impl Node for NodeService {
    #[instrument(skip_all, fields(volume = request.get_ref().volume_id))]
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let stage = answer(Stage::new(request.into_inner()))?;
        answer(self.volumes.stage(stage).await)?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    #[instrument(skip_all, fields(volume = request.get_ref().volume_id))]
    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let handle = answer(handle(request.volume_id))?;
        let staging = answer(absolute_path(
            "staging_target_path",
            &request.staging_target_path,
        ))?;
        answer(self.volumes.unstage(handle, staging).await)?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    #[instrument(skip_all, fields(volume = request.get_ref().volume_id))]
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let publish = answer(Publish::new(request.into_inner()))?;
        answer(self.volumes.publish(publish).await)?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    #[instrument(skip_all, fields(volume = request.get_ref().volume_id))]
    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let handle = answer(handle(request.volume_id))?;
        let target = answer(absolute_path("target_path", &request.target_path))?;
        answer(self.volumes.unpublish(handle, target).await)?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let handle = handle(request.volume_id)?;
        if request.volume_path.is_empty() {
            return Err(Error::Missing("volume_path").into());
        }
        let path = PathBuf::from(request.volume_path);
        let volumes = Arc::clone(&self.volumes);
        let (usage, health) = blocking(move || {
            let usage = volumes.usage(&handle, &path)?;
            Ok((usage, volumes.health(&handle, &[path])?))
        })
        .await?;
        Ok(Response::new(NodeGetVolumeStatsResponse {
            usage: usage_of(usage),
            volume_condition: Some(VolumeCondition {
                abnormal: health != Health::Good,
                message: health.message(),
            }),
        }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        let handle = handle(request.volume_id)?;
        let paths: Vec<PathBuf> = [request.volume_publish_path, request.staging_target_path]
            .into_iter()
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .collect();
        let volumes = Arc::clone(&self.volumes);
        let volume_id = handle.clone();
        let health = blocking(move || volumes.health(&handle, &paths)).await?;
        let status = match health {
            Health::Good => None,
            Health::MountVanished { .. } => Some(VolumeHealthErrorType::Inaccessible),
            Health::FilesDamaged { .. } => Some(VolumeHealthErrorType::DataLoss),
            // What is here can be read, and what comes later does not.
            Health::Refused { .. } => Some(VolumeHealthErrorType::Degraded),
        };
        let health_statuses = status
            .map(|status| VolumeHealthEntry {
                status: status.into(),
                reason: health.reason().to_owned(),
                message: health.message(),
            })
            .into_iter()
            .collect();
        let volume_health = Some(VolumeHealth {
            volume_id,
            health_statuses,
        });
        Ok(Response::new(NodeGetVolumeHealthResponse { volume_health }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capabilities = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            // For kubelets before 1.37; the next but one is its successor.
            rpc::Type::VolumeCondition,
            // Without it the kubelet asks for SINGLE_NODE_WRITER, where a second publication on
            // the node must be refused.
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::GetVolumeHealth,
        ]
        .map(|kind| NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(Rpc {
                r#type: kind.into(),
            })),
        });
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: capabilities.into(),
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node_name.clone(),
            // No limit of ours.
            max_volumes_per_node: 0,
            accessible_topology: None,
        }))
    }
}

fn handle(volume_id: String) -> Result<String, Error> {
    if volume_id.is_empty() {
        Err(Error::Missing("volume_id"))
    } else {
        Ok(volume_id)
    }
}

/// Logs a failure once, here, and turns it into an answer.
fn answer<T>(result: Result<T, Error>) -> Result<T, Status> {
    result.map_err(|error| {
        match &error {
            Error::Fetching(progress) => tracing::info!(%progress, "files are still coming"),
            Error::Busy(_) => tracing::debug!(%error, "call refused"),
            other => tracing::warn!(error = %other, "call failed"),
        }
        error.into()
    })
}

fn usage_of(usage: Usage) -> Vec<VolumeUsage> {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    vec![
        VolumeUsage {
            available: signed(usage.available_bytes),
            total: signed(usage.total_bytes),
            used: signed(usage.used_bytes),
            unit: Unit::Bytes.into(),
        },
        VolumeUsage {
            available: signed(usage.available_inodes),
            total: signed(usage.total_inodes),
            used: signed(usage.used_inodes),
            unit: Unit::Inodes.into(),
        },
    ]
}
