//! Lists what is tracked in a folder: `cargo run --example list_tracked -- FOLDER`.

use hyprstream_git2db::Git2DB;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("FOLDER is needed")?;
    for tracked in Git2DB::open(folder.as_ref())?.list()? {
        let url = tracked
            .url
            .map_or("no URL".to_owned(), |url| url.to_string());
        println!(
            "{}\t{}\t{url}\t{}",
            tracked.name,
            tracked.reference,
            tracked.path.display()
        );
    }
    Ok(())
}
