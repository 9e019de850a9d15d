//! The three objects: what is read out of them, and what is written.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyprstream_contract::{
    label,
    registry::{TRUST_CONFIG_MAP, TRUST_KEY},
};
use hyprstream_tls::{Authority, Facts, Issued, certificates};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::decide::{Leaf, Seen, Trusted};
use crate::chain;

/// The Secret of who signs.
pub const AUTHORITY: &str = "hyprstream-ca";
/// The ConfigMap of who is trusted.
pub const TRUST: &str = TRUST_CONFIG_MAP;
/// The Secret of the registry.
pub const REGISTRY: &str = "hyprstream-registry-tls";

/// Type of the Secret of a server.
pub(super) const TLS: &str = "kubernetes.io/tls";
pub(super) const OPAQUE: &str = "Opaque";

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
/// The bundle, and of a server's certificate who signed it.
pub(super) const BUNDLE: &str = TRUST_KEY;
/// JSON: of each authority by its digest, since when it is in the bundle and until when it stays.
const TIMES: &str = "hyprstream.io/trusted";

#[derive(Serialize, Deserialize)]
struct Times {
    /// Seconds since 1970.
    since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
}

impl Trusted {
    /// That of an authority, which is not in the bundle yet.
    pub(super) fn of(authority: &Authority) -> Self {
        let certificate = &authority.issued().certificate;
        Self {
            certificate: format!("{}\n", certificate.trim()),
            digest: digest(certificate).unwrap_or_default(),
            ends: authority.facts().not_after,
            since: None,
            until: None,
        }
    }

    /// That of a certificate (PEM) of an authority.
    fn read(certificate: &str) -> Option<Self> {
        let facts = Facts::of_pem(certificate, BUNDLE).ok()?;
        facts.is_authority.then(|| Self {
            certificate: format!("{}\n", certificate.trim()),
            digest: digest(certificate).unwrap_or_default(),
            ends: facts.not_after,
            since: None,
            until: None,
        })
    }
}

/// What the objects say.
pub(super) fn seen(
    keys: Option<&Secret>,
    bundle: Option<&ConfigMap>,
    leaf: Option<&Secret>,
) -> Seen {
    let mut seen = Seen::default();
    if let Some(keys) = keys {
        match authority(keys, CERTIFICATE, KEY) {
            Ok(authority) => seen.current = Some(authority),
            Err(why) => seen.keys_wrong = Some(why),
        }
        // One that cannot be used is made anew in its time.
        seen.next = authority(keys, NEXT_CERTIFICATE, NEXT_KEY).ok();
    }
    if let Some(map) = bundle {
        (seen.bundle, seen.bundle_wrong) = trusted(map);
    }
    if let Some(secret) = leaf {
        match read_leaf(secret) {
            Ok(leaf) => seen.leaf = Some(leaf),
            Err(why) => seen.leaf_wrong = Some(why),
        }
    }
    seen
}

/// The Secret of who signs, in place of `old`.
pub(super) fn keys(namespace: &str, current: &Authority, next: Option<&Authority>) -> Secret {
    let mut data = BTreeMap::new();
    let mut put = |certificate: &str, key: &str, issued: &Issued| {
        data.insert(certificate.to_owned(), bytes(&issued.certificate));
        data.insert(key.to_owned(), bytes(&issued.key));
    };
    put(CERTIFICATE, KEY, current.issued());
    if let Some(next) = next {
        put(NEXT_CERTIFICATE, NEXT_KEY, next.issued());
    }
    secret(namespace, AUTHORITY, OPAQUE, data)
}

/// The Secret of the registry.
pub(super) fn leaf(namespace: &str, issued: &Issued, by: &Authority) -> Secret {
    let data = BTreeMap::from([
        (CERTIFICATE.to_owned(), bytes(&issued.certificate)),
        (KEY.to_owned(), bytes(&issued.key)),
        (BUNDLE.to_owned(), bytes(&by.issued().certificate)),
    ]);
    secret(namespace, REGISTRY, TLS, data)
}

/// The ConfigMap of who is trusted.
pub(super) fn config_map(namespace: &str, bundle: &[Trusted]) -> ConfigMap {
    let times: BTreeMap<&str, Times> = bundle
        .iter()
        .map(|trusted| {
            let times = Times {
                since: seconds(trusted.since.unwrap_or(UNIX_EPOCH)),
                until: trusted.until.map(seconds),
            };
            (trusted.digest.as_str(), times)
        })
        .collect();
    let mut metadata = metadata(namespace, TRUST);
    // Text and numbers have a JSON form.
    let times = serde_json::to_string(&times).unwrap_or_default();
    metadata.annotations = Some(BTreeMap::from([(TIMES.to_owned(), times)]));
    ConfigMap {
        metadata,
        data: Some(BTreeMap::from([(BUNDLE.to_owned(), text(bundle))])),
        ..ConfigMap::default()
    }
}

/// The bundle as a PEM text.
pub(super) fn text(bundle: &[Trusted]) -> String {
    bundle.iter().map(|t| t.certificate.as_str()).collect()
}

/// Times are kept in whole seconds.
pub(super) fn whole(now: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds(now))
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn trusted(map: &ConfigMap) -> (Vec<Trusted>, Option<String>) {
    let found = map.data.as_ref().and_then(|data| data.get(BUNDLE));
    let times = map.metadata.annotations.as_ref();
    let times = times.and_then(|all| all.get(TIMES));
    let times: Option<BTreeMap<String, Times>> =
        times.and_then(|json| serde_json::from_str(json).ok());
    let is_timed = times.is_some();
    let times = times.unwrap_or_default();
    let at = |seconds: u64| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let bundle: Vec<Trusted> = blocks(found.map_or("", String::as_str))
        .into_iter()
        .filter_map(|block| Trusted::read(&block))
        .map(|mut trusted| {
            let known = times.get(&trusted.digest);
            trusted.since = known.and_then(|times| at(times.since));
            trusted.until = known.and_then(|times| times.until).and_then(at);
            trusted
        })
        .collect();
    let wrong = match found {
        None => Some(format!("it has no {BUNDLE}")),
        Some(found) if *found != text(&bundle) => Some(format!(
            "{BUNDLE} has something that is no authority's certificate"
        )),
        _ if !is_timed => Some(format!("the annotation {TIMES} cannot be read")),
        _ => None,
    };
    (bundle, wrong)
}

/// The certificates of a text, each as PEM.
fn blocks(text: &str) -> Vec<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    text.split(BEGIN)
        .skip(1)
        .filter_map(|rest| rest.split_once(END))
        .map(|(inside, _)| format!("{BEGIN}{inside}{END}\n"))
        .collect()
}

fn authority(secret: &Secret, certificate: &str, key: &str) -> Result<Authority, String> {
    let (certificate, key) = (field(secret, certificate)?, field(secret, key)?);
    Authority::read(&certificate, &key, AUTHORITY).map_err(|error| chain(&error))
}

fn read_leaf(secret: &Secret) -> Result<Leaf, String> {
    let issued = Issued {
        certificate: field(secret, CERTIFICATE)?,
        key: field(secret, KEY)?,
    };
    let facts = issued.check(REGISTRY).map_err(|error| chain(&error))?;
    let by = field(secret, BUNDLE)?;
    let authority = Trusted::read(&by).ok_or(format!("its {BUNDLE} is no authority's"))?;
    if !issued.is_signed_by(&by) {
        return Err(format!("it was not signed by its {BUNDLE}"));
    }
    Ok(Leaf { facts, authority })
}

fn field(secret: &Secret, name: &str) -> Result<String, String> {
    let found = secret.data.as_ref().and_then(|data| data.get(name));
    let found = found.ok_or(format!("it has no {name}"))?;
    String::from_utf8(found.0.clone()).map_err(|_| format!("its {name} is no text"))
}

fn digest(certificate: &str) -> Option<String> {
    let all = certificates(certificate.as_bytes(), BUNDLE).ok()?;
    Some(hex::encode(Sha256::digest(all.first()?)))
}

fn bytes(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

fn secret(namespace: &str, name: &str, kind: &str, data: BTreeMap<String, ByteString>) -> Secret {
    Secret {
        metadata: metadata(namespace, name),
        type_: Some(kind.to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

fn metadata(namespace: &str, name: &str) -> ObjectMeta {
    let labels = [
        ("app.kubernetes.io/name", "hyprstream"),
        ("app.kubernetes.io/managed-by", label::MANAGER),
    ];
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
        ..ObjectMeta::default()
    }
}
