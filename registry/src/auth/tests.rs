use std::time::Duration;

use super::*;

const ADMIN: &str = "admin-token-0123456789";
const NODE: &str = "node-token-0123456789";

fn auth(dir: &std::path::Path) -> Auth {
    let file = |name: &str, content: &str| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let files = TokenFiles {
        admin: file("admin", &format!("{ADMIN}\n")),
        node: file("node", NODE),
        signing_key: file("key", &"k".repeat(40)),
    };
    Auth::open(files, None).unwrap()
}

fn headers(value: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
}

fn basic(password: &str) -> HeaderMap {
    headers(&format!(
        "Basic {}",
        STANDARD.encode(format!("any:{password}"))
    ))
}

#[tokio::test]
async fn tokens_are_taken_as_bearer_and_as_password() {
    let dir = tempfile::tempdir().unwrap();
    let auth = auth(dir.path());
    assert_eq!(
        auth.principal(&headers(&format!("Bearer {ADMIN}"))).await,
        Ok(Principal::Admin)
    );
    assert_eq!(auth.principal(&basic(ADMIN)).await, Ok(Principal::Admin));
    assert_eq!(
        auth.principal(&basic(NODE)).await,
        Ok(Principal::Node { reads_all: false })
    );
    for wrong in [
        "",
        "nonsense",
        "Bearer ",
        "Bearer x",
        "Basic !!!",
        "Digest x",
    ] {
        let refused = auth.principal(&headers(wrong)).await;
        assert_eq!(refused, Err(Refusal::unauthorized()), "{wrong}");
    }
    let none = auth.principal(&HeaderMap::new()).await;
    assert_eq!(none, Err(Refusal::unauthorized()));
}

#[test]
fn each_principal_reaches_what_is_its_own() {
    use Verb::{Admin, Create, Delete, Force, Get, Push};

    let ours: Repository = Repository::Pushed {
        namespace: "a".parse().unwrap(),
        name: "m".parse().unwrap(),
    };
    let theirs = Repository::Pushed {
        namespace: "b".parse().unwrap(),
        name: "m".parse().unwrap(),
    };
    let mirror = Repository::Mirror(crate::names::MirrorId::from_bytes([1; 32]));
    let reader = Principal::Namespace {
        namespace: "a".parse().unwrap(),
        write: false,
    };
    let writer = Principal::Namespace {
        namespace: "a".parse().unwrap(),
        write: true,
    };
    let all = [Get, Push, Force, Admin, Delete, Create];
    let own = [Get, Push, Force, Delete, Create];
    let none: &[Verb] = &[];
    let table = [
        (&Principal::Admin, &all[..], &all[..], &[Get, Delete][..]),
        (&Principal::Node { reads_all: false }, none, none, none),
        (
            &Principal::Node { reads_all: true },
            &[Get][..],
            &[Get][..],
            &[Get][..],
        ),
        (&reader, &[Get][..], none, none),
        (&writer, &own[..], none, none),
    ];
    for (principal, in_ours, in_theirs, in_mirror) in table {
        for (repository, expected) in [(&ours, in_ours), (&theirs, in_theirs), (&mirror, in_mirror)]
        {
            let has: Vec<_> = all
                .into_iter()
                .filter(|verb| principal.has(repository, *verb))
                .collect();
            let expected: Vec<_> = all.into_iter().filter(|v| expected.contains(v)).collect();
            assert_eq!(has, expected, "{principal:?} {repository}");
        }
    }
}

#[tokio::test]
async fn a_rotated_token_replaces_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let auth = auth(dir.path());
    std::fs::write(dir.path().join("admin"), "another-admin-token").unwrap();
    auth.reload().unwrap();
    assert_eq!(
        auth.principal(&basic(ADMIN)).await,
        Err(Refusal::unauthorized())
    );
    assert_eq!(
        auth.principal(&basic("another-admin-token")).await,
        Ok(Principal::Admin)
    );
    std::fs::write(dir.path().join("admin"), "short").unwrap();
    assert!(auth.reload().is_err());
    assert_eq!(
        auth.principal(&basic("another-admin-token")).await,
        Ok(Principal::Admin)
    );
}

#[tokio::test]
async fn a_signed_token_names_its_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let auth = auth(dir.path());
    let key = read_signing_key(&dir.path().join("key")).unwrap();
    let token = key.sign(&"a".parse().unwrap(), true, Duration::from_mins(1));
    let expected = Principal::Namespace {
        namespace: "a".parse().unwrap(),
        write: true,
    };
    assert_eq!(auth.principal(&basic(&token)).await, Ok(expected));
}
