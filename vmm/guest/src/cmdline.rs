//! The command line from the boot page: addresses and the port. Read once at power-on; unknown words are passed over, as
//! another release may know them.

use core::fmt;
use core::net::Ipv4Addr;

/// How the guest is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cmdline {
    /// `ip=`: the guest's address.
    pub address: Ipv4Addr,
    /// How many bits of it name the network.
    pub prefix: u8,
    /// `gw=`: where everything outside the network goes.
    pub gateway: Option<Ipv4Addr>,
    /// `port=`: where the server listens.
    pub port: u16,
}

impl Default for Cmdline {
    fn default() -> Self {
        Cmdline {
            address: Ipv4Addr::new(10, 77, 0, 2),
            prefix: 24,
            gateway: None,
            port: 6379,
        }
    }
}

/// A word that is known but makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadWord<'a>(pub &'a str);

impl fmt::Display for BadWord<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "The command line's word {} makes no sense", self.0)
    }
}

impl Cmdline {
    /// Reads the words; what is not said keeps its usual value.
    pub fn parse(text: &str) -> Result<Self, BadWord<'_>> {
        let mut line = Cmdline::default();
        for word in text.split_ascii_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            let known = match name {
                "ip" => line.set_address(value),
                "gw" => value.parse().ok().map(|gateway| line.gateway = Some(gateway)),
                "port" => value
                    .parse()
                    .ok()
                    .filter(|&port| port != 0)
                    .map(|port| line.port = port),
                _ => Some(()),
            };
            known.ok_or(BadWord(word))?;
        }
        Ok(line)
    }

    fn set_address(&mut self, value: &str) -> Option<()> {
        let (address, prefix) = value.split_once('/').unwrap_or((value, "24"));
        let address: Ipv4Addr = address.parse().ok()?;
        let is_unicast = !(address.is_multicast() || address.is_broadcast() || address.is_unspecified());
        self.prefix = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix))?;
        self.address = is_unicast.then_some(address)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_taken() {
        let line = Cmdline::parse("quiet ip=10.1.2.3/16 gw=10.1.0.1 port=7000 x=y").unwrap();
        let gateway = Some(Ipv4Addr::new(10, 1, 0, 1));
        assert_eq!(
            line,
            Cmdline {
                address: Ipv4Addr::new(10, 1, 2, 3),
                prefix: 16,
                gateway,
                port: 7000
            }
        );
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(Cmdline::parse("port=0"), Err(BadWord("port=0")));
        assert_eq!(Cmdline::parse("ip=10.0.0.1/99"), Err(BadWord("ip=10.0.0.1/99")));
        assert_eq!(
            Cmdline::parse("ip=255.255.255.255"),
            Err(BadWord("ip=255.255.255.255"))
        );
    }
}
