//! Signed tokens: compact JWTs with HS256 and nothing else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::names::Namespace;

/// What a signed token allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The namespace whose repositories may be read.
    pub ns: String,
    /// Whether they may be pushed to as well.
    #[serde(default)]
    pub write: bool,
    /// End of validity in seconds since 1970.
    pub exp: u64,
}

/// The key that signs and checks tokens.
#[derive(Clone)]
pub struct SigningKey(Vec<u8>);

/// Why a token is not valid. Clients are not told which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It is not three base64 parts with our header.
    #[error("the token is no HS256 JWT")]
    Malformed,
    /// It was signed with another key.
    #[error("the signature does not match")]
    Signature,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
}

/// The key is too short to be safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signing key has {0} bytes, at least 32 are needed")]
pub struct WeakKey(usize);

#[derive(Deserialize)]
struct Header {
    alg: String,
}

impl SigningKey {
    /// The key with these bytes, of which there must be at least 32.
    pub fn new(bytes: &[u8]) -> Result<Self, WeakKey> {
        if bytes.len() < 32 {
            Err(WeakKey(bytes.len()))
        } else {
            Ok(Self(bytes.to_vec()))
        }
    }

    /// A token for `namespace` that is valid for `ttl` from now.
    pub fn sign(&self, namespace: &Namespace, write: bool, ttl: Duration) -> String {
        let exp = now_seconds().saturating_add(ttl.as_secs());
        self.sign_claims(&Claims {
            ns: namespace.to_string(),
            write,
            exp,
        })
    }

    /// What `token` allows, if it is ours and its time is not over.
    pub fn check(&self, token: &str) -> Result<Claims, InvalidToken> {
        let (signed, signature) = token.rsplit_once('.').ok_or(InvalidToken::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(InvalidToken::Malformed)?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| InvalidToken::Malformed)?;
        self.mac(signed.as_bytes())
            .verify_slice(&signature)
            .map_err(|_| InvalidToken::Signature)?;
        let header: Header = decode(header)?;
        if header.alg != "HS256" {
            return Err(InvalidToken::Malformed);
        }
        let claims: Claims = decode(payload)?;
        if claims.exp <= now_seconds() {
            Err(InvalidToken::Expired)
        } else {
            Ok(claims)
        }
    }

    /// The HMAC of `bytes`; without the key nobody can try out guesses against it.
    pub(crate) fn digest(&self, bytes: &[u8]) -> [u8; 32] {
        self.mac(bytes).finalize().into_bytes().into()
    }

    fn sign_claims(&self, claims: &Claims) -> String {
        let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
        let payload = serde_json::to_vec(claims).expect("claims are plain JSON");
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload));
        let signature = self.mac(signed.as_bytes()).finalize().into_bytes();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn mac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(bytes);
        mac
    }
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, InvalidToken> {
    let bytes = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| InvalidToken::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| InvalidToken::Malformed)
}

fn now_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(u64::MAX, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::new(&[7; 32]).unwrap()
    }

    #[test]
    fn a_token_says_what_was_signed() {
        let token = key().sign(&"team-a".parse().unwrap(), true, Duration::from_mins(1));
        let claims = key().check(&token).unwrap();
        assert_eq!((claims.ns.as_str(), claims.write), ("team-a", true));
    }

    #[test]
    fn forged_and_expired_tokens_are_refused() {
        let key = key();
        let token = key.sign(&"a".parse().unwrap(), false, Duration::ZERO);
        assert_eq!(key.check(&token), Err(InvalidToken::Expired));
        let other = SigningKey::new(&[8; 32]).unwrap();
        let token = other.sign(&"a".parse().unwrap(), true, Duration::from_mins(1));
        assert_eq!(key.check(&token), Err(InvalidToken::Signature));
        let none = URL_SAFE_NO_PAD.encode(br#"{"alg":"none"}"#);
        let payload = URL_SAFE_NO_PAD.encode(br#"{"ns":"a","write":true,"exp":99999999999}"#);
        assert!(key.check(&format!("{none}.{payload}.")).is_err());
        for wrong in ["", "a", "a.b", "a.b.c", "..", "%.%.%"] {
            assert!(key.check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_claim_changed_after_signing_is_refused() {
        let key = key();
        let token = key.sign(&"a".parse().unwrap(), false, Duration::from_mins(1));
        let mut parts = token.split('.');
        let header = parts.next().unwrap();
        let signature = parts.next_back().unwrap();
        let payload = URL_SAFE_NO_PAD.encode(br#"{"ns":"a","write":true,"exp":99999999999}"#);
        let forged = format!("{header}.{payload}.{signature}");
        assert_eq!(key.check(&forged), Err(InvalidToken::Signature));
    }

    #[test]
    fn a_short_key_is_refused() {
        assert!(SigningKey::new(b"short").is_err());
    }
}
