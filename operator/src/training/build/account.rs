use hyprstream_contract::repositories::rbac;
use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
};

use super::{Plan, account_name, metadata};

/// As whom a pod pushes, and what that opens: one branch of one repository.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// The account.
    pub account: ServiceAccount,
    /// Its rights.
    pub role: Role,
    /// Gives them to it.
    pub binding: RoleBinding,
}

impl Account {
    /// That of a job.
    pub(super) fn of(plan: &Plan) -> Self {
        let name = account_name(plan);
        let rule = |resource: &str, name: String, verb: &str| PolicyRule {
            api_groups: Some(vec![rbac::GROUP.to_owned()]),
            resources: Some(vec![resource.to_owned()]),
            resource_names: Some(vec![name]),
            verbs: vec![verb.to_owned()],
            ..PolicyRule::default()
        };
        Self {
            account: ServiceAccount {
                metadata: metadata(plan, &name),
                automount_service_account_token: Some(false),
                ..ServiceAccount::default()
            },
            role: Role {
                metadata: metadata(plan, &name),
                rules: Some(vec![
                    rule(rbac::RESOURCE, plan.repository.clone(), "get"),
                    rule(rbac::TRAIN, plan.repository.clone(), "push"),
                ]),
            },
            binding: RoleBinding {
                metadata: metadata(plan, &name),
                role_ref: RoleRef {
                    api_group: Some("rbac.authorization.k8s.io".to_owned()),
                    kind: "Role".to_owned(),
                    name: name.clone(),
                },
                subjects: Some(vec![Subject {
                    kind: "ServiceAccount".to_owned(),
                    name,
                    namespace: Some(plan.namespace.clone()),
                    ..Subject::default()
                }]),
            },
        }
    }
}
