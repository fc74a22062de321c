//! What was dropped, by name: told at the end, never packet by packet.

use std::collections::BTreeMap;
use std::fmt;

#[derive(Default)]
pub(crate) struct Drops(BTreeMap<&'static str, u64>);

impl Drops {
    pub(crate) fn count(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    pub(crate) fn merge(&mut self, other: &Drops) {
        for (name, count) in &other.0 {
            *self.0.entry(name).or_default() += count;
        }
    }

    #[cfg(test)]
    pub(crate) fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

impl fmt::Display for Drops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        for (number, (name, count)) in self.0.iter().enumerate() {
            write!(f, "{}{name} {count}", if number == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
