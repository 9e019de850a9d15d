//! Which model this worker serves, and which names mean it.

use std::{fs, io, path::Path};

use axum::http::HeaderValue;
use hyprstream_contract::{
    Manifest, ModelRef,
    manifest::MANIFEST_PATH,
    model_ref::{AdapterRef, InvalidModelRef, MAX_STACK},
};
use hyprstream_openai::{ApiError, Model, Provenance, adapters::too_many, excerpt};

/// Name and origin of a model.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name by which clients call it.
    pub name: String,
    /// Namespace that may stand before the name.
    pub namespace: Option<String>,
    /// Where its files come from; absent for a plain directory.
    pub provenance: Option<Provenance>,
}

/// A directory does not say what it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The manifest cannot be read.
    #[error("{MANIFEST_PATH} cannot be read")]
    Read(#[source] io::Error),
    /// The manifest is none.
    #[error("{MANIFEST_PATH} is invalid")]
    Invalid(#[source] serde_json::Error),
    /// A name that no request could name.
    #[error("{0:?} is not a model name: use lower-case letters, digits and '-'")]
    Name(String),
}

impl Identity {
    /// The identity of the model in `dir`. Without a name it takes that of the directory, or
    /// `model` where that is no name.
    ///
    /// # Errors
    /// The manifest is unreadable, or a name is none.
    pub fn read(
        dir: &Path,
        name: Option<String>,
        namespace: Option<String>,
    ) -> Result<Self, IdentityError> {
        let manifest: Option<Manifest> = match fs::read(dir.join(MANIFEST_PATH)) {
            Ok(json) => Some(serde_json::from_slice(&json).map_err(IdentityError::Invalid)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(IdentityError::Read(error)),
        };
        let is_name = |text: &str| {
            text.parse::<ModelRef>()
                .is_ok_and(|r| r.name == text && r.namespace.is_none())
        };
        for given in [&name, &namespace].into_iter().flatten() {
            if !is_name(given) {
                return Err(IdentityError::Name(given.clone()));
            }
        }
        let of_dir = || {
            let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
            let name = dir.file_name()?.to_str()?.to_lowercase().replace('_', "-");
            is_name(&name).then_some(name)
        };
        Ok(Self {
            name: name.or_else(of_dir).unwrap_or_else(|| "model".to_owned()),
            namespace,
            provenance: manifest.map(|manifest| Provenance {
                repository: manifest.repository,
                reference: manifest.reference,
                commit: manifest.commit.to_string(),
                ..Provenance::default()
            }),
        })
    }

    /// The full commit.
    pub fn commit(&self) -> Option<&str> {
        self.provenance.as_ref().map(|p| p.commit.as_str())
    }

    /// The commit as a header's value.
    pub(super) fn commit_header(&self) -> Option<HeaderValue> {
        self.commit()
            .and_then(|commit| HeaderValue::from_str(commit).ok())
    }

    /// The adapters that `model` names behind a name of this model.
    ///
    /// # Errors
    /// A 404 that says what is served here when it names something else, a 400 when what follows
    /// the name are no adapters.
    pub(super) fn adapters_of(&self, model: &str) -> Result<Vec<AdapterRef>, ApiError> {
        let (base, adapters) = model.split_once('+').unwrap_or((model, ""));
        self.check(base)?;
        if adapters.split('+').count() > MAX_STACK {
            return Err(too_many("model", MAX_STACK));
        }
        // It is this model, so that what is wrong comes behind its name.
        let invalid = |error: InvalidModelRef| ApiError::invalid("model", error);
        let wanted: ModelRef = model.parse().map_err(invalid)?;
        Ok(wanted.adapters)
    }

    fn check(&self, base: &str) -> Result<(), ApiError> {
        let not_found = |why: String| Err(ApiError::model_not_found(why));
        let served = self.served();
        let unknown = format!(
            "the model {:?} is not served here: {served} is",
            excerpt(base)
        );
        let Ok(wanted) = base.parse::<ModelRef>() else {
            return not_found(unknown);
        };
        let namespace_differs = wanted.namespace.is_some() && wanted.namespace != self.namespace;
        if wanted.name != self.name || namespace_differs {
            return not_found(unknown);
        }
        let provenance = self.provenance.as_ref();
        if let Some(branch) = &wanted.branch {
            let reference = provenance.and_then(|p| p.reference.as_deref());
            if reference != Some(branch) {
                let here = reference.unwrap_or("no branch");
                let branch = excerpt(branch);
                return not_found(format!(
                    "the branch {branch:?} of {} is not served here: {here} is",
                    self.name
                ));
            }
        }
        if let Some(commit) = &wanted.commit {
            let here = self.commit();
            if !here.is_some_and(|here| here.starts_with(commit.as_str())) {
                let here = here.unwrap_or("no commit");
                return not_found(format!(
                    "the commit {commit} of {} is not served here: {here} is",
                    self.name
                ));
            }
        }
        Ok(())
    }

    /// The entry in the list of models.
    pub(super) fn entry(&self, created: u64, max_model_len: Option<usize>) -> Model {
        Model {
            id: self.name.clone(),
            object: "model".to_owned(),
            created,
            owned_by: self
                .namespace
                .clone()
                .unwrap_or_else(|| "hyprstream".to_owned()),
            root: self.provenance.as_ref().map(|p| p.repository.clone()),
            parent: None,
            max_model_len: max_model_len.map(|len| len as u64),
            hyprstream: self.provenance.clone(),
        }
    }

    fn served(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{:?} (or \"{namespace}/{}\")", self.name, self.name),
            None => format!("{:?}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            name: "smollm2".into(),
            namespace: Some("default".into()),
            provenance: Some(Provenance {
                repository: "https://example.org/m".into(),
                reference: Some("main".into()),
                commit: "0123456789abcdef0123456789abcdef01234567".into(),
                ..Provenance::default()
            }),
        }
    }

    #[test]
    fn every_name_of_this_commit_is_accepted() {
        for name in [
            "smollm2",
            "default/smollm2",
            "smollm2:main",
            "smollm2:main:0123456",
            "default/smollm2:main:0123456789abcdef0123456789abcdef01234567",
        ] {
            assert_eq!(identity().adapters_of(name), Ok(Vec::new()));
        }
    }

    #[test]
    fn any_other_name_is_a_404_that_says_what_is_served() {
        for (name, says) in [
            ("gpt-4", "smollm2"),
            ("other/smollm2", "default/smollm2"),
            ("HuggingFaceTB/SmolLM2", "smollm2"),
            ("", "smollm2"),
            ("smollm2:dev", "main"),
            ("smollm2:main:fffffff", "0123456789abcdef"),
            ("gpt-4+sql", "smollm2"),
            ("smollm2:dev+sql@99", "main"),
        ] {
            let error = identity().adapters_of(name).unwrap_err();
            assert_eq!(error.kind.status(), 404);
            assert!(error.message.contains(says), "{name}: {error}");
        }
        let plain = Identity {
            provenance: None,
            namespace: None,
            ..identity()
        };
        plain.adapters_of("smollm2").unwrap();
        for name in ["smollm2:main", "default/smollm2", "smollm2:main:0123456"] {
            assert!(plain.adapters_of(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_directory_gives_its_name_and_manifest() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("My_Model-1");
        fs::create_dir_all(dir.join(".hyprstream")).unwrap();
        let read = || Identity::read(&dir, None, None);
        assert_eq!(read().unwrap().name, "my-model-1");
        assert!(read().unwrap().provenance.is_none());
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let manifest =
            format!(r#"{{"repository":"r","ref":"main","commit":"{commit}","files":[]}}"#);
        fs::write(dir.join(MANIFEST_PATH), manifest).unwrap();
        assert_eq!(read().unwrap().commit(), Some(commit));
        fs::write(dir.join(MANIFEST_PATH), "{}").unwrap();
        assert!(matches!(read(), Err(IdentityError::Invalid(_))));
        assert!(Identity::read(root.path(), Some("A".into()), None).is_err());
    }
}
