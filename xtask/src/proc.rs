//! Running programs, with their output in a log and their failure in words.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// cargo in a folder, as if it was called from a shell. `cargo xtask` sets variables that tell of
/// xtask; build scripts that watch them would run again, and half of the crates with them.
pub(crate) fn cargo(folder: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(folder);
    for (name, _) in std::env::vars_os() {
        let of_xtask = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
                || name.starts_with("CARGO_BIN_")
                || ["CARGO", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"].contains(&name)
        });
        if of_xtask {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Runs a program with its output appended to `log`. A failure names what failed, shows the last
/// lines and says where the rest is.
pub(crate) fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let mut file = open_log(log)?;
    let start = file.metadata()?.len();
    writeln!(file, "$ {}", text(command))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| not_started(command))?;
    if !status.success() {
        bail!(
            "{} ended with {status}\n{}",
            program(command),
            tail_from(log, start)
        );
    }
    Ok(())
}

/// Runs a program and returns what it wrote to its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| not_started(command))?;
    if !out.status.success() {
        bail!(
            "{} ended with {}: {}",
            text(command),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    String::from_utf8(out.stdout).with_context(|| format!("{} wrote no text", program(command)))
}

/// Runs a program with `input` on its standard input and returns what it wrote.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| not_started(command))?;
    let mut stdin = child.stdin.take().context("the program has no input")?;
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let out = child.wait_with_output()?;
    let written = writer.join();
    if !out.status.success() {
        bail!(
            "{} ended with {}: {}",
            text(command),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    if !matches!(written, Ok(Ok(()))) {
        bail!("{} did not read its input", program(command));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Whether a program ends well; its output is thrown away.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether a program of this name is on the PATH.
pub(crate) fn on_path(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
        || ["/usr/sbin", "/sbin"]
            .iter()
            .any(|dir| Path::new(dir).join(name).is_file())
}

/// Opens a log for appending and makes its folder.
pub(crate) fn open_log(log: &Path) -> Result<File> {
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot open the log {}", log.display()))
}

/// The last lines of a log and where it is.
pub(crate) fn tail_of(log: &Path) -> String {
    tail_from(log, 0)
}

/// The last lines of what was written to a log behind `start`, and where it is.
pub(crate) fn tail_from(log: &Path, start: u64) -> String {
    let mut text = String::new();
    if let Ok(mut file) = File::open(log) {
        let length = file.metadata().map_or(0, |m| m.len());
        let mut bytes = Vec::new();
        if file
            .seek(SeekFrom::Start(length.saturating_sub(4096).max(start)))
            .is_ok()
            && file.read_to_end(&mut bytes).is_ok()
        {
            let all = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = all.lines().collect();
            for line in &lines[lines.len().saturating_sub(12)..] {
                text.push_str("    | ");
                text.extend(line.chars().take(500));
                text.push('\n');
            }
        }
    }
    format!("{text}    log: {}", log.display())
}

fn program(command: &Command) -> String {
    Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned()
}

fn text(command: &Command) -> String {
    let mut text = program(command);
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

fn not_started(command: &Command) -> String {
    format!("cannot start {}", command.get_program().to_string_lossy())
}
