//! Futures that are awaited, dropped, and whose work panics.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::{
    net::TcpListener,
    path::Path,
    process::Command,
    sync::mpsc,
    time::{Duration, Instant},
};

use hyprstream_git2db::{Credentials, Git2DB, Observer as _, Progress, RemoteUrl, remote};
use hyprstream_git2db_async::{Ended, progress, run, run_observed};

fn git(dir: &Path, args: &[&str]) {
    let identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"];
    let status = Command::new("git")
        .current_dir(dir)
        .args(identity)
        .args(args)
        .status();
    assert!(status.unwrap().success(), "{args:?}");
}

#[tokio::test]
async fn a_clone_runs_beside_other_work_and_tells_its_progress() {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "-q", "-b", "main", "up"]);
    let up = dir.path().join("up");
    git(&up, &["commit", "-q", "--allow-empty", "-m", "x"]);
    let root = dir.path().join("db");
    let (on_progress, seen) = progress();
    let cloned = run_observed(on_progress, move |observer| {
        let db = Git2DB::open(&root).unwrap();
        let url = RemoteUrl::local(&up).unwrap();
        db.clone_from("a".parse().unwrap(), url).run(observer)
    });
    let cloned = cloned.await.unwrap().unwrap();
    assert_eq!(cloned.tracked.name.as_str(), "a");
    let last = *seen.borrow();
    assert!(
        matches!(
            last,
            Some(Progress::Git {
                objects_done: 2,
                ..
            })
        ),
        "{last:?}"
    );
}

#[tokio::test]
async fn a_dropped_future_ends_its_work() {
    let (told, ended) = mpsc::channel();
    let (begun, began) = tokio::sync::oneshot::channel();
    let work = run(move |observer| {
        begun.send(()).unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        while !observer.is_cancelled() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        told.send(observer.is_cancelled()).unwrap();
    });
    let task = tokio::spawn(work);
    began.await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(ended.recv_timeout(Duration::from_secs(30)).unwrap());
}

#[tokio::test]
async fn a_finished_future_has_the_librarys_own_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = RemoteUrl::parse(&format!("http://127.0.0.1:{port}/a")).unwrap();
    let result = run(move |observer| remote::list(&url, &Credentials::None, observer)).await;
    assert_eq!(result.unwrap().unwrap_err().reason(), "HostUnreachable");
}

#[tokio::test]
async fn a_panic_is_an_error() {
    let result = run(|_| panic!("for the test")).await;
    assert!(matches!(result, Err(Ended::Panicked)), "{result:?}");
}
