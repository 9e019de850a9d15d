//! What one may do with a repository.

/// What one may do with a repository, as RBAC writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Read it.
    Get,
    /// Make branches and tags that are not protected, and move branches forward.
    Push,
    /// Rewrite and delete refs.
    Force,
    /// Do all that with protected refs, and change what is protected.
    Admin,
    /// Remove it.
    Delete,
    /// Make it by a first push or a fork.
    Create,
}

impl Verb {
    /// The verb's name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Push => "push",
            Self::Force => "force",
            Self::Admin => "admin",
            Self::Delete => "delete",
            Self::Create => "create",
        }
    }

    /// The verbs that include it, itself first.
    pub(super) fn including(self) -> &'static [Self] {
        match self {
            Self::Push => &[Self::Push, Self::Force, Self::Admin],
            Self::Force => &[Self::Force, Self::Admin],
            Self::Get => &[Self::Get],
            Self::Admin => &[Self::Admin],
            Self::Delete => &[Self::Delete],
            Self::Create => &[Self::Create],
        }
    }
}
