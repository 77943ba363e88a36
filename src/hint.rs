//! Advice that an error carries: what to do next, as data. It names options by the library's fields and work by its verbs;
//! the command line turns them into flags and commands, another caller into its own words.

use std::borrow::Cow;
use std::fmt;

/// What to do next: words, options and commands, in the order in which they are read.
///
/// ```
/// use tec_zoo::hint::{Command, Hint};
///
/// let hint = Hint::new().words("add ").set("heads", "N").words("; ").command(Command::new("inspect").word("FILE"));
/// assert_eq!(hint.to_string(), "add `heads`: N; `inspect FILE`");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hint {
    parts: Vec<Part>,
}

/// A piece of a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Plain words, with the spaces around them.
    Words(Cow<'static, str>),
    /// An option of the call that failed.
    Option(Setting),
    /// Another piece of work.
    Command(Command),
}

/// An option, with a value where the advice has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The library's name of the field, such as `heads` or `image_size`; with a dot in it, the key of a recipe.
    pub name: Cow<'static, str>,
    /// The value to give it, or what stands for one, such as `N`.
    pub value: Option<Cow<'static, str>>,
}

/// A verb of the tool, with what it is called with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The verb, such as `convert` or `cache prune`.
    pub verb: &'static str,
    /// What follows it.
    pub arguments: Vec<Argument>,
}

/// What follows a verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A value by its place, such as a model's name.
    Word(Cow<'static, str>),
    /// An option.
    Option(Setting),
}

impl Hint {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on in plain words; spaces before and after them are part of them.
    #[must_use]
    pub fn words(self, words: impl Into<Cow<'static, str>>) -> Self {
        self.part(Part::Words(words.into()))
    }

    /// Names an option.
    #[must_use]
    pub fn option(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.part(Part::Option(Setting { name: name.into(), value: None }))
    }

    /// Names an option and its value.
    #[must_use]
    pub fn set(self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.part(Part::Option(Setting { name: name.into(), value: Some(value.into()) }))
    }

    /// Names an option with each of several values, of which one is to be chosen.
    #[must_use]
    pub fn one_of(mut self, name: &'static str, values: impl IntoIterator<Item = impl Into<String>>) -> Self {
        for (index, value) in values.into_iter().enumerate() {
            if index > 0 {
                self = self.words(" or ");
            }
            self = self.set(name, value.into());
        }
        self
    }

    /// Goes on with what another hint says.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.parts.extend(other.parts);
        self
    }

    /// Names other work.
    #[must_use]
    pub fn command(self, command: Command) -> Self {
        self.part(Part::Command(command))
    }

    /// The pieces, for a caller with words of its own.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn part(mut self, part: Part) -> Self {
        self.parts.push(part);
        self
    }
}

impl Command {
    /// A verb alone.
    pub fn new(verb: &'static str) -> Self {
        Self { verb, arguments: Vec::new() }
    }

    /// Adds a value by its place.
    #[must_use]
    pub fn word(mut self, word: impl Into<Cow<'static, str>>) -> Self {
        self.arguments.push(Argument::Word(word.into()));
        self
    }

    /// Adds an option without a value.
    #[must_use]
    pub fn option(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.arguments.push(Argument::Option(Setting { name: name.into(), value: None }));
        self
    }

    /// Adds an option and its value.
    #[must_use]
    pub fn set(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.arguments.push(Argument::Option(Setting { name: name.into(), value: Some(value.into()) }));
        self
    }
}

impl From<&'static str> for Hint {
    fn from(words: &'static str) -> Self {
        Self::new().words(words)
    }
}

impl From<String> for Hint {
    fn from(words: String) -> Self {
        Self::new().words(words)
    }
}

/// In the library's own words: an option is its field, a command its verb.
impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                Part::Words(words) => f.write_str(words)?,
                Part::Option(Setting { name, value: None }) => write!(f, "`{name}`")?,
                Part::Option(Setting { name, value: Some(value) }) => write!(f, "`{name}`: {value}")?,
                Part::Command(command) => write!(f, "`{command}`")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verb)?;
        for argument in &self.arguments {
            match argument {
                Argument::Word(word) => write!(f, " {word}")?,
                Argument::Option(Setting { name, value: None }) => write!(f, " {name}")?,
                Argument::Option(Setting { name, value: Some(value) }) => write!(f, " {name}={value}")?,
            }
        }
        Ok(())
    }
}

/// As text in the library's own words.
impl serde::Serialize for Hint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
