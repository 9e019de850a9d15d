use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a new commit or spec replaces the workers of the old one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(string(self.maxSurge) in ['0', '0%'] && string(self.maxUnavailable) in ['0', '0%'])").message("maxSurge and maxUnavailable cannot both be 0: nothing could be replaced"),
)]
pub struct Rollout {
    /// How many workers may run above replicas, as a number or a percentage. 0 with
    /// maxUnavailable 1 where there is never a second GPU to start on; see also noRoom.
    #[serde(default = "one")]
    // An explicit null would be stored as null and could not be read back, nor could a number of
    // more than 32 bits.
    #[schemars(extend("nullable" = false, "minimum" = 0, "maximum" = i32::MAX))]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 0 : self.matches('^[0-9]{1,4}%$')").message("maxSurge must be a number or a percentage such as 25%"))]
    pub max_surge: IntOrString,
    /// How many workers may be missing below replicas, as a number or a percentage.
    #[serde(default = "zero")]
    #[schemars(extend("nullable" = false, "minimum" = 0, "maximum" = i32::MAX))]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 0 : self.matches('^([0-9]|[1-9][0-9]|100)%$')").message("maxUnavailable must be a number or a percentage from 0% to 100%"))]
    pub max_unavailable: IntOrString,
    /// How many seconds a rollout may go without progress before it counts as failed and the last
    /// good commit is restored. Downloading to the registry does not count.
    #[serde(default = "default_deadline")]
    #[schemars(range(min = 10, max = 86400))]
    pub progress_deadline_seconds: i32,
    /// What happens where no node has room for the workers that maxSurge allows above replicas, and
    /// maxUnavailable allows none to be missing.
    #[serde(default)]
    pub no_room: NoRoom,
}

/// What becomes of a rollout whose new workers find no room beside the old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NoRoom {
    /// The old workers go one by one to make room, where others serve meanwhile: with replicas of 2
    /// and more. A single worker serves on, and the new one waits for room.
    #[default]
    KeepServing,
    /// The old workers go one by one to make room, also the last one: requests wait until the new
    /// one is ready.
    Replace,
    /// The new workers wait for room as long as an old one serves.
    Wait,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            max_surge: one(),
            max_unavailable: zero(),
            progress_deadline_seconds: default_deadline(),
            no_room: NoRoom::default(),
        }
    }
}

fn one() -> IntOrString {
    IntOrString::Int(1)
}

fn zero() -> IntOrString {
    IntOrString::Int(0)
}

fn default_deadline() -> i32 {
    1800
}
