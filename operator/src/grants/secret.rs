//! What a volume's grant is, and what its Secret says of it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use hyprstream_contract::{
    grants::{Grant, Opens, SECRET_LABEL, SECRET_TYPE, WORD_KEY, Word, WordHash, is_handle},
    volume::{DRIVER_NAME, VolumeContent},
};
use k8s_openapi::{
    ByteString,
    api::core::v1::{PersistentVolume, Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff::{SignedDuration, Timestamp},
};
use kube::{ResourceExt, api::ObjectMeta};
use serde_json::{Value, json};

/// Annotation with the SHA-256 of the word before, which holds for [`BOTH_HOLD`] beside the new one.
const PREVIOUS: &str = "hyprstream.io/previous-word-sha256";
/// Annotation with the time at which the word was changed.
const CHANGED: &str = "hyprstream.io/word-changed-at";
/// For how long the word before holds.
const BOTH_HOLD: SignedDuration = SignedDuration::from_hours(1);
/// After what time a word is changed.
const CHANGE_AFTER: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What a volume is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Handle of the volume.
    pub handle: String,
    /// Namespace of its Secret.
    pub namespace: String,
    /// Name of its Secret.
    pub secret: String,
    /// Name of its claim, in the same namespace.
    pub claim: String,
    /// What it opens.
    pub opens: Opens,
}

/// The words of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Words {
    /// The one in it.
    pub current: WordHash,
    /// The one before, and when it was changed.
    pub previous: Option<(WordHash, Timestamp)>,
}

/// What is to be done with the Secret of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There is none: make it.
    Make,
    /// What is in it is no word: put one there.
    Mend,
    /// It has been the same for long: change it.
    Change(Words),
    /// Nothing.
    Keep(Words),
}

/// Name of the Secret with the word of a claim's volume.
pub fn secret_name(claim: &str) -> String {
    format!("{claim}-word")
}

impl Wanted {
    /// What that volume is to have; `None` of one that names no Secret, as an earlier release made
    /// them, or that is not ours.
    pub fn of(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let csi = spec.csi.as_ref().filter(|csi| csi.driver == DRIVER_NAME)?;
        let reference = csi.node_stage_secret_ref.as_ref()?;
        let content = VolumeContent::from_map(csi.volume_attributes.as_ref()?).ok()?;
        Some(Self {
            handle: Some(csi.volume_handle.clone()).filter(|handle| is_handle(handle))?,
            namespace: reference.namespace.clone()?,
            secret: reference.name.clone()?,
            claim: spec.claim_ref.as_ref()?.name.clone()?,
            opens: match content {
                VolumeContent::Commit(attributes) => Opens::Repository(attributes.repository),
                VolumeContent::Adapters(model) => Opens::Adapters(model),
            },
        })
    }
}

impl Words {
    /// What the registry is to keep by now.
    pub(super) fn grant(&self, opens: &Opens, now: Timestamp) -> Grant {
        let holds = |(_, since): &&(WordHash, Timestamp)| now.duration_since(*since) < BOTH_HOLD;
        let previous = self.previous.as_ref().filter(holds);
        let words: BTreeSet<WordHash> = previous
            .map(|(hash, _)| hash.clone())
            .into_iter()
            .chain([self.current.clone()])
            .collect();
        Grant {
            words,
            opens: opens.clone(),
        }
    }
}

/// What is to be done with a volume's Secret, of which `found` is there.
pub(super) fn step(found: Option<&Secret>, now: Timestamp) -> Step {
    let Some(secret) = found else {
        return Step::Make;
    };
    let data = secret.data.as_ref().and_then(|data| data.get(WORD_KEY));
    let text = data.and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
    let Some(word) = text.and_then(|text| text.parse::<Word>().ok()) else {
        return Step::Mend;
    };
    let annotation = |name: &str| secret.annotations().get(name);
    let changed: Option<Timestamp> = annotation(CHANGED).and_then(|at| at.parse().ok());
    let previous: Option<WordHash> = annotation(PREVIOUS).and_then(|hash| hash.parse().ok());
    let words = Words {
        current: word.hash(),
        previous: previous.zip(changed),
    };
    let since = changed.or_else(|| secret.creation_timestamp().map(|time| time.0));
    if since.is_some_and(|since| now.duration_since(since) > CHANGE_AFTER) {
        Step::Change(words)
    } else {
        Step::Keep(words)
    }
}

/// A Secret with that word, which goes with the claim.
pub(super) fn secret(wanted: &Wanted, claim: &ObjectMeta, word: &Word) -> Secret {
    let mut labels = claim.labels.clone().unwrap_or_default();
    labels.insert(SECRET_LABEL.to_owned(), "true".to_owned());
    Secret {
        metadata: ObjectMeta {
            name: Some(wanted.secret.clone()),
            namespace: Some(wanted.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "PersistentVolumeClaim".to_owned(),
                name: claim.name.clone().unwrap_or_default(),
                uid: claim.uid.clone().unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some(BTreeMap::from([(WORD_KEY.to_owned(), bytes(word))])),
        ..Secret::default()
    }
}

/// The merge patch that puts another word in the place of `before`, if the Secret is still that
/// version.
pub(super) fn change(
    version: Option<&str>,
    word: &Word,
    before: Option<&Words>,
    now: Timestamp,
) -> Value {
    let mut annotations = json!({CHANGED: now.to_string()});
    if let Some(before) = before {
        annotations[PREVIOUS] = json!(before.current.as_str());
    }
    json!({
        "metadata": {"resourceVersion": version, "annotations": annotations},
        "data": {WORD_KEY: bytes(word)},
    })
}

/// The words after [`change`].
pub(super) fn changed(word: &Word, before: Option<&Words>, now: Timestamp) -> Words {
    Words {
        current: word.hash(),
        previous: before.map(|before| (before.current.clone(), now)),
    }
}

fn bytes(word: &Word) -> ByteString {
    ByteString(word.expose().as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn word(byte: u8) -> Word {
        Word::from_bytes([byte; 32])
    }

    fn volume(attributes: &Value, reference: &Value) -> PersistentVolume {
        serde_json::from_value(json!({
            "metadata": {"name": "v"},
            "spec": {
                "claimRef": {"namespace": "ns", "name": "c"},
                "csi": {
                    "driver": "csi.hyprstream.io", "volumeHandle": "uid-1-c",
                    "volumeAttributes": attributes, "nodeStageSecretRef": reference,
                },
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_volume_says_what_it_opens_and_where_its_word_lies() {
        let reference = json!({"namespace": "ns", "name": "c-word"});
        let commit = json!({
            "hyprstream.io/repository": "mirror/1", "hyprstream.io/source": "s",
            "hyprstream.io/commit": "0123456789abcdef0123456789abcdef01234567",
            "hyprstream.io/mode": "rw", "hyprstream.io/capacity": "16777216",
        });
        let wanted = Wanted::of(&volume(&commit, &reference)).unwrap();
        assert_eq!(
            wanted,
            Wanted {
                handle: "uid-1-c".into(),
                namespace: "ns".into(),
                secret: secret_name("c"),
                claim: "c".into(),
                opens: Opens::Repository("mirror/1".into()),
            }
        );
        let adapters = json!({"hyprstream.io/adapters": "ns/m"});
        let adapters = Wanted::of(&volume(&adapters, &reference)).unwrap();
        assert_eq!(adapters.opens, Opens::Adapters("ns/m".parse().unwrap()));
        assert_eq!(Wanted::of(&volume(&commit, &Value::Null)), None);
        assert_eq!(Wanted::of(&PersistentVolume::default()), None);
    }

    #[test]
    fn a_word_is_made_mended_kept_and_changed() {
        let wanted = Wanted::of(&volume(
            &json!({"hyprstream.io/adapters": "ns/m"}),
            &json!({"namespace": "ns", "name": "c-word"}),
        ))
        .unwrap();
        let claim = ObjectMeta {
            name: Some("c".into()),
            uid: Some("u".into()),
            ..ObjectMeta::default()
        };
        let now = at("2026-01-01T00:00:00Z");
        assert_eq!(step(None, now), Step::Make);
        let mut made = secret(&wanted, &claim, &word(1));
        assert_eq!(made.owner_references()[0].uid, "u");
        assert!(!format!("{:?}", made.labels()).contains("git-credentials"));
        made.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        let old = Words {
            current: word(1).hash(),
            previous: None,
        };
        assert_eq!(step(Some(&made), now), Step::Keep(old.clone()));
        let later = at("2026-02-01T00:00:00Z");
        assert_eq!(step(Some(&made), later), Step::Change(old.clone()));

        // Patched, it says the same as what is remembered of the change.
        let patch = change(Some("7"), &word(2), Some(&old), later);
        let mut value = serde_json::to_value(&made).unwrap();
        value["metadata"]["annotations"] = patch["metadata"]["annotations"].clone();
        value["data"] = patch["data"].clone();
        let patched: Secret = serde_json::from_value(value).unwrap();
        let new = changed(&word(2), Some(&old), later);
        assert_eq!(step(Some(&patched), later), Step::Keep(new.clone()));

        // Both hold for an hour.
        let holds = |at_: &str| new.grant(&wanted.opens, at(at_)).words;
        let both = BTreeSet::from([word(1).hash(), word(2).hash()]);
        assert_eq!(holds("2026-02-01T00:59:59Z"), both);
        assert_eq!(
            holds("2026-02-01T01:00:00Z"),
            BTreeSet::from([word(2).hash()])
        );

        for spoilt in [None, Some("x"), Some("hsv_short")] {
            let mut secret = made.clone();
            secret.data = spoilt.map(|text| {
                BTreeMap::from([(WORD_KEY.to_owned(), ByteString(text.as_bytes().to_vec()))])
            });
            assert_eq!(step(Some(&secret), now), Step::Mend);
        }
    }
}
