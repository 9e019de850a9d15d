//! The pair of files that an adapter is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::AdapterError;

/// Where the adapters of a model lie in its repository.
const FOLDER: &str = "adapters";
/// What the two files are called in a folder of one adapter: as PEFT has them, and MLX.
const IN_FOLDER: [(&str, &str); 2] = [
    ("adapter_model.safetensors", "adapter_config.json"),
    ("adapters.safetensors", "adapter_config.json"),
];
/// What PEFT wrote before safetensors.
const PICKLE: &str = "adapter_model.bin";
const TENSORS: &str = ".safetensors";
const CONFIG: &str = ".config.json";
/// Most entries of a folder of adapters that are looked at.
const MAX_ENTRIES: usize = 1 << 16;

/// The two files of one adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFiles {
    /// Its tensors.
    pub tensors: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
}

/// An adapter in a model's repository.
#[derive(Debug)]
pub struct ListedAdapter {
    /// Its name: what follows the number.
    pub name: String,
    /// Its files, or why there are none.
    pub files: Result<AdapterFiles, AdapterError>,
}

impl AdapterFiles {
    /// The files of the adapter at `path`: a folder with `adapter_model.safetensors` and
    /// `adapter_config.json` (or MLX's `adapters.safetensors`), or the file of tensors itself,
    /// beside which the configuration lies as `NAME.config.json` (or under one of the names
    /// before).
    ///
    /// # Errors
    /// [`AdapterError::MissingFile`], [`AdapterError::NotAnAdapter`].
    pub fn find(path: &Path) -> Result<Self, AdapterError> {
        let files = if is_dir(path)? {
            in_folder(path)?
        } else {
            beside(path)?
        };
        for file in [&files.tensors, &files.config] {
            if !exists(file)? {
                return Err(AdapterError::MissingFile { path: file.clone() });
            }
        }
        Ok(files)
    }

    /// The adapters in the folder `adapters/` of the model in `dir`, by number and then by name:
    /// files `NN_name.safetensors` with `NN_name.config.json`, or folders `NN_name` with the files
    /// of [`Self::find`]. None where there is no such folder. Files of other kinds (a `README.md`)
    /// are left alone.
    ///
    /// What looks like an adapter and is none (no number, one file without the other, a name that
    /// another has too) is listed with its error and costs the others nothing.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(dir: &Path) -> Result<Vec<ListedAdapter>, AdapterError> {
        let folder = dir.join(FOLDER);
        let read_error = |source| AdapterError::Io {
            doing: "read",
            path: folder.clone(),
            source,
        };
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(read_error(source)),
        };
        let mut stems = Vec::new();
        for entry in entries.take(MAX_ENTRIES) {
            let path = entry.map_err(read_error)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let stem = name
                .strip_suffix(TENSORS)
                .or_else(|| name.strip_suffix(CONFIG));
            match stem {
                Some(stem) => stems.push((stem.to_owned(), false)),
                None if is_dir(&path)? => stems.push((name.to_owned(), true)),
                None => {}
            }
        }
        stems.sort_by_cached_key(|(stem, is_dir)| {
            let number = numbered(stem).map(|(number, _)| number);
            (number.is_none(), number, stem.clone(), *is_dir)
        });
        stems.dedup();
        let mut listed: Vec<_> = stems.iter().map(|stem| list_one(&folder, stem)).collect();
        refuse_doubles(&folder, &mut listed);
        Ok(listed)
    }

    /// The files of the adapter `name` with this number in the repository of the model in `dir`.
    pub fn numbered(dir: &Path, number: u32, name: &str) -> Self {
        let file = |suffix| dir.join(FOLDER).join(format!("{number:02}_{name}{suffix}"));
        Self {
            tensors: file(TENSORS),
            config: file(CONFIG),
        }
    }
}

fn list_one(folder: &Path, (stem, is_dir): &(String, bool)) -> ListedAdapter {
    let path = folder.join(stem);
    let Some((_, name)) = numbered(stem) else {
        return ListedAdapter {
            name: stem.clone(),
            files: Err(AdapterError::NotAnAdapter {
                path,
                why: "adapters in this folder are called NN_name, with digits for NN and letters, \
                      digits, '-', '_' and '.' in the name"
                    .to_owned(),
            }),
        };
    };
    let files = if *is_dir {
        AdapterFiles::find(&path)
    } else {
        AdapterFiles::find(&folder.join(format!("{stem}{TENSORS}")))
    };
    ListedAdapter {
        name: name.to_owned(),
        files,
    }
}

/// Which of two adapters of one name is meant nobody can say.
fn refuse_doubles(folder: &Path, listed: &mut [ListedAdapter]) {
    let names: Vec<String> = listed.iter().map(|adapter| adapter.name.clone()).collect();
    for adapter in listed {
        if names.iter().filter(|name| **name == adapter.name).count() > 1 {
            adapter.files = Err(AdapterError::NotAnAdapter {
                path: folder.to_owned(),
                why: format!("it has several adapters of the name {:?}", adapter.name),
            });
        }
    }
}

/// Number and name of `NN_name`.
fn numbered(stem: &str) -> Option<(u32, &str)> {
    let (number, name) = stem.split_once('_')?;
    let digits = number.len() >= 2 && number.bytes().all(|byte| byte.is_ascii_digit());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let named = !name.is_empty() && name.bytes().all(plain);
    (digits && named).then_some((number.parse().ok()?, name))
}

fn in_folder(folder: &Path) -> Result<AdapterFiles, AdapterError> {
    for (tensors, config) in IN_FOLDER {
        let tensors = folder.join(tensors);
        if exists(&tensors)? {
            return Ok(AdapterFiles {
                tensors,
                config: folder.join(config),
            });
        }
    }
    if exists(&folder.join(PICKLE))? {
        return Err(AdapterError::NotAnAdapter {
            path: folder.join(PICKLE),
            why: "this format can run code and is not read: save the adapter as safetensors"
                .to_owned(),
        });
    }
    Err(AdapterError::MissingFile {
        path: folder.join(IN_FOLDER[0].0),
    })
}

fn beside(tensors: &Path) -> Result<AdapterFiles, AdapterError> {
    let name = tensors.file_name().and_then(|name| name.to_str());
    let Some(stem) = name.and_then(|name| name.strip_suffix(TENSORS)) else {
        let why = "it is neither a folder nor a file of safetensors".to_owned();
        return Err(AdapterError::NotAnAdapter {
            path: tensors.to_owned(),
            why,
        });
    };
    let own = tensors.with_file_name(format!("{stem}{CONFIG}"));
    let config = match IN_FOLDER.iter().find(|(known, _)| name == Some(known)) {
        Some((_, config)) if !exists(&own)? => tensors.with_file_name(config),
        _ => own,
    };
    Ok(AdapterFiles {
        tensors: tensors.to_owned(),
        config,
    })
}

fn is_dir(path: &Path) -> Result<bool, AdapterError> {
    Ok(metadata(path)?.is_some_and(|metadata| metadata.is_dir()))
}

fn exists(path: &Path) -> Result<bool, AdapterError> {
    Ok(metadata(path)?.is_some())
}

fn metadata(path: &Path) -> Result<Option<fs::Metadata>, AdapterError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AdapterError::Io {
            doing: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        dir
    }

    #[track_caller]
    fn finds(files: &[&str], path: &str, tensors: &str, config: &str) {
        let dir = folder(files);
        let found = AdapterFiles::find(&dir.path().join(path)).unwrap();
        let expected = AdapterFiles {
            tensors: dir.path().join(tensors),
            config: dir.path().join(config),
        };
        assert_eq!(found, expected);
    }

    #[track_caller]
    fn refuses(files: &[&str], path: &str, reason: &str, why: &str) {
        let dir = folder(files);
        let error = AdapterFiles::find(&dir.path().join(path)).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }

    #[test]
    fn a_pair_is_found_in_each_spelling() {
        let peft = ["adapter_model.safetensors", "adapter_config.json"];
        finds(&peft, "", peft[0], peft[1]);
        finds(&peft, peft[0], peft[0], peft[1]);
        let ours = ["adapters/01_sql.safetensors", "adapters/01_sql.config.json"];
        finds(&ours, ours[0], ours[0], ours[1]);
        let mlx = ["adapters.safetensors", "adapter_config.json"];
        finds(&mlx, "", mlx[0], mlx[1]);
    }

    #[test]
    fn half_a_pair_and_other_things_are_refused() {
        refuses(&[], "", "MissingFile", "adapter_model.safetensors");
        refuses(
            &["adapter_model.safetensors"],
            "",
            "MissingFile",
            "adapter_config.json",
        );
        refuses(
            &["01_a.safetensors"],
            "01_a.safetensors",
            "MissingFile",
            "01_a.config.json",
        );
        refuses(
            &["adapter_config.json", "adapter_model.bin"],
            "",
            "NotAnAdapter",
            "save the adapter as safetensors",
        );
        refuses(&["a.gguf"], "a.gguf", "NotAnAdapter", "neither a folder");
        refuses(&[], "gone.safetensors", "MissingFile", "gone.safetensors");
    }

    #[test]
    fn a_repository_lists_its_adapters_by_number_and_names_what_is_none() {
        let dir = folder(&[
            "adapters/README.md",
            "adapters/02_tone.safetensors",
            "adapters/02_tone.config.json",
            "adapters/01_sql.safetensors",
            "adapters/01_sql.config.json",
            "adapters/10_peft/adapter_model.safetensors",
            "adapters/10_peft/adapter_config.json",
            "adapters/11_half.safetensors",
            "adapters/12_lone.config.json",
            "adapters/13_twice.safetensors",
            "adapters/13_twice.config.json",
            "adapters/14_twice.safetensors",
            "adapters/14_twice.config.json",
            "adapters/plain.safetensors",
        ]);
        let listed = AdapterFiles::list(dir.path()).unwrap();
        let listed: Vec<_> = listed
            .iter()
            .map(|adapter| {
                let files = adapter.files.as_ref();
                (
                    adapter.name.as_str(),
                    files.map_or_else(AdapterError::reason, |_| "ok"),
                )
            })
            .collect();
        assert_eq!(
            listed,
            [
                ("sql", "ok"),
                ("tone", "ok"),
                ("peft", "ok"),
                ("half", "MissingFile"),
                ("lone", "MissingFile"),
                ("twice", "NotAnAdapter"),
                ("twice", "NotAnAdapter"),
                ("plain", "NotAnAdapter"),
            ]
        );
        let files = AdapterFiles::numbered(dir.path(), 1, "sql");
        assert_eq!(AdapterFiles::find(&files.tensors).unwrap(), files);
    }

    #[test]
    fn a_repository_without_the_folder_has_no_adapters() {
        assert!(AdapterFiles::list(folder(&[]).path()).unwrap().is_empty());
    }
}
