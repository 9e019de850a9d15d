//! What the kubelet speaks, generated from `proto/`.

/// The Container Storage Interface.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// How a plugin makes itself known to the kubelet.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
