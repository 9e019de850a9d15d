//! Who commits.

use std::process::Command;

use hyprstream_git2db::commit::Author;

use crate::failure::Failure;

/// As git finds it: its variables, then its configuration.
pub(crate) fn author() -> Result<Author, Failure> {
    let find = |variables: [&str; 2], key: &str| {
        variables
            .iter()
            .find_map(|name| std::env::var(name).ok())
            .or_else(|| configured(key))
            .filter(|value| !value.trim().is_empty())
    };
    let name = find(["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"], "user.name");
    let email = find(["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"], "user.email");
    match (name, email) {
        (Some(name), Some(email)) => Ok(Author { name, email }),
        _ => Err(Failure::usage("nobody to commit as").hint(
            "set GIT_AUTHOR_NAME and GIT_AUTHOR_EMAIL, or git config --global user.name and user.email",
        )),
    }
}

/// What git's own configuration says, if git is installed.
fn configured(key: &str) -> Option<String> {
    let output = Command::new("git").args(["config", "--get", key]).output();
    let output = output.ok().filter(|output| output.status.success())?;
    let value = String::from_utf8(output.stdout).ok()?;
    Some(value.trim().to_owned()).filter(|value| !value.is_empty())
}
