//! Symbolic links that lead out of the tree.

use std::collections::HashMap;

use super::Refusal;

/// Links that one path may lead through, as in Linux.
const MAX_LINKS: usize = 40;
/// Longest target, in bytes.
pub(crate) const MAX_TARGET_BYTES: usize = 4095;

/// Checks that the link at `path` to `target` stays inside, also by way of the other `links`.
///
/// Following the names alone is not enough: through a link to a folder higher up, `..` goes
/// further up than the names say.
pub(crate) fn check_link(
    path: &str,
    target: &str,
    links: &HashMap<String, String>,
) -> Result<(), Refusal> {
    let invalid = || Refusal::InvalidLink(target.chars().take(200).collect());
    let escaping = || Refusal::EscapingLink(target.chars().take(200).collect());
    if target.is_empty() || target.len() > MAX_TARGET_BYTES || target.contains('\0') {
        return Err(invalid());
    }
    if target.starts_with('/') {
        return Err(escaping());
    }
    let mut place: Vec<String> = path.split('/').map(str::to_owned).collect();
    place.pop();
    // Names still to follow, the next one last.
    let mut names: Vec<String> = target.split('/').rev().map(str::to_owned).collect();
    let mut followed = 0;
    while let Some(name) = names.pop() {
        match name.as_str() {
            "" | "." => {}
            ".." => {
                place.pop().ok_or_else(escaping)?;
            }
            _ => {
                place.push(name);
                let Some(target) = links.get(&place.join("/")) else {
                    continue;
                };
                followed += 1;
                if followed > MAX_LINKS {
                    return Err(invalid());
                }
                if target.starts_with('/') {
                    return Err(escaping());
                }
                place.pop();
                names.extend(target.split('/').rev().map(str::to_owned));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(links: &[(&str, &str)]) -> Result<(), Refusal> {
        let map = links
            .iter()
            .map(|(p, t)| ((*p).to_owned(), (*t).to_owned()))
            .collect();
        links
            .iter()
            .try_for_each(|(path, target)| check_link(path, target, &map))
    }

    #[test]
    fn links_that_stay_inside_pass() {
        for links in [
            &[("a", "b")][..],
            &[("d/a", "../b")],
            &[("d/e/a", "../../b/./c")],
            &[("a", "d"), ("x", "a/../y")],
            &[("a", "missing/file")],
            &[("dir", "."), ("x", "dir/dir/y")],
        ] {
            assert_eq!(check(links), Ok(()), "{links:?}");
        }
    }

    #[test]
    fn links_that_leave_by_name_or_through_each_other_are_refused() {
        for links in [
            &[("a", "/etc/passwd")][..],
            &[("a", "..")],
            &[("d/a", "../../b")],
            &[("d/a", "x/../../../b")],
            // Deep by name, at the top in truth.
            &[("p/q/d", "../../s"), ("l", "p/q/d/../..")],
            &[("up", "d/."), ("d/x", "../up/../../z")],
        ] {
            assert!(
                matches!(check(links), Err(Refusal::EscapingLink(_))),
                "{links:?}"
            );
        }
        for links in [&[("a", "a")][..], &[("a", "b"), ("b", "a")], &[("a", "")]] {
            assert!(
                matches!(check(links), Err(Refusal::InvalidLink(_))),
                "{links:?}"
            );
        }
    }

    proptest! {
        /// What passes is put on a disk, and the kernel asked where it leads.
        #[test]
        fn what_passes_does_not_leave_on_a_real_disk(
            targets in proptest::collection::vec("((\\.\\./){0,3}|(a|d|l0|l1|l2|d/e)(/\\.\\.){0,2}/){0,2}(a|d|l0|l1|l2)?", 3),
            places in proptest::collection::vec(prop_oneof![Just(""), Just("d/"), Just("d/e/")], 3),
        ) {
            let links: Vec<(String, String)> = (0..3)
                .map(|i| (format!("{}l{i}", places[i]), targets[i].clone()))
                .collect();
            let map: HashMap<_, _> = links.iter().cloned().collect();
            if links.iter().any(|(path, target)| check_link(path, target, &map).is_err()) {
                return Ok(());
            }
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("deep/root");
            std::fs::create_dir_all(root.join("d/e")).unwrap();
            std::fs::create_dir_all(root.join("a")).unwrap();
            for (path, target) in &links {
                std::os::unix::fs::symlink(target, root.join(path)).unwrap();
            }
            let root = root.canonicalize().unwrap();
            for (path, _) in &links {
                if let Ok(end) = root.join(path).canonicalize() {
                    prop_assert!(end.starts_with(&root), "{:?} leads to {:?}", links, end);
                }
            }
        }
    }
}
