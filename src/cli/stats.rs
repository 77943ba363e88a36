//! `tec-zoo stats`.

use anyhow::{Context, Result, bail};

use super::{exit::Exit, output::Output, registry};
use crate::model::stats::{self, Stats, TecShape};
use crate::model::{Canonical, VitConfig};

/// Parameters and multiply-accumulates of a model, or of a whole TEC pretraining
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo stats ibot-vitb --size 512
  tec-zoo stats --recipe tec-mae-vitb-300ep --json")]
pub(super) struct Args {
    /// A directory in the common format, or a name of the zoo
    #[arg(required_unless_present = "recipe", conflicts_with = "recipe")]
    model: Option<String>,
    /// The pretraining a TEC model of the zoo came from: student, adapters and decoders against its frozen base
    #[arg(long, value_name = "NAME")]
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
            let config = architecture(model)?;
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

fn architecture(model: &str) -> Result<VitConfig> {
    if registry::is_directory(model) {
        return Ok(Canonical::read_config(&registry::directory(model)?)?.vit);
    }
    Ok(registry::zoo()?.get(model)?.vit.clone())
}

/// What the authors trained to make the TEC model `name`.
fn pretraining(name: &str) -> Result<Stats> {
    let zoo = registry::zoo()?;
    let manifest = zoo.get(name)?;
    let base = manifest.base.as_ref().filter(|_| manifest.family == "tec");
    let base = base.with_context(|| format!("`{name}` is no TEC model\nhint: `tec-zoo list --family tec`"))?;
    // Candidates for one base have one architecture and one set of TEC settings; an unreleased base has its child's.
    let base = base.one_of.first().map(|base| zoo.get(base)).transpose()?;
    // The released file lost the final norm; the network that was trained has it.
    let student = &VitConfig { final_norm: true, ..manifest.vit.clone() };
    let mut shape = TecShape::published(student.width)
        .with_context(|| format!("no decoder was published for a width of {}", student.width))?;
    shape.top_k = base.and_then(|base| base.tec).map(|tec| tec.top_k).or(shape.top_k);
    Ok(stats::tec(student, base.map_or(student, |base| &base.vit), &shape))
}

fn print(stats: &Stats, output: &mut Output) -> Result<()> {
    let giga = |macs: u64| format!("{:.3} G", macs as f64 / 1e9);
    let rows = [
        ("parameters", stats.parameters.to_string()),
        ("trainable", stats.trainable.to_string()),
        ("multiply-accumulates with gradient", giga(stats.macs_with_grad)),
        ("multiply-accumulates without", giga(stats.macs_without_grad)),
    ];
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    output.table(&["", "PER IMAGE"], &rows, &[1])
}
