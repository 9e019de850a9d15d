//! Why volumes are not mounted, as the kubelet says.

use kube::Client;

use crate::complaints::Complaints;

/// Asks for the kubelet's events about mounts, now and then.
pub struct Mounts(Complaints);

impl Mounts {
    /// Has asked nothing yet.
    pub fn new(client: Client) -> Self {
        Self(Complaints::new(client, "FailedMount"))
    }

    /// Why the volume of a pod of the owner with `uid` is not mounted; `None` if nobody says so, or
    /// no `pod`, which is one's UID, waits for its volume.
    pub async fn problem(&self, uid: &str, namespace: &str, pod: Option<&str>) -> Option<String> {
        let events = self.0.about(uid, namespace, pod).await;
        // The kubelet adds now and then that it "timed out waiting", which says nothing.
        let newest = events
            .iter()
            .rev()
            .filter_map(|e| e.message.as_deref())
            .find(|m| m.starts_with("MountVolume."));
        newest.map(plain)
    }

    /// Forgets owners that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.0.retain(keep);
    }
}

/// A kubelet's message without what only a developer of Kubernetes wants.
fn plain(message: &str) -> String {
    if message.contains("not found in the list of registered CSI drivers") {
        return "the hyprstream node plugin is not running on the pod's node (yet); the mount is \
                tried again"
            .to_owned();
    }
    match message.split_once(" desc = ") {
        Some((_, text)) => text.to_owned(),
        None => message
            .split_once(" : ")
            .map_or(message, |(_, text)| text)
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn mount_messages_lose_their_wrapping() {
        assert_eq!(
            plain(
                "MountVolume.SetUp failed for volume \"pv\" : rpc error: code = Unavailable desc \
                 = the registry does not answer"
            ),
            "the registry does not answer"
        );
        let missing = "MountVolume.MountDevice failed for volume \"pv\" : kubernetes.io/csi: \
                       driver name csi.hyprstream.io not found in the list of registered CSI \
                       drivers";
        assert!(plain(missing).contains("node plugin is not running"));
    }
}
