//! `tec-zoo pretrain`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::progress::{self, Progress, time};
use super::{exit::Exit, exit::Usage, hint::Advised, identity::Identity, interrupt, out, output::Output, registry};
use crate::kernels::{DeviceError, open_device};
use crate::model::Canonical;
use crate::train::distributed::{Place, World};
use crate::train::{
    Base, Branch, End, Parent, Pretraining, Recipe, Replay, Summary, is_run, pretrain, replay, started_recipe,
    started_run,
};

/// Train a new ViT from any base's backbone, as TEC does
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo pretrain --base ibot-vitb --data imagenet/train --out run --name my-tec    with the paper's settings for iBOT
  tec-zoo pretrain --out run --resume                          go on where it stopped, however it stopped
  tec-zoo pretrain --base run/model --data photos/ --out second --recipe nano --set method.top_k=15 --set method.tau=1.8
  tec-zoo pretrain --branch-from run@62400 --out lower --set optimizer.base_lr=5e-5    on from there with other settings
  tec-zoo pretrain --branch-from run --out longer --set optimizer.epochs=600           more epochs, in all
  tec-zoo pretrain --data photos/ --out pixels --recipe nano-pixels      MAE's own loss; needs no base

Recipes: see recipes/README.md; the run's folder holds recipe.toml, run.json, metrics.jsonl, TensorBoard events, checkpoints/ and, at
the end, model/, which every command takes as a model. Ctrl-C and SIGTERM save first.
Several processes, started by torchrun, mpirun or srun, share every batch (builds with `nccl` or `mpi`).")]
pub(super) struct Args {
    /// A directory in the common format, a pretraining's folder or checkpoint, or a name of the zoo
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// A folder of images, a text file with one path a line, or WebDataset .tar shards
    #[arg(long, value_name = "DIR|LIST|SHARDS", required_unless_present_any = ["resume", "replay", "branch_from"])]
    data: Option<PathBuf>,
    /// The run's folder
    #[arg(long, value_name = "DIR", required_unless_present = "replay")]
    out: Option<PathBuf>,
    /// Settings: a name, or a .toml file; when left out, those published for the base, or the run's own with --resume
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// Change one setting, such as optimizer.epochs=100; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continue the run in --out from its newest whole checkpoint; starts it when there is none yet
    #[arg(long)]
    resume: bool,
    /// Go on with other images than the run was started with; run.json says so then
    #[arg(long, requires = "resume")]
    allow_other_data: bool,
    /// Begin from another run: its newest checkpoint, that of update STEP, or a dump; recipe, base and data are its own unless said
    #[arg(long, value_name = "RUN[@STEP]")]
    branch_from: Option<String>,
    /// The epoch of the schedule a branch begins at [default: the other run's; 0 is the whole schedule, warm-up included]
    #[arg(long, value_name = "N", requires = "branch_from")]
    start_epoch: Option<u64>,
    /// Who computes: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    /// Register the result under this name, so that every command takes it
    #[arg(long)]
    name: Option<String>,
    /// With --name: take the name even where another model has it; a run's folder is never overwritten
    #[arg(long, requires = "name")]
    overwrite: bool,
    /// Repeat the update of a dump that a non-finite loss left; exit 3 when it ends otherwise now
    #[arg(long, value_name = "DUMP", conflicts_with_all = ["data", "out", "recipe", "set", "resume", "name", "branch_from"])]
    replay: Option<PathBuf>,
    /// For machines: one object at the end
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let place = Place::read(|name| std::env::var(name).ok())?;
    let device = match open_device(&args.device, place.local_rank) {
        Err(error @ DeviceError::Unknown { .. }) => {
            let hint = error.hint().unwrap_or_default();
            return Err(Advised::usage(Usage(error.to_string()), hint));
        }
        device => device?,
    };
    if let Some(dump) = &args.replay {
        let base = args.base.as_deref().map(|base| registry::open(base, output)).transpose()?;
        return show_replay(&replay(dump, base, &device, &mut |_| interrupt::flow())?, args.json, output);
    }
    let out = args.out.as_deref().context("name the run's folder with --out")?;
    let out = &*out::destination(out, false).folder()?;
    if let Some(name) = &args.name {
        // Hours later is too late to learn it.
        crate::zoo::check_name(&registry::overlay()?, name, &out.join("model"), args.overwrite)?;
    }
    let started = if args.resume { started_run(out)?.map(|started| started.run) } else { None };
    let parent = args.branch_from.as_deref().map(|from| parent(from, output)).transpose()?;
    let own = started.as_ref().or(parent.as_ref().and_then(Parent::about));
    let base = match (&args.base, started.as_ref().and_then(|run| run.base.as_ref())) {
        (Some(model), _) => {
            let opened = registry::open(model, output)?;
            Some((Identity::of(model, &opened)?, opened))
        }
        (None, Some(base)) => {
            let opened = Canonical::open(&base.directory)?;
            Some((Identity::of_started(&base.name, &opened)?, opened))
        }
        (None, None) => match parent.as_ref().filter(|_| started.is_none()).map(Parent::base).transpose()?.flatten() {
            Some((name, opened)) => Some((Identity::of_started(&name, &opened)?, opened)),
            None => None,
        },
    };
    let data = args.data.clone().or_else(|| own.map(|run| run.data.clone()));
    let data = data.ok_or_else(|| Usage("name the images with --data: there is no run that says them".into()))?;
    let recipe = recipe(args, out, base.as_ref().map(|(identity, _)| identity), parent.as_ref())?;
    let base = base.map(|(Identity { name, manifest }, model)| {
        let tec = manifest.and_then(|manifest| manifest.tec);
        Base { name, model, tec }
    });

    let branch = parent.map(|parent| Branch { parent, start_epoch: args.start_epoch });
    let settings = Pretraining {
        recipe,
        base,
        data,
        allow_other_data: args.allow_other_data,
        out: out.to_path_buf(),
        branch,
        resume: args.resume,
        device,
    };
    let world = World::join(place, &settings.device)?;
    match train(args, &settings, &world, output) {
        Ok(exit) => {
            world.leave()?;
            Ok(exit)
        }
        // The others wait for this process, and must not do so for ever.
        Err(error) if world.size() > 1 => {
            output.error(&error, Exit::of(&error));
            world.abort(1)
        }
        Err(error) => Err(error),
    }
}

fn train(args: &Args, settings: &Pretraining, world: &World, output: &mut Output) -> Result<Exit> {
    let mut progress = Progress::new(output, world.rank() == 0);
    let end = pretrain(settings, world, &mut |news| progress.hear(news), &|stall| progress::end(stall, &settings.out));
    progress.finish();
    match end? {
        End::Stopped { step, steps } => {
            if world.rank() == 0 {
                output.say(format_args!(
                    "stopped after update {step} of {steps}, saved\nhint: `tec-zoo pretrain --out {} --resume` goes on",
                    settings.out.display()
                ));
            }
            Ok(Exit::Interrupted)
        }
        End::Finished(None) => Ok(Exit::Done),
        End::Finished(Some(summary)) => {
            match args.json {
                true => output.json(&summary)?,
                false => print(&summary, output)?,
            }
            if let Some(name) = &args.name {
                // Asked again: the name may have been taken while the run went on. The model stays where it is then.
                crate::zoo::register(&registry::overlay()?, name, &summary.model, args.overwrite)?;
                output.say(format_args!("registered as `{name}`"));
            }
            Ok(Exit::Done)
        }
    }
}

/// The run `RUN[@STEP]`.
fn parent(from: &str, output: &mut Output) -> Result<Parent> {
    let (run, step) = match from.rsplit_once('@') {
        Some((run, step)) if !Path::new(from).exists() => match step.parse() {
            Ok(step) => (run, Some(step)),
            Err(_) => (from, None),
        },
        _ => (from, None),
    };
    if !is_run(Path::new(run)) {
        let text = format!("`{run}` is no run");
        return Err(Advised::refusal(
            text,
            "a run is the folder a pretraining made; name one of its updates as RUN@120",
        ));
    }
    let mut damaged = |path: &Path, reason: &str| {
        output.warn(format_args!("`{}` cannot be used: {reason}; going back further", path.display()));
    };
    Ok(Parent::open(Path::new(run), step, &mut damaged)?)
}

/// The recipe asked for; of a run that goes on, or of the one before it, its own; otherwise the shortest that was published for the base.
fn recipe(args: &Args, out: &Path, base: Option<&Identity>, parent: Option<&Parent>) -> Result<Recipe> {
    if let Some(name) = &args.recipe {
        return Ok(Recipe::load(name, &args.set)?);
    }
    if args.resume
        && let Some(recipe) = started_recipe(out)?
    {
        return Ok(recipe.with_all(&args.set)?);
    }
    if let Some(parent) = parent {
        return Ok(parent.recipe().with_all(&args.set)?);
    }
    let published = base.and_then(Identity::released).and_then(Recipe::published_for);
    let Some(name) = published else {
        let of = base.map_or("training without a base".to_owned(), |base| format!("`{}` as a base", base.name));
        let names = Recipe::names().collect::<Vec<_>>().join(", ");
        let hint = "`nano` is a small student to try things with";
        let text = format!("no recipe was published for {of}: choose one with --recipe");
        return Err(Advised::usage(Usage(text), format!("there are {names}; {hint}")));
    };
    Ok(Recipe::load(name, &args.set)?)
}

fn print(summary: &Summary, output: &mut Output) -> Result<()> {
    let loss = |value: Option<f64>| value.map(|value| format!("{value:.4}"));
    let rows = [
        ("model", Some(summary.model.display().to_string())),
        ("updates", Some(summary.steps.to_string())),
        ("epochs", Some(summary.epochs.to_string())),
        ("images", Some(summary.images.to_string())),
        ("broken images", Some(summary.skipped.to_string())),
        ("loss, last epoch", loss(summary.loss)),
        ("feature", loss(summary.feature)),
        ("attention", loss(summary.attention)),
        ("pixels", loss(summary.pixels)),
        ("time", Some(time(Duration::from_secs_f64(summary.seconds)))),
        ("images per second", Some(format!("{:.1}", summary.images_per_second))),
        ("data wait", Some(format!("{:.1}%", 100.0 * summary.data_wait))),
        ("peak memory", summary.peak_memory.map(|bytes| format!("{} MiB", bytes >> 20))),
    ];
    let rows: Vec<Vec<String>> =
        rows.into_iter().filter_map(|(name, value)| Some(vec![name.to_owned(), value?])).collect();
    output.table(&["", "RUN"], &rows, &[])
}

fn show_replay(replay: &Replay, json: bool, output: &mut Output) -> Result<Exit> {
    if json {
        output.json(replay)?;
    } else {
        let is = match (&replay.is, replay.loss) {
            (Some(term), _) => format!("{term} is not finite"),
            (None, loss) => format!("the loss is {}", loss.unwrap_or(f64::NAN)),
        };
        output.line(format_args!("update {}: {} was not finite; now {is}", replay.step, replay.was))?;
    }
    Ok(if replay.reproduced() { Exit::Done } else { Exit::NotHeld })
}
