//! Tags.

use git2::{ErrorCode, ObjectType, Signature};

use super::{RefError, check_name};
use crate::{CommitId, RepositoryHandle, commit::Metadata, handle::Signer};

const TAG: &str = "tag";

/// A tag of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Its name, without `refs/tags/`.
    pub name: String,
    /// The commit that it names, peeled; `None` if it names something else.
    pub commit: Option<CommitId>,
    /// What an annotated tag says; `None` for a light one.
    pub annotation: Option<Annotation>,
}

/// What an annotated tag says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// Who made it; very old tags do not say.
    pub tagger: Option<Signer>,
    /// The message. What is not UTF-8 is replaced.
    pub message: String,
}

impl RepositoryHandle {
    /// Makes a tag that names `commit`: a light one, or one with an annotation by
    /// [`Metadata::author`]. Nothing but author, its time and message is taken of that.
    ///
    /// # Errors
    /// There is one already: tags are not moved. A signature is asked for, which tags do not get.
    pub fn create_tag(
        &self,
        name: &str,
        commit: &CommitId,
        annotation: Option<&Metadata>,
    ) -> Result<(), RefError> {
        let full = format!("refs/tags/{name}");
        check_name(name, &full)?;
        let invalid = |why: String| RefError::InvalidTag {
            name: name.to_owned(),
            why,
        };
        let repo = self.repo().map_err(RefError::Repo)?;
        let commit = self.find(&repo, commit).map_err(RefError::History)?;
        self.refuse_blocked(&repo, TAG, name, &full)?;
        let fail = |e| self.ref_error(TAG, name, e);
        let Some(annotation) = annotation else {
            return repo
                .reference(&full, commit.id(), false, "tag")
                .map(drop)
                .map_err(fail);
        };
        if annotation.signing_key.is_some() || annotation.committer.is_some() {
            return Err(invalid(
                "tags have one author and are not signed".to_owned(),
            ));
        }
        let tagger: Signature<'_> = annotation
            .author_signature()
            .map_err(|e| invalid(e.to_string()))?;
        let message = annotation
            .message
            .to_text()
            .map_err(|e| invalid(e.to_string()))?;
        repo.tag(name, commit.as_object(), &tagger, &message, false)
            .map(drop)
            .map_err(fail)
    }

    /// All tags by name.
    pub fn tags(&self) -> Result<Vec<Tag>, RefError> {
        let repo = self.repo().map_err(RefError::Repo)?;
        let fail = |e| self.ref_error(TAG, "", e);
        let mut found = Vec::new();
        for item in repo.references_glob("refs/tags/*").map_err(fail)? {
            let item = item.map_err(fail)?;
            let full = String::from_utf8_lossy(item.name_bytes()).into_owned();
            let name = full.strip_prefix("refs/tags/").unwrap_or(&full).to_owned();
            let fail = |e| self.ref_error(TAG, &name, e);
            let commit = match item.peel_to_commit() {
                Ok(commit) => Some(CommitId::from_oid(commit.id())),
                Err(error) if matches!(error.code(), ErrorCode::Peel | ErrorCode::InvalidSpec) => {
                    None
                }
                Err(error) => return Err(fail(error)),
            };
            let annotation = match item.peel(ObjectType::Tag) {
                Ok(object) => object.as_tag().map(|tag| Annotation {
                    tagger: tag.tagger().as_ref().map(Signer::of),
                    message: String::from_utf8_lossy(tag.message_bytes().unwrap_or_default())
                        .into_owned(),
                }),
                Err(error) if matches!(error.code(), ErrorCode::Peel | ErrorCode::InvalidSpec) => {
                    None
                }
                Err(error) => return Err(fail(error)),
            };
            found.push(Tag {
                name,
                commit,
                annotation,
            });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Deletes a tag; what it named stays.
    pub fn delete_tag(&self, name: &str) -> Result<(), RefError> {
        let repo = self.repo().map_err(RefError::Repo)?;
        repo.find_reference(&format!("refs/tags/{name}"))
            .and_then(|mut tag| tag.delete())
            .map_err(|e| self.ref_error(TAG, name, e))
    }
}
