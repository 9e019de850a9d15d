//! Commits the two files of a PEFT adapter to a branch of a tracked repository and pushes it:
//! `TOKEN=... cargo run --example push_adapter -- FOLDER NAME BRANCH ADAPTER`.

use std::path::Path;

use hyprstream_git2db::{
    Credentials, Git2DB, PushRef, Reference,
    commit::{self, Author, Change, Content},
    repo,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, name, branch, adapter] = &arguments[..] else {
        return Err("FOLDER NAME BRANCH ADAPTER are needed".into());
    };
    let db = Git2DB::open(folder.as_ref())?;
    let repository = db.repository(&name.parse()?)?;

    let put = |file: &str| Change::Put {
        path: file.to_owned(),
        content: Content::File(Path::new(adapter).join(file)),
        executable: false,
    };
    let changes = ["adapter_config.json", "adapter_model.safetensors"].map(put);
    let base = repo::resolve_local(repository.path(), &Reference::Branch(branch.clone()))?;
    // Large weights go to the store, and git gets a pointer.
    let staged = commit::stage(
        repository.path(),
        base.as_ref(),
        &changes,
        repository.store(),
    )?;
    let author = Author {
        name: "Trainer".to_owned(),
        email: "trainer@example.org".to_owned(),
    };
    let made = commit::commit(
        repository.path(),
        branch,
        &staged,
        &author,
        "Add an adapter",
    )?;
    println!("{made}");

    let url = repository.remote("origin")?.url?;
    let credentials = std::env::var("TOKEN").map_or(Credentials::None, Credentials::Token);
    let pushed = repository.push(&url, &[PushRef::branch(branch)], &credentials, &())?;
    println!(
        "pushed {:?}, {} bytes of LFS objects",
        pushed.changed, pushed.objects.bytes_moved
    );
    Ok(())
}
