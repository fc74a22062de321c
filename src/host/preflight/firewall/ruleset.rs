//! The filtering chains of the host, and how a packet fares in them.
//!
//! The chains are listed first, then the rules of each that a packet can reach, one by one. The whole in one go,
//! `nft -j list ruleset`, is not to be had: nft 1.0.6 (Debian 12) prints rubbish for the flags of a table that has an
//! owner, and breaks off in the middle at times.

use std::collections::VecDeque;

use serde_json::Value;

use super::Passage;
use super::condition::{Step, step};
use crate::host::nft::{self, Failure};

/// Chains that jump to each other deeper than the kernel allows (16) are not followed further.
const DEPTH_MAX: u32 = 16;

/// The hooks that decide about the gateway's packets.
const HOOKS: [&str; 3] = ["forward", "input", "output"];

/// More chains than this (a cluster's node) are not read, some milliseconds each; rules that lead there are then not
/// understood.
const CHAINS_MAX: usize = 200;

/// How a packet fares in a base chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Accepted,
    Dropped,
    /// Dropped unless a rule that is not understood accepts it before.
    PerhapsAccepted,
}

/// How a chain ended.
enum Outcome {
    Decided(bool),
    /// The end of the chain, or `return`.
    Through,
}

/// A chain and its rules.
pub(super) struct Chain {
    pub(super) family: String,
    pub(super) table: String,
    pub(super) name: String,
    pub(super) hook: Option<String>,
    drops: bool,
    rules: Vec<Value>,
}

impl Chain {
    fn read(object: &Value) -> Option<Chain> {
        let text = |key: &str| Some(object.get(key)?.as_str()?.to_owned());
        let (family, table, name) = (text("family")?, text("table")?, text("name")?);
        let drops = text("policy").as_deref() == Some("drop");
        Some(Chain { family, table, name, hook: text("hook"), drops, rules: Vec::new() })
    }

    /// Whether the kernel calls it for packets of ours. Bridged frames do not pass here, ip6's packets are others.
    fn is_base(&self) -> bool {
        let called = self.hook.as_deref().is_some_and(|hook| HOOKS.contains(&hook));
        called && matches!(self.family.as_str(), "ip" | "inet")
    }

    fn is_beside(&self, other: &Chain) -> bool {
        (&self.family, &self.table) == (&other.family, &other.table)
    }
}

/// Runs nft and takes the objects of one kind out of its answer.
fn list(arguments: &[&str], kind: &str) -> Result<Vec<Value>, Failure> {
    let listed = nft::run(arguments, "")?;
    let whole: Value =
        serde_json::from_str(&listed).map_err(|error| Failure::Refused(format!("its answer is not JSON ({error})")))?;
    let objects = whole.get("nftables").and_then(Value::as_array);
    Ok(objects.into_iter().flatten().filter_map(|object| object.get(kind).cloned()).collect())
}

/// The chains that a rule, or a map of verdicts in it, leads to.
fn collect_targets(value: &Value, targets: &mut Vec<String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect_targets(value, targets)),
        Value::Object(members) => {
            for (key, value) in members {
                let target =
                    value.get("target").and_then(Value::as_str).filter(|_| matches!(key.as_str(), "jump" | "goto"));
                match target {
                    Some(target) => targets.push(target.to_owned()),
                    None => collect_targets(value, targets),
                }
            }
        }
        _ => {}
    }
}

/// The chains that can decide about the gateway's packets, with their rules.
pub(super) struct Ruleset {
    chains: Vec<Chain>,
}

impl Ruleset {
    /// Reads what the calling thread's namespace has.
    pub(super) fn load() -> Result<Ruleset, Failure> {
        let known: Vec<Chain> = list(&["-j", "list", "chains"], "chain")?.iter().filter_map(Chain::read).collect();
        let (base, mut others): (Vec<Chain>, Vec<Chain>) = known.into_iter().partition(Chain::is_base);
        let mut waiting = VecDeque::from(base);
        let mut chains: Vec<Chain> = Vec::new();
        while let Some(mut chain) = waiting.pop_front().filter(|_| chains.len() < CHAINS_MAX) {
            let place = ["-j", "list", "chain", &chain.family, &chain.table, &chain.name];
            chain.rules = list(&place, "rule")?.iter().filter_map(|rule| rule.get("expr").cloned()).collect();
            let mut targets = Vec::new();
            chain.rules.iter().for_each(|rule| collect_targets(rule, &mut targets));
            let reached = others.extract_if(.., |other| other.is_beside(&chain) && targets.contains(&other.name));
            waiting.extend(reached);
            chains.push(chain);
        }
        Ok(Ruleset { chains })
    }

    pub(super) fn base_chains(&self) -> impl Iterator<Item = &Chain> {
        self.chains.iter().filter(|chain| chain.is_base())
    }

    pub(super) fn verdict(&self, base: &Chain, passage: &Passage<'_>) -> Verdict {
        let mut perhaps = false;
        let accepted = match self.walk(base, passage, &mut perhaps, DEPTH_MAX) {
            Outcome::Decided(accepted) => accepted,
            Outcome::Through => !base.drops,
        };
        match (accepted, perhaps) {
            (true, _) => Verdict::Accepted,
            (false, false) => Verdict::Dropped,
            (false, true) => Verdict::PerhapsAccepted,
        }
    }

    /// Follows the packet through a chain. `perhaps` is set by a rule that may accept.
    fn walk(&self, chain: &Chain, passage: &Passage<'_>, perhaps: &mut bool, depth: u32) -> Outcome {
        for rule in &chain.rules {
            let mut certain = true;
            for statement in rule.as_array().into_iter().flatten() {
                match step(statement, passage) {
                    Step::Apart => break,
                    Step::Unknown => certain = false,
                    Step::On => {}
                    Step::Verdict(verdict) => match self.apply(verdict, chain, passage, (certain, perhaps), depth) {
                        Some(outcome) => return outcome,
                        None => break,
                    },
                }
            }
        }
        Outcome::Through
    }

    /// What a verdict does to the walk; None: the next rule.
    fn apply(
        &self,
        verdict: &Value,
        chain: &Chain,
        passage: &Passage<'_>,
        (certain, perhaps): (bool, &mut bool),
        depth: u32,
    ) -> Option<Outcome> {
        let (word, argument) = verdict.as_object()?.iter().next()?;
        let target = argument.get("target").and_then(Value::as_str);
        let outcome = match word.as_str() {
            "accept" => Outcome::Decided(true),
            "drop" | "reject" => Outcome::Decided(false),
            "return" => Outcome::Through,
            "jump" | "goto" => {
                let named = |next: &&Chain| next.is_beside(chain) && target == Some(&next.name);
                let Some(next) = self.chains.iter().find(named).filter(|_| depth > 0) else {
                    // Not read: it may do anything.
                    *perhaps = true;
                    return None;
                };
                match self.walk(next, passage, perhaps, depth - 1) {
                    Outcome::Through if word == "jump" => return None,
                    outcome => outcome,
                }
            }
            _ => return None,
        };
        if certain {
            return Some(outcome);
        }
        *perhaps |= matches!(outcome, Outcome::Decided(true));
        None
    }
}
