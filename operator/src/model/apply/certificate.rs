//! The certificate that a Model's workers show.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use crate::{
    apply::{ApplyError, check_owner, request_error},
    model::{Context, build::tls, validate::Plan},
    policy::WorkerTls,
};

impl Context {
    /// Sees to it that workers have a certificate, made anew when it is due. They read it again by
    /// themselves. The Service of the Model's name is the Model's own by now, and so is that name
    /// in the certificate.
    ///
    /// # Errors
    /// See [`ApplyError`]. Without anybody who may sign what is there stays, and what is not is waited
    /// for.
    pub(super) async fn certify(&self, plan: &Plan) -> Result<(), ApplyError> {
        if plan.worker_tls == WorkerTls::Off {
            return Ok(());
        }
        let owner = plan.owner();
        let name = tls::secret_name(plan);
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &plan.namespace);
        let found = api
            .get_opt(&name)
            .await
            .map_err(|error| request_error("get", "Secret", &name, error))?;
        if let Some(found) = &found {
            check_owner(&owner, found)?;
        }
        let signer = self
            .signer
            .as_ref()
            .and_then(|signer| signer.borrow().clone());
        let Some(signer) = signer else {
            return found.map(drop).ok_or(ApplyError::NobodySigns);
        };
        let now = SystemTime::now();
        let due = found.map_or(Err("there is none"), |found| {
            tls::due(plan, &found, &signer, now)
        });
        let Err(why) = due else {
            return Ok(());
        };
        let issued = signer
            .issue(&tls::names(plan), now, tls::LIFE)
            .map_err(|source| ApplyError::Certificate {
                name: name.clone(),
                source,
            })?;
        let secret = tls::secret(plan, &issued, &signer);
        self.applier.ensure(&owner, &secret, None).await?;
        tracing::info!(name, why, "made a certificate for workers");
        Ok(())
    }
}
