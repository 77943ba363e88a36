//! `tec-zoo fetch`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::{exit::Exit, exit::Usage, interrupt, output::Output, registry};
use crate::fetch::{Event, Options, Origin, Secret, Store, fetch, fetch_from};
use crate::zoo::{Manifest, Terms};

/// Bring models into the store: download, verify, convert
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo fetch ibot-vitb && tec-zoo export ibot-vitb --out ibot.onnx
  tec-zoo fetch mae-vitb --from ~/downloads/mae_pretrain_vit_base.pth
  tec-zoo fetch ibot-vitb mae-vitb --dry-run

An interrupted fetch goes on where it stopped. TEC_ZOO_HOME says where things are kept, HF_ENDPOINT and TEC_ZOO_MIRROR where else
they are; HF_TOKEN goes to the hub's host only. TEC_ZOO_OFFLINE touches no network.")]
pub(super) struct Args {
    /// Names of the zoo
    #[arg(required = true)]
    models: Vec<String>,
    /// A file of the model got some other way, or another address of it
    #[arg(long, value_name = "FILE|URL")]
    from: Option<String>,
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

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    if args.from.is_some() && args.models.len() > 1 {
        return Err(Usage("--from is one file: name one model".into()).into());
    }
    let zoo = registry::zoo()?;
    let manifests = args.models.iter().map(|name| zoo.get(name)).collect::<Result<Vec<_>, _>>()?;
    let environment = options();
    let options = Options {
        jobs: args.jobs.into(),
        offline: args.offline || environment.offline,
        mirror: args.mirror.clone().or(environment.mirror.clone()),
        keep_source: args.keep_source,
        allow_http: args.allow_http,
        ..environment
    };
    if args.dry_run {
        return plan(&manifests, &options, args.json, output);
    }
    let store = Store::open(&registry::home()?)?;
    let mut report = Vec::new();
    for manifest in manifests {
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
                let origin = if from.contains("://") { Origin::Url(from.clone()) } else { Origin::File(from.into()) };
                fetch_from(&store, manifest, &origin, &options, &mut |event| news.hear(event))
            }
        };
        news.bar.finish_and_clear();
        let fetched = fetched.with_context(|| format!("`{name}` is not fetched"))?;
        match args.json {
            true => report.push(json!({
                "model": name, "dir": fetched.dir, "cached": fetched.cached,
                "source_sha256": fetched.source_sha256, "address": fetched.address,
            })),
            false => output.line(fetched.dir.display())?,
        }
    }
    if args.json {
        output.json(&report)?;
    }
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

    pub(super) fn hear(&mut self, event: Event) {
        if interrupt::requested() {
            // Everything downloaded so far is on record beside its part file; the next run goes on from there.
            self.bar.finish_and_clear();
            eprintln!("interrupted; the next fetch goes on from here");
            std::process::exit(130);
        }
        let bar = self.bar.clone();
        match event {
            Event::Progress { have, total } => {
                bar.set_length(total.unwrap_or(have));
                bar.set_position(have);
            }
            Event::Waiting { holder } => bar.suspend(|| self.output.say(format_args!("waiting for {holder}"))),
            Event::Source { address } => bar.suspend(|| self.output.say(format_args!("from {address}"))),
            Event::Resumed { have, total } => {
                bar.suspend(|| self.output.say(format_args!("{have} of {total} bytes are here already")));
            }
            Event::Retry { reason } => bar.suspend(|| self.output.say(format_args!("trying again: {reason}"))),
            Event::Restart { reason } => bar.suspend(|| self.output.warn(format_args!("starting over: {reason}"))),
            Event::Failed { address, reason } => {
                bar.suspend(|| self.output.warn(format_args!("{address}: {reason}")));
            }
            Event::Verified { sha256, bytes } => {
                bar.suspend(|| self.output.say(format_args!("verified {bytes} bytes, sha256 {sha256}")));
            }
            Event::Converting => bar.suspend(|| self.output.say("converting")),
        }
    }
}
