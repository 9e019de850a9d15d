//! Clones a repository, or fetches it if it is tracked, and prints a file of it:
//! `cargo run --example clone_and_read -- FOLDER NAME URL FILE`.

use hyprstream_git2db::{
    Credentials, FetchOptions, Git2DB, Include, RemoteUrl,
    checkout::{self, Source},
    repo, tree,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, name, url, file] = &arguments[..] else {
        return Err("FOLDER NAME URL FILE are needed".into());
    };
    let db = Git2DB::open(folder.as_ref())?;
    let name = name.parse()?;
    let tracked = match db.get(&name) {
        Ok(tracked) => {
            let fetched = db.repository(&name)?.fetch(
                "origin",
                &FetchOptions::default(),
                &Credentials::None,
                &(),
            )?;
            println!("{} refs changed", fetched.updated.len());
            db.mark_fetched(&name)?;
            tracked
        }
        Err(error) if error.reason() == "RepositoryNotFound" => {
            let url = RemoteUrl::parse(url)?;
            db.clone_from(name, url)
                .include([Include::literal(file)])
                .run(&())?
                .tracked
        }
        Err(error) => return Err(error.into()),
    };

    let commit = repo::resolve_local(&tracked.path, &tracked.reference)?
        .ok_or("the followed branch is gone")?;
    // The file alone, verified, as a folder of hard links into the store.
    let include = Include::new(&[Include::literal(file)])?;
    let source = Source {
        bare: &tracked.path,
        commit: &commit,
        include: &include,
        limits: tree::Limits::default(),
        store: db.store(),
    };
    let checkout = checkout::materialise(&source, &db.root().join("checkouts"))?;
    println!("{}", std::fs::read_to_string(checkout.path.join(file))?);
    Ok(())
}
