//! Which machines the registry fetches from.
//!
//! The author of a Model names the address, and the registry stands inside the cluster: without a
//! fence it would knock at every door of the cluster and of the machines around it, and say who
//! answered. So only addresses of the public internet are called, and others where whoever runs
//! the registry allows them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs as _},
    str::FromStr,
};

/// An upstream that is allowed although its address is not public.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedUpstream {
    /// Every address of a network.
    Network {
        /// First address.
        base: IpAddr,
        /// Bits that addresses share with it.
        bits: u8,
    },
    /// A host name, in lower case.
    Host(String),
    /// Every host name below a domain, in lower case without the dot in front.
    Domain(String),
}

/// Not an [`AllowedUpstream`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} allows no upstream: write a network such as 10.1.0.0/16, an address, a host name such \
     as git.example.org, or *.example.org"
)]
pub struct InvalidUpstream(String);

/// The fence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upstreams(Vec<AllowedUpstream>);

impl Upstreams {
    pub(crate) fn new(allowed: Vec<AllowedUpstream>) -> Self {
        Self(allowed)
    }

    /// Whether `host` may be called at `address`, which is one of its own.
    ///
    /// A host that is allowed by name may lie in a private network, but not among the link-local
    /// addresses, where clouds keep the keys of machines: those are allowed by network only.
    pub(crate) fn allows(&self, host: &str, address: IpAddr) -> bool {
        let address = plain(address);
        is_public(address)
            || self.0.iter().any(|allowed| match allowed {
                AllowedUpstream::Network { base, bits } => is_within(address, *base, *bits),
                AllowedUpstream::Host(name) => same_host(host, name) && !is_link_local(address),
                AllowedUpstream::Domain(domain) => {
                    is_below(host, domain) && !is_link_local(address)
                }
            })
    }

    /// Whether `host` has an address, and all of its addresses are allowed. Blocks for the name
    /// resolution.
    ///
    /// It spares a connection to where nobody may go; what is connected to is looked at again.
    pub(crate) fn allows_host(&self, host: &str, port: u16) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let Ok(addresses) = (host, port).to_socket_addrs() else {
            return false;
        };
        let addresses: Vec<_> = addresses.collect();
        !addresses.is_empty()
            && addresses
                .iter()
                .all(|address| self.allows(host, address.ip()))
    }
}

impl FromStr for AllowedUpstream {
    type Err = InvalidUpstream;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidUpstream(text.chars().take(80).collect());
        let text = text.trim();
        if let Some((base, bits)) = text.split_once('/') {
            let base: IpAddr = base.parse().map_err(|_| invalid())?;
            let bits: u8 = bits.parse().map_err(|_| invalid())?;
            let most = if base.is_ipv4() { 32 } else { 128 };
            return (bits <= most)
                .then_some(Self::Network { base, bits })
                .ok_or_else(invalid);
        }
        if let Ok(base) = text.parse::<IpAddr>() {
            let bits = if base.is_ipv4() { 32 } else { 128 };
            return Ok(Self::Network { base, bits });
        }
        let name = text.to_ascii_lowercase();
        let (name, domain) = match name.strip_prefix("*.") {
            Some(domain) => (domain.to_owned(), true),
            None => (name, false),
        };
        let label = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        if !name.split('.').all(label) {
            return Err(invalid());
        }
        Ok(if domain {
            Self::Domain(name)
        } else {
            Self::Host(name)
        })
    }
}

impl fmt::Display for AllowedUpstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network { base, bits } => write!(f, "{base}/{bits}"),
            Self::Host(name) => f.write_str(name),
            Self::Domain(name) => write!(f, "*.{name}"),
        }
    }
}

fn same_host(host: &str, name: &str) -> bool {
    host.trim_end_matches('.').eq_ignore_ascii_case(name)
}

fn is_below(host: &str, domain: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host.strip_suffix(domain)
        .is_some_and(|rest| rest.ends_with('.'))
}

fn is_within(address: IpAddr, base: IpAddr, bits: u8) -> bool {
    match (address, base) {
        (IpAddr::V4(address), IpAddr::V4(base)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            address.to_bits() & mask == base.to_bits() & mask
        }
        (IpAddr::V6(address), IpAddr::V6(base)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            address.to_bits() & mask == base.to_bits() & mask
        }
        _ => false,
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, or translated by NAT64.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let inner = |high: u16, low: u16| {
        IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            inner(high, low)
        }
        _ => address,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// Whether IANA gives the address to the public internet. The chart's NetworkPolicy has the same
/// list.
/// <https://www.iana.org/assignments/iana-ipv4-special-registry>
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = a == 0
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || a == 100 && b & 0xc0 == 64
        || a == 192 && b == 0 && c == 0
        || a == 198 && b & 0xfe == 18
        || a >= 224;
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    // All that is given out lies in 2000::/3; of it, 2001::/23, 2001:db8::/32 and 2002::/16 are
    // special. The last is 6to4, which leads to whatever IPv4 address stands in it.
    let [a, b, ..] = address.segments();
    a & 0xe000 == 0x2000 && !(a == 0x2001 && (b < 0x200 || b == 0xdb8)) && a != 0x2002
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(allowed: &[&str], host: &str, address: &str, expected: bool) {
        let allowed = allowed.iter().map(|text| text.parse().unwrap()).collect();
        let found = Upstreams::new(allowed).allows(host, address.parse().unwrap());
        assert_eq!(found, expected, "{host} at {address}");
    }

    #[test]
    fn only_the_public_internet_is_called_unasked() {
        for address in ["1.1.1.1", "140.82.121.4", "2606:4700::1111"] {
            check(&[], "h", address, true);
        }
        for address in [
            "127.0.0.1",
            "10.96.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "2002:101:101::1",
            "2001:db8::1",
        ] {
            check(&[], "h", address, false);
        }
    }

    #[test]
    fn a_network_or_a_name_opens_what_it_names_and_nothing_else() {
        check(&["10.1.0.0/16"], "h", "10.1.2.3", true);
        check(&["10.1.0.0/16"], "h", "10.2.2.3", false);
        check(&["10.1.2.3"], "h", "10.1.2.3", true);
        check(&["10.1.2.3"], "h", "10.1.2.4", false);
        check(&["fd00::/8"], "h", "fd12::1", true);
        check(&["0.0.0.0/0"], "h", "127.0.0.1", true);
        check(&["git.corp"], "GIT.corp.", "10.1.2.3", true);
        check(&["git.corp"], "x.git.corp", "10.1.2.3", false);
        check(&["*.corp"], "git.corp", "10.1.2.3", true);
        check(&["*.corp"], "corp", "10.1.2.3", false);
        check(&["*.corp"], "evilcorp", "10.1.2.3", false);
        // A name alone never opens the keys of the machine.
        check(&["git.corp"], "git.corp", "169.254.169.254", false);
        check(&["169.254.0.0/16"], "h", "169.254.169.254", true);
    }

    /// Networks and what of each is left out, as the chart's NetworkPolicy lets the registry reach.
    fn policy() -> Vec<(AllowedUpstream, Vec<AllowedUpstream>)> {
        let text = include_str!("../../charts/hyprstream/templates/networkpolicy.yaml");
        let (_, text) = text.split_once("# Upstreams: the internet").unwrap();
        let (text, _) = text.split_once(".Values.registry.allowUpstreams").unwrap();
        let networks = |text: &str| -> Vec<AllowedUpstream> {
            let words = text.split([' ', ',', '[', ']', '"', '\n']);
            let networks = words.filter(|word| word.contains('/'));
            networks.map(|word| word.parse().unwrap()).collect()
        };
        let blocks = text.split("cidr:").skip(1).map(|block| {
            let (within, except) = block.split_once("except:").unwrap();
            (networks(within).remove(0), networks(except))
        });
        blocks.collect()
    }

    /// What the policy does with an address; a mapped one is never on the wire.
    fn policy_allows(policy: &[(AllowedUpstream, Vec<AllowedUpstream>)], address: IpAddr) -> bool {
        let within = |network: &AllowedUpstream| match network {
            AllowedUpstream::Network { base, bits } => is_within(address, *base, *bits),
            _ => false,
        };
        policy
            .iter()
            .any(|(network, except)| within(network) && !except.iter().any(within))
    }

    #[test]
    fn the_chart_lets_the_registry_reach_what_it_calls_unasked_and_nothing_else() {
        let policy = policy();
        assert_eq!(policy.len(), 3, "{policy:?}");
        let fence = Upstreams::default();
        let check = |address: IpAddr| {
            let allowed = policy_allows(&policy, address);
            assert_eq!(allowed, fence.allows("h", address), "{address}");
        };
        // No special network of IPv4 is smaller than 256 addresses.
        for high in 0..1_u32 << 24 {
            for low in [0, 255] {
                let inner = high << 8 | low;
                check(Ipv4Addr::from_bits(inner).into());
                check(Ipv6Addr::from_bits(0x0064_ff9b << 96 | u128::from(inner)).into());
            }
        }
        for first in 0..=u16::MAX {
            for rest in [0, 1, 0x01ff, 0x0200, 0xff9b, u16::MAX] {
                check(Ipv6Addr::new(first, rest, 0, 0, 0, 0, 0, 1).into());
                check(Ipv6Addr::new(first, rest, 1, 0, 0, 0, 0x0101, 0x0101).into());
            }
            check(Ipv6Addr::new(0x2001, first, 0, 0, 0, 0, 0, 1).into());
        }
    }

    #[test]
    fn what_names_no_upstream_is_refused() {
        for text in [
            "",
            "10.0.0.0/33",
            "http://h",
            "a..b",
            "*",
            "*.",
            "h:80",
            "a b",
        ] {
            assert!(text.parse::<AllowedUpstream>().is_err(), "{text:?}");
        }
        for text in ["10.0.0.0/8", "git.corp", "*.corp", "::1/128"] {
            let parsed: AllowedUpstream = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
        }
    }
}
