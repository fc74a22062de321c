//! Reading the sources: the TOML file and the flags, both by the list of keys.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::key::{BACKENDS, DIVERTS, FALL_THROUGHS, Key, Kind, NOWHERE, SWITCH};
use super::keys::KEYS;
use super::log::LOG_FORMATS;
use super::{Config, ControlSocket};
use crate::error::SetupError;
use crate::policy::PrefixError;

/// A configuration is a few lines; what is longer (a device, a disk image) is not one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Similar enough to be meant, by Jaro-Winkler; the value that separates slips of the finger from other words.
const SIMILARITY_MIN: f64 = 0.8;

/// Who set which key: errors that involve several keys name the line or the flag of one.
#[derive(Default)]
pub(super) struct Origins(BTreeMap<String, Place>);

/// Where a value stands.
#[derive(Clone)]
struct Place {
    /// `echogate.toml:4: `, or nothing for a flag.
    position: String,
    /// `inside.clients` or `--clients`.
    name: String,
}

/// One value as a source gives it.
enum Scalar<'a> {
    /// A string of the file.
    Text(&'a str),
    /// A number of the file, as written and as read.
    Integer(String, Option<i64>),
    /// A flag's value: text or number, as the key would have it.
    Word(&'a str),
    /// Something of the file that no key takes: what it is.
    Other(&'static str),
}

/// Why a value will not do: what is wrong, without its place.
type Refusal = String;

/// A configuration as it was given: the file's text and the flags. Another process makes the same of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Source {
    /// The file's text; empty without a file.
    pub text: String,
    /// What errors call the file.
    pub path: String,
    /// Keys by their full names, and a flag's value for each.
    pub flags: Vec<(String, String)>,
}

impl Source {
    /// Reads the file, if one is given.
    pub fn read(file: Option<&Path>, flags: &[(&'static Key, String)]) -> Result<Source, SetupError> {
        let flags = flags.iter().map(|(key, value)| (key.full_name(), value.clone())).collect();
        match file {
            Some(path) => Ok(Source { text: read(path)?, path: path.display().to_string(), flags }),
            None => Ok(Source { flags, ..Source::default() }),
        }
    }

    /// The same with the file as it is now.
    pub fn read_again(&self) -> Result<Source, SetupError> {
        if self.path.is_empty() {
            return Err(SetupError::new("this gateway was started without a file: there is nothing to read again")
                .remedy("start it with --config FILE, or change it by starting it again (run --takeover)"));
        }
        Ok(Source { text: read(Path::new(&self.path))?, ..self.clone() })
    }

    /// The configuration that this is.
    pub fn config(&self) -> Result<Config, SetupError> {
        let named = |(name, value): &(String, String)| {
            let key = KEYS.iter().find(|key| key.full_name() == *name);
            let key = key.ok_or_else(|| SetupError::new(format!("there is no key {name}")))?;
            Ok((key, value.clone()))
        };
        let flags = self.flags.iter().map(named).collect::<Result<Vec<_>, SetupError>>()?;
        Config::parse(&self.text, &self.path, &flags)
    }
}

impl Config {
    /// Reads `file`, if one is given, then `flags` (a key with its value, in the order given; a list's flags add up),
    /// fills in the defaults and validates the result.
    pub fn load(file: Option<&Path>, flags: &[(&'static Key, String)]) -> Result<Config, SetupError> {
        match file {
            Some(path) => Config::parse(&read(path)?, &path.display().to_string(), flags),
            None => Config::parse("", "", flags),
        }
    }

    /// As [`Config::load`], with the file's text at hand; `path` is what errors call it.
    pub fn parse(text: &str, path: &str, flags: &[(&'static Key, String)]) -> Result<Config, SetupError> {
        let mut config = Config::default();
        let mut origins = Origins::default();
        Document { text, path }.apply(&mut config, &mut origins)?;
        apply_flags(flags, &mut config, &mut origins)?;
        config.check(&origins)?;
        Ok(config)
    }
}

/// The file's text, refused where it is too long or no text.
fn read(path: &Path) -> Result<String, SetupError> {
    let shown = path.display();
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(|cause| {
        SetupError::caused(format!("{shown}: cannot be read"), cause)
            .remedy("give --config a file that this user may read")
    })?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(SetupError::new(format!("{shown}: longer than {FILE_BYTES_MAX} bytes, so not a configuration")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = line_of(&String::from_utf8_lossy(&error.as_bytes()[..valid]), valid);
        SetupError::new(format!("{shown}:{line}: not UTF-8 text")).remedy("save the file as UTF-8")
    })
}

/// The number of the line, from 1, that the byte at `offset` is in.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// The file, with what its errors need.
struct Document<'a> {
    text: &'a str,
    path: &'a str,
}

impl Document<'_> {
    fn position(&self, offset: usize) -> String {
        format!("{}:{}: ", self.path, line_of(self.text, offset))
    }

    fn apply(&self, config: &mut Config, origins: &mut Origins) -> Result<(), SetupError> {
        let document = DeTable::parse(self.text).map_err(|error| {
            let position = self.position(error.span().map_or(0, |span| span.start));
            SetupError::new(format!("{position}not TOML: {}", error.message()))
        })?;
        for (table_name, table) in in_order(document.get_ref()) {
            let position = self.position(table_name.span().start);
            let DeValue::Table(keys) = table.get_ref() else {
                return Err(self.unknown_top(&position, table_name.get_ref(), true));
            };
            if !KEYS.iter().any(|key| key.table == table_name.get_ref()) {
                return Err(self.unknown_top(&position, table_name.get_ref(), false));
            }
            for (name, value) in in_order(keys) {
                self.apply_key(table_name.get_ref(), name, value, config, origins)?;
            }
        }
        Ok(())
    }

    fn apply_key(
        &self,
        table: &str,
        name: &Spanned<Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        config: &mut Config,
        origins: &mut Origins,
    ) -> Result<(), SetupError> {
        let position = self.position(name.span().start);
        let Some(key) = KEYS.iter().find(|key| key.table == table && key.name == name.get_ref()) else {
            return Err(unknown_key(&position, table, name.get_ref()));
        };
        let place = Place { position, name: key.full_name() };
        let elements = match value.get_ref() {
            DeValue::Array(elements) if key.is_list() => elements
                .iter()
                .map(|element| (self.position(element.span().start), Scalar::of(element.get_ref())))
                .collect(),
            single if !key.is_list() => vec![(place.position.clone(), Scalar::of(single))],
            single => {
                let what = format!("{} where a list belongs", Scalar::of(single).describe());
                return Err(place.refuse(&what, &format!("{} = [...], with {}", key.name, key.allowed())));
            }
        };
        store(key, config, &place, elements)?;
        origins.0.insert(key.full_name(), place);
        Ok(())
    }

    /// A table that there is none of, or a value outside any table.
    fn unknown_top(&self, position: &str, name: &str, is_value: bool) -> SetupError {
        if is_value && let Some(key) = KEYS.iter().find(|key| key.name == name) {
            return SetupError::new(format!("{position}{name}: stands outside its table"))
                .remedy(format!("put it under [{}]", key.table));
        }
        let mut tables: Vec<&str> = KEYS.iter().map(|key| key.table).collect();
        tables.dedup();
        let error =
            SetupError::new(format!("{position}{name}: there is no such {}", if is_value { "key" } else { "table" }));
        match nearest(name, tables.iter().copied()) {
            Some(table) => error.remedy(format!("the nearest table is [{table}]")),
            None => error.remedy(format!("the tables are {}", tables.join(", "))),
        }
    }
}

/// A table's entries as they stand in the file: the first mistake is reported first.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t Spanned<Cow<'i, str>>, &'t Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

fn apply_flags(flags: &[(&'static Key, String)], config: &mut Config, origins: &mut Origins) -> Result<(), SetupError> {
    for key in KEYS {
        let values: Vec<_> = flags
            .iter()
            .filter(|(given, _)| (given.table, given.name) == (key.table, key.name))
            .map(|(_, value)| (String::new(), Scalar::Word(value)))
            .collect();
        if values.is_empty() {
            continue;
        }
        let name = key.flag.map_or_else(|| key.full_name(), |flag| format!("--{flag}"));
        let place = Place { position: String::new(), name };
        store(key, config, &place, values)?;
        origins.0.insert(key.full_name(), place);
    }
    Ok(())
}

/// Reads one key's values (each with its own position) into their place in `config`.
fn store(key: &Key, config: &mut Config, place: &Place, values: Vec<(String, Scalar<'_>)>) -> Result<(), SetupError> {
    key.kind.clear(config);
    for (position, value) in values {
        let place = Place { position, name: place.name.clone() };
        key.kind.read(&value, config).map_err(|what| place.refuse(&what, &format!("allowed: {}", key.allowed())))?;
    }
    Ok(())
}

impl Kind {
    /// Empties a list: a source that names one replaces what an earlier source had in it.
    fn clear(&self, config: &mut Config) {
        match self {
            Kind::Names(field) => field(config).clear(),
            Kind::Addresses(field) => field(config).clear(),
            Kind::Prefixes(field) => field(config).clear(),
            Kind::IdentRanges(field) => field(config).clear(),
            Kind::Exceptions(field) => field(config).clear(),
            _ => {}
        }
    }

    /// Reads one value: replaces a single one, adds to a list.
    fn read(&self, value: &Scalar<'_>, config: &mut Config) -> Result<(), Refusal> {
        match self {
            Kind::Integer { field, .. } => *field(config) = value.integer()?,
            Kind::Duration { field, .. } => *field(config) = value.duration()?,
            Kind::OptionalDuration { field, .. } => *field(config) = Some(value.duration()?),
            Kind::Name(field) => *field(config) = value.text()?.to_owned(),
            Kind::Names(field) => field(config).push(value.text()?.to_owned()),
            Kind::Address(field) => *field(config) = value.parse("an IPv4 address")?,
            Kind::Addresses(field) => field(config).push(value.parse("an IPv4 address")?),
            Kind::Prefixes(field) => {
                field(config).push(value.text()?.parse().map_err(|error: PrefixError| error.to_string())?);
            }
            Kind::IdentRanges(field) => field(config).push(value.text()?.parse()?),
            Kind::Exceptions(field) => field(config).push(value.text()?.parse()?),
            Kind::Switch(field) => *field(config) = value.choose(SWITCH)?,
            Kind::Backend(field) => *field(config) = value.choose(BACKENDS)?,
            Kind::DivertBy(field) => *field(config) = value.choose(DIVERTS)?,
            Kind::FallThrough(field) => *field(config) = value.choose(FALL_THROUGHS)?,
            Kind::ControlSocket(field) => {
                *field(config) = match value.text()? {
                    NOWHERE => ControlSocket::Nowhere,
                    path => ControlSocket::At(path.into()),
                };
            }
            Kind::Listen(field) => {
                *field(config) = match value.text()? {
                    NOWHERE => None,
                    _ => Some(value.parse("an address with its port")?),
                };
            }
            Kind::LogFilter(field) => *field(config) = Some(value.text()?.to_owned()),
            Kind::LogFormat(field) => *field(config) = value.choose(LOG_FORMATS)?,
        }
        Ok(())
    }
}

impl<'a> Scalar<'a> {
    fn of(value: &'a DeValue<'_>) -> Scalar<'a> {
        match value {
            DeValue::String(text) => Scalar::Text(text),
            DeValue::Integer(number) => {
                Scalar::Integer(number.to_string(), i64::from_str_radix(number.as_str(), number.radix()).ok())
            }
            DeValue::Float(_) => Scalar::Other("a number with a fraction"),
            DeValue::Boolean(_) => Scalar::Other("a boolean"),
            DeValue::Datetime(_) => Scalar::Other("a date"),
            DeValue::Array(_) => Scalar::Other("a list"),
            DeValue::Table(_) => Scalar::Other("a table"),
        }
    }

    /// How an error calls it.
    fn describe(&self) -> String {
        match self {
            Scalar::Text(text) => format!("the string {text:?}"),
            Scalar::Integer(written, _) => format!("the number {written}"),
            Scalar::Word(word) => format!("{word:?}"),
            Scalar::Other(what) => (*what).to_owned(),
        }
    }

    fn text(&self) -> Result<&'a str, Refusal> {
        match self {
            Scalar::Text(text) | Scalar::Word(text) => Ok(text),
            _ => Err(format!("{} where a string belongs", self.describe())),
        }
    }

    fn parse<T: FromStr>(&self, what: &str) -> Result<T, Refusal> {
        let text = self.text()?;
        text.parse().map_err(|_| format!("{text:?} is not {what}"))
    }

    /// A whole number; which ones are allowed is checked once all sources are read.
    fn integer(&self) -> Result<u32, Refusal> {
        match self {
            Scalar::Integer(written, read) => {
                read.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| format!("{written} is out of range"))
            }
            Scalar::Word(word) => word.parse().map_err(|_| format!("{word:?} is no such number")),
            _ => Err(format!("{} where a number belongs", self.describe())),
        }
    }

    fn duration(&self) -> Result<Duration, Refusal> {
        if let Scalar::Integer(written, _) = self {
            return Err(format!("{written} has no unit; write it as \"{written}s\" if seconds are meant"));
        }
        let text = self.text()?;
        humantime::parse_duration(text).map_err(|error| format!("{text:?} is not a length of time: {error}"))
    }

    fn choose<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Refusal> {
        let text = self.text()?;
        choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice).ok_or_else(|| {
            match nearest(text, choices.iter().map(|(word, _)| *word)) {
                Some(word) => format!("there is no {text:?}; the nearest is {word:?}"),
                None => format!("there is no {text:?}"),
            }
        })
    }
}

impl Place {
    fn refuse(&self, what: &str, remedy: &str) -> SetupError {
        SetupError::new(format!("{}{}: {what}", self.position, self.name)).remedy(remedy)
    }
}

impl Origins {
    /// How an error calls a key: with its flag or its line if one of them set it.
    pub(super) fn name(&self, full_name: &str) -> String {
        match self.0.get(full_name) {
            Some(place) => format!("{}{}", place.position, place.name),
            None => full_name.to_owned(),
        }
    }
}

fn unknown_key(position: &str, table: &str, name: &str) -> SetupError {
    let error = SetupError::new(format!("{position}{table}.{name}: there is no such key"));
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return error.remedy(format!("{name} belongs under [{}]", key.table));
    }
    let here: Vec<&str> = KEYS.iter().filter(|key| key.table == table).map(|key| key.name).collect();
    match nearest(name, here.iter().copied()) {
        Some(key) => error.remedy(format!("the nearest key is {table}.{key}")),
        None => error.remedy(format!("the keys of [{table}] are {}", here.join(", "))),
    }
}

/// The candidate that `word` was most likely meant to be, if any is like it.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, candidate)| candidate)
}
