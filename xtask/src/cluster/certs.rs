//! The cluster's certificate authority and the certificates of its components.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::paths::write_atomically;

/// Name that the certificate authority goes by.
const AUTHORITY: &str = "hyprstream-local";
const DAY: Duration = Duration::from_hours(24);

/// The certificate authority in a folder, with its key.
pub(crate) struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that components show.
pub(crate) struct Subject<'a> {
    /// Name of the files.
    pub(crate) file: &'a str,
    /// Common name: the user, for clients.
    pub(crate) name: &'a str,
    /// Organisation: the group, for clients.
    pub(crate) group: Option<&'a str>,
    /// DNS names of a server.
    pub(crate) hosts: &'a [String],
    /// Addresses of a server.
    pub(crate) addresses: &'a [Ipv4Addr],
}

impl Authority {
    /// Opens the authority in `dir`, or makes it, with the key pair for service account tokens.
    /// The authority is valid for ten years.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        let key_file = dir.join("ca.key");
        let params = authority_params(SystemTime::now())?;
        let key = if key_file.exists() {
            KeyPair::from_pem(&fs::read_to_string(&key_file)?)
                .with_context(|| format!("cannot read {}", key_file.display()))?
        } else {
            let key = KeyPair::generate()?;
            write_atomically(&dir.join("ca.crt"), params.self_signed(&key)?.pem())?;
            let accounts = KeyPair::generate()?;
            write_atomically(&dir.join("service-accounts.pub"), accounts.public_key_pem())?;
            write_secret(&dir.join("service-accounts.key"), &accounts.serialize_pem())?;
            write_secret(&key_file, &key.serialize_pem())?;
            key
        };
        Ok(Self {
            dir: dir.to_owned(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Writes a fresh certificate, valid for one year, and its key.
    pub(crate) fn issue(&self, subject: &Subject) -> Result<()> {
        let mut params = CertificateParams::new(subject.hosts.to_vec())?;
        for address in subject.addresses {
            params
                .subject_alt_names
                .push(SanType::IpAddress(IpAddr::V4(*address)));
        }
        params
            .distinguished_name
            .push(DnType::CommonName, subject.name);
        if let Some(group) = subject.group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, SystemTime::now(), 365 * DAY)?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write_atomically(&self.certificate(subject.file), certificate.pem())?;
        write_secret(&self.key(subject.file), &key.serialize_pem())
    }

    /// The authority's own certificate.
    pub(crate) fn authority(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Path of a certificate.
    pub(crate) fn certificate(&self, file: &str) -> PathBuf {
        self.dir.join(format!("{file}.crt"))
    }

    /// Path of a key.
    pub(crate) fn key(&self, file: &str) -> PathBuf {
        self.dir.join(format!("{file}.key"))
    }

    /// A kubeconfig for the holder of a certificate, with everything inside.
    pub(crate) fn kubeconfig(&self, file: &str, server: &str, context: &str) -> Result<String> {
        let data = |path: PathBuf| -> Result<String> {
            Ok(STANDARD.encode(
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
            ))
        };
        Ok(serde_yaml::to_string(&serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": context, "cluster": {
                "server": server,
                "certificate-authority-data": data(self.authority())?,
            }}],
            "users": [{"name": context, "user": {
                "client-certificate-data": data(self.certificate(file))?,
                "client-key-data": data(self.key(file))?,
            }}],
            "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
            "current-context": context,
        }))?)
    }
}

fn authority_params(now: SystemTime) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    set_validity(&mut params, now, 3650 * DAY)?;
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, length: Duration) -> Result<()> {
    let now = rcgen::date_time_ymd(1970, 1, 1) + now.duration_since(UNIX_EPOCH)?;
    // A clock that is a little behind must not refuse it.
    params.not_before = now - Duration::from_hours(1);
    params.not_after = now + length;
    Ok(())
}

/// Writes a file that only its owner reads.
pub(crate) fn write_secret(path: &Path, content: &str) -> Result<()> {
    let aside = path.with_extension("new");
    fs::write(&aside, "")?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))?;
    fs::write(&aside, content)?;
    fs::rename(&aside, path).with_context(|| format!("cannot write {}", path.display()))
}
