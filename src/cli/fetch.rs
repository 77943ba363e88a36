//! `tec-zoo fetch`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::{exit::Exit, exit::Usage, hint::Advised, interrupt, output::Output, registry};
use crate::fetch::{Event, Fetched, Options, Origin, Parts, Secret, Store, fetch, fetch_from, is_bundle, unbundle};
use crate::zoo::{Manifest, Terms, Zoo};

/// Bring models into the store: download, verify, convert
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo fetch ibot-vitb && tec-zoo export ibot-vitb --out ibot.onnx
  tec-zoo fetch mae-vitb --from ~/downloads/mae_pretrain_vit_base.pth
  tec-zoo fetch ibot-vitb mae-vitb --dry-run
  tec-zoo fetch --from models.bundle                          all models of a bundle (`tec-zoo bundle`)

An interrupted fetch says whether the next one goes on from there. TEC_ZOO_HOME
says where things are kept, HF_ENDPOINT and TEC_ZOO_MIRROR where else they are;
HF_TOKEN goes to the hub's host only. TEC_ZOO_OFFLINE touches no network.")]
pub(super) struct Args {
    /// Names of the zoo; with a bundle, names in it (all of it when left out)
    #[arg(required_unless_present = "from")]
    models: Vec<String>,
    /// A file of the model got some other way, another address of it, or a bundle of models
    #[arg(long, value_name = "FILE|URL")]
    from: Option<String>,
    /// Whether to fetch only the wanted network's tensors of a file that holds several: auto does where no hash of the
    /// whole file was published, since none can be checked then
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    partial: Partial,
    /// Touch no network
    #[arg(long)]
    offline: bool,
    /// A server laid out as MIRROR/HOST/PATH, asked first
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Parts downloaded at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Keep the downloaded file beside the model, so that damage can be repaired range by range
    #[arg(long)]
    keep_source: bool,
    /// Accept plain http from other hosts
    #[arg(long)]
    allow_http: bool,
    /// Show what would be fetched from where; touch nothing
    #[arg(long)]
    dry_run: bool,
    /// For machines: an array of objects
    #[arg(long)]
    json: bool,
}

/// When files are read in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Partial {
    /// Where it saves a quarter or more and no hash is lost
    #[default]
    Auto,
    /// Wherever the server and the file allow it
    Always,
    /// Never
    Never,
}

/// Settings from the environment, shared with `cache repair`.
pub(super) fn options() -> Options {
    let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let folder = |name: &str| text(name).map(PathBuf::from);
    let cache = dirs::home_dir().map(|home| home.join(".cache"));
    let under = |parts: &str| cache.as_ref().map(|cache| cache.join(parts));
    Options {
        offline: text("TEC_ZOO_OFFLINE").is_some_and(|value| value != "0"),
        mirror: text("TEC_ZOO_MIRROR"),
        hub: text("HF_ENDPOINT"),
        token: text("HF_TOKEN").map(Secret::new),
        torch_hub: folder("TORCH_HOME")
            .map(|home| home.join("hub/checkpoints"))
            .or_else(|| under("torch/hub/checkpoints")),
        hugging_face: folder("HF_HUB_CACHE")
            .or_else(|| folder("HF_HOME").map(|home| home.join("hub")))
            .or_else(|| under("huggingface/hub")),
        ..Options::default()
    }
}

/// Whether `text` is an address rather than a path.
///
/// # Errors
/// An address of a kind that nothing here reads.
pub(super) fn is_address(text: &str) -> Result<bool> {
    match text.split_once("://") {
        None => Ok(false),
        Some(("https" | "http", _)) => Ok(true),
        Some((scheme, _)) => {
            let text = format!("`{scheme}` is no scheme that can be read");
            Err(Advised::usage(Usage(text), "an address begins with https://; a file is given by its path"))
        }
    }
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let zoo = registry::zoo()?;
    if let Some(path) = args.from.as_deref()
        && !is_address(path)?
        && is_bundle(Path::new(path))?
    {
        return from_bundle(args, Path::new(path), &zoo, output);
    }
    if args.from.is_some() && args.models.len() != 1 {
        return Err(Usage("--from is one file: name one model".into()).into());
    }
    let manifests = args.models.iter().map(|name| zoo.get(name)).collect::<Result<Vec<_>, _>>()?;
    let environment = options();
    let options = Options {
        jobs: args.jobs.into(),
        offline: args.offline || environment.offline,
        mirror: args.mirror.clone().or(environment.mirror.clone()),
        keep_source: args.keep_source,
        allow_http: args.allow_http,
        parts: match args.partial {
            Partial::Auto => Parts::Auto,
            Partial::Always => Parts::Always,
            Partial::Never => Parts::Never,
        },
        ..environment
    };
    if args.dry_run {
        return plan(&manifests, &options, args.json, output);
    }
    let store = Store::open(&registry::home()?)?;
    let mut report: Vec<(String, Fetched)> = Vec::new();
    for manifest in manifests {
        interrupt::check()?;
        let name = &manifest.name;
        if zoo.terms(name)? != Terms::Permissive {
            let spdx = &manifest.licence.spdx;
            output.say(format_args!(
                "{name}: licence {spdx}, non-commercial by itself or its lineage (`tec-zoo info {name}`)"
            ));
        }
        let mut news = News::new(output);
        let fetched = match &args.from {
            None => fetch(&store, manifest, &options, &mut |event| news.hear(event)),
            Some(from) => {
                let origin = if is_address(from)? { Origin::Url(from.clone()) } else { Origin::File(from.into()) };
                fetch_from(&store, manifest, &origin, &options, &mut |event| news.hear(event))
            }
        };
        news.bar.finish_and_clear();
        let fetched = fetched.with_context(|| format!("`{name}` is not fetched"))?;
        if let Some((bytes, total)) = fetched.in_part {
            output.say(format_args!(
                "{name}: fetched {bytes} of {total} bytes; the file's own sha256 cannot be known, its entries' checksums hold"
            ));
        }
        report.push((name.clone(), fetched));
    }
    print(&report, args.json, output)
}

fn from_bundle(args: &Args, path: &Path, zoo: &Zoo, output: &mut Output) -> Result<Exit> {
    if args.dry_run {
        return Err(Usage("--dry-run is for sources; a bundle's contents: `tar tf`".into()).into());
    }
    let store = Store::open(&registry::home()?)?;
    let mut news = News::new(output);
    let fetched = unbundle(&store, zoo, path, &args.models, &options(), &mut |event| news.hear(event));
    news.bar.finish_and_clear();
    print(&fetched?, args.json, output)
}

fn print(report: &[(String, Fetched)], json: bool, output: &mut Output) -> Result<Exit> {
    if !json {
        report.iter().try_for_each(|(_, fetched)| output.line(fetched.dir.display()))?;
        return Ok(Exit::Done);
    }
    let objects = report.iter().map(|(name, fetched)| {
        json!({
            "model": name, "dir": fetched.dir, "cached": fetched.cached,
            "source_sha256": fetched.source_sha256, "address": fetched.address, "checked": fetched.checked,
            "fetched_bytes": fetched.in_part.map(|(bytes, _)| bytes),
            "file_bytes": fetched.in_part.map(|(_, total)| total),
        })
    });
    output.json(&objects.collect::<Vec<_>>())?;
    Ok(Exit::Done)
}

fn plan(manifests: &[&Manifest], options: &Options, json: bool, output: &mut Output) -> Result<Exit> {
    let rows: Vec<[String; 4]> = manifests
        .iter()
        .flat_map(|manifest| manifest.sources.iter().map(move |source| (manifest, source)))
        .map(|(manifest, source)| {
            let hashes: Vec<String> = source.hashes.iter().map(ToString::to_string).collect();
            let bytes = source.bytes.map_or("unknown".to_owned(), |bytes| bytes.to_string());
            let hashes =
                if hashes.is_empty() { "none published: pinned on first use".to_owned() } else { hashes.join(" ") };
            [manifest.name.clone(), source.address(options.hub.as_deref()), bytes, hashes]
        })
        .collect();
    if json {
        let objects = rows.iter().map(|[model, address, bytes, hashes]| {
            json!({ "model": model, "address": address, "bytes": bytes.parse::<u64>().ok(), "hashes": hashes })
        });
        output.json(&objects.collect::<Vec<_>>())?;
    } else {
        let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
        output.table(&["MODEL", "ADDRESS", "BYTES", "HASHES"], &rows, &[2])?;
    }
    Ok(Exit::Done)
}

/// Turns events into a bar and the lines a reader wants to keep.
pub(super) struct News<'a> {
    output: &'a mut Output,
    pub(super) bar: indicatif::ProgressBar,
}

impl<'a> News<'a> {
    pub(super) fn new(output: &'a mut Output) -> Self {
        let bar = output.bytes_bar(0);
        Self { output, bar }
    }

    pub(super) fn hear(&mut self, event: Event) -> ControlFlow<()> {
        let bar = self.bar.clone();
        match event {
            Event::Idle => {}
            Event::Reading { path } => bar.suspend(|| self.output.say(format_args!("reading {path}"))),
            Event::Progress { have, total } => {
                bar.set_length(total.unwrap_or(have));
                bar.set_position(have);
            }
            Event::Waiting { holder } => {
                bar.suspend(|| self.output.say(format_args!("waiting for {holder}, which is at it already")));
            }
            Event::Source { address } => bar.suspend(|| self.output.say(format_args!("from {address}"))),
            Event::Resumed { have, total } => {
                bar.suspend(|| self.output.say(format_args!("{have} of {total} bytes are here already")));
            }
            Event::Retry { reason, pause } if pause < Duration::from_secs(1) => {
                bar.suspend(|| self.output.say(format_args!("trying again: {reason}")));
            }
            Event::Retry { reason, pause } => {
                let seconds = pause.as_secs_f64();
                bar.suspend(|| self.output.say(format_args!("trying again in {seconds:.0} s: {reason}")));
            }
            Event::Restart { reason } => bar.suspend(|| self.output.warn(format_args!("starting over: {reason}"))),
            Event::Failed { address, reason } => {
                bar.suspend(|| self.output.warn(format_args!("{address}: {reason}")));
            }
            Event::Verified { sha256, bytes } => {
                bar.suspend(|| self.output.say(format_args!("verified {bytes} bytes, sha256 {sha256}")));
            }
            Event::Converting => bar.suspend(|| self.output.say("converting")),
            Event::InPart { needed, total } => {
                bar.suspend(|| {
                    self.output.say(format_args!("fetching {needed} of {total} bytes: the rest is not needed"));
                });
            }
            Event::NotInPart { reason } => {
                bar.suspend(|| self.output.say(format_args!("fetching all of the file: {reason}")));
            }
            Event::Checked { how } => bar.suspend(|| self.output.say(format_args!("checked: {how}"))),
            Event::Unremembered { reason } => {
                bar.suspend(|| self.output.warn(format_args!("`identify` will not know it: {reason}")));
            }
        }
        interrupt::flow()
    }
}
