//! What each client may do, and the exceptions.

use std::fmt;
use std::str::FromStr;

use crate::policy::{Limits, ORDINARY, Override, Prefix};
use crate::table::clients::Allowance;

/// Table `limits`: what each client may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientLimits {
    /// Whether there are limits at all.
    pub enforce: bool,
    /// For every client that no exception names.
    pub everybody: Limits,
    /// For clients of some prefixes; of overlapping ones the longest decides.
    pub overrides: Vec<Exception>,
}

impl Default for ClientLimits {
    fn default() -> ClientLimits {
        ClientLimits { enforce: true, everybody: ORDINARY, overrides: Vec::new() }
    }
}

impl ClientLimits {
    /// What the proxy is to hold clients to: everybody, and the exceptions.
    pub fn allowances(&self) -> (Allowance, Vec<Override>) {
        if !self.enforce {
            return (Allowance::UNLIMITED, Vec::new());
        }
        let overrides = self.overrides.iter().map(|exception| exception.apply(self.everybody)).collect();
        (self.everybody.into(), overrides)
    }
}

/// A prefix whose clients have other limits: `10.66.0.9/32 packets_per_second=5000 mappings=0`. What it does not name is
/// as for everybody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Which clients.
    pub prefix: Prefix,
    changes: Vec<(&'static str, u32)>,
}

/// The limits by the names they have in the file.
pub(super) const FIELDS: [(&str, Field); 7] = [
    ("packets_per_second", |limits| &mut limits.packets_per_second),
    ("packets_burst", |limits| &mut limits.packets_burst),
    ("bytes_per_second", |limits| &mut limits.bytes_per_second),
    ("bytes_burst", |limits| &mut limits.bytes_burst),
    ("mappings_per_second", |limits| &mut limits.mappings_per_second),
    ("mappings_burst", |limits| &mut limits.mappings_burst),
    ("mappings", |limits| &mut limits.mappings),
];

/// One limit's place.
pub(super) type Field = fn(&mut Limits) -> &mut u32;

impl Exception {
    fn apply(&self, everybody: Limits) -> Override {
        Override { prefix: self.prefix, allowance: self.limits(everybody).into() }
    }

    /// The limits of its clients.
    pub(super) fn limits(&self, everybody: Limits) -> Limits {
        let mut limits = everybody;
        for (changed, value) in &self.changes {
            for (name, field) in FIELDS {
                if name == *changed {
                    *field(&mut limits) = *value;
                }
            }
        }
        limits
    }
}

impl FromStr for Exception {
    type Err = String;

    fn from_str(text: &str) -> Result<Exception, String> {
        let mut words = text.split_whitespace();
        let prefix = words.next().unwrap_or_default().parse().map_err(|error| format!("{error}"))?;
        let changes = words
            .map(|word| {
                let (name, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is not NAME=NUMBER"))?;
                let known = FIELDS.iter().find(|(field, _)| *field == name);
                let (field, _) = known.ok_or_else(|| {
                    let names: Vec<&str> = FIELDS.iter().map(|(field, _)| *field).collect();
                    format!("there is no limit {name:?}; there are {}", names.join(", "))
                })?;
                let value = value.parse().map_err(|_| format!("{value:?} is no such number"))?;
                Ok((*field, value))
            })
            .collect::<Result<Vec<_>, String>>()?;
        if changes.is_empty() {
            return Err(format!("{prefix} changes nothing"));
        }
        Ok(Exception { prefix, changes })
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.prefix)?;
        self.changes.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_changes_what_it_names_and_nothing_else() {
        let exception: Exception = "10.66.0.9/32 packets_per_second=0 mappings=4096".parse().unwrap();
        assert_eq!(exception.to_string(), "10.66.0.9/32 packets_per_second=0 mappings=4096");
        let limits = ClientLimits { overrides: vec![exception], ..ClientLimits::default() };
        let (everybody, overrides) = limits.allowances();
        assert_eq!(everybody, ORDINARY.into());
        let expected = Limits { packets_per_second: 0, mappings: 4096, ..ORDINARY };
        assert_eq!(overrides, [Override { prefix: "10.66.0.9/32".parse().unwrap(), allowance: expected.into() }]);
        let off = ClientLimits { enforce: false, ..limits };
        assert_eq!(off.allowances(), (Allowance::UNLIMITED, Vec::new()));
    }

    #[test]
    fn what_is_no_exception_says_why() {
        for (text, why) in [
            ("", "\"\" is not an IPv4 prefix such as 10.66.0.0/24"),
            ("10.66.0.9/32", "10.66.0.9/32 changes nothing"),
            ("10.66.0.9/32 mappings", "\"mappings\" is not NAME=NUMBER"),
            ("10.66.0.9/32 mappings=-1", "\"-1\" is no such number"),
        ] {
            assert_eq!(text.parse::<Exception>().unwrap_err(), why);
        }
        assert!(
            "10.66.0.9/32 packets=1".parse::<Exception>().unwrap_err().starts_with("there is no limit \"packets\"")
        );
    }
}
