//! Which runtimes are asked, where they are found, and what is shown while they work and when they are done.

use std::ops::ControlFlow;

use indicatif::ProgressBar;

use super::interrupt;
use super::output::{Output, Paint};
use crate::onnx::runtime::{Runtime, RuntimeError, RuntimeOptions};
use crate::onnx::{CheckReport, Event, RuntimeVerdict};

/// Said by every verb that asks runtimes.
pub(super) const FOUND: &str = "\
tract and candle are built in. ONNX Runtime is the library that ORT_DYLIB_PATH
names, or one in VIRTUAL_ENV or CONDA_PREFIX, or in the system's or the user's
Python packages or library folders; none in the current folder is ever loaded.";

/// What the environment says about runtimes.
pub(super) fn options(threads: Option<usize>) -> RuntimeOptions {
    let set = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(std::path::PathBuf::from);
    RuntimeOptions {
        ort_library: set("ORT_DYLIB_PATH"),
        environments: ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(set).collect(),
        threads,
    }
}

/// `ort,tract,candle`.
pub(super) fn parse(text: &str) -> Result<Runtime, String> {
    text.parse().map_err(|error: RuntimeError| match error.hint() {
        Some(hint) => format!("{error}\nhint: {hint}"),
        None => error.to_string(),
    })
}

/// A line on a terminal that follows the work on a graph; silent elsewhere.
pub(super) struct Progress {
    line: ProgressBar,
    /// What the work is about.
    about: String,
}

impl Progress {
    pub(super) fn new(output: &Output) -> Self {
        Self { line: output.spinner(), about: String::new() }
    }

    /// Says `about` before what is being done.
    pub(super) fn about(&mut self, about: String) {
        self.about = about;
    }

    /// For a library function to tell; ends its work on Ctrl-C.
    pub(super) fn hear(&mut self, event: Event<'_>) -> ControlFlow<()> {
        let doing = match event {
            Event::Writing { bytes, total } if total > 0 => Some(format!("writing {} %", bytes * 100 / total)),
            Event::Reference { size: [height, width] } => Some(format!("the eager pass at {height}x{width}")),
            Event::Layer { name } => Some(format!("the eager pass, {name}")),
            Event::Opening { runtime } => Some(format!("{runtime} is opening it")),
            Event::Running { runtime, size: [height, width] } => {
                Some(format!("{runtime} is running it at {height}x{width}"))
            }
            _ => None,
        };
        if let Some(doing) = doing {
            self.line.set_message(format!("{}{doing} …", self.about));
        }
        interrupt::flow()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.line.finish_and_clear();
    }
}

/// Prints a check's report as a table, and whether it holds.
pub(super) fn print(report: &CheckReport, output: &mut Output) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let first = report.runtimes.first().map(|check| check.size);
    let sizes = report.runtimes.iter().any(|check| Some(check.size) != first);
    for check in &report.runtimes {
        let size = sizes.then(|| format!("{}x{}", check.size[0], check.size[1]));
        let row = |cells: [String; 5]| {
            let runtime = check.runtime.name().to_owned();
            [runtime].into_iter().chain(size.clone()).chain(cells).collect::<Vec<_>>()
        };
        match &check.verdict {
            RuntimeVerdict::CouldNotRun { .. } => {
                rows.push(row(["", "", "", "", "did not run"].map(str::to_owned)));
            }
            RuntimeVerdict::Ran { outputs } if outputs.is_empty() => {
                rows.push(row(["", "", "", "", "not compared"].map(str::to_owned)));
            }
            RuntimeVerdict::Ran { outputs } => {
                for checked in outputs {
                    let verdict = match (checked.passed, &checked.problem) {
                        // What everything is compared with is no evidence for itself.
                        (true, _) if check.runtime.name() == report.reference => "the reference".to_owned(),
                        (true, _) => "ok".to_owned(),
                        (false, None) => "DIFFERS".to_owned(),
                        (false, Some(problem)) => problem.clone(),
                    };
                    let difference = format!("{:.1e}", checked.max_abs_diff);
                    let [cosine, bulk] = [checked.cosine, checked.cosine_of_bulk].map(|cosine| format!("{cosine:.9}"));
                    rows.push(row([checked.name.clone(), difference, cosine, bulk, verdict]));
                }
            }
        }
    }
    match sizes {
        true => {
            let headers = ["RUNTIME", "SIZE", "OUTPUT", "MAX |Δ|", "COSINE", "OF BULK", "VERDICT"];
            output.table(&headers, &rows, &[3, 4, 5])?;
        }
        false => {
            let headers = ["RUNTIME", "OUTPUT", "MAX |Δ|", "COSINE", "OF BULK", "VERDICT"];
            output.table(&headers, &rows, &[2, 3, 4])?;
        }
    }
    for (_, why_not) in report.did_not_run() {
        output.warn(why_not);
    }
    let verdict = match report.holds {
        Some(true) => output.paint_out(Paint::Good, "holds"),
        Some(false) => output.paint_out(Paint::Bad, "does not hold"),
        None => output.paint_out(Paint::Bad, "no verdict"),
    };
    match (&report.problem, report.holds) {
        (Some(problem), _) => output.line(format_args!("{problem}: {verdict}")),
        (None, _) => output.line(format_args!("{}: {verdict}", compared(report))),
    }
}

/// `compared with eager at |Δ| ≤ 1e-4 in ort and tract, not in candle`.
fn compared(report: &CheckReport) -> String {
    let names = |runtimes: Vec<Runtime>| runtimes.into_iter().map(Runtime::name).collect::<Vec<_>>().join(", ");
    let ran = names(report.ran());
    let not = names(report.did_not_run().into_iter().map(|(runtime, _)| runtime).collect());
    let not = if not.is_empty() { String::new() } else { format!("; did not run: {not}") };
    format!("compared with {} at {} in {ran}{not}", report.reference, report.tolerance)
}
