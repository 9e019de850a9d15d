//! The names that workers' certificates are for.
//!
//! Workers are called at the addresses of their pods, and pods come and go: a certificate names the
//! Model instead, with its namespace, and whoever calls asks for that name. So an address that now
//! belongs to another pod, of whichever Model, shows no certificate that is taken.
//!
//! | Name | Who asks for it |
//! |---|---|
//! | `MODEL.NAMESPACE.workers.hyprstream.internal` | the gateway |
//! | `ip-10-0-0-1.MODEL.NAMESPACE.workers.hyprstream.internal` | the operator, whose HTTP client keeps connections by name and must not take one pod for another |
//! | `MODEL.NAMESPACE.svc` | clients of the Model's Service |
//! | `workers.hyprstream.internal` | who scrapes all workers and can ask for one name only |
//!
//! `internal` is a domain that is never given to anybody:
//! <https://www.icann.org/en/board-activities-and-meetings/materials/approved-resolutions-special-meeting-of-the-icann-board-29-07-2024-en>.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The name that every worker's certificate is for too, and under which all others lie but that of
/// the Service.
pub const ZONE: &str = "workers.hyprstream.internal";
/// Before an address in a name.
const ADDRESS: &str = "ip-";

/// The name that a Model's workers are asked for. A Model's name and a namespace are labels of DNS,
/// so that no two Models have the same.
pub fn name(namespace: &str, model: &str) -> String {
    format!("{model}.{namespace}.{ZONE}")
}

/// The name of one of its workers, which its address can be read out of.
pub fn pod_name(namespace: &str, model: &str, address: IpAddr) -> String {
    let address = address.to_string().replace(['.', ':'], "-");
    format!("{ADDRESS}{address}.{}", name(namespace, model))
}

/// The address in a [`pod_name`]; `None` in any other.
pub fn pod_address(name: &str) -> Option<IpAddr> {
    let label = name.split('.').next()?.strip_prefix(ADDRESS)?;
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>();
    let v6 = || label.replace('-', ":").parse::<Ipv6Addr>();
    v4.map(IpAddr::V4).or_else(|_| v6().map(IpAddr::V6)).ok()
}

/// All names that the certificate of a Model's workers is for.
pub fn names(namespace: &str, model: &str) -> Vec<String> {
    let name = name(namespace, model);
    vec![
        format!("*.{name}"),
        name,
        format!("{model}.{namespace}.svc"),
        ZONE.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_found_by_its_name() {
        for address in ["10.0.0.1", "fd00::1", "2001:db8:0:1:2:3:4:5"] {
            let address: IpAddr = address.parse().unwrap();
            let name = pod_name("team", "qwen", address);
            assert_eq!(pod_address(&name), Some(address), "{name}");
            let (pod, model) = name.split_once('.').unwrap();
            assert!(pod.starts_with("ip-") && !pod.ends_with('-'), "{name}");
            // So that the wildcard of the certificate covers it.
            assert_eq!(model, super::name("team", "qwen"));
        }
        assert_eq!(pod_address("qwen.team.svc"), None);
        assert_eq!(pod_address("ip-x.qwen.team.svc"), None);
    }

    #[test]
    fn the_longest_names_fit_into_dns() {
        let longest = IpAddr::V6(Ipv6Addr::from([0xff; 16]));
        let name = pod_name(&"n".repeat(63), &"m".repeat(63), longest);
        assert!(name.len() <= 253 && name.split('.').all(|label| label.len() <= 63));
    }
}
