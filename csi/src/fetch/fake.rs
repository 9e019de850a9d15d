//! For tests: commits that have no LFS objects.

use hyprstream_contract::VolumeAttributes;

use super::{Checkout, FetchError, Missing, Plan, Progress, Source};
use crate::layout::CheckoutKey;

/// A [`Source`] of commits without LFS objects: of them nothing is to be planned, and nothing lacks.
pub(crate) trait WithoutObjects: Send + Sync + 'static {
    /// See [`Source::open`].
    fn open(&self, key: &CheckoutKey) -> Result<Option<Checkout>, FetchError>;

    /// See [`Source::bring`].
    fn bring(&self, _: &VolumeAttributes, _: &Progress) -> Result<(), FetchError> {
        Ok(())
    }

    /// See [`Source::build`].
    fn build(&self, key: &CheckoutKey, volume: &VolumeAttributes) -> Result<Checkout, FetchError>;
}

impl<T: WithoutObjects> Source for T {
    fn open(&self, key: &CheckoutKey) -> Result<Option<Checkout>, FetchError> {
        WithoutObjects::open(self, key)
    }

    fn plan(
        &self,
        _: &CheckoutKey,
        _: &VolumeAttributes,
        _: &Progress,
    ) -> Result<Plan, FetchError> {
        Ok(Plan::default())
    }

    fn missing(&self, _: &Plan) -> Result<Missing, FetchError> {
        Ok(Missing::default())
    }

    fn bring(
        &self,
        volume: &VolumeAttributes,
        _: &Plan,
        progress: &Progress,
    ) -> Result<(), FetchError> {
        WithoutObjects::bring(self, volume, progress)
    }

    fn build(&self, key: &CheckoutKey, volume: &VolumeAttributes) -> Result<Checkout, FetchError> {
        WithoutObjects::build(self, key, volume)
    }
}
