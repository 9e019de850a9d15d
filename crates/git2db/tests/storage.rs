//! Every storage driver that works here does the same.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use hyprstream_git2db::storage::{
    self, Driver, Kind, Mechanism, Overlay2, StorageError, View, mount, probe,
};

const KINDS: [Kind; 3] = [Kind::Overlay2, Kind::FuseOverlay, Kind::Vfs];
/// The test programs that this one starts again know by it what to do.
const ROLE: &str = "HYPRSTREAM_TEST_STORAGE_ROLE";

/// A checkout and a place for views of it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    fn within(folder: &Path) -> Self {
        let dir = tempfile::tempdir_in(folder).unwrap();
        let base = dir.path().join("base");
        fs::create_dir_all(base.join("folder/deep")).unwrap();
        for (path, content, mode) in [
            ("file", "file", 0o444),
            ("run.sh", "#!/bin/sh\necho ran\n", 0o555),
            ("folder/a", "a", 0o444),
            ("folder/deep/b", "b", 0o444),
        ] {
            fs::write(base.join(path), content).unwrap();
            fs::set_permissions(base.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(base.join("large"), vec![7; 4 << 20]).unwrap();
        symlink("folder/a", base.join("link")).unwrap();
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn with<T>(&self, name: &str, writable: bool, body: impl FnOnce(&View<'_>) -> T) -> T {
        let (base, target) = (self.at("base"), self.at(name));
        body(&View {
            base: &base,
            private: &self.at(&format!("{name}.private")),
            target: &target,
            writable,
        })
    }

    fn names(&self) -> Vec<String> {
        names(self.dir.path())
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Blocks that a folder takes, in bytes, but for those that its files share with others'.
fn disk_bytes(folder: &Path) -> u64 {
    let found = fs::symlink_metadata(folder).unwrap();
    let own = if found.is_dir() || found.nlink() == 1 {
        found.blocks() * 512
    } else {
        0
    };
    if !found.is_dir() {
        return own;
    }
    let entries = fs::read_dir(folder).unwrap();
    own + entries.map(|e| disk_bytes(&e.unwrap().path())).sum::<u64>()
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

/// What holds for every driver.
fn conforms(driver: &dyn Driver) {
    files_are_equal_and_writes_private(driver);
    files_go_and_get_other_names(driver);
    two_views_do_not_see_each_other(driver);
    what_is_only_read_cannot_be_written(driver);
    what_is_in_the_way_is_refused(driver);
    a_view_that_is_hidden_keeps_what_was_written(driver);
    a_file_in_use_is_told(driver);
}

fn files_are_equal_and_writes_private(driver: &dyn Driver) {
    let place = Place::new();
    let before = place.names();
    place.with("view", true, |view| {
        driver.create(view).unwrap();
        assert!(driver.is_shown(view).unwrap());
        assert_eq!(
            names(view.target),
            ["file", "folder", "large", "link", "run.sh"]
        );
        assert_eq!(names(&view.target.join("folder/deep")), ["b"]);
        for path in ["file", "folder/a", "folder/deep/b", "large", "link"] {
            let [ours, theirs] = [view.target, view.base].map(|f| fs::read(f.join(path)).unwrap());
            assert_eq!(ours, theirs, "{path}");
            let times =
                [view.target, view.base].map(|f| fs::metadata(f.join(path)).unwrap().mtime());
            assert_eq!(times[0], times[1], "{path}");
        }
        assert_eq!(
            fs::read_link(view.target.join("link")).unwrap(),
            Path::new("folder/a")
        );
        let ran = Command::new(view.target.join("run.sh")).output().unwrap();
        assert_eq!(ran.stdout, b"ran\n");
        let mode = |path| fs::metadata(view.target.join(path)).unwrap().mode() & 0o111;
        assert_eq!((mode("run.sh"), mode("file")), (0o111, 0));

        fs::write(view.target.join("file"), "changed").unwrap();
        fs::write(view.target.join("folder/new"), "new").unwrap();
        fs::write(view.target.join("link"), "through the link").unwrap();
        assert_eq!(read(view.target.join("file")), "changed");
        assert_eq!(read(view.base.join("file")), "file");
        assert_eq!(read(view.base.join("folder/a")), "a");
        assert!(!view.base.join("folder/new").exists());

        driver.remove(view).unwrap();
        assert!(!driver.is_shown(view).unwrap());
        driver.remove(view).unwrap();
    });
    assert_eq!(place.names(), before, "{} left something", driver.kind());
}

fn files_go_and_get_other_names(driver: &dyn Driver) {
    let place = Place::new();
    place.with("view", true, |view| {
        driver.create(view).unwrap();
        let at = |path: &str| view.target.join(path);
        fs::remove_file(at("file")).unwrap();
        fs::rename(at("folder/a"), at("moved")).unwrap();
        // Like every program: where a folder cannot be renamed (EXDEV), it is copied.
        let moved = Command::new("mv")
            .args([at("folder"), at("other")])
            .status()
            .unwrap();
        assert!(moved.success());
        fs::set_permissions(at("moved"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            names(view.target),
            ["large", "link", "moved", "other", "run.sh"]
        );
        assert_eq!(read(at("moved")), "a");
        assert_eq!(read(at("other/deep/b")), "b");
        fs::remove_dir_all(at("other")).unwrap();
        fs::create_dir(at("other")).unwrap();
        assert_eq!(names(&at("other")), [""; 0]);
        assert_eq!(names(&view.base.join("folder")), ["a", "deep"]);
        assert_eq!(
            fs::metadata(view.base.join("folder/a")).unwrap().mode() & 0o777,
            0o444
        );
        driver.remove(view).unwrap();
    });
}

fn two_views_do_not_see_each_other(driver: &dyn Driver) {
    let place = Place::new();
    place.with("one", true, |one| {
        place.with("two", true, |two| {
            std::thread::scope(|scope| {
                for view in [one, two] {
                    scope.spawn(|| driver.create(view).unwrap());
                }
            });
            fs::write(one.target.join("file"), "one").unwrap();
            fs::remove_file(two.target.join("folder/a")).unwrap();
            assert_eq!(read(two.target.join("file")), "file");
            assert_eq!(read(one.target.join("folder/a")), "a");
            driver.remove(one).unwrap();
            assert_eq!(read(two.target.join("file")), "file");
            driver.remove(two).unwrap();
        });
    });
    assert_eq!(place.names(), ["base"]);
}

fn what_is_only_read_cannot_be_written(driver: &dyn Driver) {
    let place = Place::new();
    place.with("view", false, |view| {
        driver.create(view).unwrap();
        assert_eq!(read(view.target.join("folder/a")), "a");
        if driver.is_mount() {
            let error = fs::write(view.target.join("new"), "").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        } else {
            let inode = |f: &Path| fs::metadata(f.join("large")).unwrap().ino();
            assert_eq!(inode(view.target), inode(view.base));
        }
        driver.remove(view).unwrap();
    });
    assert_eq!(place.names(), ["base"]);
}

fn what_is_in_the_way_is_refused(driver: &dyn Driver) {
    let place = Place::new();
    fs::create_dir(place.at("view")).unwrap();
    fs::write(place.at("view/mine"), "mine").unwrap();
    place.with("view", true, |view| {
        let error = driver.create(view).unwrap_err();
        assert!(matches!(error, StorageError::Occupied { .. }), "{error}");
        assert_eq!(
            (error.reason(), error.is_retriable()),
            ("PathOccupied", false)
        );
    });
    assert_eq!(read(place.at("view/mine")), "mine");
    assert_eq!(place.names(), ["base", "view"]);
}

fn a_view_that_is_hidden_keeps_what_was_written(driver: &dyn Driver) {
    let place = Place::new();
    place.with("view", true, |view| {
        driver.create(view).unwrap();
        fs::write(view.target.join("file"), "kept").unwrap();
        driver.hide(view).unwrap();
        if driver.is_mount() {
            assert!(!driver.is_shown(view).unwrap());
            assert_eq!(names(view.target), [""; 0]);
        }
        driver.show(view).unwrap();
        driver.show(view).unwrap();
        assert_eq!(read(view.target.join("file")), "kept");
        driver.hide(view).unwrap();
        if driver.is_mount() {
            fs::remove_dir_all(view.private).unwrap();
        } else {
            fs::remove_dir_all(view.target).unwrap();
        }
        let error = driver.show(view).unwrap_err();
        assert!(matches!(error, StorageError::Lost { .. }), "{error}");
        driver.remove(view).unwrap();
    });
    assert_eq!(place.names(), ["base"]);
}

fn a_file_in_use_is_told(driver: &dyn Driver) {
    if !driver.is_mount() {
        return;
    }
    let place = Place::new();
    place.with("view", true, |view| {
        driver.create(view).unwrap();
        let open = fs::File::open(view.target.join("file")).unwrap();
        let error = driver.remove(view).unwrap_err();
        assert!(matches!(error, StorageError::Busy { .. }), "{error}");
        assert!(error.is_retriable());
        drop(open);
        driver.remove(view).unwrap();
    });
}

/// The drivers that work in temporary folders; says why the others do not.
fn working() -> Vec<Box<dyn Driver>> {
    let probe = probe(&std::env::temp_dir()).unwrap();
    let working = KINDS
        .into_iter()
        .filter_map(|kind| match probe.driver(kind) {
            Ok(driver) => Some(driver),
            Err(why) => {
                println!("skipped: {why}");
                None
            }
        });
    working.collect()
}

/// This program again, for one of its tests, with a command before it.
fn again(before: &[&str], test: &str, role: &str) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut words: Vec<&std::ffi::OsStr> = before.iter().map(AsRef::as_ref).collect();
    words.push(program.as_os_str());
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, role);
    command
}

#[test]
fn every_driver_that_works_here_conforms() {
    let drivers = working();
    assert!(drivers.iter().any(|driver| driver.kind() == Kind::Vfs));
    for driver in drivers {
        println!("{}", driver.kind());
        conforms(&*driver);
    }
}

#[test]
fn an_overlay_of_old_kernels_conforms() {
    if probe(&std::env::temp_dir())
        .unwrap()
        .of(Mechanism::Overlay)
        .is_err()
    {
        println!("skipped: no overlay mounts here");
        return;
    }
    conforms(&Overlay2::new(mount::How {
        by_options: true,
        ..mount::How::default()
    }));
}

#[test]
fn an_overlay_in_a_user_namespace_conforms() {
    const TEST: &str = "an_overlay_in_a_user_namespace_conforms";
    if std::env::var_os(ROLE).is_some() {
        let found = probe(&std::env::temp_dir()).unwrap();
        assert_eq!(found.of(Mechanism::Overlay), Ok(()));
        return conforms(&Overlay2::default());
    }
    let found = probe(&std::env::temp_dir()).unwrap();
    if let Err(why) = found.of(Mechanism::OverlayInUserNamespace) {
        println!("skipped: {why}");
        return;
    }
    let before = ["unshare", "--user", "--map-root-user", "--mount"];
    let output = again(&before, TEST, "namespace").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{errors}"
    );
}

#[test]
fn a_view_outlives_its_maker_and_a_half_one_is_followed_by_a_whole_one() {
    const TEST: &str = "a_view_outlives_its_maker_and_a_half_one_is_followed_by_a_whole_one";
    if let Ok(role) = std::env::var(ROLE) {
        let (kind, folder) = role.split_once(' ').unwrap();
        let kind = KINDS.into_iter().find(|k| k.as_str() == kind).unwrap();
        let (base, target, private) = ["base", "view", "view.private"]
            .map(|name| Path::new(folder).join(name))
            .into();
        let view = View {
            base: &base,
            private: &private,
            target: &target,
            writable: true,
        };
        println!("\nbegins");
        storage::driver(kind).create(&view).unwrap();
        fs::write(target.join("file"), "by the maker").unwrap();
        println!("\nready");
        loop {
            std::thread::park();
        }
    }
    for driver in working() {
        let place = Place::new();
        fs::write(place.at("base/huge"), vec![1; 64 << 20]).unwrap();
        let role = format!("{} {}", driver.kind(), place.dir.path().display());
        let kill_at = |word: &str| {
            let mut child = again(&["env"], TEST, &role)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap() == word), "{word}");
            child.kill().unwrap();
            child.wait().unwrap();
        };
        place.with("view", true, |view| {
            kill_at("ready");
            assert!(driver.is_shown(view).unwrap());
            assert_eq!(read(view.target.join("file")), "by the maker");
            driver.remove(view).unwrap();
            // Killed somewhere in the middle.
            kill_at("begins");
            driver.remove(view).unwrap();
            driver.create(view).unwrap();
            assert_eq!(read(view.target.join("file")), "file");
            assert_eq!(
                fs::metadata(view.target.join("huge")).unwrap().len(),
                64 << 20
            );
            driver.remove(view).unwrap();
        });
        assert_eq!(place.names(), ["base"], "{}", driver.kind());
    }
}

#[test]
fn an_overlay_takes_a_small_part_of_what_copies_take() {
    for driver in working() {
        let place = Place::new();
        let base_bytes = disk_bytes(&place.at("base"));
        place.with("view", true, |view| {
            driver.create(view).unwrap();
            fs::write(view.target.join("file"), "changed").unwrap();
            let own = if driver.is_mount() {
                view.private
            } else {
                view.target
            };
            let own_bytes = disk_bytes(own);
            println!("{}: {own_bytes} of {base_bytes} bytes", driver.kind());
            if driver.is_mount() {
                assert!(own_bytes * 50 < base_bytes, "{own_bytes} of {base_bytes}");
            }
            driver.remove(view).unwrap();
        });
    }
}

#[test]
fn a_probe_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let found = probe(dir.path()).unwrap();
    for finding in &found.findings {
        println!("{}: {:?}", finding.mechanism, finding.result);
        assert!(
            finding
                .result
                .as_ref()
                .err()
                .is_none_or(|why| !why.is_empty())
        );
    }
    assert_eq!(found.findings.len(), 5);
    assert_eq!(found.of(Mechanism::HardLink), Ok(()));
    assert_eq!(names(dir.path()), [""; 0]);
    for kind in KINDS {
        match found.driver(kind) {
            Ok(driver) => assert_eq!(driver.kind(), kind),
            Err(error) => {
                assert!(matches!(error, StorageError::Unavailable { .. }), "{error}");
                assert!(!error.is_retriable());
            }
        }
    }
    assert!(found.driver(found.best().kind()).is_ok());
    assert!(probe(&dir.path().join("missing")).is_err());
}

#[test]
fn an_overlay_is_not_laid_over_an_overlay_without_a_word() {
    if probe(&std::env::temp_dir())
        .unwrap()
        .of(Mechanism::Overlay)
        .is_err()
    {
        println!("skipped: no overlay mounts here");
        return;
    }
    let place = Place::new();
    let driver = Overlay2::default();
    place.with("view", true, |view| {
        driver.create(view).unwrap();
        // The upper of a mount cannot lie in an overlay: a probe there says so.
        let inner = probe(view.target).unwrap();
        let why = inner.of(Mechanism::Overlay).unwrap_err();
        assert!(why.contains("cannot mount overlay2"), "{why}");
        driver.remove(view).unwrap();
    });
}
