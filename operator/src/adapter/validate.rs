//! The only place where a spec is refused.

use hyprstream_api::{Adapter, BaseCommitPolicy, Model, Source, condition};
use hyprstream_contract::{
    adapters::{self, AdapterList, InvalidList},
    model_ref::MAX_SCALE,
};
use kube::ResourceExt;

use super::build::{Files, entry_of};
use crate::{
    policy::Policy,
    source::{InvalidSource, SourceKey},
};

/// How often a ref of an own `url` is looked up where no interval is given.
const INTERVAL: &str = "10m";

/// An Adapter that can be worked on.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Name by which clients call it.
    pub served_name: String,
    /// Scale where a request names none.
    pub scale: f32,
    /// What becomes of it where it was made for another commit.
    pub base_commit: adapters::BaseCommitPolicy,
    /// Where its files lie in the repository.
    pub files: Files,
    /// The path of its spec.
    pub path: String,
    /// What to follow; nothing but its files is included.
    pub source: SourceKey,
}

/// Why a spec cannot work.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// There is no such Model. It heals when there is.
    #[error("there is no Model {0} in this namespace (yet)")]
    ModelNotFound(String),
    /// The Model is there, and its source is needed and cannot be read.
    #[error("the Model {0} cannot be read, and source.url is not set: its conditions say why")]
    ModelUnreadable(String),
    /// The source cannot be had as it is said.
    #[error(transparent)]
    Source(#[from] InvalidSource),
    /// The scale is no number that is served.
    #[error("spec.scale: {0:?} is no decimal number from -{MAX_SCALE} to {MAX_SCALE}")]
    Scale(String),
    /// Clients call the Model itself by that name.
    #[error("{0} is the name of the Model itself: set spec.servedName, or rename the Adapter")]
    NameOfModel(String),
    /// Something that the registry would not keep.
    #[error("the spec cannot be served: {0}")]
    Entry(#[from] InvalidList),
}

impl Invalid {
    /// Reason of the condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ModelNotFound(_) => condition::reason::MODEL_NOT_FOUND,
            Self::ModelUnreadable(_) => condition::reason::MALFORMED,
            Self::Source(error) => error.reason(),
            Self::NameOfModel(_) => condition::reason::NAME_TAKEN,
            _ => condition::reason::INVALID_SPEC,
        }
    }

    /// Whether it passes without an edit of the Adapter.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::ModelNotFound(_) | Self::ModelUnreadable(_))
    }
}

/// What is known of the Model that an Adapter names.
#[derive(Clone, Copy, Debug)]
pub enum Base<'a> {
    /// There is none.
    Missing,
    /// It cannot be read.
    Unreadable,
    /// It is there.
    Model(&'a Model),
}

/// Checks what the schema of the CRD cannot.
///
/// # Errors
/// See [`Invalid`].
pub fn validate(adapter: &Adapter, base: Base<'_>, policy: &Policy) -> Result<Plan, Invalid> {
    let spec = &adapter.spec;
    let namespace = adapter.namespace().unwrap_or_default();
    let model = &spec.model_ref.name;
    if matches!(base, Base::Missing) {
        return Err(Invalid::ModelNotFound(model.clone()));
    }
    let served_name = adapter.served_name().to_owned();
    if served_name == *model {
        return Err(Invalid::NameOfModel(served_name));
    }
    let source = source(adapter, base)?;
    let files = Files::of(&spec.source.path);
    let source = SourceKey {
        include: files.include(),
        ..SourceKey::of(&namespace, "an Adapter", &source)?
    };
    policy.check(&source)?;
    let plan = Plan {
        scale: scale(&spec.scale).ok_or_else(|| Invalid::Scale(spec.scale.clone()))?,
        base_commit: match spec.base_commit_policy {
            BaseCommitPolicy::Require => adapters::BaseCommitPolicy::Require,
            BaseCommitPolicy::Warn => adapters::BaseCommitPolicy::Warn,
            BaseCommitPolicy::Ignore => adapters::BaseCommitPolicy::Ignore,
        },
        path: spec.source.path.clone(),
        served_name,
        files,
        source,
    };
    // One that the registry refuses would keep all the others of the Model from it.
    let commit = "0".repeat(40).parse().expect("it is a commit");
    let adapters = vec![entry_of(&plan, "mirror/0", commit)];
    AdapterList { adapters }.check()?;
    Ok(plan)
}

/// The Adapter's own source, or the Model's.
fn source(adapter: &Adapter, base: Base<'_>) -> Result<Source, Invalid> {
    let own = &adapter.spec.source;
    if let Some(url) = &own.url {
        return Ok(Source {
            url: url.clone(),
            reference: own.reference.clone(),
            interval: own.interval.clone().unwrap_or_else(|| INTERVAL.to_owned()),
            secret_ref: own.secret_ref.clone(),
            include: Vec::new(),
        });
    }
    let Base::Model(model) = base else {
        let name = adapter.spec.model_ref.name.clone();
        return Err(Invalid::ModelUnreadable(name));
    };
    let source = model.spec.source.clone();
    Ok(Source {
        reference: own.reference.clone().or(source.reference),
        ..source
    })
}

fn scale(text: &str) -> Option<f32> {
    let scale: f32 = text.parse().ok()?;
    (-MAX_SCALE..=MAX_SCALE).contains(&scale).then_some(scale)
}

#[cfg(test)]
mod tests {
    use hyprstream_contract::registry::Reference;
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::{MasterKey, WorkerTls};

    fn adapter(spec: &Value) -> Adapter {
        serde_json::from_value(json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Adapter",
            "metadata": {"name": "sql", "namespace": "ns", "uid": "u"}, "spec": spec,
        }))
        .unwrap()
    }

    fn model(source: &Value) -> Model {
        serde_json::from_value(json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
            "metadata": {"name": "m", "namespace": "ns"}, "spec": {"source": source},
        }))
        .unwrap()
    }

    fn of(spec: &Value, base: Base<'_>) -> Result<Plan, Invalid> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef0123456789abcdef").unwrap();
        let policy = Policy {
            insecure_hosts: vec![],
            keys: MasterKey::open(file.path().to_owned()).unwrap(),
            worker_tls: WorkerTls::Off,
        };
        validate(&adapter(spec), base, &policy)
    }

    #[track_caller]
    fn refused(spec: &Value, base: Base<'_>, reason: &str) {
        assert_eq!(of(spec, base).unwrap_err().reason(), reason);
    }

    #[test]
    fn without_a_url_it_lies_in_the_models_repository_at_the_models_ref() {
        let model = model(&json!({
            "url": "https://example.org/m", "ref": {"branch": "b"}, "interval": "1m",
            "secretRef": {"name": "s"}, "include": ["*.json"],
        }));
        let spec = json!({"modelRef": {"name": "m"}, "source": {"path": "a/x.safetensors"}});
        let plan = of(&spec, Base::Model(&model)).unwrap();
        assert_eq!(plan.source.url, "https://example.org/m");
        assert_eq!(plan.source.reference, Reference::Branch("b".into()));
        assert_eq!(plan.source.secret.as_deref(), Some("s"));
        assert_eq!(plan.source.interval.as_secs(), 60);
        assert_eq!(plan.source.include, ["a/x.safetensors", "a/x.config.json"]);
        let spec = json!({"modelRef": {"name": "m"},
            "source": {"path": ".", "ref": {"tag": "v1"}}});
        let plan = of(&spec, Base::Model(&model)).unwrap();
        assert_eq!(plan.source.reference, Reference::Tag("v1".into()));
        refused(&spec, Base::Unreadable, "Malformed");
    }

    #[test]
    fn with_a_url_nothing_of_the_models_source_counts() {
        let spec = json!({"modelRef": {"name": "m"}, "source": {"url": "hyprstream://ns/a",
            "path": "."}, "scale": "0.5", "servedName": "Q"});
        let plan = of(&spec, Base::Unreadable).unwrap();
        assert_eq!(plan.source.reference, Reference::Head);
        assert_eq!(plan.source.interval.as_secs(), 600);
        assert_eq!((plan.scale, plan.served_name.as_str()), (0.5, "Q"));
    }

    #[test]
    fn scales_reach_as_far_as_requests_may_name_them() {
        for bound in [MAX_SCALE, -MAX_SCALE] {
            assert_eq!(scale(&bound.to_string()), Some(bound));
            let beyond = (bound * 1.001).to_string();
            assert_eq!(scale(&beyond), None, "{beyond}");
        }
        let error = Invalid::Scale("11".into()).to_string();
        assert!(error.contains("from -10 to 10"), "{error}");
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_reason() {
        let base = model(&json!({"url": "hyprstream://ns/m"}));
        let base = Base::Model(&base);
        let spec = |source: Value, scale: &str, name: &str| {
            json!({"modelRef": {"name": "m"}, "source": source, "scale": scale,
                "servedName": name})
        };
        let good = json!({"path": "."});
        refused(
            &spec(good.clone(), "1", "n"),
            Base::Missing,
            "ModelNotFound",
        );
        refused(&spec(good.clone(), "11", "n"), base, "InvalidSpec");
        refused(&spec(good.clone(), "nan", "n"), base, "InvalidSpec");
        refused(&spec(good.clone(), "1", "m"), base, "NameTaken");
        refused(&spec(good, "1", "a b"), base, "InvalidSpec");
        refused(
            &spec(json!({"path": "a/../b"}), "1", "n"),
            base,
            "InvalidSpec",
        );
        let foreign = json!({"path": ".", "url": "hyprstream://other/m"});
        refused(&spec(foreign, "1", "n"), base, "AccessDenied");
        let plain = json!({"path": ".", "url": "http://git.example.org/m",
            "secretRef": {"name": "s"}});
        refused(&spec(plain, "1", "n"), base, "InvalidSpec");
    }
}
