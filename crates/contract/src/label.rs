//! Labels and annotations on the objects that the operator makes.

/// Standard label; its value on everything that we make is [`MANAGER`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`] and name of the operator's field manager.
pub const MANAGER: &str = "hyprstream-operator";
/// Name of the Model that an object belongs to.
pub const MODEL: &str = "hyprstream.io/model";
/// Namespace of the Model; on cluster-scoped objects, which cannot have it as their owner.
pub const MODEL_NAMESPACE: &str = "hyprstream.io/model-namespace";
/// UID of the Model; on cluster-scoped objects.
pub const MODEL_UID: &str = "hyprstream.io/model-uid";
/// Full commit that an object was made for.
pub const COMMIT: &str = "hyprstream.io/commit";
/// Annotation on a Model: any new value asks for a reconciliation at once.
pub const RECONCILE_AT: &str = "hyprstream.io/reconcile-at";

/// Label on a TrainingJob that was made through the OpenAI API; its value is `true`.
pub const FINE_TUNING: &str = "hyprstream.io/fine-tuning";
/// Annotation on such a TrainingJob: when it was cancelled, as RFC 3339. It is never run again.
pub const CANCELLED_AT: &str = "hyprstream.io/cancelled-at";
