//! What a check found, and whether the graph holds: a runtime that did not run has proven nothing.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::check::Tolerance;
use super::runtime::Runtime;

/// One output compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputCheck {
    /// Name.
    pub name: String,
    /// Shape the runtime gave.
    pub shape: Vec<usize>,
    /// Largest difference.
    pub max_abs_diff: f32,
    /// Mean difference.
    pub mean_abs_diff: f32,
    /// Cosine of the two outputs as vectors.
    pub cosine: f64,
    /// The same without the hundredth of the values that are largest in the reference: trained ViTs have a few values a
    /// thousand times as large as the rest, and a cosine of all sees nothing but those.
    pub cosine_of_bulk: f64,
    /// Within the tolerance, of the right shape, and finite.
    pub passed: bool,
    /// What is wrong beyond a difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What became of a graph in one runtime.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum RuntimeVerdict {
    /// It ran, and this is how its outputs compare.
    Ran {
        /// One for each output; none where there was nothing to compare them with.
        outputs: Vec<OutputCheck>,
    },
    /// It did not.
    CouldNotRun {
        /// The runtime's reason.
        reason: String,
    },
}

/// One runtime's part of a report, at one size. As JSON it says beside its verdict whether it `ran`, and `why_not`.
#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeCheck {
    /// The runtime.
    pub runtime: Runtime,
    /// Height and width of the images.
    pub size: [usize; 2],
    /// What it did.
    pub verdict: RuntimeVerdict,
}

impl RuntimeCheck {
    /// Why it did not run.
    pub fn why_not(&self) -> Option<&str> {
        match &self.verdict {
            RuntimeVerdict::Ran { .. } => None,
            RuntimeVerdict::CouldNotRun { reason } => Some(reason),
        }
    }

    /// Whether there is nothing to compare.
    fn is_silent(&self) -> bool {
        !matches!(&self.verdict, RuntimeVerdict::Ran { outputs } if !outputs.is_empty())
    }

    /// Whether an output is wrong.
    fn differs(&self) -> bool {
        matches!(&self.verdict, RuntimeVerdict::Ran { outputs } if outputs.iter().any(|output| !output.passed))
    }
}

impl Serialize for RuntimeCheck {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a> {
            runtime: Runtime,
            size: [usize; 2],
            ran: bool,
            why_not: Option<&'a str>,
            #[serde(flatten)]
            verdict: &'a RuntimeVerdict,
        }
        let (why_not, Self { runtime, size, verdict }) = (self.why_not(), self);
        Entry { runtime: *runtime, size: *size, ran: why_not.is_none(), why_not, verdict }.serialize(serializer)
    }
}

/// The outcome of a check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckReport {
    /// The file.
    pub path: PathBuf,
    /// Whether the graph computes what it should in every runtime that ran it; `None` where nothing was compared, or a file
    /// with itself alone.
    pub holds: Option<bool>,
    /// Why it does not hold, or nothing can be said, beyond outputs that differ.
    pub problem: Option<String>,
    /// What the outputs were compared with: `eager`, or a runtime's name.
    pub reference: String,
    /// How far outputs may be from the reference.
    pub tolerance: Tolerance,
    /// One for each size and runtime asked.
    pub runtimes: Vec<RuntimeCheck>,
}

impl CheckReport {
    /// The runtimes that ran the graph at every size, in the order they were asked.
    pub fn ran(&self) -> Vec<Runtime> {
        self.asked().into_iter().filter(|(_, why_not)| why_not.is_none()).map(|(runtime, _)| runtime).collect()
    }

    /// Those that did not at some size, and why.
    pub fn did_not_run(&self) -> Vec<(Runtime, &str)> {
        self.asked().into_iter().filter_map(|(runtime, why_not)| Some((runtime, why_not?))).collect()
    }

    fn asked(&self) -> Vec<(Runtime, Option<&str>)> {
        let mut asked: Vec<(Runtime, Option<&str>)> = Vec::new();
        for entry in &self.runtimes {
            match asked.iter_mut().find(|(runtime, _)| *runtime == entry.runtime) {
                Some((_, why_not)) => *why_not = why_not.or(entry.why_not()),
                None => asked.push((entry.runtime, entry.why_not())),
            }
        }
        asked
    }

    /// Fills in `holds` and `problem`. `named` are the runtimes that have to run it; `alone` says that runtimes are compared with
    /// one another.
    pub(super) fn conclude(mut self, named: &[Runtime], alone: bool) -> Self {
        let missing: Vec<&str> =
            self.did_not_run().into_iter().filter(|(one, _)| named.contains(one)).map(|(one, _)| one.name()).collect();
        let ran = self.ran();
        let (holds, problem) = if self.runtimes.iter().any(RuntimeCheck::differs) {
            (Some(false), None)
        } else if !missing.is_empty() {
            (Some(false), Some(format!("{} did not run it", listed(&missing))))
        } else if ran.is_empty() {
            (None, Some("no runtime ran it".to_owned()))
        } else if alone && ran.len() < 2 {
            (None, Some(format!("only {} ran it, and a file is not compared with itself", ran[0])))
        } else if self.runtimes.iter().all(RuntimeCheck::is_silent) {
            (None, Some("it has no outputs".to_owned()))
        } else {
            (Some(true), None)
        };
        (self.holds, self.problem) = (holds, problem);
        self
    }
}

/// `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
