//! What the command is shown in confidence, and what the documents tell people to type.

use std::{fs, io::Write as _, path::Path, process::Stdio};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    remote::{
        GitServer,
        secrets::{Found, Watch, files, told},
    },
    support::{Place, Ran},
};

const RIGHT: &str = "planted-token-that-is-right";
const WRONG: &str = "planted-token-that-is-wrong";
const HUGGING_FACE: &str = "planted-token-of-hugging-face";
const NETRC: &str = "planted-password-of-netrc";
const HELPER: &str = "planted-password-of-a-helper";
const IN_URL: &str = "planted-password-in-a-url";
const SECRETS: [&str; 6] = [RIGHT, WRONG, HUGGING_FACE, NETRC, HELPER, IN_URL];

#[test]
fn no_secret_is_printed_kept_or_seen_on_a_command_line() {
    let place = Place::new();
    place.upstream();
    let server = GitServer::with_auth(&place.path("."), Some(("x-access-token", RIGHT)));
    let url = server.http.url("/upstream.git");
    for (name, secret) in [("right", RIGHT), ("wrong", WRONG)] {
        place.write(name, format!("{secret}\n"));
    }
    place.write(
        "user/.gitconfig",
        format!(
            "[credential]\nhelper = \"!f() {{ echo username=h; echo password={HELPER}; }}; f\"\n"
        ),
    );
    let netrc = format!("machine 127.0.0.1 login n password {NETRC}\n");
    let (right, wrong) = (place.path("right"), place.path("wrong"));
    let (right, wrong) = (right.to_str().unwrap(), wrong.to_str().unwrap());
    let mut found = Found::new();
    let mut run = |folder: &str, args: &[&str], code: i32, input: &str| {
        let mut child = place
            .command(env!("CARGO_BIN_EXE_hyprstream"))
            .current_dir(place.path(folder))
            .env("HF_TOKEN", HUGGING_FACE)
            .env("RUST_LOG", "trace")
            .env("HYPRSTREAM_LOG", "trace")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let ran = Ran::of(&child.wait_with_output().unwrap());
        assert_eq!(ran.code, code, "{args:?}: {ran:?}");
        found.push((
            format!("what {args:?} prints"),
            format!("{ran:?}").into_bytes(),
        ));
    };
    let watch = Watch::over(std::process::id());
    // The helper's, then the one of netrc, which comes first: the server takes none of them.
    run(".", &["clone", &url, "--name", "m"], 5, "");
    place.write("user/.netrc", netrc);
    run(".", &["clone", &url, "--name", "m"], 5, "");
    run(
        ".",
        &["clone", &url, "--name", "m", "--token-file", wrong],
        5,
        "",
    );
    // The server has no LFS.
    let wanted = [
        "clone",
        &url,
        "--name",
        "m",
        "--no-lfs",
        "--token-file",
        "-",
    ];
    run(".", &wanted, 0, RIGHT);
    for args in [&["list"][..], &["info", "m"], &["list", "--json"]] {
        run(".", args, 0, "");
    }
    run(".", &["pull", "-R", "m", "--token-file", wrong], 5, "");
    run(
        ".",
        &["push", "-R", "m", "main", "--token-file", wrong],
        5,
        "",
    );
    run(
        ".",
        &["push", "-R", "m", "main", "--token-file", right],
        0,
        "",
    );
    let lines = watch.end();
    // Whoever types a password into a URL has shown it already; it is refused, and not repeated.
    let typed = url.replacen("http://", &format!("http://u:{IN_URL}@"), 1);
    run(".", &["clone", &typed], 2, "");
    run(".", &["clone", &format!("{typed}@")], 2, "");

    let seen = |words: &str| lines.iter().any(|line| line.contains(words));
    assert!(
        seen("hyprstream clone") && seen("git credential fill"),
        "{lines:?}"
    );
    // It was asked with them, or nothing is proven.
    let asked = format!("{:?}", server.http.requests());
    for (user, secret) in [("h", HELPER), ("n", NETRC), ("x-access-token", WRONG)] {
        assert!(
            asked.contains(&STANDARD.encode(format!("{user}:{secret}"))),
            "{user}"
        );
    }
    assert!(!asked.contains(HUGGING_FACE));
    let lines: Vec<String> = lines.into_iter().collect();
    // The helper's own is the user's configuration, which git hands to a shell.
    let lines = lines.join("\n").replace(&format!("password={HELPER}"), "");
    found.push(("command lines".to_owned(), lines.into_bytes()));
    files(&place.path("home"), &mut found);
    assert!(found.iter().any(|(name, _)| name.ends_with("config")));
    assert_eq!(told(&SECRETS, &found), [""; 0]);
}

/// URLs with a user and a password, of which a shell's history and `ps` would tell.
fn with_passwords(text: &str) -> Vec<&str> {
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ')' | '<' | '|');
    text.match_indices("://")
        .filter_map(|(at, _)| text[at + 3..].split(ends).next())
        .filter(|rest| {
            let authority = rest.split('/').next().unwrap_or_default();
            matches!(authority.rsplit_once('@'), Some((user, _)) if user.contains(':'))
        })
        .collect()
}

#[test]
fn no_document_tells_people_to_type_a_secret() {
    let sample = "git push `http://any:$TOKEN@registry/git/a/m.git` main, see https://a.org:1/b@c";
    assert_eq!(with_passwords(sample), ["any:$TOKEN@registry/git/a/m.git"]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Found::new();
    for folder in ["docs", "deploy", "charts", "crds"] {
        files(&root.join(folder), &mut found);
    }
    for file in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"] {
        found.push((file.to_owned(), fs::read(root.join(file)).unwrap()));
    }
    assert!(found.len() > 30);
    for (place, bytes) in &found {
        let text = String::from_utf8_lossy(bytes);
        assert_eq!(with_passwords(&text), [""; 0], "{place}");
        for flag in ["--token ", "--token=", "--password ", "--password="] {
            assert!(!text.contains(flag), "{place}: {flag}");
        }
    }
}
