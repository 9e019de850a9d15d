//! Which refs are protected: files on the volume, and the API by which they change.
//!
//! A repository's rules lie in it, and go with it: `<repository>.git/hyprstream/protection.json`.
//! Those of a namespace lie in `protection/<namespace>.json`, and hold behind them.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequestParts, Path as AxumPath, State as AxumState},
    http::{HeaderMap, request::Parts},
};
use hyprstream_contract::repositories::{Protection, ProtectionRule, PushVerb};

use crate::{
    api::parse,
    audit::Entry,
    auth::{Principal, Verb},
    layout::{Layout, sync_folders},
    names::{Namespace, Repository},
    refusal::Refusal,
    state::{State, blocking},
};

/// Most rules in one list.
const MAX_RULES: usize = 100;
const MAX_PATTERN_BYTES: usize = 512;

/// The rules that hold for one repository.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// The full name of the default branch.
    head: String,
    rules: Vec<ProtectionRule>,
}

impl Rules {
    /// Reads what holds for the repository, whether or not it is there. Blocks.
    pub(crate) fn read(layout: &Layout, repository: &Repository) -> io::Result<Self> {
        let path = layout.repository(repository);
        let mut rules = load(&file_in(&path))?.rules;
        if let Repository::Pushed { namespace, .. } = repository {
            rules.extend(load(&file_of(layout.root(), namespace))?.rules);
        }
        let head = match fs::read_to_string(path.join("HEAD")) {
            Ok(text) => text
                .trim()
                .strip_prefix("ref: ")
                .unwrap_or_default()
                .to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => "refs/heads/main".to_owned(),
            Err(error) => return Err(error),
        };
        Ok(Self { head, rules })
    }

    /// The rule for a ref.
    pub(crate) fn rule(&self, name: &str) -> Option<&ProtectionRule> {
        self.rules.iter().find(|rule| match rule.refs.as_str() {
            "HEAD" => self.is_default(name),
            pattern => matches(pattern, name),
        })
    }

    /// Whether it is the default branch.
    pub(crate) fn is_default(&self, name: &str) -> bool {
        name == self.head
    }
}

/// The verb of RBAC that a rule asks for.
pub(crate) fn verb(push: PushVerb) -> Verb {
    match push {
        PushVerb::Push => Verb::Push,
        PushVerb::Force => Verb::Force,
        PushVerb::Admin => Verb::Admin,
    }
}

/// Whose rules a path names.
pub(crate) enum Place {
    Namespace(Namespace),
    Repository(Repository),
}

/// The place of a path, and who asks.
pub(crate) struct Asked {
    place: Place,
    principal: Principal,
}

impl Asked {
    async fn require(&self, state: &State, verb: Verb) -> Result<(), Refusal> {
        let who = &self.principal;
        let may = match &self.place {
            Place::Namespace(namespace) => state.auth.allows_in(who, namespace, verb).await?,
            Place::Repository(repository) => state.auth.allows(who, repository, verb).await?,
        };
        if !may {
            let message = format!("this token lacks the right `{}` on {self}", verb.as_str());
            let entry = Entry::new("protection", who, &self).refused(message.clone());
            state.audit.note(&entry);
            return Err(Refusal::forbidden(message));
        }
        match &self.place {
            Place::Repository(repository) if !state.layout.exists(repository) => Err(
                Refusal::not_found(format!("there is no repository {repository}")),
            ),
            _ => Ok(()),
        }
    }

    fn file(&self, layout: &Layout) -> PathBuf {
        match &self.place {
            Place::Namespace(namespace) => file_of(layout.root(), namespace),
            Place::Repository(repository) => file_in(&layout.repository(repository)),
        }
    }
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.place {
            Place::Namespace(namespace) => write!(f, "git/{namespace}"),
            Place::Repository(repository) => repository.fmt(f),
        }
    }
}

impl FromRequestParts<Arc<State>> for Asked {
    type Rejection = Refusal;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<State>,
    ) -> Result<Self, Self::Rejection> {
        let headers: &HeaderMap = &parts.headers;
        let principal = state.auth.principal(headers).await?;
        let AxumPath(names) = AxumPath::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|_| Refusal::bad_request("the path cannot be read"))?;
        let name = |key: &str| {
            let found = names.iter().find(|(name, _)| name == key);
            found.map(|(_, value)| value.as_str())
        };
        let wrong = |error: crate::names::InvalidName| Refusal::bad_request(error.to_string());
        let namespace: Namespace = name("namespace")
            .unwrap_or_default()
            .parse()
            .map_err(wrong)?;
        let place = match name("name") {
            Some(name) => Place::Repository(Repository::Pushed {
                namespace,
                name: name.parse().map_err(wrong)?,
            }),
            None => Place::Namespace(namespace),
        };
        Ok(Self { place, principal })
    }
}

/// `GET /api/v1/protection/NAMESPACE[/NAME]`
pub(crate) async fn get(
    AxumState(state): AxumState<Arc<State>>,
    asked: Asked,
) -> Result<Json<Protection>, Refusal> {
    asked.require(&state, Verb::Get).await?;
    let path = asked.file(&state.layout);
    blocking(move || load(&path))
        .await?
        .map(Json)
        .map_err(|error| Refusal::internal("reading what is protected", &error))
}

/// `PUT /api/v1/protection/NAMESPACE[/NAME]`
pub(crate) async fn put(
    AxumState(state): AxumState<Arc<State>>,
    asked: Asked,
    body: Bytes,
) -> Result<Json<Protection>, Refusal> {
    asked.require(&state, Verb::Admin).await?;
    let protection: Protection = parse(&body)?;
    validate(&protection).map_err(Refusal::bad_request)?;
    let (path, root) = (asked.file(&state.layout), state.layout.root().to_owned());
    let (tmp, kept) = (state.layout.tmp(), protection.clone());
    blocking(move || store(&path, &root, &tmp, &kept))
        .await?
        .map_err(|error| State::io_refusal("keeping what is protected", &error))?;
    state
        .audit
        .note(&Entry::new("protection", &asked.principal, &asked));
    Ok(Json(protection))
}

fn validate(protection: &Protection) -> Result<(), String> {
    if protection.rules.len() > MAX_RULES {
        return Err(format!("at most {MAX_RULES} rules are kept"));
    }
    for rule in &protection.rules {
        let refs = &rule.refs;
        let known = refs == "HEAD"
            || ["refs/heads/", "refs/tags/"]
                .iter()
                .any(|start| refs.len() > start.len() && refs.starts_with(start));
        if !known || refs.len() > MAX_PATTERN_BYTES || refs.chars().any(char::is_control) {
            let shown: String = refs.chars().take(80).collect();
            return Err(format!(
                "{shown:?} names no refs: write HEAD for the default branch, or a name that \
                 begins with refs/heads/ or refs/tags/, with * for any characters"
            ));
        }
    }
    Ok(())
}

/// Whether `*` of the pattern can stand for what makes it the name.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn file_in(repository: &Path) -> PathBuf {
    repository.join("hyprstream/protection.json")
}

fn file_of(root: &Path, namespace: &Namespace) -> PathBuf {
    root.join("protection").join(format!("{namespace}.json"))
}

/// The rules in a file; none if there is no file. One that cannot be read is an error: nobody is
/// told that nothing is protected.
fn load(path: &Path) -> io::Result<Protection> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Protection::default()),
        Err(error) => Err(error),
    }
}

fn store(path: &Path, root: &Path, tmp: &Path, protection: &Protection) -> io::Result<()> {
    let folder = path.parent().unwrap_or(root);
    // Not those above: a repository that was just removed must not come back as half of one.
    crate::layout::make_folder(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(tmp)?;
    serde_json::to_writer(&mut file, protection)?;
    file.flush()?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folders(folder, root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(refs: &str) -> ProtectionRule {
        ProtectionRule {
            refs: refs.to_owned(),
            push: PushVerb::Admin,
            force: false,
            delete: false,
        }
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("refs/heads/main", "refs/heads/main", true),
            ("refs/heads/main", "refs/heads/main2", false),
            ("refs/heads/*", "refs/heads/a/b", true),
            ("refs/heads/*/b", "refs/heads/a/b", true),
            ("refs/heads/*/b", "refs/heads/b", false),
            ("refs/heads/a*a", "refs/heads/a", false),
            ("refs/heads/*x*y", "refs/heads/1x2xy", true),
            ("refs/heads/*x*y", "refs/heads/1y2x", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn only_names_of_branches_and_tags_are_rules() {
        let valid = |refs: &str| {
            let rules = vec![rule(refs)];
            validate(&Protection { rules }).is_ok()
        };
        assert!(valid("HEAD") && valid("refs/heads/*") && valid("refs/tags/v1"));
        for wrong in [
            "",
            "main",
            "refs/heads/",
            "refs/*",
            "refs/heads/a\n",
            "head",
        ] {
            assert!(!valid(wrong), "{wrong:?}");
        }
        let rules = vec![rule("HEAD"); MAX_RULES + 1];
        assert!(validate(&Protection { rules }).is_err());
    }

    #[test]
    fn rules_outlive_the_process_and_the_repositorys_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let namespace: Namespace = "a".parse().unwrap();
        let repository = Repository::Pushed {
            namespace: namespace.clone(),
            name: "m".parse().unwrap(),
        };
        layout.create(&repository).unwrap();
        let keep = |path: &Path, refs: &str, push| {
            let mut rule = rule(refs);
            rule.push = push;
            let protection = Protection { rules: vec![rule] };
            store(path, dir.path(), &layout.tmp(), &protection).unwrap();
        };
        keep(
            &file_in(&layout.repository(&repository)),
            "HEAD",
            PushVerb::Force,
        );
        keep(
            &file_of(dir.path(), &namespace),
            "refs/heads/*",
            PushVerb::Admin,
        );
        let rules = Rules::read(&layout, &repository).unwrap();
        assert!(rules.is_default("refs/heads/main"));
        let push = |name: &str| rules.rule(name).map(|rule| rule.push);
        assert_eq!(push("refs/heads/main"), Some(PushVerb::Force));
        assert_eq!(push("refs/heads/x"), Some(PushVerb::Admin));
        assert_eq!(push("refs/tags/x"), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_unprotects_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bad"), "{").unwrap();
        assert!(load(&dir.path().join("bad")).is_err());
        assert_eq!(
            load(&dir.path().join("none")).unwrap(),
            Protection::default()
        );
    }
}
