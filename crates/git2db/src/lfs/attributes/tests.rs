use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use proptest::{prelude::*, sample::select};

use super::*;

fn read(files: &[(&str, &str)]) -> Result<Attributes, TooCostly> {
    let mut attributes = Attributes::default();
    for (folder, content) in files {
        attributes.add(folder, content.as_bytes())?;
    }
    Ok(attributes)
}

#[track_caller]
fn check(files: &[(&str, &str)], lfs: &[&str], plain: &[&str]) {
    let attributes = read(files).unwrap();
    for path in lfs {
        assert!(attributes.is_lfs(path).unwrap(), "{path} is LFS");
    }
    for path in plain {
        assert!(!attributes.is_lfs(path).unwrap(), "{path} is not LFS");
    }
}

#[test]
fn the_lines_of_hugging_face_are_understood() {
    check(
        &[(
            "",
            "*.safetensors filter=lfs diff=lfs merge=lfs -text\n\
            saved_model/**/* filter=lfs diff=lfs merge=lfs -text\n\
            *tfevents* filter=lfs diff=lfs merge=lfs -text\n\
            tokenizer.json filter=lfs diff=lfs merge=lfs -text\n",
        )],
        &[
            "m.safetensors",
            "a/b/m.safetensors",
            "saved_model/x/y",
            "saved_model/x",
            "x/tfevents.1",
            "tokenizer.json",
            "sub/tokenizer.json",
        ],
        &["config.json", "safetensors", "x/saved_model/y"],
    );
}

#[test]
fn the_last_match_and_the_deeper_file_win() {
    check(
        &[
            (
                "",
                "*.bin filter=lfs\nsmall.bin -filter\n/only/here.txt filter=lfs\n# *.md filter=lfs",
            ),
            ("deep", "*.bin !filter\nkept.bin filter=lfs"),
        ],
        &[
            "a.bin",
            "only/here.txt",
            "deep/kept.bin",
            "other/deep/a.bin",
        ],
        &[
            "small.bin",
            "x/small.bin",
            "x/only/here.txt",
            "deep/a.bin",
            "deep/er/a.bin",
            "a.md",
        ],
    );
}

#[test]
fn macros_quotes_and_other_filters_are_understood() {
    check(
        &[(
            "",
            "[attr]big filter=lfs -text\n*.pt big\n\"with space.x\" filter=lfs\n\
            *.enc filter=crypt\n!*.neg filter=lfs\nfolder/ filter=lfs\n",
        )],
        &["a.pt", "with space.x"],
        &["a.enc", "a.neg", "folder/x", "with"],
    );
}

#[test]
fn what_git_lfs_track_writes_for_names_with_spaces_is_understood() {
    check(
        &[(
            "",
            "sub[[:space:]]dir/*.safetensors filter=lfs diff=lfs merge=lfs -text\n\
            {a,b}.bin filter=lfs\n",
        )],
        &["sub dir/model.safetensors", "{a,b}.bin"],
        &["sub_dir/model.safetensors", "a.bin"],
    );
}

#[test]
fn the_line_of_a_path_matches_that_path_only() {
    for path in [
        "a.bin",
        "dir/model.safetensors",
        "we[ir]d*.x",
        "q?.y",
        "a b/#c!\\d",
    ] {
        check(
            &[("", &track_line(path).unwrap())],
            &[path],
            &["other", "x/a.bin", "qq.y", "weird.x"],
        );
    }
    assert_eq!(track_line(&"long/".repeat(500)), None);
}

#[test]
fn a_pattern_that_takes_for_ever_is_refused_by_its_line() {
    let stars = "*a".repeat(60);
    let folders = "**/a/".repeat(30);
    for pattern in [stars, folders] {
        let error = read(&[("", &format!("# first\n{pattern}b filter=lfs"))]).unwrap_err();
        assert_eq!(error, TooCostly::Pattern { line: 2 });
    }
}

#[test]
fn a_megabyte_of_rules_and_a_hundred_thousand_files_end_in_seconds() {
    let bad = format!("{}b", "**/a/".repeat(6));
    for line in ["*a filter=lfs\n", &format!("{bad} filter=lfs\n")] {
        let begin = Instant::now();
        let attributes = read(&[("", &line.repeat((1 << 20) / line.len()))]).unwrap();
        let path = format!("{}c", "a/".repeat(60));
        let ended = (0..100_000).find_map(|_| attributes.is_lfs(&path).err());
        assert_eq!(ended, Some(TooCostly::Rules), "{line}");
        assert!(begin.elapsed() < Duration::from_mins(5), "{line}");
    }
}

#[test]
fn macros_that_name_each_other_end() {
    check(
        &[(
            "",
            "[attr]a b\n[attr]b a filter=lfs\n[attr]c c\n*.x a\n*.y c\n",
        )],
        &["1.x"],
        &["1.y"],
    );
}

/// What `git check-attr` says of `paths`.
fn by_git(root: &Path, files: &[(String, String)], paths: &[String]) -> Vec<bool> {
    lay(root, files);
    ask(root, paths)
}

/// Writes the attributes of folders.
fn lay(root: &Path, files: &[(String, String)]) {
    let _ = fs::remove_dir_all(root.join("w"));
    for (folder, content) in files {
        let folder = root.join("w").join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(".gitattributes"), content).unwrap();
    }
}

/// What `git check-attr` says of `paths` in the worktree `w` of the repository `g` below `root`.
fn ask(root: &Path, paths: &[String]) -> Vec<bool> {
    let mut child = git(root)
        .args(["check-attr", "-z", "--stdin", "filter"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let input = paths.join("\0") + "\0";
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let fields: Vec<&str> = text.split_terminator('\0').collect();
    assert_eq!(fields.len(), paths.len() * 3);
    fields.chunks(3).map(|field| field[2] == "lfs").collect()
}

fn git(root: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", root)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_ATTR_NOSYSTEM", "1")
        .env("GIT_DIR", root.join("g"))
        .env("GIT_WORK_TREE", root.join("w"))
        .current_dir(root.join("w"));
    command
}

/// A repository to ask git in.
fn asked() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new("git")
        .args(["init", "-q", "--bare"])
        .arg(dir.path().join("g"))
        .status();
    assert!(made.unwrap().success());
    dir
}

fn name() -> impl Strategy<Value = String> {
    let part = select(vec![
        "a", "b", "ab", "a b", "a.b", "{a,b}", "*", "#a", "!a", "[a]", "A", "ü", "a\"b", "-", "a]",
    ]);
    proptest::collection::vec(part, 1..3).prop_map(|parts| parts.concat())
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(name(), 1..4).prop_map(|names| names.join("/"))
}

fn pattern() -> impl Strategy<Value = String> {
    let part = select(vec![
        "a",
        "b",
        "ab",
        "*",
        "**",
        "?",
        "/",
        "/",
        "**/",
        "/**",
        "*.b",
        "[ab]",
        "[!a]",
        "[^a-b]",
        "[[:space:]]",
        "[[:alpha:]]",
        "[[:nope:]]",
        "[]a]",
        "[a",
        "\\*",
        "\\#",
        "\\!",
        "\\ ",
        "\\",
        "{a,b}",
        "a.b",
        "#",
        "!",
        "\"",
        "ü",
        "[[:upper:]]",
        "[a-]",
        "[]-a]",
        "-",
        "]",
    ]);
    let bare = proptest::collection::vec(part, 1..5).prop_map(|parts| parts.concat());
    prop_oneof![
        4 => bare.clone(),
        1 => bare.clone().prop_map(|text| text.replace(' ', "[[:space:]]")),
        1 => (bare, any::<bool>()).prop_map(|(text, close)| {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace("ab", "a\\040b");
            format!("\"{text}{}", if close { "\"" } else { "" })
        }),
        // As `git lfs track` writes the name of a file.
        1 => path().prop_map(|path| {
            let line = track_line(&path).unwrap();
            line.split(' ').next().unwrap().to_owned()
        }),
    ]
}

fn line() -> impl Strategy<Value = String> {
    let attribute = select(vec![
        "filter=lfs",
        "-filter",
        "!filter",
        "filter",
        "filter=other",
        "filter=",
        "big",
        "-big",
        "!big",
        "big=1",
        "huge",
        "binary",
        "text",
        "-text",
        "bad!name",
        "diff=lfs",
    ]);
    let attributes = proptest::collection::vec(attribute, 0..3).prop_map(|a| a.join(" "));
    let head = prop_oneof![
        8 => pattern(),
        1 => select(vec!["[attr]big", "[attr]huge", "[attr]binary", "[attr]", "[attr]b!d", "# "])
            .prop_map(str::to_owned),
    ];
    let blank = select(vec![" ", "\t", "  ", " \r"]);
    let end = select(vec!["\n", "\r\n", " \n"]);
    (head, blank, attributes, end).prop_map(|(h, b, a, e)| format!("{h}{b}{a}{e}"))
}

fn file() -> impl Strategy<Value = String> {
    proptest::collection::vec(line(), 0..6).prop_map(|lines| lines.concat())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_answer_is_that_of_git(
        root in file(),
        nested in proptest::collection::vec((path(), file()), 0..3),
        paths in proptest::collection::vec(path(), 20),
    ) {
        let mut files = vec![(String::new(), root)];
        files.extend(nested);
        // A file cannot lie below another one, and each folder has one.
        files.sort_by(|a, b| a.0.cmp(&b.0));
        files.dedup_by(|a, b| a.0 == b.0);
        let dir = asked();
        let expected = by_git(dir.path(), &files, &paths);
        let mut ours = Attributes::default();
        for (folder, content) in &files {
            ours.add(folder, content.as_bytes()).unwrap();
        }
        for (path, expected) in paths.iter().zip(expected) {
            prop_assert_eq!(ours.is_lfs(path), Ok(expected), "{:?} by {:?}", path, files);
        }
    }

    #[test]
    fn every_answer_for_a_worktree_is_that_of_git(
        root in file(),
        nested in proptest::collection::vec((path(), file()), 0..3),
        [info, configured] in [file(), file()],
        is_staged in proptest::collection::vec(any::<bool>(), 4),
        paths in proptest::collection::vec(path(), 20),
    ) {
        let mut files = vec![(String::new(), root)];
        files.extend(nested);
        files.sort_by(|a, b| a.0.cmp(&b.0));
        files.dedup_by(|a, b| a.0 == b.0);
        let dir = asked();
        // Written, staged, and some of them deleted again.
        lay(dir.path(), &files);
        let run = |args: &[&str]| assert!(git(dir.path()).args(args).status().unwrap().success());
        run(&["config", "core.bare", "false"]);
        run(&["config", "core.worktree", dir.path().join("w").to_str().unwrap()]);
        run(&["config", "core.attributesFile", dir.path().join("more").to_str().unwrap()]);
        run(&["-c", "core.safecrlf=false", "add", "--all"]);
        let git_file = format!("gitdir: {}\n", dir.path().join("g").display());
        fs::write(dir.path().join("w/.git"), git_file).unwrap();
        for (at, (folder, _)) in files.iter().enumerate() {
            if is_staged[at] {
                fs::remove_file(dir.path().join("w").join(folder).join(".gitattributes")).unwrap();
            }
        }
        fs::create_dir_all(dir.path().join("g/info")).unwrap();
        fs::write(dir.path().join("more"), &configured).unwrap();
        let shown = (&files, &is_staged, &info, &configured);
        // Without `info/attributes` first: what was read is not believed when there is more.
        for has_info in [false, true] {
            if has_info {
                fs::write(dir.path().join("g/info/attributes"), &info).unwrap();
            } else {
                let _ = fs::remove_file(dir.path().join("g/info/attributes"));
            }
            for (path, expected) in paths.iter().zip(ask(dir.path(), &paths)) {
                let ours = worktree::is_lfs(&dir.path().join("w"), path).unwrap();
                prop_assert_eq!(ours, expected, "{:?} {} {:?}", path, has_info, shown);
            }
        }
    }
}
