//! `tec-zoo stats`.

use anyhow::{Context, Result, bail};

use super::{exit::Exit, output::Output, registry};
use crate::model::VitConfig;
use crate::model::stats::{self, Stats};
use crate::train::Recipe;

/// Parameters and multiply-accumulates of a model, or of a whole TEC pretraining
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo stats ibot-vitb --size 512
  tec-zoo stats --recipe tec-mae-vitb-300ep --json")]
pub(super) struct Args {
    /// A directory in the common format, a pretraining's folder or checkpoint, or a name of the zoo
    #[arg(required_unless_present = "recipe", conflicts_with = "recipe")]
    model: Option<String>,
    /// A pretraining: student, adapters and decoders against the frozen base
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// Image size in pixels; the model's own when left out
    #[arg(long, value_name = "HxW", value_parser = super::size::parse, conflicts_with = "recipe")]
    size: Option<[usize; 2]>,
    /// For machines: one object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let stats = match (&args.model, &args.recipe) {
        (Some(model), _) => {
            let config = architecture(model, output)?;
            let size = args.size.unwrap_or(config.image_size);
            if size.iter().any(|side| !side.is_multiple_of(config.patch_size)) {
                bail!("an image of {}×{} is not whole patches of {}", size[0], size[1], config.patch_size);
            }
            stats::vit(&config, size)
        }
        (None, Some(name)) => pretraining(name)?,
        (None, None) => bail!("name a model, or a recipe with --recipe"),
    };
    match args.json {
        true => output.json(&stats)?,
        false => print(&stats, output)?,
    }
    Ok(Exit::Done)
}

fn architecture(model: &str, output: &mut Output) -> Result<VitConfig> {
    if registry::is_directory(model) {
        return Ok(registry::config(model, output)?.vit);
    }
    Ok(registry::zoo()?.get(model)?.vit.clone())
}

/// One image through the pretraining `recipe` describes.
fn pretraining(recipe: &str) -> Result<Stats> {
    let recipe = Recipe::load(recipe, &[])?;
    let zoo = registry::zoo()?;
    let base = recipe.base.as_ref().map(|base| zoo.get(base)).transpose()?;
    let recipe = base.map_or(recipe.clone(), |base| recipe.with_student_of(&base.vit));
    let student = recipe.student.vit().context("the student has its base's shape, and the recipe names no base")?;
    // A base that was not released, or may be any, is counted as one like the student.
    let vit = base.map_or(student, |base| &base.vit);
    let top_k = base.and_then(|base| base.tec).map(|tec| tec.top_k);
    let shape = recipe.shape(top_k).context("the recipe leaves k to the base, and the base's manifest has none")?;
    Ok(stats::tec(student, recipe.needs_base().then_some(vit), &shape))
}

fn print(stats: &Stats, output: &mut Output) -> Result<()> {
    let giga = |macs: u64| match macs {
        0..1_000_000_000 => format!("{:.3} M", macs as f64 / 1e6),
        _ => format!("{:.3} G", macs as f64 / 1e9),
    };
    let mut rows = vec![("parameters", stats.parameters.to_string()), ("trainable", stats.trainable.to_string())];
    match stats.macs_with_grad {
        // A plain pass: nothing is trained in it.
        0 => rows.push(("multiply-accumulates", giga(stats.macs_without_grad))),
        with => {
            rows.push(("multiply-accumulates with gradient", giga(with)));
            rows.push(("multiply-accumulates without", giga(stats.macs_without_grad)));
        }
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    output.table(&["", "PER IMAGE"], &rows, &[1])
}
