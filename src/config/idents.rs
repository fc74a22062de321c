//! Ranges of idents, as the configuration names them.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Idents from one to another, `1000-1999`, or a single one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdentRange(pub RangeInclusive<u16>);

impl FromStr for IdentRange {
    type Err = String;

    fn from_str(text: &str) -> Result<IdentRange, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse::<u16>();
        match (number(first), number(last)) {
            (Ok(first), Ok(last)) if first <= last => Ok(IdentRange(first..=last)),
            (Ok(_), Ok(_)) => Err(format!("{text:?} begins after its end")),
            _ => Err(format!("{text:?} is not a range of idents such as 1000-1999")),
        }
    }
}

impl fmt::Display for IdentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_reads_what_it_writes_and_what_is_none_says_why() {
        for text in ["0-65535", "7", "1000-1999"] {
            assert_eq!(text.parse::<IdentRange>().unwrap().to_string(), text);
        }
        for (text, why) in [
            ("9-8", "\"9-8\" begins after its end"),
            ("0-65536", "\"0-65536\" is not a range of idents such as 1000-1999"),
            ("-1", "\"-1\" is not a range of idents such as 1000-1999"),
            ("", "\"\" is not a range of idents such as 1000-1999"),
        ] {
            assert_eq!(text.parse::<IdentRange>().unwrap_err(), why);
        }
    }
}
