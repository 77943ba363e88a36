//! `tec-zoo demo`: the whole way on data embedded in the program, without a network.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use super::{exit::Exit, interrupt, output::Output, output::Paint, runtimes};
use crate::checkpoint::Checkpoint;
use crate::convert::{Layout, Plan, Request, emit};
use crate::model::Canonical;
use crate::onnx::runtime::Runtime;
use crate::onnx::{Adapters, CheckOptions, ExportOptions, RuntimeVerdict, Target, export_checked};
use crate::verify::{Golden, Options, verify};

/// A TEC training checkpoint of a nano ViT, as the authors' trainer saved it, and what their code makes of two images.
const CHECKPOINT: &[u8] = include_bytes!("../../fixtures/reference/tec_checkpoint-299.pth");
const EXPECTED: &[u8] = include_bytes!("../../fixtures/reference/tec_expected.safetensors");
const NAME: &str = "tec_checkpoint-299.pth";
/// Of the embedded checkpoint; no tensor says so.
const HEADS: usize = 4;

/// The whole way on embedded data: convert, verify, export, check in every runtime found
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tec-zoo demo --out demo && ls demo")]
pub(super) struct Args {
    /// Keep what is made in this new folder; thrown away when left out
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The demo's one table, and whether every line of it is good.
struct Steps {
    rows: Vec<Vec<String>>,
    started: Instant,
    good: bool,
}

impl Steps {
    fn add(&mut self, step: &str, what: String, good: bool) -> Result<()> {
        interrupt::check()?;
        let seconds = self.started.elapsed().as_secs_f64();
        self.started = Instant::now();
        self.good &= good;
        let verdict = if good { "ok" } else { "DOES NOT HOLD" };
        self.rows.push(vec![step.to_owned(), what, format!("{seconds:.2} s"), verdict.to_owned()]);
        Ok(())
    }
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let (folder, _temporary) = match &args.out {
        Some(out) => {
            std::fs::create_dir(out).with_context(|| format!("cannot make the folder `{}`", out.display()))?;
            (out.clone(), None)
        }
        None => {
            let temporary = tempfile::tempdir()?;
            (temporary.path().to_path_buf(), Some(temporary))
        }
    };
    output.say("A TEC pretraining checkpoint as the authors' trainer saved it, from pickle to three ONNX runtimes.\n");
    let mut steps = Steps { rows: Vec::new(), started: Instant::now(), good: true };

    let model = convert(&folder, &mut steps)?;
    replay(&model, &folder, &mut steps)?;
    let back = emit(&model, Layout::Timm, &folder.join("timm"), false, &mut |_| ControlFlow::Continue(()))?;
    steps.add("convert --to timm", format!("{} tensors under timm's names", back.tensors), true)?;
    let found = exports(&model, &folder, &mut steps, output)?;

    output.table(&["STEP", "RESULT", "TIME", "VERDICT"], &steps.rows, &[2])?;
    if !found {
        output.say("\nONNX Runtime was not found: `pip install onnxruntime`, or set ORT_DYLIB_PATH; tract and candle are built in.");
    }
    if let Some(out) = &args.out {
        output.say(format_args!("\nkept in {}", out.display()));
    }
    let verdict = match steps.good {
        true => output.paint_out(Paint::Good, "everything holds"),
        false => output.paint_out(Paint::Bad, "something does not hold"),
    };
    output.line(verdict)?;
    Ok(if steps.good { Exit::Done } else { Exit::NotHeld })
}

fn convert(folder: &Path, steps: &mut Steps) -> Result<Canonical> {
    let checkpoint = Checkpoint::from_bytes(NAME, Cow::Borrowed(CHECKPOINT))?;
    let request = Request { heads: Some(HEADS), ..Request::default() };
    let plan = Plan::new(&checkpoint, &request)?;
    let made = plan.apply(&checkpoint, NAME, &folder.join("model"), false, &mut |_| ControlFlow::Continue(()))?;
    let tensors: usize = made.files.iter().map(|(_, tensors)| tensors).sum();
    let what = format!("{} keys accounted for, {tensors} tensors kept, class token merged", plan.decisions().len());
    steps.add("convert", what, true)?;
    Ok(Canonical::open(&made.dir)?)
}

fn replay(model: &Canonical, folder: &Path, steps: &mut Steps) -> Result<()> {
    let path = folder.join("golden.safetensors");
    std::fs::write(&path, EXPECTED).with_context(|| format!("cannot write `{}`", path.display()))?;
    let report = verify(model, &Golden::open(&path)?, &Options::default())?;
    let worst = report.stages.iter().filter_map(|stage| Some(stage.difference?.relative)).fold(0.0, f64::max);
    let what = format!("{} stages against the authors' numbers, worst {worst:.1e} relative", report.stages.len());
    steps.add("verify", what, report.holds)
}

/// Exports every variant and checks each; returns whether ONNX Runtime took part.
fn exports(model: &Canonical, folder: &Path, steps: &mut Steps, output: &mut Output) -> Result<bool> {
    let mut found = false;
    for target in [Target::Portable, Target::Ort] {
        for adapters in [Adapters::Drop, Adapters::Keep] {
            let kept = if adapters == Adapters::Keep { "keep" } else { "drop" };
            let path = folder.join(format!("{target}-{kept}.onnx"));
            let options = ExportOptions { target, adapters, ..ExportOptions::default() };
            let checks = CheckOptions { runtime: runtimes::options(None), ..CheckOptions::default() };
            let (written, report) = export_checked(model, &path, &options, &checks)?;
            let mut ran = Vec::new();
            for check in &report.runtimes {
                match &check.verdict {
                    RuntimeVerdict::Ran { outputs } => {
                        let worst = outputs.iter().map(|output| output.max_abs_diff).fold(0.0, f32::max);
                        found |= check.runtime == Runtime::Ort;
                        ran.push(format!("{} |Δ| {worst:.0e}", check.runtime));
                    }
                    // A missing ONNX Runtime is said once, below the table; the ort target's operators are not candle's, and that
                    // is no failure.
                    RuntimeVerdict::CouldNotRun { reason }
                        if check.runtime != Runtime::Ort && target == Target::Portable =>
                    {
                        output.say(format_args!("{}: {reason}", check.runtime));
                    }
                    RuntimeVerdict::CouldNotRun { .. } => {}
                }
            }
            let step = format!("export {target} {kept}");
            steps.add(&step, format!("{} nodes; {}", written.nodes, ran.join(", ")), report.passed())?;
        }
    }
    Ok(found)
}
