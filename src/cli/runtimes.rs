//! Which runtimes are asked, and where they are found.

use super::output::{Output, Paint};
use crate::onnx::runtime::{Runtime, RuntimeError, RuntimeOptions};
use crate::onnx::{CheckReport, RuntimeVerdict};

/// What the environment says about runtimes.
pub(super) fn options(threads: Option<usize>) -> RuntimeOptions {
    RuntimeOptions {
        ort_library: std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(Into::into),
        python_environments: std::env::var_os("VIRTUAL_ENV").map(Into::into).into_iter().collect(),
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

/// Prints a check's report as a table.
pub(super) fn print(report: &CheckReport, output: &mut Output) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut notes: Vec<&str> = Vec::new();
    let first = report.runtimes.first().map(|check| check.size);
    let sizes = report.runtimes.iter().any(|check| Some(check.size) != first);
    for check in &report.runtimes {
        let size = sizes.then(|| format!("{}x{}", check.size[0], check.size[1]));
        let row = |cells: [String; 5]| {
            let runtime = check.runtime.name().to_owned();
            [runtime].into_iter().chain(size.clone()).chain(cells).collect::<Vec<_>>()
        };
        match &check.verdict {
            RuntimeVerdict::CouldNotRun { reason } => {
                rows.push(row(["", "", "", "", "could not run"].map(str::to_owned)));
                if !notes.contains(&reason.as_str()) {
                    notes.push(reason);
                }
            }
            RuntimeVerdict::Ran { outputs } => {
                for checked in outputs {
                    let verdict = match (checked.passed, &checked.problem) {
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
    for note in notes {
        output.warn(note);
    }
    let summary = format!("compared with {} at {}", report.reference, report.tolerance);
    let verdict = if report.passed() {
        output.paint_out(Paint::Good, "holds")
    } else {
        output.paint_out(Paint::Bad, "does not hold")
    };
    output.line(format_args!("{summary}: {verdict}"))
}
