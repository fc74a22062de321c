//! What is logged and how lines look. The program brings what writes them; here is what may be asked for.

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// For people; for the journal where that reads.
    #[default]
    Human,
    /// A JSON object a line.
    Json,
}

/// The words for how log lines look.
pub const LOG_FORMATS: &[(&str, LogFormat)] = &[("human", LogFormat::Human), ("json", LogFormat::Json)];

impl LogFormat {
    /// Its word.
    pub fn word(self) -> &'static str {
        LOG_FORMATS.iter().find(|(_, format)| *format == self).map_or("", |(word, _)| word)
    }
}

/// The levels, from nothing to everything.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A level, or a list of levels of which some hold for one module only. What it says is less than what `--log` takes (spans,
/// fields), so that nothing passes here that is refused by whoever writes the log.
pub(super) fn check_filter(filter: &str) -> Result<(), String> {
    for part in filter.split(',') {
        let (module, level) = part.rsplit_once('=').map_or((None, part), |(module, level)| (Some(module), level));
        if !LEVELS.contains(&level) {
            return Err(format!("{level:?} is no level"));
        }
        let is_path = |module: &str| {
            let names = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            module.split("::").all(names)
        };
        if let Some(module) = module.filter(|module| !is_path(module)) {
            return Err(format!("{module:?} is no module"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_a_list_of_modules_levels() {
        for good in ["off", "error", "trace", "info,echogate::host=debug", "echogate=warn,echogate::host_x2=off"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "\"\" is no level"),
            ("loud", "\"loud\" is no level"),
            ("info,", "\"\" is no level"),
            ("info, warn", "\" warn\" is no level"),
            ("echogate=", "\"\" is no level"),
            ("=info", "\"\" is no module"),
            ("echogate:::host=info", "\"echogate:::host\" is no module"),
            ("echogate[span]=info", "\"echogate[span]\" is no module"),
        ] {
            assert_eq!(check_filter(bad), Err(why.to_owned()), "{bad}");
        }
    }

    #[test]
    fn each_format_has_one_word() {
        assert_eq!([LogFormat::Human, LogFormat::Json].map(LogFormat::word), ["human", "json"]);
    }
}
