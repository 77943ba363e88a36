//! What two recipes disagree about.

use std::fmt;

use super::Recipe;

/// A key with two values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key, sections joined with dots.
    pub key: String,
    /// Its value in the first recipe; `None` where it is left out.
    pub was: Option<String>,
    /// Its value in the second.
    pub is: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "left out".to_owned());
        write!(f, "`{}` was {} and is {}", self.key, shown(&self.was), shown(&self.is))
    }
}

/// Keys that may change between a run and its continuation: none of them touches a weight.
fn is_free(key: &str) -> bool {
    let saving = ["run.save_steps", "run.save_minutes", "run.keep_last", "run.keep_steps", "run.watchdog_minutes"];
    let words = ["title", "evidence", "base", "data.workers", "data.broken", "run.recompute"];
    saving.contains(&key) || words.contains(&key)
}

impl Recipe {
    /// Keys whose change would make a continued run another run.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let [was, is] = [self.leaves(), other.leaves()];
        let mut keys: Vec<&String> = was.iter().chain(&is).map(|(key, _)| key).filter(|key| !is_free(key)).collect();
        keys.sort_unstable();
        keys.dedup();
        let value = |leaves: &[(String, toml::Value)], key: &str| {
            leaves.iter().find(|(known, _)| known == key).map(|(_, value)| value.to_string())
        };
        keys.into_iter()
            .map(|key| Difference { key: key.clone(), was: value(&was, key), is: value(&is, key) })
            .filter(|difference| difference.was != difference.is)
            .collect()
    }
}
