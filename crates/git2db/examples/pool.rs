//! Measures 1,000 small operations on one repository, with and without the pool of open ones:
//! `cargo run --release --example pool`.

use std::time::{Duration, Instant};

use hyprstream_git2db::{Git2DB, GitManager};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let db = Git2DB::open(dir.path())?;
    let name = "a".parse()?;
    db.create(name)?;
    let repository = db.repository(&"a".parse()?)?;
    let run = |capacity| -> Result<Duration, Box<dyn std::error::Error>> {
        GitManager::global().set_capacity(capacity);
        let begin = Instant::now();
        for _ in 0..1000 {
            repository.remotes()?;
        }
        Ok(begin.elapsed())
    };
    for round in 0..3 {
        println!(
            "{round}: opened each time {:?}, kept open {:?}",
            run(0)?,
            run(32)?
        );
    }
    Ok(())
}
