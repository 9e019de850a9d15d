//! The files of a folder, as they go into a commit.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use hyprstream_git2db::commit::{Change, Content};

use crate::failure::{Context as _, Failure};

/// What lies in folders of models and belongs into no commit.
const LEFT_OUT: [&str; 4] = [".git", ".hyprstream", ".cache", ".DS_Store"];

/// All files below a folder, ordered by path. What git, downloaders and desktops keep there is
/// left out.
pub(crate) fn all_below(folder: &Path) -> Result<Vec<Change>, Failure> {
    let mut found = Vec::new();
    let mut pending = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = pending.pop() {
        let cannot = || format!("cannot read {}", folder.display());
        for entry in fs::read_dir(&folder).context(cannot())? {
            let entry = entry.context(cannot())?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(Failure::usage(format!(
                    "{} has a name that is not UTF-8",
                    entry.path().display()
                )));
            };
            if LEFT_OUT.contains(&name) {
                continue;
            }
            let path = format!("{prefix}{name}");
            // Through links: downloaders keep the weights elsewhere and link to them.
            let about = fs::metadata(entry.path())
                .context(format_args!("cannot read {}", entry.path().display()))?;
            if about.is_dir() {
                if entry.path().is_symlink() {
                    return Err(Failure::usage(format!(
                        "{} is a link to a folder: put the folder there, or leave it out",
                        entry.path().display()
                    )));
                }
                pending.push((entry.path(), format!("{path}/")));
            } else if about.is_file() {
                found.push(Change::Put {
                    path,
                    content: Content::File(entry.path()),
                    executable: about.permissions().mode() & 0o111 != 0,
                });
            } else {
                return Err(Failure::usage(format!(
                    "{} is neither a file nor a folder",
                    entry.path().display()
                )));
            }
        }
    }
    found.sort_by(|a, b| path(a).cmp(path(b)));
    Ok(found)
}

fn path(change: &Change) -> &str {
    match change {
        Change::Put { path, .. } | Change::Remove { path } => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_below_are_found_and_what_is_no_content_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in [".git", "adapters", ".cache/huggingface"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for file in [
            ".git/HEAD",
            ".cache/huggingface/x",
            "config.json",
            "adapters/00_a.safetensors",
        ] {
            fs::write(at(file), "x").unwrap();
        }
        std::os::unix::fs::symlink("config.json", at("link.json")).unwrap();
        let found = all_below(dir.path()).unwrap();
        let paths: Vec<_> = found.iter().map(path).collect();
        assert_eq!(
            paths,
            ["adapters/00_a.safetensors", "config.json", "link.json"]
        );

        std::os::unix::fs::symlink("adapters", at("more")).unwrap();
        let error = all_below(dir.path()).unwrap_err().to_string();
        assert!(error.contains("link to a folder"), "{error}");
    }
}
