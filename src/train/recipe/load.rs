//! A recipe by name or from a file, with `--set` applied.

use std::path::Path;

use toml::{Table, Value};

use super::embedded::EMBEDDED;
use super::{Optimizer, Recipe, Student};
use crate::hint::Hint;

/// A recipe is a page of text.
const MAX_BYTES: u64 = 1 << 20;

/// Keys a recipe may leave out, or write as a section, so that none of its values shows them.
const OPTIONAL: [&str; 4] = ["base", "method.tau", "method.top_k", "student"];

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// No such recipe.
    #[error("no recipe is called `{name}`")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that resemble it.
        near: Vec<String>,
        /// All names.
        all: Vec<String>,
    },
    /// The file could not be read.
    #[error("cannot read the recipe `{path}`")]
    Io {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not a recipe; the reason has line and column where there are any.
    #[error("cannot use the recipe `{recipe}`: {reason}")]
    Invalid {
        /// Name or file.
        recipe: String,
        /// What is wrong.
        reason: String,
    },
    /// A setting without a value.
    #[error("`{text}` is not `key=value`")]
    Form {
        /// What was given.
        text: String,
    },
    /// A setting with a key no recipe has.
    #[error("no recipe has a key `{key}`")]
    Key {
        /// What was given.
        key: String,
        /// Keys that resemble it.
        near: Vec<String>,
        /// The keys of its section, if there is such a one.
        section: Vec<String>,
    },
    /// The rate would rise for longer than the run lasts.
    #[error("`optimizer.epochs` is {epochs}, fewer than the {warmup_epochs} of `optimizer.warmup_epochs`")]
    WarmUp {
        /// Epochs in all.
        epochs: usize,
        /// Epochs over which the rate rises.
        warmup_epochs: f64,
    },
    /// A setting with a value its key cannot take.
    #[error("cannot set `{key}` to `{value}`: {reason}")]
    Value {
        /// The key.
        key: String,
        /// What was given.
        value: String,
        /// Why not.
        reason: String,
    },
}

impl RecipeError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Unknown { near, all, .. } => {
                let files = format!("there are {}; a path ending in .toml is a file", all.join(", "));
                Some(meant(near).map_or_else(|| files.clone(), |meant| format!("{meant} {files}")).into())
            }
            Self::Form { .. } => Some(Hint::new().words("such as ").set("optimizer.epochs", "100")),
            Self::Key { near, section, key } => meant(near).map(Hint::from).or_else(|| {
                let (section, keys) = (key.rsplit_once('.')?.0, section.iter().map(|key| format!("`{key}`")));
                let keys = keys.collect::<Vec<_>>().join(", ");
                (!keys.is_empty()).then(|| format!("`[{section}]` has {keys}").into())
            }),
            Self::WarmUp { epochs, .. } => {
                // As long a part of the run as in the recipes this tool brings for short ones.
                let both = Hint::new().words("shorten both: ").set("optimizer.epochs", epochs.to_string()).words(" ");
                Some(both.set("optimizer.warmup_epochs", (*epochs as f64 / 10.0).to_string()))
            }
            _ => None,
        }
    }
}

fn meant(near: &[String]) -> Option<String> {
    let names: Vec<String> = near.iter().map(|name| format!("`{name}`")).collect();
    (!names.is_empty()).then(|| format!("did you mean {}?", names.join(", ")))
}

impl Recipe {
    /// The embedded recipes' names, sorted.
    pub fn names() -> impl Iterator<Item = &'static str> {
        EMBEDDED.iter().map(|(name, _)| *name)
    }

    /// The embedded recipe published for `base`, a name in the zoo; of several, the one of fewest epochs.
    ///
    /// ```
    /// use tec_zoo::train::Recipe;
    ///
    /// assert_eq!(Recipe::published_for("ibot-vitb"), Some("tec-ibot-vitb-300ep"));
    /// assert_eq!(Recipe::published_for("mocov3-vits"), None);
    /// ```
    pub fn published_for(base: &str) -> Option<&'static str> {
        let of_base = |name: &'static str| {
            let recipe = Self::load(name, &[]).ok()?;
            (recipe.base.as_deref() == Some(base)).then_some((recipe.optimizer.epochs, name))
        };
        Self::names().filter_map(of_base).min().map(|(_, name)| name)
    }

    /// The recipe called `recipe`, or in the file of that path when it ends in `.toml`; `set` are `key=value` texts, applied
    /// in order.
    ///
    /// # Errors
    /// [`RecipeError`]; a mistake in the file is told with line and column.
    ///
    /// ```
    /// use tec_zoo::train::Recipe;
    ///
    /// let recipe = Recipe::load("tec-mae-vitb-300ep", &["optimizer.epochs=100".to_owned()])?;
    /// assert_eq!(recipe.optimizer.epochs, 100);
    /// let error = Recipe::load("nano", &["optimizer.base_rl=1".to_owned()]).unwrap_err();
    /// assert_eq!(error.hint().unwrap_or_default().to_string(), "did you mean `optimizer.base_lr`?");
    /// # Ok::<(), tec_zoo::train::RecipeError>(())
    /// ```
    pub fn load(recipe: &str, set: &[String]) -> Result<Self, RecipeError> {
        if recipe.ends_with(".toml") {
            return Self::parse(recipe, &read(Path::new(recipe))?, set);
        }
        let Some((_, text)) = EMBEDDED.iter().find(|(name, _)| *name == recipe) else {
            let all: Vec<String> = Self::names().map(str::to_owned).collect();
            return Err(RecipeError::Unknown { name: recipe.to_owned(), near: resembling(recipe, &all), all });
        };
        Self::parse(recipe, text, set)
    }

    /// The recipe `text` is, with `set` applied; `recipe` is what to call it in errors.
    ///
    /// # Errors
    /// See [`Recipe::load`].
    pub fn parse(recipe: &str, text: &str, set: &[String]) -> Result<Self, RecipeError> {
        let invalid = |reason: String| RecipeError::Invalid { recipe: recipe.to_owned(), reason };
        // Before any override: a mistake in the file has a line, one in an override has a key.
        let parsed: Self = toml::from_str(text).map_err(|error| invalid(in_words(&error.to_string())))?;
        let parsed = set.iter().try_fold(parsed, |parsed, text| parsed.with(text))?;
        let Optimizer { epochs, warmup_epochs, .. } = parsed.optimizer;
        if epochs > 0 && warmup_epochs > epochs as f64 {
            return Err(RecipeError::WarmUp { epochs, warmup_epochs });
        }
        parsed.validate().map_err(invalid)?;
        Ok(parsed)
    }

    /// This recipe with `key=value` texts applied, in order.
    ///
    /// # Errors
    /// See [`Recipe::load`].
    pub fn with_all(&self, set: &[String]) -> Result<Self, RecipeError> {
        Self::parse(&self.title, &self.to_text()?, set)
    }

    /// The text of a recipe file that says the same, keys in a fixed order.
    ///
    /// # Errors
    /// [`RecipeError::Invalid`] for numbers TOML cannot write, which no parsed recipe has.
    pub fn to_text(&self) -> Result<String, RecipeError> {
        toml::to_string(self)
            .map_err(|error| RecipeError::Invalid { recipe: self.title.clone(), reason: error.to_string() })
    }

    /// Its keys, sections joined with dots, and their values; keys left out are missing.
    pub(super) fn leaves(&self) -> Vec<(String, Value)> {
        let mut out = Vec::new();
        // Only numbers beyond TOML's range fail, and parsing let none in.
        let table = Table::try_from(self).unwrap_or_default();
        flatten("", &table, &mut out);
        out
    }

    fn with(&self, text: &str) -> Result<Self, RecipeError> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(RecipeError::Form { text: text.to_owned() });
        };
        let (key, value) = (key.trim(), value.trim());
        let mut keys: Vec<String> = self.leaves().into_iter().map(|(key, _)| key).collect();
        keys.extend(OPTIONAL.map(str::to_owned));
        keys.sort_unstable();
        keys.dedup();
        let bad = |reason: String| RecipeError::Value { key: key.to_owned(), value: value.to_owned(), reason };
        if self.student == Student::Base && key.starts_with("student.") {
            return Err(bad(
                "the student has its base's shape; a recipe that spells the shape out can change it".into()
            ));
        }
        if !keys.iter().any(|known| known == key) {
            let (near, section) = (near(key, &keys), section(key, &keys));
            return Err(RecipeError::Key { key: key.to_owned(), near, section });
        }
        // A bare word is a text: `run.precision=bf16` needs no quotes within quotes.
        let parsed = toml::from_str::<Table>(&format!("value = {value}"))
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| Value::String(value.to_owned()));
        let mut table = Table::try_from(self).map_err(|error| bad(error.to_string()))?;
        insert(&mut table, key, parsed);
        Value::Table(table).try_into().map_err(|error: toml::de::Error| bad(in_words(error.message())))
    }
}

fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                insert(section, rest, value);
            }
        }
    }
}

fn flatten(prefix: &str, table: &Table, out: &mut Vec<(String, Value)>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => flatten(&format!("{prefix}{key}."), inner, out),
            value => out.push((format!("{prefix}{key}"), value.clone())),
        }
    }
}

/// Keys of the section that `key` names.
fn section(key: &str, known: &[String]) -> Vec<String> {
    let Some((section, _)) = key.rsplit_once('.') else { return Vec::new() };
    let inside = |known: &str| known.rsplit_once('.').is_some_and(|(of, _)| of == section);
    known.iter().filter(|known| inside(known)).cloned().collect()
}

/// Keys that resemble `key`; failing that, those of its section that have its last part in theirs, as `base_lr` has `lr`.
fn near(key: &str, known: &[String]) -> Vec<String> {
    let near = resembling(key, known);
    if !near.is_empty() {
        return near;
    }
    let (last, mut near) = (key.rsplit('.').next().unwrap_or(key), section(key, known));
    near.retain(|known| known.rsplit('.').next().is_some_and(|known| known.split('_').any(|word| word == last)));
    near
}

/// What a reader of TOML calls Rust's types, as one who writes a recipe would.
fn in_words(message: &str) -> String {
    const TYPES: [(&str, &str); 5] = [
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected u32", "expected a whole number, 0 or more"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
    ];
    TYPES.iter().fold(message.to_owned(), |message, (is, words)| message.replace(is, words))
}

fn resembling(asked: &str, known: &[String]) -> Vec<String> {
    // A key is often given without its section, and a shared section is no resemblance.
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let score = |known: &str| strsim::normalized_damerau_levenshtein(&last(asked), &last(known));
    let mut scored: Vec<(f64, &String)> = known.iter().map(|known| (score(known), known)).collect();
    scored.retain(|(score, _)| *score >= 0.6);
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, known)| known.clone()).collect()
}

fn read(path: &Path) -> Result<String, RecipeError> {
    let io = |source| RecipeError::Io { path: path.display().to_string(), source };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > MAX_BYTES {
        let reason = format!("it has {length} bytes; a recipe has a few hundred");
        return Err(RecipeError::Invalid { recipe: path.display().to_string(), reason });
    }
    std::fs::read_to_string(path).map_err(io)
}
