//! `tec-zoo demo`: the whole way on data embedded in the program, without a network.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::Device;

use super::{exit::Exit, interrupt, out, output::Output, output::Paint, progress, runtimes};
use crate::checkpoint::Checkpoint;
use crate::convert::{Layout, Plan, Request, emit};
use crate::destination::DestinationError;
use crate::model::Canonical;
use crate::onnx::runtime::Runtime;
use crate::onnx::{Adapters, CheckOptions, ExportOptions, RuntimeVerdict, Target, export_checked};
use crate::train::distributed::{Place, World};
use crate::train::{Base, End, News, Pretraining, Recipe, pretrain};
use crate::verify::{Golden, Options, verify};
use crate::zoo::{Zoo, register};

/// A TEC training checkpoint of a nano ViT, as the authors' trainer saved it, and what their code makes of two images.
const CHECKPOINT: &[u8] = include_bytes!("../../fixtures/reference/tec_checkpoint-299.pth");
const EXPECTED: &[u8] = include_bytes!("../../fixtures/reference/tec_expected.safetensors");
const NAME: &str = "tec_checkpoint-299.pth";
/// Of the embedded checkpoint; no tensor says so.
const HEADS: usize = 4;

/// Pictures to pretrain on, as often each as the list says: crops, flips and masks make them differ.
const PICTURES: [(&str, &[u8]); 4] = [
    ("0.png", include_bytes!("../../fixtures/images/0.png")),
    ("1.png", include_bytes!("../../fixtures/images/1.png")),
    ("2.png", include_bytes!("../../fixtures/images/2.png")),
    ("3.png", include_bytes!("../../fixtures/images/3.png")),
];
const REPEATS: usize = 16;
/// On top of `nano`: what two processors do in well under a minute.
const SETTINGS: [&str; 2] = ["optimizer.epochs=100", "optimizer.warmup_epochs=10"];
const STUDENT: &str = "demo-tec";
/// What is left in `--out`, beside graphs.
const LEAVES: [&str; 7] = ["golden.safetensors", "model", "pictures", "pictures.txt", "run", "timm", "zoo"];

/// The whole way on embedded data: convert, verify, pretrain, register, export, check in every runtime found
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tec-zoo demo --out demo && ls demo")]
pub(super) struct Args {
    /// Keep what is made in this folder; thrown away when left out
    #[arg(long)]
    out: Option<PathBuf>,
    /// Replace what an earlier demo left in --out
    #[arg(long, requires = "out")]
    overwrite: bool,
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
        Some(out) => (claimed(out, args.overwrite)?, None),
        None => {
            let temporary = tempfile::tempdir()?;
            (temporary.path().to_path_buf(), Some(temporary))
        }
    };
    output.say("A TEC pretraining checkpoint as the authors' trainer saved it, from pickle to three ONNX runtimes; and a new model from it.\n");
    let mut steps = Steps { rows: Vec::new(), started: Instant::now(), good: true };

    let model = convert(&folder, &mut steps)?;
    replay(&model, &folder, &mut steps)?;
    let back = emit(&model, Layout::Timm, None, &folder.join("timm"), &mut |_| interrupt::flow())?;
    steps.add("convert --to timm", format!("{} tensors under timm's names", back.tensors), true)?;
    let mut ran = exports(&model, &folder, "", &mut steps, output)?;
    let student = pretraining(model, &folder, &mut steps, output)?;
    ran.extend(exports(&student, &folder, "student ", &mut steps, output)?);

    output.table(&["STEP", "RESULT", "TIME", "VERDICT"], &steps.rows, &[2])?;
    let told = runtimes::options(None).ort_library.is_some();
    if !ran.contains(&Runtime::Ort) && !told {
        output.say("\nONNX Runtime was not found: `pip install onnxruntime`, or set ORT_DYLIB_PATH; tract and candle are built in.");
    }
    if let Some(out) = &args.out {
        output.say(format_args!("\nkept in {}", out.display()));
    }
    let ran: Vec<&str> = Runtime::ALL.into_iter().filter(|one| ran.contains(one)).map(Runtime::name).collect();
    let verdict = match steps.good {
        true => output.paint_out(Paint::Good, &format!("everything holds, in {}", ran.join(", "))),
        false => output.paint_out(Paint::Bad, "something does not hold"),
    };
    output.line(verdict)?;
    Ok(if steps.good { Exit::Done } else { Exit::NotHeld })
}

/// The folder `out`, empty: of one that is there, only what a demo leaves is removed, and only on request.
fn claimed(out: &Path, overwrite: bool) -> Result<PathBuf> {
    let is_own = |name: &str| LEAVES.contains(&name) || name.ends_with(".onnx");
    let folder = out::destination(out, overwrite).folder()?;
    let failed = |source| DestinationError::Write { path: out.display().to_string(), source };
    if !folder.exists() {
        std::fs::create_dir(&folder).map_err(failed)?;
        return Ok(folder);
    }
    let entries = std::fs::read_dir(&folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>).map_err(failed)?;
    let path = out.display().to_string();
    let names = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    if let Some(name) = names.into_iter().find(|name| !is_own(name)) {
        return Err(DestinationError::Foreign { path, name }.into());
    }
    if !entries.is_empty() && !overwrite {
        return Err(DestinationError::Exists { path, why: "is not empty" }.into());
    }
    for entry in entries {
        let removed = match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => std::fs::remove_dir_all(entry.path()),
            false => std::fs::remove_file(entry.path()),
        };
        removed.map_err(failed)?;
    }
    Ok(folder)
}

fn convert(folder: &Path, steps: &mut Steps) -> Result<Canonical> {
    let checkpoint = Checkpoint::from_bytes(NAME, Cow::Borrowed(CHECKPOINT))?;
    let request = Request { heads: Some(HEADS), ..Request::default() };
    let plan = Plan::new(&checkpoint, &request)?;
    let made = plan.apply(&checkpoint, NAME, &folder.join("model"), &mut |_| interrupt::flow())?;
    let tensors: usize = made.files.iter().map(|(_, tensors)| tensors).sum();
    let what = format!("{} keys accounted for, {tensors} tensors kept, class token merged", plan.decisions().len());
    steps.add("convert", what, true)?;
    Ok(Canonical::open(&made.dir)?)
}

fn replay(model: &Canonical, folder: &Path, steps: &mut Steps) -> Result<()> {
    let path = folder.join("golden.safetensors");
    std::fs::write(&path, EXPECTED).with_context(|| format!("cannot write `{}`", path.display()))?;
    let report = verify(model, &Golden::open(&path)?, &Options::default(), &mut |_| interrupt::flow())?;
    let worst = report.stages.iter().filter_map(|stage| Some(stage.difference?.relative)).fold(0.0, f64::max);
    let what = format!("{} stages against the authors' numbers, worst {worst:.1e} relative", report.stages.len());
    steps.add("verify", what, report.holds == Some(true))
}

/// A new nano ViT from the converted one, registered in a catalogue of the demo's own.
fn pretraining(base: Canonical, folder: &Path, steps: &mut Steps, output: &mut Output) -> Result<Canonical> {
    let pictures = folder.join("pictures");
    std::fs::create_dir(&pictures).with_context(|| format!("cannot make the folder `{}`", pictures.display()))?;
    for (name, bytes) in PICTURES {
        std::fs::write(pictures.join(name), bytes)?;
    }
    let list = folder.join("pictures.txt");
    let names = PICTURES.map(|(name, _)| format!("pictures/{name}\n")).concat();
    std::fs::write(&list, names.repeat(REPEATS))?;

    let settings = Pretraining {
        recipe: Recipe::load("nano", &SETTINGS.map(str::to_owned))?,
        base: Some(Base { name: "demo".to_owned(), model: base, tec: None }),
        data: list,
        allow_other_data: false,
        out: folder.join("run"),
        branch: None,
        resume: false,
        device: Device::Cpu,
    };
    let bar = output.steps_bar();
    let mut first = None;
    let mut hear = |news: News<'_>| {
        if let News::Step { record, .. } = news {
            first.get_or_insert(record.loss);
            bar.set_message(format!("update {}, loss {:.4}", record.step, record.loss));
        }
        interrupt::flow()
    };
    let world = World::join(Place::alone(), &settings.device)?;
    let end = pretrain(&settings, &world, &mut hear, &|stall| progress::end(stall, &settings.out))?;
    let before = first;
    bar.finish_and_clear();
    interrupt::check()?;
    let (End::Finished(Some(summary)), Some(before)) = (end, before) else { bail!("the pretraining made no update") };
    let after = summary.loss.unwrap_or(f64::NAN);
    let what = format!("{} updates, loss {before:.3} -> {after:.3}", summary.steps);
    steps.add("pretrain", what, after < before)?;

    let overlay = folder.join("zoo");
    register(&overlay, STUDENT, &summary.model, false)?;
    let zoo = Zoo::with_overlay(&overlay)?;
    let lineage = zoo.lineage(STUDENT)?.into_iter().map(|step| step.model).collect::<Vec<_>>().join(" from ");
    steps.add("register", format!("{lineage}, licence {}", zoo.get(STUDENT)?.licence.spdx), true)?;
    Ok(Canonical::open(&summary.model)?)
}

/// Exports every variant and checks each; returns the runtimes that took part.
fn exports(
    model: &Canonical,
    folder: &Path,
    what: &str,
    steps: &mut Steps,
    output: &mut Output,
) -> Result<Vec<Runtime>> {
    let mut found = Vec::new();
    for target in [Target::Portable, Target::Ort] {
        for adapters in [Adapters::Drop, Adapters::Keep] {
            let kept = if adapters == Adapters::Keep { "keep" } else { "drop" };
            let path = folder.join(format!("{}{target}-{kept}.onnx", what.replace(' ', "-")));
            let options = ExportOptions { target, adapters, ..ExportOptions::default() };
            let checks = CheckOptions { runtime: runtimes::options(None), ..CheckOptions::default() };
            let (written, report) = export_checked(model, &path, &options, &checks, &mut |_| interrupt::flow())?;
            let mut ran = Vec::new();
            for check in &report.runtimes {
                match &check.verdict {
                    RuntimeVerdict::Ran { outputs } => {
                        let worst = outputs.iter().map(|output| output.max_abs_diff).fold(0.0, f32::max);
                        found.push(check.runtime);
                        ran.push(format!("{} |Δ| {worst:.0e}", check.runtime));
                    }
                    // A missing ONNX Runtime is said once, below the table; the ort target's operators are not candle's, and that
                    // is no failure.
                    RuntimeVerdict::CouldNotRun { reason }
                        if (check.runtime == Runtime::Ort && checks.runtime.ort_library.is_some())
                            || (check.runtime != Runtime::Ort && target == Target::Portable) =>
                    {
                        output.say(format_args!("{}: {reason}", check.runtime));
                    }
                    RuntimeVerdict::CouldNotRun { .. } => {}
                }
            }
            let step = format!("export {what}{target} {kept}");
            steps.add(&step, format!("{} nodes; {}", written.nodes, ran.join(", ")), report.holds == Some(true))?;
        }
    }
    Ok(found)
}
